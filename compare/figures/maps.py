"""Heat maps of classes against classes, their diagonal left out: it is known and would take all the colours."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from compare.figures.arrays import MOST_CLASSES
from compare.figures.axes import Legend, finish, make_square, panels, title
from compare.style import Style

# One hue from light to dark, so that print in grey keeps the order; the diagonal is the one grey.
CLASS_PITCH = 0.125  # inches: a class from which on every one has its number
_DIAGONAL = "#d0d0d0"
COLORS = ("#fdf6e3", "#f3c98b", "#e08a4f", "#a8465a", "#4b2467", "#0b0b3b")


def draw_maps(
    style: Style,
    maps: Mapping[str, tuple[str, np.ndarray]],
    limits: tuple[float, float],
    colour_label: str,
    sides: tuple[str, str],
) -> Figure:
    """Return a figure with one heat map (K, K) for each name -> (title, values), in one row over one colour bar.

    `sides` names the rows and the columns.
    """
    side = (style.width - 0.55) / len(maps)
    figure, grid = panels(style, 1, len(maps), side + 0.98)
    norm, colors = Normalize(*limits), LinearSegmentedColormap.from_list("ufm", list(COLORS))
    mesh = None
    for index, (ax, (name, (text, values))) in enumerate(zip(grid[0], maps.items(), strict=True)):
        mesh = draw_map(ax, values, norm, colors, name, side=side)
        title(ax, name, text)
        ax.set_xlabel(sides[1])
        if index:
            ax.tick_params(labelleft=False)
        else:
            ax.set_ylabel(sides[0])
    colour_bar(figure, mesh, grid[0], colour_label, 0.06)
    make_square(figure, grid[0, 0])
    finish(figure, style, Legend())
    return figure


def colour_bar(figure: Figure, mesh: Any, panels: Iterable[Axes], label: str, fraction: float) -> None:
    """Draw one colour bar below `panels`, as high as `fraction` of them."""
    bar = figure.colorbar(mesh, ax=list(panels), location="bottom", fraction=fraction, aspect=35, pad=0.02)
    bar.set_label(label)
    bar.ax.set_label("colours")
    bar.ax.xaxis.set_major_locator(MaxNLocator(5))
    bar.ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{0.0 if abs(value) < 1e-12 else value:.4g}"))
    bar.ax.xaxis.set_minor_locator(NullLocator())
    bar.outline.set_visible(False)


def draw_map(
    ax: Axes, values: np.ndarray, norm: Normalize, colors: Any, name: str, *, diagonal: bool = False, side: float = 0.0
) -> Any:
    """Draw one map (K, K); its diagonal only when asked for. `side` is about its width in inches: room for labels."""
    shown = shown_classes(values)
    size = len(shown)
    mesh = ax.pcolormesh(
        np.arange(size + 1) - 0.5,
        np.arange(size + 1) - 0.5,
        shown if diagonal else np.where(np.eye(size, dtype=bool), np.nan, shown),
        norm=norm,
        cmap=colors.with_extremes(bad=_DIAGONAL),
        gid=f"map:{name}",
        linewidth=0,
    )
    ax.set_facecolor(_DIAGONAL)
    ax.invert_yaxis()
    stride = -(-size // 10)
    if size > 5 and side / size < CLASS_PITCH:
        stride *= 2
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(FixedLocator(list(range(0, size, stride))))
        axis.set_minor_locator(NullLocator())
    for side in ax.spines.values():
        side.set_visible(False)
    return mesh


def shown_classes(values: np.ndarray) -> np.ndarray:
    """Return the part of a map that is shown."""
    return values[:MOST_CLASSES, :MOST_CLASSES]


def map_rows(panel: str, values: np.ndarray, seeds: int) -> list[tuple[Any, ...]]:
    """Return the CSV rows of one map: curve 'class i', x = j."""
    shown = shown_classes(values)
    return [
        (panel, f"class {i}", float(j), float(shown[i, j]), np.nan, np.nan, seeds, "")
        for i in range(len(shown))
        for j in range(len(shown))
        if i != j
    ]
