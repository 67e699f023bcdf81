"""`flow`: gradient flow and descent of the single-layer model beside the exact paths. Options and checks only."""

from __future__ import annotations

from dataclasses import dataclass

from ufm.errors import RequestError
from ufm.flow_starts import check_start
from ufm.problem import BIASES, Problem
from ufm.spec import option
from ufm.systems import Cost, System

INITS = ("random", "subspace", "aligned", "central")
METHODS = ("flow", "gd", "momentum")
MOST_POINTS = 100_000  # every output time is a copy of W and of all samples' features
FLOW_STEPS = 100_000  # those that `ufm.solvers.runge_kutta.integrate` takes at most
MOST_STEPS = 1e8  # of descent: an hour


@dataclass(frozen=True)
class Flow:
    """The options of one cell."""

    classes: int = option(4, "K, number of classes, >= 2", low=2, grid=True)
    dim: int = option(16, "d, feature dimension, >= 1", low=1, grid=True)
    per_class: int = option(10, "n, samples per class", low=1, grid=True)
    counts: tuple = option(None, "n_1,..,n_K: samples of each class; ';' between grid points", kind="ints", low=1, grid=True)
    loss: str = option("mse", "loss per sample", choices=("mse", "ce"), grid=True)
    lambda_w: float = option(0.0, "weight decay on W, >= 0", low=0, grid=True)
    lambda_h: float = option(0.0, "weight decay on the features, >= 0", low=0, grid=True)
    bias: str = option("free", "bias", choices=BIASES, grid=True)
    lambda_b: float = option(0.0, "weight decay on the bias, > 0 with --bias ridge", low=0, grid=True)
    init: str = option(
        "random", "start; central: the Han-Papyan-Donoho flow projected on {Sigma_W = I}", choices=INITS, grid=True
    )
    init_scale: float = option(0.1, "scale of the start, > 0", low=0, strict=True, grid=True)
    t_end: float = option(1000.0, "last time, > 0", low=0, strict=True, grid=True)
    points: int = option(101, "output times, 0 and log-spaced up to --t-end", low=2, high=MOST_POINTS)
    method: str = option("flow", "Dormand-Prince, or descent whose time is lr x step", choices=METHODS, grid=True)
    lr: float = option(0.1, "step size of gd and momentum, > 0", low=0, strict=True, grid=True)
    rtol: float = option(1e-8, "local relative error of the flow", low=1e-13, high=1e-2)
    renormalised: bool = option(False, "with --init central: rescale features afterwards instead of projecting")
    trajectory: bool = option(False, "keep the whole path in the run (compare plot flow draws it)")


def problem_of(spec: Flow) -> Problem:
    """Return the Problem a cell stands for."""
    return Problem(
        classes=spec.classes,
        dim=spec.dim,
        counts=spec.per_class if spec.counts is None else spec.counts,
        loss=spec.loss,
        lambda_w=spec.lambda_w,
        lambda_h=spec.lambda_h,
        bias=spec.bias,
        lambda_b=spec.lambda_b,
    )


def check(spec: Flow) -> Cost:
    """Return what a cell costs; RequestError when it is no valid problem."""
    total = float(sum(spec.counts)) if spec.counts is not None else float(spec.classes) * spec.per_class
    if spec.init == "central":
        _check_central(spec)
    columns = spec.classes + min(spec.dim, total) if spec.loss == "mse" else total
    # Reduced states, W and H at full size, their copies inside the measures; and the logits of every sample.
    memory = 8.0 * (3 * (spec.classes + total) * spec.dim + 4 * spec.classes * total) * (spec.points + 20)
    steps = spec.t_end / spec.lr if spec.method != "flow" else min(1000 + 2 * spec.t_end, FLOW_STEPS)
    if steps > MOST_STEPS:
        raise RequestError(f"--t-end / --lr is {steps:.3g} steps, over {MOST_STEPS:g}; use a smaller --t-end or --method flow")
    if memory < 2**40:
        check_start(problem_of(spec), spec.init)
    each = 4e-5 + 6 * spec.classes * spec.dim * columns / 4e9
    return Cost(seconds=steps * each + spec.points * 2e-4, memory=memory)


def _check_central(spec: Flow) -> None:
    if spec.loss != "mse" or spec.counts is not None or spec.lambda_w or spec.lambda_h:
        raise RequestError("--init central is the flow of mse with equal counts and no penalty; drop --counts and the lambdas")
    if spec.bias != "free" or spec.method != "flow":
        raise RequestError("--init central is a flow with free bias; drop --bias and --method")
    low, high = spec.classes - 1, spec.classes * (spec.per_class - 1)
    if not low <= spec.dim <= high:
        raise RequestError(f"--init central: dim {spec.dim} must lie in [K - 1, N - K] = [{low}, {high}]; change --dim")


SYSTEM = System(
    name="flow",
    summary="gradient flow beside the paths with closed forms",
    spec=Flow,
    check="ufm.systems.flow:check",
    simulate="ufm.systems.flow_run:simulate",
    predict="ufm.systems.flow_run:predict",
    columns=("loss", "law", "law_error", "end.nc1_ratio", "end.margin", "end.imbalance_drift", "evaluations", "status"),
    predict_columns=("law", "reference", "quantity", "limit", "reason"),
    naming=("loss", "init", "classes"),
    gpu=False,
    examples=(
        ("ufm simulate flow --init subspace --t-end 150 --trajectory", "2 s"),
        ("ufm simulate flow --init random --init-scale 0.1,0.03,0.01 --seeds 0:5", "5 s"),
    ),
    reference=("mixon2020",),
)
