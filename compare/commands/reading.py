"""Reading runs for a command: what is left out is said, and runs of which damage left nothing are a failure, not a request."""

from __future__ import annotations

from collections.abc import Sequence

from compare.commands.shared import say_left_out
from compare.rows import Table
from ufm.errors import RunError


def read_runs(runs: Sequence[str]) -> Table:
    """Load runs and say on stderr what was left out.

    Raises:
        RequestError: a path does not exist, or no run is found below the paths.
        RunError: nothing is left of the runs and files are damaged.
    """
    from compare.load import load

    table = load(runs)
    say_left_out(table)
    refuse_ruins(table)
    return table


def refuse_ruins(table: Table) -> None:
    """Raise RunError, with the command that computes it again, when a table is empty because of damaged files."""
    damaged = [one for one in table.excluded if one.remedy]
    if table.rows or not damaged:
        return
    first = damaged[0]
    place = first.cell if first.seed < 0 else f"{first.cell}, seed {first.seed}"
    more = f" (and {len(damaged) - 1} more)" if len(damaged) > 1 else ""
    raise RunError(f"nothing is left to show: {place}{more}: {first.reason.partition(';')[0]}; {first.remedy}")
