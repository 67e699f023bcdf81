"""Gram matrices of a theory sweep: W W^T and H H^T as predicted and as found, side by side."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from compare.figures.axes import Legend, finish, make_square, panels, title
from compare.figures.drawing import Drawing
from compare.figures.series import COLUMNS, Measured, excluded_note
from compare.figures.settings import setting_of, spoken, swept
from compare.style import Style, escape
from ufm.console import safe_text
from ufm.errors import RequestError
from ufm.geometry import relabelling
from ufm.prediction import EVIDENCE

MOST = 3  # cells of a sweep shown, one a row: the first, the middle and the last
SIDES = {"weights": ("$WW^{T}$", "gram_w"), "means": ("$HH^{T}$", "gram_h")}


@dataclass(frozen=True)
class Cell:
    """The Gram matrices of one cell, side -> (predicted or None, found), both divided by the largest entry of the found one."""

    options: tuple[str, ...]
    grams: dict[str, tuple[np.ndarray | None, np.ndarray]]
    prediction: str  # its name and status, or why there is none
    proven: bool = True


def is_theory(table: Mapping[str, Any]) -> bool:
    """Whether the table holds cells of a theory sweep and no training."""
    splits = Measured.of(table).distinct("split")
    return bool(splits) and set(splits) == {"theory"}


def draw(table: Mapping[str, Any], style: Style) -> Drawing:
    """Draw the Gram matrices of W and of the class means, predicted and found, in units of the largest squared length found.

    Of a sweep the first, the middle and the last cell (in a narrow column the middle one).

    Raises:
        RequestError: the rows keep no Gram matrices (more classes than 20, soft targets, or another system).
    """
    cells = [_cell(table, *chosen) for chosen in _chosen(table, MOST if style.wide else 1)]
    with style.applied():
        figure = _draw(style, cells)
    rows = [
        (f"{side} {kind} {number}", f"class {i}", float(j), float(gram[i, j]), np.nan, np.nan, 1, "")
        for number, cell in enumerate(cells)
        for side, pair in cell.grams.items()
        for kind, gram in zip(("predicted", "found"), pair, strict=True)
        if gram is not None
        for i in range(len(gram))
        for j in range(len(gram))
    ]
    return Drawing(figure, COLUMNS, rows, _notes(cells) + excluded_note(table))


def _chosen(table: Mapping[str, Any], most: int) -> list[tuple[str, dict[str, Any], tuple[str, ...]]]:
    """Return (name, row, options that tell it from the others) of the cells shown, spread over those that keep their Grams."""
    known = getattr(table, "cells", None) or {}
    present = [name for name in dict.fromkeys(Measured.of(table).distinct("cell")) if name in known]
    rows = _grams(tuple(dict.fromkeys(known[name].path for name in present)))
    kept = [name for name in present if name in rows]
    if not kept:
        raise RequestError(
            "these cells keep no Gram matrices (rows of `ufm simulate single` do, up to 20 classes); run the sweep again"
        )
    try:
        over = swept(table, fewer=False)
        kept.sort(key=lambda name: (over.groups[name], over.values[name]))
    except RequestError:  # one cell, no numeric option, too many curves: the order in which they were recorded
        over = None
    number = min(most, len(kept))
    places = [len(kept) // 2] if number == 1 else [round(i * (len(kept) - 1) / (number - 1)) for i in range(number)]
    if over is None:
        chosen = {kept[i]: setting_of(known[kept[i]]) for i in places}
        differ = [key for key in next(iter(chosen.values())) if len({repr(one.get(key)) for one in chosen.values()}) > 1]
        told = {name: tuple(escape(f"{key}={_value(one[key])}") for key in differ) for name, one in chosen.items()}
        if not differ and len(chosen) > 1:  # seeds of one setting
            told = {name: tuple(f"seed={seed}" for seed in known[name].seeds) for name in chosen}
        return [(name, rows[name], told[name]) for name in chosen]
    return [
        (name, rows[name], (*filter(None, over.groups[name].split(", ")), escape(f"{over.name}={over.values[name]:.4g}")))
        for name in (kept[i] for i in places)
    ]


def _value(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, (int, float)) else safe_text(value)


def _grams(paths: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """Return cell name -> its row, for the rows that keep Gram matrices."""
    from pathlib import Path

    from ufm.sweep import read_cells

    found = {}
    for path in paths:
        for row in read_cells(path, full=False, grams=True):
            if isinstance(row.get("gram"), Mapping) and isinstance(row.get("measures"), Mapping):
                found[f"{Path(path).name}#{row['cell']}"] = row
    return found


def _cell(table: Mapping[str, Any], name: str, row: Mapping[str, Any], options: tuple[str, ...]) -> Cell:
    from ufm.predict import predict
    from ufm.systems.single import Single, problem_of

    known = table.cells[name]  # type: ignore[attr-defined]
    fields = {f.name for f in dataclasses.fields(Single)}
    setting = {key: tuple(v) if isinstance(v, list) else v for key, v in known.config.items() if key in fields}
    problem = problem_of(Single(**setting))
    prediction = predict(problem)
    shown = {side: _full(row["gram"].get(side), problem.classes) for side in SIDES}
    order = np.arange(problem.classes)
    if "code" in prediction.details and prediction.gram_h is not None:  # which class sits at which vertex is free
        places = relabelling(shown["means"], prediction.gram_h)
        order = order if places is None else places
    grams = {}
    for side, (_, attribute) in SIDES.items():
        found = shown[side]
        expected = getattr(prediction, attribute) if prediction.applies else None
        expected = None if expected is None else expected[np.ix_(order, order)]
        unit = float(np.abs(found).max()) or 1.0
        grams[side] = (None if expected is None else expected / unit, found / unit)
    status = f"{prediction.name}, {prediction.status}" if prediction.applies else f"none: {prediction.reason}"
    return Cell(options, grams, status, prediction.status != EVIDENCE)


def _full(upper: Any, classes: int) -> np.ndarray:
    """Return the symmetric matrix of an upper triangle that was kept row by row."""
    try:
        values = np.asarray(upper, dtype=np.float64)
    except (TypeError, ValueError):
        values = np.zeros(0)
    if values.shape != (classes * (classes + 1) // 2,) or not np.isfinite(values).all():
        raise RequestError("a row keeps a Gram matrix of the wrong shape; is the run folder intact?")
    full = np.zeros((classes, classes))
    full[np.triu_indices(classes)] = values
    return full + np.triu(full, 1).T


def _draw(style: Style, cells: list[Cell]) -> Any:
    from matplotlib.colors import LinearSegmentedColormap, Normalize

    from compare.figures.maps import COLORS, colour_bar, draw_map

    kinds = ("Predicted", "Found")
    lines = [[(cell, side, kind) for side in SIDES for kind in kinds] for cell in cells]
    if not style.wide:
        lines = [[(cell, side, kind) for kind in kinds] for cell in cells for side in SIDES]
    columns = len(lines[0])
    figure, grid = panels(style, len(lines), columns, (style.width - 0.5) / columns + 0.35 + 0.6 / len(lines))
    shown = [gram for cell in cells for pair in cell.grams.values() for gram in pair if gram is not None]
    norm = Normalize(min(0.0, min(float(g.min()) for g in shown)), max(1.0, max(float(g.max()) for g in shown)))
    colors, mesh, letters = LinearSegmentedColormap.from_list("ufm", list(COLORS)), None, iter("abcdefghijklmnop")
    for number, (line, row) in enumerate(zip(lines, grid, strict=True)):
        for index, ((cell, side, kind), ax) in enumerate(zip(line, row, strict=True)):
            gram = cell.grams[side][kinds.index(kind)]
            name = f"{side} {kind.lower()} {number // (len(lines) // len(cells))}"
            shaky = "*" if kind == "Predicted" and gram is not None and not cell.proven else ""
            title(ax, name, f"({next(letters)}) {SIDES[side][0]} {kind.lower()}{shaky}")
            if gram is None:
                ax.text(0.5, 0.5, "no closed form", transform=ax.transAxes, ha="center", va="center", color="#666666")
                gram = np.full_like(cell.grams[side][1], np.nan)
            mesh = draw_map(ax, gram, norm, colors, name, diagonal=True)
            ax.set_box_aspect(1)
            if index:
                ax.tick_params(labelleft=False)
            else:
                ax.set_ylabel("\n".join([*(spoken(text) for text in cell.options), "Class $i$"]))
            if number == len(lines) - 1:
                ax.set_xlabel("Class $j$")
    shaky = "" if all(cell.proven for cell in cells) else "\n* evidence only (multistart), not proven"
    colour_bar(figure, mesh, grid.ravel(), f"Gram entry / largest one found{shaky}", 0.05)
    make_square(figure, grid[0, 0])  # after the bar, which takes its height from the panels
    finish(figure, style, Legend())
    return figure


def _notes(cells: list[Cell]) -> tuple[str, ...]:
    notes = ["Gram matrices of W and of the class means (not centred), each pair divided by the largest entry found."]
    for number, cell in enumerate(cells):
        off = [np.abs(a - b).max() for a, b in cell.grams.values() if a is not None]
        told = f"; largest distance of an entry to its prediction {max(off):.2g}" if off else ""
        row = f"Row {number + 1} ({', '.join(cell.options)})" if cell.options else "Prediction"
        notes.append(safe_text(f"{row}: {cell.prediction}{told}."))
    return tuple(notes)
