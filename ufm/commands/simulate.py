"""`ufm simulate SYSTEM`: a theory sweep, printed as a table and written as a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click

from ufm import machine
from ufm.commands import shared
from ufm.console import format_number, plain, print_json, print_table, progress, reach, say
from ufm.errors import RunError
from ufm.prediction import EVIDENCE
from ufm.solution import Status
from ufm.spec import build
from ufm.systems import System
from ufm.tables import resolve_target

SHOWN = 40  # rows of the table; the rest is in cells.jsonl
SHARED = (shared.Seeded, shared.Chosen, shared.Working)
GOOD = tuple(status.value for status in Status if status.ok)
SELDOM = ("regime", "rate")  # columns shown where a cell has something to say there


def simulate(system: System, flags: Mapping[str, Any]) -> int:
    """Run one request and return the exit status."""
    from ufm import sweep

    request = shared.read_request(system, SHARED, flags)
    options = request.shared
    shard, device = shared.read_shard(options["shard"]), shared.read_device(options["device"])
    workers = options["workers"]
    plan = sweep.plan(system, request.values, request.grid, request.seeds, shard=shard, workers=workers)
    if options["dry_run"]:
        return _dry_run(plan, workers, options["json"])
    device = machine.resolve_device(device, system.gpu)
    if system.validate:
        resolve_target(system.validate)([build(system.spec, cell) for cell in plan.cells])
    from ufm.provenance import environment

    seed = request.seeds[0] if len(request.seeds) == 1 else None
    with progress(sum(map(len, plan.chunks)), "cell") as shown:
        outcome = sweep.execute(
            plan,
            root=options["out"],
            device=device,
            workers=workers,
            cluster=options["cluster"],
            environment=environment(device, seed=seed),
            resume=shared.again(),
            advance=shown.advance,
        )
    if options["device"] == "auto":  # after the work: a request that fails is answered in one line
        say(f"device: {device}")
    return _report(plan, outcome, options)


def _dry_run(plan: Any, workers: int, as_json: bool) -> int:
    number = sum(map(len, plan.chunks))
    seconds = plan.seconds / min(workers, max(len(plan.chunks), 1))
    if as_json:
        print_json({"cells": number, "chunks": len(plan.chunks), "seconds": seconds, "memory": plan.memory * workers})
    else:
        memory = machine.bytes_text(plan.memory * workers)
        counted = f"{number} cell{'s' * (number != 1)} in {len(plan.chunks)} chunk{'s' * (len(plan.chunks) != 1)}"
        click.echo(f"{counted}, about {machine.seconds_text(seconds)}, {memory} of memory")
    return 0


def _report(plan: Any, outcome: Any, options: Mapping[str, Any]) -> int:
    if options["json"]:
        document = {"run": str(outcome.path), "computed": outcome.computed, "statuses": outcome.statuses, "cells": outcome.rows}
        print_json(document)
    else:
        _table(plan, outcome)
    if outcome.failed:
        raise RunError(f"{outcome.failed} of {len(outcome.rows)} cells failed or diverged; their rows say why: {outcome.path}")
    return _judge(outcome.rows) if options["strict"] else 0


def _judge(rows: Sequence[Mapping[str, Any]]) -> int:
    """Return 1, and say why, when a cell did not end well or theory says nothing of it; else 0."""
    bad = sum(not row["status"].startswith(GOOD) for row in rows)
    unknown = sum(not shared.applies(row) for row in rows)
    if bad:
        say(f"--strict: {bad} of {len(rows)} cells did not converge")
    if unknown:
        say(f"--strict: no prediction applies to {unknown} of {len(rows)} cells")
    return 1 if bad or unknown else 0


def _table(plan: Any, outcome: Any) -> None:
    seeds = len(plan.seeds) > 1
    columns = {path.rpartition(".")[2] if "." in path else path: path for path in plan.system.columns}
    columns = {("gap" if path == "certificate.gap" else name): path for name, path in columns.items()}
    rows, unproven = [], 0
    for row in outcome.rows[:SHOWN]:
        cell = shared.label(row["parameters"], plan.varying, row["seed"] if seeds else None)
        line = {"cell": cell, **{name: plain(reach(row, path)) for name, path in columns.items()}}
        if reach(row, "prediction.status") == EVIDENCE and line.get("predicted") is not None:
            line["predicted"], unproven = f"{format_number(line['predicted'])}*", unproven + 1
        if str(line.get("status")).startswith(GOOD):
            line["status"] = line["status"].partition(":")[0]  # the row itself has the whole sentence
        rows.append(line)
    if unproven:  # the others keep their place
        for line in rows:
            line["predicted"] = (
                f"{format_number(line['predicted'])} " if isinstance(line["predicted"], float) else line["predicted"]
            )
    for name in SELDOM:
        if all(line.get(name) in (None, "") for line in rows):
            columns.pop(name, None)
    print_table(rows, ["cell", *columns], spare=[name for name in columns if name not in ("loss", "predicted", "status")])
    if unproven:
        click.echo(f"* {EVIDENCE}")
    if len(outcome.rows) > SHOWN:
        click.echo(f"... and {len(outcome.rows) - SHOWN} more cells")
    click.echo(f"run: {outcome.path}")


def command_of(name: str) -> click.Command:
    """Return `ufm simulate NAME`."""
    system = shared.load_system(name)
    help = f"{system.summary}. Numeric options take a grid."
    return shared.command_of(system, simulate, SHARED, help, system.examples)


group = shared.group_of(
    "simulate",
    command_of,
    "Solve a grid of problems, certify, predict and measure each, and record the sweep.",
    ("ufm simulate single --classes 10 --dim 64 --lambda-w 1e-5:1e-1:20log", "3 s"),
    ("ufm simulate single --loss ce,mse --bias none,free --seeds 0:5 --workers 2", "6 s"),
)
