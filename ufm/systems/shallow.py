"""`shallow`: training of two-layer ReLU networks beside the laws of their kernel regime. Options and checks only."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ufm.errors import RequestError
from ufm.spec import option
from ufm.systems import Cost, System
from ufm.theory.shallow import DATA, LAYERS

TARGETS = ("signs", "gaussian", "slowest")
METHODS = ("gd", "flow")
OUTPUTS = ("gaussian", "signs")
MOST_POINTS = 10_000
MOST_STEPS = 1e8
FLOW_STEP = 0.5  # of the flow's Runge-Kutta steps, in units of 1/lambda_max: its error is far below any gap


@dataclass(frozen=True)
class Shallow:
    """The options of one cell."""

    samples: int = option(20, "n, number of inputs, >= 2", low=2, grid=True)
    dim: int = option(20, "d, dimension of the inputs, >= 1", low=1, grid=True)
    width: int = option(2560, "m, number of hidden neurons, even with --antisymmetric", low=1, grid=True)
    data: str = option("sphere", "inputs: uniform on the unit sphere, or N(0, I/d)", choices=DATA, grid=True)
    targets: str = option(
        "signs", "+-1 or N(0, 1) at random, or all of it in the slowest mode of the kernel", choices=TARGETS, grid=True
    )
    contradictions: int = option(0, "how many inputs occur twice, with opposite targets", low=0, grid=True)
    layers_trained: str = option("both", "which layers learn", choices=LAYERS, grid=True)
    output_rate: float = option(
        1.0, "learning rate of the output layer over the hidden one's, > 0", low=0, strict=True, grid=True
    )
    output_init: str = option("gaussian", "output weights at the start: N(0, 1) or +-1", choices=OUTPUTS, grid=True)
    antisymmetric: bool = option(True, "start in pairs of neurons of opposite output weight, so that f = 0")
    method: str = option("gd", "gradient descent, or the flow by Runge-Kutta steps", choices=METHODS, grid=True)
    step: float = option(
        0.25, "step of gd in units of 2/lambda_max of the start's kernel; stable below 1", low=0, strict=True, grid=True
    )
    t_end: float = option(20.0, "last time of the summed loss; 0: the kernels alone", low=0, grid=True)
    points: int = option(61, "recorded times, 0 and log-spaced up to --t-end", low=2, high=MOST_POINTS)
    trajectory: bool = option(False, "keep the modes and the loss over time in the run (compare plot flow draws them)")


def check(spec: Shallow) -> Cost:
    """Return what a cell costs; RequestError when it is no valid problem."""
    if spec.antisymmetric and spec.width % 2:
        raise RequestError(f"--width {spec.width} is odd; pairs of neurons need an even one: use {spec.width + 1}")
    if 2 * spec.contradictions > spec.samples:
        raise RequestError(
            f"--contradictions {spec.contradictions} needs two samples each and --samples is {spec.samples}; "
            f"use at most {spec.samples // 2}"
        )
    if spec.targets == "slowest" and spec.contradictions:
        raise RequestError("--targets slowest are one vector and --contradictions need opposite ones; drop one of the two")
    if spec.layers_trained != "both" and spec.output_rate != 1:
        raise RequestError("--output-rate compares two layers that learn; drop it or --layers-trained")
    n, m, reduced = float(spec.samples), float(spec.width), float(min(spec.dim, spec.samples))
    steps = _steps(spec)
    if steps > MOST_STEPS:
        raise RequestError(f"--t-end {spec.t_end:g} is about {steps:.3g} steps, over {MOST_STEPS:g}; use a smaller --t-end")
    evaluations = 4 if spec.method == "flow" else 1
    each = 1e-4 + (6 * m * n * reduced + 12 * m * n + 10 * n * n) / 9e9
    memory = 8 * (n * spec.dim * (2 + 2 * n) + 4 * m * reduced + 6 * m * n + 12 * n * n)
    draws = 4 * m * (reduced + n) / 1e8
    return Cost(seconds=evaluations * steps * each + draws + 30 * n**3 / 1e9 + 0.003, memory=memory)


def _steps(spec: Shallow) -> float:
    """Return about how many steps are taken: t_end over the step, by the leading terms of lambda_max."""
    output = {"both": spec.output_rate, "hidden": 0.0, "output": 1.0}[spec.layers_trained]
    hidden = float(spec.layers_trained != "output")
    largest = output * spec.samples / (2 * math.pi) + 0.25 * (hidden + output) * (1 + math.sqrt(spec.samples / spec.dim)) ** 2
    return spec.t_end * largest / (FLOW_STEP if spec.method == "flow" else 2 * spec.step)


SYSTEM = System(
    name="shallow",
    summary="two-layer ReLU networks in training, beside exp(-H t) and (I - h H)^k with arc-cosine Grams H",
    spec=Shallow,
    check="ufm.systems.shallow:check",
    simulate="ufm.systems.shallow_run:simulate",
    predict="ufm.systems.shallow_run:predict",
    columns=(
        *("loss", "measures.gap", "measures.gap_start", "measures.loss_ratio", "measures.lambda_min"),
        *("measures.lambda_min_ratio", "measures.kernel_distance", "status"),
    ),
    predict_columns=("law", "lambda_min", "lambda_max", "largest_step", "time_to_fit", "reference", "reason"),
    naming=("data", "layers_trained", "samples"),
    examples=(
        ("ufm simulate shallow --width 160,640,2560 --seeds 0:5", "3 s"),
        ("ufm simulate shallow --width 20 --samples 40 --t-end 200 --trajectory", "2 s"),
    ),
    reference=("razborov2022", "jacot2018", "cho2009"),
)
