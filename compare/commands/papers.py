"""`compare papers`: what can be reproduced, at which scales, and what came of it last."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from ufm.console import examples, print_json, print_table


@click.command(
    "papers",
    help="List the papers whose claims can be judged, with their last verdicts.",
    epilog=examples(("compare papers", "at once"), ("compare papers --out runs --json", "at once")),
)
@click.option("--out", default="runs", metavar="DIR", help="Folder of all runs, where the last verdicts are.  [default: runs]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout and nothing else.")
def command(out: str, as_json: bool) -> None:
    """List papers."""
    from compare.papers import PAPERS, paper
    from compare.reproduce import REPORTS

    rows: list[dict[str, Any]] = []
    for name, entry in PAPERS.items():
        one = paper(name)
        for scale in one.scales or [""]:
            last = _last(Path(out) / REPORTS / f"{name}-{scale}" / "verdicts.json") if scale else None
            rows.append(
                {"paper": name, "scale": scale or "any run", "claims": sum(not scale or scale in c.scales for c in one.claims),
                 "last": last or "not run", "summary": entry.summary, "needs": entry.assumptions, "reference": entry.reference,
                 "version": one.version, "title": one.title}
            )  # fmt: skip
    if as_json:
        print_json(rows)
    else:
        print_table(rows, ("paper", "scale", "claims", "last", "summary"))


def _last(path: Path) -> str | None:
    """Return the summary that the last reproduction left; None where there is none."""
    try:
        record = json.loads(path.read_bytes())
        return f"{record['summary']} (version {record['version']})"
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        return "its verdicts.json is damaged; run `compare reproduce` again"
