"""Named structures at their own best scale: what each geometry would cost in a given problem, optimal or not.

A structure fixes the directions of the logits and what one unit of them costs; its scale and its bias are optimised.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ufm.prediction import Prediction, not_applicable
from ufm.problem import Problem
from ufm.theory.codes import RELABEL, code_gram, softmax_margin
from ufm.theory.etf import centring
from ufm.theory.reduced import Reduced, reduce
from ufm.theory.seli import RATE_WARNING, directions, limit
from ufm.theory.zero import row_losses, soft_rows

PRECISE = {"ftol": 0.0, "gtol": 1e-12, "maxiter": 2000}
STARTS = (0.3, 3.0, 8.0)  # the focal loss is not convex in the scale


@dataclass(frozen=True, eq=False)
class Shape:
    """Logits sum_m r_m parts_m at the price sum_m prices_m r_m; the Grams are those of r_m = 1."""

    parts: np.ndarray  # (m, K, K)
    prices: np.ndarray  # (m,) multiples of c (ridge) or of the budget (ball)
    gram_w: np.ndarray  # (m, K, K)
    gram_h: np.ndarray  # (m, K, K)


def _frame(problem: Problem, gram: np.ndarray) -> Shape:
    """W and M the same frame: equal norms within W and within M, whatever the counts."""
    reduced = reduce(problem)
    size_w, size_h = math.sqrt(reduced.classes), math.sqrt(float(reduced.columns @ reduced.columns))
    balance = 1.0 if problem.constraint == "sphere" else reduced.ratio * size_h / size_w
    return Shape(gram[None], np.array([size_w * size_h]), gram[None] * balance, gram[None] / balance)


def _cheapest(problem: Problem, parts: np.ndarray) -> Shape:
    """The cheapest W and M of each part (nuclear norm); the parts must have orthogonal row and column spaces."""
    reduced = reduce(problem)
    root = reduced.columns[:, None]
    prices, grams_w, grams_h = [], [], []
    for part in parts:
        v, s, ut = np.linalg.svd(part * root)
        side = v / root
        prices.append(s.sum())
        grams_w.append(reduced.ratio * (ut.T * s) @ ut)
        grams_h.append((side * s) @ side.T / reduced.ratio)
    return Shape(parts, np.array(prices), np.array(grams_w), np.array(grams_h))


def etf(problem: Problem) -> Prediction:
    """W and the class means are the same simplex frame, of equal norms."""
    K = problem.classes
    if problem.dim < K - 1:
        return not_applicable(f"a simplex frame needs d >= {K - 1}")
    if problem.features == "nonnegative":
        return not_applicable("a simplex frame of means has negative cosines")
    return _evaluate(problem, "etf", lambda: _frame(problem, K / (K - 1) * centring(K)), "zhu2021")


def orthogonal_frame(problem: Problem) -> Prediction:
    """W and the class means are the same orthogonal frame, of equal norms."""
    if problem.dim < problem.classes:
        return not_applicable(f"an orthogonal frame needs d >= {problem.classes}")
    return _evaluate(problem, "of", lambda: _frame(problem, np.eye(problem.classes)), "tirer2022")


def general_orthogonal_frame(problem: Problem) -> Prediction:
    """The general orthogonal frame: orthogonal rows whose lengths follow the class sizes."""
    if problem.dim < problem.classes:
        return not_applicable(f"an orthogonal frame needs d >= {problem.classes}")
    if problem.constraint != "ridge":
        return not_applicable("lengths are fixed by the constraint")
    K = problem.classes
    parts = np.eye(K)[:, :, None] * np.eye(K)[:, None, :]
    return _evaluate(problem, "gof", lambda: _cheapest(problem, parts), "dang2023")


def seli(problem: Problem) -> Prediction:
    """Logits Pi (with CDT scales: their limit) in their cheapest factorisation."""
    if problem.loss not in ("ce", "smoothing", "focal") or problem.features == "nonnegative":
        return not_applicable("SELI is the limit of cross-entropy with free features")
    if problem.dim < problem.classes - 1 or problem.constraint != "ridge":
        return not_applicable("SELI is the limit of a vanishing ridge with d >= K-1")
    delta = None if problem.logit_scale is None else np.asarray(problem.logit_scale)
    if problem.penalty == 0 and problem.depth == 1 and problem.targets is None:
        return limit(problem.count_vector, delta)
    z = directions(problem.count_vector, delta)
    return _evaluate(
        problem,
        "seli",
        lambda: _cheapest(problem, z[None]),
        "thrampoulidis2022" if delta is None else "behnia2023",
        rate=RATE_WARNING,
    )


def code(problem: Problem) -> Prediction:
    """W and the class means are the same symmetric softmax code (K > d+1)."""
    known = code_gram(problem.classes, problem.dim)
    if known is None or problem.features == "nonnegative":
        return not_applicable("no symmetric code is known for these K and d")
    margin = softmax_margin(problem.classes, problem.dim)
    return _evaluate(
        problem,
        "code",
        lambda: _frame(problem, known[1]),
        "jiang2023",
        code=known[0],
        margin=margin[0] if margin else None,
        note=RELABEL,
    )


def _evaluate(problem: Problem, name: str, shape_of: Callable[[], Shape], reference: str, **details: object) -> Prediction:
    """Optimise scale and bias of a shape in `problem`; under a norm constraint the scale is the largest allowed."""
    if problem.depth != 1 or problem.targets is not None or problem.loss == "supcon":
        return not_applicable("this structure is defined for hard labels in the single-layer model")
    if problem.constraint == "ridge" and problem.penalty == 0:
        return not_applicable("without a penalty on both factors the best scale is infinite")
    if problem.loss == "focal" and (problem.logit_scale or problem.logit_offset):
        return not_applicable("the focal loss with modified logits is not evaluated")
    reduced, shape = reduce(problem), shape_of()
    fixed = None
    if problem.constraint == "sphere":
        fixed = np.array([1 / problem.temperature])
    elif reduced.ball:
        fixed = np.array([reduced.radius / float(shape.prices[0])])
    scales, bias, loss = _fit(problem, reduced, shape, fixed)
    strength = np.ones(1) if problem.constraint == "sphere" else scales
    z = np.tensordot(scales, shape.parts, 1)
    return Prediction(
        name=name,
        loss=loss,
        logits=z + bias,
        bias=bias,
        gram_w=np.tensordot(strength, shape.gram_w, 1),
        gram_h=np.tensordot(strength, shape.gram_h, 1),
        singular_values=np.linalg.svd(z * np.sqrt(reduced.counts)[:, None], compute_uv=False),
        assumptions=("a candidate structure at its best scale: not a claim that it is optimal",),
        reference=reference,
        details={"scale": scales.tolist() if len(scales) > 1 else float(scales[0])} | details,
    )


def _fit(problem: Problem, reduced: Reduced, shape: Shape, fixed: np.ndarray | None) -> tuple[np.ndarray, np.ndarray, float]:
    """Minimise the objective over the scales r >= 0 (unless `fixed`) and the bias; convex except for the focal loss."""
    from scipy.optimize import minimize

    K, m = problem.classes, 0 if fixed is not None else len(shape.parts)
    with_bias = reduced.lambda_b is not None
    rows, lambda_b = soft_rows(problem, reduced), reduced.lambda_b or 0.0

    def objective(x: np.ndarray) -> tuple[float, np.ndarray]:
        r, b = (fixed if m == 0 else x[:m]), (x[m:] if with_bias else np.zeros(K))
        losses, gradient = _losses(problem, rows, np.tensordot(r, shape.parts, 1) + b)
        value, pull = float(reduced.mass @ losses) + lambda_b / 2 * float(b @ b), reduced.mass[:, None] * gradient
        if m and not reduced.ball:
            value += problem.penalty * float(shape.prices @ r)
        slopes = [np.tensordot(shape.parts, pull, 2) + problem.penalty * shape.prices] if m else []
        return value, np.concatenate([np.zeros(0), *slopes, *([pull.sum(axis=0) + lambda_b * b] if with_bias else [])])

    size = m + K * with_bias
    if size == 0:
        return fixed, np.zeros(K), objective(np.zeros(0))[0]
    bounds = [(0.0, None)] * m + [(None, None)] * (size - m)
    found = []
    for start in STARTS if problem.loss == "focal" else STARTS[:1]:
        x0 = np.concatenate([np.full(m, start), np.zeros(size - m)])
        end = minimize(objective, x0, jac=True, method="L-BFGS-B", bounds=bounds, options=PRECISE)
        found.append((float(end.fun), end.x))
    loss, x = min(found, key=lambda pair: pair[0])
    bias = x[m:] if with_bias else np.zeros(K)
    if with_bias and problem.bias == "free" and problem.loss != "mse" and problem.logit_scale is None:
        bias = bias - bias.mean()
    return (x[:m] if m else fixed), bias, loss


def _losses(problem: Problem, rows: np.ndarray, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return row losses and gradients, the focal loss included."""
    if problem.loss != "focal":
        return row_losses(problem, rows, z)
    log_p = z - np.logaddexp.reduce(z, axis=1)[:, None]
    own = np.diag(log_p)
    p, gamma = np.exp(own), problem.focal_gamma
    miss = -np.expm1(own)
    slope = miss**gamma - (gamma * miss ** (gamma - 1) * p * own if gamma > 0 else 0.0)  # -d loss / d log p
    return -(miss**gamma) * own, slope[:, None] * (np.exp(log_p) - rows)
