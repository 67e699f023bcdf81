"""A theory sweep: what was found on the predicted curves, how far from the optimum it can be, how near the geometry is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from compare.figures.axes import DENSE, Legend, LinearAxis, LogAxis, draw_curve, finish, panels, title
from compare.figures.drawing import Drawing
from compare.figures.series import COLUMNS, Curve, Measured, curve, excluded_note, seed_counts
from compare.figures.settings import Swept, spoken, swept, swept_axis
from compare.style import LOOKS, Look, Style, escape, group_look
from ufm.errors import RequestError


@dataclass(frozen=True)
class Panel:
    """What one panel shows: `measures` for one group of settings; with several groups the first measure of each."""

    name: str
    text: str
    label: str
    measures: tuple[str, ...]
    linear: bool = False
    grouped: str = ""  # the label where groups share the panel
    rounding: bool = False  # what is left of zero: from cell to cell it is noise


PANELS = (
    Panel("loss", "Loss", "Loss $f$", ("loss",)),
    Panel("logit_gap", "Logit gap", r"$z_{kk}-\overline{z_{kj}}$", ("logit_gap",), linear=True),
    Panel("norms", "Norms", "Frobenius norm", ("weight_norm", "feature_norm"), grouped=r"$\|W\|_F$"),
    Panel("angles", "Angles", "Mean angle (degrees)", ("angle_weights", "angle_means"), True, "Mean angle in $W$ (degrees)"),
    Panel("gap", "Certificate", "Duality gap", ("certificate_gap",), rounding=True),
    Panel(
        "geometry",
        "Distance to theory",
        "Distance (0: exact)",
        ("nc2_to_prediction", "nc3_cosine"),
        grouped="NC2 to the prediction",
        rounding=True,
    ),
)
NAMES = {
    "weight_norm": "$W$ found",
    "angle_weights": "$W$ found",
    "feature_norm": "$H$ found",
    "angle_means": "$H$ found",
    "nc2_to_prediction": "NC2 to the prediction",
    "nc3_cosine": r"NC3: $1-\cos(w_k,\mu_k)$",
}
FOUND, PREDICTED, UNPROVEN = "Found", "Predicted optimum", "Predicted: evidence only, not proven"
REGIMES = {
    "zero": "zero solution",
    "class": "a class dies",
    "direction": "a direction dies",
    "between groups": "groups merge",
    "minority collapse": "minority collapse",
    "majority collapse": "majority collapse",
}
PARTS = 16  # points of a dense curve of rounding errors
DASHES = ((0, (1.0, 1.5)), (0, (5.0, 1.5, 1.0, 1.5)), (0, (3.0, 1.0)), "solid", (0, (5.0, 1.2, 1.0, 1.2, 1.0, 1.2)))


@dataclass(frozen=True)
class Shown:
    """One curve of a panel and how it is drawn."""

    label: str
    curve: Curve
    look: Look


def draw(table: Mapping[str, Any], style: Style) -> Drawing:
    """Draw a sweep of `ufm simulate` against the option that was swept: loss, logit gap, norms, angles, gap, distance to theory.

    Each panel has the predicted curve where theory gives one, and all have a line where a regime ends; a panel whose measure
    the runs do not hold is left out.

    Raises:
        RequestError: the runs are no theory sweep, or its settings differ in no number.
    """
    rows = Measured.of(table)
    rows = rows.where(split="theory")
    if not np.isfinite(rows.where(measure="loss")["value"]).any():
        raise RequestError("the runs hold no cells of a theory sweep; draw a run of `ufm simulate` with a grid")
    over = swept(table)
    rows = over.rows(rows)
    unproven = {name for name, cell in (getattr(table, "cells", None) or {}).items() if cell.unproven}
    shown = {panel: _shown(rows, over, panel, unproven) for panel in PANELS}
    shown = {panel: found for panel, found in shown.items() if found or panel.name == "loss"}
    limits = thresholds(rows, over)
    with style.applied():
        figure = _draw(style, over, shown, limits)
    out = [row for panel, found in shown.items() for one in found for row in one.curve.rows(panel.name)]
    out += [("", name, x, np.nan, np.nan, np.nan, np.nan, "threshold") for name, places in limits.items() for x in places]
    return Drawing(figure, COLUMNS, out, _notes(over, shown, limits) + excluded_note(table))


def _shown(rows: Measured, over: Swept, panel: Panel, unproven: set[str]) -> list[Shown]:
    groups = sorted(set(over.groups.values()))
    several = len(groups) > 1
    measures = panel.measures[:1] if several else panel.measures
    found: list[Shown] = []
    for i, group in enumerate(groups):
        for j, measure in enumerate(measures):
            mine = rows.where(measure=measure, group=group)
            label = _named(FOUND, spoken(group)) if several else NAMES.get(measure, FOUND)
            made = curve(mine, f"{measure} {group}".strip(), along="swept")
            look = group_look(i + (j if len(measures) > 1 else 0))
            predicted = _predictions(mine, f"{measure} {group}".strip(), unproven) if panel.name != "geometry" else []
            if made and panel.rounding:
                made = worst(made)
            if made:
                # Cells of a sweep are no runs over time: a seed without a value there has not diverged.
                found.append(Shown(label, replace(made, ends=()), replace(look, dashes="none") if predicted else look))
            found += predicted
    return sorted(found, key=lambda one: one.label in (PREDICTED, UNPROVEN))  # the legend reads what was found first


def worst(one: Curve) -> Curve:
    """Return a dense curve of rounding errors as its largest value in each of PARTS parts of the axis; a short one as it is."""
    if len(one.x) <= DENSE:
        return one
    at = np.log(one.x) if (one.x > 0).all() else one.x
    part = np.minimum(((at - at.min()) / np.ptp(at) * PARTS).astype(int), PARTS - 1)
    value = np.where(np.isfinite(one.value), one.value, -np.inf)
    chosen = np.array([here[value[here].argmax()] for k in range(PARTS) if len(here := np.flatnonzero(part == k))])
    keep = {name: getattr(one, name)[chosen] for name in ("x", "value", "low", "high", "seeds", "censored")}
    return replace(one, **keep)


def _predictions(rows: Measured, key: str, unproven: set[str]) -> list[Shown]:
    """Return the predicted curve, and apart from it what of it is evidence only."""
    shaky = np.isin(rows["cell"], sorted(unproven))
    dotted = replace(LOOKS["theory"], dashes=(0, (1.0, 1.6)))
    parts = ((PREDICTED, f"predicted {key}", ~shaky, LOOKS["theory"]), (UNPROVEN, f"predicted, not proven, {key}", shaky, dotted))
    found = []
    for label, name, mask, look in parts:
        made = _predicted(Measured({n: column[mask] for n, column in rows.columns.items()}), name) if mask.any() else None
        if made:
            found.append(Shown(label, made, look))
    return found


def _predicted(rows: Measured, key: str) -> Curve:
    mean = curve(replace(rows, columns={**rows.columns, "value": rows["predicted"]}), key, along="swept")
    nothing = np.full(len(mean.x), np.nan)
    return replace(mean, low=nothing, high=nothing, ends=())


def thresholds(rows: Measured, over: Swept) -> dict[str, list[float]]:
    """Return regime -> values of the swept option where its dimensionless number passes 1, interpolated between cells.

    A regime that ends elsewhere in another group says whose it is, while there are line styles for it.
    """
    groups = sorted(set(over.groups.values()))
    found: dict[tuple[str, str], list[float]] = {}
    for measure in sorted(m for m in rows.distinct("measure") if m.startswith("threshold_")):
        name = measure.removeprefix("threshold_")
        name = REGIMES.get(name) or REGIMES.get(name.split()[0]) or escape(name)
        for group in groups:
            mine = curve(rows.where(measure=measure, group=group), measure, along="swept")
            places = found.setdefault((name, group), [])
            places += [x for x in crossings(mine.x, mine.value) if not any(abs(x - y) <= 1e-6 * abs(x) for y in places)]
    found = {key: sorted(places) for key, places in found.items() if places}
    apart = _joined(found, groups)
    if len(apart) <= len(DASHES):
        return apart
    whole: dict[tuple[str, str], list[float]] = {}
    for (name, _), places in found.items():
        whole.setdefault((name, ""), []).extend(places)
    return _joined({key: sorted(set(places)) for key, places in whole.items()}, [""])


def _joined(found: Mapping[tuple[str, str], list[float]], groups: list[str]) -> dict[str, list[float]]:
    """Join regimes, and groups, that end at the same places: they are one line."""
    at: dict[tuple[str, ...], list[tuple[str, str]]] = {}
    for key, places in found.items():
        at.setdefault(tuple(f"{x:.6g}" for x in places), []).append(key)
    labels = {}
    for keys in at.values():
        names, whose = (list(dict.fromkeys(key[i] for key in keys)) for i in (0, 1))
        alone = len(whose) == len(groups)
        labels[", ".join(names) + ("" if alone else f" ({'; '.join(whose)})")] = found[keys[0]]
    return labels


def crossings(x: np.ndarray, numbers: np.ndarray) -> list[float]:
    """Return where the numbers pass 1; straight between neighbours in logarithms, in which powers are straight."""
    keep = np.isfinite(numbers) & (numbers > 0)
    x, level = x[keep], np.log(numbers[keep])
    log = bool((x > 0).all())
    at = np.log(x) if log else x
    places = [float(at[i]) for i in np.flatnonzero(level == 0)]
    for i in np.flatnonzero(level[:-1] * level[1:] < 0):
        places.append(float(at[i] - level[i] * (at[i + 1] - at[i]) / (level[i + 1] - level[i])))
    return sorted(float(np.exp(p)) if log else p for p in places)


def _draw(style: Style, over: Swept, shown: Mapping[Panel, list[Shown]], limits: Mapping[str, list[float]]) -> Any:
    columns = min(3, len(shown)) if style.wide else (1 if len(shown) < 4 else 2)
    lines = -(-len(shown) // columns)
    height = {1: 0.42 if style.wide else 0.52, 2: 0.45, 3: 0.32}[columns] * style.width
    figure, grid = panels(style, lines, columns, height, sharex=True)
    legend, axes, several = Legend(), list(grid.ravel()), len(set(over.groups.values())) > 1
    every = [one.curve for found in shown.values() for one in found]
    values = np.concatenate([c.x for c in every])
    for index, (ax, (panel, found)) in enumerate(zip(axes, shown.items(), strict=False)):
        axis = LinearAxis.over([o.curve for o in found]) if panel.linear else LogAxis.over([o.curve for o in found])
        axis.apply(ax)
        for place, one in enumerate(found):
            band = one.label not in (PREDICTED, UNPROVEN)
            draw_curve(ax, one.curve, one.look, axis, legend, one.label, band=band, zero_size=max(3.0, 6.5 - 1.2 * place))
        if not found:
            ax.text(0.5, 0.5, "not measured", transform=ax.transAxes, ha="center", va="center", color="#666666")
        for dashes, (name, places) in zip(DASHES * len(limits), limits.items(), strict=False):
            _threshold(ax, name, places, dashes, legend)
        ax.set_ylabel((panel.grouped if several else "") or panel.label)
        title(ax, panel.name, f"({chr(97 + index)}) {panel.text}")
        swept_axis(ax, over.label if index + columns >= len(shown) else "", values)
        ax.tick_params(labelbottom=index + columns >= len(shown))
    for ax in axes[len(shown) :]:
        ax.remove()
    if any(np.isfinite(c.low).any() for c in every):
        legend.band(f"95 % interval, {seed_counts(every)}")
    finish(figure, style, legend)
    return figure


def _threshold(ax: Any, name: str, places: list[float], dashes: Any, legend: Legend) -> None:
    look = {"color": "#7a7a7a", "linestyle": dashes, "linewidth": 0.9}
    for x in places:
        ax.axvline(x, zorder=1.2, gid=f"threshold:{name}", label="_", **look)
    legend.rule(f"Threshold: {spoken(name)}", **look)


def _named(label: str, group: str) -> str:
    return f"{label}, {group}" if group else label


def _notes(over: Swept, shown: Mapping[Panel, list[Shown]], limits: Mapping[str, list[float]]) -> tuple[str, ...]:
    theory = [one for found in shown.values() for one in found if one.label in (PREDICTED, UNPROVEN)]
    loss = [one for one in next(iter(shown.values())) if one not in theory]
    predicted = {one.curve.key: one.curve for one in theory}
    counted = seed_counts([one.curve for one in loss])
    gap = "; the gap is a bound on f - f* by convex duality" if any(panel.name == "gap" for panel in shown) else ""
    notes = [f"Swept: {over.name}. Means over {counted}{gap}.", *([over.left] if over.left else [])]
    rounded = [panel.text for panel, found in shown.items() if panel.rounding and any(len(o.curve.x) == PARTS for o in found)]
    if rounded:
        notes.append(f"{', '.join(rounded)}: the largest value in each of {PARTS} equal parts of the axis.")
    for panel, found in shown.items():
        off = [
            np.nanmax(np.abs(one.curve.value - other.value) / np.maximum(np.abs(other.value), 1e-300))
            for one in found
            if (other := predicted.get(f"predicted {one.curve.key}")) and len(other.x) == len(one.curve.x)
            and np.isfinite(one.curve.value + other.value).any()
        ]  # fmt: skip
        if off:
            notes.append(f"{panel.text}: largest relative distance to the prediction {max(off):.2g}.")
    groups = len(set(over.groups.values()))
    if groups > 1:
        left = [p for p in shown if len(p.measures) > 1]
        if left:
            names = ", ".join(f"{NAMES[p.measures[0]].replace(' found', '')} in {p.text.lower()}" for p in left)
            notes.append(f"With {groups} groups shown: {names}. |H|_F = sqrt(lambda_w/lambda_h) |W|_F at every ridge optimum.")
    if any(one.label == UNPROVEN for one in theory):
        notes.append("Dotted predictions are evidence only (multistart), not proven.")
    if len([k for k in predicted if k.startswith(("predicted loss", "predicted, not proven, loss"))]) < len(loss):
        notes.append("No closed form predicts the loss of some settings: their curve is missing.")
    for name, places in limits.items():
        notes.append(f"Threshold ({name}): {over.name} = {', '.join(f'{x:.4g}' for x in sorted(places)[:8])}.")
    return tuple(notes)
