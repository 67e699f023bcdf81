"""The parts every figure is made of: panels of a paper's width, a log axis that shows zero, curves with bands, a legend below."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedFormatter, FixedLocator, NullFormatter, NullLocator

from compare.figures.series import Curve
from compare.style import Look, Style

EXTREMES = (1e-150, 1e150)  # beyond, a log axis' own limits leave float64
THEORY = "#000000"  # no measured curve is black
MOST_TICKS = 6  # labelled decades on one axis
DENSE = 40  # points of a curve without a line from which on only some have a marker: side by side they hide one another
MOST_MINOR = 40  # decades with a tick of their own
NC1 = r"NC1$=\mathrm{Tr}(\Sigma_W\Sigma_B^{+})/K$"


def panels(style: Style, rows: int, columns: int, height: float, **shared: Any) -> tuple[Figure, np.ndarray]:
    """Return a figure of the style's width with its panels (rows, columns), `height` inches a row."""
    figure = Figure(figsize=(style.width, rows * height), layout="constrained")
    FigureCanvasAgg(figure)
    figure.get_layout_engine().set(w_pad=0.03, h_pad=0.03, wspace=0.03, hspace=0.03)
    grid = figure.subplots(rows, columns, squeeze=False, sharex=shared.get("sharex", False), sharey=shared.get("sharey", False))
    return figure, grid


# --- axes --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LogAxis:
    """A logarithmic axis from `low` to `high` with, below a break, a place `zero` for zeros and for zero as a theory value."""

    low: float
    high: float
    zero: float | None

    @classmethod
    def over(cls, curves: Iterable[Curve], *, zero: bool = False, extra: Iterable[float] = ()) -> LogAxis:
        """Return the axis that holds the curves' values and intervals; the place for zero also where a point is censored."""
        curves = [c for c in curves if c]
        parts = [np.concatenate([c.value, c.low, c.high]) for c in curves] + [np.array(list(extra), float)]
        values = np.concatenate(parts)
        values = values[np.isfinite(values) & (values > 0)]
        values = np.clip(values, *EXTREMES) if len(values) else np.array([1e-2, 1.0])
        # An interval may reach far below the points (few seeds): it is cut one decade below the smallest point.
        points = np.concatenate([c.value[~c.censored] for c in curves] or [values])
        points = np.clip(points[np.isfinite(points) & (points > 0)], *EXTREMES)
        floor = points.min() / 10 if len(points) else values.min()
        top = points.max() * 10 if len(points) else values.max()
        low, high = max(values.min(), floor) / 1.25, min(values.max(), top) * 1.25
        # At least: in any ratio above 5 lie two of the 1-2-5 ticks; under 1e-3 labels are powers of ten, and one needs two.
        least = 5.2 if low > 1e-3 else 100.0
        if high / low < least:
            middle = math.sqrt(low * high)
            low, high = middle / math.sqrt(least), middle * math.sqrt(least)
        zero = zero or any(c.censored.any() for c in curves)
        return cls(low, high, low * (low / high) ** 0.10 if zero else None)

    @property
    def bottom(self) -> float:
        """The lowest drawn value."""
        return self.low if self.zero is None else self.zero * (self.low / self.high) ** 0.045

    def place(self, values: np.ndarray) -> np.ndarray:
        """Return where to draw `values`: what is not above the axis' bottom goes to its bottom, NaN stays."""
        return np.where(values < self.bottom, self.bottom, values)

    def apply(self, ax: Axes) -> None:
        """Set the scale, limits and ticks of the vertical axis."""
        ax.set_yscale("log")
        ax.set_ylim(self.bottom, self.high)
        ticks, minor = decades(self.low, self.high)
        labels = tick_labels(ticks, powers=True)
        if self.zero is not None:
            ticks, labels = [self.zero, *ticks], ["0", *labels]
            self._break(ax)
        fix_ticks(ax.yaxis, ticks, labels, minor)

    def _break(self, ax: Axes) -> None:
        """Mark the jump from the lowest value to zero by two strokes across the axis."""
        at = math.sqrt(self.zero * self.low)
        ratio = (self.high / self.bottom) ** 0.008
        for y in (at / ratio, at * ratio):
            ax.plot([0.0], [y], transform=ax.get_yaxis_transform(), marker=[(-1, -0.45), (1, 0.45)], markersize=5, color="k",
                    markeredgewidth=0.6, linestyle="none", clip_on=False, zorder=5, gid="decoration")  # fmt: skip


@dataclass(frozen=True)
class LinearAxis:
    """A linear axis with the interface of `LogAxis`: zero is a place like any other."""

    low: float
    high: float
    zero: float = 0.0

    @classmethod
    def over(cls, curves: Iterable[Curve]) -> LinearAxis:
        """Return the axis that holds the curves, from 0 where they come near it."""
        curves = [c for c in curves if c]
        values = np.concatenate([np.concatenate([c.value, c.low, c.high]) for c in curves] or [np.array([0.0, 1.0])])
        values = values[np.isfinite(values)]
        low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
        low = 0.0 if 0 <= low < 0.6 * high or any(c.censored.any() for c in curves) else low
        even = high - low <= 1e-6 * abs(high)  # a flat curve is not magnified into its own rounding
        margin = (0.06 * abs(high) if even else 0.06 * (high - low)) or 1.0
        return cls(low - margin, high + margin)

    @property
    def bottom(self) -> float:
        """The lowest drawn value."""
        return self.low

    def place(self, values: np.ndarray) -> np.ndarray:
        """Return where to draw `values`."""
        return values

    def apply(self, ax: Axes) -> None:
        """Set limits and ticks of the vertical axis."""
        from matplotlib.ticker import MaxNLocator

        ax.set_ylim(self.low, self.high)
        ax.yaxis.set_major_locator(MaxNLocator(5, min_n_ticks=3))


PLAIN = LogAxis(-math.inf, math.inf, None)  # stands for a linear axis in `draw_curve`: no value is moved to a place for zero


def fix_ticks(axis: Any, ticks: Sequence[float], labels: Sequence[str], minor: Sequence[float]) -> None:
    """Set an axis' ticks for good: labels at `ticks`, none at `minor`."""
    axis.set_major_locator(FixedLocator(list(ticks)))
    axis.set_major_formatter(FixedFormatter(list(labels)))
    axis.set_minor_locator(FixedLocator(list(minor)) if len(minor) else NullLocator())
    axis.set_minor_formatter(NullFormatter())


def decades(low: float, high: float) -> tuple[list[float], list[float]]:
    """Return the labelled and the unlabelled ticks of a log axis: powers of ten, or 1-2-5 where there are under two of those."""
    first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
    powers = [10.0**e for e in range(first, last + 1)]
    fine = [m * 10.0**e for e in range(first - 1, last + 1) for m in range(2, 10) if low <= m * 10.0**e <= high]
    if len(powers) < 2:
        steps = sorted({m * 10.0**e for e in range(first - 2, last + 2) for m in (1, 2, 5) if low <= m * 10.0**e <= high})
        return steps, [t for t in fine if not any(math.isclose(t, s) for s in steps)]
    stride = -(-len(powers) // MOST_TICKS)
    keep = [p for i, p in enumerate(powers) if (len(powers) - 1 - i) % stride == 0]
    # Each tick is an object: hundreds of them (a range of 300 decades) take seconds.
    return keep, fine if stride == 1 else [p for p in powers if p not in keep and len(powers) <= MOST_MINOR]


def tick_labels(values: Sequence[float], *, powers: bool = False) -> list[str]:
    """Return labels in one notation: plain from 0.01 to 1000 (1-2-5 ticks: from 0.001), else powers of ten.

    With `powers` decades are always powers of ten, so that the panels of one figure write them alike.
    """
    decades = all(_power(v).startswith("$10") for v in values)
    least = 0.0099 if decades else 0.00099
    if not (powers and decades) and all(least < v < 1001 for v in values):
        return [f"{v:.6g}" for v in values]
    return [_power(v) for v in values]


def _power(value: float) -> str:
    exponent = math.floor(math.log10(value) + 1e-9)
    mantissa = value / 10.0**exponent
    if math.isclose(mantissa, 1.0):
        return rf"$10^{{{exponent}}}$"
    return rf"${mantissa:.3g}\cdot10^{{{exponent}}}$"


def time_axis(ax: Axes, curves: Iterable[Curve], along: str) -> str:
    """Set the horizontal axis of a training: logarithmic from the first measurement after 0 on, with 0 (untrained) shown.

    Returns its label, for the panel or for a whole row of panels.
    """
    times = np.unique(np.concatenate([c.x for c in curves if c] or [np.array([0.0, 1.0])]))
    later = times[times > 0]
    untrained = bool((times == 0).any())
    label = ("Epoch" if along == "epoch" else "Step") + " at fixed $n$" + (" (0: untrained)" if untrained else "")
    if not len(later) or (untrained and later.max() <= 12 * later.min()):
        _linear_time(ax, times)
        return label
    low, high = float(later.min()), float(later.max())
    ticks, minor = decades(low * 0.999, high * 1.001)
    if untrained:
        ax.set_xscale("symlog", linthresh=low, linscale=0.35)
        ax.set_xlim(-0.3 * low, high * 1.12)
        ticks = [0.0, *ticks]
    else:
        ax.set_xscale("log")
        ax.set_xlim(low / 1.15, high * 1.12)
    fix_ticks(ax.xaxis, ticks, (["0"] if untrained else []) + tick_labels([t for t in ticks if t > 0]), minor)
    return label


def _linear_time(ax: Axes, times: np.ndarray) -> None:
    from matplotlib.ticker import MaxNLocator

    high = float(times.max()) or 1.0
    ax.set_xlim(-0.03 * high, 1.03 * high)
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=high >= 3))


# --- curves ------------------------------------------------------------------------------------------------------------


@dataclass
class Legend:
    """What the legend will say, in the order in which it was drawn; one entry for one label however often it is drawn."""

    entries: dict[str, Any] = field(default_factory=dict)
    marks: dict[str, Any] = field(default_factory=dict)

    def line(self, label: str, look: Look) -> None:
        """Name a curve."""
        self.entries.setdefault(label, Line2D([], [], label=label, **_line_of(look)))

    def mark(self, label: str, **look: Any) -> None:
        """Name a kind of point; these come after the curves."""
        self.marks.setdefault(label, Line2D([], [], linestyle="none", label=label, **look))

    def band(self, label: str) -> None:
        """Say what the bands are."""
        self.marks.setdefault(label, Patch(facecolor="#9a9a9a", alpha=0.35, label=label))

    def region(self, label: str, **look: Any) -> None:
        """Name a shaded region; a thin edge, since a light grey alone is lost on paper."""
        self.marks.setdefault(label, Patch(edgecolor="#8a8a8a", linewidth=0.4, label=label, **look))

    def rule(self, label: str, **look: Any) -> None:
        """Name a straight line across a panel; these come after the curves."""
        self.marks.setdefault(label, Line2D([], [], label=label, **look))

    def handles(self) -> list[Any]:
        """Return the measured curves, then theory's (black) with their remarks, then bands and marks."""
        theory = [line for line in self.entries.values() if line.get_color() == THEORY]
        return [*(line for line in self.entries.values() if line not in theory), *theory, *self.marks.values()]


def _line_of(look: Look) -> dict[str, Any]:
    """Return a look as matplotlib's keywords; the white edge keeps a marker apart from its own dotted line."""
    line = {"color": look.color, "linestyle": look.dashes, "linewidth": look.width}
    return {**line, "marker": look.marker or "None", "markeredgecolor": "white", "dash_capstyle": "butt"}


ZERO_MARK = {"marker": "v", "markersize": 4.0, "markerfacecolor": "none", "markeredgewidth": 0.8}
END_MARK = {"marker": "x", "markersize": 4.5, "markeredgewidth": 1.1}
ENDLESS_MARK = {"marker": "1", "markersize": 3.5, "markeredgewidth": 0.7}


def draw_curve(
    ax: Axes, curve: Curve, look: Look, axis: LogAxis, legend: Legend, label: str, *, band: bool = True, zero_size: float = 4.0
) -> None:
    """Draw a curve with its band, its zeros at the axis' bottom, a gap where it has no value and a cross where a run ended.

    `zero_size` in points keeps the zeros of several curves apart: they nest.
    """
    if not curve:
        return
    theory = look.color == THEORY
    order = 3.2 if theory else 3.0
    shown = np.where(curve.censored, np.nan, curve.value)
    banded = np.isfinite(curve.low) & np.isfinite(curve.high) & ~curve.censored
    if band and banded.any():
        # A logarithmic axis has no place for an interval down to 0: the band ends at the point, and a mark below says so.
        endless = banded & (curve.low <= 0) & (isinstance(axis, LogAxis) and math.isfinite(axis.low))  # PLAIN is linear
        low, high = np.where(endless, shown, curve.low), np.where(banded, curve.high, np.nan)
        low = np.where(banded, low, np.nan)
        if endless.any():
            _endless(ax, curve, endless, axis, look, legend)
        ax.fill_between(curve.x, axis.place(low), high, where=banded, color=look.color, alpha=0.12 if theory else 0.2, lw=0,
                        zorder=1.5, gid=f"band:{curve.key}")  # fmt: skip
    points = int(np.isfinite(shown).sum())
    every = _marks_at(ax) if points > (8 if look.dashes != "none" else DENSE) else None
    ax.plot(curve.x, shown, markevery=every, zorder=order, gid=f"curve:{curve.key}", label=label, **_line_of(look))
    legend.line(label, look)
    if curve.censored.any():
        if axis.zero is not None and look.dashes != "none":
            _drops(ax, curve, shown, axis.zero, look)
        at, mark = curve.x[curve.censored], {**ZERO_MARK, "markersize": zero_size, "color": look.color, "label": "_"}
        every = 0.06 if len(at) > 8 else None
        ax.plot(at, np.full(len(at), axis.zero), linestyle="none", markevery=every, zorder=4, gid=f"zero:{curve.key}", **mark)
        legend.mark("zero or below the noise floor", color="#444444", **ZERO_MARK)
    for x, y in curve.ends:
        place = y if y > axis.bottom else axis.zero or axis.bottom
        ax.plot([x], [place], linestyle="none", color=look.color, zorder=5, gid=f"end:{curve.key}", label="_", **END_MARK)
        legend.mark("a run ends here (diverged)", color="#444444", **END_MARK)


def _endless(ax: Axes, curve: Curve, where: np.ndarray, axis: LogAxis, look: Look, legend: Legend) -> None:
    """Mark at the foot of the axis the points whose interval reaches down to 0."""
    at = curve.x[where]
    every = 0.06 if len(at) > 8 else None
    ax.plot(at, np.full(len(at), axis.low), linestyle="none", markevery=every, zorder=2.2, gid=f"endless:{curve.key}", label="_",
            color=look.color, **ENDLESS_MARK)  # fmt: skip
    legend.mark("interval reaches 0", color="#444444", **ENDLESS_MARK)


def _drops(ax: Axes, curve: Curve, shown: np.ndarray, zero: float, look: Look) -> None:
    """Join a curve to its zeros by thin lines: pieces and single points alone do not say that they are one curve."""
    path = np.where(curve.censored, zero, shown)
    touching = curve.censored[:-1] | curve.censored[1:]
    if not touching.any():
        return
    ends, gap = np.flatnonzero(touching), np.full(int(touching.sum()), np.nan)
    x = np.stack([curve.x[ends], curve.x[ends + 1], gap], 1).ravel()
    y = np.stack([path[ends], path[ends + 1], gap], 1).ravel()
    ax.plot(x, y, color=look.color, lw=0.5 * look.width, alpha=0.6, zorder=2.4, gid="decoration", label="_")


def _marks_at(ax: Axes) -> tuple[float, float]:
    """Return where a curve has its markers, shifted from one curve to the next so that those of close curves stay apart."""
    before = sum(str(line.get_gid()).startswith("curve:") for line in ax.lines)
    return (0.037 * (before % 3), 0.11)


def zero_line(ax: Axes, axis: LogAxis, look: Look, legend: Legend, label: str) -> None:
    """Draw a theory value of zero where the axis keeps its place for zero."""
    if axis.zero is not None:
        ax.axhline(axis.zero, color=look.color, linestyle=look.dashes, lw=look.width, zorder=1.8, gid="curve:zero", label=label)
        legend.line(label, look)


# --- the finish --------------------------------------------------------------------------------------------------------


def finish(figure: Figure, style: Style, legend: Legend, below: str = "") -> None:
    """Put the legend below the panels in as many columns as fit, add its height to the figure's, and make the layout final.

    `below` is one label for the horizontal axis of all panels (per panel it would not fit a narrow column).
    """
    handles, bottom = legend.handles(), _bottom_row(figure)
    for ax in bottom if below else []:
        ax.set_xlabel("0")  # keeps the place
    if handles:
        box = _fitting_legend(figure, style, handles)
        gap = 0.08
        height = box.get_window_extent(figure.canvas.get_renderer()).height / figure.dpi + gap
        width, panels_height = figure.get_size_inches()
        total = round(panels_height + height, 2)
        figure.set_size_inches(width, total)
        figure.get_layout_engine().set(rect=(0, height / total, 1, 1 - height / total))
    figure.get_layout_engine().execute(figure)
    figure.set_layout_engine("none")
    for ax in figure.axes:
        # The layout's equations have many solutions within rounding: which one is found differs from run to run, and SVG
        # names a clip region by all digits of its place.
        ax.set_position([round(float(v), 6) for v in ax.get_position(original=True).bounds])
    if below:
        _label_below(figure, bottom, below, style)


def make_square(figure: Figure, ax: Axes) -> None:
    """Change the figure's height until a panel is as high as wide; before `finish`."""
    for _ in range(2):
        figure.get_layout_engine().execute(figure)
        box = ax.get_position()
        width, height = figure.get_size_inches()
        figure.set_size_inches(width, round(height + box.width * width - box.height * height, 3))


def _bottom_row(figure: Figure) -> list[Axes]:
    return [ax for ax in figure.axes if ax.get_subplotspec() is not None and ax.get_subplotspec().is_last_row()]


def _label_below(figure: Figure, bottom: list[Axes], text: str, style: Style) -> None:
    boxes = [ax.get_position() for ax in bottom]
    centre = (min(b.x0 for b in boxes) + max(b.x1 for b in boxes)) / 2
    place = bottom[0].xaxis.label.get_window_extent().transformed(figure.transFigure.inverted())
    for ax in bottom:
        ax.set_xlabel("")
    figure.text(centre, place.y0, text, ha="center", va="bottom", fontsize=style.label)


def _fitting_legend(figure: Figure, style: Style, handles: list[Any]) -> Any:
    for columns in range(min(4, len(handles)), 0, -1):
        box = figure.legend(handles=in_rows(handles, columns), loc="lower center", bbox_to_anchor=(0.5, 0.0), ncols=columns)
        box.set_in_layout(False)
        if columns == 1 or box.get_window_extent(figure.canvas.get_renderer()).width / figure.dpi <= style.width - 0.04:
            return box
        box.remove()
    raise AssertionError("a legend of one column is always returned")


def in_rows(handles: list[Any], columns: int) -> list[Any]:
    """Return the handles so that matplotlib's column-wise legend reads row by row."""
    rows = -(-len(handles) // columns)
    # matplotlib fills the first columns with one entry more where they do not come out even.
    full = len(handles) - (rows - 1) * columns
    lengths = [rows if c < full else rows - 1 for c in range(columns)]
    table = [[handles[r * columns + c] for r in range(lengths[c])] for c in range(columns)]
    return [handle for column in table for handle in column]


def title(ax: Axes, panel: str, text: str) -> None:
    """Put a panel's title above its left end; `panel` is its name in the CSV."""
    ax.set_label(panel)
    ax.set_title(text, loc="left")
