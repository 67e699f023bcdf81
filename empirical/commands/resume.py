"""`empirical resume RUN...`: go on from the newest checkpoints, to the numbers of an uninterrupted run."""

from __future__ import annotations

import dataclasses
import os
import shlex
from pathlib import Path

import click

from empirical import mirror
from empirical.commands.run import train_together
from empirical.commands.shown import Progress, print_outcomes
from empirical.experiment import from_setting
from empirical.runner import Job, run_jobs
from empirical.studies import Study, study
from empirical.sweep import FILE, folder_name, read_sweep
from ufm.console import examples
from ufm.errors import RequestError, RunError
from ufm.record import Run


@click.command(
    epilog=examples(
        ("empirical resume runs/collapse/digits-mlp-0123456789ab", "what was left of one setting"),
        ("empirical resume runs/collapse/sweep-0123456789ab", "what was left of a sweep"),
    )
)
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@click.option("--device", default=None, metavar="TEXT", help="auto, cpu, cuda or cuda:N  [default: the device it began on]")
@click.option("--workers", default=0, type=click.IntRange(0, 1024), help="processes (0: one per core)")
@click.option("--tensorboard", default=None, metavar="TEXT", help="folder of a TensorBoard mirror of what is measured")
@click.option("--json", "as_json", is_flag=True, help="one JSON document on stdout, nothing else")
def resume(runs: tuple[str, ...], device: str | None, workers: int, tensorboard: str | None, as_json: bool) -> int:
    """Go on with interrupted trainings. RUN is a folder of one setting, of one seed, or of a sweep."""
    mirror.check(tensorboard)
    shown = os.path.abspath(tensorboard) if tensorboard else None
    jobs: dict[Job, None] = {}
    chosen: Study | None = None
    for text in runs:
        found, these = jobs_of(Path(text), device)
        if chosen is not None and found.name != chosen.name:
            raise RequestError(
                f"{text} belongs to the study {found.name!r}, the runs before to {chosen.name!r}; resume them apart"
            )
        chosen = found
        jobs |= dict.fromkeys(dataclasses.replace(job, tensorboard=shown) for job in these)
    assert chosen is not None
    missing = [job for job in jobs if not (job.path / "done").is_file()]
    from empirical.devices import launched, processes

    again = shlex.join(["empirical", "resume", *runs, *(["--tensorboard", tensorboard] if tensorboard else [])])
    launch = launched()
    if launch is not None and launch.size > 1:
        from empirical import distributed

        distributed.check(list(jobs), launch.size, {"--workers": workers})
        with distributed.started(next((job.device for job in jobs), "cpu")) as team:
            return train_together(chosen, list(jobs), team, again, (), as_json)
    number = processes(workers, next((job.device for job in missing), "cpu"), len(missing))
    with Progress(len(jobs), number) as progress:
        outcomes = run_jobs(
            list(jobs),
            workers=number,
            resume=again,
            progress=progress.of_job,
            finished=progress.finished,
        )
    return print_outcomes(chosen, outcomes, (), [job.experiment for job in jobs], as_json)


def jobs_of(path: Path, device: str | None) -> tuple[Study, list[Job]]:
    """Return (study, jobs) of a folder of one setting, one seed or a sweep; RequestError or RunError when it is none."""
    if (path / FILE).is_file() and not (path / "config.json").is_file():
        document = read_sweep(path)
        chosen = study(document["study"])
        settings = [from_setting(chosen.spec, setting) for setting in document["settings"]]
        root = path.resolve().parent.parent
        return chosen, [_job(chosen, s, seed, root, device) for s in settings for seed in document["seeds"]]
    run = Run.open(path)
    if run.system == "measure":
        raise RequestError(f"{path} was measured in somebody's own loop or from a file; run that script or command again")
    chosen = study(run.system)
    setting = from_setting(chosen.spec, run.config)
    if run.seed is not None:
        seeds = [run.seed]
    else:
        present = [int(p.name.removeprefix("seed-")) for p in path.glob("seed-*") if p.name[5:].isdecimal()]
        listed = read_sweep(path)["seeds"] if (path / FILE).is_file() else []
        seeds = sorted({*present, *listed})
    root = run.setting_path.resolve().parent.parent
    place = Path(chosen.name) / folder_name(setting)
    if Path(*run.setting_path.resolve().parts[-2:]) != place:
        raise RequestError(f"{path}: to be resumed the folder must lie at {place} inside the folder of runs; move it there")
    return chosen, [_job(chosen, setting, seed, root, device) for seed in seeds]


def _job(chosen: Study, setting: object, seed: int, root: Path, device: str | None) -> Job:
    """Use the device and the number of threads a training began with, for the same bits."""
    from empirical.devices import launched, resolve_device

    job = Job(chosen.name, setting, seed, str(root), "cpu")
    try:
        recorded = Run.open(job.path).environment if (job.path / "env.json").is_file() else {}
    except RunError:  # this training will say so; the others go on
        recorded = {}
    begun = recorded.get("device") or "auto"
    if launched() is not None:  # the GPU's number was that of another process
        begun = begun.partition(":")[0]
    where = resolve_device(device or begun)
    return Job(chosen.name, setting, seed, str(root), where, int(recorded.get("threads") or 1))
