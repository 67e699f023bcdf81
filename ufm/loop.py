"""The one loop: a solver's steps until every problem of a batch has ended, and what an end point is made of."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ufm.certify import proven
from ufm.problem import Problem
from ufm.reduce import Reduced, loss_name
from ufm.solution import Status
from ufm.solvers import OBJECTIVES, SOLVERS, Solver
from ufm.solvers.objective import Objective
from ufm.tables import load

TIRED = 25  # iterations without halving the residual after which the duality gap is asked whether this is the optimum
PATIENCE = 2000  # iterations without halving the residual before a solve counts as stalled
AT_ROUNDING = 50  # ... where the residual is at its own rounding error, which no patience improves
NEAR_ZERO = 1e-5  # c |x|^2 below which an end point that the duality gap proved is asked whether zero is the optimum
COMPACT = 0.75  # finished problems leave the batch when no more than this share is left
STATUS = (Status.CONVERGED, Status.ZERO, Status.CERTIFIED, Status.STEP_LIMIT, Status.STALLED, Status.DIVERGED)
CONVERGED, ZERO, CERTIFIED, STEP_LIMIT, STALLED, DIVERGED, RUNNING, LEFT = range(8)
SAME = 1e-11  # relative difference of values below which an attempt is where another one has converged

Prover = Callable[[Objective, Tensor], Tensor]  # which points (B, P) of a batch are proven optimal


def objective_of(problem: Problem, reduced: Reduced) -> Objective:
    """Return the objective of a batch whose problems share the signature of `problem`."""
    name = "tied" if problem.loss == "supcon" else problem.constraint
    return load(OBJECTIVES, name, "objective")(reduced)


def prover(problem: Problem) -> Prover | None:
    """Return what tells which points (B, P) of a batch like `problem` the duality gap proves optimal; None without a proof."""
    if problem.constraint != "ridge" or loss_name(problem) == "focal":
        return None
    nonnegative = problem.features == "nonnegative"
    return lambda objective, x: proven(objective.reduced, objective.logits(x), objective.value(x), nonnegative)


def iterate(
    objective: Objective,
    solver: Solver,
    x: Tensor,
    steps: int,
    tol: float,
    prove: Prover | None = None,
    sublinear: bool = False,
    owner: Tensor | None = None,
) -> dict[str, Tensor]:
    """Run a solver until every problem has ended: the one loop. Finished problems leave the batch in bulk.

    Rows with the same `owner` (B,) are attempts at one problem: they end as LEFT where another makes them needless (`Attempts`).
    """
    batch, device = len(x), x.device
    out = {
        "x": x.clone(),
        "residual": x.new_full((batch,), torch.inf),
        "iterations": torch.zeros(batch, dtype=torch.long, device=device),
        "status": torch.full((batch,), RUNNING, device=device),
    }
    every = 1 if device.type == "cpu" else 10  # asking a GPU whether it is done makes it wait
    active = torch.arange(batch, device=device)
    state = solver.init(objective, x)
    attempts = None if owner is None else Attempts(owner, x.dtype)
    best, since = state.residual.clone(), torch.zeros_like(active)
    for k in range(steps + 1):
        if k % every == 0 or k == steps:
            better = state.residual < 0.5 * best
            best, since = torch.where(better, state.residual, best), torch.where(better, k, since)
            idle = k - since
            status = _ended(objective, state, tol, _tired(objective, state.x, best, idle))
            if k == steps:
                status[status == RUNNING] = STEP_LIMIT
            slow = (idle > 0) & (idle % TIRED == 0) | (sublinear and k > 0 and k % (4 * TIRED) == 0)
            asked = (status == STEP_LIMIT) | (status == STALLED) | ((status == RUNNING) & slow)
            if prove is not None and bool(asked.any()):
                index = asked.nonzero().squeeze(1)
                done = prove(objective.select(index), state.x[index])
                status[index] = torch.where(done, CERTIFIED, status[index])
            if attempts is not None and k and k % TIRED == 0:
                status[(status == RUNNING) & attempts.needless(objective, state.x, active)] = LEFT
            new = ((status != RUNNING) & (out["status"][active] == RUNNING)).nonzero().squeeze(1)
            if len(new):
                at = active[new]
                out["x"][at], out["residual"][at] = state.x[new], state.residual[new]
                out["iterations"][at], out["status"][at] = k, status[new]
                if attempts is not None:
                    attempts.ended(objective.select(new), state.x[new], at, status[new])
                going = (out["status"][active] == RUNNING).nonzero().squeeze(1)
                if not len(going):
                    break
                if len(going) <= COMPACT * len(active):
                    state, objective = state.select(going), objective.select(going)
                    active, best, since = active[going], best[going], since[going]
        state = solver.step(objective, state)
    return out


class Attempts:
    """What the attempts at one problem know of each other: the lowest value that has converged, and whether one is proven."""

    def __init__(self, owner: Tensor, dtype: torch.dtype) -> None:
        self.owner, count = owner, int(owner.max()) + 1
        self.lowest = torch.full((count,), torch.inf, dtype=dtype, device=owner.device)
        self.proven = torch.zeros(count, dtype=torch.bool, device=owner.device)

    def ended(self, some: Objective, x: Tensor, rows: Tensor, status: Tensor) -> None:
        """Take note of the attempts `rows`, which have ended at x."""
        value = torch.where(status == CONVERGED, some.score(x), torch.inf)
        self.lowest.scatter_reduce_(0, self.owner[rows], torch.nan_to_num(value, nan=torch.inf), "amin")
        self.proven[self.owner[rows[status == CERTIFIED]]] = True

    def needless(self, objective: Objective, x: Tensor, rows: Tensor) -> Tensor:
        """Return which of the attempts `rows` cannot matter: one is proven, or one has converged to where they still crawl."""
        lowest = self.lowest[self.owner[rows]]
        same = torch.isfinite(lowest)
        if bool(same.any()):
            same &= (objective.score(x) - lowest).abs() <= SAME * lowest.abs()
        return same | self.proven[self.owner[rows]]


def _tired(objective: Objective, x: Tensor, best: Tensor, idle: Tensor) -> Tensor:
    """Return which problems have not halved their residual for longer than that may help."""
    tired = idle > PATIENCE
    asked = ((idle >= AT_ROUNDING) & (idle % TIRED == 0)).nonzero().squeeze(1)
    if len(asked):
        tired[asked] |= best[asked] <= objective.select(asked).rounding(x[asked])
    return tired


def _ended(objective: Objective, state: object, tol: float, tired: Tensor) -> Tensor:
    """Return the status code of every problem in the batch, RUNNING for those that go on."""
    residual = state.residual
    status = torch.full_like(residual, RUNNING, dtype=torch.long)
    status[state.stalled | tired] = STALLED
    status[residual <= tol] = CONVERGED
    status[objective.is_zero(state.x)] = ZERO
    status[~torch.isfinite(residual)] = DIVERGED
    return status


def settle(objective: Objective, end: dict[str, Tensor]) -> Tensor:
    """Return the end points, exactly zero where zero is optimal, with the bias that is optimal there."""
    x = end["x"].clone()
    # The duality gap may close while what is left of the features is still shrinking.
    shrinking = (objective.c * x[:, : objective.split_at[1]].square()).sum(1) < NEAR_ZERO
    index = ((end["status"] == CERTIFIED) & shrinking).nonzero().squeeze(1)
    if len(index):
        some = objective.select(index)
        at = at_zero(some, x[index])
        optimal = some.is_zero(at) & (some.value(at) <= some.value(x[index]))
        end["status"][index[optimal]] = ZERO
    index = (end["status"] == ZERO).nonzero().squeeze(1)
    if not len(index):
        return x
    some = objective.select(index)
    at = at_zero(some, x[index])
    x[index] = at
    end["residual"][index] = some.gradient(at).norm(dim=1)
    return x


def at_zero(some: Objective, x: Tensor, keep: bool = True) -> Tensor:
    """Return the zero solution with the bias that is optimal there, searched from the bias of x, or from 0 if not `keep`."""
    at = some.zero(x)
    if not keep:
        at.zero_()
    if some.bias_rate is not None:  # U = V = 0 is stationary, so that L-BFGS moves the bias alone
        solver = load(SOLVERS, "lbfgs", "method")()
        state = solver.init(some, at)
        for _ in range(200):
            if bool((state.g.norm(dim=1) < 1e-15).all()) or bool(state.stalled.all()):
                break
            state = solver.step(some, state)
        at = torch.where(torch.isfinite(state.x).all(1, keepdim=True), state.x, at)
    return at
