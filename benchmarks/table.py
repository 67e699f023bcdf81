"""Write benchmarks/README.md: every result in benchmarks/results as a table, so that prose and numbers cannot part.

python benchmarks/table.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
TITLES = {  # in the order of reading
    "solver": "One optimum, one path",
    "sweep": "Sweeps",
    "flow": "Gradient flow",
    "deep": "Deep model",
    "benign": "Benign overfitting",
    "measures": "Measures of stored features",
    "train": "Training and measuring",
    "many-runs": "Many runs, drawn and judged",
}
HEAD = """# Benchmarks

Each row is measured beside what one would otherwise write, in the same process: process CPU time, one thread, medians. A ratio
below its target stays in the table. `python benchmarks/NAME.py --json benchmarks/results/NAME-cpu.json` measures again, `python
benchmarks/table.py` writes this page. No result of a GPU is recorded yet: `train.py` measures there what it leaves out elsewhere.
"""


def page() -> str:
    """Return the page made of benchmarks/results."""
    parts = [HEAD]
    for name, title in TITLES.items():
        document = json.loads((HERE / "results" / f"{name}-cpu.json").read_text(encoding="utf-8"))
        parts.append(f"## {title}\n{_origin(name, document)}\n")
        if "rows" in document and "load_table_hero" not in document:
            parts.append(_table(document["rows"]))
        lines = [_fact(key, value) for key, value in document.get("facts", {}).items()]
        if "load_table_hero" in document:
            lines.append(_many_runs(document))
        if lines:
            parts.append("\n".join(f"* {line}" for line in lines) + "\n")
    return "\n".join(parts)


def _origin(name: str, document: dict[str, Any]) -> str:
    environment = document["environment"]
    libraries = ", ".join(f"{key} {environment['libraries'][key]}" for key in ("torch", "numpy", "scipy"))
    trials = f", medians of {document['trials']}" if "trials" in document else ""
    script = name.replace("-", "_")
    return (
        f"`{script}.py`{trials}; {environment['processor']}, {environment['cores']} cores, {libraries}, {environment['blas']}; "
        f"commit {environment['commit'][:7]}"
    )


def _table(rows: list[dict[str, Any]]) -> str:
    lines = ["| task | ours | alternative | its | ratio | target | |", "|---|---|---|---|---|---|---|"]
    for row in rows:
        unit = _count if "evaluations" in row["task"] else _seconds
        cells = [
            row["task"],
            unit(row["ours"]),
            row["alternative"],
            unit(row["theirs"]),
            f"{row['ratio']:.3g}",
            f"{row['reach']:g}",
            row["note"],
        ]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _count(value: float) -> str:
    return f"{value:.0f}"


def _seconds(value: float) -> str:
    """Return 7e-06 as 7 us."""
    for factor, unit in ((1, "s"), (1e3, "ms")):
        if value * factor >= 1:
            return f"{value * factor:.3g} {unit}"
    return f"{value * 1e6:.3g} us"


def _fact(name: str, fact: dict[str, Any]) -> str:
    if "forward_share" in fact:
        return (
            f"{name}, {fact['looks']} looks in 200 epochs: {fact['share']:.1%} of the training's CPU time, "
            f"{fact['forward_share']:.1%} for the two forward passes alone"
        )
    if "networks" in fact:
        return (
            f"{name}, {fact['networks']} networks: {fact['seconds']:.1f} s by the clock, {fact['cpu_seconds']:.1f} s of CPU "
            f"(target {fact['target']:g} s)"
        )
    if "cells" in fact:
        certified = ", ".join(f"{loss} {number} of {fact['cells'][loss]}" for loss, number in fact["certified"].items())
        return (
            f"{name}: {fact['seconds']:.1f} s by the clock (target {fact['target']:g} s); certified: {certified} (focal: the "
            f"balanced ones, others have no bound), largest gap {fact['largest_gap']:.0e}"
        )
    share = f"; {fact['share']:.1%} of it measuring (target 5 %)" if "share" in fact else ""
    return f"{name}, 200 epochs: {fact['seconds']:.1f} s by the clock (target {fact['target']:g} s){share}"


def _many_runs(document: dict[str, Any]) -> str:
    spent = document["seconds"]
    return (
        f"{document['runs']} runs in {document['settings']} settings ({document['rows']} rows): loaded in {spent['load']:.1f} s, "
        f"as a table in {spent['table']:.1f} s, the hero figure in {spent['hero']:.1f} s: {document['load_table_hero']:.1f} s of "
        f"CPU (target {document['limit']:g} s)"
    )


if __name__ == "__main__":
    (HERE / "README.md").write_text(page(), encoding="utf-8")
