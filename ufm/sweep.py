"""Sweeps: grid -> cells -> the missing ones -> engine -> records.

Chunks are fixed by the grid and not by who computes them, and are written in order, so that one worker and many write the
same bytes. A chunk is appended whole: a kill loses the chunks that were being computed, and nothing else.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any

from ufm import engine, files, machine
from ufm.errors import RequestError, RunError
from ufm.identity import setting_hash
from ufm.interrupt import Interrupted, stop_on_signals
from ufm.record import Run
from ufm.spec import Cells, FileValue, build, parameter, setting_of
from ufm.systems import Cost, System, Task
from ufm.tables import resolve_target

CELLS_PER_CHUNK = 256
BYTES_PER_CHUNK = 2**26
GRACE = 3.0  # seconds a running chunk may still take after a signal: a sweep ends within 5


@dataclass(frozen=True)
class Plan:
    """A request, checked: its cells, what they cost, and where they will be written. Nothing exists on disk yet."""

    system: System
    values: Mapping[str, Sequence[Any]]
    cells: Cells
    seeds: tuple[int, ...]
    config: dict[str, Any]
    name: str
    varying: tuple[str, ...]
    shard: tuple[int, int] | None
    chunks: list[list[int]] = field(repr=False)
    seconds: float = 0.0
    memory: float = 0.0  # of the largest chunk, one worker

    def __len__(self) -> int:
        """Return the number of cells of the whole grid, seeds included."""
        return len(self.cells) * len(self.seeds)

    def task(self, index: int) -> Task:
        """Return cell `index` of the grid; seeds walk fastest."""
        cell, seed = divmod(index, len(self.seeds))
        return Task(build(self.system.spec, self.cells[cell]), self.seeds[seed])

    def varied(self, index: int) -> dict[str, Any]:
        """Return the parameters that tell cell `index` from the others of its run folder."""
        cell = self.cells[index // len(self.seeds)]
        return {name: parameter(cell[name]) for name in self.varying}

    def key(self, index: int) -> str:
        """Return the hash that names cell `index` in its run folder, whatever grid it came from."""
        return setting_hash({**self.varied(index), "seed": self.seeds[index % len(self.seeds)]})[:16]


@dataclass(frozen=True)
class Outcome:
    """What a sweep left: the rows of the request in grid order, and how many of them were computed now."""

    path: Path
    rows: list[dict[str, Any]]
    computed: int

    @property
    def statuses(self) -> dict[str, int]:
        """Number of cells by status, the most frequent first."""
        return dict(Counter(row["status"] for row in self.rows).most_common())

    @property
    def failed(self) -> int:
        """Number of cells that diverged or were lost."""
        return sum(row["status"].startswith(("diverged", "failed")) for row in self.rows)


def plan(
    system: System,
    values: Mapping[str, Sequence[Any]],
    cells: Cells,
    seeds: Sequence[int],
    *,
    shard: tuple[int, int] | None = None,
    workers: int = 1,
) -> Plan:
    """Check every cell of a request and cut it into chunks; imports nothing heavy and creates nothing.

    Raises:
        RequestError: a cell is no valid problem, or needs more memory than this machine has.
    """
    check = resolve_target(system.check)
    limit = machine.memory_limit()
    costs: list[Cost] = []
    for cell in cells:
        cost = check(build(system.spec, cell))
        if cost.memory > limit:
            raise RequestError(
                f"one cell needs about {machine.bytes_text(cost.memory)} and this machine has {machine.bytes_text(limit)}; "
                "use smaller sizes"
            )
        costs.append(cost)
    index, number = shard or (0, 1)
    mine = range(index, len(costs) * len(seeds), number)
    chunks = list(_chunks(mine, costs, len(seeds), system.chunk_seconds))
    memory = max((sum(costs[i // len(seeds)].memory for i in chunk) for chunk in chunks), default=0.0)
    if memory * workers > limit:
        raise RequestError(
            f"{workers} workers need about {machine.bytes_text(memory * workers)} and this machine has "
            f"{machine.bytes_text(limit)}; use fewer --workers"
        )
    setting = setting_of(system.spec, values)
    return Plan(
        system=system,
        values=values,
        cells=cells,
        seeds=tuple(seeds),
        config={"system": system.name, "definition": system.version, **setting, **_file_marks(values)},
        name=_readable(system, setting),
        varying=tuple(name for name, value in setting.items() if value == "grid"),
        shard=shard,
        chunks=chunks,
        seconds=sum(costs[i // len(seeds)].seconds for i in mine),
        memory=memory,
    )


def _chunks(indices: Sequence[int], costs: Sequence[Cost], seeds: int, longest: float) -> Iterator[list[int]]:
    """Cut cells into consecutive chunks by their own cost only.

    A signal is answered at the end of a chunk, so chunks are short: `longest` seconds, or one cell.
    """
    chunk: list[int] = []
    seconds = memory = 0.0
    for index in indices:
        cost = costs[index // seeds]
        full = len(chunk) == CELLS_PER_CHUNK or seconds + cost.seconds > longest
        if chunk and (full or memory + cost.memory > BYTES_PER_CHUNK):
            yield chunk
            chunk, seconds, memory = [], 0.0, 0.0
        chunk.append(index)
        seconds, memory = seconds + cost.seconds, memory + cost.memory
    if chunk:
        yield chunk


def _file_marks(values: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    """A file's content is part of the setting, wherever the file lies."""
    return {name: parameter(value[0]) for name, value in values.items() if isinstance(value[0], FileValue)}


def _readable(system: System, setting: Mapping[str, Any]) -> str:
    parts = [setting[name] if isinstance(setting[name], str) else f"{name[0]}{setting[name]}" for name in system.naming]
    return "-".join(name if part == "grid" else part for name, part in zip(system.naming, parts, strict=True))[:80]


# --- the work ----------------------------------------------------------------------------------------------------


def execute(
    request: Plan,
    *,
    root: str | Path,
    device: str = "cpu",
    workers: int = 1,
    cluster: str | None = None,
    environment: Mapping[str, Any] | None = None,
    resume: str = "",
    advance: Any = None,
) -> Outcome:
    """Compute the missing cells of a request and record them.

    Args:
        request: from `plan`.
        root: the folder of all runs.
        device: where the cells are computed, as resolved.
        workers: processes on this machine.
        cluster: address of a running dask scheduler, instead of processes.
        environment: the provenance record; asked for when None.
        resume: the command that continues, printed after a signal.
        advance: called with the number of cells finished, after each chunk.

    Raises:
        Interrupted: after SIGINT or SIGTERM, when every finished chunk is on disk.
        RunError: another process writes the same run, or its files are damaged.
    """
    shard = request.shard
    file = "cells.jsonl" if shard is None else f"cells-{shard[0]}-of-{shard[1]}.jsonl"
    with (
        engine.backend(workers, cluster),
        Run.create(root, request.system.name, request.name, request.config, shard=shard, environment=environment) as run,
    ):
        drop_partial_chunk(run, file)
        known = {row["cell"]: row for row in read_cells(run.path, full=False, grams=True)}
        keys = {i: request.key(i) for chunk in request.chunks for i in chunk}
        jobs = [job for chunk in request.chunks if (job := _job(request, chunk, keys, known, device)) is not None]
        computed = 0
        if jobs:
            _keep_inputs(run, request.values)
            computed = _compute(run, file, jobs, known, workers, cluster, resume, advance)
        rows = [known[key] for key in keys.values()]
        if computed or not run.done:
            run.finish(_result(request, rows))
        return Outcome(run.path, [_full(row, run.config) for row in rows], computed)


def _compute(
    run: Run,
    file: str,
    jobs: list[engine.Job],
    known: dict[str, dict[str, Any]],
    workers: int,
    cluster: str | None,
    resume: str,
    advance: Any,
) -> int:
    computed = 0
    try:
        with stop_on_signals(GRACE) as stop:
            results = engine.results(jobs, workers, cluster)
            for rows in results:
                run.append(file, rows)
                known.update((row["cell"], row) for row in rows)
                computed += len(rows)
                if advance is not None:
                    advance(len(rows))
                if stop and computed < sum(len(job.tasks) for job in jobs):
                    raise Interrupted(stop.signum)
    except Interrupted as stopped:
        engine.stop_workers()
        raise Interrupted(stopped.signum, resume) from None
    return computed


def _job(
    request: Plan, chunk: Sequence[int], keys: Mapping[int, str], known: Mapping[str, Any], device: str
) -> engine.Job | None:
    """Return the work of a chunk: its cells that are not recorded, or were lost with a worker."""
    missing = [i for i in chunk if not _settled(known.get(keys[i]))]
    if not missing:
        return None
    return engine.Job(
        target=request.system.simulate,
        keys=tuple(keys[i] for i in missing),
        tasks=tuple(request.task(i) for i in missing),
        parameters=tuple(request.varied(i) for i in missing),
        device=device,
    )


def _settled(row: Mapping[str, Any] | None) -> bool:
    return row is not None and not row["status"].startswith("failed")


def _keep_inputs(run: Run, values: Mapping[str, Sequence[Any]]) -> None:
    """Copy files that options name into the run folder: without them it could not be computed again."""
    for name, column in values.items():
        value = column[0]
        if isinstance(value, FileValue):
            kept = f"{name}{Path(value.path).suffix.lower()}"
            if not (run.path / kept).exists():
                run.write_bytes(kept, Path(value.path).read_bytes())


def _result(request: Plan, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    statuses = Counter(row["status"] for row in rows)
    whole = {
        "seeds": request.seeds,
        "cells": len(request),
        "grid": {n: list(map(parameter, request.values[n])) for n in request.varying},
    }
    return {
        "status": "done",
        "cells": len(rows),
        "statuses": dict(sorted(statuses.items())),
        # Shards of one request only make a whole together.
        "request": setting_hash(whole)[:16],
    }


# --- reading -----------------------------------------------------------------------------------------------------


def read_cells(path: str | Path, *, full: bool = True, grams: bool = False) -> list[dict[str, Any]]:
    """Return the recorded cells of a run folder, all shards together, each once (whatever is later, but never a failed one).

    Args:
        path: the run folder.
        full: whether `parameters` also holds the options that do not vary within the run.
        grams: whether the rows keep their `gram`, which is more than half of what there is to read and seldom asked for.
    """
    run = Run.open(path)
    rows: dict[str, dict[str, Any]] = {}
    with files.uncollected():
        for sheet in sorted(run.path.glob("cells*.jsonl")):
            for key, row in _by_key(run.rows(sheet.name, skip="" if grams else "gram"), sheet).items():
                if _settled(row) or not _settled(rows.get(key)):  # another shard may have had more luck with it
                    rows[key] = row
        return [_full(row, run.config) for row in rows.values()] if full else list(rows.values())


def _by_key(rows: Sequence[dict[str, Any]], sheet: Path) -> dict[str, dict[str, Any]]:
    for number, row in enumerate(rows, 1):
        if not isinstance(row.get("cell"), str) or not isinstance(row.get("status"), str):
            raise RunError(f"{sheet}, line {number}: a cell with no name or no status; restore the file from a copy")
    return {row["cell"]: row for row in rows}


def _full(row: dict[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    return {**row, "parameters": {**config, **row.get("parameters", {})}}


def drop_partial_chunk(run: Run, file: str) -> None:
    """Drop the rows of a chunk that was not written to its end, so that it is computed again as a whole.

    A batch's numbers depend in their last bits on what is in the batch; a chunk computed again gives the same bytes.
    """
    lines = run.lines(file)
    tags = (_tag_of(line, run.path / file) for line in reversed(lines))
    tag = next(tags, "")
    tail = 1 + sum(1 for _ in takewhile(tag.__eq__, tags))
    size = int(tag.partition(":")[2]) if tag.partition(":")[2].isdigit() else 1
    if size and tail % size:
        run.truncate(file, len(lines) - tail % size)


def _tag_of(line: bytes, where: Path) -> str:
    row = files.load_json(line, f"a line near the end of {where}")
    return str(row.get("chunk", "")) if isinstance(row, dict) else ""
