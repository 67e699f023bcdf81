"""Where random starts of a deep model end: the share below deep neural collapse, over what was swept."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from compare.figures.axes import Legend, LogAxis, draw_curve, finish, make_square, panels, title
from compare.figures.cells import differing, sweep_rows, swept_system
from compare.figures.drawing import Drawing
from compare.figures.maps import COLORS
from compare.figures.series import COLUMNS, Curve
from compare.figures.settings import LONGEST, SYMBOLS, spoken, telling
from compare.style import GROUPS, LOOKS, Style, escape, group_look
from ufm.errors import RequestError

BELOW = 1 - 1e-4  # of the loss of deep neural collapse: end points are that accurate
SHARES = {
    "below": ("Below DNC", lambda row: (row.get("over_dnc") or math.inf) < BELOW),
    "srg": ("At the SRG solution", lambda row: row.get("structure") == "srg"),
}
MAP_LEAST = 3  # values of each of two options from which on a heat map is drawn
MAPS_MOST = 4  # heat maps beside each other, over the values of a third option


@dataclass(frozen=True)
class Count:
    """Starts of one setting: how many, and in how many something happened."""

    number: int
    hits: int

    @property
    def share(self) -> float:
        """hits / number."""
        return self.hits / self.number

    def interval(self) -> tuple[float, float]:
        """Return the 95 % Clopper-Pearson interval."""
        from scipy.stats import binomtest

        found = binomtest(self.hits, self.number).proportion_ci(0.95)
        return float(found.low), float(found.high)


def draw(table: Mapping[str, Any], style: Style) -> Drawing:
    """Draw `ufm simulate deep` with several seeds: shares of starts by where they end.

    Over one option (the initial scale, say): (a) the share below deep neural collapse (DNC), (b) the share at the strongly
    regular graph solution, with Clopper-Pearson intervals, one curve for each other option. Over two others of three or more
    values each: the share below DNC as a heat map, with the line where zero becomes the lower of DNC and zero; a third option
    (the depth, or the one of fewest values) of at most four values gives one map each.

    Raises:
        RequestError: no deep sweep, or one whose settings differ in no number.
    """
    if swept_system(table, "benign") and not swept_system(table, "deep"):
        from compare.figures import overfitting

        return overfitting.draw(sweep_rows(table, "phase", "benign", ""), style)
    rows = sweep_rows(table, "phase", "deep", "`ufm simulate deep` or `ufm simulate benign`")
    if any(row["parameters"].get("steps") is None for row in rows):  # runs that were cut short say nothing of end points
        rows = [row for row in rows if row["parameters"].get("steps") is None]
    options = {name: v for name, v in differing(rows).items() if all(isinstance(x, (int, float)) for x in v)}
    plane, third = _plane(options)
    if plane and len(differing(rows)) == len(options):
        return _heat(rows, plane, third, style)
    if not options:
        raise RequestError("the settings differ in no numeric option; sweep --init-scale, --dim or --lambda-w")
    along = "init_scale" if "init_scale" in options else max(options, key=lambda name: len(options[name]))
    return _curves(rows, along, [name for name in differing(rows) if name != along], style)


def _plane(options: Mapping[str, Sequence[Any]]) -> tuple[list[str], str]:
    """Return the two options of a heat map and the third that gives one map a value ("": none); no options where curves serve."""
    if not 2 <= len(options) <= 3:
        return [], ""
    if "init_scale" in options and "depth" in options:  # one curve a depth says more than a map
        return [], ""
    few = sorted((name for name, values in options.items() if len(values) <= MAPS_MOST), key=lambda name: len(options[name]))
    third = "" if len(options) == 2 else "depth" if "depth" in few else few[0] if few else ""
    plane = [name for name in options if name != third]
    return (plane, third) if len(plane) == 2 and all(len(options[name]) >= MAP_LEAST for name in plane) else ([], "")


# --- shares over one option ------------------------------------------------------------------------------------------


def _curves(rows: Sequence[dict[str, Any]], along: str, others: Sequence[str], style: Style) -> Drawing:
    groups = _counts(rows, along, others)
    if len(groups) > GROUPS:
        raise RequestError(f"the settings differ in {', '.join(others)[:80]}: over {GROUPS} curves; name fewer runs")
    with style.applied():
        row_count, columns, height = (1, 2, 0.4) if style.wide else (2, 1, 0.62)
        figure, grid = panels(style, row_count, columns, height * style.width)
        legend, out = Legend(), []
        for letter, ax, (name, (text, _)) in zip("ab", grid.ravel(), SHARES.items(), strict=True):
            for index, (label, found) in enumerate(groups.items()):
                one = _share_curve(f"{name} {label}", found[name])
                shift = 1 + 0.012 * (index - (len(groups) - 1) / 2)  # equal shares stay apart
                one = Curve(one.key, one.x * shift, one.value, one.low, one.high, one.seeds, one.censored)
                _draw_share(ax, one, group_look(index), legend, spoken(label))
                out += one.rows(name)
            _share_axis(ax, SYMBOLS.get(along, escape(along)), groups)
            title(ax, name, f"({letter}) {text}")
        legend.mark("95 % interval (Clopper-Pearson)", marker="|", markersize=8, markeredgewidth=0.8, color="#444444")
        finish(figure, style, legend)
    return Drawing(figure, COLUMNS, out, _notes(rows))


def _counts(rows: Sequence[dict[str, Any]], along: str, others: Sequence[str]) -> dict[str, dict[str, dict[float, Count]]]:
    """Return group -> share's name -> value of `along` -> Count."""
    found: dict[str, dict[str, dict[float, list[bool]]]] = {}
    settings = {repr([row["parameters"].get(name) for name in others]): row["parameters"] for row in rows}
    told = telling(settings, others)
    for row in sorted(rows, key=lambda r: [str(r["parameters"].get(name)) for name in others]):
        options = row["parameters"]
        label = escape(", ".join(f"{_short(name)}{_plain(options.get(name))}" for name in told) or "Random starts", LONGEST)
        for name, (_, test) in SHARES.items():
            found.setdefault(label, {}).setdefault(name, {}).setdefault(float(options[along]), []).append(bool(test(row)))
    return {
        label: {name: {x: Count(len(hits), sum(hits)) for x, hits in sorted(at.items())} for name, at in shares.items()}
        for label, shares in found.items()
    }


def _short(name: str) -> str:
    return {"classes": "K=", "depth": "L=", "dim": "d=", "per_class": "n="}.get(name, f"{name}=")


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, (int, float)) else str(value)


def _share_curve(key: str, counts: Mapping[float, Count]) -> Curve:
    bounds = np.array([count.interval() for count in counts.values()])
    share = np.array([count.share for count in counts.values()])
    number = np.array([count.number for count in counts.values()])
    return Curve(key, np.array(list(counts)), share, bounds[:, 0], bounds[:, 1], number, np.zeros(len(share), bool))


def _draw_share(ax: Any, one: Curve, look: Any, legend: Legend, label: str) -> None:
    axis = LogAxis(1e-9, 1.0, None)  # a linear axis needs no place for zero: nothing is moved
    draw_curve(ax, one, look, axis, legend, label, band=False)
    gap = np.full(len(one.x), np.nan)
    x, y = np.stack([one.x, one.x, gap], 1).ravel(), np.stack([one.low, one.high, gap], 1).ravel()
    ax.plot(x, y, color=look.color, lw=0.8, zorder=2, gid=f"band:{one.key}", label="_")


def _share_axis(ax: Any, label: str, groups: Mapping[str, Any]) -> None:
    from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

    values = sorted({x for shares in groups.values() for at in shares.values() for x in at})
    ax.set_ylim(-0.03, 1.03)  # both panels alike: a share of a few per cent is not magnified, no interval is cut
    ax.yaxis.set_major_locator(FixedLocator([0.0, 0.25, 0.5, 0.75, 1.0]))
    ax.yaxis.set_major_formatter(FixedFormatter(["0", "0.25", "0.5", "0.75", "1"]))
    ax.set_xscale("log")
    ax.set_xlim(values[0] / 1.1, values[-1] * 1.1)
    ax.xaxis.set_major_locator(FixedLocator(values if len(values) <= 6 else values[:: -(-len(values) // 6)]))
    at = ax.xaxis.get_major_locator().locs
    ax.xaxis.set_major_formatter(FixedFormatter([_tick(v) for v in at]))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlabel(label)
    ax.set_ylabel("Share of starts")


# --- a heat map over two options -------------------------------------------------------------------------------------


def _tick(value: float) -> str:
    """Return a label of a few characters: 0.7, 0.02, 3.2e-3."""
    if not 0 < value < 0.01:
        return f"{value:.3g}"
    digits, _, power = f"{value:.1e}".partition("e")
    return f"{digits.removesuffix('.0')}e{int(power)}"


def _heat(rows: Sequence[dict[str, Any]], names: Sequence[str], third: str, style: Style) -> Drawing:
    along, up = sorted(names, key=lambda name: name in ("dim", "depth", "classes"))  # sizes go up, penalties along
    xs, ys = (sorted({float(row["parameters"][name]) for row in rows}) for name in (along, up))
    groups = sorted({row["parameters"][third] for row in rows}) if third else [None]
    out: list[tuple[Any, ...]] = []
    with style.applied():
        columns = min(len(groups), 4 if style.wide else 2)
        height = 0.62 * style.width if columns == 1 else 0.95 * style.width / columns
        figure, grid = panels(style, -(-len(groups) // columns), columns, height, sharex=True, sharey=True)
        legend, labels = Legend(), 6 if columns == 1 else 4 if style.wide else 3
        for ax in grid.ravel()[len(groups) :]:
            ax.remove()
        for ax, value in zip(grid.ravel(), groups, strict=False):
            here = [row for row in rows if not third or row["parameters"][third] == value]
            panel = "phase" if value is None else f"phase {third} = {value:g}"
            out += _map(ax, here, (along, up), (xs, ys), panel, labels, legend)
            title(ax, panel, "Share of starts below DNC" if value is None else f"{_symbol(third)} = {value:g}")
        for ax in grid[-1]:
            ax.set_xlabel(_symbol(along))
        for ax in grid[:, 0]:
            ax.set_ylabel(_symbol(up))
        _colours(figure, [ax for ax in grid.ravel() if ax.figure is not None], "" if not third else "Share of starts below DNC")
        if not third:
            make_square(figure, grid[0, 0])
        finish(figure, style, legend)
    return Drawing(figure, COLUMNS, out, _notes(rows))


def _symbol(name: str) -> str:
    return "Width $d$" if name == "dim" else SYMBOLS.get(name, escape(name))


def _map(
    ax: Any,
    rows: Sequence[dict[str, Any]],
    names: tuple[str, str],
    at: tuple[list[float], list[float]],
    panel: str,
    labels: int,
    legend: Legend,
) -> list[tuple[Any, ...]]:
    """Draw one heat map; return its rows of the CSV."""
    (along, up), (xs, ys) = names, at
    shares, numbers = np.full((len(ys), len(xs)), np.nan), np.zeros((len(ys), len(xs)), int)
    for i, y in enumerate(ys):
        for j, x in enumerate(xs):
            here = [r for r in rows if r["parameters"][along] == x and r["parameters"][up] == y]
            if here:
                numbers[i, j], shares[i, j] = len(here), np.mean([SHARES["below"][1](row) for row in here])
    line = _threshold(rows, along, up, xs, ys)
    _mesh(ax, shares, xs, ys, labels)
    absent = [(j, i) for i, y in enumerate(ys) for j, x in enumerate(xs) if _without_dnc(rows, {along: x, up: y})]
    if absent:
        look = {"marker": "x", "markersize": 4, "markeredgewidth": 0.9, "color": "#444444"}
        ax.plot(*zip(*absent, strict=True), linestyle="none", zorder=3, gid="curve:no DNC", label="_", **look)
        legend.mark("DNC does not exist", **look)
    if len(line.x):
        ax.plot(line.x, line.value, color="#000000", linestyle=LOOKS["theory"].dashes, lw=1.2, zorder=3,
                gid=f"curve:{line.key}", label=ZERO_LINE)  # fmt: skip
        legend.line(ZERO_LINE, LOOKS["theory"])
    cells = [(panel, f"{up} = {y:g}", x, shares[i, j], np.nan, np.nan, int(numbers[i, j]), "no DNC" if (j, i) in absent else "")
             for i, y in enumerate(ys) for j, x in enumerate(xs)]  # fmt: skip
    return cells + line.rows(panel)


def _without_dnc(rows: Sequence[dict[str, Any]], at: Mapping[str, float]) -> bool:
    """Whether the cell was held against structures and deep neural collapse is none of them."""
    here = [row.get("structures") for row in rows if all(row["parameters"][name] == x for name, x in at.items())]
    return bool(here) and all(isinstance(known, Mapping) and known and "dnc" not in known for known in here)


ZERO_LINE = "Theory: zero is below DNC to the right"


def _mesh(ax: Any, shares: np.ndarray, xs: list[float], ys: list[float], labels: int) -> None:
    """Draw equally wide cells; at most so many labels along."""
    from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

    ax.pcolormesh(np.arange(len(xs) + 1) - 0.5, np.arange(len(ys) + 1) - 0.5, shares, vmin=0, vmax=1, cmap=_colour_map(),
                  linewidth=0, gid="heat:phase")  # fmt: skip
    for axis, values, most in ((ax.xaxis, xs, labels), (ax.yaxis, ys, 6)):
        stride = -(-len(values) // most)
        axis.set_major_locator(FixedLocator(list(range(0, len(values), stride))))
        axis.set_major_formatter(FixedFormatter([_tick(v) for v in values[::stride]]))
        axis.set_minor_locator(NullLocator())


def _colour_map() -> Any:
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("ufm", list(COLORS)).with_extremes(bad="#d0d0d0")


def _colours(figure: Any, axes: list[Any], label: str) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    bar = figure.colorbar(ScalarMappable(Normalize(0, 1), _colour_map()), ax=axes, location="right", fraction=0.06, pad=0.02)
    bar.ax.set_label("colours")
    if label:
        bar.set_label(label)
    bar.outline.set_visible(False)


def _threshold(rows: Sequence[dict[str, Any]], along: str, up: str, xs: list[float], ys: list[float]) -> Curve:
    """Return where DNC stops being below zero, in the coordinates of the map (cells are equally wide)."""
    from ufm.theory.deep_scalar import critical

    at = []
    for i, y in enumerate(ys if along in ("lambda_w", "lambda_h") else []):
        options = {**rows[0]["parameters"], up: y}
        power = options["depth"] if along == "lambda_w" else 1
        other = options["lambda_h"] if along == "lambda_w" else options["lambda_w"] ** options["depth"]
        if options.get("lambdas") is not None or options.get("counts") is not None or options["loss"] != "mse":
            break
        # g = (n P K^(L+1))^(1/(L+1)) = g_crit
        edge = critical(options["depth"]) ** (options["depth"] + 1) / options["classes"] ** (options["depth"] + 1)
        value = (edge / options["per_class"] / other) ** (1 / power)
        place = float(np.interp(math.log(value), np.log(xs), np.arange(len(xs)), left=np.nan, right=np.nan))
        at += [(place, i - 0.5), (place, i + 0.5)]
    points = np.array(at, dtype=np.float64).reshape(-1, 2)
    points = points[np.isfinite(points[:, 0])]
    nothing = np.full(len(points), np.nan)
    return Curve("zero", points[:, 0], points[:, 1], nothing, nothing, np.zeros(len(points), int), np.zeros(len(points), bool))


def _notes(rows: Sequence[dict[str, Any]]) -> tuple[str, ...]:
    ends: dict[str, int] = {}
    for row in rows:
        ends[str(row.get("structure") or row["status"])] = ends.get(str(row.get("structure") or row["status"]), 0) + 1
    listed = ", ".join(f"{name} {number}" for name, number in sorted(ends.items(), key=lambda item: -item[1]))
    return (
        f"{len(rows)} random starts, every one counted, whatever became of it: {listed}.",
        f"Below DNC: loss under {BELOW:g} of that of deep neural collapse. No end point is claimed to be the global optimum.",
    )
