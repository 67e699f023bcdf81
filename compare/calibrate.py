"""From a trained network to the UFM it should be the optimum of, without a free parameter.

A network has weight decay lambda_w on its classifier W but none on its features H. At an optimum of the unconstrained-features
model the two penalties balance, lambda_w |W|^2 = lambda_h sum_i |h_i|^2 (differentiate f(sW, H/s) at s = 1). Read the other way
round, the measured norms give lambda_h, hence c = sqrt(lambda_w lambda_h), hence the predicted logits, loss, norms and Grams at
that finite regularisation, which are laid beside the measured ones. The balance uses up the ratio |W|/|H|; everything else is
a prediction.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from compare import last_layer, points
from compare.last_layer import Head, Optimality, Parts
from compare.papers import Quantity
from compare.quantities import per_seed
from compare.rows import Cell, Table
from ufm.prediction import Prediction
from ufm.problem import Problem

LOSSES = ("ce", "mse", "mse-mean", "smoothing", "focal")
NEGATIVE = -1e-6  # of the largest feature mean: below it the features are not those of a ReLU
QUANTITIES = (
    *("logit gap", "margin", "train loss", "objective", "|W|", "|H|/sqrt(N)"),
    *("common mean, share of |M|^2", "within classes, share of |H|^2"),
)
NEAR = 0.05  # NC1_train up to which the network counts as collapsed
STATIONARY = 0.2  # relative mismatch of pull and decay of the classifier from which it is said
NORMED = "batch norm before the classifier: what limits the features is the decay of its scale, not a decay of the features"
PARTIAL = "decay on weights only: the biases and scales that enlarge the features cost nothing"
NOTHING_KEPT = "the run kept no class means and no classifier"
UNEQUAL_ADAM = "Adam scales the decay with the gradient's second moment: the balance of the two penalties does not hold"
DECOUPLED = "AdamW decays the weights outside the loss: its end point is no stationary point of a penalised loss"
STRUCTURES = {
    "etf": "simplex ETF",
    "of": "orthogonal frame",
    "gof": "orthogonal frame with class-dependent lengths",
    "solved": "no closed form; the numerical optimum",
    "zero": "zero",
}


@dataclass(frozen=True)
class Calibration:
    """One seed's inferred regularisation, and each quantity as (predicted, measured); or the sentence why there is none."""

    seed: int
    reason: str = ""  # why not
    problem: Problem | None = field(default=None, repr=False)
    prediction: Prediction | None = field(default=None, repr=False)
    values: Mapping[str, tuple[float, float]] | None = None
    distances: Mapping[str, float] = field(default_factory=dict)  # relative, of logits and Grams
    parts: Mapping[str, Parts] = field(default_factory=dict)  # where each of the three distances lies
    geometry: Mapping[str, float] = field(default_factory=dict)  # NC2, NC3 at the predicted optimum
    optimality: Optimality | None = None
    caveats: tuple[str, ...] = ()  # assumptions that this training does not quite meet

    @property
    def applies(self) -> bool:
        """Whether a prediction exists."""
        return self.values is not None

    @property
    def lambda_w(self) -> float:
        """Decay of the classifier, in the package's normalisation of the loss."""
        return self.problem.layer_lambdas[0] if self.problem else math.nan

    @property
    def lambda_h(self) -> float:
        """Decay of the features that balances it."""
        return self.problem.lambda_h if self.problem else math.nan

    @property
    def c(self) -> float:
        """sqrt(lambda_w lambda_h), the price of one unit of the nuclear norm."""
        return math.sqrt(self.lambda_w * self.lambda_h)

    @property
    def structure(self) -> str:
        """Name of the predicted structure: "etf", "of", "gof", "solved", ..."""
        return self.prediction.name if self.prediction else ""

    @property
    def describes(self) -> str:
        """What is predicted, in words: the structure of the class means, and for which features."""
        if self.prediction is None or self.problem is None:
            return ""
        name = STRUCTURES.get(self.structure, self.structure)
        features = "nonnegative features" if self.problem.features == "nonnegative" else "free features"
        return f"{name}, {features}; {self.prediction.status}"

    def record(self) -> dict[str, Any]:
        """Return everything as a JSON-ready record."""
        made: dict[str, Any] = {"seed": self.seed, "applies": self.applies, "reason": self.reason}
        if not self.applies or self.prediction is None or self.optimality is None:
            return made
        values = {name: {"predicted": p, "measured": m} for name, (p, m) in (self.values or {}).items()}
        return {
            **made,
            "lambda_w": self.lambda_w,
            "lambda_h": self.lambda_h,
            "c": self.c,
            "problem": self.problem.to_dict() if self.problem else None,
            "structure": self.structure,
            "status": self.prediction.status,
            "assumptions": list(self.prediction.assumptions),
            "reference": self.prediction.reference,
            "values": values,
            "distances": dict(self.distances),
            "distance_parts": {name: vars(part) for name, part in self.parts.items()},
            "geometry": dict(self.geometry),
            "optimality": vars(self.optimality),
            "caveats": list(self.caveats),
        }


def why_not(config: Mapping[str, Any]) -> str:
    """Return why no UFM belongs to a training of this setting, or ''."""
    if config.get("loss") not in LOSSES:
        return f"the loss {config.get('loss')!r} is not one of {', '.join(LOSSES)}"
    if not config.get("weight_decay"):
        return "no weight decay: there is no finite optimum to compare with"
    if config.get("optimizer") == "adamw":
        return DECOUPLED
    if config.get("optimizer") == "adam":
        return UNEQUAL_ADAM
    if config.get("head", "linear") != "linear":
        return f"the head is {config.get('head')!r}; the balance is that of one trained linear classifier"
    if config.get("label_noise"):
        return "wrong labels: the targets are not one-hot"
    return ""


def calibrate(table: Table, cell: Cell, seed: int) -> Calibration:
    """Infer lambda_h of one trained network and predict its logits, loss, norms and Grams from it.

    Args:
        table: the rows of the cell. cell: the training setting. seed: one of its seeds, with its arrays kept.
    """
    fit = per_seed(table, Quantity("loss", "train", "network"), [seed]).get(seed, math.nan)
    head, problem, predicted, reason = expected(cell, seed, fit)
    if head is None or problem is None or predicted is None:
        return Calibration(seed, reason, problem)
    pairs = zip(last_layer.predicted_values(predicted, problem), last_layer.measured_values(head, problem), strict=True)
    near = last_layer.optimality(head, problem, predicted)
    matrices = last_layer.compared(head, predicted, problem.loss)
    return Calibration(
        seed,
        "",
        problem,
        predicted,
        dict(zip(QUANTITIES, pairs, strict=True)),
        last_layer.distances(head, predicted, problem.loss),
        {name: last_layer.parts(*pair) for name, pair in matrices.items()},
        last_layer.geometry(predicted),
        near,
        caveats(table, cell, seed, near),
    )


def expected(cell: Cell, seed: int, fit: float = math.nan) -> tuple[Head | None, Problem | None, Prediction | None, str]:
    """Return one seed's last layer, the problem it should be optimal for, its prediction, and '' or the reason for a None.

    `fit`: the mean train loss, in the training's own normalisation.
    """
    head, problem, reason = problem_of(cell, seed, fit)
    if head is None or problem is None:
        return None, None, None, reason
    predicted = last_layer.optimum(problem)
    if not known(predicted):
        return head, problem, None, predicted.reason or "the prediction is not unique"
    return head, problem, predicted, ""


def known(predicted: Prediction) -> bool:
    """Whether a prediction has the logits and Grams of one optimum."""
    return predicted.applies and not any(x is None for x in (predicted.gram_w, predicted.gram_h, predicted.logits))


def problem_of(cell: Cell, seed: int, fit: float = math.nan) -> tuple[Head | None, Problem | None, str]:
    """Return one seed's last layer and the problem it should be optimal for, or None twice and the reason."""
    reason = why_not(cell.config)
    if reason:
        return None, None, reason
    head, reason = head_of(cell, seed, fit)
    if head is None:
        return None, None, reason
    nonnegative = bool(head.means.min() >= NEGATIVE * np.abs(head.means).max())
    decay = float(cell.config["weight_decay"]) * loss_scale(cell.config, len(head.W))
    return head, _problem(cell.config, head, decay, nonnegative), ""


def loss_scale(config: Mapping[str, Any], classes: int) -> float:
    """Return what the training's loss is to be multiplied with to be this package's: K/2 for the mean over classes."""
    return classes / 2 if config.get("loss") == "mse-mean" else 1.0


def head_of(cell: Cell, seed: int, fit: float) -> tuple[Head | None, str]:
    """Return the measured last layer of one seed in this package's normalisation of the loss, or None and the reason."""
    arrays = points.arrays_of(points.seed_folder(cell, seed))
    names = ("weight", "penultimate/train/means", "penultimate/train/counts", "penultimate/train/traces")
    if not all(name in arrays for name in names):
        return None, NOTHING_KEPT
    W, means, counts, traces = (np.asarray(arrays[name], dtype=np.float64) for name in names)
    if W.ndim != 2 or means.shape != W.shape or counts.shape != traces.shape or counts.shape != (len(W),):
        return None, "the arrays of the last layer do not belong together"
    if not (np.isfinite(means).all() and np.isfinite(traces).all()):
        return None, "a class is absent from the train data"
    b = np.asarray(arrays["bias"], dtype=np.float64) if "bias" in arrays else None
    head = Head(W, b, means, counts, traces, fit * loss_scale(cell.config, len(W)))
    if not (head.size_w > 0 and head.size_h > 0):
        return None, "the classifier or the features are zero"
    return head, ""


def _problem(config: Mapping[str, Any], head: Head, decay: float, nonnegative: bool) -> Problem:
    n = tuple(int(v) for v in head.counts)
    penalised = head.b is not None and config.get("decay", "all") == "all"
    extra = {name: config[name] for name in ("smoothing", "focal_gamma") if config.get(name) is not None}
    return Problem(
        classes=len(head.W),
        dim=head.W.shape[1],
        counts=n[0] if len(set(n)) == 1 else n,
        loss="mse" if config["loss"] == "mse-mean" else config["loss"],
        lambda_w=decay,
        lambda_h=decay * head.size_w / head.size_h,
        bias="ridge" if penalised else "none" if head.b is None else "free",
        lambda_b=decay if penalised else 0.0,
        features="nonnegative" if nonnegative else "free",
        **extra,
    )


def caveats(table: Table, cell: Cell, seed: int, near: Optimality) -> tuple[str, ...]:
    """Return what the calibration takes for granted and this training does not quite do."""
    found = []
    if cell.config.get("norm") == "batch":
        found.append(NORMED)
    if cell.config.get("decay", "all") != "all":
        found.append(PARTIAL)
    nc1 = per_seed(table, Quantity("nc1_pinv"), [seed]).get(seed, math.nan)
    if not nc1 <= NEAR:
        found.append(f"NC1_train is above {NEAR:g}: the network is not near the optimum")
    if not abs(near.pull - 1) <= STATIONARY:
        side = "less" if near.pull < 1 else "more"
        pull = f"the loss (at {near.pull_at}) pulls on its norm {side} than its decay does"
        found.append(f"the classifier is not stationary: {pull}")
    return tuple(found)


def explain(made: Sequence[Calibration]) -> str:
    """Return in sentences where the difference between a network and its predicted optimum lies, over its seeds."""
    found = [one for one in made if one.applies and one.values and one.optimality]
    if not found:
        return ""

    def mean(numbers: Iterable[float]) -> float:
        return float(np.mean(list(numbers)))

    def of(name: str) -> tuple[float, float]:
        predicted, measured = zip(*(one.values[name] for one in found if one.values), strict=True)
        return mean(predicted), mean(measured)

    best, paid = of("objective")
    common, within = of(QUANTITIES[6]), of(QUANTITIES[7])
    names = ("scatter", "excess", "least_excess", "gap")
    scatter, excess, least, gap = (mean(getattr(one.optimality, name) for one in found) for name in names)
    above = "The train loss was not measured. "
    if math.isfinite(paid):
        bound = (
            f"the duality gap of the measured layer bounds it by {gap:.3g}" if math.isfinite(gap) else found[0].optimality.reason
        )
        above = f"The measured layer is {paid - best:.3g} above the optimum {best:.3g}; {bound}. "
        above += f"Within-class scatter costs {scatter:.3g} of it. "
    return (
        f"{above}Its penalty is {excess:.3g} x the nuclear norm of its own logits, at the optimum {least:.3g} x: "
        f"its class means have {common[1]:.0%} of their squared length in common against {common[0]:.0%} at the optimum, and "
        f"{within[1]:.2%} of the features' squared length is scatter. The model prices every direction of the features alike; "
        "what lies below a classifier does not. The ratio |W|/|H| is used up by the balance, so both norms are off by one "
        "factor. " + " ".join(_where(found, name) for name in found[0].parts)
    )


def _where(found: Sequence[Calibration], name: str) -> str:
    """Say how far one matrix is from its prediction, and in what."""
    away = float(np.mean([one.distances[name] for one in found]))
    if away == 0:
        return f"{name} none"
    # Shares of the summed squares: a seed that is far off counts for what it is.
    weights = np.array([one.distances[name] ** 2 for one in found])
    scale, alike, classes = (
        float(np.sum(weights * [getattr(one.parts[name], part) for one in found]) / weights.sum())
        for part in ("scale", "alike", "classes")
    )
    if math.isnan(alike):
        return f"{name} {away:.3g} ({scale:.0%} one common factor, {1 - scale:.0%} the rest)"
    rest = f"{classes:.0%} differences between classes"
    return f"{name} {away:.3g} ({scale:.0%} one common factor, {alike:.0%} another level common to all classes, {rest})"


def calibrations(table: Table, name: str) -> list[Calibration]:
    """Return the calibration of every seed of one cell of the table."""
    cell = table.cells[name]
    part = table.of_cell(name)
    return [calibrate(part, cell, seed) for seed in cell.seeds]
