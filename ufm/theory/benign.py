"""When overfitting is benign: two-layer convolutional networks on a signal and a noise patch (Cao et al. 2022, Kou et al. 2023).

n samples, d dimensions, signal of norm mu, noise of deviation sigma in each coordinate, SNR = mu / (sigma sqrt(d)); a share p of
the labels is flipped. Both papers prove a transition in one variable, up to constants that they leave open: n SNR^q for the
activation max(0, z)^q with q > 2, and kappa = n d SNR^4 for ReLU. What is said here beyond that is a leading-order derivation
(in the docstrings), which measurements support and no theorem covers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ufm.errors import RequestError
from ufm.prediction import EVIDENCE, STATED

BENIGN, HARMFUL, BETWEEN = "benign", "harmful", "between"
LOW, HIGH = 0.3, 10.0  # of either variable: measured to lie outside the transition; the theorems give no constants
BORDER = 2.0  # of n SNR^q, see `power_border`
ASSUMED = ("d large against n", "small step", "trained to a small loss")
FEWEST_FILTERS, DIMS_PER_SAMPLE = 10, 10  # from where on `relu_clean_error` was compared with trained networks


def snr(signal: float, noise: float, dim: float) -> float:
    """Return SNR = |mu| / (sigma sqrt(d))."""
    return signal / (noise * math.sqrt(dim))


def power_variable(samples: float, signal: float, noise: float, dim: float, q: float) -> float:
    """Return n SNR^q, the variable of the transition for max(0, z)^q with q > 2 (Cao et al. 2022, stated there).

    Up to logarithms, test loss is small where it is large and at least a constant where it is small.
    """
    return samples * snr(signal, noise, dim) ** q


def kappa(samples: float, signal: float, noise: float, dim: float) -> float:
    """Return n mu^4 / (sigma^4 d) = n d SNR^4, the variable of the transition for ReLU (Kou et al. 2023, stated there).

    Up to constants the test error is p + exp(-kappa / C) at most where it is large, and above p by a constant where it is small.

    >>> kappa(20, 2.0, 1.0, 320)
    1.0
    """
    return samples * signal**4 / (noise**4 * dim)


def power_border(samples: float, noise: float, dim: float, q: float, level: float = BORDER) -> float:
    """Return the norm of the signal at which n SNR^q is `level`: sigma sqrt(d) (level/n)^(1/q).

    Why 2. From a small start and while all residuals are 1/2, the pre-activation of a filter on the signal grows as
    z' = c |mu|^2 z^(q-1) / 2, since half of the samples carry the signal with each sign, and on its best noise vector as
    z' = c sigma^2 d z^(q-1) / n. From z(0) = sigma_0 |mu| g and sigma_0 sigma sqrt(d) g, g the largest of m normals in both, they
    blow up at the same time when n SNR^q = 2. Which comes first is what is learnt: for finite m the two maxima differ, so that
    the border is 2 for typical starts and random from start to start.
    """
    _in_power_regime(q)
    return noise * math.sqrt(dim) * (level / samples) ** (1 / q)


def kappa_border(samples: float, noise: float, dim: float, level: float = 1.0) -> float:
    """Return the norm of the signal at which kappa is `level`: sigma (level d/n)^(1/4); contours of the error follow d^(1/4)."""
    return noise * (level * dim / samples) ** 0.25


def noisy_error(clean: float, flip: float) -> float:
    """Return p + (1 - 2p) e, the error on flipped labels of a classifier whose error on clean ones is e: an identity."""
    return flip + (1 - 2 * flip) * clean


def relu_clean_error(kappa: float, flip: float) -> float:
    """Return the test error on clean labels of a trained ReLU network, to leading order in n/d and from a small start.

    With nearly orthogonal noise every sample of a class pulls its filters by the same rho xi_i, and a test point's signal adds
    f = rho (n/2)(1 - 2p) mu^2: the flipped samples pull back. Noise adds rho sigma^2 sqrt(n d / 2) (max(0, u) - max(0, v)) with
    independent standard normals u, v, once the filters of a class agree. Hence, with s = (1 - 2p) sqrt(kappa / 2),

        e = P(max(0, v) - max(0, u) > s) = Phi(-s)/2 + int_0^inf phi(u) Phi(-s - u) du.

    It depends on p beyond the factor 1 - 2p of the error on noisy labels: the variable is (1 - 2p)^2 kappa. A larger start and
    fewer filters change e (measured: by up to .07); its being a function of kappa alone they leave.
    """
    from scipy.integrate import quad
    from scipy.special import ndtr

    if not (kappa >= 0 and 0 <= flip < 0.5):
        raise RequestError(f"kappa {kappa!r} and flip {flip!r} must be >= 0, flip below .5; see `kappa`")
    s = (1 - 2 * flip) * math.sqrt(kappa / 2)
    rest, _ = quad(lambda u: math.exp(-u * u / 2) / math.sqrt(2 * math.pi) * float(ndtr(-s - u)), 0, 12)
    return float(ndtr(-s)) / 2 + rest


def _in_power_regime(q: float) -> None:
    if not q > 2:
        raise RequestError(f"q {q!r} must be > 2: the transition in n SNR^q is proven for these; ReLU (q = 1) has kappa")


@dataclass(frozen=True)
class Regime:
    """What theory says of one setting: the variable of its transition, and on which side of it the setting lies."""

    variable_name: str = ""
    variable: float | None = None
    border: float | None = None  # of the variable, where one is derived
    side: str = ""  # "benign", "harmful" or "between"
    applies: bool = True
    reason: str = ""
    clean_error: float | None = None  # where the leading-order law was compared with networks
    status: str = STATED
    reference: str = ""
    assumptions: tuple[str, ...] = ()


def regime(
    *, samples: int, dim: int, signal: float, noise: float, q: float, flip: float, filters: int, start: float, orthogonal: bool
) -> Regime:
    """Return what is known of a setting.

    Args:
        samples, dim, signal, noise, q, flip, filters: n, d, |mu|, sigma, q, p, m.
        start: typical pre-activation of a noise patch at the start, relative to trained ones: sigma_0 sigma sqrt(d) a m.
        orthogonal: whether the noise is orthogonal to the signal.
    """
    if q > 2 and flip == 0:
        value = power_variable(samples, signal, noise, dim, q)
        assumed = (
            "d large against n",
            "small start and step",
            "trained to a small loss",
            "the border is a derivation, not a theorem",
        )
        assumed += () if orthogonal else ("noise orthogonal to the signal in the theorem",)
        return Regime("n SNR^q", value, BORDER, _side(value), reference="cao2022", assumptions=assumed)
    if q == 1:
        value = kappa(samples, signal, noise, dim)
        known = filters >= FEWEST_FILTERS and dim >= DIMS_PER_SAMPLE * samples and start <= 1
        assumed = (*ASSUMED, "constants are not in the theorem")
        return Regime(
            variable_name="kappa",
            variable=value,
            side=_side(value),
            clean_error=relu_clean_error(value, flip) if known else None,
            status=EVIDENCE if known else STATED,
            reference="kou2023",
            assumptions=assumed,
        )
    what = "flipped labels with q > 2" if q > 2 else f"1 < q <= 2 (q = {q:g})"
    return Regime(applies=False, reason=f"no theorem is known for {what}; use --q 1, or --q 3 with --flip 0")


def _side(value: float) -> str:
    return HARMFUL if value <= LOW else BENIGN if value >= HIGH else BETWEEN
