"""SciPy's L-BFGS-B on the reduced problem: an independent search, as a cross-check of our own solvers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy.optimize import minimize

from ufm.errors import RequestError
from ufm.loop import CERTIFIED, CONVERGED, STALLED, STEP_LIMIT, ZERO, objective_of, prover, settle
from ufm.problem import Problem
from ufm.reduce import random_start, reduce
from ufm.solution import Solution
from ufm.solve import START, STEPS, finish


def solve_scipy(
    problems: Sequence[Problem],
    seeds: Sequence[int],
    *,
    method: str = "scipy",
    steps: int | None = None,
    tol: float = 1e-10,
    lr: float | None = None,
    device: str = "cpu",
) -> list[Solution]:
    """Solve problems one by one; the search compares values, so that it usually stops near a relative gradient of 1e-7."""
    return [_solve(p, s, steps or STEPS, tol) for p, s in zip(problems, seeds, strict=True)]


def check(problem: Problem, method: str) -> None:
    """Raise RequestError for a problem that is not solved here."""
    if problem.depth > 1 or problem.constraint != "ridge" or problem.penalty == 0 or problem.loss == "supcon":
        raise RequestError(f"method {method!r} solves penalised problems of depth 1; use method='auto' for this one")


def _solve(problem: Problem, seed: int, steps: int, tol: float) -> Solution:
    check(problem, "scipy")
    reduced = reduce([problem])
    objective = objective_of(problem, reduced)
    x0 = objective.start(random_start([problem], [seed], reduced, START))
    low, high = objective.bounded
    bounds = None
    if problem.features == "nonnegative":
        bounds = [(0.0, None) if low <= i < high else (None, None) for i in range(x0.shape[1])]

    def value_and_gradient(flat: np.ndarray) -> tuple[float, np.ndarray]:
        x = torch.as_tensor(flat)[None]
        return float(objective.value(x)), objective.gradient(x)[0].numpy()

    found = minimize(
        value_and_gradient,
        x0[0].numpy(),
        jac=True,
        method="L-BFGS-B",
        bounds=bounds,
        options={"maxiter": steps, "maxfun": 10 * steps, "ftol": 0.0, "gtol": 0.0, "maxcor": 20},
    )
    x = torch.as_tensor(found.x)[None]
    g = objective.gradient(x)
    if bounds is not None:
        g[:, low:high].masked_fill_((x[:, low:high] <= 0) & (g[:, low:high] > 0), 0.0)
    residual = objective.relative(x, g)
    code = ZERO if bool(objective.is_zero(x)) else CONVERGED if float(residual) <= tol else STALLED
    if code == STALLED and found.nit >= steps:
        code = STEP_LIMIT
    prove = prover(problem)
    if code in (STALLED, STEP_LIMIT) and prove is not None and bool(prove(objective, x)):
        code = CERTIFIED
    end = {"x": x, "residual": residual, "iterations": torch.tensor([found.nit]), "status": torch.tensor([code])}
    return finish([problem], [seed], objective, settle(objective, end), end, "scipy")[0]
