"""`ufm cite RUN...`: BibTeX of exactly what runs used: their system, loss, solver, and the predictions they were held against."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import click

from ufm.console import examples, print_json
from ufm.errors import RequestError
from ufm.losses import LOSSES
from ufm.record import Run, find_runs, seed_folders
from ufm.solvers import SOLVERS
from ufm.systems import SYSTEMS
from ufm.tables import Entry


@click.command(
    "cite",
    help="Print BibTeX of exactly what the runs used.",
    epilog=examples(("ufm cite runs/", "1 s"), ("ufm cite runs/single --json", "1 s")),
)
@click.argument("runs", nargs=-1, required=True, metavar="RUN...", type=click.Path())
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def command(runs: tuple[str, ...], as_json: bool) -> None:
    """Print the references of runs."""
    from ufm.references import cite

    folders = find_runs(runs)
    if not folders:
        raise RequestError(f"{runs[0]}: no run below it (no config.json); name a folder written by ufm or empirical")
    keys = sorted(set().union(*(references_of(folder) for folder in folders)))
    text = cite(keys)
    if as_json:
        print_json({"runs": [str(folder) for folder in folders], "keys": keys, "bibtex": text})
    else:
        click.echo(text)


def references_of(folder: Path) -> set[str]:
    """Return the keys of everything a run used."""
    from ufm.sweep import read_cells

    run = Run.open(folder)
    used = {*_of(SYSTEMS, run.system), *_of(LOSSES, run.config.get("loss"))}
    used.update(_listed(run.config))
    for place in [folder, *seed_folders(folder)]:
        if (place / "result.json").is_file():
            used.update(_listed(Run.open(place).read_json("result.json")))
    for row in read_cells(folder):
        parameters = row["parameters"]
        used.update(_of(LOSSES, parameters.get("loss")), _of(SOLVERS, row.get("method")))
        prediction = row.get("prediction")
        if isinstance(prediction, Mapping) and prediction.get("applies") and isinstance(prediction.get("reference"), str):
            used.add(prediction["reference"])
    return {key for key in used if key}


def _of(table: Mapping[str, Entry], name: Any) -> Iterable[str]:
    return [table[name].reference] if isinstance(name, str) and name in table else []


def _listed(record: Any) -> Iterable[str]:
    listed = record.get("references") if isinstance(record, Mapping) else None
    return [key for key in listed if isinstance(key, str)] if isinstance(listed, list) else []
