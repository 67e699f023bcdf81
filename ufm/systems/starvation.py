"""`starvation`: a linearised model whose features differ in strength, under two penalties. Options and checks only."""

from __future__ import annotations

from dataclasses import dataclass

from ufm.errors import RequestError
from ufm.spec import option
from ufm.systems import Cost, System

PENALTIES = ("ridge", "decoupling")
MIXINGS = ("shared", "random")
DYNAMICS = ("primal", "dual")
MOST = 500  # samples: one cell takes some hundred least-squares problems of this size
NEAR = 1e-3  # relative: strengths nearer than this have no derivative of their own


@dataclass(frozen=True)
class Starvation:
    """The options of one cell."""

    samples: int = option(2, "n, number of samples and of features", low=2, high=MOST, grid=True)
    s1: float = option(4.0, "strength (singular value) of the first feature", low=1e-6, high=1e6, grid=True)
    s2: float = option(2.0, "strength of the second feature", low=1e-6, high=1e6, grid=True)
    spread: float = option(
        0.8, "each further feature's strength over the one before, in (0, 0.99]", low=0, high=0.99, strict=True, grid=True
    )
    coupling: float = option(
        0.5, "delta: how far samples share features, in [-1, 1]; 0: each feature serves one sample", low=-1, high=1, grid=True
    )
    mixing: str = option(
        "shared", "feature 1 serves all samples and the others one each; or all are mixed at random", choices=MIXINGS, grid=True
    )
    dim: int = option(None, "d, number of parameters, >= samples (samples)", kind="int", low=2, high=10 * MOST, grid=True)
    penalty: str = option("ridge", "on the weights, or on the logits (spectral decoupling)", choices=PENALTIES, grid=True)
    penalty_weight: float = option(0.005, "lambda of the penalty lambda/2 |.|^2", low=1e-12, high=1e6, grid=True)
    trajectory: bool = option(False, "keep the path of z_1 and z_2 under gradient flow from zero")
    dynamics: str = option("primal", "with --trajectory: gradient flow of the weights, or of the dual", choices=DYNAMICS)
    t_end: float = option(1e5, "with --trajectory: last time, > 0", low=1e-6, high=1e12)
    points: int = option(101, "with --trajectory: output times, 0 and log-spaced up to --t-end", low=2, high=10_000)


def strengths_of(spec: Starvation) -> tuple[float, ...]:
    """Return s_1, s_2 and s_j = s_2 spread^(j-2), (n,)."""
    return (spec.s1, *(spec.s2 * spec.spread**j for j in range(spec.samples - 1)))


def check(spec: Starvation) -> Cost:
    """Return what a cell costs; RequestError when it is no valid problem."""
    n, d = spec.samples, spec.samples if spec.dim is None else spec.dim
    if d < n:
        raise RequestError(
            f"--dim {d} is below the {n} samples, whose features would depend on one another; use --dim {n} or more"
        )
    strengths = strengths_of(spec)
    if min(strengths) < 1e-6 * max(strengths):
        raise RequestError(
            f"the weakest of {n} features has strength {min(strengths):.3g}, the strongest {max(strengths):.3g}; "
            "use a larger --spread or --s2"
        )
    seconds = 0.02 + 100 * (1e-4 + 4.0 * (n + d) * n * n / 2e9) + (0.1 + spec.points * n * n * 1e-8 if spec.trajectory else 0)
    return Cost(seconds=seconds, memory=8.0 * (4 * n * d + 8 * n * n + 4 * spec.points))


SYSTEM = System(
    name="starvation",
    summary="gradient starvation: what a strong feature takes from a weak one, with a penalty on weights or on logits",
    spec=Starvation,
    check="ufm.systems.starvation:check",
    simulate="ufm.systems.starvation_run:simulate",
    predict="ufm.systems.starvation_run:predict",
    columns=("loss", "predicted", "certificate.gap", "measures.z1", "measures.z2", "measures.elasticity", "status"),
    predict_columns=("prediction", "loss", "z1", "z2", "elasticity", "effect", "status", "reference"),
    naming=("penalty", "mixing", "samples"),
    gpu=False,
    predict_seeds=True,
    examples=(
        ("ufm simulate starvation --s1 2.2:12:20log --penalty ridge,decoupling", "2 s"),
        ("ufm simulate starvation --samples 20 --mixing random --coupling 0.1:0.9:9 --seeds 0:5", "5 s"),
    ),
    reference=("pezeshki2020",),
)
