"""From a trained network to the UFM it should be the optimum of, without a free parameter.

A network has weight decay lambda_w on its classifier W but none on its features H. At an optimum of the unconstrained-features
model the two penalties balance, lambda_w |W|^2 = lambda_h sum_i |h_i|^2 (differentiate f(sW, H/s) at s = 1). Read the other way
round, the measured norms give lambda_h, hence c = sqrt(lambda_w lambda_h), hence the predicted logits, loss and norms at that
finite regularisation, which are laid beside the measured ones.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from compare import points
from compare.papers import Quantity
from compare.rows import Cell, Table
from compare.verdict import per_seed
from ufm.prediction import Prediction
from ufm.problem import Problem

LOSSES = ("ce", "mse", "smoothing", "focal")  # the training losses whose normalisation is the theory's
NEGATIVE = -1e-6  # of the largest feature mean: below it the features are not those of a ReLU
QUANTITIES = ("logit gap", "train loss", "objective", "|W|", "|H|/sqrt(N)")


@dataclass(frozen=True)
class Calibration:
    """One seed's inferred regularisation, and each quantity as (predicted, measured); or the sentence why there is none."""

    seed: int
    reason: str = ""  # why not
    lambda_w: float = math.nan
    lambda_h: float = math.nan
    structure: str = ""  # of the prediction: "etf", "of", ...
    values: Mapping[str, tuple[float, float]] | None = None
    caveats: tuple[str, ...] = ()

    @property
    def applies(self) -> bool:
        """Whether a prediction exists."""
        return self.values is not None

    @property
    def c(self) -> float:
        """sqrt(lambda_w lambda_h), the price of one unit of the nuclear norm."""
        return math.sqrt(self.lambda_w * self.lambda_h)


def why_not(config: Mapping[str, Any]) -> str:
    """Return why no UFM belongs to a training of this setting, or ''."""
    if config.get("loss") not in LOSSES:
        return f"the loss {config.get('loss')!r} is not one of {', '.join(LOSSES)}"
    if not config.get("weight_decay"):
        return "no weight decay: there is no finite optimum to compare with"
    if config.get("optimizer") == "adamw":
        return "AdamW decays the weights outside the loss: its end point is no stationary point of a penalised loss"
    if config.get("optimizer") == "adam":
        return "Adam scales the decay with the gradient's second moment: the balance of the two penalties does not hold"
    if config.get("head", "linear") != "linear":
        return f"the head is {config.get('head')!r}; the balance is that of one trained linear classifier"
    if config.get("label_noise"):
        return "wrong labels: the targets are not one-hot"
    return ""


def calibrate(table: Table, cell: Cell, seed: int) -> Calibration:
    """Infer lambda_h of one trained network and predict its logits, loss and norms from it.

    Args:
        table: the rows of the cell. cell: the training setting. seed: one of its seeds, with its arrays kept.
    """
    reason = why_not(cell.config)
    arrays = points.arrays_of(points.seed_folder(cell, seed))
    names = ("weight", "penultimate/train/means", "penultimate/train/counts", "penultimate/train/traces")
    if not reason and not all(name in arrays for name in names):
        reason = "the run kept no class means and no classifier"
    if reason:
        return Calibration(seed, reason)
    W, means, counts, traces = (np.asarray(arrays[name], dtype=np.float64) for name in names)
    b = np.asarray(arrays.get("bias", np.zeros(len(W))), dtype=np.float64)
    if not (np.isfinite(means).all() and np.isfinite(traces).all()):
        return Calibration(seed, "a class is absent from the train data")
    size_w, size_h = float((W**2).sum()), float(counts @ ((means**2).sum(1) + traces))
    if not (size_w > 0 and size_h > 0):
        return Calibration(seed, "the classifier or the features are zero")
    decay = float(cell.config["weight_decay"])
    nonnegative = bool(means.min() >= NEGATIVE * np.abs(means).max())
    problem = _problem(cell.config, W, counts, decay, decay * size_w / size_h, bool("bias" in arrays), nonnegative)
    predicted, problem, more = _predict(problem)
    if not predicted.applies or predicted.gram_w is None or predicted.gram_h is None or predicted.logits is None:
        return Calibration(seed, predicted.reason or "the prediction is not unique", decay, problem.lambda_h)
    loss = per_seed(table, Quantity("loss", "train", "network"), [seed]).get(seed, math.nan)
    penalty = decay / 2 * size_w + problem.lambda_h / 2 * size_h + problem.lambda_b / 2 * float(b @ b)
    measured = (_gap(means @ W.T + b), loss, loss + penalty, math.sqrt(size_w), math.sqrt(size_h / counts.sum()))
    values = dict(zip(QUANTITIES, zip(_predicted(predicted, problem), measured, strict=True), strict=True))
    return Calibration(seed, "", decay, problem.lambda_h, predicted.name, values, (*caveats(table, cell, seed), *more))


def _problem(
    config: Mapping[str, Any], W: np.ndarray, counts: np.ndarray, decay: float, lambda_h: float, bias: bool, nonnegative: bool
) -> Problem:
    n = tuple(int(v) for v in counts)
    penalised = bias and config.get("decay", "all") == "all"
    extra = {name: config[name] for name in ("smoothing", "focal_gamma") if config.get(name) is not None}
    return Problem(
        classes=len(W),
        dim=W.shape[1],
        counts=n[0] if len(set(n)) == 1 else n,
        loss=config["loss"],
        lambda_w=decay,
        lambda_h=lambda_h,
        bias="ridge" if penalised else "free" if bias else "none",
        lambda_b=decay if penalised else 0.0,
        features="nonnegative" if nonnegative else "free",
        **extra,
    )


def _predict(problem: Problem) -> tuple[Prediction, Problem, tuple[str, ...]]:
    """Return the closed form; for ReLU features without one the free features' stands in, and says so."""
    from ufm.predict import predict

    answer = predict(problem)
    if answer.applies or problem.features == "free":
        return answer, problem, ()
    free = problem.replace(features="free")
    return predict(free), free, ("ReLU features: no closed form for nonnegative features here, that of free ones is shown",)


def _gap(logits: np.ndarray) -> float:
    """Mean over classes of the own logit minus the mean of the others."""
    K = len(logits)
    own = np.diag(logits)
    return float(np.mean(own - (logits.sum(1) - own) / (K - 1)))


def _predicted(q: Prediction, problem: Problem) -> tuple[float, float, float, float, float]:
    size_w, n = float(np.trace(q.gram_w)), problem.count_vector
    size_h = float(n @ np.diag(q.gram_h))
    b = q.bias if q.bias is not None else np.zeros(problem.classes)
    penalty = problem.layer_lambdas[0] / 2 * size_w + problem.lambda_h / 2 * size_h + problem.lambda_b / 2 * float(b @ b)
    return _gap(np.asarray(q.logits)), float(q.loss) - penalty, float(q.loss), math.sqrt(size_w), math.sqrt(size_h / n.sum())


def caveats(table: Table, cell: Cell, seed: int) -> tuple[str, ...]:
    """Return what the calibration takes for granted and this training does not quite do."""
    found = []
    if cell.config.get("norm") == "batch":
        found.append("batch norm before the classifier: what limits the features is the decay of its scale, not of the features")
    nc1 = per_seed(table, Quantity("nc1_pinv"), [seed]).get(seed, math.nan)
    if not nc1 <= 0.05:
        found.append(f"NC1_train is {nc1:.2g}: not near the optimum")
    return tuple(found)


def calibrations(table: Table, name: str) -> list[Calibration]:
    """Return the calibration of every seed of one cell of the table."""
    cell = table.cells[name]
    part = table.of_cell(name)
    return [calibrate(part, cell, seed) for seed in cell.seeds]
