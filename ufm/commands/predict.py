"""`ufm predict SYSTEM`: the closed forms of a grid of problems; nothing is written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from ufm.commands import shared
from ufm.console import plain, print_json, print_table
from ufm.spec import parameter, setting_of
from ufm.systems import System
from ufm.tables import resolve_target

SHOWN = 200
SELDOM = ("regime", "threshold", "reason")  # columns shown where a cell has something to say there
MOST = 10_000  # closed forms are printed, not recorded


def predict(system: System, flags: Mapping[str, Any]) -> int:
    """Print the predictions of one request and return the exit status."""
    from ufm import sweep

    request = shared.read_request(system, _options(system), flags)
    plan = sweep.plan(system, request.values, request.grid, request.seeds)
    function = resolve_target(system.predict)
    varying = tuple(name for name, value in setting_of(system.spec, request.values).items() if value == "grid")
    rows = []
    for index in range(min(len(plan), MOST)):
        task = plan.task(index)
        parameters = {name: parameter(value) for name, value in plan.cells[index // len(plan.seeds)].items()}
        drawn = (task.seed,) if system.predict_seeds else ()
        seed = {"seed": task.seed} if system.predict_seeds else {}
        rows.append({"parameters": parameters, **seed, **function(task.spec, *drawn)})
    if request.shared["json"]:
        print_json({"system": system.name, "predictions": rows})
    else:
        many = len(plan.seeds) > 1
        shown = [
            {"cell": shared.label(row["parameters"], varying, row["seed"] if many else None), **plain(row)}
            for row in rows[:SHOWN]
        ]
        columns = [name for name in system.predict_columns if name not in SELDOM or any(row.get(name) for row in shown)]
        print_table(shown, ["cell", *columns])
        for name, assumed in dict.fromkeys(
            (str(row.get("prediction")), tuple(row.get("assumptions") or ())) for row in rows[:SHOWN]
        ):
            if assumed:
                click.echo(f"{name} assumes {', '.join(map(str, assumed))}")
        if len(plan) > SHOWN:
            click.echo(f"... and {len(plan) - SHOWN} more cells; --json prints up to {MOST}")
    return 1 if request.shared["strict"] and not all(map(shared.applies, rows)) else 0


def _options(system: System) -> tuple[type, ...]:
    """Return the common options: --seeds only where a prediction depends on a seed."""
    return (shared.Seeded, shared.Chosen) if system.predict_seeds else (shared.Chosen,)


def command_of(name: str) -> click.Command:
    """Return `ufm predict NAME`."""
    system = shared.load_system(name)
    shown = [(command.replace("simulate", "predict").partition(" --seeds")[0], "1 s") for command, _ in system.examples]
    return shared.command_of(system, predict, _options(system), f"{system.summary}: closed forms.", shown)


group = shared.group_of(
    "predict",
    command_of,
    "Print what theory predicts for a grid of problems, with the theorem's reference and status.",
    ("ufm predict single --classes 4 --dim 6 --loss mse --bias free", "1 s"),
    ("ufm predict single --classes 10 --lambda-w 1e-4:1e-1:10log --json", "1 s"),
)
