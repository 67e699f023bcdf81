"""What theory says of TEST collapse. The unconstrained-features model itself says nothing of test features; these results do.

Throughout, NC1 is `nc1_pinv` (Tr(Sigma_W Sigma_B^+)/K) with train means and train between-class scatter unless said, err is the
error of the nearest train mean on test, err_B the same in the metric Sigma_B^+, and K the number of classes.

All results that speak of err need K affinely independent train means (rank K-1): then |mu_i - mu_j|^2 = 2K in that metric.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ufm.errors import RequestError

SPAN = 12.0  # standard deviations kept on either side: the Gaussian weight beyond is 1e-33
NODES = 4001  # of the trapezoid rule, which converges geometrically for an analytic integrand that vanishes at both ends


def _classes(classes: int) -> int:
    if isinstance(classes, bool) or int(classes) != classes or classes < 2:
        raise RequestError(f"classes {classes!r} is out of range; give an integer >= 2")
    return int(classes)


def _share(name: str, value: Any) -> np.ndarray:
    x = np.asarray(value, dtype=np.float64)
    if not np.all((x >= 0) & (x <= 1) | np.isnan(x)):
        raise RequestError(f"{name} must lie in [0, 1]; give a share of errors, not a percentage")
    return x


# --- bounds and lines in the (err, NC1) plane ------------------------------------------------------------------------


def floor(error_between: Any) -> np.ndarray:
    """Return the universal floor of test collapse, NC1_test >= err_B / 2 (rank K-1; any distribution, any priors).

    A point whose nearest train mean is not its own class's is at least half the distance of two means away, and
    |mu_i - mu_j|_B^2 = 2K: it adds at least 2K/4 to K NC1. Equivalently err_B <= 2 NC1_test.

    >>> float(floor(0.02))
    0.01
    """
    return _share("error_between", error_between) / 2


def weak_collapse(error: Any) -> np.ndarray:
    """Return NC1_test = 2 err: its value when every test point sits on some train mean, whatever the confusion (rank K-1)."""
    return 2 * _share("error", error)


def weak_collapse_interval(errors: int, samples: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the interval of the line 2 err from a test sample: Clopper and Pearson's for `errors` of `samples`, doubled.

    Ten errors among 800 test points leave the line uncertain by half its value either way.
    """
    from scipy import stats

    if not 0 <= errors <= samples or samples < 1:
        raise RequestError(f"{errors} errors of {samples} samples is not a share; give 0 <= errors <= samples")
    interval = stats.binomtest(int(errors), int(samples)).proportion_ci(confidence, method="exact")
    return 2 * float(interval.low), 2 * float(interval.high)


def weak_collapse_own_means(error: Any, classes: int) -> np.ndarray:
    """Return NC1 with the TEST split's own means when every point sits on some train mean and confusion is symmetric.

    Test means shrink to a mu_k with a = 1 - err K/(K-1), so NC1 = (1 - a^2)/a^2 (K-1)/K; infinite at chance level (a = 0).
    """
    K = _classes(classes)
    a = 1 - _share("error", error) * K / (K - 1)
    with np.errstate(divide="ignore"):
        return (1 - a**2) / a**2 * (K - 1) / K


def gaussian_etf_error(nc1: Any, classes: int) -> np.ndarray:
    """Return err for isotropic Gaussian noise around a simplex ETF of K means: the law of "Gaussian test features".

    err = 1 - int phi(z - A) Phi(z)^(K-1) dz with A = sqrt((K-1)/NC1): the mean distance in noise deviations of an orthogonal
    frame. Computed as int phi(z - A) (1 - Phi(z)^(K-1)) dz, which keeps its digits where err is 1e-30.

    Args:
        nc1: NC1 > 0 about the true means, any shape. classes: K >= 2.
    """
    from scipy.integrate import trapezoid
    from scipy.special import log_ndtr

    K = _classes(classes)
    x = np.asarray(nc1, dtype=np.float64)
    if np.any(x < 0):
        raise RequestError("nc1 must not be negative; give Tr(Sigma_W Sigma_B^+)/K")
    with np.errstate(divide="ignore"):
        A = np.sqrt((K - 1) / x)[..., None]
    A = np.minimum(A, 76.0)  # beyond, the error is below the smallest double
    # The integrand peaks between the crossing of the two normal densities, A/2, and A.
    z = np.linspace(0.0, 1.0, NODES) * (A / 2 + 2 * SPAN) + A / 2 - SPAN
    logs = -0.5 * (z - A) ** 2 - 0.5 * math.log(2 * math.pi)
    integrand = np.exp(logs) * -np.expm1((K - 1) * log_ndtr(z))
    return np.where(np.isnan(x), np.nan, trapezoid(integrand, z, axis=-1))[()]


def gaussian_etf_nc1(error: float, classes: int) -> float:
    """Return the NC1 at which isotropic Gaussian noise on an ETF errs with probability `error` in (0, (K-1)/K)."""
    from scipy.optimize import brentq

    K = _classes(classes)
    if not 0 < error < (K - 1) / K:
        raise RequestError(f"error {error} is outside (0, {(K - 1) / K:g}), the range from perfect to chance for {K} classes")
    return math.exp(
        brentq(lambda t: float(gaussian_etf_error(math.exp(t), K)) - error, math.log(1e-3), math.log(1e12), xtol=1e-12)
    )


# --- the error that the moments predict ------------------------------------------------------------------------------


# Of one orthant. At ten classes the mean over classes is then right to 3e-6 in .05 s a class; scipy's own million per dimension
# takes a minute a network that is not collapsed, for digits that no test sample can show.
ORTHANT_POINTS = 100_000


@dataclass(frozen=True)
class MomentError:
    """The nearest-class-mean error that class moments predict; arrays (K,) by true class, floats averaged by prior.

    `gaussian` assumes Gaussian test features; `union` bounds it from above (sum over pairs, also Gaussian); `cantelli` bounds the
    error of any distribution with these moments. What the measured error differs by from `gaussian` is non-Gaussianity.
    """

    gaussian: float
    union: float
    cantelli: float
    by_class: np.ndarray


def moment_error(train_means: Any, test_means: Any, test_covariances: Any, priors: Any = None) -> MomentError:
    """Return the error of the nearest train mean for test features of given class means and covariances.

    A feature of class j is right iff delta_ji^T (h - mid_ji) > 0 for all i != j, with delta_ji = mu_j - mu_i and mid_ji their
    midpoint: a (K-1)-dimensional orthant with means delta_ji^T (m_j - mid_ji) and covariance delta_ji^T Sigma_j delta_jk.

    Args:
        train_means: mu (K, d), the means that decide. test_means: m (K, d). test_covariances: Sigma (K, d, d), or (d, d) for all.
        priors: (K,) weights of the classes; None: equal.
    """
    mu, m = np.asarray(train_means, dtype=np.float64), np.asarray(test_means, dtype=np.float64)
    if mu.ndim != 2 or mu.shape != m.shape or len(mu) < 2:
        raise RequestError(f"train_means {mu.shape} and test_means {m.shape} must both be (K, d) with K >= 2")
    K, d = mu.shape
    covariances = np.broadcast_to(np.asarray(test_covariances, dtype=np.float64), (K, d, d))
    weights = np.full(K, 1 / K) if priors is None else np.asarray(priors, dtype=np.float64) / np.sum(priors)
    rows = np.array([_class_error(mu, m[j], covariances[j], j) for j in range(K)])
    gaussian, union, cantelli = weights @ rows
    return MomentError(float(gaussian), float(union), float(cantelli), rows[:, 0])


def _class_error(mu: np.ndarray, mean: np.ndarray, covariance: np.ndarray, j: int) -> tuple[float, float, float]:
    """Return (orthant, union bound, Cantelli's bound) for one true class."""
    from scipy import stats
    from scipy.special import ndtr

    delta = np.delete(mu[j] - mu, j, axis=0)  # (K-1, d)
    middle = np.delete((mu[j] + mu) / 2, j, axis=0)
    margin = np.einsum("id,id->i", delta, mean - middle)
    spread = delta @ covariance @ delta.T
    deviation = np.sqrt(np.maximum(np.diag(spread), 0))
    with np.errstate(divide="ignore", invalid="ignore"):
        distance = np.where(deviation > 0, margin / deviation, np.where(margin > 0, np.inf, -np.inf))
    union = float(min(1.0, ndtr(-distance).sum()))
    cantelli = float(min(1.0, np.where(distance > 0, 1 / (1 + np.maximum(distance, 0) ** 2), 1.0).sum()))
    live = deviation > 0  # a margin without variance is decided
    if not np.all(margin[~live] > 0):
        return 1.0, union, cantelli
    if not live.any():
        return 0.0, union, cantelli
    correlation = spread[np.ix_(live, live)] / np.outer(deviation[live], deviation[live])
    # A seed, because the integral is a randomised quasi-Monte-Carlo sum (absolute error some 1e-5).
    normal = stats.multivariate_normal(np.zeros(int(live.sum())), correlation, allow_singular=True, seed=0, maxpts=ORTHANT_POINTS)
    orthant = 1 - float(normal.cdf(distance[live]))
    return float(np.clip(orthant, float(np.max(ndtr(-distance))), union)), union, cantelli


@dataclass(frozen=True)
class FewShotError:
    """Error of the nearest mean of m shots for two classes: `gaussian` margin, and bounds on it that order as listed."""

    gaussian: float  # Phi(-mean/sd) of the margin
    cantelli: float  # 1/(1 + mean^2/variance): any margin with these two moments
    directional: float  # m -> infinity, equal traces: 4 V/(1 + 4 V), V = d^T S_a d/|d|^4, the directional CDNV
    cdnv: float  # the same with Tr S_a/|d|^2 in place of V (larger, since d^T S d <= Tr S |d|^2)


def few_shot_error(difference: Any, covariance_a: Any, covariance_b: Any, shots: int) -> FewShotError:
    """Return the error of classifying a sample of class a by the nearer of two means of m shots each.

    The margin (|x - b^|^2 - |x - a^|^2)/2 has mean .5|d|^2 + .5 (Tr S_b - Tr S_a)/m and, for Gaussian features, variance
    d^T S_a d + d^T S_b d/m + Tr(S_a S_b)/m + Tr(S_a^2)/m + .5 (Tr S_a^2 + Tr S_b^2)/m^2.

    Args:
        difference: d = mu_a - mu_b (d,). covariance_a, covariance_b: (d, d). shots: m >= 1 per class.
    """
    from scipy.special import ndtr

    d = np.asarray(difference, dtype=np.float64)
    a, b = np.asarray(covariance_a, dtype=np.float64), np.asarray(covariance_b, dtype=np.float64)
    if d.ndim != 1 or a.shape != (len(d), len(d)) or b.shape != a.shape or shots < 1:
        raise RequestError(
            f"few_shot_error needs d (d,), two (d, d) covariances and shots >= 1; got {d.shape}, {a.shape}, {b.shape}, {shots}"
        )
    m, size = float(shots), float(d @ d)
    mean = 0.5 * size + 0.5 * (np.trace(b) - np.trace(a)) / m
    variance = float(d @ a @ d + (d @ b @ d + np.sum(a * b) + np.sum(a * a)) / m + 0.5 * (np.sum(a * a) + np.sum(b * b)) / m**2)
    along, whole = 4 * float(d @ a @ d) / size**2, 4 * float(np.trace(a)) / size
    cantelli = variance / (variance + mean**2) if mean > 0 else 1.0
    gaussian = float(ndtr(-mean / math.sqrt(variance))) if variance > 0 else float(mean <= 0)
    return FewShotError(gaussian, cantelli, along / (1 + along), whole / (1 + whole))


def few_shot_cdnv_bound(cdnv: Any, shots: int) -> np.ndarray:
    """Return 4 V (1 + 1/m), at most 1: a bound on the m-shot error of two classes for any distribution; derived.

    With x = mu_a + e and shot means mu_a + u, mu_b + v, class b is chosen only if |e - u| >= |e + d - v| >= |d| - |e - v|, and
    then 2 (|e - u|^2 + |e - v|^2) >= |d|^2. By Markov's inequality that has a chance of at most 2 (2 Tr S_a + (Tr S_a +
    Tr S_b)/m)/|d|^2; the mean over the two directions is 4 V (1 + 1/m), V = (Tr S_a + Tr S_b)/(2 |d|^2). It is linear in V: of
    the mean of V over pairs it bounds the mean error over ordered pairs. (The form of Galanti's bounds, with derived constants.)

    Args:
        cdnv: V >= 0, any shape. shots: m >= 1 per class.
    """
    V, m = np.asarray(cdnv, dtype=np.float64), _shots(shots)
    if np.any(V < 0):
        raise RequestError("cdnv must not be negative; give (v_a + v_b)/(2 |mu_a - mu_b|^2)")
    return np.minimum(4 * V * (1 + 1 / m), 1.0)


def few_shot_directional_bound(difference: Any, covariance_a: Any, covariance_b: Any, shots: int) -> float:
    """Return a bound on the m-shot error of class a against b for any distribution with these moments; derived.

    The margin is at least |d|^2/2 + S - |u|^2/2 with S = d^T e - d^T v + e^T (u - v), three uncorrelated terms of mean 0 and
    variance s^2 = d^T S_a d + d^T S_b d/m + (Tr S_a^2 + Tr S_a S_b)/m. It is negative only if S <= -t or |u|^2 >= |d|^2 - 2 t: by
    Cantelli's and Markov's inequalities at most s^2/(s^2 + t^2) + (Tr S_a/m)/(|d|^2 - 2 t), here at the best of 200 values of t.
    As m grows it is the directional CDNV alone that counts (Luthra), 4 D/(1 + 4 D) with D = d^T S_a d/|d|^4.

    Args:
        difference: d = mu_a - mu_b (d,). covariance_a, covariance_b: (d, d). shots: m >= 1 per class.
    """
    d, a, b = _pair_moments(difference, covariance_a, covariance_b)
    m, size = _shots(shots), float(d @ d)
    if size == 0:
        return 1.0
    variance = float(d @ a @ d + (d @ b @ d + np.sum(a * a) + np.sum(a * b)) / m)
    t = size / 2 * np.linspace(0, 1, 202)[1:-1]
    tail = variance / (variance + t**2) + np.trace(a) / m / (size - 2 * t)
    return float(min(1.0, tail.min()))


def _shots(shots: int) -> int:
    if isinstance(shots, bool) or int(shots) != shots or shots < 1:
        raise RequestError(f"shots {shots!r} is out of range; give an integer >= 1")
    return int(shots)


def _pair_moments(difference: Any, covariance_a: Any, covariance_b: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    d, a, b = (np.asarray(x, dtype=np.float64) for x in (difference, covariance_a, covariance_b))
    if d.ndim != 1 or a.shape != (len(d), len(d)) or b.shape != a.shape:
        raise RequestError(f"a pair of classes needs d (d,) and two (d, d) covariances; got {d.shape}, {a.shape}, {b.shape}")
    return d, a, b


# --- exact train collapse without test collapse ------------------------------------------------------------------------


@dataclass(frozen=True)
class Interpolation:
    """Test NC1 of features that interpolate train exactly (train NC1 = 0), against the sample size."""

    own_means: float
    train_means: float
    error: float  # of the nearest train mean, by the Gaussian curve
    valid: bool  # N/d <= .25 and n_c s^2 not much below d sigma^2: then good to a few per cent
    reason: str


def interpolation(per_class: int, dim: int, classes: int, noise: float, signal: float = 1.0) -> Interpolation:
    """Return the theory curve "test NC1 against n" of the interpolating regime.

    x = s e_y + sigma N(0, I_d); the features are the minimum-norm linear map that sends every train point to its class's optimal
    feature: train NC1 is exactly 0, and with t = n_c s^2 / (d sigma^2) and N = K n_c < d

    own means:   (K-1) (sigma^2/s^2) (1 + 1/t) d/(d-N)
    train means: (K-1) tau^2 + (1-a)^2 (K-1)/K, a = t/(1+t),
                 tau^2 = (n_c^2 s^2 sigma^2 + n_c d sigma^4)/(s^2 n_c + d sigma^2)^2 d/(d-N)

    The factor d/(d-N), the price of inverting a nearly square matrix, belongs to the noise in both. It diverges at N = d
    (double descent); beyond there is no interpolation.
    """
    K, n, d, sigma, s = _classes(classes), int(per_class), int(dim), float(noise), float(signal)
    if n < 1 or d < 1 or sigma <= 0 or s <= 0:
        raise RequestError(f"interpolation needs per_class, dim >= 1 and noise, signal > 0; got {n}, {d}, {sigma}, {s}")
    N = K * n
    if d <= N:
        reason = f"N = {N} >= d = {d}: no interpolation there; simulate, or use ridge regression"
        return Interpolation(math.nan, math.nan, math.nan, False, reason)
    own = (K - 1) * (sigma / s) ** 2 * (1 + d * sigma**2 / (n * s**2)) * d / (d - N)
    scale = s**2 * n + d * sigma**2
    a = s**2 * n / scale
    tau2 = (n**2 * s**2 * sigma**2 + n * d * sigma**4) / scale**2 * d / (d - N)
    train = (K - 1) * tau2 + (1 - a) ** 2 * (K - 1) / K
    # About the train means a test point is a mu_y + noise of deviation tau: the nearest mean sees an ETF with noise tau/a.
    error = float(gaussian_etf_error(own, K))
    valid = N / d <= 0.25 and n * s**2 >= 0.1 * d * sigma**2
    reason = "" if valid else "N/d > .25 or n_c s^2 << d sigma^2: more than a few per cent off"
    return Interpolation(own, train, error, valid, reason)


# --- the cascade over layers -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cascade:
    """Geometric decay over layers, D_l = D_0 rho^l on train, and on test with a floor that the error fixes."""

    start: float  # D_0
    rho: float  # per layer; < 1: collapse deepens
    pearson: float  # of log D_l on train against l
    floor: float  # 2 err
    train: np.ndarray  # fitted (L,)
    test: np.ndarray  # predicted (L,): D_0 rho^l + 2 err, nothing fitted to test
    test_ratio: float  # geometric mean of measured test / predicted test; 1 where the law holds


def fit_cascade(train: Any, test: Any, error: float) -> Cascade:
    """Fit log D_l = log D_0 + l log rho on train and predict test: D_l^test = D_0 rho^l + 2 err.

    Args:
        train, test: (L,) positive NC1 of layers l = 0 .. L-1, L >= 2 (train: own means; test: train means).
        error: nearest-class-mean error of the last layer on test.
    """
    D, T = np.asarray(train, dtype=np.float64), np.asarray(test, dtype=np.float64)
    if D.ndim != 1 or len(D) < 2 or T.shape != D.shape or not (np.all(D > 0) and np.all(T > 0)):
        raise RequestError("fit_cascade needs positive NC1 of the same two or more layers on train and on test")
    layers = np.arange(len(D))
    slope, offset = np.polyfit(layers, np.log(D), 1)
    fitted = np.exp(offset + slope * layers)
    floor = float(weak_collapse(error))
    predicted = fitted + floor
    constant = np.ptp(np.log(D)) == 0
    pearson = math.nan if constant else float(np.corrcoef(layers, np.log(D))[0, 1])
    return Cascade(
        float(np.exp(offset)),
        float(np.exp(slope)),
        pearson,
        floor,
        fitted,
        predicted,
        float(np.exp(np.mean(np.log(T / predicted)))),
    )
