"""`deep`: the deep unconstrained-features model, linear or ReLU. Options and checks only; imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from ufm.errors import RequestError
from ufm.problem import ACTIVATIONS, BIASES, Problem
from ufm.spec import option
from ufm.systems import Cost, System

METHODS = ("auto", "adam", "lbfgs")
LOSSES = ("mse", "ce")


@dataclass(frozen=True)
class Deep:
    """The options of one cell; those of `ufm.Problem` with depth L, the start and the method."""

    classes: int = option(10, "K, number of classes, >= 2", low=2, grid=True)
    dim: int = option(30, "d, width of every layer, >= 1", low=1, grid=True)
    per_class: int = option(50, "n, samples per class", low=1, grid=True)
    counts: tuple = option(None, "n_1,..,n_K: samples of each class; ';' between grid points", kind="ints", low=1, grid=True)
    depth: int = option(4, "L, number of weight matrices, >= 1", low=1, grid=True)
    activation: str = option("relu", "between the layers", choices=ACTIVATIONS, grid=True)
    loss: str = option("mse", "loss per sample", choices=LOSSES, grid=True)
    lambda_w: float = option(4e-3, "weight decay on every W_l, > 0", low=0, strict=True, grid=True)
    lambdas: tuple = option(
        None, "l_1,..,l_L: weight decay of W_1..W_L; ';' between grid points", kind="floats", low=0, strict=True, grid=True
    )
    lambda_h: float = option(4e-3, "weight decay on the free features, > 0", low=0, strict=True, grid=True)
    bias: str = option("none", "bias of the last layer", choices=BIASES, grid=True)
    lambda_b: float = option(0.0, "weight decay on the bias, > 0 with --bias ridge", low=0, grid=True)
    init_scale: float = option(1.0, "s > 0: weight entries start N(0, s^2/d); try 0.7,1,1.4", low=0, strict=True, grid=True)
    method: str = option("auto", "solver; auto: adam for relu, lbfgs for linear", choices=METHODS, grid=True)
    steps: int = option(None, "at most so many iterations; the method's own limit when not given", kind="int", low=1, grid=True)
    tol: float = option(1e-10, "stop L-BFGS at this relative gradient norm", low=0, grid=True)


def problem_of(spec: Deep) -> Problem:
    """Return the Problem a cell stands for."""
    if spec.lambdas is not None and len(spec.lambdas) != spec.depth:
        raise RequestError(f"--lambdas has {len(spec.lambdas)} values but --depth is {spec.depth}; give {spec.depth} values")
    return Problem(
        classes=spec.classes,
        dim=spec.dim,
        counts=spec.per_class if spec.counts is None else spec.counts,
        loss=spec.loss,
        lambda_w=spec.lambda_w if spec.lambdas is None else spec.lambdas,
        lambda_h=spec.lambda_h,
        bias=spec.bias,
        lambda_b=spec.lambda_b,
        depth=spec.depth,
        activation=spec.activation,
    )


def check(spec: Deep) -> Cost:
    """Return what a cell costs; RequestError when it is no valid problem."""
    numbers = (spec.depth - 1) * spec.dim**2 + 2.0 * spec.classes * spec.dim + spec.classes
    if numbers < 2**40:
        problem_of(spec)
    adam = spec.method == "adam" or (spec.method == "auto" and spec.activation == "relu")
    steps = float(spec.steps or (5500 if adam else 400))
    flops = 12.0 * spec.classes * spec.depth * spec.dim**2
    copies = 8 if adam else 50  # the optimiser's state: moments, or twenty pairs of differences
    # Measured in batches of 16 and more: a step of Adam takes 27 us a cell at K = 10, d = 30, L = 4, and the polish that
    # follows the full recipe as long as the recipe.
    polished = 2.2 if adam and spec.activation == "relu" and steps >= 5500 else 1.0
    return Cost(seconds=polished * steps * (1e-5 + flops / 24e9), memory=8 * copies * numbers)


SYSTEM = System(
    name="deep",
    summary="several weight matrices, linear or ReLU, on free features",
    spec=Deep,
    check="ufm.systems.deep:check",
    simulate="ufm.systems.deep_run:simulate",
    predict="ufm.systems.deep_run:predict",
    columns=(
        "loss",
        "predicted",
        "structure",
        "ranks",
        "collapse.nc1",
        "collapse.nc2",
        "collapse.nc3",
        "collapse.distance",
        "status",
    ),
    predict_columns=("prediction", "loss", "zero", "structures", "status", "reference", "reason"),
    chunk_seconds=6.0,
    naming=("activation", "loss", "classes", "depth"),
    examples=(
        ("ufm simulate deep --depth 3,4 --init-scale 0.7,1,1.4 --seeds 0:10", "25 s"),
        ("ufm simulate deep --activation linear --loss ce --classes 6 --depth 2 --dim 6 --seeds 0:5", "2 s"),
    ),
    reference=("sukenik2024",),
)
