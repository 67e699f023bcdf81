"""Balanced cross-entropy, label smoothing and focal loss: the simplex equiangular tight frame (ETF).

    Z = a Pi, Pi = I - 11^T/K, a = argmin phi(a) + s (K-1) a, s = sqrt(n lambda_w lambda_h)     (ridge)
    a = K/(K-1) sqrt(E_W E_H)                                                                   (layer-peeled ball)

The lower bound behind it pairs the nuclear norm with Pi, sample by sample, so it needs no convexity of the loss.
"""

from __future__ import annotations

import math

import numpy as np

from ufm.prediction import DERIVED, EVIDENCE, Prediction, not_applicable
from ufm.problem import Problem
from ufm.theory.contrast import Contrast
from ufm.theory.reduced import Reduced, frame, obstacle, reduce, single_layer

REFERENCES = {"ce": "zhu2021", "smoothing": "zhou2022losses", "focal": "zhou2022losses"}


def centring(classes: int) -> np.ndarray:
    """Pi = I - 11^T/K: (K, K)."""
    return np.eye(classes) - 1.0 / classes


def balanced(problem: Problem) -> Prediction:
    """Predict the optimum of balanced cross-entropy, label smoothing or focal loss (ridge or ball, any bias, d >= K-1)."""
    if not single_layer(problem, ("ce", "smoothing", "focal"), ("ridge", "ball")):
        return not_applicable("")
    reduced = reduce(problem)
    if not reduced.uniform:
        return not_applicable("")
    refusal = obstacle(problem, weights=True)
    if refusal is not None:
        return refusal
    if problem.dim < problem.classes - 1:
        if problem.loss == "ce" and not reduced.ball:
            return not_applicable("")  # `codes.rank_limited` knows more of it
        return not_applicable(
            f"a simplex frame of {problem.classes} classes needs d >= K-1 = {problem.classes - 1}, here d = {problem.dim}"
        )
    return _ball(problem, reduced) if reduced.ball else _ridge(problem, reduced)


def _ridge(problem: Problem, reduced: Reduced) -> Prediction:
    K, phi = problem.classes, Contrast.of(problem)
    weight = float(reduced.mass[0]) * K  # 1 unless the class weights are all equal to another number
    s = problem.penalty * math.sqrt(reduced.counts[0]) / weight
    a = phi.minimise((K - 1) * s)
    critical, jump = phi.critical_price()
    number = s * (K - 1) / critical
    if a == 0:
        value = float(phi.value(0.0))
    elif problem.loss == "ce":
        value = -math.log1p(-(K - 1) * s) + (K - 1) * s * math.log(1 / s - K + 1)
    else:
        value = float(phi.value(a)) + (K - 1) * s * a
    details = {"a": a, "s": s, "key_number": K * s, "off_class_probability": 1 / (K - 1 + math.exp(a))}
    if problem.loss == "focal":
        details |= {"slope_number": s * (K - 1) / float(phi.slope(0.0)), "jump": jump}
    return _prediction(
        problem,
        reduced,
        a,
        weight * value,
        status=_status(phi, a, (K - 1) * s),
        zero=a == 0,
        thresholds={"zero": number},
        details=details,
    )


def _ball(problem: Problem, reduced: Reduced) -> Prediction:
    K, phi = problem.classes, Contrast.of(problem)
    full = reduced.radius / (K - 1)
    a = min(full, phi.best)
    weight = float(reduced.mass[0]) * K
    thresholds = {} if math.isinf(phi.best) else {"budget": full / phi.best}
    return _prediction(
        problem,
        reduced,
        a,
        weight * float(phi.value(a)),
        status=_status(phi, a, float(phi.slope(a))),
        unique=a == full,  # with budget to spare only the differences of a row of logits are determined
        thresholds=thresholds,
        details={"a": a, "margin": a},
    )


def _status(phi: Contrast, a: float, price: float) -> str:
    """Focal loss is proven only where the pairing bound is tight; the others are convex."""
    if not phi.gamma:
        return DERIVED
    line = min(price, float(phi.slope(0.0))) if a == 0 else price
    return DERIVED if phi.supported(a, line) else EVIDENCE


def _prediction(problem: Problem, reduced: Reduced, a: float, loss: float, **fields: object) -> Prediction:
    unique = fields.get("unique", True)
    shapes = frame(reduced, a) | {"logits": a * centring(problem.classes)} if unique else {}
    return Prediction(
        name="zero" if fields.get("zero") else "etf",
        loss=loss,
        bias=np.zeros(problem.classes) if unique or problem.bias != "free" else None,
        assumptions=("balanced classes", "d >= K-1", "global minimum"),
        reference=REFERENCES[problem.loss],
        tolerance=1e-12 if problem.loss == "ce" else 1e-10,
        **shapes,
        **fields,
    )
