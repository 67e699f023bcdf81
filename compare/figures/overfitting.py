"""When overfitting is benign: the test error over signal and dimension, and over the one variable that theory says it is of."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from compare.figures.axes import PLAIN, Legend, decades, draw_curve, finish, fix_ticks, make_square, panels, tick_labels, title
from compare.figures.cells import differing
from compare.figures.drawing import Drawing
from compare.figures.maps import COLORS
from compare.figures.series import COLUMNS, CONFIDENCE, Curve, seed_counts
from compare.style import LOOKS, Style, escape, group_look
from ufm.errors import RequestError
from ufm.theory import benign as theory

STRENGTHS = ("signal", "snr", "variable")  # three ways to say how strong the signal is
VERTICAL = {"dim": "Dimension $d$", "samples": "Samples $n$"}
LEAST = 3  # values of each of two options from which on a heat map is drawn
CURVES = 4
QUARTER = 0.25  # the clean error whose contour is drawn: half-way between guessing and none
NAMES = {"kappa": r"$\kappa=n\|\mu\|^4/(\sigma^4 d)$", "n SNR^q": r"$n\,\mathrm{SNR}^q$"}
LINES = {"kappa": r"$\kappa=1$ (slope of theory)", "n SNR^q": r"Derived race of one filter: $n\,\mathrm{SNR}^q=2$"}
DASHED = {"color": "#000000", "lw": 1.0, "linestyle": (0, (4, 1.5))}


def draw(rows: Sequence[dict[str, Any]], style: Style) -> Drawing:
    """Draw a sweep of `ufm simulate benign`: (a) the mean test error over the signal's norm and d or n, (b) over its variable.

    (a) needs three or more values of both; it holds the contour of clean error 1/4 and theory's line, of which the papers give
    the power law and not the constant. (b) shows up to four values of d or n; they fall on one curve where theory holds. Black,
    where it was compared with networks: the leading-order law.

    Raises:
        RequestError: the settings differ in something else as well, or in no strength of the signal, or have no variable.
    """
    options = differing(list(rows))
    others = [name for name in options if name not in STRENGTHS]
    if len(others) > 1 or not set(others) <= set(VERTICAL):
        raise RequestError(
            f"the settings differ in {', '.join(others)[:80]}; name runs that differ in signal and one of dim, samples"
        )
    if not any(name in STRENGTHS for name in options):
        raise RequestError("the settings differ in no strength of the signal; sweep --signal, --snr or --variable")
    rows = [row for row in rows if _known(row)]
    kinds = {row["prediction"]["variable_name"] for row in rows}
    if len(kinds) != 1:
        raise RequestError("theory names no variable for these cells (1 < q <= 2, or flipped labels with q > 2), or several")
    other, kind = (others[0] if others else ""), kinds.pop()
    means = _means(rows, other)
    with style.applied():
        mapped = _mappable(means) and "signal" in options
        shape = (1, 1) if not mapped else (1, 2) if style.wide else (2, 1)
        height = 0.5 * style.width if style.wide else 0.95 * style.width
        figure, grid = panels(style, *shape, height)
        legend, out = Legend(), []
        if mapped:
            out += _map(figure, grid[0, 0], means, rows, other, kind, legend)
        out += _curves(grid[-1, -1], rows, other, kind, legend, "b" if mapped else "")
        if mapped and not style.wide:
            make_square(figure, grid[0, 0])
        finish(figure, style, legend)
    return Drawing(figure, COLUMNS, out, _notes(rows, kind))


def _known(row: Mapping[str, Any]) -> bool:
    error = (row.get("measures") or {}).get("test_error")
    named = (row.get("prediction") or {}).get("variable_name")
    return bool(named) and isinstance(error, (int, float)) and row.get("variable") is not None


def _means(rows: Sequence[Mapping[str, Any]], other: str) -> dict[float, dict[float, float]]:
    """Return value of `other` -> norm of the signal -> mean test error over seeds."""
    found: dict[float, dict[float, list[float]]] = {}
    for row in rows:
        at = found.setdefault(float(row["parameters"].get(other, 0) or 0), {})
        at.setdefault(float(f"{row['signal']:.12g}"), []).append(row["measures"]["test_error"])
    return {y: {x: float(np.mean(v)) for x, v in sorted(at.items())} for y, at in sorted(found.items())}


def _mappable(means: Mapping[float, Mapping[float, float]]) -> bool:
    columns = {tuple(at) for at in means.values()}
    return len(means) >= LEAST and len(columns) == 1 and len(columns.pop()) >= LEAST


# --- the map ---------------------------------------------------------------------------------------------------------


def _map(
    figure: Any, ax: Any, means: Mapping[float, Mapping[float, float]], rows: Sequence[Any], other: str, kind: str, legend: Legend
) -> list[tuple[Any, ...]]:
    from matplotlib.colors import LinearSegmentedColormap

    ys, xs = np.array(list(means)), np.array(list(next(iter(means.values()))))
    errors = np.array([list(at.values()) for at in means.values()])
    colours = LinearSegmentedColormap.from_list("ufm", list(COLORS))
    places = np.arange(len(xs)), np.arange(len(ys))
    mesh = ax.pcolormesh(*places, errors, vmin=0, vmax=0.5, cmap=colours, linewidth=0, gid="heat:test error", shading="nearest")
    for axis, values, most in ((ax.xaxis, xs, 6), (ax.yaxis, ys, 7)):
        at = list(range(0, len(values), -(-len(values) // most)))
        fix_ticks(axis, at, [f"{values[i]:.3g}" if values[i] < 1000 else f"{values[i]:.0f}" for i in at], [])
    bar = figure.colorbar(mesh, ax=ax, location="right", fraction=0.06, pad=0.02)
    bar.ax.set_label("colours")
    bar.set_label("Test error")
    bar.outline.set_visible(False)
    ax.set_xlabel(r"Norm of the signal $\|\mu\|$")
    ax.set_ylabel(VERTICAL[other])
    title(ax, "map", "(a) Mean test error")
    out = [("map", f"{other} = {y:g}", float(x), float(e), np.nan, np.nan, _seeds(rows), "")
           for y, line in zip(ys, errors, strict=True) for x, e in zip(xs, line, strict=True)]  # fmt: skip
    measured = np.array([_crossing(xs, line, _level(rows)) for line in errors])
    border = np.array([_border(rows[0], other, y, kind) for y in ys])
    for name, line, look, label in (
        ("contour", measured, {"color": "#ffffff", "lw": 1.6}, ""),
        ("contour", measured, {"color": "#1f7fd6", "lw": 1.0, "linestyle": "-"}, "Measured: clean error 1/4"),
        ("theory", border, {"color": "#ffffff", "lw": 2.0}, ""),
        ("theory", border, DASHED, LINES[kind]),
    ):
        across = np.interp(line, xs, np.arange(len(xs)), left=np.nan, right=np.nan)
        ax.plot(across, np.arange(len(ys)), zorder=3, gid=f"curve:{name}" if label else "decoration", label=label or "_", **look)
        if label:
            legend.rule(label, **look)
            out += [("map", name, float(x), float(y), np.nan, np.nan, _seeds(rows), "") for x, y in zip(line, ys, strict=True)]
    ax.set_xlim(-0.5, len(xs) - 0.5)
    ax.set_ylim(-0.5, len(ys) - 0.5)
    return out


def _level(rows: Sequence[Mapping[str, Any]]) -> float:
    return theory.noisy_error(QUARTER, float(rows[0]["parameters"].get("flip") or 0.0))


def _crossing(xs: np.ndarray, errors: np.ndarray, level: float) -> float:
    from compare.sweeps import last_crossing

    return last_crossing({float(x): [float(e)] for x, e in zip(xs, errors, strict=True)}, level)


def _border(row: Mapping[str, Any], other: str, value: float, kind: str) -> float:
    options = {**row["parameters"], other: value}
    n, sigma, d = options["samples"], options["noise"], options["dim"]
    return theory.kappa_border(n, sigma, d) if kind == "kappa" else theory.power_border(n, sigma, d, options["q"])


def _seeds(rows: Sequence[Mapping[str, Any]]) -> int:
    return len({row["seed"] for row in rows})


# --- over the variable -----------------------------------------------------------------------------------------------


def _curves(
    ax: Any, rows: Sequence[Mapping[str, Any]], other: str, kind: str, legend: Legend, letter: str
) -> list[tuple[Any, ...]]:
    values = sorted({float(row["parameters"].get(other, 0) or 0) for row in rows})
    chosen = values if len(values) <= CURVES else [values[round(i * (len(values) - 1) / (CURVES - 1))] for i in range(CURVES)]
    out: list[tuple[Any, ...]] = []
    drawn = []
    for index, value in enumerate(chosen):
        here = [row for row in rows if float(row["parameters"].get(other, 0) or 0) == value and row["variable"] > 0]
        label = f"${'d' if other == 'dim' else 'n'}={value:g}$" if other else "Networks"
        one = _mean_curve(label.strip("$"), here)
        if one:
            draw_curve(ax, one, group_look(index), PLAIN, legend, label)
            out += one.rows("variable")
            drawn.append(one)
    if not drawn:
        raise RequestError("no cell has a signal, so that there is no variable to draw over; sweep --signal above 0")
    if any(np.isfinite(one.low).any() for one in drawn):
        legend.band(f"95 % interval, {seed_counts(drawn)}")
    x = np.concatenate([one.x for one in drawn])
    law = _law(rows)
    if law:
        draw_curve(ax, law, LOOKS["theory"], PLAIN, legend, "Leading-order law, small start and step")
        out += law.rows("variable")
    if kind != "kappa":
        ax.axvline(theory.BORDER, zorder=1.8, gid="curve:border", label="_", **DASHED)
        legend.rule(LINES[kind], **DASHED)
    flip = float(rows[0]["parameters"].get("flip") or 0.0)
    if flip:
        look = {"color": "#6a6a6a", "lw": 0.8, "linestyle": ":"}
        ax.axhline(flip, zorder=1.5, gid="curve:flip", label="_", **look)
        legend.rule("Share of flipped labels", **look)
    ax.set_xscale("log")
    low, high = max(float(x.min()), 1e-3 * float(np.median(x))), float(x.max())
    ax.set_xlim(low / 1.2, high * 1.2)
    ticks, minor = decades(low, high)
    fix_ticks(ax.xaxis, ticks, tick_labels(ticks, powers=True), minor)
    ax.set_ylim(-0.02, 0.54)
    ax.set_xlabel(NAMES[kind])
    ax.set_ylabel("Test error")
    title(ax, "variable", f"({letter}) Over the variable of theory" if letter else "Over the variable of theory")
    return out


def _mean_curve(key: str, rows: Sequence[Mapping[str, Any]]) -> Curve:
    """Return the mean test error over seeds with Student's interval."""
    from compare.statistics import mean_over_seeds

    found: dict[float, list[float]] = {}
    for row in rows:
        found.setdefault(float(f"{row['variable']:.12g}"), []).append(row["measures"]["test_error"])
    x = np.array(sorted(found))
    means = [mean_over_seeds(found[at]) for at in x]
    bounds = [m.interval(CONFIDENCE) if m.number > 1 else (math.nan, math.nan) for m in means]
    low, high = (np.array([b[i] for b in bounds], dtype=np.float64) for i in (0, 1))
    value, number = np.array([m.estimate for m in means]), np.array([m.number for m in means])
    return Curve(escape(key), x, value, low, high, number, np.zeros(len(x), bool))


def _law(rows: Sequence[Mapping[str, Any]]) -> Curve | None:
    known = {row["variable"]: row["prediction"]["values"]["test_error"] for row in rows if row["prediction"].get("values")}
    x = np.array(sorted(v for v in known if v > 0))
    if len(x) < 2 or len({row["parameters"].get("flip") for row in rows}) > 1:
        return None
    nothing = np.full(len(x), np.nan)
    return Curve("law", x, np.array([known[v] for v in x]), nothing, nothing, np.zeros(len(x), int), np.zeros(len(x), bool))


def _notes(rows: Sequence[Mapping[str, Any]], kind: str) -> tuple[str, ...]:
    constant = (
        "The line kappa = 1 has the slope that theory states; its constant is not in the theorem."
        if kind == "kappa"
        else "The border n SNR^q = 2 is the derived race of one filter; measured: 1.3 to 1.5; the theorem has no constant."
    )
    return (
        f"{len(rows)} networks, {_seeds(rows)} seeds; test errors are those on flipped labels where labels are flipped.",
        constant,
    )
