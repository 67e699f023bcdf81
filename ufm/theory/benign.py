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
# Where `relu_clean_error` was compared with trained networks, and was within .04 of their mean error:
FEWEST_FILTERS, FEWEST_SAMPLES, DIMS_PER_SAMPLE = 10, 20, 10
LARGEST_STEP = 1.0  # lr a sigma^2 d / n: how far one step moves a pre-activation on a noise patch
SHORTEST_TRAINING = 10.0  # steps x LARGEST_STEP's number x a m: the loss is about its inverse
LEAST_KAPPA, LARGEST_FLIP = 0.25, 0.1


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
    return samples * (signal / noise) ** 4 / dim


def power_border(samples: float, noise: float, dim: float, q: float, level: float = BORDER) -> float:
    """Return the norm of the signal at which n SNR^q is `level`: sigma sqrt(d) (level/n)^(1/q).

    Why 2. From a small start and while all residuals are 1/2, the pre-activation of a filter on the signal grows as
    z' = c |mu|^2 z^(q-1) / 2, since half of the samples carry the signal with each sign, and on its best noise vector as
    z' = c sigma^2 d z^(q-1) / n. From z(0) = sigma_0 |mu| g and sigma_0 sigma sqrt(d) g, g the largest of m normals in both, they
    blow up at the same time when n SNR^q = 2. Which comes first is what is learnt. For finite m the two maxima differ: the border
    is random from start to start, and 2 holds to order of magnitude alone. Measured at q = 3, m = 10, d = 80 n (geometric mean):
    1.3 to 1.5.
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

    It depends on p beyond the factor 1 - 2p of the error on noisy labels: the variable is (1 - 2p)^2 kappa. At kappa = 0 a test
    point's label is unknown to the network and e = 1/2; the formula's limit is 3/8, since it leaves out what breaks the tie
    max(0, u) = max(0, v) = 0. Networks follow 1/2 at small kappa (measured: .36 at .05), so that `regime` gives it from 1/4 on.

    The step has to be small as well: after a long one the filters differ, and the error is a function of kappa, of the step and
    of d/n (measured at kappa 1/4, 1 and 4 with lr a sigma^2 d/n of 8 to 128: .35, .23 and .08; with at most 1, d = 80 n: .28, .18
    and .08; d = 320 n: .28, .17, .06 to .07; the law: .283, .202 and .087).
    """
    from scipy.integrate import quad
    from scipy.special import ndtr

    if not (kappa >= 0 and 0 <= flip < 0.5):
        raise RequestError(f"kappa {kappa!r} and flip {flip!r} must be >= 0, flip below .5; see `kappa`")
    if kappa == 0:
        return 0.5
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
    *,
    samples: int,
    dim: int,
    signal: float,
    noise: float,
    q: float,
    flip: float,
    filters: int,
    start: float,
    orthogonal: bool,
    lr: float,
    steps: int,
    output: float,
) -> Regime:
    """Return what is known of a setting.

    Args:
        samples, dim, signal, noise, q, flip, filters: n, d, |mu|, sigma, q, p, m.
        start: typical pre-activation of a noise patch at the start, relative to trained ones: sigma_0 sigma sqrt(d) a m.
        orthogonal: whether the noise is orthogonal to the signal.
        lr, steps: step size and number of steps of gradient descent.
        output: a, the weight of each filter.

    The error is given for ReLU where it was compared with networks; `reason` says what is missing where it is not.
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
        step = lr * output * noise**2 * dim / samples
        trained = step * steps * output * filters
        missing = "" if value == 0 else _uncompared(samples, dim, filters, start, step, trained, value, flip)
        assumed = (*ASSUMED, "constants are not in the theorem")
        return Regime(
            variable_name="kappa",
            variable=value,
            side=_side(value),
            clean_error=None if missing else relu_clean_error(value, flip),
            status=STATED if missing else EVIDENCE,
            reason=missing,
            reference="kou2023",
            assumptions=assumed,
        )
    what = "flipped labels with q > 2" if q > 2 else f"1 < q <= 2 (q = {q:g})"
    return Regime(applies=False, reason=f"no theorem is known for {what}; use --q 1, or --q 3 with --flip 0")


def _uncompared(
    samples: int, dim: int, filters: int, start: float, step: float, trained: float, value: float, flip: float
) -> str:
    """Return why `relu_clean_error` is not given, "" where it is."""
    rules = (
        (filters >= FEWEST_FILTERS, f"{filters} filters, below {FEWEST_FILTERS}"),
        (samples >= FEWEST_SAMPLES, f"{samples} samples, below {FEWEST_SAMPLES}"),
        (dim >= DIMS_PER_SAMPLE * samples, f"d = {dim} is below {DIMS_PER_SAMPLE} n"),
        (start <= 1, f"a start of {start:.3g} relative to trained pre-activations, above 1"),
        (step <= LARGEST_STEP * (1 + 1e-9), f"lr a sigma^2 d/n = {step:.3g} is above {LARGEST_STEP:g}: a smaller --lr"),
        (trained >= SHORTEST_TRAINING, f"trained for {trained:.3g} (steps x lr a^2 m sigma^2 d/n), below {SHORTEST_TRAINING:g}"),
        (value >= LEAST_KAPPA * (1 - 1e-9), f"kappa = {value:.3g} is below {LEAST_KAPPA:g}"),
        (flip <= LARGEST_FLIP, f"flip {flip:g} is above {LARGEST_FLIP:g}"),
    )
    broken = next((why for holds, why in rules if not holds), "")
    return f"no error is given where the law was not compared with networks: {broken}" if broken else ""


def _side(value: float) -> str:
    return HARMFUL if value <= LOW else BENIGN if value >= HIGH else BETWEEN
