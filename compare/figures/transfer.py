"""Transfer: what probes still read of labels that training never saw, while the coarse task collapses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from compare.figures.axes import Legend, LogAxis, draw_curve, finish, panels, time_axis, title
from compare.figures.drawing import Drawing
from compare.figures.series import COLUMNS, Curve, Measured, curve, excluded_note, facts, seed_counts
from compare.figures.settings import names, spoken
from compare.style import LOOKS, Look, Style
from ufm.errors import RequestError

NARROW = 20  # characters of a name that fit above a panel in a narrow column
SETTINGS = 2  # side by side; more do not fit a column's width
STEP = 2.2  # points between the markers of two probes at one epoch
# From left to right; those that usually part from the others are in the middle, nearest to their lines.
_BESIDE = ("probe_std", "probe_ridge", "probe_raw", "probe_whiten", "probe_ncc", "probe_knn", "probe_finetune")
_DOTS = LOOKS["test"].dashes
# probe -> label and look: probes often read the same, so each has a dash pattern and a marker of its own, also without colour;
# none looks like a curve of the panels below
_PROBES = {
    "probe_raw": ("Raw probe", Look("#4a2a80", "-", "X")),
    "probe_std": ("Standardised probe", Look("#b07cc6", (0, (4.0, 1.2)), "D")),
    "probe_whiten": ("Whitened probe", Look("#b0124a", _DOTS, "h", 1.5)),
    "probe_ridge": ("Ridge probe", Look("#e8a000", (0, (5.0, 1.2, 1.0, 1.2)), "^")),
    "probe_ncc": ("Nearest mean", Look("#1f9e89", (0, (3.0, 1.0, 1.0, 1.0, 1.0, 1.0)), "P")),
    "probe_knn": ("5 neighbours", Look("#9a9a9a", (0, (1.0, 2.4)), "p", 1.5)),
    "probe_finetune": ("Fine-tuned", Look("#2f9bd0", (0, (2.2, 1.0)), "v")),
}
_CDNV = Look("#e8a000", _DOTS, "*", 1.5)
_COLLAPSE = {
    "train": ("NC1, coarse, train", LOOKS["train"], "nc1_pinv", "train", "self"),
    "test": ("NC1, coarse, test", LOOKS["test"], "nc1_pinv_strong", "test", "train"),
    "cdnv_directional": (
        "Directional CDNV, fine, test",
        Look("#e8a000", _DOTS, "*", 1.5),
        "fine_cdnv_directional",
        "test",
        "self",
    ),
    "rank": ("Effective rank, train", LOOKS["weights"], "rank_effective", "train", "self"),
}
CHANCE = "Chance"
SCALE_FREE = "probe_whiten"  # what the regularised model conserves while the coarse task collapses
CONSERVED = "Theory: whitened, conserved"


@dataclass(frozen=True)
class _Setting:
    name: str
    probes: dict[str, Curve]
    collapse: dict[str, Curve]
    chance: float

    @property
    def conserved(self) -> tuple[Curve, ...]:
        """The whitened probe's first value of a trained network, held to the end; nothing where it was not run twice."""
        probe = self.probes[SCALE_FREE]
        there = [i for i in range(len(probe.x)) if probe.x[i] > 0 and np.isfinite(probe.value[i])]
        if len(there) < 2:
            return ()
        first, nothing = there[0], np.full(2, np.nan)
        x, value = probe.x[[first, there[-1]]], np.full(2, probe.value[first])
        return (Curve("conserved", x, value, nothing, nothing, np.zeros(2, int), np.zeros(2, bool)),)

    def lost(self) -> str:
        """Say what the whitened probe loses against the line, or ''."""
        if not self.conserved:
            return ""
        line, last = self.conserved[0], self.probes[SCALE_FREE].value
        end = float(last[np.isfinite(last)][-1])
        change = line.value[0] - end
        told = f"{change:.3g} lost beyond the model" if change > 0 else "nothing lost beyond the model"
        first, last_epoch = line.x
        return (
            f"{self.name}: whitened probe {line.value[0]:.3g} at epoch {first:.0f}, {end:.3g} at epoch {last_epoch:.0f}, {told}"
        )


def draw(table: Mapping[str, Any], style: Style) -> Drawing:
    """Draw the probes' test accuracy on the fine labels (top) and what the features look like (bottom) over training.

    One column for each of at most two settings, such as two weight decays. Bottom: NC1 of the coarse task on train and on test,
    the directional CDNV of the fine classes and the effective rank of the features: NC1 alone does not order transfer.

    Theory line: in the regularised model features off the row space of W shrink by one factor, so that a probe that sees no scale
    keeps what it read after the first epochs. What the whitened probe loses against that line is lost beyond the model.

    Raises:
        RequestError: no probe was run, or the runs hold more than two settings.
    """
    rows = Measured.of(table)
    probed = rows.where(split="test", layer="penultimate")
    keep = np.array([str(m) in _PROBES for m in probed["measure"]], bool)
    cells = list(dict.fromkeys(probed["cell"][keep].tolist()))
    if not cells:
        raise RequestError("the rows hold no probe; draw a run of `empirical run transfer --coarse 5,5`")
    if len(cells) > SETTINGS:
        raise RequestError(
            f"the runs hold {len(cells)} settings with probes; the figure transfer draws at most {SETTINGS}: name those"
        )
    called = names(table, cells)
    settings = [_setting(rows.where(cell=cell), called[cell], facts(table, cell).test, table, cell) for cell in cells]
    with style.applied():
        figure = _draw(style, settings)
    out = []
    for number, one in enumerate(settings, 1):
        out += [row for c in (*one.probes.values(), *one.conserved) for row in c.rows(f"probes_{number}")]
        out += [row for c in one.collapse.values() for row in c.rows(f"features_{number}")]
    return Drawing(figure, COLUMNS, out, _notes(settings, style.wide) + excluded_note(table))


def _setting(rows: Measured, name: str, samples: float, table: Mapping[str, Any], cell: str) -> _Setting:
    last = rows.where(layer="penultimate")
    probes = {key: curve(last.where(measure=key, split="test"), key, rate_of=samples) for key in _PROBES}
    collapse = {
        key: curve(last.where(measure=measure, split=split, centres=centres), key)
        for key, (_, _, measure, split, centres) in _COLLAPSE.items()
    }
    known = (getattr(table, "cells", None) or {}).get(cell)
    coarse = known.config.get("coarse") if known is not None else None
    return _Setting(name, probes, collapse, 1 / sum(coarse) if coarse else np.nan)


def _draw(style: Style, settings: list[_Setting]) -> Any:
    height = 0.32 * style.width if style.wide else 0.5 * style.width
    figure, grid = panels(style, 2, len(settings), height, sharex=True, sharey="row")
    legend = Legend()
    drawn = [c for one in settings for c in one.collapse.values()]
    top = max((float(np.nanmax(c.value)) for c in drawn if c), default=1.0)
    axis = LogAxis.over(drawn, extra=[1.5 * top])  # room for the markers of the effective rank
    for column, one in enumerate(settings):
        top, bottom = grid[0, column], grid[1, column]
        _probes(top, one, legend)
        axis.apply(bottom)
        for key, (label, look, *_) in _COLLAPSE.items():
            draw_curve(bottom, one.collapse[key], look, axis, legend, label)
        every = [*one.probes.values(), *one.collapse.values()]
        time_axis(top, every, "epoch")
        below = time_axis(bottom, every, "epoch")
        named = len(settings) > 1 and (style.wide or len(spoken(one.name)) <= NARROW)
        heading = (_heading(one.name),) * 2 if named else ("Probes", "Features")
        title(top, f"probes_{column + 1}", f"({'ab'[column]}) {heading[0]}")
        title(bottom, f"features_{column + 1}", f"({'abcd'[len(settings) + column]}) {heading[1]}")
    grid[0, 0].set_ylabel("Accuracy, fine labels")
    grid[1, 0].set_ylabel("NC1, CDNV, rank")
    curves = [c for one in settings for c in [*one.probes.values(), *one.collapse.values()]]
    if any(np.isfinite(c.low).any() for c in curves):
        legend.band(f"95 % interval, {_whose(curves)}")
    finish(figure, style, legend, below)
    return figure


def _heading(name: str) -> str:
    said = spoken(name)
    return said if said == name else said[:1].upper() + said[1:]


def _probes(ax: Any, one: _Setting, legend: Legend) -> None:
    ax.set_ylim(0.0, 1.03)
    linear = LogAxis(1e-12, 1.0, None)  # accuracies are drawn on a plain axis: nothing of it is cut
    drawn = [key for key in _BESIDE if one.probes[key]]
    for key in (key for key in _PROBES if key in drawn):
        label, look = _PROBES[key]
        place = drawn.index(key)
        legend.line(label, look)
        draw_curve(ax, one.probes[key], replace(look, marker=""), linear, legend, label)
        _markers(ax, one.probes[key], look, STEP * (place - (len(drawn) - 1) / 2))
    for line in one.conserved:
        draw_curve(ax, line, LOOKS["theory"], linear, legend, CONSERVED)
    if np.isfinite(one.chance):
        look = LOOKS["optimum"]
        ax.axhline(one.chance, color=look.color, linestyle=look.dashes, lw=look.width, zorder=1.8, gid="curve:zero", label=CHANCE)
        legend.line(CHANCE, look)


def _markers(ax: Any, probe: Curve, look: Look, aside: float) -> None:
    """Mark the measured points `aside` points beside their epoch: at the same place the last probe drawn hides the others."""
    from matplotlib.transforms import ScaledTranslation

    moved = ax.transData + ScaledTranslation(aside / 72, 0, ax.figure.dpi_scale_trans)
    style = {"linestyle": "none", "marker": look.marker, "color": look.color, "markeredgecolor": "white"}
    ax.plot(probe.x, probe.value, transform=moved, clip_on=False, zorder=3.1, gid=f"points:{probe.key}", label="_", **style)


def _whose(curves: Sequence[Curve]) -> str:
    """Say whose spread the bands show: one seed has none, its band is the test sample's alone."""
    seeds = np.concatenate([c.seeds[c.seeds > 0] for c in curves if c])
    return "test sample" if seeds.max() == 1 else seed_counts(curves)


def _interval_note(curves: Sequence[Curve]) -> str:
    """Say what is drawn of the probes: a mean over seeds or one seed, and what its band holds."""
    drawn = [c for c in curves if c]
    if not drawn:
        return "No probe has a value."
    seeds = np.concatenate([c.seeds[c.seeds > 0] for c in drawn])
    banded = any(np.isfinite(c.low).any() for c in drawn)
    if seeds.max() == 1:
        held = "the bands are the 95 % intervals of its test sample alone" if banded else "it has no interval"
        return f"Test accuracy on the fine labels of one seed; {held}."
    alone = " (of one seed: the test sample's alone)" if seeds.min() == 1 else ""
    return (
        f"Test accuracy on the fine labels; means over {seed_counts(drawn)} with 95 % Student-t intervals, joined with the test "
        f"sample's where its size is known{alone}."
    )


def _notes(settings: list[_Setting], wide: bool) -> tuple[str, ...]:
    curves = [c for one in settings for c in one.probes.values()]
    notes = [
        _interval_note(curves) + " Markers stand beside one another at the epoch they belong to.",
        "Raw, standardised and whitened probes have a fixed budget (SGD, learning rate .1, 50 epochs, batch 128); the whitened "
        "one does not see the scale of any direction, so what it loses is lost for every linear reader.",
        "Bottom: NC1 = Tr(Sigma_W Sigma_B^+)/K of the coarse classes; the directional CDNV is the mean over pairs of fine "
        "classes; the effective rank is the exponential of the entropy of the features' singular values.",
        "Limits: training time grows at a fixed training set (t, then n). Epoch 0 is the untrained network.",
    ]
    losses = [text for one in settings if (text := one.lost())]
    if losses:
        notes.insert(2, f"The model conserves what a probe without a scale reads. {'; '.join(losses)}.")
    if len(settings) > 1 and not wide:
        notes.append("Columns: " + "; ".join(f"{letter} {one.name}" for letter, one in zip("ab", settings, strict=False)) + ".")
    return tuple(notes)
