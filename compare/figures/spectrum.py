"""The spectra behind collapse: class means and classifier against the flat spectrum of a simplex ETF, and what is left within."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator

from compare.figures import head_spectrum
from compare.figures.arrays import Kept, kept
from compare.figures.axes import Legend, LinearAxis, LogAxis, draw_curve, finish, panels, title, zero_line
from compare.figures.drawing import Drawing
from compare.figures.heads import deep_cells
from compare.figures.series import COLUMNS, Curve, Measured, curve, seed_counts
from compare.style import LOOKS, Style

_MEANS = ("penultimate/train/spectrum", "penultimate/test/spectrum")
_WITHIN = ("penultimate/train/within", "penultimate/test/within")


def draw(table: Mapping[str, Any], style: Style) -> Drawing:
    """Draw (a) singular values of the centred class means and of the classifier, over their root mean square, (b) within spread.

    (a) A simplex ETF has K - 1 equal values, sqrt(K/(K-1)) of the root mean square over K, and one 0. (b) Square roots of the
    eigenvalues of the within-class covariance in the span of the means, over the means' root mean square norm: 0 for theory.

    Trainings with a deep head are drawn by `head_spectrum` instead: the class means of every layer of the head.

    Raises:
        RequestError: several settings, or the run keeps no spectra.
    """
    if deep_cells(table):
        return head_spectrum.draw(table, style)
    found = kept(table, "spectrum", (*_MEANS, *_WITHIN))
    classes = len(found.each(_MEANS[0])[0])
    between = {
        "train": _curve("train means", [_normal(s) for s in found.each(_MEANS[0])]),
        "test": _curve("test means", [_normal(s) for s in found.each(_MEANS[1])]),
        "weights": _curve("weights", [_normal(_centred_spectrum(w)) for w in found.each("weight")]),
    }
    within = {split: _curve(f"{split} within", _spread(found, split)) for split in ("train", "test")}
    flat = _flat(classes)
    with style.applied():
        figure = _draw(style, between, within, flat)
    rows = [row for c in [*between.values(), flat] for row in c.rows("between")]
    rows += [row for c in within.values() for row in c.rows("within")]
    rows.append(("within", "theory", np.nan, 0.0, np.nan, np.nan, 0, "theory"))
    return Drawing(figure, COLUMNS, rows, _notes(found, between))


def _normal(spectrum: np.ndarray) -> np.ndarray:
    """Return the values over their root mean square; what float64 rounding left of a zero is a zero."""
    values = np.sort(spectrum)[::-1] / np.sqrt(np.mean(np.square(spectrum)))
    return np.where(values < 1e-10, 0.0, values)


def _centred_spectrum(weight: np.ndarray) -> np.ndarray:
    return np.linalg.svd(weight - weight.mean(0), compute_uv=False)


def _spread(found: Kept, split: str) -> list[np.ndarray]:
    """Return sqrt(eigenvalues of Sigma_W in the span) over the root mean square norm of the train means, seed by seed."""
    size = [np.sqrt(np.mean(np.square(s))) for s in found.each(_MEANS[0])]
    covariances = found.each(f"penultimate/{split}/within")
    return [np.sqrt(np.clip(np.linalg.eigvalsh(c)[::-1], 0, None)) / s for c, s in zip(covariances, size, strict=True)]


def _curve(key: str, seeds: list[np.ndarray]) -> Curve:
    lines = [(key, float(seed), float(i + 1), value) for seed, values in enumerate(seeds) for i, value in enumerate(values)]
    columns = dict(zip(("measure", "seed", "step", "value"), zip(*lines, strict=True), strict=True)) if lines else {}
    return curve(Measured.of(columns), key, along="step") if lines else _flat(0)


def _flat(classes: int) -> Curve:
    """The simplex ETF: K - 1 equal singular values and a zero."""
    x = np.arange(1, classes + 1, dtype=float)
    value = np.where(x < classes, np.sqrt(classes / max(classes - 1, 1)), 0.0)
    nothing = np.full(classes, np.nan)
    return Curve("simplex ETF", x, value, nothing, nothing, np.zeros(classes, int), value == 0)


def _draw(style: Style, between: Mapping[str, Curve], within: Mapping[str, Curve], flat: Curve) -> Any:
    rows, columns = (1, 2) if style.wide else (2, 1)
    figure, grid = panels(style, rows, columns, 0.36 * style.width if style.wide else 0.56 * style.width)
    left, right = grid.ravel()
    legend = Legend()
    axis = _axis([*between.values(), flat])
    axis.apply(left)
    named = {"train": ("Train", "train"), "test": ("Test", "test"), "weights": ("Classifier", "weights")}
    for index, (key, (label, look)) in enumerate(named.items()):
        draw_curve(left, between[key], LOOKS[look], axis, legend, label, zero_size=6.5 - 1.5 * index)
    draw_curve(left, flat, LOOKS["theory"], axis, legend, "Theory: simplex ETF", zero_size=1.8)
    left.set_ylabel("Singular value / r.m.s.")
    title(left, "between", "(a) Class means, classifier")
    axis = LogAxis.over(within.values(), zero=True)
    axis.apply(right)
    for key in ("train", "test"):
        draw_curve(right, within[key], LOOKS[named[key][1]], axis, legend, named[key][0])
    zero_line(right, axis, LOOKS["optimum"], legend, "Theory, train: 0 (UFM)")
    right.set_ylabel("Within-class s.d. / r.m.s. mean")
    title(right, "within", "(b) Within classes")
    for ax in (left, right):
        ax.set_xlabel("Index")
        ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    every = [*between.values(), *within.values()]
    if any(np.isfinite(c.low).any() for c in every):
        legend.band(f"95 % interval, {seed_counts(every)}")
    finish(figure, style, legend)
    return figure


def _axis(curves: list[Curve]) -> LinearAxis | LogAxis:
    """Return a linear axis for values within a decade, where flat is seen as flat and zero needs no break."""
    values = np.concatenate([c.value[~c.censored] for c in curves if c] or [np.ones(1)])
    values = values[np.isfinite(values) & (values > 0)]
    return LinearAxis.over(curves) if len(values) and values.max() < 10 * values.min() else LogAxis.over(curves, zero=True)


def _notes(found: Kept, between: Mapping[str, Curve]) -> tuple[str, ...]:
    notes = [
        f"Geometric means over {found.seeds()} with 95 % Student-t intervals of the log mean, at the last epoch.",
        "Class means are about their own mean; covariances are about the split's own means, in the span of the train means.",
    ]
    for split in ("train", "test"):
        values = between[split].value[:-1]
        notes.append(f"{split}: largest over smallest of the K - 1 values {values.max() / values.min():.3g} (a simplex ETF: 1).")
    if found.not_etf:
        notes.append(f"A simplex ETF is not the prediction here: {found.not_etf}.")
    return tuple(notes)
