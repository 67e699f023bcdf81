"""A trained head of several maps, layer by layer: NC1, rank, cosines and norm balance beside the deep model's structures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

from compare.figures.axes import NC1, PLAIN, Legend, LogAxis, draw_curve, finish, panels, title, zero_line
from compare.figures.drawing import Drawing
from compare.figures.head_sizes import sentence, sizes
from compare.figures.heads import (
    DECOUPLED,
    Theory,
    Trained,
    along_layers,
    norm_shares,
    of_theory,
    theories,
    theory_notes,
    trained,
)
from compare.figures.series import COLUMNS, Curve, excluded_note, seed_counts
from compare.style import LOOKS, Look, Style, group_look

MOST = 6  # settings in one figure
# panel -> (title, vertical axis, what is drawn)
PANELS = {
    "nc1": ("NC1 of $H_l$", NC1),
    "rank": ("Rank of means", "Effective rank"),
    "cosine": ("Cosines of means", "Mean cosine"),
    "balance": ("Norm balance", r"$\|W_l\|^2$ / mean over $l$"),
}
AT_OPTIMUM = "Theory: NC1 is 0, norms are equal"


def draw(table: Mapping[str, Any], style: Style) -> Drawing:
    """Draw four panels over l = 1..L, the maps of the head: NC1, effective rank and mean cosine of the class means of H_l
    (post-activation, about the origin), and |W_l|^2 over its mean.

    One setting: trained (last epoch), NC1 also on test, and untrained. Several: one curve each. Black: deep neural collapse
    (DNC) and, where it exists, the strongly regular graph solution (SRG) for ReLU heads, the lowest structure for linear ones;
    for the norms the balance that holds at every stationary point.

    Raises:
        RequestError: more settings than are told apart, or heads of different depths.
    """
    found = trained(table, "layers", MOST)
    known, unknown = theories(found[0])
    drawn = _single(found[0]) if len(found) == 1 else _several(found)
    lines = _theory_lines(known, found)
    with style.applied():
        figure = _draw(style, drawn, lines, known, found[0].depth)
    out = [row for panel, curves in drawn.items() for one, _, _ in curves for row in one.rows(panel)]
    out += [row for panel, curves in lines.items() for one, _, _ in curves for row in one.rows(panel)]
    return Drawing(figure, COLUMNS, out, _notes(found, known, unknown, drawn) + _sizes(table, found) + excluded_note(table))


Drawn = dict[str, list[tuple[Curve, Look, str]]]  # panel -> curve, look, label


def _panels_of(rows: Any, one: Trained, key: str) -> dict[str, Curve]:
    return {
        "nc1": along_layers(rows, one.features, "nc1_pinv", f"nc1 {key}"),
        "rank": along_layers(rows, one.features, "means_rank_effective", f"rank {key}"),
        "cosine": along_layers(rows, one.features, "means_cosine", f"cosine {key}"),
        "balance": norm_shares(rows, one.maps, f"balance {key}"),
    }


def _single(one: Trained) -> Drawn:
    states = [
        (one.rows, "train", LOOKS["train"], "Train, last epoch"),
        (one.untrained, "untrained", LOOKS["weights"], "Untrained"),
    ]
    found: Drawn = {panel: [] for panel in PANELS}
    for rows, key, look, label in states:
        for panel, curve in _panels_of(rows, one, key).items() if len(rows) else ():
            found[panel].append((curve, look, label))
    test = along_layers(one.rows, one.features, "nc1_pinv_strong", "nc1 test", split="test", centres="train")
    found["nc1"].insert(1, (test, LOOKS["test"], "Test, about train means"))
    return found


def _several(settings: Sequence[Trained]) -> Drawn:
    found: Drawn = {panel: [] for panel in PANELS}
    for index, one in enumerate(settings):
        for panel, curve in _panels_of(one.rows, one, one.label).items():
            found[panel].append((curve, group_look(index), one.label))
    return found


def _theory_lines(known: Sequence[Theory], found: Sequence[Trained]) -> Drawn:
    lines: Drawn = {panel: [] for panel in PANELS}
    for one in known:
        lines["rank"].append((of_theory(f"rank {one.label}", one.ranks()), one.look, one.label))
        lines["cosine"].append((of_theory(f"cosine {one.label}", one.cosines()), one.look, one.label))
    if any(balanced(one) for one in found):
        level = of_theory("balance theory", [1.0] * found[0].depth)
        lines["balance"].append((level, LOOKS["optimum"], AT_OPTIMUM))
    return lines


def balanced(one: Trained) -> bool:
    """Whether every stationary point of this training balances the norms: coupled decay, no bias."""
    coupled = one.setting.get("optimizer") not in DECOUPLED and float(one.setting.get("weight_decay") or 0) > 0
    return coupled and one.setting.get("bias") is False


def _draw(style: Style, drawn: Drawn, lines: Drawn, known: Sequence[Theory], depth: int) -> Any:
    figure, grid = panels(style, 2, 2, 0.30 * style.width if style.wide else 0.48 * style.width, sharex=True)
    legend = Legend()
    for ax, letter, (panel, (name, label)) in zip(grid.ravel(), "abcd", PANELS.items(), strict=True):
        curves = drawn[panel] + lines[panel]
        axis = PLAIN
        if panel == "nc1":
            axis = LogAxis.over([c for c, _, _ in curves], zero=bool(known))
            axis.apply(ax)
        for curve, look, text in curves:
            draw_curve(ax, curve, look, axis, legend, text)
        if panel == "nc1" and known:
            zero_line(ax, axis, LOOKS["optimum"], legend, AT_OPTIMUM)
        if panel != "nc1":
            _linear(ax, [c for c, _, _ in curves], panel)
        ax.set_ylabel(label)
        ax.set_xlim(0.85, depth + 0.15)
        ax.xaxis.set_major_locator(FixedLocator(list(range(1, depth + 1, -(-depth // 10)))))
        ax.xaxis.set_minor_locator(NullLocator())
        title(ax, panel, f"({letter}) {name}")
    every = [c for curves in drawn.values() for c, _, _ in curves]
    if any(np.isfinite(c.low).any() for c in every):
        legend.band(f"95 % interval, {seed_counts(every)}")
    finish(figure, style, legend, "Layer $l$ of the head ($H_l$ goes into $W_l$); training at fixed $n$")
    return figure


def _linear(ax: Any, curves: Sequence[Curve], panel: str) -> None:
    """Set a linear axis that holds the points; an interval that reaches far beyond them is cut."""
    points = np.concatenate([c.value for c in curves if c])
    points = points[np.isfinite(points)]
    low, high = min(0.0, float(points.min())), float(points.max())
    margin = 0.06 * (high - low) or 1.0
    ax.set_ylim(low - (margin if panel == "cosine" or low < 0 else 0), high + 1.5 * margin)
    ax.yaxis.set_major_locator(MaxNLocator(5))


def _sizes(table: Mapping[str, Any], found: Sequence[Trained]) -> tuple[str, ...]:
    """Say what theory predicts at each training's own regularisation, where the balance gives it."""
    said = [sentence(one, sizes(table, one)) for one in found]
    return tuple(text for text in said if text)


def _notes(found: Sequence[Trained], known: Sequence[Theory], unknown: str, drawn: Drawn) -> tuple[str, ...]:
    first = found[0]
    names = ", ".join(f"H_{i + 1} {name or '(not measured)'}" for i, name in enumerate(first.features))
    every = [c for curves in drawn.values() for c, _, _ in curves]
    notes = [
        f"Feature layers of the head: {names}. Class means are post-activation and about the origin; W_l maps H_l on.",
        f"Means over {seed_counts(every)} with 95 % Student-t intervals (NC1: of the log mean), at the last epoch.",
    ]
    notes += theory_notes(known, unknown)
    if any(not balanced(one) for one in found):
        notes.append("Decoupled weight decay, none, or a bias: the norms need not balance, and the line is for the others.")
    notes.append("Limits: training time grows at a fixed training set (t, then n).")
    return tuple(notes)
