"""The cascade: separation falls by one factor per layer on train; on test the same law stops at the error."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.ticker import FixedLocator, NullLocator

from compare.figures import head_layers
from compare.figures.axes import NC1, Legend, LogAxis, draw_curve, finish, panels, title
from compare.figures.drawing import Drawing
from compare.figures.heads import deep_cells
from compare.figures.series import COLUMNS, Curve, Measured, curve, excluded_note, facts, one_setting, seed_counts, t_half_width
from compare.style import LOOKS, Look, Style, escape, shades
from ufm.errors import RequestError

EPOCHS = 4  # at most: more shades of one colour are not told apart in print
_MARKERS = "o^Ds"
# the first of these that was measured: (measure, centres)
_SEPARATION = {"train": [("nc1_pinv", "self")], "test": [("nc1_pinv_strong", "train"), ("nc1_pinv", "self")]}
_ERROR = {"train": [("ncc_error", "self"), ("ncc_error", "train")], "test": [("ncc_error", "train"), ("ncc_error", "self")]}


@dataclass(frozen=True)
class Fit:
    """D_l = `start` * `rho`^l by least squares on log D; `pearson` of (l, log D), `half` the t half-width of rho over seeds."""

    start: float
    rho: float
    pearson: float
    half: float

    def at(self, depth: np.ndarray) -> np.ndarray:
        """Return the law at the given depths."""
        return self.start * self.rho**depth


def draw(table: Mapping[str, Any], style: Style) -> Drawing:
    """Draw NC1 (top) and the nearest-class-mean error (bottom) against depth, train (left) and test (right), at up to 4 epochs.

    Train, last epoch: the log-linear fit D_l = D_0 rho^l (He & Su 2023) with rho and Pearson's r. Test: D_0 rho^l + 2 err,
    two parameters from train and the third from the test error.

    Trainings with a deep head are drawn by `head_layers` instead: every layer of the head beside the deep model's structures.

    Raises:
        RequestError: several settings, or fewer than two layers.
    """
    if deep_cells(table):
        return head_layers.draw(table, style)
    rows = one_setting(table, "layers")
    names = [name for name in rows.distinct("layer") if name not in ("network", "logits")]
    if len(names) < 2:
        raise RequestError(f"the rows have {len(names)} layer(s) and a cascade needs two or more; run with --layers all")
    # The run writes layers in the order of the forward pass; only the two special keys have a fixed place.
    names.sort(key=lambda name: {"input": -1, "penultimate": 1}.get(name, 0))
    rows = with_depth(rows, names)
    epochs = chosen_epochs(rows.where(measure="nc1_pinv").distinct("epoch") or rows.distinct("epoch"))
    separation = {split: _curves(rows, _SEPARATION[split], split, epochs, None) for split in _SEPARATION}
    error = {split: _curves(rows, _ERROR[split], split, epochs, facts(table).samples(split)) for split in _ERROR}
    if not any(c for curves in separation.values() for c in curves):
        raise RequestError("the rows hold no nc1_pinv by layer; draw a run of `empirical run collapse --layers all`")
    fit = fit_cascade(rows.where(measure="nc1_pinv", split="train", centres="self", epoch=epochs[-1])) if epochs else None
    laws = _laws(fit, len(names), error["test"][-1] if error["test"] else None)
    with style.applied():
        figure = _draw(style, separation, error, laws, epochs, fit, len(names))
    found = [(f"nc1_{split}", separation[split]) for split in separation] + [(f"error_{split}", error[split]) for split in error]
    out = [row for panel, curves in found for c in curves for row in c.rows(panel)]
    out += [row for split, law in laws.items() for row in law.rows(f"nc1_{split}")]
    return Drawing(figure, COLUMNS, out, _notes(names, fit, separation, laws) + excluded_note(table))


def with_depth(rows: Measured, names: Sequence[str]) -> Measured:
    """Add the column `depth`: the layer's place in the network, NaN for what is no layer."""
    place = {name: float(i) for i, name in enumerate(names)}
    depth = np.array([place.get(name, np.nan) for name in rows["layer"]])
    return Measured({**rows.columns, "depth": depth})


def chosen_epochs(epochs: Sequence[float]) -> list[float]:
    """Return at most 4 of the epochs: the first, the last, and two between them at equal ratios."""
    ordered = sorted(epochs)
    if len(ordered) <= EPOCHS:
        return ordered
    later = np.array([e for e in ordered if e > 0])
    inner = np.geomspace(later[0], later[-1], EPOCHS)[1:-1]
    middle = [float(later[np.abs(np.log(later / e)).argmin()]) for e in inner]
    return sorted({ordered[0], *middle, ordered[-1]})


def fit_cascade(rows: Measured) -> Fit | None:
    """Fit the log-linear law to the seeds' geometric mean; None with fewer than two positive values."""
    mean = curve(rows, "", along="depth")
    good = (mean.value > 0) & ~mean.censored if len(mean.x) else np.zeros(0, bool)
    if good.sum() < 2:
        return None
    slope, start = np.polyfit(mean.x[good], np.log(mean.value[good]), 1)
    constant = np.ptp(np.log(mean.value[good])) == 0
    pearson = np.nan if constant else np.corrcoef(mean.x[good], np.log(mean.value[good]))[0, 1]
    slopes = []
    for seed in np.unique(rows["seed"]):
        own = rows.where(seed=float(seed))
        keep = (own["value"] > 0) & np.isfinite(own["depth"])
        if len(np.unique(own["depth"][keep])) >= 2:
            slopes.append(np.exp(np.polyfit(own["depth"][keep], np.log(own["value"][keep]), 1)[0]))
    return Fit(float(np.exp(start)), float(np.exp(slope)), float(pearson), t_half_width(np.array(slopes)))


def _curves(
    rows: Measured, wanted: Sequence[tuple[str, str]], split: str, epochs: Sequence[float], samples: float | None
) -> list[Curve]:
    for measure, centres in wanted:
        some = rows.where(measure=measure, split=split, centres=centres)
        curves = [curve(some.where(epoch=e), f"{measure}:{centres}:epoch {e:g}", along="depth", rate_of=samples) for e in epochs]
        if any(curves):
            return curves
    return []


def _laws(fit: Fit | None, layers: int, error: Curve | None) -> dict[str, Curve]:
    """Return the train law and, where the test error is known at every layer, the saturating test law."""
    if fit is None:
        return {}
    overhang = 0.04 * layers  # so that a law shows even where it lies on the data
    depth = np.linspace(-overhang, layers - 1 + overhang, 8 * (layers - 1) + 1)
    laws = {"train": _law("law: D0 rho^l", depth, fit.at(depth))}
    if error and np.isfinite(error.value).all():
        laws["test"] = _law("law: D0 rho^l + 2 err", depth, fit.at(depth) + 2 * error.value[-1])
    return laws


def _law(key: str, x: np.ndarray, value: np.ndarray) -> Curve:
    nothing = np.full(len(x), np.nan)
    return Curve(key, x, value, nothing, nothing, np.zeros(len(x), int), np.zeros(len(x), bool))


def _draw(
    style: Style, separation: Any, error: Any, laws: Mapping[str, Curve], epochs: Sequence[float], fit: Fit | None, layers: int
) -> Any:
    figure, grid = panels(style, 2, 2, 0.30 * style.width if style.wide else 0.46 * style.width, sharex=True, sharey="row")
    legend = Legend()
    axes = [
        LogAxis.over([*separation["train"], *separation["test"], *laws.values()]),
        LogAxis.over([*error["train"], *error["test"]]),
    ]
    fitted = r"Fit, train: $D_0\,\rho^l$" + (_remark(fit) if fit is not None else "")
    labels = {"train": fitted, "test": r"Theory, test: fit $+\ 2\,$err"}
    for row, (curves, axis) in enumerate(zip((separation, error), axes, strict=True)):
        for column, split in enumerate(("train", "test")):
            ax = grid[row, column]
            axis.apply(ax)
            _epochs(ax, curves[split], split, epochs, axis, legend)
            if row == 0 and split in laws:
                draw_curve(ax, laws[split], LOOKS["optimum" if split == "train" else "theory"], axis, legend, labels[split])
            if not any(curves[split]):
                ax.text(0.5, 0.5, "not measured", transform=ax.transAxes, ha="center", va="center", color="#666666")
            title(ax, f"{('nc1', 'error')[row]}_{split}", f"({'abcd'[2 * row + column]}) {('NC1', 'Error')[row]}, {split}")
            depth_axis(ax, layers)
    grid[0, 0].set_ylabel(NC1)
    grid[1, 0].set_ylabel("Nearest-mean error")
    every = [c for group in (separation, error) for curves in group.values() for c in curves]
    if any(np.isfinite(c.low).any() for c in every):
        legend.band(f"95 % interval, {seed_counts(every)}")
    finish(figure, style, legend, "Layer $l$ (last: penultimate); training at fixed $n$")
    return figure


def _epochs(ax: Any, curves: Sequence[Curve], split: str, epochs: Sequence[float], axis: LogAxis, legend: Legend) -> None:
    own, keys = Legend(), shades(len(epochs), "")
    for index, (one, epoch, color) in enumerate(zip(curves, epochs, shades(len(epochs), split), strict=False)):
        look = Look(color, LOOKS[split].dashes, _MARKERS[index], LOOKS[split].width)
        label = f"Epoch {epoch:g}" + (" (untrained)" if epoch == 0 else "")
        draw_curve(ax, one, look, axis, own, label, zero_size=6.5 - 1.5 * index)
        if one:
            legend.line(split.capitalize(), LOOKS[split])
            legend.mark(label, marker=_MARKERS[index], color=keys[index], markeredgecolor="white")
    for label, mark in own.marks.items():
        legend.marks.setdefault(label, mark)


def _remark(fit: Fit) -> str:
    """Return rho with as many decimals as its interval allows."""
    digits = min(5, max(2, -math.floor(math.log10(fit.half)))) if np.isfinite(fit.half) and fit.half > 0 else 3
    spread = rf"\pm{fit.half:.{digits}f}" if np.isfinite(fit.half) else ""
    return rf", $\rho={fit.rho:.{digits}f}{spread}$"


def depth_axis(ax: Any, layers: int) -> None:
    """Set the horizontal axis: one tick a layer, thinned to ten."""
    stride = -(-layers // 10)
    ax.set_xlim(-0.04 * layers - 0.05, layers - 1 + 0.04 * layers + 0.05)
    ax.xaxis.set_major_locator(FixedLocator(list(range(0, layers, stride))))
    ax.xaxis.set_minor_locator(NullLocator())


def _notes(names: Sequence[str], fit: Fit | None, separation: Any, laws: Mapping[str, Curve]) -> tuple[str, ...]:
    every = [c for curves in separation.values() for c in curves]
    notes = [
        "Layers: " + ", ".join(f"{i} {escape(name)}" for i, name in enumerate(names)) + ".",
        f"Means over {seed_counts(every)} with 95 % Student-t intervals (NC1: of the log mean; errors: and the sample's).",
    ]
    if fit is not None:
        notes.append(
            f"Fit to train at the last epoch, D_l = D_0 rho^l: rho = {fit.rho:.4g} (95 % half-width over seeds "
            f"{fit.half:.2g}), r = {fit.pearson:.4f}."
        )
    if "test" in laws:
        notes.append(
            "Test law D_0 rho^l + 2 err: D_0 and rho from train, err the last layer's test error; nothing is fitted to test NC1."
        )
    notes.append("Limits: training time grows at a fixed training set (t, then n).")
    return tuple(notes)
