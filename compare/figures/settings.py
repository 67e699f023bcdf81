"""What was swept: the one option in which the settings of a table differ, and the option that groups them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
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
    "init_scale": "Initial scale $s$",
    "s1": "Strength $s_1$",
    "s2": "Strength $s_2$",
    "coupling": "Coupling $\\delta$",
}
# The same beside a value, in a legend or above a panel: "$K=10$", "weight decay 0.005".
_BESIDE = {
    "lambda_w": r"\lambda_W",
    "lambda_h": r"\lambda_H",
    "lambda_b": r"\lambda_b",
    "classes": "K",
    "dim": "d",
    "per_class": "n",
    "imbalance": "R",
    "temperature": r"\tau",
    "depth": "L",
    "init_scale": "s",
    **{symbol: symbol for symbol in "KdnL"},
}
_PLAIN = ("dataset", "model", "loss", "optimizer", "method", "features", "activation")  # their values speak for themselves
_EXPONENT = re.compile(r"^([\d.]+)e([+-]\d+)$")
_OPTION = re.compile(r"((?:[A-Za-z]\w*=)+)([^,;=]+)")


LONGEST = 56  # characters of the options in a label
WHOLE = 120  # characters, before they are abbreviated
MEASURING = ("layers", "epochs", "steps", "measure_every", "measures")  # name a setting only where nothing else does
MOST_TICKS = 6  # swept values with a label each


@dataclass(frozen=True)
class Swept:
    """`name` is the option along the axis, `values` its value by cell, `groups` the other differing options ("" if none).

    Cells of curves that are not drawn are in neither; `left` says in words which those are.
    """

    name: str
    values: dict[str, float]
    groups: dict[str, str]
    left: str = ""

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


def spoken(label: str) -> str:
    """Return the label of a group of settings (`lambda_w=lambda_h=0.001, loss=ce`) as a legend says it, with symbols."""
    return _OPTION.sub(_say, label)


def _say(option: re.Match[str]) -> str:
    keys, value = option[1].split("=")[:-1], option[2]
    if keys[0] in _PLAIN:
        return value
    if keys == ["train_per_class"]:
        return "all samples" if value == "None" else f"{value} per class"
    if all(key in _BESIDE for key in keys):
        return f"${'='.join(_BESIDE[key] for key in keys)}=${_EXPONENT.sub(_power, value)}"
    return " = ".join(key.replace("_", " ") for key in keys) + f" {value}"


def _power(number: re.Match[str]) -> str:
    mantissa = "" if number[1] == "1" else rf"{number[1]}\cdot"
    return rf"${mantissa}10^{{{int(number[2])}}}$"


def setting_of(cell: Any) -> dict[str, Any]:
    """Return the options of one cell: its run's setting, with the values of the grid in the place of the grids.

    Of a run that somebody recorded in a loop of his own: what he said of it in `config`, beside what was found.
    """
    inner = next((cell.config[key] for key in ("setting", "options", "spec") if isinstance(cell.config.get(key), Mapping)), {})
    if inner:
        return {**inner, **{key: value for key, value in cell.config.items() if key in inner}}
    told = cell.config.get("config")
    if not isinstance(told, Mapping):
        return dict(cell.config)
    return {key: value for key, value in cell.config.items() if key != "config"} | dict(told)


def swept(table: Mapping[str, Any], along: str = "", *, fewer: bool = True) -> Swept:
    """Return what the cells of a loaded table were swept over: the numeric option with the most values, or the option `along`.

    With `fewer` a sweep of more curves than have a colour of their own keeps those at a few values of the other numbers.

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
    every, number = settings, len(_parted(settings, others))
    if number > GROUPS and fewer:
        settings = _thinned(settings, [key for key in others if key in numeric], others)
    shown = len(_parted(settings, others))
    if shown > GROUPS:
        raise RequestError(f"the settings differ in {', '.join(differ)[:80]}: over {GROUPS} curves; name fewer runs")
    groups = _groups(settings, [key for key in others if len(_distinct(settings, key)) > 1])
    left = f"{shown} of {number} curves are drawn: {_kept(every, settings, others)}." if shown < number else ""
    return Swept(name, {cell: float(setting[name]) for cell, setting in settings.items()}, groups, left)


def _thinned(settings: Mapping[str, Mapping[str, Any]], numbers: list[str], others: list[str]) -> dict[str, Mapping[str, Any]]:
    """Keep the settings at three, two or one value of the options `numbers`, those of most values first, till they fit."""
    kept = dict(settings)
    for most in (3, 2, 1):
        for key in sorted(numbers, key=lambda key: -len(_distinct(kept, key))):
            values = sorted(_distinct(kept, key))
            if len(_parted(kept, others)) > GROUPS and len(values) > most:
                chosen = {values[round(i * (len(values) - 1) / max(most - 1, 1))] for i in range(most)}
                kept = {cell: setting for cell, setting in kept.items() if setting[key] in chosen}
    return kept


def _kept(every: Mapping[str, Mapping[str, Any]], some: Mapping[str, Mapping[str, Any]], others: list[str]) -> str:
    """Say at which values of which options the drawn curves are."""
    thinned = [key for key in others if len(_distinct(some, key)) < len(_distinct(every, key))]
    parts = []
    for key in thinned:
        values = ", ".join(f"{value:.4g}" for value in sorted(_distinct(some, key)))
        parts.append(f"{key} = {values} (of {len(_distinct(every, key))} values)")
    return "; ".join(parts)


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
    """Return what to call each cell in a legend: the options that tell them apart where few do, else their folders' names."""
    known = getattr(table, "cells", None) or {}
    settings = {name: setting_of(known[name]) for name in cells if name in known}
    differ = [key for key in _keys(settings) if len(_distinct(settings, key)) > 1]
    if len(settings) < len(cells) or not differ:
        return {name: escape(name or "run") for name in cells}
    told = telling(settings, differ)
    # What is not set is left out where something is: "weight decay 0.002" beside "10 per class, weight decay 0.002".
    given = {name: [key for key in told if setting.get(key) is not None] or told for name, setting in settings.items()}
    described = {name: _describe(setting, given[name], WHOLE) for name, setting in settings.items()}
    apart = len(set(described.values())) == len(cells) and all(len(spoken(text)) <= LONGEST for text in described.values())
    return described if apart else {name: escape(name) for name in cells}


def telling(settings: Mapping[str, Mapping[str, Any]], differ: Sequence[str]) -> list[str]:
    """Return few of the options that tell the settings apart, each time the one that parts most; all of two or fewer."""
    if len(differ) <= 2:
        return list(differ)
    chosen, number = [], len(_parted(settings, differ))
    plain = [key for key in differ if key not in MEASURING]
    differ = plain if len(_parted(settings, plain)) == number else differ
    while len(_parted(settings, chosen)) < number:
        chosen.append(max((key for key in differ if key not in chosen), key=lambda key: len(_parted(settings, [*chosen, key]))))
    return [key for key in differ if key in chosen]


def _parted(settings: Mapping[str, Mapping[str, Any]], keys: Sequence[str]) -> set[tuple[str, ...]]:
    return {tuple(repr(setting.get(key)) for key in keys) for setting in settings.values()}


def _keys(settings: Mapping[str, Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(key for setting in settings.values() for key in setting))


def _distinct(settings: Mapping[str, Mapping[str, Any]], key: str) -> list[Any]:
    return list({repr(setting.get(key)): setting.get(key) for setting in settings.values()}.values())


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _describe(setting: Mapping[str, Any], keys: list[str], longest: int = LONGEST) -> str:
    parts = [
        f"{key}={setting.get(key):.4g}" if _is_number(setting.get(key)) else f"{key}={safe_text(setting.get(key))}"
        for key in keys
    ]
    return escape(", ".join(parts), longest) if parts else ""


def _few(values: np.ndarray, places: np.ndarray) -> bool:
    """Whether each swept value can have its own tick: few, short, and not close to one another."""
    if len(values) < 2 or len(values) > MOST_TICKS or max(len(f"{v:.4g}") for v in values) > 4:
        return False
    return bool(np.diff(places).min() >= 0.18 * np.ptp(places))


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
        if _few(values, np.log(values)):
            ticks, minor = values.tolist(), []
        elif high / low <= 30:  # one or two powers of ten alone say too little
            powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
            ticks = [m * 10.0**e for e in powers for m in (1, 2, 5) if low / margin <= m * 10.0**e <= high * margin]
        fix_ticks(ax.xaxis, ticks, tick_labels(ticks), minor)
        return
    from matplotlib.ticker import MaxNLocator

    margin = 0.05 * (high - low) or 1.0
    ax.set_xlim(low - margin, high + margin)
    if _few(values, values):
        fix_ticks(ax.xaxis, values.tolist(), [f"{v:.4g}" for v in values], [])
        return
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=bool((values == np.round(values)).all())))
