"""Cross-entropy with two class sizes: block structure, one scalar root, minority collapse.

K_A classes of one size and K_B of another share the logits Z = a_A Pi_A (+) a_B Pi_B + u x^T with u = (1_A/K_A, -1_B/K_B)
and x = (x_A 1_A, x_B 1_B). With the price r_g = c columns_g / mass_g (= c N / sqrt(n_g) for the ridge):

* the differences inside group g vanish iff r_g >= 1, that is n_g <= N^2 lambda_w lambda_h: minority collapse;
* otherwise 1 - p_own + p_same = r_g;
* the mode between the groups is one angle phi, found by bracketing a monotone function.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ufm.errors import RequestError
from ufm.prediction import Prediction, not_applicable
from ufm.problem import Problem
from ufm.theory.reduced import Reduced, factors, obstacle, reduce, single_layer
from ufm.theory.rows import cross_entropy

# Log-probabilities are searched down to -LOWEST, just above the smallest normal float64.
LOWEST = 690.0
SMALLEST_MULTIPLIER = 1e-280
LARGEST_LOG_RATIO = 300.0


@dataclass(frozen=True)
class Group:
    """One block of equal classes."""

    size: int  # K_g
    mass: float  # weight of one class in the data term
    column: float  # weight of one class in the nuclear norm

    def live(self, c: float) -> bool:
        """Whether the classes of the group differ from each other at multiplier c."""
        return self.size > 1 and c * self.column < self.mass

    def same_group(self, c: float, cross: float, others: int) -> tuple[float, float]:
        """Return (p_own, p_same) given the probability `cross` of each of the `others` classes."""
        left = 1 - others * cross
        if not self.live(c):
            return left / self.size, left / self.size
        r = c * self.column / self.mass
        q = max((r - others * cross) / self.size, math.exp(-LOWEST))  # the difference of equals at the end of the bracket
        return 1 - r + q, q

    def shift(self, c: float, cross: float, others: int) -> tuple[float, float]:
        """Return (a_g, K/(K_A K_B) |x_g|) that the probabilities stand for; the second decreases in `cross`."""
        own, same = self.same_group(c, cross, others)
        a = math.log(own / same) if self.live(c) else 0.0
        return a, math.log(same / cross) + a / self.size

    def balance(self, c: float, others: int) -> float:
        """Return the cross probability at which the group carries nothing of the mode between the groups."""
        from scipy.optimize import brentq

        K = self.size + others
        if not self.live(c):
            return 1 / K
        r = c * self.column / self.mass

        def residual(log_q: float) -> float:  # p_same is the unknown: cross is within rounding of r / others for small r
            q = math.exp(log_q)
            return (1 - 1 / self.size) * log_q + math.log(1 - r + q) / self.size - math.log((r - self.size * q) / others)

        if residual(-LOWEST) >= 0:
            return r / others
        if residual(math.log(r / K)) <= 0:  # r is 1 to rounding
            return r / K
        q = math.exp(brentq(residual, -LOWEST, math.log(r / K), xtol=1e-15))
        return (r - self.size * q) / others


@dataclass(frozen=True)
class Blocks:
    """The optimum of the two-group problem at one multiplier c."""

    a: tuple[float, float]
    x: tuple[float, float]
    phi: float
    nuclear: float  # |Z diag(columns)|_*
    between: float  # dual norm of the mode between the groups, over c: the mode is on iff it exceeds 1


def solve_blocks(A: Group, B: Group, c: float) -> Blocks:
    """Return the optimum for groups A and B at multiplier c > 0: all regimes, K_A = 1 and K_B = 1 included."""
    from scipy.optimize import brentq

    K = A.size + B.size
    scale_a = c * A.column / A.mass / math.sqrt(K * B.size)  # p(A -> each B) = scale_a cos(phi)
    scale_b = c * B.column / B.mass / math.sqrt(K * A.size)
    rest_a, rest_b = A.balance(c, B.size), B.balance(c, A.size)
    cos_limit, sin_limit = rest_a / scale_a, rest_b / scale_b  # x_A > 0 iff cos(phi) < cos_limit; x_B alike with sin
    weight = math.sqrt(K / (A.size * B.size))
    between = math.hypot(cos_limit, sin_limit)
    if between <= 1:
        a_a, a_b = A.shift(c, rest_a, B.size)[0], B.shift(c, rest_b, A.size)[0]
        phi, x_a, x_b = 0.0, 0.0, 0.0
    else:
        low = math.log(1 / cos_limit**2 - 1) / 2 if cos_limit < 1 else -LOWEST - math.log(scale_b)
        high = math.log(sin_limit) - math.log1p(-(sin_limit**2)) / 2 if sin_limit < 1 else LOWEST + math.log(scale_a)
        tie = math.log(A.column * math.sqrt(A.size) / (B.column * math.sqrt(B.size)))

        def shifts(t: float) -> tuple[tuple[float, float], tuple[float, float]]:
            cos, sin = 1 / math.hypot(1, math.exp(t)), 1 / math.hypot(1, math.exp(-t))
            return A.shift(c, scale_a * cos, B.size), B.shift(c, scale_b * sin, A.size)

        def residual(t: float) -> float:
            (_, of_a), (_, of_b) = shifts(t)
            return math.atan2(math.exp(t + tie) * of_a, of_b) - math.pi / 4

        if residual(low) >= 0 or residual(high) <= 0:  # at the onset of the mode the bracket shrinks to rounding
            t = low if residual(low) >= 0 else high
        else:
            t = brentq(residual, low, high, xtol=1e-15, rtol=1e-15, maxiter=500)
        (a_a, of_a), (a_b, of_b) = shifts(t)
        phi = math.atan(math.exp(t))
        x_a, x_b = of_a / weight**2, -of_b / weight**2
    nuclear = A.column * a_a * (A.size - 1) + B.column * a_b * (B.size - 1)
    nuclear += weight * math.hypot(A.column * math.sqrt(A.size) * x_a, B.column * math.sqrt(B.size) * x_b)
    return Blocks((a_a, a_b), (x_a, x_b), phi, nuclear, between)


def step(problem: Problem) -> Prediction:
    """Predict cross-entropy with exactly two class sizes and no bias (ridge or layer-peeled ball, d >= K-1)."""
    if not single_layer(problem, ("ce", "smoothing", "focal"), ("ridge", "ball")):
        return not_applicable("")
    reduced = reduce(problem)
    if reduced.uniform:
        return not_applicable("")
    refusal = obstacle(problem, weights=True) or _refuse(problem, reduced)
    if refusal is not None:
        return refusal
    in_a, A, B = _groups(reduced)
    if reduced.ball:
        c = _multiplier(A, B, reduced.radius)
        if c is None:
            return not_applicable("the energy budget is so large that the softmax underflows; lower energy_w * energy_h")
    else:
        c = reduced.penalty
    blocks = solve_blocks(A, B, c)
    z = _logits(in_a, blocks)
    loss = float(reduced.mass @ cross_entropy(reduced.targets, z)[0])
    zero = blocks.nuclear == 0
    details = _details(in_a, B, c, blocks)
    if reduced.ball and B.size > 1 and problem.class_weights is None:
        details["minority_collapse_ratio"] = _collapse_ratio(A.size, B.size, reduced.radius / problem.classes)
    rank = sum((g.size - 1) * g.live(c) for g in (A, B)) + (blocks.between > 1)
    if problem.dim < rank:
        return not_applicable(f"the optimum has rank {rank} but d = {problem.dim}; no theorem covers fewer dimensions")
    return Prediction(
        name="zero" if zero else "blocks",
        loss=loss if reduced.ball else loss + c * blocks.nuclear,
        logits=z,
        bias=np.zeros(problem.classes),
        assumptions=("two class sizes", "no bias", "d >= K-1", "global minimum"),
        reference="fang2021" if reduced.ball else "hong2023",
        zero=zero,
        thresholds=_thresholds(A, B, c, blocks),
        details=details,
        **factors(reduced, z),
    )


def _refuse(problem: Problem, reduced: Reduced) -> Prediction | None:
    if problem.loss != "ce":
        return not_applicable(f"no closed form is known for {problem.loss} with imbalanced classes; balance them")
    if problem.bias != "none":
        return not_applicable(
            "no closed form is known for imbalanced cross-entropy with a bias (the bias is non-trivial); the certificate of "
            "the solution decides"
        )
    kinds = len(set(zip(reduced.mass, reduced.columns, strict=True)))
    if kinds != 2:
        return not_applicable(
            f"cross-entropy has a closed form for two class sizes, here are {kinds}; the certificate of the solution decides"
        )
    return None


def _groups(reduced: Reduced) -> tuple[np.ndarray, Group, Group]:
    """Return the mask of the majority (the group with the lower price) and both groups."""
    in_a = reduced.columns / reduced.mass == np.min(reduced.columns / reduced.mass)
    if in_a.all():  # equal prices with different masses: split by mass
        in_a = reduced.mass == reduced.mass.max()
    A, B = (Group(int(m.sum()), float(reduced.mass[m][0]), float(reduced.columns[m][0])) for m in (in_a, ~in_a))
    return in_a, A, B


def _logits(in_a: np.ndarray, blocks: Blocks) -> np.ndarray:
    """Return Z with row = class of the sample, column = output."""
    K = len(in_a)
    u = np.where(in_a, 1 / in_a.sum(), -1 / (~in_a).sum())
    z = np.outer(np.where(in_a, *blocks.x), u)
    for mask, a in ((in_a, blocks.a[0]), (~in_a, blocks.a[1])):
        z += a * (np.diag(mask * 1.0) - np.outer(mask, mask) / mask.sum())
    return z.reshape(K, K)


def _thresholds(A: Group, B: Group, c: float, blocks: Blocks) -> dict[str, float]:
    """The differences inside a group, and the mode between the groups, vanish from 1 upwards."""
    numbers = {"between groups": 1 / blocks.between}
    if A.size > 1:
        numbers["majority collapse"] = c * A.column / A.mass
    if B.size > 1:
        numbers["minority collapse"] = c * B.column / B.mass
    return numbers


def _details(in_a: np.ndarray, B: Group, c: float, blocks: Blocks) -> dict[str, object]:
    collapsed = B.size > 1 and not B.live(c)
    return {
        "a": list(blocks.a),
        "x": list(blocks.x),
        "phi": blocks.phi,
        "multiplier": c,
        "minority_collapse": collapsed,
        "dead_classes": [int(k) for k in np.flatnonzero(~in_a)] if collapsed else [],
    }


def _multiplier(A: Group, B: Group, radius: float) -> float | None:
    """Return the multiplier c at which |Z diag(columns)|_* equals the budget, None where it underflows."""
    from scipy.optimize import brentq

    high = 2 * max(A.mass / A.column, B.mass / B.column)  # at least twice the norm of the gradient at 0
    low = high / 4
    while solve_blocks(A, B, low).nuclear < radius:
        low /= 1e3
        if low < SMALLEST_MULTIPLIER:
            return None
    root = brentq(lambda t: solve_blocks(A, B, math.exp(t)).nuclear - radius, math.log(low), math.log(high), xtol=1e-15)
    return math.exp(root)


def minority_collapse_ratio(majority: int, minority: int, energy: float = 1.0) -> float:
    """Return R_0: layer-peeled cross-entropy merges the minority classes iff n_A / n_B >= R_0 (Fang et al. 2021).

    Args:
        majority, minority: K_A >= 1 and K_B >= 2, the numbers of large and small classes.
        energy: sqrt(energy_w energy_h) > 0.

    At the threshold the multiplier of |Z|_* <= K sqrt(E_W E_H) is n_B / N, so R_0 is one scalar root.
    """
    if majority < 1 or minority < 2 or not energy > 0:
        raise RequestError(
            f"majority {majority}, minority {minority}, energy {energy}: give majority >= 1, minority >= 2, energy > 0"
        )
    ratio = _collapse_ratio(majority, minority, energy)
    if ratio is None:
        raise RequestError(f"energy {energy} is so large that R_0 exceeds e^{LARGEST_LOG_RATIO:g}; lower it")
    return ratio


def _collapse_ratio(majority: int, minority: int, energy: float) -> float | None:
    """Return R_0, or None where it leaves the range of float64."""
    from scipy.optimize import brentq

    K = majority + minority

    def excess(log_ratio: float) -> float:
        small = 1 / (majority * math.exp(log_ratio) + minority)
        A, B = Group(majority, math.exp(log_ratio) * small, 1.0), Group(minority, small, 1.0)
        return solve_blocks(A, B, small).nuclear - K * energy

    high = 1.0
    while excess(high) < 0:
        high += 2.0
        if high > LARGEST_LOG_RATIO:
            return None
    return math.exp(brentq(excess, 1e-12, high, xtol=1e-14))
