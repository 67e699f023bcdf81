"""The rows of theory sweeps behind a loaded table: paths, structures, and cells that did not converge."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compare.figures.series import Measured
from ufm.errors import RequestError


def sweep_rows(table: Mapping[str, Any], figure: str, system: str, command: str) -> list[dict[str, Any]]:
    """Return the rows of every sweep of `system` in a loaded table, parameters complete, in the order of the files.

    Raises:
        RequestError: the table holds no such sweep.
    """
    from ufm.sweep import read_cells

    present = set(Measured.of(table).distinct("cell"))
    cells = (getattr(table, "cells", None) or {}).items()
    folders = dict.fromkeys(cell.path for name, cell in cells if name in present and "#" in name and cell.system == system)
    rows = [row for folder in folders for row in read_cells(folder)]
    if not rows:
        raise RequestError(f"the figure {figure} draws cells of a theory sweep, of {command}; name the folder of one")
    return rows


def swept_system(table: Mapping[str, Any], system: str) -> bool:
    """Whether a loaded table has cells of a sweep of `system`."""
    return any("#" in name and cell.system == system for name, cell in (getattr(table, "cells", None) or {}).items())


def differing(rows: list[dict[str, Any]], leave: tuple[str, ...] = ()) -> dict[str, list[Any]]:
    """Return option -> its values over the rows, of those that take more than one, `leave` apart."""
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        for name, value in row["parameters"].items():
            if name not in (*leave, "seed", "name"):
                found.setdefault(name, {})[repr(value)] = value
    return {name: list(values.values()) for name, values in found.items() if len(values) > 1}
