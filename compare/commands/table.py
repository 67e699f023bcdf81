"""`compare table RUN...`: numbers with their mean and 95 % interval over seeds, beside what theory predicts."""

from __future__ import annotations

import click

from compare.commands.reading import read_runs
from compare.commands.shared import json_option, output_path, runs_argument
from ufm.console import examples, safe_text

FORMATS = ("text", "latex", "csv", "markdown", "json")


@click.command(
    "table",
    help="Print the numbers of runs: mean and 95 % interval over seeds, beside the prediction. Unless --layer or --epoch say "
    "otherwise: the last epoch of the classifier's input (penultimate) and of the network as a whole, in every format. "
    "The interval is Student's t over seeds, joined on test with the sampling error of the test points (shares; NC1 about the "
    "train means at the last epoch), which more seeds on one test set do not shrink; a share's is cut at 0 and 1.",
    epilog=examples(
        ("compare table runs/collapse/digits-mlp-* --format latex --measure nc1_pinv,ncc_error", "2 s"),
        ("compare table runs/ --layer all --epoch all --format csv -o all.csv", "5 s"),
    ),
)
@runs_argument
@click.option("--format", "form", default="text", metavar="|".join(FORMATS), help="How to write it.  [default: text]")
@click.option("--conventions", is_flag=True, help="Every NC1 of the same features: definition, whose it is, value by conversion.")
@click.option("--measure", default=None, metavar="NAME,..", help="Only these measures.")
@click.option(
    "--layer", default=None, metavar="all|NAME,..", help="These layers, or all of them.  [default: penultimate,network]"
)
@click.option("--epoch", default="last", metavar="last|all|E,..", help="Each seed's last epoch, all, or these.  [default: last]")
@click.option("-o", "--output", default=None, metavar="F", help="Write to a file instead of stdout.")
@json_option
def command(
    runs: tuple[str, ...],
    form: str,
    conventions: bool,
    measure: str | None,
    layer: str | None,
    epoch: str,
    output: str | None,
    as_json: bool,
) -> None:
    """Print numbers."""
    from compare import conventions as every
    from compare import table as tables
    from compare.derived import with_derived
    from ufm.errors import RequestError
    from ufm.files import atomic_write
    from ufm.tables import suggest

    form = "json" if as_json else form
    if form not in FORMATS:
        raise RequestError(f"unknown --format {form!r}; {suggest(form, FORMATS)}")
    epochs = _epochs(epoch)
    path = output_path(output, (".txt", ".tex", ".csv", ".md", ".json")) if output else None
    loaded = read_runs(runs)
    if not conventions:
        loaded = with_derived(loaded)
    loaded = tables.chosen_layers(loaded, _names(layer))
    if conventions:
        text = tables.write(every.conventions(loaded, epochs=epochs), every.COLUMNS, form)
    else:
        text = tables.write(tables.numbers(loaded, measures=_names(measure), epochs=epochs), tables.COLUMNS, form)
    if path is None:
        click.echo(text, nl=False)
    else:
        atomic_write(path, text.encode())
        click.echo(f"written: {path}", err=True)


def _names(text: str | None) -> list[str] | None:
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]


def _epochs(text: str) -> str | list[int]:
    """Return "last", "all" or the numbers; RequestError for anything else."""
    from ufm.errors import RequestError

    if text in ("last", "all"):
        return text
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and len(part) < 16 for part in parts):
        raise RequestError(f"--epoch {safe_text(text)[:40]!r} is not last, all or whole numbers; write for example --epoch 0,10")
    return [int(part) for part in parts]
