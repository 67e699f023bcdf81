"""From the flat table of measured rows to curves: a mean over seeds with its interval at every abscissa."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ufm.console import safe_text
from ufm.errors import RequestError

CONFIDENCE = 0.95
_TEXT = ("paper", "cell", "split", "layer", "centres", "measure", "flag")
_NUMBERS = ("seed", "epoch", "step", "value", "predicted")


@dataclass(frozen=True)
class Curve:
    """What is drawn as one line: at each `x` the mean over `seeds` values with its interval.

    `censored` marks points where a seed is zero or below the noise floor: their mean of logs does not exist.
    `ends` are the last points (x, value) of seeds that have no finite value from there on (a run that diverged).
    """

    key: str
    x: np.ndarray
    value: np.ndarray
    low: np.ndarray
    high: np.ndarray
    seeds: np.ndarray
    censored: np.ndarray
    ends: tuple[tuple[float, float], ...] = ()

    def __bool__(self) -> bool:
        return len(self.x) > 0 and bool(np.isfinite(self.value).any())

    def scaled(self, factor: float, key: str) -> Curve:
        """Return the curve times `factor` under another key; where runs ended is marked on the curve itself."""
        return replace(self, key=key, value=self.value * factor, low=self.low * factor, high=self.high * factor, ends=())

    def rows(self, panel: str) -> list[tuple[Any, ...]]:
        """Return the CSV rows under `COLUMNS`."""
        columns = zip(self.x, self.value, self.low, self.high, self.seeds, self.censored, strict=True)
        points = [(panel, self.key, *map(float, p[:4]), int(p[4]), "zero or below the floor" if p[5] else "") for p in columns]
        return points + [(panel, self.key, float(x), float(y), np.nan, np.nan, 1, "no value from here on") for x, y in self.ends]


COLUMNS = ("panel", "curve", "x", "value", "low", "high", "seeds", "mark")


@dataclass(frozen=True)
class Measured:
    """The table's columns as arrays of one length, text as text and numbers as float64."""

    columns: Mapping[str, np.ndarray]

    @classmethod
    def of(cls, table: Mapping[str, Any]) -> Measured:
        """Read a table; RequestError when it is empty or has no measures and values."""
        names = set(table)
        for name in ("measure", "value"):
            if name not in names:
                raise RequestError(f"the table has no column {name!r}; load it with compare.load(RUN)")
        length = len(table["value"])
        if not length:
            raise RequestError(_why_empty(table))
        columns = {name: _texts(table[name] if name in names else None, length) for name in _TEXT}
        columns |= {name: _numbers(table[name] if name in names else None, length) for name in _NUMBERS}
        for name in ("epoch", "step"):  # -1 stands for "has none" (a cell of a theory sweep)
            columns[name] = np.where(columns[name] < 0, np.nan, columns[name])
        return cls(columns)

    def __getitem__(self, name: str) -> np.ndarray:
        return self.columns[name]

    def where(self, **wanted: str | float) -> Measured:
        """Return the rows whose columns equal the given values."""
        mask = np.ones(len(self["value"]), bool)
        for name, value in wanted.items():
            mask &= self[name] == value
        return Measured({name: column[mask] for name, column in self.columns.items()})

    def distinct(self, name: str) -> list[Any]:
        """Return a column's distinct values in order of appearance; empty text and NaN are left out."""
        column = self[name]
        keep = column[column != ""] if column.dtype == object else column[np.isfinite(column)]
        return list(dict.fromkeys(keep.tolist()))

    def __len__(self) -> int:
        return len(self["value"])


def _why_empty(table: Mapping[str, Any]) -> str:
    """Say why a table has no row, and what helps: a sweep cut short is not cured by training a network."""
    left_out, cells = getattr(table, "excluded", ()), getattr(table, "cells", None) or {}
    if not left_out:
        return "the runs hold no measured value; run `empirical run collapse` or `ufm simulate` first"
    first = clause(safe_text(left_out[0].reason))
    if not any("#" in one.cell for one in left_out):
        return f"the runs hold no measured value: all are left out, the first for: {first}; run them again to the end"
    system = next((cells[one.cell].system for one in left_out if one.cell in cells), "")
    again = f"run `ufm simulate {safe_text(system)[:20]}` again" if system else "run the sweep again"
    limited = all("limit" in one.reason for one in left_out if "#" in one.cell)
    set_by_hand = any(cells[one.cell].config.get("steps") for one in left_out if one.cell in cells)
    remedy = f"{again} with more --steps{', or without --steps' if set_by_hand else ''}" if limited else again
    return f"none of the {len(left_out)} cells of the sweep has converged (the first: {first}); {remedy}"


def _texts(column: Any, length: int) -> np.ndarray:
    out = np.full(length, "", dtype=object)
    if column is not None:
        out[:] = ["" if v is None or (isinstance(v, float) and np.isnan(v)) else str(v) for v in column]
    return out


def _numbers(column: Any, length: int) -> np.ndarray:
    if column is None:
        return np.full(length, np.nan)
    try:
        return np.array([np.nan if v is None or v == "" else v for v in column], dtype=np.float64)
    except (TypeError, ValueError):
        bad = next(v for v in column if not isinstance(v, (int, float, np.number, type(None))))
        raise RequestError(f"the table holds {safe_text(bad)[:40]!r} where a number belongs; is the run folder intact?") from None


def one_setting(table: Mapping[str, Any], figure: str) -> Measured:
    """Return the rows of the table's only setting; RequestError when it holds several."""
    rows = Measured.of(table)
    cells = rows.distinct("cell")
    if len(cells) > 1 and all("#" in str(cell) for cell in cells):
        raise RequestError(
            f"the runs are a theory sweep of {len(cells)} cells; the figure {figure} draws a training: name a run of "
            "`empirical run`, or draw the sweep with `compare plot sweep`"
        )
    if len(cells) > 1:
        names = ", ".join(safe_text(cell)[:40] for cell in cells[:3]) + (", ..." if len(cells) > 3 else "")
        raise RequestError(f"the runs hold {len(cells)} settings ({names}); the figure {figure} draws one: name its folder")
    return rows


def last_layer(rows: Measured) -> str:
    """Return the layer that the classifier sees; "" when no layer-wise measure is there."""
    layers = [layer for layer in rows.distinct("layer") if layer not in ("network", "logits", "input")]
    if "penultimate" in layers:
        return "penultimate"
    if len(layers) > 1:
        raise RequestError(
            f"the rows have the layers {', '.join(layers)[:80]} and no 'penultimate'; measure with --layers last or all"
        )
    return layers[0] if layers else ""


def abscissa(rows: Measured) -> str:
    """Return "epoch", or "step" where epochs do not tell the measurements apart."""
    epochs, steps = rows["epoch"], rows["step"]
    if not np.isfinite(epochs).any():
        return "step"
    return "step" if len(np.unique(steps[np.isfinite(steps)])) > 2 * len(np.unique(epochs[np.isfinite(epochs)])) else "epoch"


def curve(rows: Measured, key: str, *, along: str = "epoch", rate_of: float | None = None) -> Curve:
    """Return the mean over seeds at each value of the column `along`.

    Positive measures: the geometric mean and the Student-t interval of the log mean. With `rate_of` (a share of errors among
    that many samples, NaN if unknown): the t interval joined in quadrature with the sample's own; arithmetic where one of the
    curve's values is 0, else of the logarithm too.
    """
    grid = _grid(rows, along)
    if not len(grid.x):
        empty = np.zeros(0)
        return Curve(key, empty, empty, empty, empty, empty.astype(int), empty.astype(bool))
    positive = bool((grid.values[np.isfinite(grid.values)] > 0).all())
    summary = [log_interval(v) if rate_of is None else rate_interval(v, rate_of, log=positive) for v in grid.finite()]
    value, low, high = (np.array(column) for column in zip(*summary, strict=True))
    seeds = np.isfinite(grid.values).sum(0)
    censored = (grid.values <= 0) | (grid.below & np.isfinite(grid.values))
    if rate_of is not None:
        censored = np.broadcast_to((value == 0)[None], censored.shape)
    return Curve(key, grid.x, value, low, high, seeds, censored.any(0), grid.ends())


@dataclass(frozen=True)
class _Grid:
    x: np.ndarray  # (m,)
    values: np.ndarray  # (seeds, m), NaN where a seed has none
    below: np.ndarray  # (seeds, m): flagged as below the noise floor

    def finite(self) -> list[np.ndarray]:
        return [column[np.isfinite(column)] for column in self.values.T]

    def ends(self) -> tuple[tuple[float, float], ...]:
        found = []
        for line in self.values:
            there = np.flatnonzero(np.isfinite(line))
            if len(there) and there[-1] < len(self.x) - 1:
                found.append((float(self.x[there[-1]]), float(line[there[-1]])))
        return tuple(found)


def _grid(rows: Measured, along: str) -> _Grid:
    keep = np.isfinite(rows[along])
    at, seed, value, flag = rows[along][keep], rows["seed"][keep], rows["value"][keep], rows["flag"][keep]
    seed = np.where(np.isfinite(seed), seed, -1.0)
    if not np.isfinite(value).any():  # a measure that never has a value (rank too low, no test set) is no curve
        at, seed, value, flag = at[:0], seed[:0], value[:0], flag[:0]
    x, column = np.unique(at, return_inverse=True)
    names, line = np.unique(seed, return_inverse=True)
    values, below = np.full((len(names), len(x)), np.nan), np.zeros((len(names), len(x)), bool)
    values[line, column] = np.where(np.isfinite(value), value, np.nan)  # a resumed run may say a row twice: the later stands
    below[line, column] = flag == "below_floor"
    return _Grid(x, values, below)


def log_interval(values: np.ndarray, confidence: float = CONFIDENCE) -> tuple[float, float, float]:
    """Return the geometric mean of positive values and the Student-t interval of their log mean.

    One value has no interval (NaN); with a zero among them the geometric mean is 0 and there is none either.
    """
    if not len(values):
        return np.nan, np.nan, np.nan
    if (values <= 0).any():
        return 0.0, np.nan, np.nan
    logs = np.log(values)
    centre, half = logs.mean(), t_half_width(logs, confidence)
    return float(np.exp(centre)), float(np.exp(centre - half)), float(np.exp(centre + half))


def rate_interval(
    values: np.ndarray, samples: float, confidence: float = CONFIDENCE, *, log: bool = False
) -> tuple[float, float, float]:
    """Return the mean of error rates and its interval: Student t over seeds and Clopper-Pearson over `samples`, in quadrature.

    The seeds share one test set, so its sampling error does not shrink with their number. `samples` NaN: seeds alone.
    `log`: all of it on the scale of the logarithm (positive rates).
    """
    if not len(values):
        return np.nan, np.nan, np.nan
    to, back = (np.log, np.exp) if log else (np.asarray, np.asarray)
    centre, half = float(to(values).mean()), t_half_width(to(values), confidence)
    mean = float(back(centre))
    below = above = 0.0
    if np.isfinite(samples) and samples > 0:
        low, high = _clopper_pearson(mean * samples, samples, confidence)
        below, above = centre - to(low), to(high) - centre
        half = 0.0 if np.isnan(half) else half
    highest = min(centre + float(np.hypot(half, above)), 700.0)  # rates above 1 are cut: their exponentials need not be finite
    low, high = back(centre - np.hypot(half, below)), back(highest)
    return mean, max(0.0, float(low)) if low == low else np.nan, min(1.0, float(high)) if high == high else np.nan


def _clopper_pearson(errors: float, samples: float, confidence: float) -> tuple[float, float]:
    """Return the exact binomial interval of a share; `errors` may be a mean over seeds, so not whole."""
    from scipy.stats import beta

    tail = (1 - confidence) / 2
    low = beta.ppf(tail, errors, samples - errors + 1) if errors > 0 else 0.0
    high = beta.ppf(1 - tail, errors + 1, samples - errors) if errors < samples else 1.0
    return float(low), float(high)


def t_half_width(values: np.ndarray, confidence: float = CONFIDENCE) -> float:
    """Return half the Student-t interval of the mean; NaN for fewer than two values."""
    from scipy.stats import t

    if len(values) < 2:
        return np.nan
    return float(t.ppf((1 + confidence) / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))


def seed_counts(curves: Sequence[Curve]) -> str:
    """Return '5 seeds', '1 seed' or '4 to 5 seeds' for a legend."""
    counts = np.concatenate([c.seeds[c.seeds > 0] for c in curves if c] or [np.zeros(1, int)])
    low, high = int(counts.min()), int(counts.max())
    return f"{low} to {high} seeds" if low < high else f"{high} seed" + ("s" if high != 1 else "")


@dataclass(frozen=True)
class Facts:
    """What the runs of a setting say of their data: sample counts (NaN if unknown), the number of classes (0 if unknown)."""

    train: float = np.nan
    test: float = np.nan
    classes: int = 0

    def samples(self, split: str) -> float:
        """Return the number of samples of a split."""
        return self.train if split == "train" else self.test


def facts(table: Mapping[str, Any], cell: str | None = None) -> Facts:
    """Return the facts that a loaded table carries beside its columns, for one cell or for its only one."""
    cells = getattr(table, "cells", None) or {}
    names = [cell] if cell is not None else list(cells)
    if len(names) != 1 or names[0] not in cells:
        return Facts()
    for result in cells[names[0]].results.values():
        data = result.get("data") if isinstance(result, Mapping) else None
        if isinstance(data, Mapping):
            train, test, classes = (_count(data.get(key)) for key in ("train", "test", "classes"))
            return Facts(train, test, int(classes) if np.isfinite(classes) else 0)
    return Facts()


def _count(value: Any) -> float:
    return float(value) if isinstance(value, int) and value > 0 else np.nan


def clause(text: str, most: int = 80) -> str:
    """Return a text that fits, or its beginning up to the end of a clause (failing that, of a word) with an ellipsis."""
    if len(text) <= most:
        return text
    head = text[: most - 3]
    ends = [head.rfind(mark) for mark in ("; ", ": ", ", ", ". ", " (")]
    at = max(ends)
    if at < most // 4:  # nothing but a word or two would be left
        at = head.rfind(" ")
    return (head[:at] if at > 0 else head).rstrip(" ;:,.(") + " ..."


def excluded_note(table: Mapping[str, Any]) -> tuple[str, ...]:
    """Return a sentence that lists the runs which are not in the table, or nothing."""
    left_out = getattr(table, "excluded", ())
    if not left_out:
        return ()
    names = [
        f"{safe_text(e.cell)[:40]}" + (f" seed {e.seed}" if e.seed >= 0 else "") + f" ({clause(safe_text(e.reason))})"
        for e in left_out
    ]
    more = f", and {len(names) - 8} more" if len(names) > 8 else ""
    return (f"Left out: {', '.join(names[:8])}{more}.",)
