"""`empirical run STUDY`: from flags, presets and TOML to trained and measured networks."""

from __future__ import annotations

import dataclasses
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import click

from empirical import mirror, presets
from empirical.commands.shown import Progress, print_outcomes
from empirical.runner import Job, run_jobs, run_together
from empirical.studies import STUDIES, Study, study
from empirical.sweep import write_sweep
from ufm.console import examples, print_json, say
from ufm.errors import RequestError
from ufm.spec import build, cells, click_options, option, read_toml, resolve


@dataclass(frozen=True)
class Execution:
    """Where and how it runs: nothing here changes the numbers' definition."""

    seeds: int = option(0, "seeds: 0:5 is 0..4", low=0, high=2**32 - 1, grid=True, setting=False)
    out: str = option("runs", "folder of all runs", kind="path", setting=False)
    device: str = option("auto", "auto, cpu, cuda or cuda:N", setting=False)
    workers: int = option(0, "processes (0: one per core on a CPU, 1 on a GPU)", low=0, high=1024, setting=False)
    threads: int = option(1, "CPU threads of each process", low=1, high=1024, setting=False)
    stack: str = option(
        "auto", "train all seeds of a small network in one program (auto: on a GPU)", choices=("auto", "on", "off"), setting=False
    )
    cluster: str | None = option(None, "address of a running dask scheduler", kind="str", setting=False)
    tensorboard: str | None = option(None, "folder of a TensorBoard mirror of what is measured", kind="str", setting=False)
    shard: str | None = option(None, "I/N: only the trainings i with i mod N = I", kind="str", setting=False)


class Studies(click.Group):
    """One command per study, with that study's options."""

    def list_commands(self, context: click.Context) -> list[str]:
        """Return the studies' names."""
        return list(STUDIES)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        """Return the command of a study; RequestError with a suggestion for an unknown one."""
        return command_of(study(name))


run = Studies(
    "run",
    help="Train networks and measure them. The study says what is looked at.",
    epilog=examples(
        ("empirical run collapse --preset digits --seeds 0:5", "15 s on 2 cores"),
        ("empirical run collapse --help", "every option"),
    ),
)


def command_of(chosen: Study) -> click.Command:
    """Return the click command of one study."""

    @click.command(chosen.name, help=chosen.summary, epilog=examples(*chosen.examples))
    @click.option("--preset", metavar="NAME", shell_complete=_complete_presets, help="fill options from a shipped TOML file")
    @click.option("--config", metavar="FILE", help="fill options from your own TOML file; flags win")
    @click.option("--zip", "zipped", metavar="a,b", help="walk the grids of these options together")
    @click_options(Execution)
    @click_options(chosen.spec)
    @click.option("--dry-run", is_flag=True, help="print the number of trainings, the estimated time and memory")
    @click.option("--json", "as_json", is_flag=True, help="one JSON document on stdout, nothing else")
    @click.option("--strict", is_flag=True, help="accepted everywhere; a failed training is exit 1 in any case")
    def command(
        preset: str | None, config: str | None, zipped: str | None, dry_run: bool, as_json: bool, strict: bool, **given: Any
    ) -> int:
        values = read_layers(chosen, preset, config, given)
        request = Request.of(chosen, values, (zipped or "").split(",") if zipped else [])
        if dry_run:
            return request.describe(as_json)
        return request.execute(as_json)

    return command


def _complete_presets(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    return [name for name in presets.names() if name.startswith(incomplete)]


def read_layers(chosen: Study, preset: str | None, config: str | None, given: dict[str, Any]) -> dict[str, list[Any]]:
    """Return option -> grid values, from defaults < preset < TOML < flags."""
    both = dataclasses.make_dataclass(
        "Both",
        [(f.name, f.type, _copied(f)) for f in (*dataclasses.fields(chosen.spec), *dataclasses.fields(Execution))],
        frozen=True,
    )
    layers: list[dict[str, Any]] = []
    if preset is not None:
        about, options = presets.read(preset)
        if about.get("study", chosen.name) != chosen.name:
            raise RequestError(f"preset {preset!r} belongs to 'empirical run {about['study']}'; use it there")
        resolve(both, options, source=f"preset {preset}")
        layers.append(options)
    if config is not None:
        own = read_toml(config)
        resolve(both, own, source=f"--config {config}")
        layers.append(own)
    flags = {key: value for key, value in given.items() if value is not None}
    return resolve(both, *_without_rivals(layers, flags))


def _copied(field: dataclasses.Field) -> Any:
    return dataclasses.field(default=field.default, metadata=field.metadata)


def _without_rivals(layers: list[dict[str, Any]], flags: dict[str, Any]) -> list[dict[str, Any]]:
    """A later --epochs replaces an earlier --steps and the other way round: they say the same thing."""
    merged: dict[str, Any] = {}
    for layer in (*layers, flags):
        named = {key.replace("-", "_"): value for key, value in layer.items()}
        for one, other in (("epochs", "steps"), ("steps", "epochs")):
            if one in named and other not in named:
                merged.pop(other, None)
        merged |= named
    return [merged]


@dataclass(frozen=True)
class Request:
    """A resolved request: the settings, the seeds, and where they run."""

    study: Study
    settings: tuple[Any, ...]  # resolved experiments
    varied: tuple[str, ...]  # names of the options with several values
    seeds: tuple[int, ...]
    execution: Execution

    @classmethod
    def of(cls, chosen: Study, values: dict[str, list[Any]], zipped: Sequence[str]) -> Request:
        """Multiply the grids out; every setting is resolved and so checked against itself."""
        own = {f.name for f in dataclasses.fields(chosen.spec)}
        seeds = tuple(values["seeds"])
        execution = Execution(**{f.name: values[f.name][0] for f in dataclasses.fields(Execution)})
        grid = {name: column for name, column in values.items() if name in own}
        settings = [build(chosen.spec, cell).resolved() for cell in cells(grid, zipped)]
        varied = tuple(name for name, column in grid.items() if len(column) > 1)
        return cls(chosen, tuple(dict.fromkeys(settings)), varied, seeds, execution)

    def jobs(self, device: str) -> list[Job]:
        """Return the trainings of this shard, settings first."""
        e = self.execution
        root = os.path.abspath(e.out) if e.cluster else e.out  # the workers of a cluster have folders of their own
        shown = os.path.abspath(e.tensorboard) if e.tensorboard else None
        every = [
            Job(self.study.name, setting, seed, root, device, e.threads, shown)
            for setting in self.settings
            for seed in self.seeds
        ]
        if e.shard is None:
            return every
        index, number = read_shard(e.shard)
        return every[index::number]

    def check(self, device: str) -> list[Any]:
        """Return the cost of one training of each setting; RequestError for the first that cannot be done on `device`."""
        from empirical.cost import check_room
        from empirical.devices import launched

        mirror.check(self.execution.tensorboard)
        check = self.study.function("check")
        costs = [check(setting, self.seeds[0]) for setting in self.settings]
        for cost in costs:
            check_room(cost, device)
        launch = launched()
        heard = launch is None or launch.rank == 0
        for warning in dict.fromkeys(cost.warning for cost in costs if cost.warning and heard):
            say(f"warning: {warning}")
        return costs

    def describe(self, as_json: bool) -> int:
        """Print what it would cost."""
        from empirical.devices import launched, resolve_device

        device = resolve_device(self.execution.device)
        jobs = self.jobs(device)
        launch = launched()
        if launch is not None and launch.size > 1:
            self.check_together(launch, jobs)
        costs = self.check(device)
        missing = [job for job in jobs if not (job.path / "done").is_file()]
        by_setting = dict(zip(self.settings, costs, strict=True))
        workers = self.workers(device, len(missing), self.stacking(device, costs if missing else []))
        seconds = sum(by_setting[job.experiment].seconds for job in missing) / workers
        document = {
            "trainings": len(jobs),
            "missing": len(missing),
            "steps": sum(by_setting[job.experiment].steps for job in missing),
            "seconds": round(seconds, 1),
            "bytes": workers * max(cost.bytes if device == "cpu" else cost.host for cost in costs),
            "workers": workers,
            "device": device,
        }
        if device != "cpu":
            document["device_bytes"] = workers * max(cost.card for cost in costs)
        if as_json:
            print_json(document)
        else:
            plural = "" if workers == 1 else "es"
            place = "on cpu" if device == "cpu" else f"if {device} were one core of a CPU"
            card = "" if device == "cpu" else f" and {document['device_bytes'] / 2**20:.0f} MiB on {device}"
            click.echo(
                f"trainings: {len(jobs)}, missing: {len(missing)}, steps: {document['steps']}; roughly "
                f"{max(1, round(seconds))} s {place} with {workers} process{plural}, {document['bytes'] / 2**20:.0f} MiB{card}"
            )
        return 0

    def execute(self, as_json: bool) -> int:
        """Train what is missing; print and return the exit status."""
        from empirical.devices import launched, resolve_device

        launch = launched()
        if launch is not None and launch.size > 1:
            return self.execute_together(launch, as_json)
        device = resolve_device(self.execution.device)
        jobs = self.jobs(device)
        missing = [job for job in jobs if not (job.path / "done").is_file()]
        together = self.stacking(device, self.check(device) if missing else [])
        target = write_sweep(self.execution.out, self.study.name, self.settings, self.seeds)
        workers = self.workers(device, len(missing), together)
        # A shard goes on by its own command: finished seeds are skipped, begun ones taken up.
        again = ["empirical", *sys.argv[1:]] if self.execution.shard else self.again(target)
        with Progress(len(jobs), workers) as progress:
            outcomes = run_jobs(
                jobs,
                workers=workers,
                resume=shlex.join(again),
                cluster=self.execution.cluster,
                progress=progress.of_job,
                finished=progress.finished,
                together=together,
            )
        code = print_outcomes(self.study, outcomes, self.varied, [job.experiment for job in jobs], as_json)
        if not as_json and any(outcome.result.get("final") for outcome in outcomes):
            shown, made = ("plot nc", "nc.pdf") if len(self.settings) == 1 else ("report", "report.html")
            say(f"written to {target}; see 'compare {shown} {shlex.quote(str(target))} -o {made}'")
        return code

    def workers(self, device: str, missing: int, together: Any) -> int:
        """Return the number of processes that train what is missing."""
        from empirical.devices import processes

        return 1 if together and self.execution.stack == "on" else processes(self.execution.workers, device, missing)

    def stacking(self, device: str, costs: Sequence[Any]) -> Callable[[Any], int] | None:
        """Return how many seeds of a setting are trained in one program; RequestError where --stack on cannot be."""
        e = self.execution
        if e.stack == "off" or not costs or (e.stack == "auto" and (not device.startswith("cuda") or e.workers > 1 or e.cluster)):
            return None
        from empirical.stacked import refusal, room

        if e.stack == "on":
            if e.workers > 1 or e.cluster:
                flag = f"--workers {e.workers}" if e.workers > 1 else f"--cluster {e.cluster}"
                raise RequestError(f"{flag}: --stack on trains all seeds in one process; leave one of them out")
            if not self.study.look:
                raise RequestError(f"--stack on: the study {self.study.name} cannot train seeds in one program; leave it out")
            for reason in map(refusal, self.settings):
                if reason is not None:
                    raise RequestError(f"{reason}; leave --stack on out")
        elif not self.study.look:
            return None
        asked = e.stack == "on"
        fits = {setting: room(setting, cost, device, asked) for setting, cost in zip(self.settings, costs, strict=True)}
        return fits.__getitem__

    def execute_together(self, launch: Any, as_json: bool) -> int:
        """Train what is missing, each network by all processes that torchrun started; the first writes and prints."""
        from empirical import distributed
        from empirical.devices import resolve_device

        e = self.execution
        device = resolve_device(e.device)
        jobs = self.jobs(device)
        self.check_together(launch, jobs)
        self.check(device)
        with distributed.started(device) as team:
            target = None
            if team.leads:
                target = write_sweep(e.out, self.study.name, self.settings, self.seeds)
            code = train_together(self.study, jobs, team, shlex.join(self.again(target)), self.varied, as_json)
        return code

    def check_together(self, launch: Any, jobs: Sequence[Job]) -> None:
        """Refuse what does not go together with the processes that torchrun started."""
        from empirical import distributed

        e = self.execution
        asked = {
            "--workers": e.workers,
            "--cluster": e.cluster,
            "--shard": e.shard,
            "--stack": e.stack if e.stack == "on" else None,
        }
        distributed.check(jobs, launch.size, asked)

    def again(self, target: Any) -> list[str]:
        """Return the command that goes on with what is in the folder `target`."""
        mirrored = ["--tensorboard", self.execution.tensorboard] if self.execution.tensorboard else []
        return ["empirical", "resume", str(target), *mirrored]


def train_together(study: Study, jobs: Sequence[Job], team: Any, resume: str, varied: Sequence[str], as_json: bool) -> int:
    """Train the jobs by all processes of a team; the first prints the outcomes; return the exit status."""
    resume = f"torchrun --nproc-per-node {team.size} -m {resume}"
    with Progress(len(jobs), 1) as progress:
        outcomes = run_together(jobs, team, resume=resume, progress=progress.of_job, finished=progress.finished)
    if not team.leads:
        return max((outcome.exit for outcome in outcomes), default=0)
    return print_outcomes(study, outcomes, varied, [job.experiment for job in jobs], as_json)


def read_shard(text: str) -> tuple[int, int]:
    """Return (I, N) of "I/N"."""
    index, slash, number = text.partition("/")
    if not (slash and index.isdecimal() and number.isdecimal() and int(index) < int(number)):
        raise RequestError(f"--shard {text!r} is not I/N with 0 <= I < N; write for example 0/4")
    return int(index), int(number)
