"""Collapse over training: train falls to the theory's zero, test stops at the lines that its own error draws."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from compare.figures.axes import NC1, Legend, LogAxis, draw_curve, finish, panels, time_axis, title, zero_line
from compare.figures.calibrated import LABEL, Calibrated, calibrated, level
from compare.figures.drawing import Drawing
from compare.figures.series import (
    COLUMNS,
    Curve,
    Measured,
    abscissa,
    curve,
    excluded_note,
    facts,
    last_layer,
    one_setting,
    seed_counts,
)
from compare.style import LOOKS, Style
from ufm.errors import RequestError

# label, look, and where the values are: (measure, split, centres)
_COLLAPSE = {
    "train": ("Train", "train", ("nc1_pinv", "train", "self")),
    "test_self": ("Test, own means", "test_self", ("nc1_pinv", "test", "self")),
    "test_strong": ("Test, strong", "test", ("nc1_pinv_strong", "test", "train")),
    "test_weak": ("Test, weak", "test_weak", ("nc1_pinv_weak", "test", "train")),
}
_LINES = {
    "two_err": (r"Theory, test: $2\,\mathrm{err}$", "theory", "ncc_error", 2.0),
    "floor": (r"Theory, test: $\geq\mathrm{err}_B/2$", "floor", "ncc_error_between", 0.5),
}
OPTIMUM = "Theory, train: 0 (UFM)"


def draw(table: Mapping[str, Any], style: Style) -> Drawing:
    """Draw (a) NC1, (b) the error rate and, where theory predicts it, (c) the train loss against the epoch.

    One mean curve with a 95 % band each.

    Theory lines of (a): NC1 = 0, the unconstrained-features optimum, for train; for test `2 err`, the value when every test
    feature sits on some train mean, and the distribution-free floor `err_B / 2` (both need rank K - 1). Of (c): the loss of the
    optimum at the network's own regularisation (`compare.calibrate`); a training without such a prediction has no (c).

    Raises:
        RequestError: several settings, or neither NC1 nor an error rate over training.
    """
    rows = one_setting(table, "trajectory")
    along, layer, samples = abscissa(rows), last_layer(rows), facts(table).test
    collapse = {key: _curve(rows, key, where, layer, along) for key, (_, _, where) in _COLLAPSE.items()}
    lines = {
        key: curve(rows.where(measure=measure, split="test", layer=layer, centres="train"), measure, along=along, rate_of=samples)
        .scaled(factor, key)
        for key, (_, _, measure, factor) in _LINES.items()
    }  # fmt: skip
    errors = _errors(rows, layer, along, samples)
    loss = _loss(table, rows, along)
    if not any(collapse.values()) and not any(errors.values()):
        raise RequestError("the rows hold neither nc1_pinv nor an error over training; draw a run of `empirical run collapse`")
    every = [*collapse.values(), *lines.values(), *errors.values(), *loss.curves]
    with style.applied():
        figure, axes = _panels(style, 3 if loss.curves else 2)
        legend, together = Legend(), len(axes) == 3 or not style.wide  # side by side three labels of the axis do not fit
        _draw_collapse(axes[0], collapse, lines, legend)
        _draw_errors(axes[1], errors, legend)
        if loss.curves:
            _draw_loss(axes[2], loss, legend)
        for ax in axes:
            label = time_axis(ax, every, along)
            ax.set_xlabel("" if together else label)
        if any(np.isfinite(c.low).any() for c in every):
            legend.band(f"95 % interval, {seed_counts(every)}")
        finish(figure, style, legend, label if together else "")
    told = (loss.theory.note(),) if loss.curves and loss.theory else ()
    out = _rows(collapse, lines, errors) + [row for c in loss.curves for row in c.rows("loss")]
    return Drawing(figure, COLUMNS, out, _notes(every, samples, lines) + told + excluded_note(table))


@dataclass(frozen=True)
class _Loss:
    """The train loss over training and its predicted end; no curves where there is no prediction."""

    curves: tuple[Curve, ...] = ()
    theory: Calibrated | None = None


def _loss(table: Mapping[str, Any], rows: Measured, along: str) -> _Loss:
    measured = curve(rows.where(measure="loss", split="train", layer="network"), "train_loss", along=along)
    cells = rows.distinct("cell")
    theory = calibrated(table, cells[0]) if measured and cells else None
    if theory is None or not theory.loss > 0:
        return _Loss()
    return _Loss((measured, level("own_decay", theory.loss, [measured])), theory)


def _curve(rows: Measured, key: str, where: tuple[str, str, str], layer: str, along: str) -> Curve:
    measure, split, centres = where
    return curve(rows.where(measure=measure, split=split, layer=layer, centres=centres), key, along=along)


def _errors(rows: Measured, layer: str, along: str, samples: float) -> dict[str, Curve]:
    """Return the classifier's train and test error and the nearest-class-mean error on test."""
    chosen = {
        "train_error": (rows.where(measure="error", split="train", layer="network"), np.nan),
        "test_error": (rows.where(measure="error", split="test", layer="network"), samples),
        "test_ncc_error": (rows.where(measure="ncc_error", split="test", layer=layer, centres="train"), samples),
    }
    return {key: curve(found, key, along=along, rate_of=among) for key, (found, among) in chosen.items()}


def _panels(style: Style, number: int) -> tuple[Any, Any]:
    rows, columns = (1, number) if style.wide else (number, 1)
    height = 0.36 if style.wide else 0.56 if number < 3 else 0.48
    figure, grid = panels(style, rows, columns, height * style.width, sharex=not style.wide)
    return figure, grid.ravel()


def _draw_collapse(ax: Any, collapse: Mapping[str, Curve], lines: Mapping[str, Curve], legend: Legend) -> None:
    axis = LogAxis.over([*collapse.values(), *lines.values()], zero=bool(collapse["train"]))
    axis.apply(ax)
    for key, (label, look, _) in _COLLAPSE.items():
        draw_curve(ax, collapse[key], LOOKS[look], axis, legend, label)
    if collapse["train"]:
        zero_line(ax, axis, LOOKS["optimum"], legend, OPTIMUM)
    for key, (label, look, *_) in _LINES.items():
        draw_curve(ax, lines[key], LOOKS[look], axis, legend, label, band=key == "two_err")
    ax.set_ylabel(NC1)
    title(ax, "nc1", "(a) Variability collapse")


def _draw_errors(ax: Any, errors: Mapping[str, Curve], legend: Legend) -> None:
    axis = LogAxis.over(errors.values())
    axis.apply(ax)
    for key, label, look in [
        ("train_error", "Train", "train"),
        ("test_error", "Test error, classifier", "error"),
        ("test_ncc_error", "Test error, class means", "ncc_error"),
    ]:
        draw_curve(ax, errors[key], LOOKS[look], axis, legend, label)
    ax.set_ylabel("Error rate")
    title(ax, "error", "(b) Error")


def _draw_loss(ax: Any, loss: _Loss, legend: Legend) -> None:
    axis = LogAxis.over(loss.curves)
    axis.apply(ax)
    measured, theory = loss.curves
    draw_curve(ax, measured, LOOKS["train"], axis, legend, "Train")
    draw_curve(ax, theory, LOOKS["gaussian"], axis, legend, LABEL)
    ax.set_ylabel("Train loss")
    title(ax, "loss", "(c) Train loss")


def _rows(collapse: Mapping[str, Curve], lines: Mapping[str, Curve], errors: Mapping[str, Curve]) -> list[tuple[Any, ...]]:
    rows = [row for c in [*collapse.values(), *lines.values()] for row in c.rows("nc1")]
    if collapse["train"]:
        rows.append(("nc1", "ufm_optimum", np.nan, 0.0, np.nan, np.nan, 0, "theory"))
    return rows + [row for c in errors.values() for row in c.rows("error")]


def _notes(curves: list[Curve], samples: float, lines: Mapping[str, Curve]) -> tuple[str, ...]:
    sample = (
        f"joined with the Clopper-Pearson interval of {samples:.0f} test samples"
        if np.isfinite(samples)
        else "over seeds alone (the number of test samples is not recorded)"
    )
    notes = [
        f"Curves are means over {seed_counts(curves)} (geometric; arithmetic for error rates that reach 0) with 95 % "
        f"Student-t intervals of the log mean; error rates and the lines drawn from them: {sample}.",
        "Test variability is about the test set's own means, about the train mean of the true class (strong), "
        "or about the nearest train mean (weak).",
        "Limits: training time grows at a fixed training set (t, then n). Epoch 0 is the untrained network.",
    ]
    if not all(lines.values()):
        notes.append("A test theory line is missing: its error was not measured, or the train means have rank below K - 1.")
    ended = sum(len(c.ends) for c in curves)
    if ended:
        notes.append(
            f"{ended} per-seed series end before the last epoch (marked by a cross): from there on means are over the others."
        )
    return tuple(notes)
