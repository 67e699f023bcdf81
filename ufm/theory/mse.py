"""Mean squared error: every optimum is a soft-thresholded singular value decomposition of the targets.

With b profiled out, Zt = U (S - N c)_+ V^T of (Y - mean) diag(sqrt n), truncated to the d largest singular values
(von Neumann's trace inequality makes the truncation globally optimal); value = sum min(S, Nc)^2/(2N) + c sum (S - Nc)_+.
"""

from __future__ import annotations

import math

import numpy as np

from ufm.prediction import Prediction, not_applicable
from ufm.problem import Problem
from ufm.theory.etf import centring
from ufm.theory.reduced import Reduced, factors, obstacle, reduce, single_layer


def balanced(problem: Problem) -> Prediction:
    """Predict the balanced one-hot optimum with no, a free or a ridge bias: Z = t Pi + beta 11^T/K, b = b0 1."""
    if not single_layer(problem, ("mse",)):
        return not_applicable("")
    reduced = reduce(problem)
    if not reduced.uniform:
        return not_applicable("")
    refusal = obstacle(problem, weights=True)
    if refusal is not None:
        return refusal
    K, weight = problem.classes, float(reduced.mass[0]) * problem.classes
    s = problem.penalty * math.sqrt(reduced.counts[0]) / weight
    t = max(0.0, 1 - K * s)
    beta, b0, loss = _mean_mode(K, s, t, None if reduced.lambda_b is None else reduced.lambda_b / weight)
    needed = int(t > 0) * (K - 1) + int(beta > 0)
    if problem.dim < needed:
        return not_applicable("")  # the truncated soft-threshold takes over
    z = t * centring(K) + beta / K
    thresholds = {"zero": K * s}
    if problem.bias == "ridge":
        thresholds["mean mode"] = K * s * (1 + problem.lambda_b / weight) / (problem.lambda_b / weight)
    return Prediction(
        name="zero" if t == 0 and beta == 0 else ("etf" if beta == 0 else "of" if beta == t else "etf+mean"),
        loss=weight * loss,
        logits=z + b0,
        bias=np.full(K, b0),
        assumptions=("balanced classes", f"d >= {max(needed, 1)}", "global minimum"),
        reference="zhou2022mse",
        tolerance=1e-12,
        zero=t == 0 and beta == 0,
        thresholds=thresholds,
        details={"a": t, "t": t, "beta": beta, "b0": b0, "s": s, "key_number": K * s},
        **factors(reduced, z),
    )


def _mean_mode(K: int, s: float, t: float, lambda_b: float | None) -> tuple[float, float, float]:
    """Return (beta, b0, value): how much of the mean 1/K of the targets the features carry, and the bias the rest."""
    key = K * s
    frame = (K - 1) / K * (key - key**2 / 2 if t else 0.5)
    if lambda_b is None:
        return t, 0.0, key - key**2 / 2 if t else 0.5
    if lambda_b == 0:
        return 0.0, 1 / K, frame
    beta = max(0.0, 1 - key * (1 + lambda_b) / lambda_b)
    value = frame + s * beta + (1 - beta) ** 2 * lambda_b / (2 * K * (1 + lambda_b))
    return beta, (1 - beta) / (K * (1 + lambda_b)), value
