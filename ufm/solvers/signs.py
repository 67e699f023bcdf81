"""Unit rows and features of one dimension: S^0 is {-1, +1}, where every gradient is 0 and the optimum a choice of signs.

supcon: with m samples at +1 the denominators of all anchors are known, and what is left is a sum over classes of a function of
a_k, the samples of class k at +1. The best a with sum a_k = m is found for every m at once by dynamic programming over the
classes, N sum n_k = N^2 additions: exact.
Others, without a bias: given the signs of W, every feature takes the sign of its own lower loss. Where labels are hard and no
class has a scale, offset or weight of its own, the loss depends on how many classes are at +1, and at a given number linearly on
their samples: the p largest classes against the others, for some p, are the optimum. Otherwise all signs of W are tried up to
2^`MOST` of them, together with those of H where a bias couples them. Beyond that, the best of many single flips: a local search,
whose status says that it stopped, not that it converged.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ufm.errors import RequestError
from ufm.loop import CONVERGED, STALLED, iterate, objective_of
from ufm.problem import Problem
from ufm.reduce import columns, outputs_of, reduce
from ufm.solution import Solution
from ufm.solve import finish
from ufm.solvers.lbfgs import LBFGS
from ufm.solvers.objective import Objective

MOST = 12  # signs that are all tried: 4096 choices are a second's work, with a bias too
SWEEPS = 50  # rounds of single flips; each lowers the loss, and few are needed
PIECE = 512  # choices of signs evaluated at once
BIAS_STEPS = 300  # of the bias at fixed signs: a convex problem of K numbers


def applies(problem: Problem) -> bool:
    """Whether a problem is one of signs."""
    return problem.constraint == "sphere" and problem.dim == 1 and problem.depth == 1


def check(problem: Problem, method: str = "signs") -> None:
    """Raise RequestError for a problem that is none of signs."""
    if not applies(problem):
        raise RequestError(f"method {method!r} solves constraint='sphere' with dim=1; use method='auto' for this one")


def solve_signs(
    problems: Sequence[Problem],
    seeds: Sequence[int],
    *,
    method: str = "signs",
    steps: int | None = None,
    tol: float = 1e-10,
    lr: float | None = None,
    device: str = "cpu",
) -> list[Solution]:
    """Return the optimum of every problem, or where too many signs are left the best of a local search; no seed matters."""
    known: dict[Problem, Solution] = {}
    out = []
    for problem, seed in zip(problems, seeds, strict=True):
        check(problem)
        if problem not in known:
            known[problem] = _solve(problem, seed, tol, device)
        out.append(replace(known[problem], seed=seed))
    return out


def _solve(problem: Problem, seed: int, tol: float, device: str) -> Solution:
    exact = True
    if problem.loss == "supcon":
        x = torch.as_tensor(supcon_signs(problem), device=device)[None]
    else:
        x, exact = _classifier(problem, tol, device)
    reduced = reduce([problem], device)
    objective = objective_of(problem, reduced)
    residual = objective.relative(x, objective.gradient(x))
    code = CONVERGED if exact and bool((residual <= max(tol, 1e-9)).all()) else STALLED
    end = {"residual": residual, "iterations": torch.zeros(1, dtype=torch.long), "status": torch.tensor([code])}
    return finish([problem], [seed], objective, x, end, "signs")[0]


# --- supervised contrastive ----------------------------------------------------------------------------------------


def supcon_signs(problem: Problem) -> np.ndarray:
    """Return the best signs (N,) of all samples, class after class; all +1 where features are non-negative."""
    counts = problem.count_vector.astype(int)
    total = int(counts.sum())
    if problem.features == "nonnegative":
        return np.ones(total)
    rate = 1 / problem.temperature
    costs = []
    for n in counts:  # minus the similarities of an anchor's positives, averaged, summed over the anchors of the class
        a = np.arange(n + 1)
        costs.append(-rate * ((2.0 * a - n) ** 2 - n) / (n - 1))
    best, choices = np.zeros(1), []
    for cost in costs:  # best[m]: the lowest sum over the classes so far with m samples at +1
        size = len(best) + len(cost) - 1
        new, choice = np.full(size, np.inf), np.zeros(size, dtype=int)
        for a, value in enumerate(cost):
            trial = best + value
            better = trial < new[a : a + len(best)]
            new[a : a + len(best)] = np.where(better, trial, new[a : a + len(best)])
            choice[a : a + len(best)] = np.where(better, a, choice[a : a + len(best)])
        best = new
        choices.append(choice)
    m = np.arange(total + 1.0)
    at = int(np.argmin(best + m * _log_others(m, total, rate) + (total - m) * _log_others(total - m, total, rate)))
    signs = []
    for n, choice in zip(counts[::-1], choices[::-1], strict=True):
        a = int(choice[at])
        signs.append(np.r_[np.ones(a), -np.ones(n - a)])
        at -= a
    return np.concatenate(signs[::-1])


def _log_others(m: np.ndarray, total: int, rate: float) -> np.ndarray:
    """Return log((m - 1) e^rate + (N - m) e^-rate), of an anchor with m on its own side; 0 where there is no anchor."""
    with np.errstate(divide="ignore"):
        out = np.logaddexp(np.log(np.maximum(m - 1, 0)) + rate, np.log(total - m) - rate)
    return np.where(m > 0, out, 0.0)


# --- classifiers ---------------------------------------------------------------------------------------------------


def _classifier(problem: Problem, tol: float, device: str) -> tuple[Tensor, bool]:
    """Return the best parameters (1, P), and whether nothing better exists."""
    outputs, groups = outputs_of(problem), columns(problem)
    biased, sided = problem.bias != "none", problem.features == "nonnegative"
    free = outputs + (groups if biased and not sided else 0)
    if not biased and _equal_classes(problem):
        return _best(problem, _prefixes(problem), tol, device)[0], True
    if free - 1 <= MOST or (sided and free <= MOST):
        return _best(problem, _all_signs(free, fixed=not sided), tol, device)[0], True
    start = _best(problem, _prefixes(problem), tol, device)[0]
    return _flipped(problem, start, tol, device), False


def _equal_classes(problem: Problem) -> bool:
    """Whether exchanging two classes of equal counts changes nothing, and counts enter linearly."""
    plain = problem.logit_scale is None and problem.logit_offset is None and problem.class_weights is None
    return plain and problem.targets is None


def _prefixes(problem: Problem) -> Iterator[np.ndarray]:
    """Yield the signs of W with the p largest classes (by counts, where there are targets by output) at +1, p = 0..K."""
    outputs = outputs_of(problem)
    order = np.arange(outputs) if problem.targets is not None else np.argsort(-problem.count_vector, kind="stable")
    for p in range(outputs + 1):
        signs = -np.ones(outputs)
        signs[order[:p]] = 1.0
        yield signs
        if problem.features == "nonnegative":  # no flip of all signs is free then
            yield -signs


def _all_signs(count: int, fixed: bool) -> Iterator[np.ndarray]:
    """Yield all vectors of `count` signs; only those with the first at +1 if `fixed` (W, H -> -W, -H changes nothing)."""
    bits = count - fixed
    for number in range(1 << bits):
        signs = np.array([1.0 if number >> i & 1 else -1.0 for i in range(bits)])
        yield np.r_[1.0, signs] if fixed else signs


def _best(problem: Problem, choices: Iterator[np.ndarray], tol: float, device: str) -> tuple[Tensor, float]:
    """Return the parameters (1, P) with the lowest score over signs of W, or of W and H, and that score."""
    best, lowest, piece = None, np.inf, []

    def judge() -> None:
        nonlocal best, lowest
        x, score = _evaluate(problem, np.stack(piece), tol, device)
        i = int(score.argmin())
        if best is None or float(score[i]) < lowest:
            best, lowest = x[i : i + 1], float(score[i])
        piece.clear()

    for signs in choices:
        piece.append(signs)
        if len(piece) == PIECE:
            judge()
    if piece:
        judge()
    return best, lowest


def _evaluate(problem: Problem, signs: np.ndarray, tol: float, device: str) -> tuple[Tensor, Tensor]:
    """Return parameters (B, P) and scores (B,) at signs (B, K) of W, or (B, K + T) of W and H; with the best bias, if any."""
    outputs, groups = outputs_of(problem), columns(problem)
    chosen = torch.as_tensor(signs, device=device)
    objective = objective_of(problem, reduce([problem] * len(signs), device))
    if chosen.shape[1] == outputs:
        chosen = torch.cat([chosen, chosen.new_ones(len(chosen), groups)], 1)
        x = _own_signs(problem, objective, objective.start(chosen))
    else:
        x = objective.start(chosen)
    if problem.bias != "none":  # the gradient of W and H is 0 on S^0: the bias alone moves
        x = iterate(objective, LBFGS(), x, BIAS_STEPS, tol)["x"]
    return x, objective.score(x).cpu()


def _own_signs(problem: Problem, objective: Objective, x: Tensor) -> Tensor:
    """Return x with every feature at the sign of its lower loss, W and b given; +1 where features are non-negative."""
    if problem.features == "nonnegative":
        return x
    i, j = objective.split_at
    sides = []
    for sign in (1.0, -1.0):
        x[:, i:j] = sign
        sides.append(objective.reduced.loss.value(objective.logits(x), objective.reduced.targets))
    x[:, i:j] = torch.where(sides[0] <= sides[1], 1.0, -1.0).to(x)
    return x


def _flipped(problem: Problem, x: Tensor, tol: float, device: str) -> Tensor:
    """Return where no single flip of a sign of W (or of H, beside a bias) lowers the score any more."""
    outputs = outputs_of(problem)
    both = problem.bias != "none" and problem.features == "free"
    free = outputs + (columns(problem) if both else 0)
    lowest = np.inf
    for _ in range(SWEEPS):
        now = x[0, :free].cpu().numpy()
        found, score = _best(problem, (np.where(np.arange(free) == i, -now, now) for i in range(-1, free)), tol, device)
        if not score < lowest:
            break
        x, lowest = found, score
    return x
