"""Shortcut: what a network makes of a spurious attribute while it is trained, in its answers and in its features."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from compare.figures.axes import PLAIN, Legend, LogAxis, draw_curve, finish, panels, time_axis, title
from compare.figures.drawing import Drawing
from compare.figures.series import COLUMNS, Curve, Measured, curve, excluded_note, facts, seed_counts
from compare.figures.settings import names, setting_of, spoken
from compare.style import LOOKS, Look, Style
from ufm.errors import RequestError

SETTINGS = 2  # side by side; more do not fit a column's width
VALUES = 10  # of the attribute, where a run does not say
_DOTS = LOOKS["test"].dashes
# Test is dotted as everywhere; the attribute has colours of its own, lighter than the label's. One legend for both kinds of
# panel: no look stands for an answer and a feature.
_ANSWERS = {
    "train_conflicting": ("Other colour, train", Look("#3d3d3d", "-", ">"), "accuracy_conflicting", "train"),
    "test_aligned": ("Own colour, test", Look("#e8a000", _DOTS, "^", 1.5), "accuracy_aligned", "test"),
    "test_unbiased": ("Unbiased, test", Look("#d1497e", _DOTS, "h", 1.5), "accuracy_unbiased", "test"),
    "test_conflicting": ("Other colour, test", Look("#7a4b94", _DOTS, "D", 1.5), "accuracy_conflicting", "test"),
    "followed": ("Called by colour, test", Look("#6b6b6b", _DOTS, "X", 1.5), "attribute_followed", "test"),
}
_FEATURES = {
    "label_train": ("NC1 by label, train", LOOKS["train"], "nc1_pinv", "train"),
    "label_test": ("NC1 by label, test", LOOKS["test"], "nc1_pinv", "test"),
    "colour_train": ("NC1 by colour, train", Look("#2f9bd0", "-", "v"), "attribute_nc1_pinv", "train"),
    "colour_test": ("NC1 by colour, test", Look("#1f9e89", _DOTS, "P", 1.5), "attribute_nc1_pinv", "test"),
}
CHANCE = "Chance"


@dataclass(frozen=True)
class _Setting:
    name: str
    answers: dict[str, Curve]
    features: dict[str, Curve]
    chance: float


def draw(table: Mapping[str, Any], style: Style) -> Drawing:
    """Draw the accuracy by group of samples (top) and NC1 by label and by the attribute (bottom) over training.

    One column for each of at most two settings, such as training without and with primes. Own colour: samples whose attribute is
    their class's; other colour: the rest; unbiased: every value of the attribute equally likely in every class. NC1 about each
    split's own means.

    Raises:
        RequestError: the runs hold no accuracy by group, or more than two settings.
    """
    rows = Measured.of(table)
    grouped = rows.where(measure="accuracy_conflicting", split="test")
    cells = grouped.distinct("cell")
    if not cells:
        raise RequestError("the rows hold no accuracy by group; draw a run of `empirical run shortcut`")
    if len(cells) > SETTINGS:
        raise RequestError(
            f"the runs hold {len(cells)} settings with a shortcut; the figure shortcut draws at most {SETTINGS}: name those"
        )
    options = {cell: _options(table, cell) for cell in cells}
    cells.sort(key=lambda cell: options[cell].get("primes", "none") != "none")  # stable: what is trained plainly comes first
    called = names(table, cells)
    settings = [_setting(rows.where(cell=cell), called[cell], options[cell], facts(table, cell)) for cell in cells]
    with style.applied():
        figure = _draw(style, settings)
    out = []
    for number, one in enumerate(settings, 1):
        out += [row for c in one.answers.values() for row in c.rows(f"answers_{number}")]
        out += [row for c in one.features.values() for row in c.rows(f"features_{number}")]
    return Drawing(figure, COLUMNS, out, _notes(settings) + excluded_note(table))


def _options(table: Mapping[str, Any], cell: str) -> dict[str, Any]:
    known = (getattr(table, "cells", None) or {}).get(cell)
    return setting_of(known) if known is not None else {}


def _setting(rows: Measured, name: str, options: Mapping[str, Any], known: Any) -> _Setting:
    values = options.get("colours") or VALUES
    against = options.get("conflict_test")
    against = 1 - 1 / values if against is None else against
    groups = {"test_aligned": 1 - against, "test_unbiased": 1.0, "test_conflicting": against, "followed": against}
    samples = {key: round(share * known.test) if np.isfinite(known.test) else np.nan for key, share in groups.items()}
    network = rows.where(layer="network")
    answers = {
        key: _share(curve(network.where(measure=measure, split=split), key, rate_of=samples.get(key, np.nan)))
        for key, (_, _, measure, split) in _ANSWERS.items()
    }
    last = rows.where(layer="penultimate", centres="self")
    features = {key: curve(last.where(measure=m, split=s), key) for key, (_, _, m, s) in _FEATURES.items()}
    return _Setting(name, answers, features, 1 / known.classes if known.classes else np.nan)


def _share(one: Curve) -> Curve:
    """Return the curve of a share: on a linear axis from 0 to 1 a zero is a value like any other."""
    return replace(one, censored=np.zeros(len(one.x), bool))


def _draw(style: Style, settings: list[_Setting]) -> Any:
    height = 0.32 * style.width if style.wide else 0.5 * style.width
    figure, grid = panels(style, 2, len(settings), height, sharex=True, sharey="row")
    legend = Legend()
    axis = LogAxis.over([c for one in settings for c in one.features.values()])
    for column, one in enumerate(settings):
        top, bottom = grid[0, column], grid[1, column]
        top.set_ylim(0.0, 1.03)
        top.set_yticks([0.0, 0.25, 0.5, 0.75, 1.0])
        for key, (label, look, *_) in _ANSWERS.items():
            draw_curve(top, one.answers[key], look, PLAIN, legend, label)
        if np.isfinite(one.chance):
            look, gid = LOOKS["optimum"], "curve:zero"
            top.axhline(one.chance, color=look.color, linestyle=look.dashes, lw=look.width, zorder=1.8, gid=gid, label=CHANCE)
            legend.line(CHANCE, look)
        axis.apply(bottom)
        for key, (label, look, *_) in _FEATURES.items():
            draw_curve(bottom, one.features[key], look, axis, legend, label)
        every = [*one.answers.values(), *one.features.values()]
        time_axis(top, every, "epoch")
        below = time_axis(bottom, every, "epoch")
        heading = _headings(one.name) if len(settings) > 1 else ("Answers", "Features")
        title(top, f"answers_{column + 1}", f"({'ab'[column]}) {heading[0]}")
        title(bottom, f"features_{column + 1}", f"({'abcd'[len(settings) + column]}) {heading[1]}")
    grid[0, 0].set_ylabel("Accuracy")
    grid[1, 0].set_ylabel("NC1, own means")
    curves = [c for one in settings for c in [*one.answers.values(), *one.features.values()]]
    if any(np.isfinite(c.low).any() for c in curves):
        legend.band(f"95 % interval, {seed_counts(curves)}")
    finish(figure, style, legend, below)
    return figure


def _headings(name: str) -> tuple[str, str]:
    """Return what stands above a column: the method where the settings differ in the primes alone."""
    said = {"primes=none": "Without primes", "primes=etf": "With primes"}.get(name, spoken(name))
    said = said if len(said) <= 20 else ""
    return said or "Answers", said or "Features"


def _notes(settings: list[_Setting]) -> tuple[str, ...]:
    curves = [c for one in settings for c in one.answers.values()]
    notes = [
        f"Means over {seed_counts(curves)} (geometric; arithmetic for shares that reach 0) with 95 % Student-t intervals, for "
        "shares of test samples joined with the group's own.",
        "Own colour: samples whose spurious attribute is that of their class; other colour: all others; unbiased: own / A + "
        "(1 - 1/A) other, the accuracy where all A values of the attribute are equally likely in every class; called by colour: "
        "the share of the others that the network takes for the class of their attribute.",
        "NC1 = Tr(Sigma_W Sigma_B^+)/K about the split's own means; by colour: with the attribute in the place of the label. A "
        "primed network is measured as at test, its primes at 0.",
        "Limits: training time grows at a fixed training set (t, then n). Epoch 0 is the untrained network.",
    ]
    if len(settings) > 1:
        notes.append("Columns: " + "; ".join(f"{letter} {one.name}" for letter, one in zip("ab", settings, strict=False)) + ".")
    return tuple(notes)
