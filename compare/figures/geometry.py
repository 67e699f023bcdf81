"""Three classes in the plane of their means: the triangle, the spread on train and on test, the borders of the nearest mean."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.ticker import FixedLocator

from compare.figures.arrays import Kept, kept
from compare.figures.axes import Legend, finish, make_square, panels, title
from compare.figures.drawing import Drawing
from compare.figures.series import COLUMNS
from compare.style import GROUP_COLORS, GROUP_MARKERS, LOOKS, Look, Style
from ufm.errors import RequestError

_NEEDED = (
    *("penultimate/basis", "penultimate/train/means", "penultimate/test/means", "test/confusion"),
    *("penultimate/train/within_class", "penultimate/test/within_class"),
)
_COLORS = (0, 1, 3)  # three of the group colours that keep apart in grey: L* 21, 46, 68
_SEEN = 0.98  # share of the test points that the frame holds
_ANGLES = np.linspace(0, 2 * np.pi, 97)


@dataclass(frozen=True)
class Plane:
    """The plane of three train means: `origin` (r,), orthonormal `axes` (2, r), `unit` the mean distance to their centre."""

    origin: np.ndarray
    axes: np.ndarray
    unit: float

    def of(self, point: np.ndarray) -> np.ndarray:
        """Return a point's two coordinates."""
        return self.axes @ (point - self.origin) / self.unit

    def spread(self, covariance: np.ndarray) -> np.ndarray:
        """Return the ellipse (97, 2) of one standard deviation about zero."""
        values, vectors = np.linalg.eigh(self.axes @ covariance @ self.axes.T)
        return (vectors @ (np.sqrt(np.clip(values, 0, None))[:, None] * [np.cos(_ANGLES), np.sin(_ANGLES)])).T / self.unit


def draw(table: Mapping[str, Any], style: Style) -> Drawing:
    """Draw the three classes that are most often confused on test, in the plane of their train means: means and 2-s.d. ellipses.

    (a) train, (b) test, where the train means stay as rings and every kept test point of the three classes is a dot. Theory: the
    means at the corners of an equilateral triangle, with
    no spread on train. The dashed borders are those of the nearest train mean.

    Raises:
        RequestError: several settings, fewer than three classes, or the run keeps no class covariances.
    """
    found = kept(table, "geometry", _NEEDED)
    seed, arrays = next(iter(found.arrays.items()))
    chosen = most_confused(np.sum(found.each("test/confusion"), axis=0))
    plane = plane_of(arrays["penultimate/train/means"] @ arrays["penultimate/basis"].T, chosen)
    with style.applied():
        figure, grid = panels(style, 1, 2, style.width / 2 + 0.22)
        legend, rows = Legend(), []
        for ax, letter, split in zip(grid[0], "ab", ("train", "test"), strict=True):
            rows += _panel(ax, split, plane, arrays, chosen, legend)
            title(ax, split, f"({letter}) {split.capitalize()}")
        make_square(figure, grid[0, 0])
        finish(figure, style, legend)
        _limits(figure, grid[0], rows)
        notes = _notes(found, seed, chosen, arrays) + _dot_note(grid[0, 1], rows)
    return Drawing(figure, COLUMNS, rows, notes)


def most_confused(confusion: np.ndarray) -> tuple[int, int, int]:
    """Return the pair of classes that is confused most often, and the third that is confused most often with the two."""
    if len(confusion) < 3:
        raise RequestError(f"the run has {len(confusion)} classes and the figure geometry shows three; draw nc instead")
    both = (confusion + confusion.T).astype(float)
    np.fill_diagonal(both, -1.0)
    first, second = np.unravel_index(int(both.argmax()), both.shape)
    rest = both[first] + both[second]
    rest[[first, second]] = -np.inf
    return int(first), int(second), int(rest.argmax())


def plane_of(means: np.ndarray, chosen: tuple[int, int, int]) -> Plane:
    """Return the plane through three rows of the train means (K, r)."""
    corners = means[list(chosen)]
    origin = corners.mean(0)
    _, _, axes = np.linalg.svd(corners - origin, full_matrices=False)
    # The first class points up, and the second lies to its left: the picture does not turn from one machine to the next.
    up = axes[:2] @ (corners[0] - origin)
    up = up / np.linalg.norm(up)
    turned = np.array([[up[1], -up[0]], [up[0], up[1]]]) @ axes[:2]
    if (turned @ (corners[1] - origin))[0] > 0:
        turned[0] *= -1
    return Plane(origin, turned, float(np.linalg.norm(corners - origin, axis=1).mean()))


def _panel(
    ax: Any, split: str, plane: Plane, arrays: Mapping[str, np.ndarray], chosen: tuple[int, ...], legend: Legend
) -> list[tuple[Any, ...]]:
    basis, rows = arrays["penultimate/basis"], []
    train, own = (arrays[f"penultimate/{name}/means"] @ basis.T for name in ("train", split))
    for k, index in zip(chosen, _COLORS, strict=True):
        color, marker, centre = GROUP_COLORS[index], GROUP_MARKERS[index], plane.of(own[k])
        edge = centre + 2 * plane.spread(arrays[f"penultimate/{split}/within_class"][k])
        label = f"Class {k}, 2 s.d."
        ax.fill(*edge.T, color=color, alpha=0.15, lw=0)
        ax.plot(*edge.T, color=color, linestyle=LOOKS[split].dashes, lw=1.0, gid=f"curve:class {k}, 2 s.d.", label=label)
        ax.plot(*centre[:, None], color=color, marker=marker, markersize=3.0, linestyle="none", gid=f"mean:{k}", label="_")
        legend.line(label, Look(color, LOOKS["train"].dashes, marker, 1.0))
        rows += [(split, f"class {k}, 2 s.d.", float(x), float(y), np.nan, np.nan, 1, "") for x, y in edge]
        rows.append((split, f"class {k}, mean", float(centre[0]), float(centre[1]), np.nan, np.nan, 1, "mean"))
        if split == "test":
            rows += _dots(ax, plane, arrays, k, color)
            ring = plane.of(train[k])
            look = {
                "marker": "o",
                "markersize": 6.5,
                "markerfacecolor": "none",
                "markeredgecolor": "#444444",
                "markeredgewidth": 0.8,
            }
            ax.plot(*ring[:, None], linestyle="none", gid=f"ring:{k}", label="_", **look)
            legend.mark("Train mean", **{**look, "markersize": 6.0})
            rows.append((split, f"class {k}, train mean", float(ring[0]), float(ring[1]), np.nan, np.nan, 1, "mean"))
    for number, border in enumerate(borders(np.array([plane.of(train[k]) for k in chosen]))):
        look = LOOKS["optimum"]
        ax.plot(
            *border.T,
            color=look.color,
            linestyle=look.dashes,
            lw=0.8,
            gid=f"curve:border {number}",
            label="Nearest-mean border",
            zorder=1,
        )
        legend.line("Nearest-mean border", look)
        rows += [(split, f"border {number}", float(x), float(y), np.nan, np.nan, 0, "") for x, y in border]
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(FixedLocator([-1, 0, 1]))
    ax.set_xlabel("In the plane of three means")
    ax.tick_params(labelleft=split == "train")
    return rows


def _dots(ax: Any, plane: Plane, arrays: Mapping[str, np.ndarray], k: int, color: str) -> list[tuple[Any, ...]]:
    """Draw the kept test points of one class; runs of older versions kept none."""
    dots = points_of(arrays, k)
    if not len(dots):
        return []
    flat = (dots - plane.origin) @ plane.axes.T / plane.unit
    ax.plot(*flat.T, color=color, marker=".", markersize=2.2, linestyle="none", alpha=0.6, mew=0, gid=f"points:{k}", label="_")
    return [("test", f"class {k}, points", float(x), float(y), np.nan, np.nan, 1, "point") for x, y in flat]


def points_of(arrays: Mapping[str, np.ndarray], k: int) -> np.ndarray:
    """Return the kept places (P, r) of test points of class k in the span of the train means."""
    places, numbers = arrays.get("penultimate/test/places"), arrays.get("penultimate/test/places_of")
    if places is None or numbers is None or "test/labels" not in arrays or not np.isfinite(places).all():
        return np.zeros((0, len(arrays["penultimate/basis"])))
    return places[arrays["test/labels"][numbers] == k].astype(np.float64)


def borders(corners: np.ndarray) -> list[np.ndarray]:
    """Return the three half lines (2, 2) on which two of three points (3, 2) are equally near and the third is farther."""
    a, b, c = corners
    system = 2 * np.array([b - a, c - a])
    meeting = np.linalg.solve(system, [b @ b - a @ a, c @ c - a @ a])
    rays = []
    for i, j, k in ((0, 1, 2), (0, 2, 1), (1, 2, 0)):
        along = corners[j] - corners[i]
        away = np.array([-along[1], along[0]]) / np.linalg.norm(along)
        # Of the two directions the one on which the third corner falls behind.
        away = away if away @ (corners[k] - corners[i]) < 0 else -away
        rays.append(np.array([meeting, meeting + 20 * away]))
    return rays


def _limits(figure: Any, axes: Any, rows: list[tuple[Any, ...]]) -> None:
    """Set equal limits and, once the layout is final, equal scales."""
    points = np.array([row[2:4] for row in rows if not str(row[1]).startswith("border") and row[7] != "point"], float)
    dots = np.array([np.abs(row[2:4]).max() for row in rows if row[7] == "point"], float)
    # A few far points would shrink everything else; the caption says how many are outside.
    far = float(np.quantile(dots, _SEEN)) if len(dots) else 0.0
    reach = 1.08 * max(1.1, float(np.abs(points).max()), far)
    for ax in axes:
        box, (width, height) = ax.get_position(), figure.get_size_inches()
        across, up = reach * np.array([1.0, box.height * height / (box.width * width)])
        ax.set_xlim(-across, across)
        ax.set_ylim(-up, up)


def _dot_note(ax: Any, rows: list[tuple[Any, ...]]) -> tuple[str, ...]:
    dots = np.array([row[2:4] for row in rows if row[7] == "point"], float).reshape(-1, 2)
    if not len(dots):
        return ()
    reach = np.array([ax.get_xlim()[1], ax.get_ylim()[1]])
    outside = int((np.abs(dots) > reach).any(1).sum())
    return (f"Dots: {len(dots)} test points of the three classes, {outside} of them outside the frame.",)


def _notes(found: Kept, seed: int, chosen: tuple[int, ...], arrays: Mapping[str, np.ndarray]) -> tuple[str, ...]:
    kept_share = np.mean([np.trace(c) for c in arrays["penultimate/test/within_class"]])
    notes = [
        f"Seed {seed}, classes {', '.join(map(str, chosen))}: the most confused pair of {found.seeds()} and the next. "
        "Ellipses: 2 s.d.",
        "Coordinates in units of the mean distance of the three train means to their centre.",
        f"Variance outside this plane is not seen; in the span of all means the test classes have {kept_share:.3g} on average.",
    ]
    if found.not_etf:
        notes.append(f"An equilateral triangle is not the prediction here: {found.not_etf}.")
    return tuple(notes)
