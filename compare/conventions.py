"""NC1 is many different numbers: each convention with its definition, whose it is, and what it is of another one.

A conversion is arithmetic, so that converted and measured values on the same features agree to rounding wherever it holds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from compare import pair, points
from compare.rows import POINT, Cell, Table
from compare.table import GROUP, numbers
from ufm.errors import RequestError

_MEAN = ("mean", "low", "high", "seeds")
COLUMNS = ("cell", "epoch", *GROUP[1:], *_MEAN, "converted", "conversion", "definition", "used by")
ALWAYS, EQUAL, SIMPLEX = "", "equal class sizes", "equal class sizes, class means a simplex ETF"


@dataclass(frozen=True)
class Convention:
    """One measure of within-class variability; `law(base, K)` is its value from that of `base` on the same features."""

    definition: str
    used_by: str
    conversion: str = ""
    base: str = ""
    law: Callable[[np.ndarray, int], np.ndarray] | None = None
    needs: str = ALWAYS


CONVENTIONS = {
    "nc1_pinv": Convention("Tr(S_W S_B^+)/K, S_B about the mean of class means", "Zhu 2021; the default"),
    "nc1_pinv_sum": Convention(
        "Tr(S_W S_B^+)", "Papyan's code, He & Su", "K x nc1_pinv", "nc1_pinv", lambda x, K: K * x
    ),
    "nc1_pinv_sample": Convention(
        "S_B about the sample mean, /K", "imbalanced variants of Zhu", "nc1_pinv", "nc1_pinv", lambda x, K: x, EQUAL
    ),
    "nc1_weighted": Convention(
        "S_B weighted by n_k/N about the sample mean, no /K", "He & Su, imbalanced", "K x nc1_pinv", "nc1_pinv",
        lambda x, K: K * x, EQUAL,
    ),
    "nc1_trace": Convention("Tr S_W / Tr S_B", "quotient form"),
    "nc1_total": Convention(
        "Tr S_W / Tr S_T", "Wu & Mondelli 2025", "t/(1+t), t = nc1_trace", "nc1_trace", lambda x, K: x / (1 + x), EQUAL
    ),
    "cdnv": Convention(
        "mean over pairs of (v_i + v_j)/(2 |mu_i - mu_j|^2)", "Galanti 2022", "(K-1)/(2K) nc1_trace", "nc1_trace",
        lambda x, K: (K - 1) / (2 * K) * x, SIMPLEX,
    ),
    "vci": Convention("1 - Tr(S_T^+ S_B)/rank S_B, S_B weighted by n_k/N about the sample mean", "Xu & Liu 2023"),
    "nc1_pinv_strong": Convention("test scatter about the train mean of the true class, /K", "test, train centres"),
    "nc1_pinv_weak": Convention("test scatter about the nearest train mean, /K", "test, train centres"),
    "cdnv_strong": Convention("CDNV of test about train means", "test, train centres"),
}  # fmt: skip


def conventions(table: Table, *, epochs: str | Sequence[int] = "last") -> list[dict[str, Any]]:
    """Return every within-class-variability measure of the runs: mean over seeds, definition, and its value by conversion.

    `converted` is the law of the convention applied to each seed's own base measure and averaged as the measurement is; None
    where the law does not hold for the run's class sizes, and `conversion` says what it needs.
    """
    present = [name for name in CONVENTIONS if table.rows and name in table.levels("measure")]
    if not present:
        raise RequestError("these runs hold no NC1; measure a network with `empirical run` or `empirical measure`")
    some = table.where(measure=present)
    classes = {name: _classes(cell) for name, cell in table.cells.items()}
    rows = numbers(some.with_columns(predicted=_converted(some, classes)), measures=present, epochs=epochs)
    for row in rows:
        one = CONVENTIONS[row["measure"]]
        K, equal = classes.get(row["cell"], (None, False))
        row["converted"] = row.pop("predicted")
        holds = K is not None and (one.needs == ALWAYS or equal)
        needs = f" ({one.needs})" if one.needs else ""
        row["conversion"] = f"{one.conversion}{needs}" if one.law and holds else f"needs {one.needs}" if one.law else ""
        row["definition"], row["used by"] = one.definition, one.used_by
    return rows


def _classes(cell: Cell) -> tuple[int | None, bool]:
    """Return K and whether the classes are of equal size on train."""
    counts = [n for n in pair.class_counts(cell) if n > 0]
    return (len(counts) or points.classes_of(cell, cell.seeds)), bool(counts) and len(set(counts)) == 1


def _converted(table: Table, classes: dict[str, tuple[int | None, bool]]) -> np.ndarray:
    """Return for each row its value by conversion from the base measure of the same state, nan where there is none."""
    key = table.groups(*POINT)
    values = np.full(table.rows, np.nan)
    cells = table["cell"] if table.rows else np.zeros(0, dtype=object)
    split = table.mask(split="train")  # class sizes of the test split are not recorded
    for name, one in CONVENTIONS.items():
        mine = np.flatnonzero(table.mask(measure=name) & (split | (one.needs == ALWAYS)))
        if one.law is None or not len(mine):
            continue
        base = np.full(int(key.max()) + 1, np.nan)
        of_base = table.mask(measure=one.base)
        base[key[of_base]] = table.data["value"][of_base]
        for cell in dict.fromkeys(cells[mine]):
            K, equal = classes.get(cell, (None, False))
            if K is not None and (equal or one.needs == ALWAYS):
                rows = mine[cells[mine] == cell]
                values[rows] = one.law(base[key[rows]], K)
    return values
