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
        logits=None if spare else a[:, None] * centring(K),
        bias=None if spare and problem.bias == "free" else np.zeros(K),
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
    """Predict balanced squared error with a bias, free or penalised, on non-negative features: M orthogonal.

    Z = t Pi + beta 11^T/K with R = |Z|. With q = s K^{3/2} and kappa = lambda_b/(1 + lambda_b), 0 for a free bias,
    t = R/(R + q), beta = kappa R/(kappa R + q), (K-1)/(R + q)^2 + kappa^2/(kappa R + q)^2 = 1, b = (1 - beta)/(K (1 + lambda_b)),
    value = (K-1)/(2K) (1-t)^2 + kappa (1-beta)^2/(2K) + s sqrt(K) R. Zero iff q >= sqrt(K - 1 + kappa^2).
    Free bias: t = 1 - s K sqrt(K/(K-1)), beta = 0. No bias (kappa = 1) is the orthogonal frame of free features.
    The gauge's bound is tight, since the gradient's Gram has no positive off-diagonal entry as long as beta <= t.
    """
    if not single_layer(problem, ("mse",), features="nonnegative") or problem.bias == "none":
        return not_applicable("")
    refusal = obstacle(problem, weights=True)
    if refusal is not None:
        return refusal
    reduced, K = reduce(problem), problem.classes
    if not reduced.uniform:
        return not_applicable(
            "squared error on non-negative features has a closed form without bias, or with a bias and balanced classes"
        )
    weight = float(reduced.mass[0]) * K
    s, ridge = reduced.penalty * float(reduced.columns[0]) / weight, (reduced.lambda_b or 0.0) / weight
    kappa, q = ridge / (1 + ridge), s * K**1.5
    number = q / math.sqrt(K - 1 + kappa**2)
    R = _size(K, kappa, q) if number < 1 else 0.0
    t, beta = (R / (R + q), kappa * R / (kappa * R + q)) if R else (0.0, 0.0)
    if R and problem.dim < K:
        return not_applicable(f"K = {K} orthogonal means need d >= {K}, here d = {problem.dim}; give d >= {K}")
    bias = (1 - beta) / (K * (1 + ridge))
    loss = (K - 1) / (2 * K) * (1 - t) ** 2 + kappa * (1 - beta) ** 2 / (2 * K) + s * math.sqrt(K) * R
    pi, ones = centring(K), np.full((K, K), 1 / K)
    square = R / math.sqrt(K) / float(reduced.columns[0]) / reduced.ratio  # |m_k|^2
    gram_w = (t**2 * pi + beta**2 * ones) / square if R else np.zeros((K, K))
    return Prediction(
        name="of" if R else "zero",
        loss=weight * loss,
        logits=t * pi + beta * ones + bias,
        bias=np.full(K, bias),
        gram_w=gram_w,
        gram_h=square * np.eye(K),
        singular_values=float(reduced.columns[0]) * np.append(np.full(K - 1, t), beta),
        assumptions=("features >= 0", "balanced classes", "free or penalised bias", "d >= K", "global minimum", FEW_SEEDS),
        reference="tirer2022",
        zero=R == 0,
        thresholds={"zero": number},
        details={"a": t, "t": t, "beta": beta, "s": s},
    )


def _size(K: int, kappa: float, q: float) -> float:
    """Return R > 0 of (K-1)/(R + q)^2 + kappa^2/(kappa R + q)^2 = 1; the left side falls in R and is above 1 at R = 0."""
    from scipy.optimize import brentq

    if kappa == 0:
        return math.sqrt(K - 1) - q
    high = math.sqrt(K)  # |Z| of the targets themselves
    return brentq(lambda R: (K - 1) / (R + q) ** 2 + (kappa / (kappa * R + q)) ** 2 - 1, 0.0, high, xtol=1e-300, rtol=1e-15)
