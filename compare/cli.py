"""The command `compare`: reproduce, papers, verdict, plot, table, calibrate, report. Each is imported when it is asked for."""

from __future__ import annotations

import click

import ufm
from ufm.console import Commands, examples
from ufm.tables import Entry

COMMANDS = {
    "reproduce": Entry(
        "compare.commands.reproduce:command", "run whatever is missing of a paper, judge its claims, draw, report"
    ),
    "papers": Entry("compare.commands.papers:command", "the papers whose claims can be judged, with their last verdicts"),
    "verdict": Entry("compare.commands.verdict:command", "judge runs: agrees, deviates or undecided"),
    "plot": Entry("compare.commands.plot:command", "draw a figure of runs, with its numbers as CSV beside it"),
    "table": Entry("compare.commands.table:command", "numbers with intervals: text, LaTeX, CSV, Markdown, JSON"),
    "calibrate": Entry("compare.commands.calibrate:command", "what theory predicts at a network's own regularisation"),
    "report": Entry("compare.commands.report:command", "one self-contained HTML page of runs"),
}

main = click.version_option(ufm.__version__, prog_name="compare")(
    Commands(
        "compare",
        COMMANDS,
        help="Do theory and measurement agree, by how much, on train and on test?",
        epilog=examples(
            ("compare reproduce hui2022 --scale demo", "about 1 min on 2 cores"),
            ("compare verdict runs/collapse", "2 s"),
        ),
    )
)
