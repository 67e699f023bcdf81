"""Trainings with a head of several maps, beside what the deep unconstrained-features model says of every layer of such a head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from compare.figures.series import Curve, Measured, log_interval, t_half_width
from compare.figures.settings import setting_of
from compare.pair import UNEVEN, class_counts
from compare.style import LOOKS, Look, escape
from ufm.errors import RequestError

RELU = ("dnc", "srg")
NAMES = {"dnc": "DNC", "srg": "SRG", "of": "orthogonal frame", "gof": "orthogonal frame", "etf": "simplex ETF"}
THEORY_LOOKS = (LOOKS["theory"], LOOKS["gaussian"])
# Where these differ the rest follows, and need not be said in a label.
NAMED = ("optimizer", "weight_decay", "head_depth", "head_activation", "width", "loss", "init_scale", "dataset")
DECOUPLED = ("adamw",)


@dataclass(frozen=True)
class Trained:
    """One setting with a deep head: `features` are the names of H_1..H_L, `maps` those of the layers that W_1..W_L make.

    `features` may lack its first ones where not every layer was measured: "" stands for them.
    """

    cell: str
    label: str
    setting: Mapping[str, Any]
    rows: Measured  # of the last epoch of each seed
    untrained: Measured
    features: tuple[str, ...]
    maps: tuple[str, ...]
    counts: tuple[int, ...]

    @property
    def depth(self) -> int:
        """L, the number of maps."""
        return len(self.maps)


def deep_cells(table: Mapping[str, Any]) -> list[str]:
    """Return the cells of a table that have a head of several maps."""
    if "measure" not in set(table) or "head_norm" not in _measures(table):
        return []
    return Measured.of(table).where(measure="head_norm").distinct("cell")


def _measures(table: Mapping[str, Any]) -> Sequence[str]:
    """Return the measures that occur: of a loaded table without decoding its millions of rows."""
    return table.levels("measure") if hasattr(table, "levels") else list(table["measure"])


def trained(table: Mapping[str, Any], figure: str, most: int) -> list[Trained]:
    """Return the deep-headed settings of a table; RequestError for more than `most` or heads of different depths."""
    rows, cells = Measured.of(table), getattr(table, "cells", None) or {}
    names = deep_cells(table)
    if len(names) > most:
        raise RequestError(f"the runs hold {len(names)} heads; the figure {figure} draws at most {most}: name fewer folders")
    settings = {name: setting_of(cells[name]) if name in cells else {} for name in names}
    labels = _labels(settings)
    found = [_trained(rows.where(cell=n), n, labels[n], settings[n], class_counts(cells[n]) if n in cells else ()) for n in names]
    depths = sorted({one.depth for one in found})
    if len(depths) > 1:
        raise RequestError(f"the heads have {', '.join(map(str, depths))} maps; the figure {figure} draws heads of one depth")
    return sorted(found, key=lambda one: (str(one.setting.get("optimizer")) in DECOUPLED, one.setting.get("weight_decay") or 0))


def _labels(settings: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    differ = [key for key in NAMED if len({repr(s.get(key)) for s in settings.values()}) > 1]
    words = {"weight_decay": "decay ", "optimizer": "", "head_activation": "", "dataset": "", "loss": ""}
    spelled = {"sgd": "SGD", "adam": "Adam", "adamw": "AdamW", "lbfgs": "L-BFGS", "mse": "MSE", "ce": "CE"}

    def describe(setting: Mapping[str, Any]) -> str:
        values = [(key, setting.get(key)) for key in differ]
        parts = [
            words.get(key, f"{key} ") + (f"{v:g}" if isinstance(v, float) else spelled.get(str(v), str(v))) for key, v in values
        ]
        text = escape(", ".join(parts))
        return text[:1].upper() + text[1:]

    return {name: describe(setting) or "Train" for name, setting in settings.items()}


def _trained(rows: Measured, cell: str, label: str, setting: Mapping[str, Any], counts: tuple[int, ...]) -> Trained:
    maps = tuple(rows.where(measure="head_norm").distinct("layer"))
    order = [name for name in rows.where(measure="means_rank_effective").distinct("layer")]
    hidden = maps[:-1]
    at = order.index(hidden[0]) if hidden and hidden[0] in order else 0
    first = order[at - 1] if at else ""
    known = tuple(name if name in order else "" for name in hidden)
    last, seeds = [], rows.distinct("seed")
    for seed in seeds:
        own = rows["seed"] == seed
        last.append(own & (rows["epoch"] == np.nanmax(rows["epoch"][own])))
    end = np.any(last, axis=0)
    chosen, untrained = (Measured({k: v[mask] for k, v in rows.columns.items()}) for mask in (end, rows["epoch"] == 0))
    return Trained(cell, label, setting, chosen, untrained, (first, *known), maps, counts)


# --- measured curves over the layers -----------------------------------------------------------------------------------


def along_layers(rows: Measured, layers: Sequence[str], measure: str, key: str, **where: str) -> Curve:
    """Return the mean over seeds of a measure at H_1..H_L (or W_1..W_L) with its 95 % Student-t interval; NC1 of the log mean."""
    some = rows.where(measure=measure, split=where.get("split", "train"), centres=where.get("centres", "self"))
    values = [some.where(layer=name)["value"] if name else np.zeros(0) for name in layers]
    return over_seeds(key, [v[np.isfinite(v)] for v in values], log=measure.startswith("nc1"))


def norm_shares(rows: Measured, maps: Sequence[str], key: str) -> Curve:
    """Return |W_l|^2 over its mean over l, mean over seeds."""
    each = [rows.where(measure="head_norm", layer=name) for name in maps]
    seeds = sorted(set.intersection(*(set(one["seed"].tolist()) for one in each)))
    squares = np.array([[one.where(seed=seed)["value"][-1] ** 2 for one in each] for seed in seeds])
    shares = squares / squares.mean(1, keepdims=True) if len(seeds) else np.zeros((0, len(maps)))
    return over_seeds(key, list(shares.T))


def over_seeds(key: str, columns: Sequence[np.ndarray], *, log: bool = False) -> Curve:
    """Return the curve at 1, 2, ...: the mean of each column (`log`: geometric) and its t interval, nan for an empty column."""
    summary = [log_interval(c) if log else _interval(c) for c in columns]
    mean, low, high = (np.array(column) for column in zip(*summary, strict=True)) if summary else (np.zeros(0),) * 3
    count = np.array([len(c) for c in columns], dtype=int)
    zero = np.array([log and bool((c <= 0).any()) for c in columns], dtype=bool)
    return Curve(key, np.arange(1, len(columns) + 1, dtype=float), mean, low, high, count, zero)


def _interval(values: np.ndarray) -> tuple[float, float, float]:
    if not len(values):
        return np.nan, np.nan, np.nan
    mean, half = float(values.mean()), t_half_width(values)
    return mean, mean - half, mean + half


def of_theory(key: str, values: Sequence[float], start: int = 1) -> Curve:
    """Return a theory curve at start, start + 1, ...: no interval, no seeds."""
    value = np.array(values, dtype=np.float64)
    nothing = np.full(len(value), np.nan)
    x = np.arange(start, start + len(value), dtype=float)
    return Curve(key, x, value, nothing, nothing, np.zeros(len(value), int), np.zeros(len(value), bool))


# --- theory ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Theory:
    """One structure of the deep model: `head` is `ufm.layer_predictions` of it, `label` and `look` how it is drawn."""

    name: str
    label: str
    look: Look
    head: Any

    def ranks(self) -> list[float]:
        """Return the effective rank of the class means of H_1..H_L, by the definition of the measured rows."""
        from ufm.measure.rank import rank_effective

        return [rank_effective(layer.singular_values) for layer in self.head.layers]

    def cosines(self) -> list[float]:
        """Return the mean cosine between two class means."""
        pairs = np.triu_indices(len(self.head.layers[0].cosines), 1)
        return [float(np.nanmean(layer.cosines[pairs])) for layer in self.head.layers]


def problem_of(one: Trained, lambda_w: float, lambda_h: float) -> tuple[Any, str]:
    """Return the `ufm.Problem` of a setting's head at these weight decays, or None and the reason."""
    import ufm

    setting, counts = one.setting, [n for n in one.counts if n > 0]
    if "head_activation" not in setting and setting.get("head") != "deep":
        return None, "the run does not say the loss and the activation of its head"
    if setting.get("bias") is not False:
        return None, "the classifier has a bias"
    if not counts:
        return None, "the run does not say its class counts"
    if max(counts) > UNEVEN * min(counts):
        return None, "the classes are imbalanced"
    loss = {"mse-mean": "mse"}.get(str(setting.get("loss")), str(setting.get("loss")))
    try:
        problem = ufm.Problem(
            classes=len(counts),
            dim=max(int(setting.get("width") or 0), len(counts)),
            counts=round(float(np.mean(counts))),
            loss=loss,
            bias="none",
            lambda_w=lambda_w,
            lambda_h=lambda_h,
            depth=one.depth,
            activation="relu" if setting.get("head_activation") == "relu" else "linear",
        )
    except (RequestError, ValueError) as error:
        return None, str(error)
    return problem, ""


def theories(one: Trained) -> tuple[list[Theory], str]:
    """Return the known structures of a setting's head, or why there is none; their shapes hold wherever they exist."""
    decay = float(one.setting.get("weight_decay") or 0.0) or 1e-3
    problem, reason = problem_of(one, decay, decay)
    if problem is None:
        return [], reason
    heads, reason = structures_of(problem)
    looks = dict(zip(RELU, THEORY_LOOKS, strict=True))
    found = [
        Theory(head.structure, f"Theory: {name_of(head.structure)}", looks.get(head.structure, THEORY_LOOKS[0]), head)
        for head in heads
    ]
    return found, reason


def theory_notes(known: Sequence[Theory], unknown: str) -> list[str]:
    """Say under a figure which structures are drawn, and why none of the others is."""
    notes = []
    if known:
        listed = "; ".join(f"{one.label.removeprefix('Theory: ')} ranks {[x.rank for x in one.head.layers]}" for one in known)
        notes.append(f"Theory: {listed}. Shapes hold at every weight decay that keeps the structure; H_1 is free there.")
    if unknown:
        notes.append(f"No structure is drawn: {unknown}.")
    return notes


def structures_of(problem: Any) -> tuple[list[Any], str]:
    """Return `ufm.layer_predictions` of both ReLU structures, or of the lowest linear one; or none, and the reason."""
    import ufm

    found, reason = [], "no structure is known for this loss and activation"
    for name in RELU if problem.activation == "relu" else (None,):
        try:
            found.append(ufm.layer_predictions(problem, name))
        except RequestError as error:
            reason = str(error)
    return found, "" if found else reason


def name_of(structure: str) -> str:
    """Return a structure's name as a label says it."""
    return NAMES.get(structure, structure)
