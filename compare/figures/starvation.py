"""Starvation: how a model answers to a strong and to a weak feature as the strong one grows, under each penalty."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from compare.figures.axes import Legend, LinearAxis, draw_curve, finish, panels, title
from compare.figures.drawing import Drawing
from compare.figures.series import COLUMNS, Curve, Measured, curve, excluded_note, seed_counts
from compare.figures.settings import Swept, spoken, swept, swept_axis
from compare.style import GROUPS, Look, Style, group_look
from ufm.errors import RequestError

PANELS = {
    "z1": ("Strong feature", r"Response $|z_1|$"),
    "z2": ("Weak feature", r"Response $|z_2|$"),
    "elasticity": ("What it takes", r"$\partial\log|z_2|\,/\,\partial\log s_1^2$"),
}
PENALTIES = {"penalty=ridge": "Penalty on weights", "penalty=decoupling": "Penalty on logits"}
DASHES = ("-", (0, (5.0, 1.8)), (0, (1.0, 1.5)), (0, (5.0, 1.5, 1.0, 1.5)))


def draw(table: Mapping[str, Any], style: Style) -> Drawing:
    """Draw |z_1|, |z_2| and the elasticity of z_2 over a sweep of `ufm simulate starvation`: markers found, lines theory.

    One curve for each setting that differs in something else, such as the penalty; at most eight.

    Raises:
        RequestError: the runs are no sweep of the system starvation, or its settings differ in no number.
    """
    rows = Measured.of(table).where(split="theory")
    if not np.isfinite(rows.where(measure="z2")["value"]).any():
        raise RequestError(_no_sweep(table))
    over = swept(table)
    rows = over.rows(rows)
    # The plain penalty first: the order of the legend, and the look of each.
    groups = sorted(set(over.groups.values()), key=lambda name: (list(PENALTIES).index(name) if name in PENALTIES else 9, name))
    shown = {
        name: [_pair(rows.where(measure=name, group=group), f"{name} {group}".strip()) for group in groups] for name in PANELS
    }
    with style.applied():
        figure = _draw(style, over, groups, shown)
    out = [row for name, pairs in shown.items() for pair in pairs for one in pair if len(one.x) for row in one.rows(name)]
    return Drawing(figure, COLUMNS, out, _notes(over, shown) + excluded_note(table))


def _no_sweep(table: Mapping[str, Any]) -> str:
    """Say what to do instead: trainings of the study of the same name are drawn by another figure."""
    wanted = "the runs hold no cells of a theory sweep of features; draw a run of `ufm simulate starvation`"
    trained = set(table["measure"]) & {"gradient_share", "accuracy_conflicting"}
    return f"{wanted}, or these trainings over time with `compare plot trajectory`" if trained else wanted


def _pair(rows: Measured, key: str) -> tuple[Curve, Curve]:
    """Return what was found and what theory says, over the swept option."""
    found, told = _mean(rows, rows["value"], key), _mean(rows, rows["predicted"], f"predicted {key}")
    nothing = np.full(len(told.x), np.nan)
    return found, replace(told, low=nothing, high=nothing)


def _mean(rows: Measured, values: np.ndarray, key: str) -> Curve:
    """Return the mean over seeds: geometric of responses, arithmetic of an elasticity, which has either sign."""
    signed = key.removeprefix("predicted ").startswith("elasticity")
    column = np.exp(values) if signed else values  # `curve` averages logarithms
    made = curve(replace(rows, columns={**rows.columns, "value": column}), key, along="swept")
    back = {name: np.log(getattr(made, name)) for name in ("value", "low", "high")} if signed else {}
    return replace(made, **back, ends=(), censored=np.zeros(len(made.x), bool))


def _draw(style: Style, over: Swept, groups: list[str], shown: Mapping[str, list[tuple[Curve, Curve]]]) -> Any:
    columns = 3 if style.wide else 1
    figure, grid = panels(style, 3 // columns, columns, (0.32 if style.wide else 0.5) * style.width, sharex=True)
    legend, every = Legend(), [one for pairs in shown.values() for pair in pairs for one in pair]
    values = np.concatenate([one.x for one in every])
    for index, (ax, (name, pairs)) in enumerate(zip(grid.ravel(), shown.items(), strict=True)):
        axis = LinearAxis.over([one for pair in pairs for one in pair])
        axis.apply(ax)
        for place, (group, (found, told)) in enumerate(zip(groups, pairs, strict=True)):
            look = group_look(place)
            label = PENALTIES.get(group) or spoken(group) or "Response"
            line = Look(look.color, DASHES[place % len(DASHES)], "", 1.2)
            draw_curve(ax, told, line, axis, legend, f"{label}, theory", band=False)
            draw_curve(ax, found, replace(look, dashes="none"), axis, legend, f"{label}, found")
        heading, label = PANELS[name]
        ax.set_ylabel(label)
        title(ax, name, f"({chr(97 + index)}) {heading}")
        last = index + columns >= len(shown)
        swept_axis(ax, over.label if last else "", values)
        ax.tick_params(labelbottom=last)
    found = [pair[0] for pair in shown["z2"]]
    if any(np.isfinite(one.low).any() for one in found):
        legend.band(f"95 % interval, {seed_counts(found)}")
    finish(figure, style, legend)
    return figure


def _notes(over: Swept, shown: Mapping[str, list[tuple[Curve, Curve]]]) -> tuple[str, ...]:
    found = [pair[0] for pair in shown["z2"]]
    away = [
        np.nanmax(np.abs(a.value - b.value)) / max(np.nanmax(np.abs(b.value)), 1e-300)
        for pairs in (shown["z1"], shown["z2"])
        for a, b in pairs
        if len(a.x) == len(b.x) and np.isfinite(a.value + b.value).any()
    ]
    notes = [
        f"Swept: {over.name}. Means over {seed_counts(found)}. Responses are |U'u|, U the left singular vectors of the signed "
        "features and u the margins at the minimum over the weights; theory is the fixed point of the dual.",
        *([f"Largest relative distance to theory {max(away):.2g}."] if away else []),
        *([over.left] if over.left else []),
    ]
    assert len(found) <= GROUPS
    return tuple(notes)
