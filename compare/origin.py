"""Where a result comes from: the code, the machines, the settings and the seeds of the runs in a table; no user name, no path."""

from __future__ import annotations

from typing import Any

from compare.rows import Table


def origin(table: Table) -> dict[str, Any]:
    """Return the provenance of a table of runs, JSON-ready, short enough for a figure's metadata.

    Equal entries of several runs are said once; where runs differ (two machines, two commits), all values are listed.
    """
    from ufm.provenance import environment

    here = environment()
    runs = _runs(table)
    return {
        "compare": {key: here.get(key) for key in ("version", "commit", "dirty", "python", "libraries")},
        "runs": runs,
        "environments": _merged([cell.environment for cell in table.cells.values()]),
        "excluded": [{"cell": x.cell, "seed": x.seed, "reason": x.reason} for x in table.excluded],
    }


def _runs(table: Table) -> list[dict[str, Any]]:
    """Return one record per setting; the cells of a sweep are counted, not listed."""
    runs: dict[str, dict[str, Any]] = {}
    for name, cell in table.cells.items():
        run = runs.setdefault(
            name.partition("#")[0], {"name": name.partition("#")[0], "study": cell.system, "seeds": [], "cells": 0}
        )
        run["cells"] += 1
        run["seeds"] = sorted({*run["seeds"], *cell.seeds})
        resumed = {str(s): r["resumed_at"] for s, r in cell.results.items() if r.get("resumed_at")}
        if resumed:
            run["resumed_at"] = resumed
    return list(runs.values())


def _merged(environments: list[dict[str, Any]]) -> dict[str, Any]:
    keys = (
        "version",
        "commit",
        "dirty",
        "python",
        "libraries",
        "blas",
        "system",
        "processor",
        "device",
        "threads",
        "tf32",
        "deterministic",
    )
    merged: dict[str, Any] = {}
    for key in (*keys, "argv"):
        values: list[Any] = []
        for environment in environments:
            if environment.get(key) is not None and environment[key] not in values:
                values.append(environment[key])
        if values:
            merged[key] = values[0] if len(values) == 1 else values
    return merged
