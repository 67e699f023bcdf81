"""`Table`: the flat table of measured and predicted values that everything in `compare` reads."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from ufm.errors import RequestError
from ufm.prediction import EVIDENCE
from ufm.tables import suggest

# Text columns are stored as integer codes into a short tuple of levels: ten thousand runs fit in memory and select fast.
TEXT = ("paper", "cell", "split", "layer", "centres", "measure", "assumption", "reference", "flag", "reason")
WHOLE = ("seed", "epoch", "step")  # -1 where it does not apply (a theory cell has no epoch)
REAL = ("value", "predicted")  # nan where it does not exist
COLUMNS = (
    *("paper", "cell", "seed", "epoch", "step", "split", "layer", "centres", "measure", "value"),
    *("predicted", "assumption", "reference", "flag", "reason"),
)
POINT = ("cell", "seed", "epoch", "step", "split", "layer", "centres")  # what identifies one measured state


class Codes(NamedTuple):
    """A text column: `levels[codes[i]]` is row i."""

    codes: np.ndarray
    levels: tuple[str, ...]

    def decode(self) -> np.ndarray:
        """Return the column as an object array of str."""
        return np.array(self.levels or ("",), dtype=object)[self.codes]

    def take(self, rows: np.ndarray) -> Codes:
        """Return the column of the given rows (a mask or indices)."""
        return Codes(self.codes[rows], self.levels)

    @classmethod
    def of(cls, text: Sequence[str]) -> Codes:
        """Encode a sequence of texts."""
        levels = tuple(dict.fromkeys(text))
        known = {level: i for i, level in enumerate(levels)}
        return cls(np.fromiter(map(known.__getitem__, text), dtype=np.int32, count=len(text)), levels)


@dataclass(frozen=True)
class Cell:
    """One setting on disk: a training setting with its seeds, or one cell of a theory sweep."""

    name: str
    system: str  # the study or the system, "collapse", "single", ...
    path: str
    config: dict[str, Any] = field(repr=False)  # the resolved setting
    environment: dict[str, Any] = field(default_factory=dict, repr=False)
    seeds: tuple[int, ...] = ()
    results: dict[int, dict[str, Any]] = field(default_factory=dict, repr=False)  # seed -> result.json

    @property
    def unproven(self) -> bool:
        """Whether the prediction of this cell of a theory sweep is evidence only."""
        return any(result.get("prediction") == EVIDENCE for result in self.results.values())


class Excluded(NamedTuple):
    """Something that was found and is not in the table, and the sentence that says why."""

    cell: str
    seed: int  # -1: the whole cell
    reason: str
    remedy: str = ""  # where its files are damaged: what helps, a command included


@dataclass(frozen=True, eq=False)
class Table(Mapping):
    """Columns of equal length: a Mapping name -> numpy array, with the cells they come from.

    Columns: paper, cell, split, layer, centres, measure, assumption, reference, flag, reason (str); seed, epoch, step (int, -1
    where it does not apply); value, predicted (float, nan where it does not exist).
    """

    data: dict[str, np.ndarray | Codes] = field(repr=False)
    cells: dict[str, Cell] = field(default_factory=dict, repr=False)
    excluded: tuple[Excluded, ...] = ()
    warnings: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self.data:
            raise RequestError(f"unknown column {name!r}; {suggest(name, self.data)}")
        column = self.data[name]
        return column.decode() if isinstance(column, Codes) else column

    def __iter__(self) -> Iterator[str]:
        return iter(self.data)

    def __len__(self) -> int:  # of the Mapping: the number of columns; `rows` counts rows
        return len(self.data)

    def __repr__(self) -> str:
        return f"Table({self.rows} rows, {len(self.cells)} cells, {len(self.excluded)} excluded)"

    @property
    def rows(self) -> int:
        """The number of rows."""
        return len(self.data["value"])

    def levels(self, name: str) -> list[str]:
        """Return the different texts of a text column that occur, sorted."""
        column = self.data[name]
        if not isinstance(column, Codes):
            raise RequestError(f"column {name!r} is not text; the text columns are {', '.join(TEXT)}")
        present = np.unique(column.codes)
        return sorted(column.levels[i] for i in present)

    def mask(self, **conditions: Any) -> np.ndarray:
        """Return the boolean mask of the rows that meet all conditions (see `where`)."""
        keep = np.ones(self.rows, dtype=bool)
        for name, wanted in conditions.items():
            if name not in self.data:
                raise RequestError(f"unknown column {name!r}; {suggest(name, self.data)}")
            column = self.data[name]
            if callable(wanted):
                keep &= np.asarray(wanted(self[name]), dtype=bool)
                continue
            several = isinstance(wanted, Collection) and not isinstance(wanted, str)
            options = list(wanted) if several else [wanted]
            if isinstance(column, Codes):
                chosen = np.array([level in options for level in column.levels], dtype=bool)
                keep &= chosen[column.codes] if len(column.levels) else False
            else:
                keep &= np.isin(column, options)
        return keep

    def where(self, **conditions: Any) -> Table:
        """Return the rows whose columns equal a value, lie in a collection, or satisfy a function of the column.

        `table.where(split="test", measure=["nc1_pinv", "ncc_error"], epoch=lambda e: e > 0)`
        """
        return self.take(self.mask(**conditions))

    def of_cell(self, name: str) -> Table:
        """Return the rows of one cell, which is then the table's only one."""
        return self.by_cell([name])[name]

    def by_cell(self, names: Sequence[str] | None = None) -> dict[str, Table]:
        """Return cell -> its rows as a Table of one cell, in one pass over the table (ten thousand cells in a second)."""
        column = self.data["cell"]
        order = np.argsort(column.codes, kind="stable")
        edges = np.searchsorted(column.codes[order], np.arange(len(column.levels) + 1))
        place = {level: i for i, level in enumerate(column.levels)}
        parts = {}
        for name in self.cells if names is None else names:
            i = place.get(name)
            rows = order[edges[i] : edges[i + 1]] if i is not None else order[:0]
            parts[name] = replace(self.take(rows), cells={name: self.cells[name]} if name in self.cells else {})
        return parts

    def take(self, rows: np.ndarray) -> Table:
        """Return the rows of a boolean mask or of an index array, in that order."""
        data = {n: c.take(rows) if isinstance(c, Codes) else c[rows] for n, c in self.data.items()}
        return replace(self, data=data)

    def select(self, *names: str) -> dict[str, np.ndarray]:
        """Return some columns as a dict of arrays."""
        return {name: self[name] for name in names}

    def with_columns(self, **columns: np.ndarray | Codes) -> Table:
        """Return the table with some columns replaced."""
        return replace(self, data={**self.data, **columns})

    def extended(self, columns: Mapping[str, Sequence[Any]]) -> Table:
        """Return the table with rows added below; missing columns are filled as in `table_of`."""
        more = table_of(columns).data
        data: dict[str, np.ndarray | Codes] = {}
        for name, column in self.data.items():
            added = more[name]
            if isinstance(column, Codes):
                levels = {text: i for i, text in enumerate(column.levels)}
                place = np.array([levels.setdefault(text, len(levels)) for text in added.levels], dtype=np.int32)
                codes = place[added.codes] if len(place) else added.codes
                data[name] = Codes(np.concatenate([column.codes, codes]), tuple(levels))
            else:
                data[name] = np.concatenate([column, added])
        return replace(self, data=data)

    def codes(self, name: str) -> np.ndarray:
        """Return a column as integers (the codes of text), for grouping."""
        column = self.data[name]
        return column.codes if isinstance(column, Codes) else column

    def groups(self, *names: str) -> np.ndarray:
        """Return one integer per row, 0 .. G-1, equal for two rows where all the named columns are equal."""
        key = np.zeros(self.rows, dtype=np.int64)
        for name in names:
            column = self.codes(name)
            if self.rows == 0:
                break
            _, dense = np.unique(column, return_inverse=True) if not isinstance(self.data[name], Codes) else (0, column)
            key = key * (int(dense.max()) + 1) + dense
            if key.max() > 2**40:  # keep the product of cardinalities inside an int64
                _, key = np.unique(key, return_inverse=True)
        return np.unique(key, return_inverse=True)[1] if self.rows else key

    def points(self, *measures: str, across_centres: bool = False) -> dict[str, np.ndarray]:
        """Join measures of the same state: the columns of a point, and one float array per measure (nan where absent).

        With `across_centres` the values under both centres' conventions are joined and the column `centres` is left out.
        """
        some = self.where(measure=measures)
        names = tuple(n for n in POINT if not (across_centres and n == "centres"))
        key = some.groups(*names) if some.rows else np.zeros(0, dtype=np.int64)
        number = int(key.max()) + 1 if some.rows else 0
        first = np.zeros(number, dtype=np.int64)
        first[key[::-1]] = np.arange(some.rows)[::-1]
        joined: dict[str, np.ndarray] = {name: some[name][first] for name in names}
        for measure in measures:
            column = np.full(number, np.nan)
            mine = some.mask(measure=measure)
            column[key[mine]] = some.data["value"][mine]
            joined[measure] = column
        return joined

    def last(self) -> Table:
        """Return the rows of the last state of every (cell, seed): its last epoch, and of that the last step.

        A budget in steps may end inside an epoch that was looked at already; two states of one seed are not two seeds.
        """
        table = self
        for name in ("epoch", "step"):
            if not table.rows:
                break
            key = table.groups("cell", "seed")
            latest = np.full(int(key.max()) + 1, -(2**62), dtype=np.int64)
            np.maximum.at(latest, key, table.data[name])
            table = table.take(table.data[name] == latest[key])
        return table

    def to_pandas(self) -> Any:
        """Return a pandas DataFrame; a RequestError where pandas is not installed."""
        try:
            import pandas
        except ImportError:
            raise RequestError("to_pandas() needs pandas, which is not installed; pip install pandas") from None
        return pandas.DataFrame({name: self[name] for name in self.data})


def table_of(
    columns: Mapping[str, Sequence[Any]],
    cells: Mapping[str, Cell] | None = None,
    excluded: Sequence[Excluded] = (),
    warnings: Sequence[str] = (),
) -> Table:
    """Build a Table from plain sequences; missing columns become empty text, -1 or nan."""
    number = len(columns["value"])
    data: dict[str, np.ndarray | Codes] = {}
    for name in COLUMNS:
        given = columns.get(name)
        if name in TEXT:
            data[name] = Codes.of(given) if given is not None else Codes(np.zeros(number, dtype=np.int32), ("",))
        elif name in WHOLE:
            data[name] = np.asarray(given if given is not None else [-1] * number, dtype=np.int64)
        else:
            data[name] = np.asarray(given if given is not None else [np.nan] * number, dtype=np.float64)
    return Table(data, dict(cells or {}), tuple(excluded), tuple(warnings))
