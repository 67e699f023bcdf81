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
from ufm.theory.reduced import Reduced, factors, frame, obstacle, reduce, single_layer

TIE = 1e-9  # relative distance below which two singular values count as equal


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
        return not_applicable(_too_narrow(problem, needed) if problem.bias == "ridge" else "")  # else: truncation
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
        reference="massion2026" if problem.bias == "ridge" else "zhou2022mse",
        tolerance=1e-12,
        zero=t == 0 and beta == 0,
        thresholds=thresholds,
        details={"a": t, "t": t, "beta": beta, "b0": b0, "s": s, "key_number": K * s},
        **frame(reduced, t, beta),
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


def _too_narrow(problem: Problem, needed: int) -> str:
    return (
        f"a ridge bias with d = {problem.dim} below the rank {needed} of the optimum has no closed form; give d >= {needed} "
        "or bias none or free"
    )


def soft_threshold(problem: Problem) -> Prediction:
    """Predict squared error for any counts or targets and any d, without bias or with a free one."""
    if not (single_layer(problem, ("mse",)) or single_layer(problem, ("mse",), targets=True)):
        return not_applicable("")
    refusal = obstacle(problem)
    if refusal is not None:
        return refusal
    if problem.bias == "ridge":
        return not_applicable(
            "squared error with a ridge bias has a closed form for balanced classes and for targets that are symmetric in the "
            "classes; the certificate of the solution decides"
        )
    reduced = reduce(problem)
    N, root = reduced.counts.sum(), np.sqrt(reduced.counts)
    mean = reduced.counts @ reduced.targets / N
    bias = mean if problem.bias == "free" else np.zeros(problem.classes)
    u, s, vt = np.linalg.svd((reduced.targets - bias) * root[:, None], full_matrices=False)
    kept = np.where(np.arange(len(s)) < problem.dim, np.maximum(s - N * problem.penalty, 0.0), 0.0)
    lost = s - kept
    loss = float(np.sum(lost**2) / (2 * N) + problem.penalty * kept.sum())
    unique = not (problem.dim < len(s) and kept[problem.dim - 1] > 0 and s[problem.dim] > (1 - TIE) * s[problem.dim - 1])
    z = (u * kept) @ vt / root[:, None]
    shapes = factors(reduced, z) if unique else {}
    one_hot = problem.targets is None
    return Prediction(
        name=_name(problem, kept, unique),
        loss=loss,
        logits=z + bias if unique else None,
        bias=bias,
        assumptions=_assumptions(problem, one_hot),
        reference="dang2023" if one_hot else "andriopoulos2024",
        unique=unique,
        zero=not kept.any(),
        thresholds=_thresholds(problem, s, N),
        details={"spectrum": s, "kept": kept, "dead_classes": _dead(problem, kept, reduced.counts)},
        **(shapes | {"singular_values": kept}),
    )


def _name(problem: Problem, kept: np.ndarray, unique: bool) -> str:
    if not kept.any():
        return "zero"
    if problem.targets is not None:
        return "nrc"
    if not unique:
        return "low rank"
    return "gof" if problem.bias == "none" else "soft threshold"


def _assumptions(problem: Problem, one_hot: bool) -> tuple[str, ...]:
    kind = "one-hot targets" if one_hot else "any targets"
    return (kind, f"{problem.bias} bias", "truncated to rank d", "global minimum")


def _thresholds(problem: Problem, spectrum: np.ndarray, N: float) -> dict[str, float]:
    """Direction j dies when N c / s_j reaches 1; without bias one-hot targets make the directions the classes."""
    c = problem.penalty
    if problem.targets is None and problem.bias == "none":
        return {f"class {k}": N * c / math.sqrt(n) for k, n in enumerate(problem.count_vector)}
    live = spectrum[spectrum > TIE * max(float(spectrum[0]), 1e-300)]
    return {f"direction {j}": float(N * c / s) for j, s in enumerate(live)}


def _dead(problem: Problem, kept: np.ndarray, counts: np.ndarray) -> list[int]:
    """Classes with zero logits: only where the directions are the classes."""
    if problem.targets is not None or problem.bias != "none":
        return []
    alive = np.argsort(-counts, kind="stable")[: int(np.count_nonzero(kept))]
    return sorted(set(range(problem.classes)) - {int(k) for k in alive})


def orthogonal(problem: Problem) -> Prediction:
    """Predict the general orthogonal frame (GOF): one-hot squared error without bias, any counts and class weights.

    z_kk = (1 - r_k)_+ with r_k = c columns_k / mass_k (= cN / sqrt(n_k)); the means are orthogonal, so non-negative features
    cost nothing. Ridge or layer-peeled ball.
    """
    features = problem.features
    if problem.bias != "none" or not single_layer(problem, ("mse",), ("ridge", "ball"), features):
        return not_applicable("")
    refusal = obstacle(problem, weights=True)
    if refusal is not None:
        return refusal
    reduced = reduce(problem)
    c = _multiplier(reduced) if reduced.ball else reduced.penalty
    price = c * reduced.columns / reduced.mass
    a = np.maximum(1 - price, 0.0)
    live = np.count_nonzero(a)
    if problem.dim < live:
        if problem.class_weights is not None or reduced.ball:
            return not_applicable(f"{live} live classes need d >= {live}, here d = {problem.dim}: no theorem with these weights")
        if features == "free":
            return not_applicable("")  # soft_threshold truncates
        a[np.argsort(-reduced.counts, kind="stable")[problem.dim :]] = 0.0
    loss = float(reduced.mass @ (1 - a) ** 2 / 2)
    if not reduced.ball:
        loss += c * float(reduced.columns @ a)
    cut = np.sort(reduced.counts)[::-1]
    unique = problem.dim >= live or cut[problem.dim - 1] > cut[problem.dim]
    shapes = factors(reduced, np.diag(a)) if unique and c > 0 else {}
    return Prediction(
        name="gof" if a.any() else "zero",
        loss=loss,
        logits=np.diag(a) if unique else None,
        bias=np.zeros(problem.classes),
        assumptions=("one-hot targets", "no bias", "global minimum"),
        reference="tirer2022" if features == "nonnegative" else "dang2023",
        unique=unique and c > 0,
        zero=not a.any(),
        thresholds={f"class {k}": float(r) for k, r in enumerate(price)},
        details={"a": a, "multiplier": c, "dead_classes": [int(k) for k in np.flatnonzero(a == 0)]},
        **shapes,
    )


def _multiplier(reduced: Reduced) -> float:
    """Return c with sum_k columns_k (1 - c columns_k / mass_k)_+ = budget: water-filling; 0 where the budget is not used up."""
    from scipy.optimize import brentq

    def excess(c: float) -> float:
        return float(reduced.columns @ np.maximum(1 - c * reduced.columns / reduced.mass, 0.0)) - reduced.radius

    if excess(0.0) <= 0:
        return 0.0
    return brentq(excess, 0.0, float(np.max(reduced.mass / reduced.columns)), xtol=1e-300, rtol=1e-15)


def balanced_ball(problem: Problem) -> Prediction:
    """Predict balanced one-hot squared error with a free bias under the layer-peeled ball: t = min(1, budget/(K-1))."""
    if problem.bias != "free" or not single_layer(problem, ("mse",), ("ball",)):
        return not_applicable("")
    reduced, K = reduce(problem), problem.classes
    refusal = obstacle(problem)
    if refusal is not None:
        return refusal
    if not reduced.uniform or problem.dim < K - 1:
        return not_applicable("the layer-peeled squared error with a free bias needs balanced classes and d >= K-1")
    budget = reduced.radius / (K - 1)
    t = min(1.0, budget)
    shapes = frame(reduced, t) if budget <= 1 else {}
    return Prediction(
        name="etf",
        loss=(K - 1) / (2 * K) * (1 - t) ** 2,
        logits=t * centring(K) + 1 / K,
        bias=np.full(K, 1 / K) if budget <= 1 else None,  # with budget to spare the features may carry some of it
        assumptions=("balanced classes", "d >= K-1", "global minimum"),
        reference="zhou2022mse",
        unique=budget <= 1,
        thresholds={"budget": budget},
        details={"a": t},
        **shapes,
    )
