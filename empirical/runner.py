"""Many trainings: settings times seeds, in this process, in worker processes or on a dask cluster.

Finished seeds are skipped, lost workers are replaced, and a signal stops everything at the next batch with all of it saved.
"""

from __future__ import annotations

import signal
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from empirical.experiment import Experiment
from empirical.mirror import mirrored
from empirical.studies import study
from ufm.console import explain, say
from ufm.engine import backend, worker_lost
from ufm.errors import RequestError, RunError
from ufm.identity import DIGITS
from ufm.interrupt import Interrupted, Stop, stop_on_signals
from ufm.record import Run, RunWarning, setting_hash

STOP_SECONDS = 10.0  # that a training on a cluster may take to stop, once told
ATTEMPTS = 3  # a lost worker's training is tried again twice
LOST = "failed: the worker was lost"
INTERRUPTED = "stopped by a signal"


@dataclass(frozen=True)
class Job:
    """One network to train: a study's experiment under one seed, into root/study/name-hash/seed-K/."""

    study: str
    experiment: Experiment
    seed: int
    root: str
    device: str
    threads: int = 1
    tensorboard: str | None = None  # folder of a mirror

    @property
    def setting_path(self) -> Path:
        """The folder of the setting."""
        digits = setting_hash(self.experiment.setting())[:DIGITS]
        return Path(self.root) / self.study / f"{self.experiment.name}-{digits}"

    @property
    def path(self) -> Path:
        """The folder of the seed."""
        return self.setting_path / f"seed-{self.seed}"


@dataclass(frozen=True)
class Outcome:
    """How a job ended. exit: 0, 1 (failed), 2 (the request was wrong) or 128 + signal; skipped: it was done before."""

    path: str
    seed: int
    status: str
    exit: int
    skipped: bool = False
    result: dict[str, Any] = field(default_factory=dict)


def work(job: Job, stop: Stop | None = None, report: Callable[[Any], None] | None = None) -> Outcome:
    """Do one job, or take up what an earlier process left of it."""
    if (job.path / "done").is_file():
        return finished_before(job)
    import torch

    from ufm.provenance import environment

    torch.set_num_threads(job.threads)
    described = environment(job.device, seed=job.seed)
    with Run.create(
        job.root, job.study, job.experiment.name, job.experiment.setting(), seed=job.seed, environment=described
    ) as run:
        if run.done:  # another process finished it meanwhile
            return _outcome(job, run.read_json("result.json"), skipped=True)
        with mirrored(run, job.tensorboard):
            result = train(job, run, stop, report)
        run.log(result["status"])
        run.finish(result)
    return _outcome(job, result)


def train(job: Job, run: Any, stop: Stop | None, report: Callable[[Any], None] | None) -> dict[str, Any]:
    """Return the result of the job's training, into `run` (or, in a process of a team that writes nothing, its shadow)."""
    import torch

    function = study(job.study).function("train")
    return function(job.experiment, run, device=torch.device(job.device), threads=job.threads, stop=stop, report=report)


def finished_before(job: Job) -> Outcome:
    """Return the outcome of a job that was done before; RunError naming a file of it that is damaged.

    Nothing reads the checkpoints of a finished training any more, and they may have been deleted to save space: a warning.
    """
    run = Run.open(job.path)
    damage = run.damage()
    lost = [file for file in damage if file.startswith("checkpoint-")]
    for file in damage:
        if file not in lost:
            raise RunError(damage[file])
    if lost:
        warnings.warn(f"{run.path}: {', '.join(lost)} missing or damaged; the results do not need them", RunWarning, stacklevel=2)
    return _outcome(job, run.read_json("result.json"), skipped=True)


def _outcome(job: Job, result: dict[str, Any], skipped: bool = False) -> Outcome:
    return Outcome(str(job.path), job.seed, result["status"], 0 if result["ok"] else 1, skipped, result)


def attempt(job: Job, stop: Stop | None = None, report: Callable[[Any], None] | None = None) -> Outcome:
    """Do one job; whatever goes wrong with it is its outcome, so that the others go on."""
    try:
        return work(job, stop, report)
    except Interrupted as stopped:
        return Outcome(str(job.path), job.seed, INTERRUPTED, 128 + stopped.signum)
    except (RequestError, RunError, OSError, MemoryError) as error:
        code, message = explain(error)
        return Outcome(str(job.path), job.seed, f"failed: {message}", code)


def work_stacked(jobs: Sequence[Job], stop: Stop | None, report: Callable[[Any], None] | None) -> list[Outcome]:
    """Do jobs of one setting in one program (`empirical.stacked`); raises its Apart where they do not go together."""
    import torch

    from empirical.stacked import run_stack
    from ufm.provenance import environment

    first = jobs[0]
    torch.set_num_threads(first.threads)
    with ExitStack() as stack:
        runs = [
            stack.enter_context(
                Run.create(
                    job.root,
                    job.study,
                    job.experiment.name,
                    job.experiment.setting(),
                    seed=job.seed,
                    environment=environment(job.device, seed=job.seed) | {"stacked": len(jobs)},
                )
            )
            for job in jobs
        ]
        for job, run in zip(jobs, runs, strict=True):
            stack.enter_context(mirrored(run, job.tensorboard))
        look, device = study(first.study).function("look"), torch.device(first.device)
        results = run_stack(first.experiment, runs, look, device=device, threads=first.threads, stop=stop, report=report)
        for run, result in zip(runs, results, strict=True):
            if not run.done:  # one that diverged early may be
                run.log(result["status"])
                run.finish(result)
    return [_outcome(job, result) for job, result in zip(jobs, results, strict=True)]


def attempt_stacked(jobs: Sequence[Job], stop: Stop | None, report: Callable[[Any], None] | None) -> list[Outcome]:
    """Do jobs of one setting together; one by one where that is not possible. Whatever goes wrong is their outcome."""
    from empirical.stacked import Apart

    try:
        return work_stacked(jobs, stop, report)
    except Apart:
        say("note: these seeds differ in size or in how far they are, or a checkpoint is damaged; they are trained one by one")
        return [attempt(job, stop, report) for job in jobs if not stop]
    except Interrupted as stopped:
        return [Outcome(str(job.path), job.seed, INTERRUPTED, 128 + stopped.signum) for job in jobs]
    except (RequestError, RunError, OSError, MemoryError) as error:
        code, message = explain(error)
        return [Outcome(str(job.path), job.seed, f"failed: {message}", code) for job in jobs]


def stacks(jobs: Sequence[Job], together: Callable[[Any], int]) -> list[list[Job]]:
    """Cut jobs into what is trained in one program: of each setting at most `together(setting)` unfinished seeds."""
    groups: list[list[Job]] = []
    room = 0  # in the last group
    for job in jobs:
        done = (job.path / "done").is_file()
        if done or not room or groups[-1][0].experiment != job.experiment:
            groups.append([job])
            room = 0 if done else max(0, together(job.experiment) - 1)
        else:
            groups[-1].append(job)
            room -= 1
    return groups


# --- all of them ---------------------------------------------------------------------------------------------------


def run_jobs(
    jobs: Sequence[Job],
    *,
    workers: int,
    resume: str,
    cluster: str | None = None,
    progress: Callable[[Job], Callable[[Any], None]] | None = None,
    finished: Callable[[Outcome], None] | None = None,
    together: Callable[[Any], int] | None = None,
) -> list[Outcome]:
    """Return one outcome per job, in the jobs' order.

    Args:
        jobs: what to train; those with a `done` marker are not touched.
        workers: processes; 1 trains in this one.
        resume: the command that goes on after a signal.
        cluster: address of a running dask scheduler, instead of processes here.
        progress: makes the progress display of one job (in this process only).
        finished: told of every outcome as it comes.
        together: how many seeds of a setting are trained in one program, in this process; None: each by itself.

    Raises: Interrupted after a signal, when everything is saved.
    """
    outcomes: dict[Job, Outcome] = {}

    def keep(job: Job, outcome: Outcome) -> None:
        outcomes[job] = outcome
        if finished is not None:
            finished(outcome)

    with stop_on_signals() as stop:
        if workers == 1 and not cluster:
            for group in stacks(jobs, together) if together else [[job] for job in jobs]:
                report = progress(group[0]) if progress else None
                several = len(group) > 1
                ended = attempt_stacked(group, stop, report) if several else [attempt(group[0], stop, report)]
                for job, outcome in zip(group, ended, strict=False):
                    keep(job, outcome)
                if stop:
                    break
        else:
            _in_processes(jobs, workers, cluster, stop, keep)
        if stop and (len(outcomes) < len(jobs) or any(o.status == INTERRUPTED for o in outcomes.values())):
            raise Interrupted(stop.signum, resume)
    return [outcomes[job] for job in jobs]


def run_together(
    jobs: Sequence[Job],
    team: Any,
    *,
    resume: str,
    progress: Callable[[Job], Callable[[Any], None]],
    finished: Callable[[Outcome], None],
) -> list[Outcome]:
    """Train the jobs one after the other, each by all processes of an `empirical.distributed.Team`; arguments as `run_jobs`.

    An error of one process ends all of them: they would not be at the same job any more. Raises: Interrupted after a signal to
    any of them, when everything is saved.
    """
    from empirical.distributed import Shadow

    outcomes = []
    with stop_on_signals() as stop:
        for job in jobs:
            try:
                if team.said((job.path / "done").is_file()):
                    outcome = finished_before(job) if team.leads else Outcome(str(job.path), job.seed, "", 0, skipped=True)
                elif team.leads:
                    outcome = work(job, stop, progress(job))
                else:
                    outcome = _outcome(job, train(job, Shadow(job.seed), stop, None))
            except Interrupted as stopped:
                raise Interrupted(stopped.signum, resume) from None
            outcomes.append(outcome)
            finished(outcome)
    return outcomes


def _in_processes(
    jobs: Sequence[Job], workers: int, cluster: str | None, stop: Stop, keep: Callable[[Job, Outcome], None]
) -> None:
    """Hand the jobs to workers; after a lost worker start those again that have no outcome."""
    lost = dict.fromkeys(jobs, 0)
    left = list(jobs)
    folder = Path(jobs[0].root) if cluster else None  # seen by every machine of a cluster
    while left and not stop:
        with tempfile.TemporaryDirectory(prefix=".ufm-", dir=folder) as scratch, _told(stop, Path(scratch)):
            done: set[int] = set()
            try:
                for number, outcome in _dispatch(left, workers, cluster, scratch):
                    done.add(number)
                    if outcome.status != INTERRUPTED:
                        keep(left[number], outcome)
            except Exception as error:
                if not worker_lost(error):
                    raise
                if cluster:
                    _wait_for_the_others(Path(scratch), len(left))
                for number, job in enumerate(left):
                    begun = (Path(scratch) / f"begun-{number}").exists()
                    lost[job] += begun and number not in done
                    if lost[job] >= ATTEMPTS and number not in done:
                        done.add(number)
                        keep(job, Outcome(str(job.path), job.seed, LOST, 1))
                if not stop:
                    say("warning: a worker process was lost; its trainings go on from their last checkpoints")
            left = [job for number, job in enumerate(left) if number not in done]


def _dispatch(jobs: Sequence[Job], workers: int, cluster: str | None, scratch: str) -> Iterator[tuple[int, Outcome]]:
    import joblib
    from joblib.externals.loky import get_reusable_executor

    tasks = (joblib.delayed(_in_worker)(number, job, scratch) for number, job in enumerate(jobs))
    if cluster:
        with backend(cluster=cluster):
            yield from joblib.Parallel(return_as="generator_unordered")(tasks)
        return
    try:
        with joblib.parallel_config(backend="loky", inner_max_num_threads=1, initializer=_ignore_interrupts):
            yield from joblib.Parallel(n_jobs=workers, return_as="generator_unordered")(tasks)
    finally:
        # Every outcome is in and every file on disk: waiting for the workers to tidy their memory would cost seconds.
        get_reusable_executor().shutdown(wait=True, kill_workers=True)


def _wait_for_the_others(scratch: Path, jobs: int) -> None:
    """Before the rest is handed out again: stop what still runs on the cluster, or two processes would write one run."""
    (scratch / "stop").write_text(str(int(signal.SIGTERM)))
    end = time.monotonic() + STOP_SECONDS
    while time.monotonic() < end:
        begun, ended = ({n for n in range(jobs) if (scratch / f"{what}-{n}").exists()} for what in ("begun", "ended"))
        if len(begun - ended) <= 1:  # the one whose worker was lost
            return
        time.sleep(0.05)


def _ignore_interrupts() -> None:
    """Ctrl-C reaches the whole process group; an idle worker must not die of it and take the others with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _in_worker(number: int, job: Job, scratch: str) -> tuple[int, Outcome]:
    with stop_on_signals() as stop, _warnings_as_lines():
        watch = FileStop(stop, Path(scratch) / "stop")
        if watch:
            return number, Outcome(str(job.path), job.seed, INTERRUPTED, 128 + watch.signum)
        (Path(scratch) / f"begun-{number}").touch()
        outcome = attempt(job, watch)
        if Path(scratch).is_dir():
            (Path(scratch) / f"ended-{number}").touch()
        return number, outcome


class FileStop(Stop):
    """A Stop that also turns true when the parent process wrote the file `path`."""

    def __init__(self, own: Stop, path: Path, seconds: float = 0.1) -> None:
        self.own, self.path, self.seconds, self.next = own, path, seconds, 0.0
        super().__init__()

    def __bool__(self) -> bool:
        if self.own.signum:
            self.signum = self.own.signum
        elif not self.signum and time.monotonic() > self.next:
            self.next = time.monotonic() + self.seconds
            if self.path.exists():
                self.signum = int(self.path.read_text() or signal.SIGTERM)
        return self.signum != 0


@contextmanager
def _told(stop: Stop, scratch: Path) -> Iterator[None]:
    """While this lasts, a thread writes the file `stop` as soon as a signal has arrived."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.05):
            if stop:
                (scratch / "stop.new").write_text(str(stop.signum))
                (scratch / "stop.new").rename(scratch / "stop")
                return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@contextmanager
def _warnings_as_lines() -> Iterator[None]:
    """In a worker: show the warnings of run folders as one line on stderr, as the main process does."""
    with warnings.catch_warnings():
        shown = warnings.showwarning

        def show(message: Any, category: type[Warning], *rest: Any, **named: Any) -> None:
            if issubclass(category, RunWarning):
                say(f"warning: {message}")
            else:
                shown(message, category, *rest, **named)

        warnings.showwarning = show
        yield
