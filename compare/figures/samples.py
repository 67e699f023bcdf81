"""Collapse against the size of the training set: train collapses at every n, test follows its error."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from compare.figures.axes import NC1, Legend, LogAxis, draw_curve, finish, panels, title, zero_line
from compare.figures.drawing import Drawing
from compare.figures.series import COLUMNS, Curve, Measured, curve, excluded_note, facts, last_layer, seed_counts
from compare.figures.settings import Swept, setting_of, swept, swept_axis
from compare.style import LOOKS, Style
from ufm.errors import RequestError

FEWEST = 3  # sizes from which a power law is fitted
_COLLAPSE = {
    "train": ("Train", "train", "nc1_pinv", "train", "self"),
    "test_self": ("Test, own means", "test_self", "nc1_pinv", "test", "self"),
    "test_strong": ("Test, strong", "test", "nc1_pinv_strong", "test", "train"),
}
_ERRORS = {
    "train_error": ("Train", "train", "error", "train", ""),
    "test_error": ("Test error, classifier", "error", "error", "test", ""),
    "test_ncc_error": ("Test error, class means", "ncc_error", "ncc_error", "test", "train"),
}


def draw(table: Mapping[str, Any], style: Style) -> Drawing:
    """Draw (a) NC1 and (b) the error at the last epoch of every training against the number of train samples per class.

    Lines of (a): 0 for train, 2 err for test, from three sizes on a power law c n^-alpha fitted to the strong test values, and
    for generated `interpolation` data the exact law of min-norm interpolation (train NC1 = 0 by construction, test NC1 not),
    where N = K n is at most a quarter of the dimension.

    Raises:
        RequestError: the settings do not differ in `train_per_class`, or in that and something else.
    """
    rows = Measured.of(table)
    over = swept(table, "train_per_class", fewer=False)
    if len(set(over.groups.values())) > 1:
        raise RequestError("the settings differ in more than train_per_class; name the runs of one sweep over samples")
    rows = last_epochs(over.rows(rows))
    layer, sizes = last_layer(rows), {facts(table, cell).test for cell in over.values}
    sample = sizes.pop() if len(sizes) == 1 else np.nan
    collapse = {key: _curve(rows, key, spec, layer, None) for key, spec in _COLLAPSE.items()}
    errors = {key: _curve(rows, key, spec, layer, sample if spec[3] == "test" else np.nan) for key, spec in _ERRORS.items()}
    if not any(collapse.values()):
        raise RequestError("the rows hold no nc1_pinv; draw runs of `empirical run collapse --train-per-class 10:100:5`")
    lines = {"two_err": errors["test_ncc_error"].scaled(2.0, "two_err"), **_law(table, over)}
    fit = power_law(rows, layer)
    lines |= {"fit": fit.curve} if fit else {}
    with style.applied():
        figure = _draw(style, over, collapse, lines, errors, fit.label if fit else "")
    out = [row for c in [*collapse.values(), *lines.values()] for row in c.rows("nc1")]
    out += [row for c in errors.values() for row in c.rows("error")]
    return Drawing(figure, COLUMNS, out, _notes(collapse, lines, sample) + excluded_note(table))


@dataclass(frozen=True)
class Fit:
    """NC1_test = c n^-alpha, fitted to the logarithms of every seed's value; `half` is half the 95 % t interval of alpha."""

    alpha: float
    half: float
    curve: Curve

    @property
    def label(self) -> str:
        """The legend's entry."""
        return rf"Fit, test: $n^{{{-self.alpha:.2f}\pm{self.half:.2f}}}$"


def power_law(rows: Measured, layer: str) -> Fit | None:
    """Fit the test split's NC1 about the train means against the size of the training set; None under three sizes."""
    from scipy import stats

    some = rows.where(measure="nc1_pinv_strong", split="test", layer=layer, centres="train")
    n, value = some["swept"], some["value"]
    keep = np.isfinite(n) & (n > 0) & np.isfinite(value) & (value > 0)
    sizes = np.unique(n[keep])
    if len(sizes) < FEWEST:
        return None
    found = stats.linregress(np.log(n[keep]), np.log(value[keep]))
    half = float(stats.t.ppf(0.975, int(keep.sum()) - 2) * found.stderr)
    nothing = np.full(len(sizes), np.nan)
    line = np.exp(found.intercept + found.slope * np.log(sizes))
    made = Curve("fit", sizes, line, nothing, nothing, np.zeros(len(sizes), int), np.zeros(len(sizes), bool))
    return Fit(-float(found.slope), half, made)


def last_epochs(rows: Measured) -> Measured:
    """Keep the rows of the last epoch of every (cell, seed)."""
    latest: dict[Any, float] = {}
    for cell, seed, epoch in zip(rows["cell"], rows["seed"], rows["epoch"], strict=True):
        latest[cell, seed] = max(latest.get((cell, seed), -np.inf), epoch)
    last = np.array([latest[cell, seed] for cell, seed in zip(rows["cell"], rows["seed"], strict=True)])
    return Measured({name: column[rows["epoch"] == last] for name, column in rows.columns.items()})


def _curve(rows: Measured, key: str, spec: tuple[str, ...], layer: str, rate_of: float | None) -> Curve:
    _, _, measure, split, centres = spec
    some = rows.where(measure=measure, split=split, layer="network" if measure == "error" else layer)
    made = curve(some.where(centres=centres) if centres else some, key, along="swept", rate_of=rate_of)
    return replace(made, ends=())  # a seed missing at one size has not diverged over time


def _law(table: Mapping[str, Any], over: Swept) -> dict[str, Curve]:
    """Return the interpolation law where every run is on that generated data set."""
    from ufm.theory.separation import interpolation

    settings = [setting_of(table.cells[cell]) for cell in over.values]  # type: ignore[attr-defined]
    first, needed = settings[0], ("classes", "input_dim", "noise", "signal")
    if first.get("dataset") != "interpolation" or any(not isinstance(first.get(k), (int, float)) for k in needed):
        return {}
    sizes = np.unique(list(over.values.values()))
    found = [
        interpolation(int(n), int(first["input_dim"]), int(first["classes"]), first["noise"], first["signal"]) for n in sizes
    ]
    value = np.array([law.own_means if law.valid else np.nan for law in found])
    nothing = np.full(len(sizes), np.nan)
    law = Curve("interpolation", sizes, value, nothing, nothing, np.zeros(len(sizes), int), np.zeros(len(sizes), bool))
    return {"interpolation": law} if law else {}


def _draw(
    style: Style, over: Swept, collapse: Mapping[str, Curve], lines: Mapping[str, Curve], errors: Mapping[str, Curve], fitted: str
) -> Any:
    rows, columns = (1, 2) if style.wide else (2, 1)
    figure, grid = panels(style, rows, columns, 0.36 * style.width if style.wide else 0.56 * style.width)
    left, right = grid.ravel()
    legend = Legend()
    axis = LogAxis.over([*collapse.values(), *lines.values()], zero=bool(collapse["train"]))
    axis.apply(left)
    for key, (label, look, *_) in _COLLAPSE.items():
        draw_curve(left, collapse[key], LOOKS[look], axis, legend, label)
    if collapse["train"]:
        zero_line(left, axis, LOOKS["optimum"], legend, "Theory, train: 0 (UFM)")
    draw_curve(left, lines["two_err"], LOOKS["theory"], axis, legend, r"Theory, test: $2\,\mathrm{err}$")
    if "interpolation" in lines:
        draw_curve(left, lines["interpolation"], LOOKS["gaussian"], axis, legend, "Theory, own means: interpolation")
    if "fit" in lines:
        draw_curve(left, lines["fit"], LOOKS["floor"], axis, legend, fitted)
    left.set_ylabel(NC1)
    title(left, "nc1", "(a) Last epoch, variability")
    axis = LogAxis.over(errors.values())
    axis.apply(right)
    for key, (label, look, *_) in _ERRORS.items():
        draw_curve(right, errors[key], LOOKS[look], axis, legend, label)
    right.set_ylabel("Error rate")
    title(right, "error", "(b) Last epoch, error")
    every = [*collapse.values(), *errors.values()]
    for ax in (left, right):
        swept_axis(ax, over.label, np.concatenate([c.x for c in every]))
    if any(np.isfinite(c.low).any() for c in every):
        legend.band(f"95 % interval, {seed_counts(every)}")
    finish(figure, style, legend)
    return figure


def _notes(collapse: Mapping[str, Curve], lines: Mapping[str, Curve], sample: float) -> tuple[str, ...]:
    notes = [
        f"The last epoch of every training; means over {seed_counts(list(collapse.values()))}, 95 % t intervals of the log mean"
        + (f", errors joined with the sample's own ({sample:.0f})." if np.isfinite(sample) else "."),
        "Limits: at each n the training time grows first (t, then n). NC1 at different n has different sampling noise: "
        "without any signal NC1 of p-dimensional noise is about (K - 1) n / p.",
    ]
    if "fit" in lines:
        notes.append(
            "The fit is a power law of n to the strong test NC1 of every seed, with the 95 % t interval of its exponent."
        )
    if "interpolation" in lines:
        notes.append("The interpolation law holds for the min-norm interpolant of that data, with N = K n at most d / 4.")
    return tuple(notes)
