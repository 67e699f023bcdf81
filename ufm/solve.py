"""The one loop: a batch of problems, a solver that steps it, and the way back to a `Solution` for every problem."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ufm.certify import certificates, spectral_norm
from ufm.errors import RequestError
from ufm.problem import Problem
from ufm.reduce import Reduced, balance, embedding, internal_dim, random_start, reduce, signature
from ufm.seeds import check_seed
from ufm.solution import Solution, Status
from ufm.solvers import SOLVERS
from ufm.solvers.objective import Objective
from ufm.tables import find, load

STEPS = 5000
START = 0.5
CHUNK = 8 << 20  # bytes of solver memory worked on at once: it has to stay in a core's cache


def solve(
    problem: Problem,
    *,
    method: str = "auto",
    seed: int = 0,
    steps: int | None = None,
    tol: float = 1e-10,
    lr: float | None = None,
) -> Solution:
    """Solve one problem; see `solve_many`."""
    return solve_many([problem], method=method, seeds=[seed], steps=steps, tol=tol, lr=lr)[0]


def solve_many(
    problems: Sequence[Problem],
    *,
    method: str = "auto",
    seeds: Sequence[int] | int | None = None,
    steps: int | None = None,
    tol: float = 1e-10,
    lr: float | None = None,
    device: str = "cpu",
) -> list[Solution]:
    """Solve problems in batches, each from its own random start."""
    problems = list(problems)
    seeds = _seeds(seeds, len(problems))
    groups: dict[tuple, list[int]] = {}
    for i, problem in enumerate(problems):
        check(problem)
        groups.setdefault((*signature(problem), internal_dim(problem), problem.classes, len(problem.count_vector)), []).append(i)
    out: list[Solution | None] = [None] * len(problems)
    for members in groups.values():
        solved = _solve_batch([problems[i] for i in members], [seeds[i] for i in members], method, steps or STEPS, tol, device)
        for i, solution in zip(members, solved, strict=True):
            out[i] = solution
    return out  # type: ignore[return-value]


def _seeds(seeds: Sequence[int] | int | None, count: int) -> list[int]:
    if seeds is None or isinstance(seeds, int):
        return [check_seed(seeds or 0)] * count
    if len(seeds) != count:
        raise RequestError(f"seeds has {len(seeds)} entries but there are {count} problems; give one seed per problem")
    return [check_seed(s) for s in seeds]


def check(problem: Problem) -> None:
    """Raise RequestError for a problem that has no optimum or that this module does not solve."""
    if problem.depth > 1:
        raise RequestError(f"depth {problem.depth} is solved by the deep system; use depth=1 here")
    if problem.constraint == "ridge" and problem.penalty == 0:
        raise RequestError("lambda_w or lambda_h is 0: the penalised problem has no optimum; use positive values or method='gd'")


def _solve_batch(problems: list[Problem], seeds: list[int], method: str, steps: int, tol: float, device: str) -> list[Solution]:
    name = "lbfgs" if method == "auto" else method
    solver = load(SOLVERS, name, "method")()
    reduced = reduce(problems, device)
    x = random_start(problems, seeds, reduced, START)
    end = iterate(Objective(reduced), solver, x, steps, tol)
    return finish(problems, seeds, reduced, end, name)


def iterate(objective: Objective, solver: Any, x: Tensor, steps: int, tol: float) -> dict[str, Tensor]:
    """Run a solver until every problem has ended; finished problems leave the batch when they are half of it."""
    batch = len(x)
    out = {
        "x": x.clone(),
        "residual": x.new_full((batch,), torch.inf),
        "iterations": torch.zeros(batch, dtype=torch.long, device=x.device),
        "status": torch.full((batch,), -1, device=x.device),
    }
    active = torch.arange(batch, device=x.device)
    state = solver.init(objective, x)
    for k in range(steps + 1):
        zero = is_zero(objective, state.x)
        bad = ~torch.isfinite(state.residual)
        done = (state.residual <= tol) | zero | bad | state.stalled
        status = torch.where(
            zero, 1, torch.where(bad, 4, torch.where(state.residual <= tol, 0, torch.where(state.stalled, 3, 2)))
        )
        if k == steps:
            done = torch.ones_like(done)
        new = done & (out["status"][active] < 0)
        index = new.nonzero().squeeze(1)
        if len(index):
            at = active[index]
            out["x"][at], out["residual"][at] = state.x[index], state.residual[index]
            out["iterations"][at], out["status"][at] = k, status[index]
            going = (out["status"][active] < 0).nonzero().squeeze(1)
            if not len(going):
                break
            if len(going) <= 0.75 * len(active):
                active, state, objective = active[going], state.select(going), objective.select(going)
        state = solver.step(objective, state)
    return out


def is_zero(objective: Objective, x: Tensor) -> Tensor:
    """Return which iterates are the zero solution: small, and zero passes the first-order test |grad loss|_2 <= c."""
    j = objective.split_at[1]
    small = objective.c.squeeze(1) * x[:, :j].square().sum(1) < 1e-9
    if not bool(small.any()):
        return small
    index = small.nonzero().squeeze(1)
    some = objective.select(index)
    at = x[index].clone()
    at[:, :j] = 0
    r = some.reduced
    residual = r.loss.gradient(some.logits(at), r.targets) * r.weight * some.scale
    small[index] = spectral_norm(residual) <= some.c.squeeze(1) * (1 + 1e-12)
    return small


STATUS = (Status.CONVERGED, Status.ZERO, Status.STEP_LIMIT, Status.STALLED, Status.DIVERGED)


def finish(problems: list[Problem], seeds: list[int], reduced: Reduced, end: dict[str, Tensor], method: str) -> list[Solution]:
    """Return the Solutions of a batch: values and certificates batched, W, H and b at every problem's own d."""
    objective, x = Objective(reduced), end["x"].clone()
    zero = end["status"] == 1
    j = objective.split_at[1]
    x[:, :j] = torch.where(zero[:, None], 0.0, x[:, :j])
    z = objective.logits(x)
    f = objective.value(x)
    proofs = certificates(problems, reduced, z, f)
    u, v, beta = (None if p is None else p.cpu() for p in objective.parts(x))
    values, residuals = f.tolist(), end["residual"].tolist()
    out = []
    for i, problem in enumerate(problems):
        groups, outputs, dim = (int(s) for s in reduced.sizes[i])
        lift = embedding(dim, problem.dim, seeds[i])
        scale, rows = balance(problem)
        weight = scale * u[i, :outputs, :dim] @ lift
        means = torch.as_tensor(rows)[:, None] * v[i, :groups, :dim] @ lift
        b = torch.zeros(outputs, dtype=torch.float64)
        if beta is not None:
            b = (beta[i, 0] * reduced.bias_scale[i].cpu())[:outputs]
            if problem.bias == "free" and problem.loss != "mse" and problem.logit_scale is None:
                b = b - b.mean()
        out.append(
            Solution(
                problem=problem,
                W=weight,
                H=means,
                b=b,
                loss=values[i],
                logits=means @ weight.T + b,
                status=STATUS[int(end["status"][i])],
                iterations=int(end["iterations"][i]),
                gradient_norm=residuals[i],
                method=method,
                seed=seeds[i],
                certificate=proofs[i],
            )
        )
    return out


__all__ = ["check", "find", "solve", "solve_many"]
