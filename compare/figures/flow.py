"""Gradient flow over time: what a path shows beside its closed form, how tight collapse gets, where the margin goes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from compare.figures import shallow
from compare.figures.axes import Legend, LogAxis, decades, draw_curve, finish, fix_ticks, panels, tick_labels, title
from compare.figures.cells import differing, sweep_rows
from compare.figures.drawing import Drawing
from compare.figures.series import COLUMNS, Curve, log_interval, seed_counts
from compare.style import GROUPS, LOOKS, Look, Style, escape, group_look
from ufm.errors import RequestError

FLOOR = 1e-20  # squared rounding of one number; what is smaller is zero
MARGIN_FLOOR = 1e-12
MOST_MODES = 6
# What does not change the path, or is shown by the panels themselves.
UNSHOWN = ("t_end", "points", "rtol", "trajectory")
STARTS = {"random": "Random", "subspace": "Subspace", "aligned": "Aligned", "central": "Central path"}
SHORT = {"loss": "", "classes": "K=", "dim": "d=", "per_class": "n=", "init_scale": "scale ", "renormalised": "renormalised "}
SIMULATED = Look("#8fc3e8", "-", "o", 2.4)  # light and broad: the closed form's dashes are seen on it
QUANTITY = {
    "mixon2020": r"$\sigma_k(W)^2$",
    "modes": "Product mode $a_k$",
    "ji2021": "Logit gap $a$",
    "han2021": "SNR singular value $w_k$",
    "han2021-renormalised": "SNR singular value $w_k$",
}


def draw(table: Mapping[str, Any], style: Style) -> Drawing:
    """Draw the paths of `ufm simulate flow --trajectory`; those of `ufm simulate shallow` by `compare.figures.shallow`.

    (a) the quantity that a closed form is about, with the closed form; (b) Tr S_W / Tr S_B (on the central path NC1);
    (c) one minus the normalised margin over its limit 1/((K-1) sqrt(n)), for balanced classes.

    Raises:
        RequestError: no flow in the runs, or none that keeps its path.
    """
    cells = (getattr(table, "cells", None) or {}).items()
    if {cell.system for name, cell in cells if "#" in name} & {"flow", "shallow"} == {"shallow"}:
        return shallow.draw(sweep_rows(table, "flow", "shallow", "`ufm simulate shallow --trajectory`"), style)
    rows = [
        r for r in sweep_rows(table, "flow", "flow", "`ufm simulate flow --trajectory`") if isinstance(r.get("path"), Mapping)
    ]
    if not rows:
        raise RequestError("the runs keep no path; run `ufm simulate flow` with --trajectory")
    lawful = next((row for row in sorted(rows, key=lambda r: r["seed"]) if row.get("law")), None)
    groups = _groups(rows)
    parts = {
        "law": ("Modes and closed form", QUANTITY.get((lawful or {}).get("law", ""), "Mode"), _modes(lawful)),
        "nc1": ("Collapse", r"$\mathrm{Tr}\,S_W/\mathrm{Tr}\,S_B$", _means(groups, _collapse, FLOOR)),
        "margin": ("Margin", r"$1-\gamma/\gamma_{\max}$", _means(groups, _margin, MARGIN_FLOOR)),
    }
    if any("nc1_ratio" not in row["path"] for row in rows):
        parts["nc1"] = ("Collapse", "NC1", parts["nc1"][2])
    shown = {name: part for name, part in parts.items() if any(curve for _, curve in part[2])}
    # A panel of zeros alone (collapse on an aligned path) shows nothing that a sentence does not say.
    zero = [name for name, part in shown.items() if not any((curve.value > 0).any() for _, curve in part[2])]
    zero = zero if len(zero) < len(shown) else zero[1:]
    shown = {name: part for name, part in shown.items() if name not in zero}
    with style.applied():
        figure = _draw(style, shown)
    out = [row for name, (_, _, curves) in shown.items() for _, one in curves for row in one.rows(name)]
    said = tuple(f"{parts[name][0]}: zero at every time of every path, no panel." for name in zero)
    return Drawing(figure, COLUMNS, out, _notes(rows, lawful) + said)


def _groups(rows: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Return what tells settings apart -> their rows, one per seed."""
    options = [name for name in differing(list(rows), UNSHOWN) if name not in ("init", "method", "lr")]
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        setting = row["parameters"]
        words = [STARTS[setting["init"]]]
        if setting["method"] != "flow":
            words.append(f"{setting['method']} {setting['lr']:g}")
        words += [_option(name, setting.get(name)) for name in options if name in SHORT or len(options) == 1]
        groups.setdefault(", ".join(words), []).append(row)
    if any(len({row["seed"] for row in members}) < len(members) for members in groups.values()):
        raise RequestError(f"the flows differ in {', '.join(options)[:80]}; name runs that differ in fewer options")
    if len(groups) > GROUPS:
        raise RequestError(f"the flows differ in {', '.join(options)[:80]}: over {GROUPS} curves; name fewer runs")
    return {escape(name, 40): members for name, members in groups.items()}


def _option(name: str, value: Any) -> str:
    return f"{SHORT.get(name, name + ' ')}{value:g}" if isinstance(value, (int, float)) else str(value)


def _modes(row: dict[str, Any] | None) -> list[tuple[str, Curve]]:
    if row is None:
        return []
    path, found = row["path"], []
    measured, predicted = (np.array(path[name], dtype=np.float64) for name in ("modes", "predicted"))
    for k in range(min(measured.shape[1], MOST_MODES)):
        found.append((f"Simulated, seed {row['seed']}", _curve(f"mode {k + 1}", path["t"], measured[None, :, k], FLOOR)))
    for k in range(min(measured.shape[1], MOST_MODES)):
        found.append(("Closed form", _curve(f"closed form {k + 1}", path["t"], predicted[None, :, k], FLOOR)))
    return found


def _means(groups: Mapping[str, list[dict[str, Any]]], read: Any, floor: float) -> list[tuple[str, Curve]]:
    found = []
    for label, rows in groups.items():
        lines = [(row["path"]["t"], read(row)) for row in rows]
        lines = [(t, y) for t, y in lines if y is not None and len(t) == len(lines[0][0])]
        if lines:
            found.append(
                (label, _curve(f"{read.__name__.strip('_')} {label}", lines[0][0], np.stack([y for _, y in lines]), floor))
            )
    return found


def _collapse(row: dict[str, Any]) -> np.ndarray | None:
    path = row["path"]
    values = path.get("nc1_ratio", path.get("nc1_pinv"))
    return None if values is None else np.array(values, dtype=np.float64)


def _margin(row: dict[str, Any]) -> np.ndarray | None:
    values, options = row["path"].get("margin"), row["parameters"]
    if values is None or options.get("counts") is not None:
        return None
    return 1 - np.array(values, dtype=np.float64) * (options["classes"] - 1) * math.sqrt(options["per_class"])


def _curve(key: str, times: Sequence[float], values: np.ndarray, floor: float) -> Curve:
    """Return the geometric mean over seeds (S, T) after time 0; where a seed is under the floor the point is a zero."""
    later = np.array(times, dtype=np.float64) > 0  # time 0 has no place on a logarithmic axis
    values = values[:, later]
    zero = (values < floor).any(0)
    summary = np.array([log_interval(np.where(z, 0.0, v)) for z, v in zip(zero, values.T, strict=True)]).reshape(-1, 3)
    seeds = np.full(len(zero), len(values))
    return Curve(key, np.array(times)[later], summary[:, 0], summary[:, 1], summary[:, 2], seeds, zero)


def _draw(style: Style, shown: Mapping[str, tuple[str, str, list[tuple[str, Curve]]]]) -> Any:
    many = len(shown)
    rows, columns, height = (1, many, {1: 0.5, 2: 0.4}.get(many, 0.34)) if style.wide else (many, 1, 0.55)
    figure, grid = panels(style, rows, columns, height * style.width)
    legend = Legend()
    for letter, ax, (name, (text, label, curves)) in zip("abc", grid.ravel(), shown.items(), strict=False):
        axis = LogAxis.over([one for _, one in curves])
        axis.apply(ax)
        for index, (what, one) in enumerate(curves):
            look = LOOKS["theory"] if what == "Closed form" else SIMULATED if name == "law" else group_look(index)
            draw_curve(ax, one, look, axis, legend, what, band=name != "law")
        ax.set_ylabel(label)
        _time_axis(ax, [one for _, one in curves])
        title(ax, name, f"({letter}) {text}")
    every = [one for name, (_, _, curves) in shown.items() if name != "law" for _, one in curves]
    if any(np.isfinite(one.low).any() for one in every):
        legend.band(f"95 % interval, {seed_counts(every)}")
    finish(figure, style, legend)
    return figure


def _time_axis(ax: Any, curves: Sequence[Curve]) -> None:
    times = np.concatenate([one.x for one in curves])
    low, high = float(times.min()), float(times.max())
    ax.set_xscale("log")
    ax.set_xlim(low / 1.1, high * 1.1)
    ticks, minor = decades(low / 1.1, high * 1.1)
    fix_ticks(ax.xaxis, ticks, tick_labels(ticks), minor)
    ax.set_xlabel("Time $t$")


def _notes(rows: Sequence[dict[str, Any]], lawful: dict[str, Any] | None) -> tuple[str, ...]:
    notes = ["Gradient flow in raw coordinates; time 0 is left out. Curves of panels b and c are geometric means over seeds."]
    if lawful is not None:
        largest = max(row["law_error"] for row in rows if row.get("law") and row.get("law_error") is not None)
        notes.append(f"Largest distance of a path to its closed form ({lawful['law']}), all seeds and times: {largest:.2g}.")
    if any("no penalty" in note for row in rows for note in row.get("notes", ())):
        notes.append(
            "Without penalty collapse from a random start stays as loose as the start: Tr S_W / Tr S_B ~ c init_scale^2."
        )
    return tuple(notes)
