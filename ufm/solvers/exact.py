"""The closed form as a Solution: an oracle for the searching solvers, and the fastest answer where one is known."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ufm.errors import RequestError
from ufm.loop import CONVERGED, ZERO, objective_of
from ufm.predict import predict
from ufm.prediction import EVIDENCE, Prediction
from ufm.problem import Problem
from ufm.reduce import internal_dim, reduce
from ufm.solution import Solution
from ufm.solve import finish


def solve_exact(
    problems: Sequence[Problem],
    seeds: Sequence[int],
    *,
    method: str = "exact",
    steps: int | None = None,
    tol: float = 1e-10,
    lr: float | None = None,
    device: str = "cpu",
) -> list[Solution]:
    """Return the predicted optima; RequestError, with the reason, where no closed form gives the logits."""
    return [_solve(p, s) for p, s in zip(problems, seeds, strict=True)]


def check(problem: Problem, method: str = "exact") -> Prediction:
    """Return the closed form; RequestError, with the reason, where none gives the logits."""
    if problem.constraint != "ridge" or problem.features != "free" or problem.depth != 1 or problem.penalty == 0:
        raise RequestError(f"method {method!r} writes out ridge problems with free features; use method='auto' for this one")
    prediction = predict(problem)
    if not prediction.applies or prediction.logits is None or prediction.status == EVIDENCE:
        raise RequestError(
            f"method {method!r} knows no closed form here ({prediction.reason or 'evidence only'}); use method='auto'"
        )
    return prediction


def _solve(problem: Problem, seed: int) -> Solution:
    prediction = check(problem)
    bias = torch.zeros(problem.classes, dtype=torch.float64)
    if prediction.bias is not None and problem.bias != "none":
        bias = torch.as_tensor(prediction.bias, dtype=torch.float64)
    # The balanced factors of Z diag(sqrt n) = P S Q': U = P sqrt(S), V = Q sqrt(S).
    reduced = reduce([problem])
    raw = (torch.as_tensor(prediction.logits, dtype=torch.float64) - bias).T
    left, size, right = torch.linalg.svd(raw / reduced.feature_scale[0], full_matrices=False)
    size = torch.where(size > 1e-13 * size[0], size, 0.0)  # the square root of rounding would be seen
    r = internal_dim(problem)
    u, v = left[:, :r] * size[:r].sqrt(), right[:r].T * size[:r].sqrt()
    objective = objective_of(problem, reduced)
    parts = [u.flatten(), v.flatten()]
    if reduced.bias_scale is not None:
        parts.append(bias / reduced.bias_scale[0])
    x = torch.cat(parts)[None]
    code = ZERO if prediction.zero else CONVERGED
    residual = objective.gradient(x).norm(dim=1) if prediction.zero else objective.relative(x, objective.gradient(x))
    end = {"x": x, "residual": residual, "iterations": torch.tensor([0]), "status": torch.tensor([code])}
    return finish([problem], [seed], objective, x, end, "exact")[0]
