"""`empirical list`: everything that has a name. Imports neither torch nor data."""

from __future__ import annotations

import click

from empirical import presets
from empirical.data import DATASETS
from empirical.experiment import LOSSES, OPTIMIZERS, SCHEDULES
from empirical.models import MODELS
from empirical.studies import STUDIES
from ufm.console import examples, print_json, print_table


@click.command(
    "list",
    epilog=examples(("empirical list", "at once"), ("empirical list --json", "at once")),
)
@click.option("--json", "as_json", is_flag=True, help="one JSON document on stdout, nothing else")
def list_command(as_json: bool) -> int:
    """List studies, presets, data sets, models, losses, optimisers and schedules."""
    described = {name: presets.read(name)[0] for name in presets.names()}
    tables = {
        "studies": [{"name": name, "summary": entry.summary} for name, entry in STUDIES.items()],
        "presets": [{"name": name, "summary": about["summary"], "cost": about["cost"]} for name, about in described.items()],
        "data sets": [{"name": name, "summary": entry.summary} for name, entry in DATASETS.items()]
        + [{"name": "folder:PATH", "summary": "train.npz and test.npz, or train/CLASS/*.png and test/CLASS/*.png"}],
        "models": [{"name": name, "summary": entry.summary} for name, entry in MODELS.items()]
        + [{"name": "timm:NAME", "summary": "a classifier of timm (extra timm) that ends in one linear layer"}],
        "options": [
            {"name": "--loss", "summary": ", ".join(LOSSES)},
            {"name": "--optimizer", "summary": ", ".join(OPTIMIZERS)},
            {"name": "--schedule", "summary": ", ".join(SCHEDULES)},
        ],
    }
    if as_json:
        print_json({heading: rows for heading, rows in tables.items()})
        return 0
    for number, (heading, rows) in enumerate(tables.items()):
        click.echo(("\n" if number else "") + heading)
        print_table(rows, rows[0])
    return 0
