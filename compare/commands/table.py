"""`compare table RUN...`: numbers at the last epoch, mean and 95 % interval over seeds, beside what theory predicts."""

from __future__ import annotations

import click

from compare.commands.shared import json_option, output_path, runs_argument, say_left_out
from ufm.console import examples

FORMATS = ("text", "latex", "csv", "markdown", "json")


@click.command(
    "table",
    help="Print the numbers of runs at their last epoch: mean and 95 % interval over seeds, beside the prediction.",
    epilog=examples(
        ("compare table runs/collapse/digits-mlp-* --format latex --measure nc1_pinv,ncc_error", "2 s"),
        ("compare table runs/collapse/digits-mlp-* --conventions", "2 s"),
    ),
)
@runs_argument
@click.option("--format", "form", default="text", metavar="|".join(FORMATS), help="How to write it.  [default: text]")
@click.option("--conventions", is_flag=True, help="Every NC1 of the same features, with its definition and whose it is.")
@click.option("--measure", default=None, metavar="NAME,..", help="Only these measures.")
@click.option("--layer", default=None, metavar="NAME,..", help="Only these layers.")
@click.option("-o", "--output", default=None, metavar="F", help="Write to a file instead of stdout.")
@json_option
def command(
    runs: tuple[str, ...], form: str, conventions: bool, measure: str | None, layer: str | None, output: str | None, as_json: bool
) -> None:
    """Print numbers."""
    from compare import table as tables
    from compare.derived import with_derived
    from compare.load import load
    from ufm.errors import RequestError
    from ufm.files import atomic_write
    from ufm.tables import suggest

    form = "json" if as_json else form
    if form not in FORMATS:
        raise RequestError(f"unknown --format {form!r}; {suggest(form, FORMATS)}")
    path = output_path(output, (".txt", ".tex", ".csv", ".md", ".json")) if output else None
    loaded = load(runs)
    say_left_out(loaded)
    if not conventions:
        loaded = with_derived(loaded)
    if layer:
        for name in layer.split(","):
            if name not in loaded.levels("layer"):
                raise RequestError(f"--layer {name!r} is not in these runs; {suggest(name, loaded.levels('layer'))}")
        loaded = loaded.where(layer=layer.split(","))
    if conventions:
        text = tables.write(tables.conventions(loaded), tables.CONVENTION_COLUMNS, form)
    else:
        text = tables.write(tables.numbers(loaded, measures=measure.split(",") if measure else None), tables.COLUMNS, form)
    if path is None:
        click.echo(text, nl=False)
    else:
        atomic_write(path, text.encode())
        click.echo(f"written: {path}", err=True)
