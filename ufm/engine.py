"""Where chunks are computed: in this process, in joblib's workers, or on a dask cluster. Results come back in order.

A worker that dies takes nothing with it but its chunk, which is tried again alone, then cell by cell; a cell that kills its
worker a third time is recorded as failed.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import BrokenExecutor
from typing import Any, NamedTuple

from ufm.console import plain
from ufm.errors import RequestError
from ufm.files import digest
from ufm.systems import Task
from ufm.tables import resolve_target

LOST = "failed: the worker was lost"  # the sentence of ufm.solution.Status.FAILED
ERROR = "failed: an error in the cell"
MEMORY = "failed: out of memory"
KILLED = ("KilledWorker", "CommClosedError")  # what dask raises; named here since dask is optional


class Job(NamedTuple):
    """One chunk: everything a worker needs, small enough to send."""

    target: str  # "module:function", (list[Task], device) -> list[dict]
    keys: tuple[str, ...]
    tasks: tuple[Task, ...]
    parameters: tuple[dict[str, Any], ...]
    device: str

    @property
    def tag(self) -> str:
        """Name and size of the chunk, in each of its rows: how a reader knows whether it is whole."""
        return f"{digest(' '.join(self.keys).encode())[:8]}:{len(self.keys)}"

    def single(self, index: int) -> Job:
        """Return the job of one of its cells."""
        here = slice(index, index + 1)
        return self._replace(keys=self.keys[here], tasks=self.tasks[here], parameters=self.parameters[here])


def compute(job: Job) -> list[dict[str, Any]]:
    """Compute a chunk: its rows, in order, JSON-ready. A cell that raises is a row, not an exception."""
    function = resolve_target(job.target)
    with one_thread():
        try:
            results = list(function(list(job.tasks), job.device))
        except Exception:  # one bad cell must not take the others with it: find it
            results = [_guarded(function, task, job.device) for task in job.tasks]
    if len(results) != len(job.tasks):
        raise AssertionError(f"{job.target} returned {len(results)} rows for {len(job.tasks)} cells")
    return [row_of(job, index, result) for index, result in enumerate(results)]


def _guarded(function: Any, task: Task, device: str) -> dict[str, Any]:
    try:
        return function([task], device)[0]
    except MemoryError as error:
        return {"status": MEMORY, "reason": _sentence(error) or "use smaller sizes or fewer --workers"}
    except Exception as error:  # recorded with its reason; the sweep goes on
        memory = "out of memory" in str(error).lower()
        return {"status": MEMORY if memory else ERROR, "reason": f"{type(error).__name__}: {_sentence(error)}"}


def _sentence(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def row_of(job: Job, index: int, result: dict[str, Any]) -> dict[str, Any]:
    """Return one line of cells.jsonl."""
    head = {"cell": job.keys[index], "seed": job.tasks[index].seed, "parameters": job.parameters[index], "device": job.device}
    return {**head, **plain(result), "chunk": job.tag}


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Compute with one thread: sums in the same order whoever computes, and one process per core is faster anyway."""
    with _one_blas_thread():
        if "torch" not in sys.modules and os.environ.get("OMP_NUM_THREADS") == "1":
            yield  # a worker: torch, if the cells import it, starts with one thread
            return
        import torch

        before = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(before)


def _one_blas_thread() -> contextlib.AbstractContextManager[Any]:
    try:
        from threadpoolctl import threadpool_limits
    except ImportError:  # an optional package; torch does the large products
        return contextlib.nullcontext()
    return threadpool_limits(1)


# --- who computes ------------------------------------------------------------------------------------------------


def results(jobs: Sequence[Job], workers: int = 1, cluster: str | None = None) -> Iterator[list[dict[str, Any]]]:
    """Yield the rows of each job in the order of `jobs`; inside `backend`."""
    if cluster is None and workers == 1:
        yield from map(compute, jobs)
    else:
        yield from _in_workers(jobs, -1 if cluster is not None else workers)  # -1: whatever the scheduler has


def _in_workers(jobs: Sequence[Job], number: int) -> Iterator[list[dict[str, Any]]]:
    finished = 0
    while finished < len(jobs):
        begun: list[Job] = []
        before = finished
        try:
            for rows in _parallel(_noting(jobs[finished:], begun), number):
                finished += 1
                yield rows
        except Exception as error:
            if not worker_lost(error):
                raise
            # The dead worker held one of the jobs that were begun and have not come back; alone each shows itself.
            suspects = max(1, len(begun) - (finished - before))
            for job in jobs[finished : finished + suspects]:
                finished += 1
                yield _alone(job)


def _noting(jobs: Iterable[Job], begun: list[Job]) -> Iterator[Job]:
    for job in jobs:
        begun.append(job)
        yield job


def _parallel(jobs: Iterable[Job], number: int) -> Iterator[list[dict[str, Any]]]:
    """Yield results in order; joblib takes from `jobs` only as its workers become free."""
    import joblib

    pool = joblib.Parallel(n_jobs=number, return_as="generator", batch_size=1, pre_dispatch="n_jobs")
    return pool(joblib.delayed(compute)(job) for job in jobs)


def _alone(job: Job) -> list[dict[str, Any]]:
    """Second try: the whole chunk by itself. Third: cell by cell."""
    try:
        return next(iter(_parallel([job], 2)))
    except Exception as error:
        if not worker_lost(error):
            raise
    rows = []
    for index in range(len(job.keys)):
        single = job.single(index)
        try:
            rows += next(iter(_parallel([single], 2)))
        except Exception as error:
            if not worker_lost(error):
                raise
            rows.append(row_of(single, 0, {"status": LOST, "reason": "it ended its worker three times"}))
    return [{**row, "chunk": job.tag} for row in rows]


def worker_lost(error: Exception) -> bool:
    """Whether this is what joblib or dask raises when a worker process has ended."""
    return isinstance(error, BrokenExecutor) or type(error).__name__ in KILLED


@contextlib.contextmanager
def backend(workers: int = 1, cluster: str | None = None) -> Iterator[None]:
    """Make joblib use processes here, or the dask scheduler at `cluster`; RequestError when none answers there."""
    if cluster is None and workers == 1:
        yield
        return
    import joblib

    if cluster is None:
        with joblib.parallel_config(backend="loky", inner_max_num_threads=1):
            yield
        return
    try:
        from distributed import Client
    except ImportError:
        raise RequestError("--cluster needs the package 'distributed'; pip install 'ufm[cluster]' brings it") from None
    try:
        client = Client(cluster, timeout=10)
    except (OSError, ValueError) as error:
        raise RequestError(
            f"--cluster {cluster}: no dask scheduler answers ({_sentence(error)}); start one or use --workers"
        ) from None
    with client, joblib.parallel_config(backend="dask"):
        yield


def stop_workers() -> None:
    """End joblib's processes at once, if there are any: after a signal nobody waits for them."""
    with contextlib.suppress(ImportError):
        from joblib.externals.loky import reusable_executor

        executor = reusable_executor._executor
        if executor is not None:
            executor.shutdown(wait=False, kill_workers=True)
