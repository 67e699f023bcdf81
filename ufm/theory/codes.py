"""Unit-norm models: the simplex for K <= d+1, softmax codes for K > d+1, and the rank-limited ridge that behaves alike.

loss = (1/N) sum CE((W h_i + b) / tau), |w| = |h| = 1; logits are W h + b, without the temperature.
As tau -> 0, -tau log(loss) tends to the largest one-vs-rest margin
max_W min_k dist(w_k, conv{w_j}_{j != k}) (Jiang et al. 2023). Codes are unique up to rotation *and* relabelling.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from ufm import geometry
from ufm.prediction import DERIVED, EVIDENCE, STATED, Prediction, not_applicable
from ufm.problem import Problem
from ufm.theory.contrast import Contrast
from ufm.theory.etf import centring
from ufm.theory.reduced import factors, obstacle, reduce, single_layer

# Codes that no search went below at temperatures 0.02 to 10, and up to how many classes. The 24-cell is not one of them: at
# temperature 0.2 and 0.3 other configurations are lower (.5315518 against .5315559 at 0.2), so only its margin is predicted.
AT_ANY_TEMPERATURE = {"polygon": 48, "cross-polytope": 32, "icosahedron": 12}
# Codes of the ridge that no search went below. The polygon's curvature is positive for all K <= 13 at every penalty; from
# K = 14 it has a direction of descent at intermediate ones (K = 14: .14 <= K sqrt(n lambda_w lambda_h) <= .21).
LARGEST_POLYGON, LARGEST_CROSS_POLYTOPE = 13, 16
CHECKED = {
    "polygon": f"compared with searches for K <= {LARGEST_POLYGON}, 1e-6 <= K sqrt(n lambda_w lambda_h) < 1",
    "cross-polytope": f"compared with searches for d <= {LARGEST_CROSS_POLYTOPE}, 1e-6 <= K sqrt(n lambda_w lambda_h) < 1",
}
RELABEL = "class-to-vertex assignment is free: compare sorted rows of the Grams"


# cos of the largest smallest angle between K points on the sphere of R^3 (Tammes): closed forms where they are short, K = 10
# recomputed here to 1e-13. K = 5 shares the angle of K = 6, and K = 11 that of K = 12.
TRIBONACCI = (1 + (19 + 3 * math.sqrt(33)) ** (1 / 3) + (19 - 3 * math.sqrt(33)) ** (1 / 3)) / 3
TAMMES_COSINES = {
    5: 0.0,
    6: 0.0,
    7: 1 - 4 / math.sqrt(3) * math.cos(math.radians(70)),
    8: (math.sqrt(8) - 1) / 7,
    9: 1 / 3,
    10: 0.4043943252162505,
    11: 1 / math.sqrt(5),
    12: 1 / math.sqrt(5),
    24: 1 - 2 * (2 - TRIBONACCI) / (3 - TRIBONACCI),
}


def tammes_angle(classes: int) -> float | None:
    """Return the largest smallest angle, in degrees, between `classes` points on the sphere of R^3; None where not tabulated."""
    if classes <= 4:
        return math.degrees(math.acos(-1 / (classes - 1)))
    cosine = TAMMES_COSINES.get(classes)
    return None if cosine is None else math.degrees(math.acos(cosine))


def softmax_margin(classes: int, dim: int) -> tuple[float, str] | None:
    """Return (largest one-vs-rest margin, status) of K unit vectors in R^d, or None where it is not known.

    K/(K-1) for K <= d+1; 1 - cos(2 pi/K) in the plane; 1 for d+2 <= K <= 2d (Rankin); 1 - cos(Tammes angle) for the codes
    tabulated in R^3 and the 24-cell: every vertex of those has that margin, and no search found a larger one.
    """
    if classes <= dim + 1:
        return classes / (classes - 1), DERIVED
    if dim == 1:
        return 0.0, DERIVED  # two of three or more points on {-1, 1} coincide
    if dim == 2:
        return 1 - math.cos(2 * math.pi / classes), STATED
    if classes <= 2 * dim:
        return 1.0, STATED
    if dim == 3 and classes in TAMMES_COSINES:
        return 1 - TAMMES_COSINES[classes], EVIDENCE
    if (classes, dim) == (24, 4):
        return 0.5, EVIDENCE
    return None


def code_gram(classes: int, dim: int) -> tuple[str, np.ndarray] | None:
    """Return (name, Gram (K, K)) of the symmetric code known for K > d+1 points on the sphere of R^d, or None.

    Regular polygon (d = 2), cross-polytope (K = 2d), icosahedron (K = 12, d = 3), 24-cell (K = 24, d = 4): in all of them
    every vertex sees the same multiset of cosines.
    """
    if classes <= dim + 1 or dim < 2:
        return None
    if dim == 2:
        name, rows = "polygon", geometry.polygon(classes)
    elif classes == 2 * dim:
        name, rows = "cross-polytope", geometry.cross_polytope(dim)
    elif (classes, dim) == (12, 3):
        name, rows = "icosahedron", geometry.icosahedron()
    elif (classes, dim) == (24, 4):
        name, rows = "24-cell", geometry.cell24()
    else:
        return None
    return name, rows @ rows.T


def sphere(problem: Problem) -> Prediction:
    """Predict balanced unit-norm models: the simplex with W = H for K <= d+1, else the symmetric code where one is known."""
    if not single_layer(problem, ("ce", "smoothing", "focal"), ("sphere",)):
        return not_applicable("")
    refusal = obstacle(problem, weights=True)
    if refusal is not None:
        return refusal
    if not reduce(problem).uniform:
        return not_applicable("on the sphere a closed form is known for balanced classes only; the loss found is the answer")
    return _simplex(problem) if problem.classes <= problem.dim + 1 else _code(problem)


def _simplex(problem: Problem) -> Prediction:
    K, phi = problem.classes, Contrast.of(problem)
    weight = float(reduce(problem).mass[0]) * K
    gap = K / ((K - 1) * problem.temperature)  # as the loss sees it
    if gap > phi.best:
        if problem.dim < K:
            return not_applicable(
                f"the smoothed labels want a gap of {phi.best:g}, below the simplex's {gap:g}; this is reached with d >= K"
            )
        # Tilted frames: a component common to all of W, to all features or to both shortens the gap. Many do, at the same loss.
        fields = {"unique": False, "loss": weight * float(phi.value(phi.best)), "name": "tilted etf"}
    else:
        z = K / (K - 1) * centring(K)
        fields = {"logits": z, "gram_w": z.copy(), "gram_h": z.copy(), "loss": weight * float(phi.value(gap)), "name": "etf"}
        fields["singular_values"] = np.linalg.svd(z, compute_uv=False) * math.sqrt(problem.count_vector[0])
    proven = not phi.gamma or phi.supported(gap, float(phi.slope(gap)))
    return Prediction(
        bias=None if problem.bias == "free" and fields["name"] != "etf" else np.zeros(K),
        status=DERIVED if proven else EVIDENCE,
        assumptions=("balanced classes", "unit rows", "K <= d+1"),
        reference="lu2020",
        thresholds={} if math.isinf(phi.best) else {"gap": gap / phi.best},
        details={
            "margin": K / (K - 1),
            "a": min(K / (K - 1), phi.best * problem.temperature),
            "self_dual": fields["name"] == "etf",
        },
        **fields,
    )


def _code(problem: Problem) -> Prediction:
    known, margin = code_gram(problem.classes, problem.dim), softmax_margin(problem.classes, problem.dim)
    details = {} if margin is None else {"margin": margin[0], "margin_status": margin[1]}
    compared = 0 if known is None else AT_ANY_TEMPERATURE.get(known[0], 0)
    if problem.classes > compared or problem.loss != "ce" or problem.bias != "none":
        limit = f"; as temperature -> 0, -temperature log(loss) -> {margin[0]:.6g}, {margin[1]}" if margin else ""
        answer = not_applicable(
            f"no closed form is known for {problem.classes} classes in {problem.dim} dimensions with this loss and bias{limit}"
        )
        return dataclasses.replace(answer, details=details)
    name, gram = known
    loss = float(reduce(problem).mass[0]) * problem.classes * _tied_loss(gram[0], 1 / problem.temperature)
    return Prediction(
        name="code",
        loss=loss,
        logits=gram.copy(),
        bias=np.zeros(problem.classes),
        gram_w=gram,
        gram_h=gram.copy(),
        singular_values=np.linalg.svd(gram, compute_uv=False) * math.sqrt(problem.count_vector[0]),
        status=EVIDENCE,
        assumptions=("balanced classes", "unit rows", RELABEL, f"compared with searches up to {compared} classes"),
        reference="alcala2026" if name == "cross-polytope" else "jiang2023",
        details=details | {"code": name, "self_dual": True, "min_angle": math.degrees(math.acos(1 - margin[0]))},
    )


def _tied_loss(cosines: np.ndarray, scale: float) -> float:
    """log sum_j exp(scale (cos_j - 1)) without losing a tiny loss to rounding: the target's term is exactly 1."""
    rest = np.sort(cosines)[:-1]
    return math.log1p(float(np.sum(np.exp(scale * (rest - 1)))))


def rank_limited(problem: Problem) -> Prediction:
    """Predict balanced cross-entropy with a ridge and d < K-1: a scaled polygon (d = 2) or cross-polytope (K = 2d).

    Z = r C with the code's Gram C, r = argmin logsumexp(r (C_1j - 1)) + s K r. Multistart evidence only, up to the sizes of
    `CHECKED`: polygons of more than 13 classes are not optimal at every penalty. The zero solution at
    K sqrt(n lambda_w lambda_h) >= 1 is a theorem at any d.
    """
    if not single_layer(problem, ("ce",)) or problem.dim >= problem.classes - 1:
        return not_applicable("")
    reduced, K = reduce(problem), problem.classes
    if not reduced.uniform:
        return not_applicable("")
    refusal = obstacle(problem, weights=True)
    if refusal is not None:
        return refusal
    weight = float(reduced.mass[0]) * K
    s = problem.penalty * math.sqrt(reduced.counts[0]) / weight
    if K * s < 1 and (unsupported := _unsupported(problem)):
        return not_applicable(unsupported)
    name, gram = ("zero", np.eye(K)) if K * s >= 1 else code_gram(K, problem.dim)
    r = 0.0 if name == "zero" else _scale(gram[0], K * s)
    return Prediction(
        name="zero" if name == "zero" else "code",
        loss=weight * (_tied_loss(gram[0], r) + K * s * r if r else math.log(K)),
        logits=r * gram,
        bias=np.zeros(K),
        status=EVIDENCE if r else DERIVED,
        assumptions=("balanced classes", "no bias", RELABEL, CHECKED[name]) if r else ("balanced classes",),
        reference="jiang2023",
        zero=r == 0,
        thresholds={"zero": K * s},
        details={"r": r, "code": name, "s": s},
        **factors(reduced, r * gram),
    )


def _unsupported(problem: Problem) -> str:
    """Return why no pattern of a narrow ridge problem is predicted, or ""."""
    K, d = problem.classes, problem.dim
    start = f"no theorem is known for cross-entropy with d = {d} < K-1 = {K - 1}; "
    known = code_gram(K, d)
    if known is None or known[0] not in CHECKED or problem.bias != "none":
        return start + "only d = 2 and K = 2d without bias have a supported pattern, and the certificate is a lower bound only"
    if known[0] == "polygon" and K > LARGEST_POLYGON:
        return (
            start + f"the regular polygon is supported up to K = {LARGEST_POLYGON}; from there on less regular codes can be lower"
        )
    if known[0] == "cross-polytope" and d > LARGEST_CROSS_POLYTOPE:
        return start + f"the cross-polytope was compared with searches up to d = {LARGEST_CROSS_POLYTOPE} only"
    return ""


def _scale(cosines: np.ndarray, price: float) -> float:
    """Return argmin over r of logsumexp(r (cos_j - 1)) + price r, the root of a decreasing softmax average."""
    from scipy.optimize import brentq

    def residual(r: float) -> float:
        weights = np.exp(r * (cosines - 1))
        return float(weights @ (1 - cosines) / weights.sum()) - price

    high = 1.0
    while residual(high) > 0:
        high *= 2
    return brentq(residual, 0.0, high, xtol=1e-15)
