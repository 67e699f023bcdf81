"""Read run folders into one flat table, leaving nothing out in silence.

What is unfinished, corrupt or diverged is listed in `Table.excluded` with a sentence; a torn last line is dropped with a warning.
"""

from __future__ import annotations

import json
import math
import os
import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compare import pair, papers
from compare.rows import COLUMNS, Cell, Excluded, Table, table_of
from ufm import files, identity
from ufm.console import safe_text
from ufm.errors import RequestError, RunError
from ufm.prediction import EVIDENCE
from ufm.systems import SYSTEMS

MALFORMED = (KeyError, TypeError, ValueError, OverflowError, AttributeError)  # what reading a strange row raises
PROGRAMS = ("ufm", "empirical", "compare")
METRICS, MARKER = "metrics.jsonl", "done"
MOST_THRESHOLDS = 8  # kept of one cell: a thousand classes may each have their own
# A cell of a theory sweep that did not reach its optimum says nothing of the optimum: only these prefixes are compared.
REACHED = (
    "converged",
    "the zero solution",
    "ended at the zero solution",
    "on a plateau",
    "reached its last time",
    "ok",
    "done",
    "finished",
    "exact",
)


def load(paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> Table:
    """Return the flat table of every run found under `paths` (roots, run folders or seed folders).

    Measured rows of trainings (`seed-K/metrics.jsonl`) and cells of theory sweeps (`cells*.jsonl`), each with what theory
    predicts for it where it does (columns `predicted`, `assumption`, `reference`; see `compare.pair`). A row may name its
    measure under `metric`, as `empirical` writes it, or under `measure`, as the table calls it.

    Raises:
        RequestError: a path does not exist, or no run is found below the paths.
    """
    given = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
    reader = _Reader()
    for path in map(Path, given):
        if not path.exists():
            raise RequestError(f"{path}: no such folder; name a run folder or the folder that holds the runs")
        found = list(find_settings(path))
        if not found:
            raise RequestError(f"{path}: no run below it (no config.json); name a folder written by `ufm` or `empirical`")
        with files.uncollected():
            for folder, seed in found:
                reader.read_setting(folder, seed)
    return pair.attach(reader.table())


def find_settings(path: Path, above: frozenset[Path] = frozenset()) -> Iterator[tuple[Path, int | None]]:
    """Yield (setting folder, None), or (setting folder, seed) where `path` is one seed's folder, sorted by name.

    `above`: the folders that led here, so that a link back to one of them ends.
    """
    seed = _seed_of(path.name)
    if seed is not None and not (path / "config.json").exists() and (path.parent / "config.json").exists():
        yield path.parent, seed
        return
    if (path / "config.json").exists():
        yield path, None
        return
    if not above:  # one that was named; below a folder of runs it adds nothing to the runs beside it
        yield from ((folder, None) for folder in identity.listed_settings(path))
    here = path.resolve()
    if here in above:
        return
    with os.scandir(path) as entries:
        below = sorted(e.name for e in entries if e.is_dir(follow_symlinks=True))
    for name in below:
        yield from find_settings(path / name, above | {here})


def _seed_of(name: str) -> int | None:
    text = name.removeprefix("seed-")
    return int(text) if text != name and text.isdecimal() else None


@dataclass
class _Reader:
    """Gathers columns over many folders."""

    columns: dict[str, list[Any]] = field(
        default_factory=lambda: {n: [] for n in COLUMNS if n not in ("assumption", "reference")}
    )
    cells: dict[str, Cell] = field(default_factory=dict)
    excluded: list[Excluded] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    seen: set[tuple[Path, int | None]] = field(default_factory=set)  # a run named twice is read once

    def table(self) -> Table:
        return table_of(self.columns, self.cells, self.excluded, self.warnings)

    def read_setting(self, folder: Path, only_seed: int | None) -> None:
        folder = folder.resolve()
        if (folder, None) in self.seen or (folder, only_seed) in self.seen:
            return
        self.seen.add((folder, only_seed))
        name = self._free_name(folder)
        try:
            document = identity.read_document(folder)
        except (RunError, OSError) as error:
            reason = str(error).replace(f"{folder}{os.sep}", "")
            self.excluded.append(Excluded(name, -1, reason, self._remedy(folder, folder.parent.name)))
            return
        environment = self._record(folder / "env.json")
        seeds = {s: p for p in folder.iterdir() if (s := _seed_of(p.name)) is not None and p.is_dir()}
        if only_seed is not None:
            seeds = {only_seed: folder / f"seed-{only_seed}"}
        cell = Cell(name, document["system"], str(folder), document["setting"], environment)
        sheets = sorted(folder.glob("cells*.jsonl"))
        if not seeds and not sheets:
            gone = (folder / MARKER).exists()
            reason = "its cells.jsonl is missing" if gone else "no seed folder and no cells: the run has not started"
            self.excluded.append(Excluded(name, -1, reason, self._remedy(folder, cell.system) if gone else ""))
        if seeds:
            self._read_seeds(cell, seeds)
        if sheets:
            self._read_sweep(cell, sheets)

    def _free_name(self, folder: Path) -> str:
        """Two copies of one run (on two machines, say) stay two cells."""
        name, number = folder.name, 2
        while name in self.cells:
            name, number = f"{folder.name}~{number}", number + 1
        return name

    # --- trainings ---

    def _read_seeds(self, cell: Cell, seeds: Mapping[int, Path]) -> None:
        paper, results, read = papers.paper_of(cell.system, cell.config), {}, []
        environment = dict(cell.environment)
        for seed, folder in sorted(seeds.items()):
            result = self._record(folder / "result.json")
            damage, problem = "", self._why_not(folder, result)
            if not problem:
                damage = problem = self._read_metrics(cell.name, paper, seed, folder)
            if problem:
                lost = damage or ((folder / MARKER).exists() and not (folder / METRICS).exists())
                self.excluded.append(Excluded(cell.name, seed, problem, self._remedy(folder, cell.system) if lost else ""))
                continue
            read.append(seed)
            results[seed] = result
            environment = environment or self._record(folder / "env.json")
        self.cells[cell.name] = Cell(cell.name, cell.system, cell.path, cell.config, environment, tuple(read), results)

    def _why_not(self, folder: Path, result: Mapping[str, Any]) -> str:
        """Return why a seed is left out, or ''."""
        if not (folder / METRICS).exists():
            return f"{METRICS} is missing"
        status = str(result.get("status", ""))
        if result.get("ok") is False or status.startswith(("diverged", "failed")):
            return status or "the training did not end well"
        if not (folder / MARKER).exists():
            return "unfinished: no `done` marker; `empirical resume` continues it"
        return ""

    def _read_metrics(self, cell: str, paper: str, seed: int, folder: Path) -> str:
        """Append one seed's rows; return a sentence when a line in the middle is corrupt (then nothing is appended)."""
        rows, problem = self._lines(folder / METRICS)
        if problem:
            return problem
        try:
            fresh: dict[str, list[Any]] = {
                "paper": [paper] * len(rows),
                "cell": [cell] * len(rows),
                "seed": [_whole(r.get("seed", seed)) for r in rows],
                "epoch": [_whole(r.get("epoch")) for r in rows],
                "step": [_whole(r.get("step")) for r in rows],
                "split": [_text(r.get("split")) for r in rows],
                "layer": [_text(r.get("layer")) for r in rows],
                "centres": [_text(r.get("centres")) for r in rows],
                "measure": [_text(r["metric"] if "metric" in r else r["measure"]) for r in rows],
                "value": [_real(r["value"]) for r in rows],
                "predicted": [float("nan")] * len(rows),
                "flag": [_text(r.get("flag")) for r in rows],
                "reason": [_text(r.get("reason")) for r in rows],
            }
        except MALFORMED as error:
            return f"{METRICS} has a line that is not a measured row ({type(error).__name__}: {str(error)[:80]})"
        for name, column in fresh.items():
            self.columns[name] += column
        return ""

    # --- theory sweeps ---

    def _read_sweep(self, cell: Cell, sheets: Iterable[Path]) -> None:
        found: dict[str, tuple[str, dict[str, Any]]] = {}  # all shards together, as `ufm.sweep.read_cells` joins them
        for sheet in sheets:
            rows, problem = self._lines(sheet, skip="gram")  # the table has no place for them
            if problem:
                remedy = self._remedy(sheet.parent, cell.system, sheet.name.replace("cells", "env").replace(".jsonl", ".json"))
                self.excluded.append(Excluded(cell.name, -1, problem, remedy))
            for index, row in enumerate(rows):
                key = str(row.get("cell", f"{sheet.stem}:{index}"))
                # A cell that was computed again has a later row, which counts; a failed one never hides a shard's result.
                if key not in found or not _failed(row) or _failed(found[key][1]):
                    found[key] = sheet.name, row
        if not found and not any(one.cell == cell.name for one in self.excluded):
            again = shlex.join(self._command(Path(cell.path), cell.system))
            reason = f"no cell is recorded: the sweep was stopped before its first chunk; run `{again}` again"
            self.excluded.append(Excluded(cell.name, -1, reason))
        paper = papers.paper_of(cell.system, cell.config)
        for key, (sheet_name, row) in found.items():
            try:
                self._read_cell(cell, f"{cell.name}#{key}", paper, row)
            except MALFORMED as error:
                reason = f"{sheet_name} has a line that is not a cell ({type(error).__name__}: {str(error)[:80]})"
                self.excluded.append(Excluded(f"{cell.name}#{key}", -1, reason, self._remedy(Path(cell.path), cell.system)))

    def _read_cell(self, cell: Cell, name: str, paper: str, row: Mapping[str, Any]) -> None:
        status, parameters, flags = str(row.get("status", "")), dict(row.get("parameters") or {}), dict(row.get("flags") or {})
        seed = _whole(row.get("seed", parameters.get("seed")))
        reached = not status or status.startswith(REACHED)
        # A cell that was left out is known all the same: claims count every start, whatever became of it.
        setting = {**cell.config, **parameters}
        results = {seed: {"prediction": EVIDENCE}} if _unproven(row) else {}
        self.cells[name] = Cell(name, cell.system, cell.path, setting, cell.environment, (seed,) if reached else (), results)
        if not reached:
            self.excluded.append(Excluded(name, seed, status))
            return
        values, predicted = _sweep_values(row), pair.sweep_predictions(row.get("prediction"))
        if isinstance(row.get("predicted"), (int, float)):  # of the system deep: the lowest known structure
            predicted = {"loss": float(row["predicted"]), **predicted}
        number = len(values)
        same = {"paper": paper, "cell": name, "seed": seed, "epoch": -1, "step": -1, "split": "theory", "layer": "penultimate"}
        for column, item in {**same, "centres": "self", "reason": ""}.items():
            self.columns[column] += [item] * number
        self.columns["measure"] += values
        self.columns["value"] += map(float, values.values())
        self.columns["predicted"] += [predicted.get(measure, float("nan")) for measure in values]
        self.columns["flag"] += [_text(flags.get(measure)) for measure in values]

    # --- files ---

    def _remedy(self, folder: Path, system: str, file: str = "env.json") -> str:
        """Return what helps where a run's files are damaged: a copy, or the command that wrote them, as env.json keeps it."""
        version = self._record(folder / "config.json").get("run_format")
        if isinstance(version, int) and version > identity.FORMAT:
            return "install a newer ufm"
        words = self._command(folder, system, file)
        here = Path.cwd()
        place = folder.relative_to(here) if folder.is_relative_to(here) and folder != here else folder
        return f"restore it from a copy, or delete {place} and run `{shlex.join(words)}` again"

    def _command(self, folder: Path, system: str, file: str = "env.json") -> list[str]:
        """Return the command that wrote a run, as its environment or that of one of its seeds keeps it; else the plain one."""
        for place in (folder / file, folder / "env.json", *sorted(folder.glob("seed-*/env.json"))):
            argv = self._record(place).get("argv")
            if isinstance(argv, list) and argv and argv[0] in PROGRAMS:
                return [safe_text(word)[:200] for word in argv]
        return ["ufm", "simulate", system] if system in SYSTEMS else ["empirical", "run", system]

    def _record(self, path: Path) -> dict[str, Any]:
        """Return the document, {} where the file is missing or, with a warning, where it is no JSON object."""
        if not os.path.lexists(path):
            return {}
        try:
            document = json.loads(files.read_bytes(path))
            if isinstance(document, dict):
                return document
            raise ValueError
        except (RunError, OSError, ValueError, RecursionError) as error:
            self.warnings.append(f"{path.parent.name}/{path.name}: not readable ({type(error).__name__})")
            return {}

    def _lines(self, path: Path, skip: str = "") -> tuple[list[dict[str, Any]], str]:
        """Return the rows of a JSON-lines file and '' or a sentence; a torn last line is dropped with a warning."""
        try:
            data = files.read_bytes(path)
        except OSError as error:
            return [], f"{path.name}: {error.strerror or error}"
        except RunError as error:
            return [], str(error).replace(f"{path.parent}{os.sep}", "")
        damage = _damage(path.parent, path.name, data)
        if damage:
            return [], damage
        whole, _, torn = data.rpartition(b"\n")
        if torn:
            self.warnings.append(f"{path.parent.name}/{path.name}: a torn last line of {len(torn)} bytes was left out")
        lines = whole.split(b"\n") if whole else []
        if skip:
            lines = [files.without(line, skip) for line in lines]
        try:
            # One call is three times as fast as one per line.
            rows = json.loads(b"[" + b",".join(lines) + b"]", parse_constant=_no_constant, parse_float=_finite)
        except (ValueError, RecursionError):
            bad = next((i for i, line in enumerate(lines, 1) if not _is_json(line)), 1)
            return [], f"{path.name} is corrupt at line {bad}"
        if len(rows) != len(lines) or not all(isinstance(row, dict) for row in rows):
            return [], f"{path.name} has a line that is not one JSON object"
        return rows, ""


def _damage(folder: Path, file: str, data: bytes) -> str:
    """Return a sentence when a file is not the one the manifest was written for."""
    try:
        sealed = identity.read_manifest(folder).get(file)
        if sealed is not None:
            identity.check_sealed(Path(file), data, sealed, done=file == METRICS and (folder / MARKER).exists())
    except (RunError, OSError) as error:
        return str(error).replace(f"{folder}{os.sep}", "")
    return ""


def _unproven(row: Mapping[str, Any]) -> bool:
    prediction = row.get("prediction")
    if isinstance(prediction, Mapping):
        return bool(prediction.get("applies")) and prediction.get("status") == EVIDENCE
    # A deep row without a record of its prediction: among several structures the lowest known one is not a proven optimum.
    structures = row.get("structures")
    return isinstance(structures, Mapping) and not {"of", "gof", "etf"} & set(structures) and len(structures) > 1


def _failed(row: Mapping[str, Any]) -> bool:
    return str(row.get("status", "")).startswith("failed")


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is not strict JSON")


def _finite(text: str) -> float:
    """Return the number; 1e400 is JSON and no number."""
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:20]} is not finite")
    return number


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line, parse_constant=_no_constant, parse_float=_finite)
    except (ValueError, RecursionError):
        return False
    return True


def _whole(value: Any) -> int:
    number = -1 if value is None else int(value)
    if not -1 <= number < 2**62:
        raise ValueError("a number out of range")
    return number


def _text(value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise TypeError(f"{type(value).__name__} where a name belongs")
    return value


def _real(value: Any) -> float:
    return float("nan") if value is None else float(value)


def _flat(record: Any) -> dict[str, float]:
    """Return the numbers of a (nested) record of measures: {"nc": {"nc1_pinv": .2}} -> {"nc1_pinv": .2}."""
    numbers: dict[str, float] = {}
    for key, value in record.items() if isinstance(record, Mapping) else ():
        if isinstance(value, (int, float)):
            if value is not True and value is not False:
                numbers[str(key)] = float(value)
        elif isinstance(value, Mapping):
            numbers.update(_flat(value))
    return numbers


def _sweep_values(row: Mapping[str, Any]) -> dict[str, float]:
    """Return what one cell of a sweep measured: its loss, its certificate's gap and its measures."""
    values = {"loss": row["loss"]} if isinstance(row.get("loss"), (int, float)) else {}
    if not values and isinstance(row.get("law"), str):  # a central path has no loss: it shows its collapse and its law
        end = row.get("end") if isinstance(row.get("end"), Mapping) else {}
        found = {"nc1_pinv": end.get("nc1_pinv"), "law_error": row.get("law_error")}
        values |= {name: value for name, value in found.items() if isinstance(value, (int, float))}
    certificate = row.get("certificate")
    if isinstance(certificate, Mapping) and isinstance(certificate.get("gap"), (int, float)):
        values["certificate_gap"] = certificate["gap"]
    return {**values, **_thresholds(row.get("prediction")), **_flat(row.get("measures"))}


def _thresholds(prediction: Any) -> dict[str, float]:
    """Return threshold_NAME -> dimensionless number (the regime changes at 1); the first of equal ones, at most eight."""
    known = prediction.get("thresholds") if isinstance(prediction, Mapping) else None
    numbers = {f"threshold_{name}": value for name, value in _flat(known).items()}
    first = {f"{value:.9g}": name for name, value in reversed(numbers.items())}
    return {name: numbers[name] for name in list(reversed(first.values()))[:MOST_THRESHOLDS]}
