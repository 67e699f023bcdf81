"""`compare report RUN... -o report.html`: one self-contained page."""

from __future__ import annotations

import click

from compare.commands.reading import read_runs
from compare.commands.shared import json_option, output_path, runs_argument
from ufm.console import examples, print_json


@click.command(
    "report",
    help="Write one self-contained HTML page of runs: verdicts, figures, methods, provenance, and what is not shown.",
    epilog=examples(
        ("compare report runs/collapse/digits-mlp-* -o report.html", "5 s"),
        ("compare report runs/ -o all.html --figures trajectory,nc", "5 s"),
    ),
)
@runs_argument
@click.option("-o", "--output", required=True, metavar="F.html", help="File to write.")
@click.option("--paper", default=None, metavar="NAME", help="Judge against this paper's claims.")
@click.option(
    "--figures",
    default="trajectory,nc,layers,calibration",
    metavar="NAME,..",
    help="Figures to draw.  [default: trajectory,nc,layers,calibration]",
)
@click.option("--title", default=None, help="Title of the page.")
@json_option
def command(runs: tuple[str, ...], output: str, paper: str | None, figures: str, title: str | None, as_json: bool) -> None:
    """Write a report."""
    from compare import report
    from compare.figures import FIGURES
    from compare.judging import judge_runs
    from compare.origin import origin
    from compare.pictures import draw_all
    from compare.verdict import summary
    from ufm.tables import find

    path = output_path(output, (".html", ".htm"))
    names = [name for name in figures.split(",") if name]
    for name in names:
        find(FIGURES, name, "figure")
    table = read_runs(runs)
    judged, source = judge_runs(table, paper), origin(table)
    pictures, not_shown = draw_all(table, names, source)
    report.write(path, table, judged, pictures, not_shown=not_shown, source=source, title=title)
    said = summary([v for one in judged for v in one.verdicts])
    if as_json:
        print_json({"report": str(path), "summary": said, "not_shown": not_shown})
    else:
        click.echo(f"{said}\nwritten: {path}")
