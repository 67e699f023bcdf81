"""`benign`: a two-layer convolutional network on a signal patch and a noise patch. Options and checks only."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ufm.errors import RequestError
from ufm.spec import option
from ufm.systems import Cost, System
from ufm.theory import benign as theory

INITS = ("fixed", "fan_in")
SIGNAL = 5.0
LARGE = 1e70  # so that fourth powers stay finite
LEAST = 1e-70
MOST_DIGITS = 250  # decimal digits of (signal / noise)^4 or ^q
MOST_STEPS = 10_000_000
MOST = 5_000  # vectors (samples, filters): their Gram matrix is kept


@dataclass(frozen=True)
class Benign:
    """The options of one cell."""

    samples: int = option(20, "n, training points, >= 1", low=1, high=MOST, grid=True)
    dim: int = option(1000, "d, dimension of a patch, >= 2; costs nothing", low=2, grid=True)
    signal: float = option(None, "norm of the signal mu, >= 0 [default: 5]", kind="float", low=0, high=LARGE, grid=True)
    snr: float = option(None, "instead of --signal: SNR = |mu| / (sigma sqrt(d))", kind="float", low=0, high=LARGE, grid=True)
    variable: float = option(
        None, "instead of --signal: n SNR^q where q > 2, else kappa = n d SNR^4", kind="float", low=0, high=LARGE, grid=True
    )
    noise: float = option(1.0, "sigma, deviation of each coordinate of the noise, > 0", low=0, strict=True, high=LARGE, grid=True)
    orthogonal: bool = option(False, "noise orthogonal to mu")
    filters: int = option(10, "m, filters of each sign", low=1, high=MOST, grid=True)
    q: float = option(1.0, "activation max(0, z)^q, q >= 1: 1 is ReLU", low=1, high=10, grid=True)
    flip: float = option(0.0, "p, share of flipped labels, in train and test, 0 <= p < .5", low=0, high=0.499999, grid=True)
    output: float = option(
        None, "weight of each filter in the output, > 0 [default: 1/m]", kind="float", low=0, strict=True, high=LARGE, grid=True
    )
    init: str = option("fixed", "standard deviation of the start: --init-scale, or --init-scale / sqrt(d)", choices=INITS)
    init_scale: float = option(0.01, "sigma_0 of the Gaussian start, > 0", low=0, strict=True, high=LARGE, grid=True)
    lr: float = option(0.1, "step size of full-batch gradient descent, > 0", low=0, strict=True, high=LARGE, grid=True)
    steps: int = option(100, "steps (epochs) of gradient descent", low=0, high=MOST_STEPS, grid=True)
    clip: bool = option(True, "with q > 2, shorten steps in which a pre-activation would more than double")
    test_points: int = option(1000, "directions that the test error is averaged over; lengths are integrated", low=10, high=10**7)


def signal_of(spec: Benign) -> float:
    """Return the norm of the signal, however it was given."""
    if spec.snr is not None:
        return spec.snr * spec.noise * math.sqrt(spec.dim)
    if spec.variable is not None:
        if spec.q > 2:
            return theory.power_border(spec.samples, spec.noise, spec.dim, spec.q, level=spec.variable)
        return theory.kappa_border(spec.samples, spec.noise, spec.dim, level=spec.variable)
    return SIGNAL if spec.signal is None else spec.signal


def check(spec: Benign) -> Cost:
    """Return what a cell costs; RequestError where the numbers of a cell cannot go together."""
    given = [f"--{name} {value:g}" for name in ("signal", "snr", "variable") if (value := getattr(spec, name)) is not None]
    if len(given) > 1:
        raise RequestError(f"{' and '.join(given)} both say how strong the signal is; give one of them")
    if not signal_of(spec) <= LARGE:
        raise RequestError(f"{given[0]} is a signal of norm {signal_of(spec):.3g}; at most {LARGE:g}: use a smaller value")
    if not spec.noise >= LEAST:
        raise RequestError(f"--noise {spec.noise:g} is below {LEAST:g}, so that its powers would vanish: use a larger value")
    power = max(4.0, spec.q)
    if not power * math.log10(max(signal_of(spec) / spec.noise, 1.0)) <= MOST_DIGITS:
        ratio = signal_of(spec) / spec.noise
        raise RequestError(
            f"the signal is {ratio:.3g} times --noise {spec.noise:g}, whose power {power:g} overflows; use less signal"
        )
    rows, columns = 2 * spec.filters, spec.samples + 1
    if rows + columns > MOST:
        raise RequestError(
            f"--samples {spec.samples} and 2 x --filters {spec.filters} are {rows + columns - 1} vectors; at most {MOST - 1} "
            "fit one Gram matrix: use fewer"
        )
    step = rows * columns * (1e-8 + 1.5e-10 * columns) + 1e-6
    law = spec.test_points * (1.5e-7 + rows * (3e-9 + 2e-10 * rows)) + 3e-7 * rows**2
    # Projections, coefficients, gradient and their temporaries; Gram matrices; the draw.
    memory = 9 * rows * columns + 3 * columns**2 + 6 * rows**2 + 3 * (rows + columns) ** 2
    draws = spec.test_points * rows  # several cells share a slice of `ufm.systems.benign_net.TOGETHER`
    memory += 5 * draws if draws > 600_000 else 10_000
    return Cost(seconds=2e-4 + spec.steps * step + law, memory=8.0 * memory)


SYSTEM = System(
    name="benign",
    summary="two-layer convolutional networks on a signal and a noise patch: when overfitting is benign",
    spec=Benign,
    check="ufm.systems.benign:check",
    simulate="ufm.systems.benign_run:simulate",
    predict="ufm.systems.benign_run:predict",
    columns=("loss", "measures.train_error", "measures.clean_error", "measures.test_error", "variable", "side", "status"),
    predict_columns=("prediction", "variable_name", "variable", "border", "test_error", "reference", "reason"),
    naming=("q", "samples", "dim"),
    examples=(
        ("ufm simulate benign --dim 100:1090:34 --signal 0:9.9:34 --flip .1", "4 s"),
        ("ufm simulate benign --q 3 --orthogonal --variable .03:30:13log --init-scale .003 --steps 1000 --seeds 0:5", "3 s"),
    ),
    reference=("cao2022", "kou2023"),
)
