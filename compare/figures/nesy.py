"""Nesy: how well digits are read while only their sums are labelled, and how the unseen digits lie in the features."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from compare.figures.axes import PLAIN, Legend, LogAxis, draw_curve, finish, panels, title
from compare.figures.drawing import Drawing
from compare.figures.series import COLUMNS, Curve, Measured, curve, excluded_note, facts, seed_counts
from compare.figures.settings import setting_of
from compare.style import LOOKS, Look, Style
from ufm.errors import RequestError

MOST = 3  # numbers of operands side by side
# start -> label and look; told apart by dashes and markers also without colour
_STARTS = {
    "scratch": ("From scratch", Look("#0b2a6f", "-", "o")),
    "finetune": ("Pretrained, fine-tuned", Look("#c8400a", (0, (5.0, 1.2)), "s")),
    "frozen": ("Pretrained, frozen", Look("#1f9e89", (0, (1.0, 1.2)), "^", 1.5)),
}
CHANCE = "Chance"


@dataclass(frozen=True)
class _Column:
    """One number of operands: curves by start, epochs counted from where the exact sum begins."""

    operands: int
    accuracy: dict[str, Curve]
    collapse: dict[str, Curve]
    chance: float

    @property
    def curves(self) -> list[Curve]:
        return [*self.accuracy.values(), *self.collapse.values()]


def draw(table: Mapping[str, Any], style: Style) -> Drawing:
    """Draw the test accuracy on single digits (top) and NC1 by the digits' labels on test (bottom), by epoch of the exact sum.

    One column for each of at most three numbers of operands, with one curve a start; no training sees the label of a digit.
    Epochs before 0 are the pretraining on the same sums; NC1 about the test means.

    Raises:
        RequestError: the runs hold no accuracy on digits, more than three numbers of operands, or two settings of one start.
    """
    rows = Measured.of(table)
    cells = rows.where(measure="digit_accuracy", split="test").distinct("cell")
    if not cells:
        raise RequestError("the rows hold no accuracy on unseen digits; draw a run of `empirical run nesy`")
    found: dict[int, dict[str, str]] = {}
    for cell in cells:
        options = _options(table, cell)
        same = found.setdefault(int(options.get("operands", 2)), {})
        start = str(options.get("start", "scratch"))
        if start in same:
            raise RequestError(f"the runs hold two settings of {start} with {options.get('operands')} operands; name one of them")
        same[start] = cell
    if len(found) > MOST:
        raise RequestError(f"the runs hold {len(found)} numbers of operands; the figure nesy draws at most {MOST}: name those")
    columns = [_column(table, rows, operands, found[operands]) for operands in sorted(found)]
    with style.applied():
        figure = _draw(style, columns)
    out = []
    for one in columns:
        out += [row for c in one.accuracy.values() for row in c.rows(f"digits_{one.operands}")]
        out += [row for c in one.collapse.values() for row in c.rows(f"nc1_{one.operands}")]
    return Drawing(figure, COLUMNS, out, _notes(columns) + excluded_note(table))


def _options(table: Mapping[str, Any], cell: str) -> dict[str, Any]:
    known = (getattr(table, "cells", None) or {}).get(cell)
    return setting_of(known) if known is not None else {}


def _column(table: Mapping[str, Any], rows: Measured, operands: int, cells: Mapping[str, str]) -> _Column:
    accuracy, collapse, classes = {}, {}, 0
    for start in _STARTS:
        if start not in cells:
            continue
        own, known = rows.where(cell=cells[start], split="test"), facts(table, cells[start])
        before, classes = _options(table, cells[start]).get("pretrain_epochs") or 0, known.classes or classes
        made = curve(own.where(measure="digit_accuracy", layer="network"), start, rate_of=known.test)
        shown = replace(made, censored=np.zeros(len(made.x), bool))  # on a linear axis a share of 0 is a value like any other
        accuracy[start] = _from(shown, before)
        collapse[start] = _from(curve(own.where(measure="nc1_pinv", layer="penultimate", centres="self"), start), before)
    return _Column(operands, accuracy, collapse, 1 / classes if classes else np.nan)


def _from(one: Curve, epoch: int) -> Curve:
    """Return the curve with its epochs counted from `epoch` on."""
    return replace(one, x=one.x - epoch, ends=tuple((x - epoch, y) for x, y in one.ends))


def _draw(style: Style, columns: list[_Column]) -> Any:
    height = 0.33 * style.width if style.wide else 0.55 * style.width
    figure, grid = panels(style, 2, len(columns), height, sharex=True, sharey="row")
    legend, count = Legend(), len(columns)
    axis = LogAxis.over([c for one in columns for c in one.collapse.values()])
    rule = LOOKS["optimum"]
    for number, one in enumerate(columns):
        top, bottom = grid[0, number], grid[1, number]
        top.set_ylim(0.0, 1.03)
        top.set_yticks([0.0, 0.25, 0.5, 0.75, 1.0])
        axis.apply(bottom)
        for ax in (top, bottom):
            _epochs(ax, [c for column in columns for c in column.curves])
        for start, (label, look) in _STARTS.items():
            if start in one.accuracy:
                draw_curve(top, one.accuracy[start], look, PLAIN, legend, label)
                draw_curve(bottom, one.collapse[start], look, axis, legend, label)
        if np.isfinite(one.chance):
            top.axhline(
                one.chance, color=rule.color, linestyle=rule.dashes, lw=rule.width, zorder=1.8, gid="curve:zero", label=CHANCE
            )
            legend.line(CHANCE, rule)
        title(top, f"digits_{one.operands}", f"({'abc'[number]}) {one.operands} digits")
        title(bottom, f"nc1_{one.operands}", f"({'abcdef'[count + number]}) {one.operands} digits")
    grid[0, 0].set_ylabel("Digit accuracy, test")
    grid[1, 0].set_ylabel("NC1 by digit, test")
    curves = [c for one in columns for c in one.curves]
    if any(np.isfinite(c.low).any() for c in curves):
        legend.band(f"95 % interval, {seed_counts(curves)}")
    finish(figure, style, legend, "Epoch of the exact sum at fixed $n$ (before 0: pretraining)")
    return figure


def _epochs(ax: Any, curves: list[Curve]) -> None:
    """Set a linear axis of epochs; a thin line where the pretraining ends."""
    from matplotlib.ticker import MaxNLocator

    times = np.concatenate([c.x for c in curves if c] or [np.array([0.0, 1.0])])
    low, high = float(times.min()), max(float(times.max()), 1.0)
    room = 0.03 * (high - low)
    ax.set_xlim(low - room, high + room)
    ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    if low < 0:
        ax.axvline(0.0, color="#9a9a9a", lw=0.6, zorder=1.2, gid="rule:begin", label="_")


def _notes(columns: list[_Column]) -> tuple[str, ...]:
    curves = [c for one in columns for c in one.accuracy.values()]
    return (
        f"Test accuracy on single digits, whose labels no training saw; means over {seed_counts(curves)} (geometric; arithmetic "
        "for shares that reach 0) with 95 % Student-t intervals, for accuracies joined with the test sample's.",
        "NC1 = Tr(Sigma_W Sigma_B^+)/K of the last features by digit, about the test means. At epoch 0 (thin line) the exact sum "
        "begins; before it a plain network is trained on the same sums; from scratch it is the untrained network.",
        "Limits: training time grows at a fixed training set (t, then n).",
    )
