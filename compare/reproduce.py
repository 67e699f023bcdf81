"""A paper's claims from nothing to verdicts: train what is missing, judge, draw, write the report."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compare import report, sweeps
from compare.judging import Judged
from compare.load import load
from compare.origin import origin
from compare.papers import Paper, Scale, fits, paper
from compare.pictures import Picture, draw_all
from compare.rows import Table, table_of
from compare.verdict import judge
from ufm.console import plain, say
from ufm.errors import RequestError, RunError
from ufm.files import atomic_write
from ufm.seeds import check_seed
from ufm.tables import suggest

SMALL = 10.0  # seconds
REPORTS = "reports"  # beside the runs; holds no config.json, so that loading the root passes it by


@dataclass(frozen=True)
class Reproduction:
    """What came of it: the verdicts, the table they rest on, and the files written."""

    judged: Judged
    table: Table
    folder: Path
    pictures: list[Picture]
    trained: int  # networks trained now; 0 when everything was there
    computed: int = 0  # cells of theory sweeps computed now
    not_run: dict[str, str] = field(default_factory=dict)  # cell -> why it was not run
    not_shown: tuple[str, ...] = ()

    @property
    def report(self) -> Path:
        """The report's path."""
        return self.folder / "report.html"


@dataclass(frozen=True)
class Plan:
    """The trainings and theory sweeps that a scale asks for, and the cells that cannot be run here."""

    jobs: list[Any]  # empirical.runner.Job
    sweeps: dict[str, Any]  # the paper's cell name -> ufm.sweep.Plan
    folders: dict[str, Path]  # the paper's cell name -> the setting's folder
    not_run: dict[str, str]

    @property
    def missing(self) -> list[Any]:
        """The jobs without a `done` marker."""
        return [job for job in self.jobs if not (job.path / "done").is_file()]


def make_plan(scale: Scale, out: str | Path, seeds: Sequence[int], device: str) -> Plan:
    """Return the trainings and sweeps of a scale; a cell whose study does not exist is listed with the reason. Runs nothing."""
    from empirical.runner import Job
    from empirical.studies import STUDIES, study
    from ufm.spec import build, cells, resolve

    jobs, planned, folders, not_run = [], {}, {}, {}
    for name, cell in scale.cells.items():
        if "system" in cell:
            own = sweeps.seeds_of(cell, scale.seeds) if list(seeds) == list(scale.seeds) else seeds
            planned[name] = sweep_plan(cell, own)
            continue
        if cell["study"] not in STUDIES:
            not_run[name] = f"the study {cell['study']!r} does not exist in this version"
            continue
        chosen = study(cell["study"])
        settings = cells(resolve(chosen.spec, cell["options"], source=f"cell {name}"))
        experiment = build(chosen.spec, settings[0]).resolved()
        trainings = [Job(chosen.name, experiment, seed, str(out), device) for seed in seeds]
        jobs += trainings
        folders[name] = trainings[0].setting_path
    return Plan(jobs, planned, folders, not_run)


def sweep_plan(cell: Mapping[str, Any], seeds: Sequence[int]) -> Any:
    """Return the checked plan (`ufm.sweep.Plan`) of a cell that is a theory sweep; nothing is created."""
    from ufm import sweep

    values, grid = sweeps.grid_of(cell)
    return sweep.plan(sweeps.system_of(cell), values, grid, seeds)


def reproduce(
    name: str,
    scale: str | None = None,
    *,
    out: str | Path = "runs",
    seeds: Sequence[int] | None = None,
    workers: int = 0,
    device: str = "auto",
    width: str = "neurips",
) -> Reproduction:
    """Run whatever is missing, judge each claim, draw the figures (PDF) and write the report.

    Args:
        name: a paper of `compare papers`, or a TOML file of claims.
        scale: "demo", "laptop" or "gpu"; None: the smallest that the paper has, and which one is said on stderr.
        out: folder of all runs; figures, report and verdicts go to `out`/reports/NAME-SCALE/.
        seeds: instead of the registered ones; the verdict still counts only those that are registered.
        workers: processes, 0 for one per core. device: "auto", "cpu" or "cuda[:N]".

    Raises:
        RequestError: an unknown paper, scale, seed or device. RunError: every training failed.
        Interrupted: after a signal, with everything finished saved.
    """
    from compare.style import Style

    chosen = paper(name)
    size = _scale(chosen, name, scale)
    scale = size.name
    Style.of(width)  # a wrong width is said before an hour of training
    wanted = [check_seed(s) for s in (size.seeds if seeds is None else seeds)]
    plan = make_plan(size, out, wanted, device)
    missing = plan.missing
    if missing:
        _train(missing, scale, name, out, workers, device)
    computed = _sweep(plan, scale, name, out, workers, device)
    folders = {key: folder for key, folder in plan.folders.items() if (folder / "config.json").exists()}
    table = load(list(folders.values())) if folders else table_of({"value": []})
    cells = _cells(table, size, folders)
    judged = Judged(chosen, scale, judge(table, chosen, scale, cells=cells))
    folder = Path(out) / REPORTS / f"{chosen.name}-{scale}"
    folder.mkdir(parents=True, exist_ok=True)
    source = origin(table)
    shown = [name for key in size.drawn for name in cells.get(key, ())]
    seen = table.where(cell=shown) if size.drawn else table
    pictures, not_shown = draw_all(seen, size.figures or chosen.figures, source, folder=folder, width=width)
    not_shown += [f"cell {key}: {reason}" for key, reason in plan.not_run.items()]
    atomic_write(folder / "verdicts.json", json.dumps(plain({**judged.record(), "provenance": source}), allow_nan=False).encode())
    made = Reproduction(judged, table, folder, pictures, len(missing), computed, plan.not_run, tuple(not_shown))
    report.write(made.report, table, [judged], pictures, not_shown=not_shown, source=source)
    return made


def _scale(chosen: Paper, name: str, scale: str | None) -> Scale:
    """Return the scale asked for, or the smallest; RequestError with the command that works where the paper has none such."""
    import shlex

    smallest = chosen.smallest
    if scale is None:
        say(f"{chosen.name}: scale {smallest}, the smallest it has")
    elif scale not in chosen.scales:
        command = f"compare reproduce {shlex.quote(name)} --scale {smallest}"
        raise RequestError(f"{chosen.name} has no scale {scale!r}; {suggest(scale, chosen.scales)}; run `{command}`")
    return chosen.scale(scale or smallest)


def _cells(table: Table, size: Scale, folders: Mapping[str, Path]) -> dict[str, list[str]]:
    """Return the paper's cell name -> the cells of the table; two sweeps may share a folder, and a folder hold more."""
    found: dict[str, list[str]] = {}
    for key, folder in folders.items():
        here = [c for c in table.cells.values() if c.path == str(folder.resolve())]
        found[key] = [c.name for c in here if "system" not in size.cells[key] or fits(size.cells[key], c.system, c.config)]
    return found


def _sweep(plan: Plan, scale: str, name: str, out: str | Path, workers: int, device: str) -> int:
    """Compute what is missing of the theory sweeps; return how many cells that were. Their folders join the plan's."""
    import os
    import shlex

    from ufm import machine, sweep
    from ufm.provenance import environment

    if not plan.sweeps:
        return 0
    where = machine.resolve_device(device)
    resume = f"compare reproduce {shlex.quote(name)} --scale {scale} --out {shlex.quote(str(out))}"
    computed = 0
    for key, one in plan.sweeps.items():
        here = where if one.system.gpu else "cpu"
        # Starting processes takes longer than a small sweep.
        processes = 1 if one.seconds < SMALL or here != "cpu" else workers or len(_cores(os))
        outcome = sweep.execute(
            one, root=out, device=here, workers=processes, environment=environment(here, seed=None), resume=resume
        )
        computed += outcome.computed
        plan.folders[key] = outcome.path
        if outcome.computed:
            say(f"{key}: {outcome.computed} cells computed")
    return computed


def _train(missing: list[Any], scale: str, name: str, out: str | Path, workers: int, device: str) -> None:
    """Train the missing networks; a failed one is reported and the rest goes on."""
    import dataclasses
    import os
    import shlex

    from empirical.devices import resolve_device
    from empirical.runner import run_jobs

    where = resolve_device(device)
    jobs = [dataclasses.replace(job, device=where) for job in missing]
    processes = workers or (1 if where.startswith("cuda") else len(_cores(os)))
    say(f"{len(jobs)} trainings are missing; {min(processes, len(jobs))} at a time on {where}")
    done = 0

    def finished(outcome: Any) -> None:
        nonlocal done
        done += 1
        say(f"{done} of {len(jobs)} trainings: seed {outcome.seed} {outcome.status}")

    resume = f"compare reproduce {shlex.quote(name)} --scale {scale} --out {shlex.quote(str(out))}"
    outcomes = run_jobs(jobs, workers=max(1, min(processes, len(jobs))), resume=resume, finished=finished)
    failed = [o for o in outcomes if o.exit]
    if len(failed) == len(outcomes):
        kind = RequestError if any(o.exit == 2 for o in failed) else RunError
        raise kind(f"every training failed; the first: {failed[0].status.removeprefix('failed: ')}")


def _cores(os: Any) -> Any:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
