"""The command `empirical`: run, resume, measure, layers, list, data. A command's file is read when it is asked for."""

from __future__ import annotations

import click

import ufm
from ufm.console import Commands, examples
from ufm.tables import Entry

COMMANDS = {
    "run": Entry("empirical.commands.run:run", "train networks and measure them"),
    "resume": Entry("empirical.commands.resume:resume", "go on with interrupted trainings, to the same numbers"),
    "measure": Entry("empirical.commands.measure:measure", "measure your own network from its features"),
    "layers": Entry("empirical.commands.layers:layers", "the layers of a model that can be measured"),
    "list": Entry("empirical.commands.list:list_command", "studies, presets, data sets, models and losses"),
    "data": Entry("empirical.commands.data:data", "what data is present; check it; fetch it"),
}

main = click.version_option(ufm.__version__, prog_name="empirical")(
    Commands(
        "empirical",
        COMMANDS,
        help="Real networks on real data, measured on train and on test: what is the geometry?",
        epilog=examples(
            ("empirical run collapse --preset digits --seeds 0:5", "15 s on 2 cores"),
            ("empirical list", "at once"),
        ),
    )
)
