"""Two-layer ReLU networks in the kernel regime: Grams in closed form, the laws of the residual, the edges of the spectrum.

    f(x) = m^(-1/2) sum_r a_r max(w_r . x, 0),   w_r ~ N(0, I), E a_r = 0, E a_r^2 = 1,   L = 1/2 sum_i (f(x_i) - y_i)^2

With the rates eta_w of the hidden and eta_a of the output layer the residual r = f - y obeys r' = -H r, where H is the
tangent kernel of the network; as m -> infinity it stays at eta_w H_w + eta_a H_a, arc-cosine kernels of order 0 and 1
(Cho & Saul 2009). Time is that of the summed loss; under the mean loss everything is n times slower. Imports no torch.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ufm.errors import RequestError
from ufm.prediction import DERIVED, EVIDENCE, STATED

LAYERS = ("both", "hidden", "output")
DATA = ("sphere", "gaussian")


class Statement(NamedTuple):
    """One thing theory says here: the sentence, how far it is proven, whose it is."""

    text: str
    status: str
    reference: str


STATEMENTS = {
    "kernels": Statement("H_w and H_a are arc-cosine kernels of order 0 and 1", STATED, "cho2009"),
    "flow": Statement("as the width grows, r(t) = exp(-H t) r(0) at every time", STATED, "jacot2018"),
    "descent": Statement(
        "as the width grows, descent of step h follows (I - h H)^k, and needs h < 2/lambda_max", DERIVED, "derived"
    ),
    "width": Statement("the distance to the law falls as m^(-1/2)", EVIDENCE, "derived"),
    "edges": Statement("lambda_min and lambda_max of H as if harmonics of unlike degrees were free", DERIVED, "derived"),
    "narrow": Statement("the loss reaches zero far below the width that keeps the kernel still", EVIDENCE, "razborov2022"),
}


class Rates(NamedTuple):
    """Learning rates of the two layers; 0: not trained."""

    hidden: float = 1.0
    output: float = 1.0


def rates_of(layers: str, output_rate: float = 1.0) -> Rates:
    """Return the rates of `layers` ("both", "hidden" or "output"); the hidden layer's rate is the unit of time."""
    if layers not in LAYERS:
        raise RequestError(f"layers {layers!r} is not known; use one of {', '.join(LAYERS)}")
    return Rates(float(layers != "output"), 0.0 if layers == "hidden" else output_rate)


# --- Grams ------------------------------------------------------------------------------------------------------------


def order_0(angles: np.ndarray) -> np.ndarray:
    """Return P(w.x > 0, w.x' > 0) = (pi - theta) / (2 pi) of Gaussian w, in [0, 1/2]: half of Cho & Saul's kernel of order 0."""
    return (math.pi - angles) / (2 * math.pi)


def order_1(angles: np.ndarray) -> np.ndarray:
    """Return E[max(w.x, 0) max(w.x', 0)] = (sin theta + (pi - theta) cos theta) / (2 pi) of unit x, x', in [0, 1/2]."""
    return (np.sin(angles) + (math.pi - angles) * np.cos(angles)) / (2 * math.pi)


def angles(x: np.ndarray) -> np.ndarray:
    """Return the angles (n, n) between the rows of x (n, d), in [0, pi].

    2 atan2(|u - v|, |u + v|) of unit u, v, whose error is that of rounding at every angle; an arc cosine of u.v has its square
    root near 0, which an eigenvalue at zero (two equal inputs) would show.
    """
    norms = np.linalg.norm(x, axis=1, keepdims=True)
    if not (norms > 0).all():
        raise RequestError("an input is zero: it has no angle to the others; leave it out")
    unit = x / norms
    apart, along = (np.linalg.norm(unit[:, None] + sign * unit[None], axis=2) for sign in (-1.0, 1.0))
    return 2 * np.arctan2(apart, along)


def gram(x: np.ndarray, rates: Rates = Rates()) -> np.ndarray:  # noqa: B008 (a NamedTuple never changes)
    """Return H = eta_w H_w + eta_a H_a (n, n) of the rows of x (n, d), at infinite width.

    H_w = (x.x') (pi - theta)/(2 pi) is trained through w, H_a = |x||x'| (sin theta + (pi - theta) cos theta)/(2 pi) through a.

    >>> gram(np.eye(2)).round(4).tolist()
    [[1.0, 0.1592], [0.1592, 1.0]]
    """
    return grams(x, rates)[0]


def grams(x: np.ndarray, rates: Rates = Rates()) -> tuple[np.ndarray, np.ndarray]:  # noqa: B008
    """Return H (n, n), and a wrong kernel for controls: H with order 1 of the arc-cosine kernel in place of 0, and 0 of 1."""
    x = np.asarray(x, dtype=np.float64)
    theta = angles(x)
    norms = np.linalg.norm(x, axis=1)
    zero, one, sizes = order_0(theta), order_1(theta), np.outer(norms, norms)
    found = [sizes * (rates.hidden * np.cos(theta) * a + rates.output * b) for a, b in ((zero, one), (one, zero))]
    return found[0], found[1]


# --- the residual over time ---------------------------------------------------------------------------------------------


def flow_residual(kernel: np.ndarray, start: np.ndarray, t: float) -> np.ndarray:
    """Return exp(-H t) r(0), the residual of gradient flow at time t."""
    values, basis = np.linalg.eigh(kernel)
    return basis @ (np.exp(-values * t) * (basis.T @ start))


def descent_residual(kernel: np.ndarray, start: np.ndarray, step: float, number: int) -> np.ndarray:
    """Return (I - h H)^k r(0), the residual of `number` = k steps of gradient descent of size `step` = h."""
    values, basis = np.linalg.eigh(kernel)
    return basis @ ((1 - step * values) ** number * (basis.T @ start))


# --- the edges of the spectrum ------------------------------------------------------------------------------------------

LEAST_DIM = {"sphere": 10, "gaussian": 20}  # below it the two closest or the shortest inputs decide, not the bulk
LEAST_SAMPLES = {"sphere": 20, "gaussian": 40}
NODES = 400  # of Gauss and Legendre; the integrands are analytic in the angle
MOST_DEGREE = 60
ENOUGH = 1e4  # functions of one degree for every sample: their Gram is the identity to 2 %
QUANTILES = 32


class Edges(NamedTuple):
    """The predicted ends of the spectrum of H, or why there is no prediction (`reason`).

    linear: lambda_min of the linearised kernel (El Karoui 2010), which holds for n < d only.
    """

    lowest: float
    highest: float
    linear: float
    reason: str = ""


def harmonics(dim: int, rates: Rates, samples: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Return (b, N, rest): H on the unit sphere is sum_j b_j P_j(x.x') with N_j spherical harmonics of degree j.

    P_j are Gegenbauer's polynomials with P_j(1) = 1; `rest` is the sum of the b_j left out, whose Gram is the identity.
    """
    half = min(math.pi / 2, 14 / math.sqrt(dim))  # the weight sin^(d-2) is zero to rounding outside
    nodes, weights = np.polynomial.legendre.leggauss(NODES)
    theta = math.pi / 2 + half * nodes
    weights = weights * np.exp((dim - 2) * np.log(np.sin(theta)))
    weights /= weights.sum()
    kernel = rates.hidden * np.cos(theta) * order_0(theta) + rates.output * order_1(theta)
    before, here = np.ones_like(theta), np.cos(theta)
    found, sizes = [float(weights @ kernel)], [1.0]
    for degree in range(1, MOST_DEGREE):
        size = _number_of_harmonics(degree, dim)
        if degree > 1 and size > ENOUGH * samples:  # the bulk is never empty
            break
        found.append(size * float(weights @ (kernel * here)))
        sizes.append(size)
        later = ((2 * degree + dim - 2) * np.cos(theta) * here - degree * before) / (degree + dim - 2)
        before, here = here, later
    b = np.array(found)
    b[3::2] = 0.0  # exactly, for ReLU: its part of odd degree is linear
    return b, np.array(sizes), 0.5 * (rates.hidden + rates.output) - float(b.sum())


def _number_of_harmonics(degree: int, dim: int) -> float:
    log = math.lgamma(degree + dim - 2) - math.lgamma(degree + 1) - math.lgamma(dim - 1)
    return (2 * degree + dim - 2) * math.exp(min(log, 600.0))


@functools.cache
def edges(samples: int, dim: int, rates: Rates = Rates(), data: str = "sphere") -> Edges:  # noqa: B008
    """Return the predicted smallest and largest eigenvalue of H for n random inputs in d dimensions.

    The Gram of the harmonics of degree j is b_j times a Marchenko-Pastur matrix of ratio n/N_j. Taken as free of each other
    (proven only as n, d -> infinity), their sum has its Stieltjes transform -tau at x = R(tau) - 1/tau with
    R(tau) = rest + sum_j b_j / (1 + n b_j tau / N_j), so that lambda_min = max over tau > 0. lambda_max is the outlier of
    degree 0, at tau = -1/(n b_0), or the upper edge. Inputs of unlike norms s_i: mean of s_i^2 / (s_i^2 R - x) = tau.

    Args:
        samples: n >= 2. dim: d. rates: of the two layers.
        data: "sphere" (|x| = 1) or "gaussian" (x ~ N(0, I/d)).
    """
    norms = _squared_norms(dim, data)
    reason = _outside(samples, dim, data)
    if reason:
        return Edges(math.nan, math.nan, math.nan, reason)
    b, sizes, rest = harmonics(dim, rates, samples)
    ratio = samples / sizes
    total = 0.5 * (rates.hidden + rates.output)
    slope, constant = 0.25 * (rates.hidden + rates.output), rates.output / (2 * math.pi)
    linear = total - constant - slope + slope * max(1 - math.sqrt(samples / dim), 0.0) ** 2

    def place(log: np.ndarray) -> np.ndarray:
        return _place(10.0**log, _transform(10.0**log, b, ratio, rest), norms)

    return Edges(_highest(place, -8.0, 14.0)[1], _upper(samples, b, ratio, rest, norms), linear)


def _outside(samples: int, dim: int, data: str) -> str:
    """Return why the formula does not apply, or ""; the range is where draws agree with it."""
    if samples < LEAST_SAMPLES[data]:
        return f"{samples} samples make no bulk; {data} data need at least {LEAST_SAMPLES[data]}"
    if dim < LEAST_DIM[data]:
        return f"in {dim} dimensions single inputs decide, not the bulk; {data} data need at least {LEAST_DIM[data]}"
    if samples > dim**2:
        return f"{samples} samples are over dim^2 = {dim**2}: the quadratic harmonics are too few"
    return ""


def _squared_norms(dim: int, data: str) -> np.ndarray:
    if data not in DATA:
        raise RequestError(f"data {data!r} is not known; use one of {', '.join(DATA)}")
    if data == "sphere":
        return np.ones(1)
    from scipy.stats import chi2

    return chi2.ppf((np.arange(QUANTILES) + 0.5) / QUANTILES, dim) / dim


def _transform(tau: np.ndarray, b: np.ndarray, ratio: np.ndarray, rest: float) -> np.ndarray:
    return rest + (b / (1 + ratio * b * tau[:, None])).sum(1)


def _place(tau: np.ndarray, level: np.ndarray, norms: np.ndarray) -> np.ndarray:
    """Return x with mean_i s_i/(s_i R - x) = tau, s = squared norms: below all s_i R for tau > 0, above them for tau < 0."""
    poles = norms * level[:, None]
    ends = poles - norms / tau[:, None]  # the roots of each term alone; the mean's lies between them
    low, high = ends.min(1), ends.max(1)
    if len(norms) == 1:
        return low
    low, high = (low, np.minimum(high, poles.min(1))) if tau[0] > 0 else (np.maximum(low, poles.max(1)), high)
    for _ in range(50):
        middle = 0.5 * (low + high)
        above = (norms / (poles - middle[:, None])).mean(1) > tau  # the mean rises with x on either side
        high, low = np.where(above, middle, high), np.where(above, low, middle)
    return 0.5 * (low + high)


def _highest(function: Callable[[np.ndarray], np.ndarray], low: float, high: float) -> tuple[float, float]:
    """Return (place, value) of the largest value on [low, high], by ever finer grids."""
    for _ in range(7):
        grid = np.linspace(low, high, 41)
        values = function(grid)
        at = int(np.argmax(values))
        low, high = grid[max(at - 1, 0)], grid[min(at + 1, 40)]
    return float(grid[at]), float(values[at])


def _upper(samples: int, b: np.ndarray, ratio: np.ndarray, rest: float, norms: np.ndarray) -> float:
    """Return the outlier of degree 0 where it leaves the bulk, else the bulk's upper edge."""
    bulk, ratio = b[1:], ratio[1:]
    pole = 1 / float((ratio * bulk).max())

    def below(share: np.ndarray) -> np.ndarray:
        tau = -pole * share
        return -_place(tau, _transform(tau, bulk, ratio, rest), norms)

    edge, value = _highest(below, 1e-4, 1 - 1e-9)
    outlier = 1 / (samples * b[0] * pole)
    return -float(below(np.array([outlier]))[0]) if outlier < edge else -value
