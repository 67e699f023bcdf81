"""All runs in one plane, test error against test variability, with the three lines that theory draws there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from compare.figures.axes import Legend, LogAxis, decades, finish, fix_ticks, panels, tick_labels, title
from compare.figures.drawing import Drawing
from compare.figures.series import COLUMNS, Measured, excluded_note, facts
from compare.figures.settings import names, spoken
from compare.style import GROUP_COLORS, GROUP_MARKERS, GROUPS, LOOKS, Look, Style, escape, shades
from ufm.errors import RequestError

POINTS = (*COLUMNS, "cell", "seed", "epoch", "layer")
X_LABEL = r"Test NC1 about the train means $=\mathrm{Tr}(\Sigma_W^{\mathrm{test}}\Sigma_B^{+})/K$"
NARROW_X_LABEL = r"Test NC1 about the train means (strong)"
FORBIDDEN = r"Forbidden: $\mathrm{err}_B>2\,\mathrm{NC1}$"
_FORBIDDEN = {"facecolor": "#ededed"}
MANY = 800  # points from which on a cloud of several groups hides itself
_RING = {"marker": "o", "markersize": 6.0, "markerfacecolor": "none", "markeredgecolor": "#000000", "markeredgewidth": 0.8}


@dataclass(frozen=True)
class Cloud:
    """The points of one group: NC1 and error at every (cell, seed, epoch, layer), and which are the last of a training."""

    label: str
    nc1: np.ndarray
    error: np.ndarray
    where: list[tuple[Any, ...]]
    last: np.ndarray
    color: str


def draw(table: Mapping[str, Any], style: Style) -> Drawing:
    """Draw the nearest-class-mean test error against `nc1_pinv_strong`, log-log, one point for each run, epoch and layer.

    Lines (rank K - 1): the floor err_B = 2 NC1, beyond which no network can lie; weak collapse err = NC1 / 2; the error of
    isotropic Gaussian noise on a simplex ETF. Several settings are told apart by colour, else the layers of one are.

    Raises:
        RequestError: no point has both values.
    """
    rows = Measured.of(table)
    clouds = _clouds(rows, names(table, rows.distinct("cell")))
    if not clouds:
        raise RequestError(
            "the rows hold no pair of nc1_pinv_strong and ncc_error on test; draw a run of `empirical run collapse`"
        )
    counted = Counter(facts(table, cell).classes for cell in rows.distinct("cell"))
    classes = sorted(set(counted) - {0}, key=lambda k: (-counted[k], k))  # the curve is for those of most settings
    with style.applied():
        figure, grid = panels(style, 1, 1, 0.56 * style.width if style.wide else 0.8 * style.width)
        lines = _draw(grid[0, 0], style, clouds, classes[:1])
        finish(figure, style, lines.legend)
    out = [row for cloud in clouds for row in _rows(cloud)] + lines.rows
    return Drawing(figure, POINTS, out, _notes(clouds, classes) + excluded_note(table))


def _clouds(rows: Measured, called: Mapping[str, str]) -> list[Cloud]:
    test = rows.where(split="test", centres="train")
    errors = {key: value for key, value, _ in _points(test.where(measure="ncc_error"))}
    found: dict[str, list[tuple[tuple[Any, ...], float, float]]] = {}
    by_layer = len(rows.distinct("cell")) < 2
    for key, nc1, flag in _points(test.where(measure="nc1_pinv_strong")):
        error = errors.get(key, np.nan)
        if np.isfinite(nc1) and nc1 > 0 and np.isfinite(error) and error >= 0 and flag != "below_floor" and key[3] != "logits":
            found.setdefault(key[3] if by_layer else key[0], []).append((key, nc1, error))
    groups = list(found.items())
    if len(groups) > GROUPS:  # more colours are not told apart
        rest = [point for _, points in groups[GROUPS - 1 :] for point in points]
        groups = [*groups[: GROUPS - 1], (f"{len(groups) - GROUPS + 1} others", rest)]
    if by_layer:
        groups.sort(key=lambda group: {"input": -1, "penultimate": 1}.get(group[0], 0))  # else in the order of the forward pass
    colors = shades(len(groups)) if by_layer else GROUP_COLORS
    labels = [spoken(called.get(name) or escape(name or "run")) for name, _ in groups]
    labels = [f"{i + 1}: {label}" if labels.count(label) > 1 else label for i, label in enumerate(labels)]  # cut to the same text
    return [_cloud(label, points, color) for label, (_, points), color in zip(labels, groups, colors, strict=False)]


def _points(rows: Measured) -> list[tuple[tuple[Any, ...], float, str]]:
    keys = zip(rows["cell"], rows["seed"], rows["epoch"], rows["layer"], strict=True)
    return list(zip(keys, rows["value"].tolist(), rows["flag"], strict=True))


def _cloud(label: str, points: Sequence[tuple[tuple[Any, ...], float, float]], color: str) -> Cloud:
    where = [key for key, _, _ in points]
    latest: dict[Any, float] = {}
    for cell, seed, epoch, _ in where:
        latest[cell, seed] = max(latest.get((cell, seed), -np.inf), np.nan_to_num(epoch, nan=0.0))
    last = np.array([k[3] == "penultimate" and np.nan_to_num(k[2], nan=0.0) == latest[k[0], k[1]] for k in where])
    return Cloud(label, np.array([p[1] for p in points]), np.array([p[2] for p in points]), where, last, color)


@dataclass
class _Lines:
    legend: Legend
    rows: list[tuple[Any, ...]]


def _draw(ax: Any, style: Style, clouds: Sequence[Cloud], classes: Sequence[int]) -> _Lines:
    legend, rows = Legend(), []
    nc1 = np.clip(np.concatenate([c.nc1 for c in clouds]), 1e-30, 1e30)
    error = np.concatenate([c.error for c in clouds])
    left, right = nc1.min() / 1.6, nc1.max() * 1.6
    positive = error[error > 0]
    low, high = (positive.min() / 1.5 if len(positive) else 1e-3), 1.25
    zero = low * (low / high) ** 0.10 if (error == 0).any() else None
    axis = LogAxis(low, high, zero)
    axis.apply(ax)
    ax.set_xscale("log")
    ax.set_xlim(left, right)
    ticks, minor = decades(left, right)
    fix_ticks(ax.xaxis, ticks, tick_labels(ticks), minor)
    for index, cloud in enumerate(clouds):
        _scatter(ax, axis, cloud, Look(cloud.color, marker=GROUP_MARKERS[index]), legend, _weight(clouds))
    if any(cloud.last.any() for cloud in clouds):
        legend.mark("last epoch (black edge)" if _weight(clouds).filled else "last epoch", **_RING)
    grid = np.geomspace(left, right, 200)
    for key, label, look, values in _theory(grid, classes):
        inside = (values >= axis.low) & (values <= 1)
        shown = np.where(inside, values, np.nan)
        ax.plot(grid, shown, color=look.color, linestyle=look.dashes, lw=look.width, zorder=4, gid=f"curve:{key}", label=label)
        legend.line(label, look)
        rows += [
            ("hero", key, float(x), float(y), np.nan, np.nan, 0, "", "", -1, -1, "") for x, y in zip(grid, shown, strict=True)
        ]
        if key == "floor":
            ax.fill_between(grid, np.minimum(values, high), high, lw=0, zorder=0.5, gid="band:impossible", **_FORBIDDEN)
            if (values < high).any():
                legend.region(FORBIDDEN, **_FORBIDDEN)
    ax.set_xlabel(X_LABEL if style.wide else NARROW_X_LABEL)
    ax.set_ylabel("Test error, nearest train mean")
    title(ax, "hero", "")
    return _Lines(legend, rows)


def _theory(nc1: np.ndarray, classes: Sequence[int]) -> list[tuple[str, str, Look, np.ndarray]]:
    from ufm.theory.separation import gaussian_etf_error

    lines = [
        ("floor", r"Floor: $\mathrm{err}_B\leq2\,\mathrm{NC1}$", LOOKS["floor"], 2 * nc1),
        ("two_err", r"Weak: $\mathrm{NC1}=2\,\mathrm{err}$", LOOKS["theory"], nc1 / 2),
    ]
    for k in classes:
        lines.append(("gaussian_etf", rf"Gaussian ETF, $K={k}$", LOOKS["gaussian"], gaussian_etf_error(nc1, k)))
    return lines


@dataclass(frozen=True)
class _Weight:
    """How strongly points are drawn: `size` in points and `alpha` of those on the way, whether the last ones are filled."""

    size: float = 2.8
    alpha: float = 0.55
    filled: bool = False


def _weight(clouds: Sequence[Cloud]) -> _Weight:
    """Thousands of points of several groups are mud: then those on the way step back and the ends of trainings are seen."""
    many = len(clouds) > 1 and all(c.last.any() for c in clouds) and sum(len(c.nc1) for c in clouds) > MANY
    return _Weight(1.6, 0.28, True) if many else _Weight()


def _scatter(ax: Any, axis: LogAxis, cloud: Cloud, look: Look, legend: Legend, weight: _Weight) -> None:
    shown = np.where(cloud.error > 0, cloud.error, np.nan)
    style = {"linestyle": "none", "marker": look.marker, "color": look.color, "markeredgewidth": 0.0}
    style |= {"markersize": weight.size, "alpha": weight.alpha, "zorder": 3}
    ax.plot(cloud.nc1, shown, gid=f"curve:{cloud.label}", label=cloud.label, **style)
    legend.mark(cloud.label, marker=look.marker, color=look.color, markersize=3.5, markeredgewidth=0.0)
    if (cloud.error == 0).any():
        at = cloud.nc1[cloud.error == 0]
        ax.plot(at, np.full(len(at), axis.zero), gid=f"zero:{cloud.label}", label="_", **style)
    if cloud.last.any():
        y = np.where(cloud.error > 0, cloud.error, axis.zero or axis.low)[cloud.last]
        end = {**_RING, **({"marker": look.marker, "markersize": 4.2, "markerfacecolor": look.color} if weight.filled else {})}
        ax.plot(cloud.nc1[cloud.last], y, linestyle="none", zorder=5, gid=f"last:{cloud.label}", label="_", **end)


def _rows(cloud: Cloud) -> list[tuple[Any, ...]]:
    return [
        ("hero", cloud.label, float(x), float(y), np.nan, np.nan, 1, "" if y > 0 else "zero or below the floor", *where)
        for x, y, where in zip(cloud.nc1, cloud.error, cloud.where, strict=True)
    ]


def _notes(clouds: Sequence[Cloud], classes: Sequence[int]) -> tuple[str, ...]:
    notes = [
        f"{sum(len(c.nc1) for c in clouds)} points: every run, seed, epoch and layer; the logits are left out.",
        "The lines need K affinely independent train means; the floor is about the nearest mean in the Sigma_B^+ metric (err_B).",
        "Limits: training time grows at a fixed training set (t, then n).",
    ]
    if not classes:
        notes.append("The Gaussian curve is not drawn: the runs do not say their number of classes.")
    if len(classes) > 1:
        notes.append(f"The Gaussian curve is for K = {classes[0]}; the runs also have K = {', '.join(map(str, classes[1:]))}.")
    gap = [
        float(np.median(c.nc1[c.last & (c.error > 0)] / (2 * c.error[c.last & (c.error > 0)])))
        for c in clouds
        if (c.last & (c.error > 0)).any()
    ]
    if gap:
        notes.append(
            f"Median NC1 / (2 err) at the last epoch, penultimate layer: {min(gap):.2f}"
            + (f" to {max(gap):.2f}." if len(gap) > 1 else ".")
        )
    return tuple(notes)
