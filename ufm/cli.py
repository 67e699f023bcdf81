"""The command `ufm`: simulate, predict, list, cite. Torch is imported only inside the commands that compute."""

from __future__ import annotations

import click

import ufm
from ufm.console import Commands, examples
from ufm.tables import Entry

COMMANDS = {
    "simulate": Entry("ufm.commands.simulate:group", "theory sweep of a system: optimum, certificate, prediction, measures"),
    "predict": Entry("ufm.commands.predict:group", "closed forms only, nothing is written"),
    "list": Entry("ufm.commands.listing:command", "systems, losses, solvers, predictions, measures; conversions of conventions"),
    "cite": Entry("ufm.commands.cite:command", "BibTeX of exactly what a run used"),
}

main = click.version_option(ufm.__version__, prog_name="ufm")(
    Commands(
        "ufm",
        COMMANDS,
        help="Unconstrained-features models: what should the geometry be?",
        epilog=examples(
            ("ufm simulate single --classes 10 --dim 64 --lambda-w 1e-5:1e-1:20log", "3 s"),
            ("ufm predict single --classes 4 --dim 6 --loss mse --bias free", "1 s"),
        ),
    )
)
