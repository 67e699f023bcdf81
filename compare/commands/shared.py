"""What the sub-commands share: the arguments, and the check that an output can be written before anything is computed."""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Sequence
from pathlib import Path

import click

from compare.judging import VERDICT_COLUMNS, Judged, excluded_line, lines, named_cell
from compare.rows import Table
from ufm.console import print_table, safe_text, say
from ufm.errors import RequestError

runs_argument = click.argument("runs", nargs=-1, required=True, metavar="RUN...", type=click.Path())
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout and nothing else.")
strict_option = click.option("--strict", is_flag=True, help="Exit 1 unless every claim agrees.")


def output_path(text: str, suffixes: Sequence[str]) -> Path:
    """Return the path of a file to write; RequestError unless its name ends well and its folder can be written."""
    path = Path(text)
    if path.suffix.lower() not in suffixes:
        raise RequestError(
            f"-o {safe_text(text)}: the name must end in {', '.join(suffixes)}; write for example -o out{suffixes[0]}"
        )
    if path.is_dir():
        raise RequestError(f"-o {safe_text(text)} is a folder; name a file")
    parent = path.parent
    if not parent.is_dir():
        raise RequestError(f"-o {safe_text(text)}: the folder {safe_text(parent)} does not exist; make it or name another")
    try:
        with tempfile.TemporaryFile(dir=parent):  # asking for permissions is not enough: root has them even below /proc
            pass
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise
        raise RequestError(f"-o {safe_text(text)}: the folder {safe_text(parent)} is not writable; name another") from None
    return path


def print_judged(judged: Sequence[Judged], table: Table) -> None:
    """Print the verdict tables, then the reasons and what was left out."""
    for one in judged:
        click.echo(f"{safe_text(one.title)}: {safe_text(one.paper.title)}")
        print_table([{**v.row(), "cell": named_cell(v)} for v in one.verdicts], VERDICT_COLUMNS)
        click.echo()
    for line in lines(judged, table):
        click.echo(safe_text(line))


def say_left_out(table: Table) -> None:
    """Tell on stderr what was found and left out."""
    for x in table.excluded:
        say(excluded_line(x.cell, x.seed, x.reason))
    for warning in table.warnings:
        say(f"warning: {warning}")
