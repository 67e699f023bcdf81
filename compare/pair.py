"""Lay theory beside measurement: what each measured (measure, split, layer) is predicted to be, and under which assumption.

The unconstrained-features model speaks of the classifier's input on TRAIN. Of test features it says nothing; there the floor, the
identity and the weak-collapse line of `ufm.theory.separation` are what can be said.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from compare.rows import Cell, Codes, Table
from ufm.prediction import EVIDENCE
from ufm.theory import separation

NAN = math.nan
WITHIN = "UFM optimum, any loss with feature decay, any class counts"
ETF = "UFM optimum: balanced classes, d >= K-1, CE, MSE (with bias), smoothing or focal"
FLOOR = "lower bound: any distribution and priors, train means of rank K-1"
EXACT = "exact identity where the train means have rank K-1"
WEAK = "weak test collapse: every test point on some train mean"
UNEVEN = 1.5  # largest to smallest class: MNIST's 1.24 passes for balanced, SVHN's 3 does not
OPTIMUM = "optimum of this problem"
SILENT = "none: the unconstrained-features model says nothing of test features"


class Predicted(NamedTuple):
    """A predicted value with its assumption and the key of its reference; `value` nan says why there is none."""

    value: float
    assumption: str
    reference: str = ""


# Vanish with the within-class scatter alone, whatever the class means do.
_SCATTER = ("nc1_pinv", "nc1_pinv_sum", "nc1_pinv_sample", "nc1_weighted", "nc1_trace", "nc1_total", "cdnv", "vci")
# Vanish where the class means form a simplex ETF and the classifier is dual to them.
_GEOMETRY = (
    *("nc2_equinorm_means", "nc2_equinorm_weights", "nc2_equiangular_means", "nc2_equiangular_weights"),
    *("nc2_etf_means", "nc2_etf_weights", "nc3_papyan", "nc3_zhu", "nc3_cosine"),
)
_DECISION = ("nc4_disagreement", "ncc_error")


def train_predictions(config: Mapping[str, Any], counts: Sequence[int] = ()) -> dict[str, Predicted]:
    """Return measure -> prediction for the classifier's input on train, under a training's resolved setting.

    counts: (K,) train samples of each class, where the run says them.
    """
    predictions = {name: Predicted(0.0, WITHIN, "zhu2021") for name in (*_SCATTER, *_DECISION)}
    reason = not_an_etf(config, counts)
    geometry = Predicted(NAN, f"none: {reason}") if reason else Predicted(0.0, ETF, "zhu2021")
    predictions.update(dict.fromkeys(_GEOMETRY, geometry))
    # With a free bias the mean logit of MSE is the mean target, |1/K| = 1/sqrt(K); of CE it is 0.
    if not reason and config.get("loss") != "mse":
        predictions["bias_collapse"] = geometry
    return predictions


def sweep_predictions(prediction: Any) -> dict[str, float]:
    """Return measure -> predicted value for one cell of a theory sweep, from the prediction recorded with it."""
    if not isinstance(prediction, Mapping) or not prediction.get("applies", True):
        return {}
    found = {"loss": float(prediction["loss"])} if isinstance(prediction.get("loss"), (int, float)) else {}
    values = prediction.get("values")
    found |= {name: value for name, value in (values or {}).items() if isinstance(value, (int, float))}
    if prediction.get("zero"):
        return found  # at the zero solution no geometry exists
    if prediction.get("name"):
        found |= dict.fromkeys((*_SCATTER, "nc2_to_prediction"), 0.0)
    return found | dict.fromkeys(_GEOMETRY, 0.0) if prediction.get("name") == "etf" else found


def not_an_etf(config: Mapping[str, Any], counts: Sequence[int] = ()) -> str:
    """Return why the optimum of this setting, with these train samples of each class, is not a simplex ETF, or ''."""
    present = [n for n in counts if n > 0]
    if float(config.get("imbalance") or 1.0) != 1.0 or (present and max(present) > UNEVEN * min(present)):
        return "imbalanced classes: the optimum is not a simplex ETF"
    dim = _feature_dim(config)
    if dim is not None and dim < len(present) - 1:
        return f"{dim} features: a simplex ETF of {len(present)} classes needs {len(present) - 1}"
    if config.get("label_noise"):
        return "wrong labels leave the classes unequal"
    if config.get("loss") in ("mse", "mse-mean") and config.get("bias") is False:
        return "MSE without a bias has an orthogonal frame for its optimum"
    if config.get("head") == "polygon":
        return "a classifier fixed at a polygon in a plane: the optimum is not a simplex ETF"
    if config.get("head") == "deep":
        return "a deep head has its own optimum; see `ufm predict deep`"
    return ""


def _feature_dim(config: Mapping[str, Any]) -> int | None:
    """Return d of the classifier's input where the setting tells it: the width of an MLP, or a measured file's layer."""
    layers = config.get("layers")
    if isinstance(layers, Mapping):
        return layers.get("penultimate")
    return config.get("width") if config.get("model") == "mlp" and config.get("depth") else None


def class_counts(cell: Cell) -> tuple[int, ...]:
    """Return the train samples of each class as the first result that says them, or the setting; () where neither does."""
    for record in cell.results.values():
        data = record.get("data")
        if isinstance(data, Mapping) and _is_counts(data.get("counts")):
            return tuple(data["counts"])
    given = cell.config.get("train_counts")
    return tuple(given) if _is_counts(given) else ()


def _is_counts(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(isinstance(n, int) for n in value)


def attach(table: Table) -> Table:
    """Fill the columns `predicted`, `assumption` and `reference`; predictions that a theory sweep brought are kept."""
    predicted = table.data["predicted"].copy()
    notes = np.zeros(table.rows, dtype=np.int32)
    known: dict[tuple[str, str], int] = {("", ""): 0}

    def fill(rows: np.ndarray, value: Any, assumption: str, reference: str) -> None:
        predicted[rows] = value
        notes[rows] = known.setdefault((assumption, reference), len(known))

    _fill_train(table, fill)
    _fill_test(table, fill)
    theory = table.mask(split="theory")
    if theory.any():
        known_ones = theory & np.isfinite(predicted)
        fill(known_ones, predicted[known_ones], OPTIMUM, "")
        cells = table.data["cell"]
        unproven = np.array([name in table.cells and table.cells[name].unproven for name in cells.levels], dtype=bool)
        if unproven.any():
            rows = known_ones & unproven[cells.codes]
            fill(rows, predicted[rows], f"{OPTIMUM}: {EVIDENCE}", "")
    assumptions, references = zip(*known, strict=True)
    return table.with_columns(
        predicted=predicted, assumption=Codes.of([assumptions[i] for i in range(len(known))]).take(notes),
        reference=Codes.of([references[i] for i in range(len(known))]).take(notes),
    )  # fmt: skip


def _fill_train(table: Table, fill: Any) -> None:
    """One lookup per distinct setting regime and measure, not per run: ten thousand runs share a handful."""
    here = table.mask(split="train", layer="penultimate", centres="self")
    if not here.any():
        return
    cells, measures = table.data["cell"], table.data["measure"]
    regimes: dict[str, list[int]] = {}
    settings: dict[str, tuple[Mapping[str, Any], Sequence[int]]] = {}
    for code, name in enumerate(cells.levels):
        cell = table.cells.get(name)
        config, counts = (cell.config, class_counts(cell)) if cell else ({}, ())
        key = f"{not_an_etf(config, counts)}|{config.get('loss')}"
        regimes.setdefault(key, []).append(code)
        settings[key] = config, counts
    for key, members in regimes.items():
        mine = here & (np.isin(cells.codes, members) if len(regimes) > 1 else True)
        predictions = train_predictions(*settings[key])
        for code, measure in enumerate(measures.levels):
            if measure in predictions:
                fill(mine & (measures.codes == code), *predictions[measure])


def _fill_test(table: Table, fill: Any) -> None:
    """On test: NC1 (strong) is bounded by err_B/2, its between part is 2 err; for the rest the model is silent."""
    test = table.mask(split="test", measure=lambda m: m != "samples")
    for measure in (*_SCATTER, *_GEOMETRY, *_DECISION, "nc1_pinv_weak", "nc1_pinv_cross", "cdnv_strong", "ncc_error_between"):
        rows = test & table.mask(measure=measure)
        if rows.any():
            fill(rows, NAN, SILENT, "")
    for measure, error, law, note in (
        ("nc1_pinv_strong", "ncc_error_between", separation.floor, FLOOR),
        ("nc1_pinv_between", "ncc_error", separation.weak_collapse, EXACT),
    ):
        rows = np.flatnonzero(test & table.mask(measure=measure))
        if len(rows):
            fill(rows, law(_partner(table, error, measure)[rows]), note, "derived")


def _partner(table: Table, measure: str, beside: str) -> np.ndarray:
    """Return, for every row of `beside`, the value of `measure` at the same state (nan where it was not measured)."""
    some = table.mask(measure=[measure, beside])
    values = np.full(table.rows, np.nan)
    if not some.any():
        return values
    index = np.flatnonzero(some)
    part = table.take(index)
    key = part.groups("cell", "seed", "epoch", "step", "split", "layer", "centres")
    found = np.full(int(key.max()) + 1, np.nan)
    mine = part.mask(measure=measure)
    found[key[mine]] = part.data["value"][mine]
    values[index] = np.where((found[key] >= 0) & (found[key] <= 1), found[key], np.nan)
    return values


# --- the lines of one state --------------------------------------------------------------------------------------


class Line(NamedTuple):
    """One theory line for the test panel at one state: its value, an interval where the test sample gives one."""

    name: str
    value: float
    low: float
    high: float
    assumption: str
    reference: str


def lines_at(error: float, error_between: float, classes: int | None = None, samples: int | None = None) -> list[Line]:
    """Return what theory says of NC1_test at a state with these errors: floor, weak collapse, Gaussian, own means.

    Args:
        error, error_between: nearest-train-mean error on test, Euclidean and in the metric Sigma_B^+.
        classes: K, for the lines that need it (None: they are left out). samples: test points, for the interval of 2 err.
    """
    floor = float(separation.floor(error_between))
    weak = float(separation.weak_collapse(error))
    low, high = separation.weak_collapse_interval(round(error * samples), samples) if samples else (NAN, NAN)
    lines = [
        Line("floor err_B/2", floor, NAN, NAN, FLOOR, "derived"),
        Line("2 err", weak, low, high, WEAK, "derived"),
    ]
    if classes and 0 < error < (classes - 1) / classes:
        gaussian = separation.gaussian_etf_nc1(error, classes)
        own = float(separation.weak_collapse_own_means(error, classes))
        lines.append(
            Line("Gaussian", gaussian, NAN, NAN, "isotropic Gaussian test features around an ETF with this error", "derived")
        )
        lines.append(Line("own means", own, NAN, NAN, f"{WEAK}, symmetric confusion, test means", "derived"))
    return lines
