"""Non-negative (ReLU) features: orthogonal means, a class-by-class scalar problem.

The nuclear norm becomes the gauge of W M with M >= 0, whose dual is max_{v >= 0} |L v| <= sqrt(lambda_max((L^T L)_+)).
That bound is tight here because L^T L has no positive off-diagonal entry, so the optima below are global.
"""

from __future__ import annotations

import math

import numpy as np

from ufm.prediction import DERIVED, EVIDENCE, Prediction, not_applicable
from ufm.problem import Problem
from ufm.theory.contrast import Contrast
from ufm.theory.etf import centring
from ufm.theory.reduced import Reduced, obstacle, reduce, single_layer

SMALLEST_MULTIPLIER = 1e-280
FEW_SEEDS = "the landscape has bad local minima with non-negative features: use several starts or d >= 2K"


def contrast(problem: Problem) -> Prediction:
    """Predict cross-entropy, smoothing or focal loss on non-negative features, any imbalance (Dang et al. 2024).

    Z = Pi diag(a) (column = class): a_k minimises phi(a) + r_k sqrt((K-1)/K) a; class k is dead iff
    n_k <= K N^2 lambda_w lambda_h / (K-1) (cross-entropy, equal weights).
    """
    if not single_layer(problem, ("ce", "smoothing", "focal"), ("ridge", "ball"), "nonnegative"):
        return not_applicable("")
    refusal = obstacle(problem, weights=True)
    if refusal is not None:
        return refusal
    reduced, K, phi = reduce(problem), problem.classes, Contrast.of(problem)
    if problem.bias != "none" and not reduced.uniform:
        return not_applicable(
            "non-negative features and imbalanced classes have a closed form only without bias; use bias='none'"
        )
    if reduced.ball and problem.loss == "focal":
        return not_applicable("focal loss on non-negative features is known for the ridge penalty only")
    c = _multiplier(reduced, phi) if reduced.ball else reduced.penalty
    if c is None:
        return not_applicable("the energy budget is so large that the softmax underflows; lower energy_w * energy_h")
    prices = c * reduced.columns / reduced.mass * math.sqrt((K - 1) / K)
    a = np.array([phi.minimise(price) for price in prices])
    live = int(np.count_nonzero(a))
    if problem.dim < live:
        return not_applicable(f"{live} live classes need {live} orthogonal directions, here d = {problem.dim}; give d >= {live}")
    data = np.array([float(phi.value(x)) for x in a])
    loss = float(reduced.mass @ data) + (0.0 if reduced.ball else c * math.sqrt((K - 1) / K) * float(reduced.columns @ a))
    critical = phi.critical_price()[0]
    proven = not phi.gamma or all(
        phi.supported(x, min(p, float(phi.slope(0.0))) if x == 0 else p) for x, p in zip(a, prices, strict=True)
    )
    spare = reduced.ball and c == 0
    return Prediction(
        name="of" if live else "zero",
        loss=loss,
        logits=a[:, None] * centring(K),
        bias=np.zeros(K),
        status=DERIVED if proven else EVIDENCE,
        assumptions=("features >= 0", f"d >= {max(live, 1)}", "global minimum", FEW_SEEDS),
        reference="dang2024",
        unique=not spare,
        zero=live == 0,
        thresholds={f"class {k}": float(p / critical) for k, p in enumerate(prices)},
        details={"a": a, "multiplier": c, "dead_classes": [int(k) for k in np.flatnonzero(a == 0)]},
        **({} if spare else _factors(reduced, a)),
    )


def _factors(reduced: Reduced, a: np.ndarray) -> dict[str, np.ndarray]:
    """Means u_k |m_k| orthogonal, W = sum_k (a_k / |m_k|) (e_k - 1/K) u_k^T, balanced class by class."""
    K = reduced.classes
    norms = a * math.sqrt((K - 1) / K) / reduced.columns / reduced.ratio  # |m_k|^2
    pull = a * math.sqrt(K / (K - 1)) * reduced.columns * reduced.ratio  # (a_k / |m_k|)^2
    pi = centring(K)
    logits = a[:, None] * pi
    return {
        "gram_w": (pi * pull) @ pi,
        "gram_h": np.diag(norms),
        "singular_values": np.linalg.svd(logits * np.sqrt(reduced.counts)[:, None], compute_uv=False),
    }


def _multiplier(reduced: Reduced, phi: Contrast) -> float | None:
    """Return the multiplier that uses up the layer-peeled budget; 0 where smoothing leaves some over, None at underflow."""
    from scipy.optimize import brentq

    K = reduced.classes
    factor = math.sqrt((K - 1) / K)
    unit = reduced.columns / reduced.mass * factor

    def gauge(c: float) -> float:
        return factor * float(reduced.columns @ [phi.minimise(c * u) for u in unit])

    if not math.isinf(phi.best) and factor * float(reduced.columns.sum()) * phi.best <= reduced.radius:
        return 0.0
    high = 1 / float(unit.min())
    low = high / 10
    while gauge(low) < reduced.radius:
        low /= 1e3
        if low < SMALLEST_MULTIPLIER:
            return None
    return math.exp(brentq(lambda t: gauge(math.exp(t)) - reduced.radius, math.log(low), math.log(high), xtol=1e-15))


def squared_error(problem: Problem) -> Prediction:
    """Predict balanced squared error with a free bias on non-negative features: M orthogonal, W an ETF.

    t = 1 - s K sqrt(K/(K-1)), b = 1/K, value = (K-1)/(2K) (1-t)^2 + s sqrt(K(K-1)) t.
    """
    if not single_layer(problem, ("mse",), features="nonnegative") or problem.bias == "none":
        return not_applicable("")
    refusal = obstacle(problem, weights=True)
    if refusal is not None:
        return refusal
    reduced, K = reduce(problem), problem.classes
    if problem.bias == "ridge" or not reduced.uniform:
        return not_applicable(
            "squared error on non-negative features has a closed form without bias, or with a free bias and balanced classes"
        )
    weight = float(reduced.mass[0]) * K
    s = reduced.penalty * float(reduced.columns[0]) / weight
    number = s * K * math.sqrt(K / (K - 1))
    t = max(0.0, 1 - number)
    if t > 0 and problem.dim < K:
        return not_applicable(f"K = {K} orthogonal means need d >= {K}, here d = {problem.dim}; give d >= {K}")
    loss = (K - 1) / (2 * K) * (1 - t) ** 2 + s * math.sqrt(K * (K - 1)) * t
    return Prediction(
        name="of" if t else "zero",
        loss=weight * loss,
        logits=t * centring(K) + 1 / K,
        bias=np.full(K, 1 / K),
        assumptions=("features >= 0", "balanced classes", "free bias", "d >= K", "global minimum", FEW_SEEDS),
        reference="tirer2022",
        zero=t == 0,
        thresholds={"zero": number},
        details={"a": t, "t": t, "s": s},
        **_factors(reduced, np.full(K, t)),
    )
