"""A theory sweep: the loss found on the predicted curve, how far from the optimum it can be, how near the geometry is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from compare.figures.axes import Legend, LogAxis, draw_curve, finish, panels, title
from compare.figures.drawing import Drawing
from compare.figures.series import COLUMNS, Curve, Measured, curve, excluded_note, seed_counts
from compare.figures.settings import Swept, swept, swept_axis
from compare.style import LOOKS, Style, group_look
from ufm.errors import RequestError

# panel -> (title, axis label, the measures drawn with their labels)
PANELS = {
    "gap": ("(b) Optimality", "Duality gap", {"certificate_gap": "Gap"}),
    "geometry": (
        "(c) Distance to theory",
        "Distance (0: exact)",
        {"nc2_to_prediction": "NC2 to the prediction", "nc3_cosine": r"NC3: $1-\cos(w_k,\mu_k)$"},
    ),
}
MOST = 4  # curves of one kind in one panel: with more groups the geometry is shown for the first


def draw(table: Mapping[str, Any], style: Style) -> Drawing:
    """Draw a sweep of `ufm simulate` against the option that was swept: (a) loss with its prediction, (b) gap, (c) geometry.

    Raises:
        RequestError: the runs are no theory sweep, or its settings differ in no number.
    """
    rows = Measured.of(table)
    rows = rows.where(split="theory")
    if not np.isfinite(rows.where(measure="loss")["value"]).any():
        raise RequestError("the runs hold no cells of a theory sweep; draw a run of `ufm simulate` with a grid")
    over = swept(table)
    rows = over.rows(rows)
    loss = _by_group(rows.where(measure="loss"), over)
    predicted = {group: _predicted(rows.where(measure="loss", group=group), group) for group in loss}
    others = {name: _measures(rows, over, spec[2]) for name, spec in PANELS.items()}
    with style.applied():
        figure = _draw(style, over, loss, predicted, others)
    found = [("loss", c) for c in [*loss.values(), *predicted.values()]]
    found += [(name, c) for name, curves in others.items() for _, c in curves.values()]
    out = [row for panel, c in found for row in c.rows(panel)]
    return Drawing(figure, COLUMNS, out, _notes(over, list(loss.values()), predicted) + excluded_note(table))


def _by_group(rows: Measured, over: Swept) -> dict[str, Curve]:
    groups = sorted(set(over.groups.values()))
    return {
        group: curve(rows.where(group=group), f"loss {group}".strip(), along="swept")
        for group in groups
        if len(rows.where(group=group))
    }


def _predicted(rows: Measured, group: str) -> Curve:
    mean = curve(replace(rows, columns={**rows.columns, "value": rows["predicted"]}), f"predicted {group}".strip(), along="swept")
    nothing = np.full(len(mean.x), np.nan)
    return replace(mean, low=nothing, high=nothing, ends=())


def _measures(rows: Measured, over: Swept, names: Mapping[str, str]) -> dict[str, tuple[str, Curve]]:
    groups = sorted(set(over.groups.values()))
    found = {}
    for group in groups[: MOST if len(names) == 1 else 1]:
        for name, label in names.items():
            made = curve(rows.where(measure=name, group=group), f"{name} {group}".strip(), along="swept")
            if made:
                found[made.key] = (_named(label, group), made)
    return found


def _draw(style: Style, over: Swept, loss: Any, predicted: Any, others: Any) -> Any:
    rows, columns, height = (1, 3, 0.32) if style.wide else (3, 1, 0.52)
    figure, grid = panels(style, rows, columns, height * style.width, sharex=not style.wide)
    legend, axes = Legend(), grid.ravel()
    axis = LogAxis.over([*loss.values(), *predicted.values()])
    axis.apply(axes[0])
    for index, (group, one) in enumerate(loss.items()):
        draw_curve(
            axes[0], _points_only(one), replace(group_look(index), dashes="none"), axis, legend, _named("Loss found", group)
        )
    for one in predicted.values():
        draw_curve(axes[0], one, LOOKS["theory"], axis, legend, "Predicted optimum", band=False)
    axes[0].set_ylabel("Loss $f$")
    title(axes[0], "loss", "(a) Loss")
    every = [*loss.values()]
    for ax, (name, spec) in zip(axes[1:], PANELS.items(), strict=True):
        _panel(ax, name, spec, others[name], legend)
        every += [c for _, c in others[name].values()]
    values = np.concatenate([c.x for c in every])
    for ax in axes:
        swept_axis(ax, over.label if style.wide or ax is axes[-1] else "", values)
    if any(np.isfinite(c.low).any() for c in every):
        legend.band(f"95 % interval, {seed_counts(every)}")
    finish(figure, style, legend)
    return figure


def _panel(
    ax: Any, name: str, spec: tuple[str, str, Mapping[str, str]], curves: Mapping[str, tuple[str, Curve]], legend: Legend
) -> None:
    axis = LogAxis.over([c for _, c in curves.values()])
    axis.apply(ax)
    first = {"gap": 0, "geometry": 2}[name]
    for index, (label, one) in enumerate(curves.values()):
        draw_curve(ax, one, group_look(first + index), axis, legend, label, zero_size=6.5 - 1.2 * index)
    if not curves:
        ax.text(0.5, 0.5, "not measured", transform=ax.transAxes, ha="center", va="center", color="#666666")
    ax.set_ylabel(spec[1])
    title(ax, name, spec[0])


def _named(label: str, group: str) -> str:
    return f"{label}, {group}" if group else label


def _points_only(one: Curve) -> Curve:
    return replace(one, ends=())  # cells of a sweep are no runs over time: a seed without a value there has not diverged


def _notes(over: Swept, loss: list[Curve], predicted: Mapping[str, Curve]) -> tuple[str, ...]:
    notes = [f"Swept: {over.name}. Means over {seed_counts(loss)}; the gap is a bound on f - f* by convex duality."]
    both = [
        np.nanmax(np.abs(a.value - b.value) / b.value)
        for a, b in zip(loss, predicted.values(), strict=True)
        if a and b and len(a.x) == len(b.x)
    ]
    if both:
        notes.append(f"Largest relative distance of the loss to its prediction: {max(both):.2g}.")
    if len(loss) > 1:
        notes.append(f"Panel c shows the first of {len(loss)} groups, panel b at most {MOST}.")
    if not all(predicted.values()):
        notes.append("No closed form predicts the loss of some settings: their curve is missing.")
    return tuple(notes)
