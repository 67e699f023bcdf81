"""`compare verdict RUN...`: judge runs against the claims of the papers whose cells they are."""

from __future__ import annotations

import click

from compare.commands.reading import refuse_ruins
from compare.commands.shared import json_option, print_judged, runs_argument, strict_option
from ufm.console import examples, print_json


@click.command(
    "verdict",
    help="Judge runs: does each claim agree, deviate, or stay undecided, and does its negative control fail as it must?",
    epilog=examples(("compare verdict runs/collapse", "2 s"), ("compare verdict runs/ --paper general --strict", "2 s")),
)
@runs_argument
@click.option(
    "--paper", default=None, metavar="NAME", help="Judge these runs against this paper's claims (or a TOML file of claims)."
)
@strict_option
@json_option
def command(runs: tuple[str, ...], paper: str | None, strict: bool, as_json: bool) -> int:
    """Judge runs."""
    from compare.judging import judge_runs
    from compare.load import load
    from compare.origin import origin

    table = load(runs)
    refuse_ruins(table)
    judged = judge_runs(table, paper)
    if as_json:
        print_json({"papers": [one.record() for one in judged], "provenance": origin(table), "warnings": table.warnings})
    else:
        print_judged(judged, table)
        if not judged:
            click.echo("no claim applies to these runs; `compare papers` lists what can be judged")
    return 1 if strict and not (judged and all(one.agrees for one in judged)) else 0
