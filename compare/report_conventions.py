"""The report's table of conventions: what NC1 is called elsewhere, on the same features."""

from __future__ import annotations

from compare.conventions import conventions
from compare.page import escape, html_table, signs
from compare.pictures import MOST_CELLS
from compare.rows import Table
from ufm.console import format_number

FEWEST = 4  # conventions measured on one state from which a table says more than its rows
COLUMNS = [
    *(("Measure", ""), ("Split", ""), ("Mean", "n"), ("95 % interval", "n"), ("By conversion", "n")),
    *(("Conversion", "t"), ("Definition", "t"), ("Used by", "")),
]


def section(table: Table) -> str:
    """Return every NC1 of the last state's classifier input with its conversions, folded; '' where few were measured."""
    trainings = [name for name in table.cells if "#" not in name][:MOST_CELLS]
    parts = []
    for name, part in table.by_cell(trainings).items():
        some = part.where(layer="penultimate")
        if len({m for m in some.levels("measure") if m.startswith("nc1")} if some.rows else ()) < FEWEST:
            continue
        rows = [
            (
                escape(row["measure"]),
                escape(f"{row['split']}, {row['centres']} centres"),
                format_number(row["mean"]),
                f"{format_number(row['low'])} to {format_number(row['high'])}",
                format_number(row["converted"]),
                signs(row["conversion"]),
                signs(row["definition"]),
                escape(row["used by"]),
            )
            for row in conventions(some)
        ]
        summary = f"<summary>{escape(name)}: {len(rows)} numbers</summary>"
        parts.append(f"<details>{summary}\n{html_table(COLUMNS, rows)}\n</details>")
    if not parts:
        return ""
    intro = (
        "NC1 is the name of several numbers. All of these are of the same features at the last epoch; where one follows from "
        "another by arithmetic, its value by that conversion stands beside it."
    )
    return f"<h2>Conventions</h2>\n<p>{escape(intro)}</p>\n" + "\n".join(parts)
