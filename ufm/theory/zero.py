"""When is the zero solution optimal? For every convex variant: iff the gradient at Z = 0 has spectral norm <= c."""

from __future__ import annotations

import math

import numpy as np

from ufm.prediction import Prediction, not_applicable
from ufm.problem import Problem
from ufm.theory.reduced import Reduced, reduce
from ufm.theory.rows import modify, row_losses, soft_rows

NEWTON_STEPS = 100


def constant_bias(problem: Problem, reduced: Reduced) -> np.ndarray | None:
    """Return the best bias at Z = 0 (K,): K-dimensional Newton; None where it escapes to infinity."""
    b, rows = np.zeros(problem.classes), soft_rows(problem, reduced)
    if reduced.lambda_b is None:
        return b
    if problem.loss != "mse" and reduced.lambda_b == 0 and np.any(reduced.mass @ rows <= 0):
        return None
    scale = np.ones(problem.classes) if problem.logit_scale is None else np.asarray(problem.logit_scale)

    def value(b: np.ndarray) -> tuple[float, np.ndarray]:
        losses, gradient = row_losses(problem, rows, np.broadcast_to(b, rows.shape))
        return float(reduced.mass @ losses + reduced.lambda_b / 2 * b @ b), reduced.mass @ gradient + reduced.lambda_b * b

    for _ in range(NEWTON_STEPS):
        start, gradient = value(b)
        weight = float(reduced.mass @ rows.sum(axis=1))
        p = np.exp(modify(problem, b) - np.logaddexp.reduce(modify(problem, b)))
        inner = reduced.mass.sum() * np.eye(len(b)) if problem.loss == "mse" else weight * (np.diag(p) - np.outer(p, p))
        step = np.linalg.pinv(scale[:, None] * inner * scale + reduced.lambda_b * np.eye(len(b)), rcond=1e-13) @ gradient
        if np.abs(step).max() <= 1e-15 * (1 + np.abs(b).max()):
            break
        t = 1.0
        while t > 1e-9 and value(b - t * step)[0] > start + 1e-15 * abs(start):
            t /= 2
        b = b - t * step
    return b - b.mean() if problem.loss != "mse" and reduced.lambda_b == 0 and problem.logit_scale is None else b


def zero(problem: Problem) -> Prediction:
    """Predict the zero solution where it is optimal: convex losses, ridge, any counts, bias, targets, weights, scale, d.

    The number c / |gradient at 0| is in `thresholds`. With non-negative features the dual norm is bounded by
    sqrt(lambda_max((L^T L)_+)), which makes the test sufficient there.
    """
    at_zero = candidate(problem)
    if not at_zero.applies:
        return not_applicable("")
    return at_zero if at_zero.zero else not_applicable("")


def candidate(problem: Problem) -> Prediction:
    """Return the zero solution with its best bias and its loss, whether or not it is optimal (`zero` says)."""
    if problem.depth != 1 or problem.constraint != "ridge" or problem.loss not in ("ce", "mse", "smoothing"):
        return not_applicable("the zero structure is defined for convex losses with a ridge")
    if problem.targets is not None and problem.class_weights is not None:
        return not_applicable("class weights with target rows have no closed form; put the weights into counts")
    reduced = reduce(problem)
    if problem.loss != "mse" and (np.any(reduced.targets < 0) or np.any(reduced.targets.sum(axis=1) <= 0)):
        return not_applicable("cross-entropy needs non-negative targets with positive row sums")
    rows, b = soft_rows(problem, reduced), constant_bias(problem, reduced)
    if b is None:
        return not_applicable("an output without any target sends its free bias to -infinity; use a ridge bias")
    losses, gradient = row_losses(problem, rows, np.broadcast_to(b, rows.shape))
    scaled = gradient * (reduced.mass / reduced.columns)[:, None]
    norm = float(np.linalg.norm(scaled, 2))
    if problem.features == "nonnegative":
        norm = math.sqrt(float(np.linalg.eigvalsh(np.maximum(scaled @ scaled.T, 0.0))[-1]))
    number = reduced.penalty / norm if norm > 0 else math.inf
    T, K = rows.shape
    return Prediction(
        name="zero",
        loss=float(reduced.mass @ losses) + (reduced.lambda_b or 0.0) / 2 * float(b @ b),
        logits=np.tile(b, (T, 1)),
        bias=b,
        gram_w=np.zeros((K, K)),
        gram_h=np.zeros((T, T)),
        singular_values=np.zeros(min(T, K)),
        assumptions=("convex loss", "ridge"),
        reference="hong2023",
        zero=number >= 1,
        thresholds={"zero": number},
        details={"dual_norm": norm},
    )
