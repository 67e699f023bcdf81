"""The figures of a report or a reproduction: drawn cell by cell; what cannot be drawn is said, not skipped."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compare.rows import Table
from ufm.errors import RequestError
from ufm.tables import find

# one picture per training; every other shows all runs
PER_SETTING = ("trajectory", "nc", "layers", "gram", "calibration", "spectrum", "confusion", "geometry")
HEADS = ("layers", "spectrum")  # of trainings with deep heads: all of them in one picture
MOST_CELLS = 6  # a page with more settings is no longer read; the rest is listed as not shown


@dataclass(frozen=True)
class Picture:
    """One drawn figure: its kind, the cell it shows, the SVG, what its caption says, and the files written."""

    figure: str
    cell: str  # "" where all runs are shown
    svg: bytes
    caption: str
    notes: tuple[str, ...]
    files: tuple[Path, ...] = ()


def draw_all(
    table: Table,
    figures: Sequence[str],
    origin: Mapping[str, Any],
    *,
    folder: Path | None = None,
    suffix: str = ".pdf",
    width: str = "neurips",
) -> tuple[list[Picture], list[str]]:
    """Draw each figure, those of a single setting for each training.

    With a folder they are also written there, as FIGURE[-CELL].pdf with the numbers as CSV beside.

    Returns the pictures and the sentences for what is not shown.
    """
    from compare.figures import FIGURES, draw, save
    from compare.figures.drawing import render
    from compare.figures.heads import deep_cells
    from compare.style import Style

    style = Style.of(width)
    cells = [name for name, cell in table.cells.items() if "#" not in name and cell.seeds]
    deep = deep_cells(table)
    joint = HEADS if len(deep) > 1 else ()
    each = [(figure, cell) for cell in cells[:MOST_CELLS] for figure in figures if figure in PER_SETTING]
    drawn = [(figure, cell) for figure, cell in each if figure not in joint or cell not in deep]
    drawn += [(figure, "") for figure in figures if (figure not in PER_SETTING or figure in joint) and table.cells]
    pictures, missing = [], []
    for figure, cell in drawn:
        entry = find(FIGURES, figure, "figure")
        try:
            drawing = draw(figure, table.of_cell(cell) if cell else table, style)
        except RequestError as error:
            missing.append(f"figure {figure}{f' of {cell}' if cell else ''}: {error}")
            continue
        # A folder copied from elsewhere may have any name; a file's name keeps its plain part.
        name = figure if len(cells) == 1 or not cell else f"{figure}-{re.sub(r'[^A-Za-z0-9._-]', '_', cell)[:80]}"
        files = save(drawing, folder / f"{name}{suffix}", style=style, provenance=origin) if folder else []
        svg = render(drawing, ".svg", style, {})
        pictures.append(Picture(figure, cell, svg, entry.summary, (f"For {entry.assumptions}", *drawing.notes), tuple(files)))
    missing += [f"figures of {cell}: a page shows at most {MOST_CELLS} settings" for cell in cells[MOST_CELLS:]]
    return pictures, missing
