"""`single`: the unconstrained-features model with one weight matrix. Options and checks only; imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from ufm.errors import RequestError
from ufm.problem import BIASES, CONSTRAINTS, FEATURES, LOSSES, Problem
from ufm.solvers import METHODS
from ufm.spec import option
from ufm.systems import Cost, System

PATHS = ("gd", "momentum", "adam", "flow")  # methods whose way is of interest, not only their end
MEMORY_OF_LBFGS = 20
# Problems of d < K - 1: starts, their iterations, and what one
# costs beyond its products. Within a factor of 3 of what K = 50, d = 16 and K = 100, d = 33 took (10 s each).
STARTS, SMALL_STARTS, SMALL_PARAMETERS = 5, 49, 1000
NARROW_STEPS, NARROW_SLOWER = 2000, 2.7
LARGE_STARTS = 12  # of features >= 0 in fewer dimensions than classes with more parameters
MOVES, ROUNDS_OF_MOVES, SHORT_WALK = 400, 2, 100  # as `ufm.solvers.moves` tries them, and what is usual
LONG_WALKS = 15_000  # iterations of all walks to the end together
ARRANGING = 0.6  # seconds of the calls alone


@dataclass(frozen=True)
class Single:
    """The options of one cell; those of `ufm.Problem` with depth 1, and the method."""

    classes: int = option(10, "K, number of classes, >= 2", low=1, grid=True)
    dim: int = option(64, "d, feature dimension, >= 1", low=1, grid=True)
    per_class: int = option(100, "n, samples per class", low=1, grid=True)
    counts: tuple = option(None, "n_1,..,n_K: samples of each class; ';' between grid points", kind="ints", low=1, grid=True)
    imbalance: float = option(1.0, "R >= 1: the minority classes have n/R samples", low=1, grid=True)
    minority: int = option(None, "number of minority classes (the last ones); K//2 when not given", kind="int", low=0, grid=True)
    loss: str = option("ce", "loss per sample", choices=LOSSES, grid=True)
    smoothing: float = option(0.1, "label smoothing alpha in [0, 1)", low=0, high=1, grid=True)
    focal_gamma: float = option(2.0, "gamma of the focal loss, >= 0", low=0, grid=True)
    lambda_w: float = option(5e-4, "weight decay on W, >= 0", low=0, grid=True)
    lambda_h: float = option(5e-4, "weight decay on the features, >= 0", low=0, grid=True)
    lambda_b: float = option(0.0, "weight decay on the bias, > 0 with --bias ridge", low=0, grid=True)
    bias: str = option("none", "bias", choices=BIASES, grid=True)
    constraint: str = option("ridge", "penalties, unit sphere, or layer-peeled ball", choices=CONSTRAINTS, grid=True)
    temperature: float = option(1.0, "tau > 0 of the sphere", low=0, strict=True, grid=True)
    energy_w: float = option(1.0, "E_W > 0 of the ball: (1/K) sum |w_k|^2 <= E_W", low=0, strict=True, grid=True)
    energy_h: float = option(1.0, "E_H > 0 of the ball: mean over classes of E|h|^2 <= E_H", low=0, strict=True, grid=True)
    features: str = option("free", "free features, or h >= 0", choices=FEATURES, grid=True)
    logit_scale: tuple = option(None, "K factors of the logits (CDT, VS); ';' between grid points", kind="floats", grid=True)
    logit_offset: tuple = option(None, "K offsets of the logits (LA, VS); ';' between grid points", kind="floats", grid=True)
    class_weights: tuple = option(None, "K weights of the classes' samples; ';' between grid points", kind="floats", grid=True)
    targets: str = option(None, "FILE with T rows of K targets (.json, .csv, .npy, .safetensors)", kind="file")
    method: str = option(
        "auto",
        "solver; starts are random but from 150 classes on (best diagonal logits + 1 %)",
        choices=("auto", *METHODS),
        grid=True,
    )
    steps: int = option(None, "at most so many iterations; the method's own limit when not given", kind="int", low=1, grid=True)
    tol: float = option(1e-10, "stop at this relative gradient norm", low=0, grid=True)
    lr: float = option(None, "step size of gd, momentum, adam", kind="float", low=0, strict=True, grid=True)
    trajectory: bool = option(False, "record loss and measures along the way (gd, momentum, adam, flow)")


def problem_of(spec: Single, targets: tuple[tuple[float, ...], ...] | None = None) -> Problem:
    """Return the Problem a cell stands for; `targets` are the rows of `spec.targets`, read by `ufm.systems.targets`."""
    return Problem(
        classes=spec.classes,
        dim=spec.dim,
        counts=class_counts(spec),
        loss=spec.loss,
        lambda_w=spec.lambda_w,
        lambda_h=spec.lambda_h,
        bias=spec.bias,
        lambda_b=spec.lambda_b,
        constraint=spec.constraint,
        temperature=spec.temperature,
        energy_w=spec.energy_w,
        energy_h=spec.energy_h,
        features=spec.features,
        smoothing=spec.smoothing,
        focal_gamma=spec.focal_gamma,
        logit_scale=spec.logit_scale,
        logit_offset=spec.logit_offset,
        class_weights=spec.class_weights,
        targets=targets,
    )


def class_counts(spec: Single) -> int | tuple[int, ...]:
    """Return n_k: `--counts`, or n for every class with the last M classes at n/R (rounded)."""
    if spec.counts is not None:
        if spec.imbalance != 1 or spec.minority is not None:
            raise RequestError("--counts says every n_k already; leave out --imbalance and --minority")
        return spec.counts
    if spec.imbalance == 1:
        return spec.per_class
    if spec.targets is not None:
        raise RequestError("--imbalance is about classes; with --targets give the rows' multiplicities by --counts")
    minority = spec.classes // 2 if spec.minority is None else spec.minority
    if minority > spec.classes:
        raise RequestError(f"--minority {minority} is more than the {spec.classes} classes; use at most {spec.classes}")
    few = round(spec.per_class / spec.imbalance)
    if few < 1:
        raise RequestError(
            f"--imbalance {spec.imbalance:g} leaves no sample of --per-class {spec.per_class}; use at most {spec.per_class}"
        )
    return (spec.per_class,) * (spec.classes - minority) + (few,) * minority


def check(spec: Single) -> Cost:
    """Return what a cell costs; RequestError when it is no valid problem."""
    if spec.trajectory and spec.method not in PATHS:
        raise RequestError(f"--trajectory follows a path; use --method with one of {', '.join(PATHS)}")
    if spec.bias != "ridge" and spec.lambda_b > 0:
        raise RequestError(
            f"--lambda-b {spec.lambda_b:g} is used only with --bias ridge; to compare biases walk both together: "
            "--bias none,ridge --lambda-b 0,0.01 --zip bias,lambda-b"
        )
    if spec.tol >= 1:
        raise RequestError(f"--tol {spec.tol:g} is out of range; give a relative gradient below 1 such as 1e-10")
    if spec.targets is None and spec.classes < 2:
        raise RequestError(f"--classes {spec.classes} is out of range; it must be >= 2, for example 10")
    if spec.targets is not None:
        _check_rows(spec)
    cost = _cost(spec)
    if cost.memory < 2**40:  # the tuples of a larger problem are themselves too much to build
        problem_of(spec, _rows_of(spec))
    return cost


def _check_rows(spec: Single) -> None:
    from ufm.systems.targets import check_targets

    check_targets(spec.targets, spec.classes, spec.loss)
    if spec.class_weights is not None and spec.loss == "mse":
        raise RequestError("--class-weights have no meaning for --loss mse with --targets; put the weights into --counts")
    if spec.classes < 2 and spec.loss != "mse":
        raise RequestError(f"--loss {spec.loss} needs --classes of 2 or more; use --loss mse for one output")


def _rows_of(spec: Single) -> tuple[tuple[float, ...], ...] | None:
    if spec.targets is None:
        return None
    from ufm.systems.targets import read_targets

    return read_targets(spec.targets)


def _cost(spec: Single) -> Cost:
    """Reduced solvers hold (K + T) x min(d, K) and their L-BFGS memory; paths hold every sample."""
    K, d = float(spec.classes), float(spec.dim)
    T = float(len(_rows_of(spec) or ())) or K
    n = float(sum(spec.counts)) if spec.counts is not None else K * spec.per_class
    if spec.method in ("gd", "momentum", "adam", "scipy") or (spec.method == "flow" and spec.loss != "mse"):
        numbers = 8 * (K + n) * d + 6 * n * K + (60 * (K + n) * d if spec.trajectory else 0)  # about 60 snapshots
        step, steps = 12 * n * K * d, float(spec.steps or 1000)
    else:
        numbers = (K + T) * min(d, K + 1) * (2 * MEMORY_OF_LBFGS + 12) + 14 * K * T + 2 * (K + T) * d
        step, steps = 12 * K * T * min(d, K + 1), 150.0
        if d < min(K, T) - 1 and spec.constraint == "ridge" and spec.method != "exact":  # local minima: several slow searches
            few = SMALL_STARTS if (K + T) * d <= SMALL_PARAMETERS else STARTS
            step, steps = NARROW_SLOWER * few * step, float(min(spec.steps or NARROW_STEPS, NARROW_STEPS))
        if spec.features == "nonnegative" and spec.constraint == "ridge" and spec.loss != "supcon" and d < T:
            return _arranging(K, T, d, 8 * numbers)
    return Cost(seconds=steps * (2e-5 + step / 4e9), memory=8 * numbers)


def _arranging(K: float, T: float, d: float, memory: float) -> Cost:
    """Return the cost of `ufm.solvers.moves`: short walks of every start and every move, long ones of the best.

    memory: of one walk. Within a factor of 4 of K = 3, d = 2 (0.3 s) to K = 24, d = 10 (9 s); ill-conditioned ones take longer.
    """
    small = (K + T) * d <= SMALL_PARAMETERS
    starts = float(SMALL_STARTS if small else LARGE_STARTS)
    moves = min(MOVES, 3 * T * (T - 1) / 2 + (d + d * (d - 1) / 2 + 1) * T) if small else 0.0
    walked = SHORT_WALK * (starts + ROUNDS_OF_MOVES * moves) + LONG_WALKS
    return Cost(ARRANGING + walked * NARROW_SLOWER * 12 * K * T * d / 4e9, max(starts, moves) * memory)


SYSTEM = System(
    name="single",
    summary="one weight matrix on free features",
    spec=Single,
    check="ufm.systems.single:check",
    simulate="ufm.systems.single_run:simulate",
    predict="ufm.systems.single_run:predict",
    columns=(
        "loss",
        "predicted",
        "certificate.gap",
        "measures.nc1_pinv",
        "measures.nc2_etf_means",
        "measures.nc3_cosine",
        "measures.nc2_to_prediction",
        "geometry.rate",
        "status",
        "prediction.regime",
    ),
    predict_columns=("prediction", "loss", "zero", "regime", "threshold", "status", "reference", "reason"),
    naming=("loss", "classes", "dim"),
    version=2,  # 1: on the sphere predicted logits were divided by the temperature, found ones were not
    validate="ufm.systems.single_run:validate",
    examples=(
        ("ufm simulate single --classes 10 --dim 64 --lambda-w 1e-5:1e-1:20log", "3 s"),
        ("ufm simulate single --imbalance 1,10,100 --minority 5 --bias free --seeds 0:5", "4 s"),
    ),
    reference=("zhu2021",),
)
