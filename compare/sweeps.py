"""What a claim reads of a theory sweep: a field of the rows in `cells.jsonl`, chosen by parameters, reduced to a number."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ufm.console import reach
from ufm.errors import RequestError
from ufm.spec import Cells, cells, parameter, read_grid, resolve
from ufm.systems import SYSTEMS, System
from ufm.tables import load

# A list in a row (a path over time, singular values) becomes one number.
TAKES = {
    "first": lambda x: x.flat[0],
    "last": lambda x: x.flat[-1],
    "least": np.min,
    "most": np.max,
    "mean": np.mean,
    "least_step": lambda x: np.min(np.diff(x, axis=0)),  # >= 0: never falls
}
PER = ("cell", "seed", "slope", "best", "lowest", "spread", "crossing")
RESAMPLES = 2000
AGAINST = ("slope", "crossing")


@dataclass(frozen=True)
class Field:
    """One number of a sweep's rows.

    field: a dotted path into a row, such as "end.nc1_ratio" or "law_error". where: parameter -> value, or a list of values.
    take: for a list, one of `TAKES`. divide, minus: another field that the number is divided by, or less.
    below, equals: turn it into 1 where it is under a number, or is that text or number, else 0; nan where there is none, which is
    no hit of a share and leaves a law undecided.
    per: "cell" (every cell is a point), "seed" (the mean over a seed's cells), "slope" (of log value against log `against`,
    within a seed), "best" (the smallest over all cells, as one point), "lowest" (at the row of the lowest loss, as one point),
    "spread" (largest less smallest over settings, of means over seeds, judged with `Sheet.resampled`) or
    "crossing" (within a seed, the place along `along`, a path such as "parameters.signal", at which the value last
    passes `level`, between cells by a line; with
    `against` the slope of its logarithm against log `against`, one curve for each value of that option).
    """

    field: str
    where: Mapping[str, Any] = field(default_factory=dict)
    take: str = ""
    divide: str = ""
    minus: str = ""
    factor: float = 1.0
    below: float | None = None
    equals: Any = None
    per: str = "cell"
    against: str = ""
    along: str = ""
    level: float | None = None

    def __post_init__(self) -> None:
        if self.take and self.take not in TAKES:
            raise RequestError(f"take = {self.take!r} is not known; use one of {', '.join(TAKES)}")
        if self.per not in PER or (self.per == "slope" and not self.against) or (self.against and self.per not in AGAINST):
            raise RequestError(f"per = {self.per!r}, against = {self.against!r}: use {', '.join(PER)}; slope needs against")
        if (self.per == "crossing") != bool(self.along) or (self.per == "crossing") != (self.level is not None):
            raise RequestError(
                f"per = {self.per!r}, along = {self.along!r}, level = {self.level!r}: crossing needs both, no other"
            )

    def __str__(self) -> str:
        what = f"{self.field} / {self.divide}" if self.divide else self.field
        what = f"{what} - {self.minus}" if self.minus else what
        what = f"{self.take.replace('_', ' ')} of {what}" if self.take else what
        what = f"crossing of {what} = {self.level:g} along {self.along}" if self.per == "crossing" else what
        what = f"spread of {what}" if self.per == "spread" else what
        chosen = ", ".join(f"{name} = {value}" for name, value in self.where.items())
        return f"{what} ({chosen})" if chosen else what

    def changed(self, changes: Mapping[str, Any]) -> Field:
        """Return the field with some of its parts replaced; `where` is merged."""
        known = {f.name for f in dataclasses.fields(self)} - {"where"}
        where = {**self.where, **changes.get("where", {})}
        return dataclasses.replace(self, where=where, **{k: v for k, v in changes.items() if k in known})

    def of_row(self, row: Mapping[str, Any]) -> float:
        """Return the number of one row, nan where it has none."""
        found = reach(row, self.field)
        if self.equals is not None:
            return math.nan if found is None else float(found == self.equals)
        number = self._number(found)
        for other, join in ((self.divide, np.divide), (self.minus, np.subtract)):
            if other:
                by = self._number(reach(row, other))
                number = float(join(number, by)) if by or join is np.subtract else math.nan
        number *= self.factor
        return float(number < self.below) if self.below is not None and not math.isnan(number) else number

    def _number(self, found: Any) -> float:
        if isinstance(found, list):
            try:
                array = np.asarray([np.nan if v is None else v for v in found], dtype=np.float64)
            except (TypeError, ValueError):
                return math.nan
            return float(TAKES[self.take](array)) if self.take and array.size > 1 else math.nan
        return float(found) if isinstance(found, (int, float)) and not isinstance(found, bool) else math.nan


@dataclass(frozen=True)
class Sheet:
    """The rows of one cell of a paper: those of its grid and its registered seeds, whatever became of them."""

    name: str
    rows: Sequence[Mapping[str, Any]] = ()

    def chosen(self, quantity: Field) -> list[Mapping[str, Any]]:
        """Return the rows that `where` chooses."""
        return [row for row in self.rows if all(_one_of(row["parameters"].get(k), v) for k, v in quantity.where.items())]

    def series(self, quantity: Field) -> dict[tuple[int, int], float]:
        """Return (seed, number of the row) -> value."""
        rows = self.chosen(quantity)
        values = {(int(row["seed"]), i): quantity.of_row(row) for i, row in enumerate(rows)}
        if quantity.per == "cell":
            return values
        if quantity.per in ("best", "lowest"):
            finite = {key: v for key, v in values.items() if math.isfinite(v)}
            size = {key: v if quantity.per == "best" else rows[key[1]]["loss"] for key, v in finite.items()}
            chosen = min(size, key=lambda key: size[key], default=None)
            return {} if chosen is None else {chosen: finite[chosen]}
        if quantity.per == "spread":
            return _spread(rows, values)
        if quantity.per == "crossing":
            return {(seed, 0): _crossing(quantity, [(rows[i], v) for (s, i), v in values.items() if s == seed])
                    for seed in dict.fromkeys(s for s, _ in values)}  # fmt: skip
        seeds = {int(row["seed"]): [] for row in rows}
        for (seed, i), value in values.items():
            seeds[seed].append((_parameter(rows[i], quantity.against), value))
        reduce = _slope if quantity.per == "slope" else _mean
        return {(seed, 0): reduce(pairs) for seed, pairs in seeds.items()}

    def resampled(self, quantity: Field) -> tuple[tuple[int, ...], np.ndarray]:
        """Return the seeds of a spread, and the spreads of `RESAMPLES` draws of as many seeds (with replacement, fixed stream).

        A seed is drawn with all its settings, since settings share their seeds. Seeds without a number in some setting are left
        out; fewer than two leave no draw.
        """
        rows = self.chosen(quantity)
        columns: dict[str, dict[int, float]] = {}
        for row in rows:
            columns.setdefault(json.dumps(row["parameters"], sort_keys=True), {})[int(row["seed"])] = quantity.of_row(row)
        shared = sorted(set.intersection(*(set(column) for column in columns.values()))) if columns else []
        table = np.array([[column[seed] for seed in shared] for column in columns.values()])
        if len(shared) < 2 or len(columns) < 2 or not np.isfinite(table).all():
            return tuple(shared), np.zeros(0)
        drawn = np.random.default_rng(0).integers(len(shared), size=(RESAMPLES, len(shared)))
        return tuple(shared), np.ptp(table[:, drawn].mean(axis=2), axis=0)


def _parameter(row: Mapping[str, Any], name: str) -> float:
    value = row["parameters"].get(name) if name else 0.0
    return float(value) if isinstance(value, (int, float)) else math.nan


def _mean(pairs: Sequence[tuple[float, float]]) -> float:
    return float(np.mean([y for _, y in pairs]))


def _slope(pairs: Sequence[tuple[float, float]]) -> float:
    x, y = (np.array(column, dtype=np.float64) for column in zip(*pairs, strict=True))
    if len(np.unique(x)) < 2 or not (np.all(x > 0) and np.all(y > 0)):
        return math.nan
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def _spread(rows: Sequence[Mapping[str, Any]], values: Mapping[tuple[int, int], float]) -> dict[tuple[int, int], float]:
    """Return how far the settings' means over seeds lie apart, as one point; noise only widens it."""
    means: dict[str, list[float]] = {}
    for (_, i), value in values.items():
        means.setdefault(json.dumps(rows[i]["parameters"], sort_keys=True), []).append(value)
    return {min(values): float(np.ptp([np.mean(column) for column in means.values()]))} if len(means) > 1 else {}


def _crossing(quantity: Field, points: Sequence[tuple[Mapping[str, Any], float]]) -> float:
    """Return where one seed's curve crosses the level, or the slope of the crossings of its curves."""
    curves: dict[float, dict[float, list[float]]] = {}
    for row, value in points:
        group = _parameter(row, quantity.against) if quantity.against else 0.0
        at = float(f"{quantity._number(reach(row, quantity.along)):.12g}")  # one place, whatever it was computed from
        curves.setdefault(group, {}).setdefault(at, []).append(value)
    found = [(group, last_crossing(curve, float(quantity.level or 0.0))) for group, curve in curves.items()]
    return _slope(found) if quantity.against else found[0][1]


def last_crossing(curve: Mapping[float, Sequence[float]], level: float) -> float:
    """Return where the line through a curve's means last passes `level`; nan where it never does."""
    x = np.array(sorted(curve))
    above = np.array([np.mean(curve[at]) for at in x]) - level
    changes = np.flatnonzero((above[:-1] < 0) != (above[1:] < 0))
    if not len(changes) or not (np.isfinite(above).all() and np.isfinite(x).all()):
        return math.nan
    i = changes[-1]
    return float(x[i] + (x[i + 1] - x[i]) * above[i] / (above[i] - above[i + 1]))


def _one_of(found: Any, wanted: Any) -> bool:
    several = wanted if isinstance(wanted, (list, tuple)) else [wanted]
    return any(_same(found, one) for one in several)


def _same(found: Any, wanted: Any) -> bool:
    numbers = (int, float)
    if isinstance(found, numbers) and isinstance(wanted, numbers) and not isinstance(found, bool):
        return math.isclose(found, wanted, rel_tol=1e-12)
    return found == wanted


# --- a paper's cell as a sweep --------------------------------------------------------------------------------------


def system_of(cell: Mapping[str, Any]) -> System:
    """Return the system of a paper's cell."""
    return load(SYSTEMS, cell["system"], "system")


def grid_of(cell: Mapping[str, Any]) -> tuple[dict[str, list[Any]], Cells]:
    """Return (option -> values, the cells of the grid); RequestError for a wrong option."""
    values = resolve(system_of(cell).spec, cell["options"], source=f"a cell of system {cell['system']}")
    return values, cells(values, cell.get("zip", ()))


def seeds_of(cell: Mapping[str, Any], registered: Sequence[int]) -> tuple[int, ...]:
    """Return the seeds of a cell: its own ("0:96"), or those of its scale."""
    if "seeds" not in cell:
        return tuple(registered)
    from ufm.commands.shared import Seeded

    seeds = next(f for f in dataclasses.fields(Seeded) if f.name == "seeds")
    return tuple(read_grid(seeds, cell["seeds"]))


@functools.lru_cache(maxsize=256)
def _wanted(text: str) -> tuple[dict[str, list[Any]], list[dict[str, Any]]]:
    cell = json.loads(text)
    values, grid = grid_of(cell)
    varying = [name for name, column in values.items() if len(column) > 1]
    fixed = {name: parameter(column[0]) for name, column in values.items() if len(column) == 1}
    return fixed, [{name: parameter(one[name]) for name in varying} for one in grid]


def fits(cell: Mapping[str, Any], system: str, setting: Mapping[str, Any]) -> bool:
    """Whether a row's full parameters (or a run's setting, with "grid" for what varies) belong to this cell of a paper."""
    if cell["system"] != system:
        return False
    fixed, points = _wanted(json.dumps(cell, sort_keys=True))
    if not all(_same(setting[name], value) for name, value in fixed.items() if name in setting):
        return False
    return any(all(setting.get(k) == "grid" or _same(setting.get(k), v) for k, v in point.items()) for point in points)


def sheet(cell: Mapping[str, Any], name: str, folders: Sequence[str | Path], registered: Sequence[int]) -> Sheet:
    """Return the rows that are this cell's, of the given run folders, in the order of the files."""
    from ufm.sweep import read_cells

    seeds = set(seeds_of(cell, registered))
    rows = [row for folder in dict.fromkeys(map(str, folders)) for row in read_cells(folder)]
    return Sheet(name, [row for row in rows if row["seed"] in seeds and fits(cell, cell["system"], row["parameters"])])
