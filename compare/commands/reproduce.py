"""`compare reproduce PAPER`: from nothing to verdicts, figures and a report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import click

from compare.commands.shared import json_option, print_judged, strict_option
from compare.papers import PAPERS, SCALES
from ufm.console import examples, print_json
from ufm.spec import click_options, option, resolve


@dataclass(frozen=True)
class Execution:
    """Where and how large it runs."""

    scale: str = option(
        None, "how large the trainings are (the smallest that PAPER has)", kind="str", choices=SCALES, setting=False
    )
    out: str = option("runs", "folder of all runs; figures and report go to DIR/reports", kind="path", setting=False)
    seeds: int = option(
        None, "seeds to train: 0:5 is 0..4 (the registered ones)", kind="int", low=0, high=2**32 - 1, grid=True, setting=False
    )
    workers: int = option(0, "processes (0: one per core)", low=0, high=1024, setting=False)
    device: str = option("auto", "auto, cpu, cuda or cuda:N", setting=False)
    width: str = option("neurips", "width of the figures: neurips, icml, iclr, jmlr, tmlr, or millimetres", setting=False)


class PaperName(click.ParamType):
    """The name of a paper, or a TOML file of claims."""

    name = "PAPER"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[click.shell_completion.CompletionItem]:
        """Complete from the table."""
        return [click.shell_completion.CompletionItem(name) for name in PAPERS if name.startswith(incomplete)]


@click.command(
    "reproduce",
    help="Run whatever is missing of PAPER, judge each of its claims, draw its figures and write the report.",
    epilog=examples(
        ("compare reproduce hui2022 --scale demo", "about 1 min on 2 cores"),
        ("compare reproduce hui2022 --scale laptop --workers 2", "some minutes on 2 cores"),
    ),
)
@click.argument("paper", type=PaperName())
@click_options(Execution)
@strict_option
@json_option
def command(paper: str, strict: bool, as_json: bool, **flags: Any) -> int:
    """Reproduce a paper."""
    from compare.reproduce import reproduce

    values = resolve(Execution, flags)
    seeds = None if values["seeds"] == [None] else values["seeds"]
    one = {name: column[0] for name, column in values.items()}
    made = reproduce(
        paper, one["scale"], out=one["out"], seeds=seeds, workers=one["workers"], device=one["device"], width=one["width"]
    )
    figures = [str(f) for p in made.pictures for f in p.files if f.suffix not in (".csv", ".json")]
    if as_json:
        record = made.judged.record()
        counted = {"trained": made.trained, "computed": made.computed}
        print_json({**record, **counted, "report": str(made.report), "figures": figures, "not_run": made.not_run})
    else:
        print_judged([made.judged], made.table)
        for line in made.not_shown:
            click.echo(f"not shown: {line}")
        click.echo(f"run now: {made.trained} trainings, {made.computed} cells of theory sweeps")
        for path in [*figures, str(made.report)]:
            click.echo(f"written: {path}")
    return 1 if strict and not made.judged.agrees else 0
