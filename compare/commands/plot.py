"""`compare plot FIGURE RUN... -o F`: one figure, with its numbers as CSV and its origin as JSON beside it."""

from __future__ import annotations

import click

from compare.commands.reading import read_runs
from compare.commands.shared import json_option, output_path, runs_argument
from compare.figures import FIGURES
from ufm.console import examples, print_json, safe_text

FORMATS = (".pdf", ".svg", ".png", ".pgf")


class FigureName(click.ParamType):
    """The name of a figure; an unknown one gets a suggestion."""

    name = "FIGURE"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the name if the table has it."""
        from ufm.tables import find

        find(FIGURES, value, "figure")
        return value

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[click.shell_completion.CompletionItem]:
        """Complete from the table."""
        return [click.shell_completion.CompletionItem(name) for name in FIGURES if name.startswith(incomplete)]


@click.command(
    "plot",
    help="Draw FIGURE of runs: " + ", ".join(FIGURES) + ". Writes the figure, F.csv with its numbers and F.json with its origin.",
    epilog=examples(
        ("compare plot trajectory runs/collapse/digits-mlp-* -o trajectory.pdf", "3 s"),
        ("compare plot layers runs/collapse/digits-mlp-* -o layers.svg --width icml", "3 s"),
    ),
)
@click.argument("figure", type=FigureName())
@runs_argument
@click.option("-o", "--output", required=True, metavar="F", help="File to write: .pdf, .svg, .png or .pgf.")
@click.option(
    "--width", default="neurips", metavar="NAME|MM", help="neurips, icml, iclr, jmlr, tmlr, or millimetres.  [default: neurips]"
)
@json_option
def command(figure: str, runs: tuple[str, ...], output: str, width: str, as_json: bool) -> None:
    """Draw one figure."""
    from compare.figures import draw, save
    from compare.origin import origin
    from compare.style import Style

    path, style = output_path(output, FORMATS), Style.of(width)
    table = read_runs(runs)
    drawing = draw(figure, table, style)
    files = save(drawing, path, style=style, provenance=origin(table))
    if as_json:
        print_json({"figure": figure, "files": [str(f) for f in files], "notes": list(drawing.notes)})
        return
    for note in drawing.notes:
        click.echo(safe_text(note))
    click.echo("written: " + ", ".join(str(f) for f in files))
