"""The command line of `empirical`. A command's file is read when it is asked for, so that help and completion are quick."""

from __future__ import annotations

import importlib

import click

import ufm

COMMANDS = {
    "run": ("empirical.commands.run:run", "Train networks and measure them."),
    "resume": ("empirical.commands.resume:resume", "Go on with interrupted trainings, to the same numbers."),
    "measure": ("empirical.commands.measure:measure", "Measure your own network from its features."),
    "layers": ("empirical.commands.layers:layers", "List the layers of a model that can be measured."),
    "list": ("empirical.commands.list:list_command", "List studies, presets, data sets, models and losses."),
    "data": ("empirical.commands.data:data", "What data is present; check it; fetch it."),
}


class LazyGroup(click.Group):
    """A group whose commands are imported one by one, on use."""

    def list_commands(self, context: click.Context) -> list[str]:
        """Return the names in the order of the table."""
        return list(COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        """Import the command's module; None for an unknown name, which click answers."""
        if name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[name][0].partition(":")
        return getattr(importlib.import_module(module), attribute)

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the table without importing the commands."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in COMMANDS.items()])


EPILOG = """\b
Examples:
  empirical run collapse --preset digits --seeds 0:5     (about 15 s on 2 cores)
  empirical list                                         (at once)
"""


@click.command(cls=LazyGroup, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(ufm.__version__, prog_name="empirical")
def main() -> None:
    """Train real networks on real data and measure their geometry, on train and on test."""
