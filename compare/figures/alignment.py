"""Alignment: what permuting classes over fixed vertices does to test accuracy, and margins through the terminal phase."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from compare.figures.axes import Legend, LinearAxis, LogAxis, draw_curve, finish, fix_ticks, panels, time_axis, title
from compare.figures.drawing import Drawing
from compare.figures.series import COLUMNS, Curve, Measured, curve, excluded_note, seed_counts, t_half_width
from compare.figures.settings import names, setting_of, spoken
from compare.style import LOOKS, Look, Style, group_look
from ufm.errors import RequestError

MOST = 4  # settings side by side
GAP = 1.5  # between them, in permutations
SHADES = (2, 5, 3, 6)  # groups whose look none of the curves below has
ERRORS = "alignment/test_error"
EXPECTED = "Theory: starts alone differ"
FITTED = "Train error 0"
_TIMES = {
    "margin_mean": ("Margin, mean", LOOKS["train"], "train"),
    "margin_min": ("Margin, least", Look("#2f9bd0", (0, (4.0, 1.4)), "v"), "train"),
    "error": ("Test error", LOOKS["test"], "test"),
}


@dataclass(frozen=True)
class _Strip:
    """One setting: the permutations' mean accuracies in order, theory's, and every start of one seed, about the seed's mean."""

    label: str
    means: Curve
    theory: Curve
    points: tuple[np.ndarray, np.ndarray]  # (P R,) place, deviation
    seed: int
    ratios: tuple[float, ...]  # F of every seed

    def csv(self) -> list[tuple[Any, ...]]:
        """Return the strip's rows under `COLUMNS`."""
        nothing = (np.nan, np.nan)
        starts = [
            ("permutations", f"starts {self.means.key}", float(x), float(y), *nothing, 1, "a start of the first seed")
            for x, y in zip(*self.points, strict=True)
        ]
        return self.means.rows("permutations") + self.theory.rows("permutations") + starts


def draw(table: Mapping[str, Any], style: Style) -> Drawing:
    """Draw (a) test accuracy by permutation, one strip for each setting, (b) margins and (c) test error over training.

    (a): about each seed's mean, the permutations in the order of their means: every start of the first seed as a point, the means
    over a permutation's starts averaged over seeds, and what sorting alone would make of them if only starts differed: expected
    normal order statistics times the deviation between starts / sqrt(starts). (b), (c): of a setting with a trained classifier
    where there is one, else of the first.

    Raises:
        RequestError: no run of `empirical run alignment`, none with two permutations and two starts, or over four settings.
    """
    rows = Measured.of(table)
    known = getattr(table, "cells", None) or {}
    cells = [cell for cell in rows.distinct("cell") if cell in known and known[cell].system == "alignment"]
    if not cells:
        raise RequestError("the rows hold no permutations; draw runs of `empirical run alignment --vertices polygon`")
    permuted = [cell for cell in cells if setting_of(known[cell]).get("permutations") not in (None, 1)]
    permuted.sort(key=lambda cell: [str(setting_of(known[cell]).get(key)) for key in ("vertices", "permute")], reverse=True)
    if not permuted:
        raise RequestError("the runs hold one permutation each; name a run of `empirical run alignment --permutations 10` too")
    if len(permuted) > MOST:
        raise RequestError(f"the runs hold {len(permuted)} settings of several permutations; the figure draws {MOST}: name those")
    strips = _strips(table, rows, permuted)
    learned = [cell for cell in cells if setting_of(known[cell]).get("vertices") == "learned"]
    timed = (learned or permuted)[0]
    own = rows.where(cell=timed, layer="network")
    over = {key: _over_time(own.where(measure=key, split=split), key) for key, (*_, split) in _TIMES.items()}
    fitted = first_fit(own)
    with style.applied():
        figure = _draw(style, strips, over, fitted)
    out = [row for strip in strips for row in strip.csv()]
    out += [row for key, c in over.items() for row in c.rows("error" if key == "error" else "margins")]
    return Drawing(figure, COLUMNS, out, _notes(strips, fitted, timed in learned) + excluded_note(table))


# --- the numbers -----------------------------------------------------------------------------------------------------


def _strips(table: Mapping[str, Any], rows: Measured, cells: Sequence[str]) -> list[_Strip]:
    labels = _labels(table, cells)
    strips, left = [], 0.0
    for number, cell in enumerate(cells):
        strips.append(_strip(table, rows.where(cell=cell), cell, labels[cell], number, left))
        left += len(strips[-1].means.x) + GAP
    return strips


def _labels(table: Mapping[str, Any], cells: Sequence[str]) -> dict[str, str]:
    """Return what each setting is called: by its vertices, and where that does not tell two apart by what they differ in."""
    known = table.cells  # type: ignore[attr-defined]
    said = {}
    for cell in cells:
        setting = setting_of(known[cell])
        said[cell] = str(setting.get("vertices")).capitalize() + (", turned" if setting.get("permute") == "symmetries" else "")
    if len(set(said.values())) == len(cells):
        return said
    return {cell: spoken(name) for cell, name in names(table, list(cells)).items()}


def _strip(table: Mapping[str, Any], rows: Measured, cell: str, label: str, number: int, left: float) -> _Strip:
    from compare.points import arrays_of, seed_folder

    one = table.cells[cell]  # type: ignore[attr-defined]
    found = {seed: arrays_of(seed_folder(one, seed)).get(ERRORS) for seed in one.seeds}
    usable = {s: 1 - e for s, e in found.items() if e is not None and e.ndim == 2 and min(e.shape) > 1 and np.isfinite(e).all()}
    shapes = {accuracy.shape for accuracy in usable.values()}
    if len(shapes) != 1:
        raise RequestError(f"{label}: no seed keeps its networks' test errors; train it again, with --starts 2 or more")
    groups, starts = shapes.pop()
    x = left + np.arange(1, groups + 1)
    centred = {seed: accuracy - accuracy.mean() for seed, accuracy in usable.items()}
    means = np.stack([np.sort(a.mean(1)) for a in centred.values()])
    spread = np.array([np.sqrt(np.var(a, axis=1, ddof=1).mean()) for a in centred.values()])
    theory = spread.mean() / np.sqrt(starts) * order_statistics(groups)
    first = min(centred)
    ordered = centred[first][np.argsort(centred[first].mean(1), kind="stable")]
    ratios = _last(rows.where(measure="permutation_f", layer="network", split="test"))
    return _Strip(
        label,
        _curve(f"permutations {number}", x, means),
        _curve(f"expected {number}", x, theory[None]),
        (np.repeat(x, starts), ordered.ravel()),
        first,
        ratios,
    )


def order_statistics(number: int) -> np.ndarray:
    """Return the expected order statistics of `number` standard normal draws, ascending, by Blom's approximation.

    Error under 0.01 at any number: Phi^-1((i - 3/8)/(n + 1/4)) (Blom 1958).
    """
    from scipy.special import ndtri

    return ndtri((np.arange(1, number + 1) - 0.375) / (number + 0.25))


def _curve(key: str, x: np.ndarray, values: np.ndarray) -> Curve:
    """Return the arithmetic mean over seeds of values (seeds, m) with its t interval: accuracies and margins may be negative."""
    there = np.isfinite(values)
    count = there.sum(0)
    mean = np.array([v[k].mean() if k.any() else np.nan for v, k in zip(values.T, there.T, strict=True)])
    half = np.array([t_half_width(v[k]) for v, k in zip(values.T, there.T, strict=True)])
    return Curve(key, x, mean, mean - half, mean + half, count, np.zeros(len(x), bool))


def _over_time(rows: Measured, key: str) -> Curve:
    if key == "error":
        return curve(rows, key, rate_of=np.nan)
    epochs, seeds = np.unique(rows["epoch"]), np.unique(rows["seed"])
    values = np.full((len(seeds), len(epochs)), np.nan)
    values[np.searchsorted(seeds, rows["seed"]), np.searchsorted(epochs, rows["epoch"])] = rows["value"]
    return _curve(key, epochs, values)


def _last(rows: Measured) -> tuple[float, ...]:
    """Return each seed's value at its last epoch."""
    latest: dict[float, tuple[float, float]] = {}
    for seed, epoch, value in zip(rows["seed"], rows["epoch"], rows["value"], strict=True):
        latest[seed] = max(latest.get(seed, (-np.inf, np.nan)), (epoch, value))
    return tuple(value for _, value in latest.values() if np.isfinite(value))


def first_fit(rows: Measured) -> dict[int, float]:
    """Return each seed's first measured epoch of train error 0; seeds that never get there are left out."""
    some = rows.where(measure="error", split="train", layer="network", value=0.0)
    found: dict[int, float] = {}
    for seed, epoch in zip(some["seed"], some["epoch"], strict=True):
        found[int(seed)] = min(float(epoch), found.get(int(seed), np.inf))
    return found


# --- the picture -----------------------------------------------------------------------------------------------------


def _draw(style: Style, strips: Sequence[_Strip], over: Mapping[str, Curve], fitted: Mapping[int, float]) -> Any:
    rows, columns, height = (2, 2, 0.34) if style.wide else (3, 1, 0.52)
    figure, grid = panels(style, rows, columns, height * style.width)
    legend = Legend()
    if style.wide:
        specification = grid[0, 0].get_gridspec()
        for ax in grid[0]:
            ax.remove()
        top = figure.add_subplot(specification[0, :])
    else:
        top = grid[0, 0]
    _permutations(top, strips, legend)
    margins, error = grid.ravel()[-2:]
    shown = [c for key, c in over.items() if key != "error"]
    axis = LinearAxis.over(shown)
    axis.apply(margins)
    for key, (label, look, _) in _TIMES.items():
        ax, own = (error, LogAxis.over([over[key]])) if key == "error" else (margins, axis)
        if key == "error":
            own.apply(error)
        draw_curve(ax, over[key], look, own, legend, label)
    for ax in (margins, error):
        label = time_axis(ax, list(over.values()), "epoch")
        ax.set_xlabel(label)
        _fit_line(ax, fitted, legend)
    margins.set_ylabel("Normalised margin")
    error.set_ylabel("Error rate")
    title(margins, "margins", "(b) Margins, train")
    title(error, "error", "(c) Test error")
    legend.mark("One start", marker="o", markersize=2.5, color="#8a8a8a", markeredgewidth=0)
    if any(np.isfinite(c.low).any() for c in [*over.values(), *(s.means for s in strips)]):
        legend.band(f"95 % interval, {seed_counts([*over.values(), *(s.means for s in strips)])}")
    finish(figure, style, legend)
    return figure


def _permutations(ax: Any, strips: Sequence[_Strip], legend: Legend) -> None:
    every = np.concatenate([np.concatenate([s.means.value, s.points[1]]) for s in strips])
    room = 0.06 * (float(np.ptp(every)) or 1.0)
    axis = LinearAxis(float(every.min()) - room, float(every.max()) + room)
    axis.apply(ax)
    for number, strip in enumerate(strips):
        look = group_look(SHADES[number])
        ax.plot(*strip.points, linestyle="none", marker="o", markersize=1.8, color=look.color, alpha=0.45, markeredgewidth=0,
                zorder=2, gid=f"points:{number}", label="_")  # fmt: skip
        draw_curve(ax, strip.means, look, axis, legend, f"{strip.label}: mean of a permutation")
        draw_curve(ax, strip.theory, LOOKS["theory"], axis, legend, EXPECTED)
    ends = [(float(s.means.x[0]), float(s.means.x[-1])) for s in strips]
    ax.set_xlim(ends[0][0] - 1, ends[-1][1] + 1)
    fix_ticks(ax.xaxis, [(a + b) / 2 for a, b in ends], [_heading(s) for s in strips], [])
    ax.tick_params(axis="x", length=0)
    ax.set_xlabel("Permutations, each setting's in order")
    ax.set_ylabel("Test accuracy\nabout its mean")
    title(ax, "permutations", "(a) Classes permuted over the vertices")


def _heading(strip: _Strip) -> str:
    if not strip.ratios:
        return strip.label
    return f"{strip.label}\n$F={np.exp(np.mean(np.log(strip.ratios))):.2g}$" if min(strip.ratios) > 0 else strip.label


def _fit_line(ax: Any, fitted: Mapping[int, float], legend: Legend) -> None:
    """Mark where the median seed first has train error 0: to the right of it is the terminal phase."""
    if not fitted:
        return
    look = {"color": "#8a8a8a", "linestyle": (0, (1.0, 1.6)), "linewidth": 1.0}
    ax.axvline(float(np.median(list(fitted.values()))), zorder=1.2, gid="decoration", label="_", **look)
    legend.rule(FITTED, **look)


def _notes(strips: Sequence[_Strip], fitted: Mapping[int, float], learned: bool) -> tuple[str, ...]:
    ratios = "; ".join(f"{s.label} {', '.join(f'{f:.3g}' for f in s.ratios)}" for s in strips if s.ratios)
    which = "a trained classifier" if learned else f"the setting {strips[0].label}"
    notes = [
        "(a): test accuracy less its mean over all networks of the seed. Points: every network of the first seed; lines: means "
        f"of each permutation's starts, in order, averaged over {seed_counts([s.means for s in strips])}; dashed: what sorting "
        "makes of such means where permutations do not differ (normal order statistics, Blom). Every seed draws its own.",
        f"F of one-way analysis of variance, seed by seed: {ratios}." if ratios else "No seed has an F.",
        f"(b), (c): of {which}. The margin z_y - max z_j is in units of K/(K-1) rms |w_k - w_mean| rms |h_i - h_mean|: 1 at "
        "neural collapse of balanced classes. Epoch 0 is the untrained network.",
    ]
    if fitted:
        spread = sorted(fitted.values())
        found = f"{np.median(spread):g} on in the median seed ({spread[0]:g} to {spread[-1]:g}; {len(spread)} seeds)"
        notes.append(f"Train error is 0 from epoch {found}, by the epochs measured.")
    return tuple(notes)
