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
from ufm.theory.rows import logit_scale, modify, row_losses, soft_rows
from ufm.theory.seli import RATE_WARNING, directions, limit

NEWTON_STEPS = 200
LONGEST_STEP = 100.0  # logits: a saturated softmax has no curvature to stop a step
MOST_CLASSES = 64  # the general orthogonal frame with a bias has K^3 numbers of parts
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
    if problem.loss == "focal":
        return not_applicable("evaluated for convex losses")
    if K > MOST_CLASSES:
        return not_applicable(f"evaluated for up to {MOST_CLASSES} classes; the prediction of squared error has no such limit")
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
        fixed = np.ones(1)
    elif reduced.ball:
        fixed = np.array([reduced.radius / float(shape.prices[0])])
    scales, bias, loss = _fit(problem, reduced, shape, fixed)
    z = np.tensordot(scales, shape.parts, 1)
    return Prediction(
        name=name,
        loss=loss,
        logits=z + bias,
        bias=bias,
        gram_w=np.tensordot(scales, shape.gram_w, 1),
        gram_h=np.tensordot(scales, shape.gram_h, 1),
        singular_values=np.linalg.svd(z * np.sqrt(reduced.counts)[:, None], compute_uv=False),
        assumptions=("a candidate structure at its best scale: not a claim that it is optimal",),
        reference=reference,
        details={"scale": scales.tolist() if len(scales) > 1 else float(scales[0])} | details,
    )


def _fit(problem: Problem, reduced: Reduced, shape: Shape, fixed: np.ndarray | None) -> tuple[np.ndarray, np.ndarray, float]:
    """Minimise the objective over the scales r >= 0 (unless `fixed`) and the bias; convex except for the focal loss."""
    with_bias = reduced.lambda_b is not None
    objective = Objective(problem, reduced, shape, soft_rows(problem, reduced), fixed, with_bias)
    if objective.size == 0:
        return fixed, np.zeros(problem.classes), objective.value(np.zeros(0))[0]
    if problem.loss == "focal":
        ends = [_search(objective, start) for start in STARTS]
        x = min(ends, key=lambda end: objective.value(end)[0])
    else:
        x = _newton(objective, np.concatenate([np.ones(objective.scales), np.zeros(objective.size - objective.scales)]))
    r, bias = objective.split(x)
    if problem.bias == "free" and problem.loss != "mse" and problem.logit_scale is None:
        bias = bias - bias.mean()
    return r, bias, objective.value(x)[0]


@dataclass(frozen=True, eq=False)
class Objective:
    """The objective of a shape in x = (scales, bias), with its derivatives."""

    problem: Problem
    reduced: Reduced
    shape: Shape
    rows: np.ndarray  # targets
    fixed: np.ndarray | None
    with_bias: bool

    @property
    def scales(self) -> int:
        """How many scales are free."""
        return 0 if self.fixed is not None else len(self.shape.parts)

    @property
    def size(self) -> int:
        """The number of unknowns."""
        return self.scales + self.problem.classes * self.with_bias

    def split(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return (scales, bias)."""
        m = self.scales
        return (x[:m] if m else self.fixed), (x[m:] if self.with_bias else np.zeros(self.problem.classes))

    def logits(self, x: np.ndarray) -> np.ndarray:
        """Return (K, K) logits at x."""
        r, b = self.split(x)
        return np.tensordot(r, self.shape.parts, 1) + b

    def value(self, x: np.ndarray) -> tuple[float, np.ndarray]:
        """Return the objective and its gradient."""
        (r, b), reduced, lambda_b = self.split(x), self.reduced, self.reduced.lambda_b or 0.0
        losses, gradient = _losses(self.problem, self.rows, self.logits(x))
        pull = reduced.mass[:, None] * gradient
        value, slopes = float(reduced.mass @ losses) + lambda_b / 2 * float(b @ b), []
        if self.scales:
            value += self.problem.penalty * float(self.shape.prices @ r)
            slopes.append(np.tensordot(self.shape.parts, pull, 2) + self.problem.penalty * self.shape.prices)
        if self.with_bias:
            slopes.append(pull.sum(axis=0) + lambda_b * b)
        return value, np.concatenate([np.zeros(0), *slopes])

    def hessian(self, x: np.ndarray) -> np.ndarray:
        """Return the Hessian of a convex objective: every row adds a diagonal minus a rank-one matrix in its logits."""
        problem, mass, parts = self.problem, self.reduced.mass[:, None], self.shape.parts
        scale, z = logit_scale(problem), modify(problem, self.logits(x))
        p = np.ones_like(z) if problem.loss == "mse" else np.exp(z - np.logaddexp.reduce(z, axis=1)[:, None])
        diagonal = mass * p * scale**2
        ray = np.zeros_like(z) if problem.loss == "mse" else np.sqrt(mass) * p * scale
        m = self.scales
        out = np.zeros((self.size, self.size))
        if m:
            weighted, along = parts * diagonal, (parts * ray).sum(axis=2)
            out[:m, :m] = np.tensordot(weighted, parts, ([1, 2], [1, 2])) - along @ along.T
        if self.with_bias:
            out[m:, m:] = np.diag(diagonal.sum(axis=0) + self.reduced.lambda_b) - ray.T @ ray
        if m and self.with_bias:
            out[:m, m:] = weighted.sum(axis=1) - along @ ray
            out[m:, :m] = out[:m, m:].T
        return out


def _newton(objective: Objective, x: np.ndarray) -> np.ndarray:
    """Projected Newton with backtracking; scales stay >= 0, the flat direction of a free bias is left alone."""
    scales = np.arange(objective.size) < objective.scales
    for _ in range(NEWTON_STEPS):
        value, gradient = objective.value(x)
        free = ~(scales & (x <= 0) & (gradient >= 0))
        if not free.any():
            break
        step = np.zeros_like(x)
        step[free] = np.linalg.lstsq(objective.hessian(x)[np.ix_(free, free)], gradient[free], rcond=1e-14)[0]
        step *= min(1.0, LONGEST_STEP / max(np.abs(step).max(), 1e-300))
        t = 1.0
        while t > 1e-12:
            trial = np.where(scales, np.maximum(x - t * step, 0.0), x - t * step)
            if objective.value(trial)[0] <= value - 1e-4 * float(gradient @ (x - trial)):
                break
            t /= 2
        else:
            break  # no decrease at this precision
        x = trial
        if float(gradient @ step) <= 1e-14 * abs(value):  # twice the decrease that is left
            break
    return x


def _search(objective: Objective, start: float) -> np.ndarray:
    """Quasi-Newton from one start, for the focal loss."""
    from scipy.optimize import minimize

    m, size = objective.scales, objective.size
    x = np.concatenate([np.full(m, start), np.zeros(size - m)])
    bounds = [(0.0, None)] * m + [(None, None)] * (size - m)
    options = {"ftol": 1e-13, "gtol": 1e-10, "maxiter": 200}
    return minimize(objective.value, x, jac=True, method="L-BFGS-B", bounds=bounds, options=options).x


def _losses(problem: Problem, rows: np.ndarray, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return row losses and gradients, the focal loss included."""
    if problem.loss != "focal":
        return row_losses(problem, rows, z)
    out, scale = modify(problem, z), logit_scale(problem)
    log_p = out - np.logaddexp.reduce(out, axis=1)[:, None]
    own = np.diag(log_p)
    p, gamma = np.exp(own), problem.focal_gamma
    miss = -np.expm1(own)
    ratio = -own / np.maximum(miss, np.finfo(float).tiny)  # tends to 1 as p -> 1; miss^(gamma - 1) would divide by zero
    slope = miss**gamma * (1 + gamma * p * ratio)  # -d loss / d log p
    return -(miss**gamma) * own, scale * slope[:, None] * (np.exp(log_p) - rows)
