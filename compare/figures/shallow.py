"""Training of two-layer networks over time: modes beside the law of their kernel, the loss by width, how far from the law."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from compare.figures.axes import PLAIN, Legend, LogAxis, decades, draw_curve, finish, fix_ticks, panels, tick_labels, title
from compare.figures.cells import differing
from compare.figures.drawing import Drawing
from compare.figures.series import COLUMNS, Curve, log_interval, seed_counts
from compare.style import GROUPS, LOOKS, Look, Style, escape, group_look
from ufm.errors import RequestError

POINTS = 60  # of a curve over time; seeds have steps of their own and are read between them
FLOOR = 1e-16  # of the loss: squared rounding of residuals
MODES = Look("#8fc3e8", "-", "o", 2.4)  # light and broad: the law's dashes are seen on it
FALL = Look("#000000", (0, (1.2, 1.2)), "", 1.0)
FIRST = Look("#444444", "-", "P")  # of the first curve over the width; the groups' looks are the widths'
FALLS = r"Slope $-1/2$"
DISTANCE = r"$\max\,|r-\mathrm{law}|/|r_0|$"
UNSHOWN = ("width", "points", "trajectory", "t_end")
SHORT = {"samples": "n=", "dim": "d=", "layers_trained": "", "data": "", "method": "", "targets": "", "output_rate": "rate "}
LAW = {"gd": r"$(I-hH)^k$", "flow": r"$e^{-Ht}$"}


def draw(rows: Sequence[dict[str, Any]], style: Style) -> Drawing:
    """Draw `ufm simulate shallow --trajectory`.

    (a) of the widest network's first seed, modes of the residual over their start beside the law; (b) the loss by width, and
    the law's; (c) the largest distance to the law so far, by width; (d) that at the end over the width, with the slope -1/2.

    Raises:
        RequestError: no row keeps its path, or the runs differ in too much.
    """
    rows = [row for row in rows if isinstance(row.get("path"), Mapping)]
    if not rows:
        raise RequestError("the runs keep no path; run `ufm simulate shallow` with --trajectory")
    groups = _groups(rows)
    widest = max(rows, key=lambda row: (row["parameters"]["width"], -row["seed"]))
    falls = _falls(rows)
    parts = {
        "modes": (f"Modes at $m={widest['parameters']['width']}$", "Mode over its start", _modes(widest)),
        "loss": ("Loss", r"$|f-y|^2/2n$", _losses(groups)),
        "far": ("Distance to the law up to $t$", DISTANCE, _distances(groups)),
        "gap": ("Distance to the law at any time", DISTANCE, falls),
    }
    shown = {name: part for name, part in parts.items() if part[2]}
    with style.applied():
        figure = _draw(style, shown)
    out = [row for name, (_, _, curves) in shown.items() for _, _, one in curves for row in one.rows(name)]
    return Drawing(figure, COLUMNS, out, _notes(rows, widest))


def _groups(rows: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Return what tells settings apart, the width first -> their rows, one per seed."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in sorted(rows, key=lambda r: (r["parameters"]["width"], r["seed"])):
        other = _other(rows, row)
        name = f"m={row['parameters']['width']}" + (f", {other}" if other else "")
        groups.setdefault(name, []).append(row)
    options = ", ".join(differing(list(rows), UNSHOWN[1:]))[:80]
    if any(len({row["seed"] for row in members}) < len(members) for members in groups.values()):
        raise RequestError(f"the runs differ in {options or 't_end'}; name runs that differ in fewer options")
    if len(groups) > GROUPS:
        raise RequestError(f"the runs differ in {options}: over {GROUPS} curves; name fewer runs")
    return {escape(name, 40): members for name, members in groups.items()}


def _other(rows: Sequence[dict[str, Any]], row: Mapping[str, Any]) -> str:
    """Return in words what tells a row's setting from the others', its width apart."""
    found = []
    for name in differing(list(rows), UNSHOWN):
        value = row["parameters"].get(name)
        if isinstance(value, bool):
            found.append(name if value else f"not {name}")
        else:
            found.append(f"{SHORT.get(name, name + ' ')}{value:g}" if isinstance(value, (int, float)) else str(value))
    return ", ".join(found)


# --- curves: what it is called, how it looks, its numbers ---------------------------------------------------------------

Drawn = list[tuple[str, Look, Curve]]


def _modes(row: Mapping[str, Any]) -> Drawn:
    path, found = row["path"], []
    t = np.array(path["t"], float)
    for name, what, look in (("modes", f"Network, seed {row['seed']}", MODES), ("predicted", _law(row), LOOKS["theory"])):
        values = np.array([[np.nan if v is None else v for v in line] for line in path[name]], float)
        key = "mode" if name == "modes" else "law of mode"
        found += [(what, look, _line(f"{key} {k + 1}", t, values[:, k])) for k in range(values.shape[1])]
    return found


def _law(row: Mapping[str, Any]) -> str:
    return f"Law {LAW[row['parameters']['method']]}"


def _line(key: str, t: np.ndarray, values: np.ndarray) -> Curve:
    later, none = t > 0, np.full(int((t > 0).sum()), np.nan)  # time 0 has no place on a logarithmic axis
    return Curve(key, t[later], values[later], none, none, np.ones(len(none)), np.zeros(len(none), bool))


def _losses(groups: Mapping[str, Sequence[dict[str, Any]]]) -> Drawn:
    found: Drawn = []
    for index, (label, rows) in enumerate(groups.items()):
        found.append((_width(label), group_look(index), _mean(f"loss {label}", rows, "loss")))
    # One law for all widths, unless settings differ in more: then that of each.
    laws = {_law_key(rows[0]): (label, rows) for label, rows in groups.items()}
    for label, rows in laws.values():
        found.append((_law(rows[0]), LOOKS["theory"], _mean(f"law {label}", rows, "predicted_loss")))
    return found


def _distances(groups: Mapping[str, Sequence[dict[str, Any]]]) -> Drawn:
    found = []
    for index, (label, rows) in enumerate(groups.items()):
        found.append((_width(label), group_look(index), _mean(f"distance {label}", rows, "gap")))
    return found


def _width(label: str) -> str:
    return label.replace("m=", "$m=$", 1)


def _law_key(row: Mapping[str, Any]) -> str:
    return repr({k: v for k, v in row["parameters"].items() if k not in ("width", "points", "trajectory", "seed")})


def _mean(key: str, rows: Sequence[Mapping[str, Any]], name: str) -> Curve:
    """Return the geometric mean over seeds on one grid of times, each path read between its own times."""
    paths = [
        (np.array(r["path"]["t"], float), np.array([np.nan if v is None else v for v in r["path"][name]], float)) for r in rows
    ]
    first, last = max(t[t > 0].min(initial=np.inf) for t, _ in paths), min(t.max() for t, _ in paths)
    if not first < last:
        return Curve(key, *(np.zeros(0) for _ in range(5)), np.zeros(0, bool))
    grid = np.geomspace(first, last, POINTS)
    values = np.stack([np.interp(grid, t, y) for t, y in paths])
    zero = (values < FLOOR).any(0)
    summary = np.array([log_interval(np.where(z, 0.0, v)) for z, v in zip(zero, values.T, strict=True)])
    return Curve(key, grid, *summary.T, np.full(POINTS, len(rows)), zero)


def _falls(rows: Sequence[dict[str, Any]]) -> Drawn:
    """Return the largest distance over the width, one curve for each setting of two widths or more, and the slope -1/2."""
    settings: dict[str, dict[int, list[float]]] = {}
    for row in sorted(rows, key=lambda r: r["parameters"]["width"]):
        gap = row["measures"].get("gap")
        if isinstance(gap, (int, float)):
            settings.setdefault(_other(rows, row), {}).setdefault(row["parameters"]["width"], []).append(float(gap))
    found: Drawn = []
    for index, (label, by_width) in enumerate(settings.items()):
        if len(by_width) < 2:
            continue
        widths = np.array(list(by_width), float)
        summary = np.array([log_interval(np.array(v)) for v in by_width.values()])
        seeds = np.array([len(v) for v in by_width.values()])
        label = escape(label or "Largest over all steps", 40)
        found.append(
            (
                label,
                FIRST if index == 0 else group_look(index - 1),
                Curve(f"gap {label}", widths, *summary.T, seeds, np.zeros(len(widths), bool)),
            )
        )
        if index == 0:
            slope = summary[-1, 0] * np.sqrt(widths[-1] / widths)
            none = np.full(len(widths), np.nan)
            found.append((FALLS, FALL, Curve("slope -1/2", widths, slope, none, none, seeds, np.zeros(len(widths), bool))))
    return found


# --- the panels ---------------------------------------------------------------------------------------------------------


def _draw(style: Style, shown: Mapping[str, tuple[str, str, Drawn]]) -> Any:
    many = len(shown)
    rows, columns, height = ((many + 1) // 2, 2, 0.36) if style.wide else (many, 1, 0.55)
    figure, grid = panels(style, rows, columns, height * style.width)
    for ax in grid.ravel()[many:]:
        ax.remove()
    legend = Legend()
    for letter, ax, (name, (text, label, curves)) in zip("abcd", grid.ravel(), shown.items(), strict=False):
        lines = [one for _, _, one in curves]
        axis = PLAIN if name == "modes" else LogAxis.over(lines)
        if name == "modes":
            _unit_axis(ax, lines)
        else:
            axis.apply(ax)
        for what, look, one in curves:
            draw_curve(ax, one, look, axis, legend, what, band=name != "modes")
        ax.set_ylabel(label)
        _log_axis(ax, lines, "Width $m$" if name == "gap" else "Time $t$")
        title(ax, name, f"({letter}) {text}")
    means = [one for name, (_, _, curves) in shown.items() if name != "modes" for _, _, one in curves]
    if any(np.isfinite(one.low).any() for one in means):
        legend.band(f"95 % interval, {seed_counts(means)}")
    finish(figure, style, legend)
    return figure


def _unit_axis(ax: Any, curves: Sequence[Curve]) -> None:
    from matplotlib.ticker import MaxNLocator

    values = np.concatenate([one.value[np.isfinite(one.value)] for one in curves])
    low, high = float(np.clip(values.min(initial=0.0), -3, 0)), float(np.clip(values.max(initial=1.0), 1, 3))
    ax.set_ylim(low - 0.06, high + 0.06)
    ax.yaxis.set_major_locator(MaxNLocator(5, min_n_ticks=3))


def _log_axis(ax: Any, curves: Sequence[Curve], label: str) -> None:
    places = np.concatenate([one.x for one in curves])
    low, high = float(places.min()) / 1.15, float(places.max()) * 1.15
    ax.set_xscale("log")
    ax.set_xlim(low, high)
    ticks, minor = decades(low, high)
    fix_ticks(ax.xaxis, ticks, tick_labels(ticks), minor)
    ax.set_xlabel(label)


def _notes(rows: Sequence[Mapping[str, Any]], widest: Mapping[str, Any]) -> tuple[str, ...]:
    eigenvalues = ", ".join(f"{value:.3g}" for value in widest["path"]["eigenvalues"])
    notes = [
        "Time is that of the loss summed over samples; time 0 is left out. Panels b to d: geometric means over seeds.",
        f"Modes: eigenvectors of the arc-cosine Gram H of eigenvalues {eigenvalues}, each over its own start.",
    ]
    gaps = {row["parameters"]["width"]: [] for row in sorted(rows, key=lambda r: r["parameters"]["width"])}
    for row in rows:
        if isinstance(row["measures"].get("gap"), (int, float)):
            gaps[row["parameters"]["width"]].append(row["measures"]["gap"])
    told = "; ".join(f"{max(values):.2g} at m = {width}" for width, values in gaps.items() if values)
    notes.append(f"Largest distance to the law of any seed: {told}.")
    broken = sum(str(row.get("status", "")).startswith("diverged") for row in rows)
    if broken:
        notes.append(f"{broken} of {len(rows)} networks diverged: their curves end where the loss was last finite.")
    return tuple(notes)
