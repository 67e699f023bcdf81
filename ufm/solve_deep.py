"""Deep problems to solutions: grouped into batches by shape, run from random starts, classified by loss and rank."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ufm.errors import RequestError
from ufm.prediction import Prediction
from ufm.problem import Problem
from ufm.solution import Solution, Status
from ufm.solvers import balance, deep, kinks
from ufm.theory import deep as deep_theory

METHODS = ("auto", "adam", "lbfgs")
RANK_SHARE = 1e-2  # measures.md: rank_numeric counts singular values above this share of the largest
LOSS_MATCH = 1e-4  # relative distance at which an end point counts as a structure; others come within .6 % (K = 10, L = 5)
# A ReLU end point lies on kinks, where no gradient vanishes. It is settled when its norms are balanced to `BALANCE_MATCH` and
# converged if, too, its relative subgradient is at most `STATIONARY` with multipliers that the kinks allow. Where it is not,
# but a cool stage of Adam lowers the loss by less than the share `PLATEAU`, it is on a plateau, which is no convergence:
# with much more time some such points fall by a few percent. `SUBGRADIENT` is what the polish aims for.
BALANCE_MATCH, SUBGRADIENT, STATIONARY, COOL_STAGE, PLATEAU = 1e-6, 1e-6, 1e-5, (0.003, 100), 3e-5
AGAIN = 2  # times that a cell which still moves gets the cool stage of the recipe once more
FULL_RECIPE = sum(n for _, n in deep.ADAM_STAGES)


def solve_deep(
    problems: Sequence[Problem],
    *,
    run_seeds: Sequence[int] | None = None,
    method: str = "auto",
    init_scale: float = 1.0,
    steps: int | None = None,
    tol: float = 1e-10,
    device: str = "cpu",
    stop: Callable[[], bool] = lambda: False,
) -> list[Solution]:
    """Solve deep problems from random starts; one Solution each, in order.

    Args:
        problems: depth >= 1; any mixture of shapes (each shape is one batch).
        run_seeds: one root seed per problem (default 0); the same seed gives the same start at every weight decay.
        method: "adam" (two stages, the default for ReLU), "lbfgs" (the default for linear) or "auto".
        init_scale: s of the weight entries N(0, s^2/d); G entries are N(0, 1/d).
        steps: L-BFGS step limit, or the total of both Adam stages (default 5500). With the default or more, ReLU end points
            are polished afterwards (`ufm.solvers.kinks`); with less, a run stops there, whatever the point looks like.
        tol: relative gradient at which L-BFGS stops.
    """
    if method not in METHODS:
        raise RequestError(f"method {method!r} is not available with depth > 1; known: {', '.join(METHODS)}")
    if not (math.isfinite(init_scale) and init_scale > 0):
        raise RequestError(f"init_scale {init_scale!r} is not a positive number; zero is a saddle point, use 0.7, 1 or 1.4")
    run_seeds = list(run_seeds) if run_seeds is not None else [0] * len(problems)
    groups: dict[tuple, list[int]] = {}
    for i, p in enumerate(problems):
        groups.setdefault((p.classes, p.dim, p.depth, p.activation, p.loss, p.bias), []).append(i)
    solutions: list[Solution | None] = [None] * len(problems)
    for (*_, activation, _, _), members in groups.items():
        batch = deep.Batch([problems[i] for i in members], device)
        x, found = deep.start(batch, [run_seeds[i] for i in members], init_scale), None
        chosen = ("adam" if activation == "relu" else "lbfgs") if method == "auto" else method
        if chosen == "adam":
            stages = deep.ADAM_STAGES if steps is None else _scaled_stages(steps)
            deep.adam(batch, x, stages, stop)
            done = sum(n for _, n in stages)
            if activation == "relu" and done >= FULL_RECIPE:
                found = _balances(batch, x)
                done += _settle(batch, x, stop)
        else:
            _, _, done = deep.lbfgs(batch, x, tol, steps or 3000, stop)
        for i, end in zip(members, _ends(batch, x, found), strict=True):
            solutions[i] = _solution(problems[i], end, method=chosen, steps=done, tol=tol, seed=run_seeds[i])
    return solutions  # type: ignore[return-value]  # every index is in exactly one group


def _scaled_stages(steps: int) -> tuple[tuple[float, int], ...]:
    share = steps / sum(n for _, n in deep.ADAM_STAGES)
    return tuple((rate, max(1, round(n * share))) for rate, n in deep.ADAM_STAGES)


def _settle(batch: deep.Batch, x: torch.Tensor, stop: Callable[[], bool]) -> int:
    """Polish all cells in place; those that still move get more of the cool stage and another polish. Return its steps."""
    steps, todo = 0, torch.arange(len(x), device=x.device)
    for turn in range(1 + AGAIN):
        part, point = batch.take(todo), x[todo]
        if turn:
            deep.adam(part, point, deep.ADAM_STAGES[1:], stop)
            steps += deep.ADAM_STAGES[1][1]
        kinks.polish(part, point, stop)
        lower = part.value(point) <= part.value(x[todo]) * (1 + 1e-14)
        x[todo[lower]] = point[lower]
        residual, decrease = _unrest(part, x[todo])
        todo = todo[(residual > SUBGRADIENT) & (decrease >= PLATEAU)]
        if not len(todo) or stop():
            break
    return steps


def _unrest(batch: deep.Batch, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return, of ReLU cells, the relative subgradient and the share of the loss that one more cool stage takes off."""
    residual, loss = kinks.identify(batch, x)[1].residual, batch.value(x)
    decrease = torch.zeros_like(loss)
    moving = torch.nonzero(~(residual <= SUBGRADIENT))[:, 0]
    if len(moving):
        decrease[moving] = 1 - deep.adam(batch.take(moving), x[moving], (COOL_STAGE,)) / loss[moving]
    return residual, decrease


@dataclass(frozen=True, eq=False)
class End:
    """Where one cell of a batch ended."""

    weights: tuple[torch.Tensor, ...]  # W_1 .. W_L
    features: torch.Tensor  # (d, K), class means times sqrt(n_k)
    bias: torch.Tensor
    roots: torch.Tensor  # sqrt(n_k)
    loss: float
    residual: float  # relative gradient; of the subgradient on its activation pattern for ReLU
    balance: dict[str, float]  # measured: layers, neurons, features, ray (`ufm.solvers.balance.Balance`)
    balance_found: dict[str, float]  # the same before the rescaling, which restores it exactly
    outside: float  # held entries whose multiplier no subgradient has (ReLU; 0 otherwise)
    decrease: float  # share of the loss that one more cool stage of Adam takes off (ReLU; 0 otherwise)


def _balances(batch: deep.Batch, x: torch.Tensor) -> list[dict[str, float]]:
    measured = balance.measure(batch, x)
    names = ("layers", "neurons", "features", "ray")
    return [{name: float(getattr(measured, name)[i]) for name in names} for i in range(len(x))]


def _ends(batch: deep.Batch, x: torch.Tensor, found: list[dict[str, float]] | None) -> list[End]:
    """Return the end points; `found`: their norm balances before they were rescaled, None where they were not."""
    gradient = torch.empty_like(x)
    loss = batch.value_and_gradient(x, gradient)
    residual, decrease = deep.relative_gradient(batch, x, gradient), torch.zeros_like(loss)
    outside = torch.zeros_like(loss)
    if batch.shape.activation == "relu":
        residual, decrease = _unrest(batch, x)
        outside = kinks.identify(batch, x)[1].outside
    measured = _balances(batch, x)
    weights, features, bias = batch.views(x.cpu())
    roots = batch.roots.cpu()
    return [
        End(
            tuple(w[i].clone() for w in weights),
            features[i],
            bias[i],
            roots[i],
            float(loss[i]),
            float(residual[i]),
            measured[i],
            (found or measured)[i],
            float(outside[i]),
            float(decrease[i]),
        )
        for i in range(len(x))
    ]


def _solution(problem: Problem, end: End, *, method: str, steps: int, tol: float, seed: int) -> Solution:
    states = [end.features / end.roots]  # class means of H_1, then after each activation
    for weight in end.weights[:-1]:
        state = weight @ states[-1]
        states.append(state.relu() if problem.activation == "relu" else state)
    output = end.weights[-1] @ states[-1]
    ranks = tuple(_rank(state * end.roots) for state in states)
    relu = problem.activation == "relu"
    match = BALANCE_MATCH if problem.activation == "relu" else max(BALANCE_MATCH, 1e3 * tol)
    balanced = all(value <= match for value in end.balance.values())  # nan, at zero, is not
    stationary = end.residual <= 10 * tol or (relu and end.residual <= STATIONARY and end.outside == 0)
    settled = balanced and (stationary or (relu and end.decrease < PLATEAU))
    structure, status = classify(end.loss, ranks, _known_losses(problem), settled, float(output.norm()))
    if structure == "zero":
        ranks = (0,) * len(ranks)  # what is left is on its way to zero
        status = Status.ZERO if _zero_is_optimal(problem) else status
    elif status is Status.CONVERGED and not stationary:
        status = Status.PLATEAU
    bias = end.bias - end.bias.mean() if problem.loss == "ce" else end.bias.clone()
    return Solution(
        problem=problem,
        W=end.weights[-1],
        H=states[0].T.contiguous(),
        b=bias,
        loss=end.loss,
        logits=output.T + bias,
        status=status,
        iterations=steps,
        gradient_norm=end.residual,
        method=method,
        seed=seed,
        weights=end.weights,
        layer_means=tuple(s.T.contiguous() for s in states),
        layer_ranks=ranks,
        structure=structure,
        balance=None if structure == "zero" else end.balance,
        balance_found=None if structure == "zero" else end.balance_found,
    )


@functools.lru_cache(maxsize=1024)
def _structures(problem: Problem) -> dict[str, Prediction]:
    return deep_theory.structures(problem)


def _zero_is_optimal(problem: Problem) -> bool:
    return _structures(problem)["zero"].zero


@functools.lru_cache(maxsize=1024)
def _known_losses(problem: Problem) -> dict[str, float]:
    """Return structure name -> loss; a sweep asks for one problem once per seed."""
    known = {name: q.loss for name, q in _structures(problem).items()}
    if "srg_flipped" in known and known["srg_flipped"] - known["srg"] <= LOSS_MATCH * known["srg"]:
        del known["srg_flipped"]  # six classes: the same loss and ranks as srg, up to the order of the neurons
    return known


def _rank(matrix: torch.Tensor) -> int:
    values = torch.linalg.svdvals(matrix)
    return int((values > RANK_SHARE * values[0]).sum()) if float(values[0]) > 0 else 0


def classify(
    loss: float, ranks: tuple[int, ...], known: dict[str, float], settled: bool, output_norm: float
) -> tuple[str, Status]:
    """Return (structure, status): one of zero, a known structure, "below both", "other", "unconverged".

    A structure is named when the loss agrees to `LOSS_MATCH`; where dnc and srg are both known, an end point below the
    lower of them is "below both". Ranks break ties between structures of equal loss.
    """
    if not math.isfinite(loss):
        return "unconverged", Status.DIVERGED
    zero = known.get("zero")
    if zero is not None and output_norm < 1e-4 and abs(loss - zero) <= LOSS_MATCH * zero:
        return "zero", Status.AT_ZERO  # whether zero is optimal is theory's to say
    near = {name: value for name, value in known.items() if name != "zero" and abs(loss - value) <= LOSS_MATCH * abs(value)}
    if near:
        # Equal losses (pairs and circle at K = 4): the number of directions decides.
        preferred = {"dnc": max(ranks), "srg": ranks[min(1, len(ranks) - 1)]}
        name = min(near, key=lambda n: (abs(loss - near[n]), preferred.get(n, 0)))
        return name, Status.CONVERGED if settled else Status.STEP_LIMIT
    if not settled:
        return "unconverged", Status.STEP_LIMIT
    lowest = min((value for name, value in known.items() if name != "zero"), default=None)
    if lowest is not None and loss < lowest:
        return "below both" if {"dnc", "srg"} <= set(known) else "below known", Status.CONVERGED
    return "other", Status.CONVERGED
