"""What was swept: the one option in which the settings of a table differ, and the option that groups them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from compare.figures.axes import decades, fix_ticks, tick_labels
from compare.figures.series import Measured
from compare.style import GROUPS, escape
from ufm.console import safe_text
from ufm.errors import RequestError
from ufm.tables import suggest

# How an option is written in a label, where a symbol says it better than its name.
SYMBOLS = {
    "lambda_w": r"$\lambda_W$",
    "lambda_h": r"$\lambda_H$",
    "lambda_b": r"$\lambda_b$",
    "classes": "Classes $K$",
    "dim": "Feature dimension $d$",
    "per_class": "Samples per class $n$",
    "train_per_class": "Train samples per class $n$",
    "imbalance": "Imbalance ratio $R$",
    "weight_decay": "Weight decay",
    "temperature": r"Temperature $\tau$",
    "depth": "Depth $L$",
    "lr": "Step size",
}


@dataclass(frozen=True)
class Swept:
    """`name` is the option along the axis, `values` its value by cell, `groups` the other differing options ("" if none)."""

    name: str
    values: dict[str, float]
    groups: dict[str, str]

    @property
    def label(self) -> str:
        """The axis label."""
        return SYMBOLS.get(self.name, escape(self.name.replace("_", " ")))

    def rows(self, rows: Measured) -> Measured:
        """Add the columns `swept` (number) and `group` (text) to measured rows."""
        swept = np.array([self.values.get(cell, np.nan) for cell in rows["cell"]], dtype=np.float64)
        group = np.full(len(swept), "", dtype=object)
        group[:] = [self.groups.get(cell, "") for cell in rows["cell"]]
        return Measured({**rows.columns, "swept": swept, "group": group})


def setting_of(cell: Any) -> dict[str, Any]:
    """Return the options of one cell: its run's setting, with the values of the grid in the place of the grids."""
    inner = next((cell.config[key] for key in ("setting", "options", "spec") if isinstance(cell.config.get(key), Mapping)), {})
    return {**inner, **{key: value for key, value in cell.config.items() if key in inner}} if inner else dict(cell.config)


def swept(table: Mapping[str, Any], along: str = "") -> Swept:
    """Return what the cells of a loaded table were swept over: the numeric option with the most values, or the option `along`.

    Raises:
        RequestError: the table does not know its settings, they do not differ, or differ in too many ways.
    """
    cells = getattr(table, "cells", None) or {}
    present = dict.fromkeys(Measured.of(table).distinct("cell"))
    settings = {name: setting_of(cells[name]) for name in present if name in cells}
    if len(settings) < 2:
        raise RequestError(f"a sweep needs two or more settings and the runs hold {len(settings)}; name the folder of a sweep")
    differ = {key: values for key in _keys(settings) if len(values := _distinct(settings, key)) > 1 and key != "seed"}
    numeric = [key for key, values in differ.items() if all(_is_number(v) for v in values)]
    if along and along not in numeric:
        found = suggest(along, numeric) if numeric else "none does"
        raise RequestError(f"the settings do not differ in {along}; options that differ: {found}")
    if not numeric:
        raise RequestError("the settings differ in no numeric option; name runs of one sweep")
    name = along or max(numeric, key=lambda key: len(differ[key]))
    others = [key for key in differ if key != name]
    groups = _groups(settings, others)
    if len(set(groups.values())) > GROUPS:
        raise RequestError(f"the settings differ in {', '.join(differ)[:80]}: over {GROUPS} curves; name fewer runs")
    return Swept(name, {cell: float(setting[name]) for cell, setting in settings.items()}, groups)


def _groups(settings: Mapping[str, Mapping[str, Any]], others: list[str]) -> dict[str, str]:
    """Return cell -> the label of its group; two groups whose labels are cut to the same text are told apart by a number."""
    full = {cell: tuple(repr(setting.get(key)) for key in others) for cell, setting in settings.items()}
    labels: dict[tuple[str, ...], str] = {}
    columns = dict(zip(others, zip(*full.values(), strict=True), strict=True)) if others else {}
    twins = {key: [k for k in others if columns[k] == columns[key]] for key in others}  # options that walk together
    named = {"=".join(twin): twin[0] for twin in twins.values()}
    for cell, key in full.items():
        if key not in labels:
            label = _describe({text: settings[cell].get(first) for text, first in named.items()}, list(named))
            same = sum(known.split(" #")[0] == label for known in labels.values())
            labels[key] = f"{label} #{same + 1}" if same else label
    return {cell: labels[key] for cell, key in full.items()}


def names(table: Mapping[str, Any], cells: list[str]) -> dict[str, str]:
    """Return what to call each cell in a legend: the one or two options in which they differ, else their folders' names."""
    known = getattr(table, "cells", None) or {}
    settings = {name: setting_of(known[name]) for name in cells if name in known}
    differ = [key for key in _keys(settings) if len(_distinct(settings, key)) > 1]
    if len(settings) < len(cells) or not 0 < len(differ) <= 2:
        return {name: escape(name or "run") for name in cells}
    described = {name: _describe(setting, differ) for name, setting in settings.items()}
    return described if len(set(described.values())) == len(cells) else {name: escape(name) for name in cells}


def _keys(settings: Mapping[str, Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(key for setting in settings.values() for key in setting))


def _distinct(settings: Mapping[str, Mapping[str, Any]], key: str) -> list[Any]:
    return list({repr(setting.get(key)): setting.get(key) for setting in settings.values()}.values())


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _describe(setting: Mapping[str, Any], keys: list[str]) -> str:
    parts = [
        f"{key}={setting.get(key):.4g}" if _is_number(setting.get(key)) else f"{key}={safe_text(setting.get(key))}"
        for key in keys
    ]
    return escape(", ".join(parts)) if parts else ""


def swept_axis(ax: Any, label: str, values: np.ndarray) -> None:
    """Set the horizontal axis: logarithmic where the values are positive and span more than a decade."""
    values = np.unique(values[np.isfinite(values)])
    low, high = float(values.min()), float(values.max())
    ax.set_xlabel(label)
    if low > 0 and high / low >= 5:
        ax.set_xscale("log")
        margin = (high / low) ** 0.04
        ax.set_xlim(low / margin, high * margin)
        ticks, minor = decades(low / margin, high * margin)
        fix_ticks(ax.xaxis, ticks, tick_labels(ticks), minor)
        return
    from matplotlib.ticker import MaxNLocator

    margin = 0.05 * (high - low) or 1.0
    ax.set_xlim(low - margin, high + margin)
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=bool((values == np.round(values)).all())))
