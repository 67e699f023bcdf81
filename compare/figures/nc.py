"""NC1 to NC4 over training: four panels, train and test, each with its value at the unconstrained-features optimum."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from compare.figures.axes import NC1, Legend, LogAxis, draw_curve, finish, panels, time_axis, title, zero_line
from compare.figures.calibrated import LABEL, Calibrated, calibrated, level
from compare.figures.drawing import Drawing
from compare.figures.series import (
    COLUMNS,
    Curve,
    Facts,
    Measured,
    abscissa,
    curve,
    excluded_note,
    facts,
    last_layer,
    one_setting,
    seed_counts,
)
from compare.style import LOOKS, Style
from ufm.errors import RequestError

# panel -> (title, axis label, the measure, its classifier-weight twin, whether it is a rate)
PANELS = {
    "nc1": ("NC1: variability", NC1, "nc1_pinv", "", False),
    "nc2": ("NC2: simplex ETF", r"$\|\hat G-\hat G_{\mathrm{ETF}}\|_F$", "nc2_etf_means", "nc2_etf_weights", False),
    "nc3": ("NC3: self-duality", r"$\|\hat W-\hat M\|_F^2$", "nc3_papyan", "", False),
    "nc4": ("NC4: nearest mean", "Disagreeing share", "nc4_disagreement", "", True),
}
OPTIMUM = "Theory, train: 0 (simplex ETF)"
FITTED = 1e-3  # train error from which on the training set counts as fitted (Papyan et al. 2020: 99.9 % right)
_TERMINAL = {"color": "#8a8a8a", "linestyle": (0, (1.0, 2.0)), "linewidth": 0.9}
Panel = tuple[str, str, str, str, bool]


def draw(table: Mapping[str, Any], style: Style) -> Drawing:
    """Draw NC1 (`nc1_pinv`), NC2 (`nc2_etf_means`, `_weights`), NC3 (`nc3_papyan`), NC4 (`nc4_disagreement`) against the epoch.

    Every one is 0 at the optimum of the balanced unconstrained-features model with d >= K - 1; theory says so of train alone.
    Where the optimum at the network's own regularisation (`compare.calibrate`) is another structure, its NC2 and NC3 are drawn
    instead. Without it the line is left out where the table's column `predicted` says that 0 does not apply to the setting.
    A grey line marks where the train error has come to stay at or under 0.1 %, the beginning of the terminal phase.
    Test values are about the test set's own means (NC4: its own class means too).

    Raises:
        RequestError: several settings, or none of the four measures.
    """
    rows = one_setting(table, "nc")
    along, layer = abscissa(rows), last_layer(rows)
    found = {name: _curves(rows, layer, along, spec, facts(table)) for name, spec in PANELS.items()}
    own = calibrated(table, rows.distinct("cell")[0]) if rows.distinct("cell") else None
    theory = {name: _theory(rows, spec, found[name], own) for name, spec in PANELS.items()}
    every = [c for curves in found.values() for c in curves.values()]
    if not any(every):
        raise RequestError(
            "the rows hold none of nc1_pinv, nc2_etf_means, nc3_papyan, nc4_disagreement; draw a run of `empirical run collapse`"
        )
    with style.applied():
        figure, grid = panels(style, 2, 2, 0.30 * style.width if style.wide else 0.46 * style.width, sharex=True)
        legend = Legend()
        terminal = _terminal(rows, along)
        for ax, letter, (name, spec) in zip(grid.ravel(), "abcd", PANELS.items(), strict=True):
            _panel(ax, spec, found[name], legend, theory[name])
            title(ax, name, f"({letter}) {spec[0]}")
            label = time_axis(ax, every, along)
            if terminal is not None:
                ax.axvline(terminal, zorder=1.2, gid="decoration", label="_", **_TERMINAL)
        if terminal is not None:
            legend.rule(rf"Train error $\leq{100 * FITTED:g}\,\%$ from here on", **_TERMINAL)
        if any(np.isfinite(c.low).any() for c in every):
            legend.band(f"95 % interval, {seed_counts(every)}")
        finish(figure, style, legend, label)
    table_rows = [row for name, curves in found.items() for c in curves.values() for row in c.rows(name)]
    table_rows += [row for name, lines in theory.items() for c in lines.levels for row in c.rows(name)]
    table_rows += [
        (name, "theory", np.nan, 0.0, np.nan, np.nan, 0, "theory")
        for name, curves in found.items()
        if any(curves.values()) and theory[name].zero
    ]
    told = (own.note(),) if own and any(lines.levels for lines in theory.values()) else ()
    return Drawing(figure, COLUMNS, table_rows, _notes(every, found, theory) + told + excluded_note(table))


def _terminal(rows: Measured, along: str) -> float | None:
    """Return the first measurement from which on the mean train error stays at most FITTED; None if it never does, or at once."""
    error = curve(rows.where(measure="error", split="train", layer="network"), "train_error", along=along, rate_of=np.nan)
    above = np.flatnonzero(~(error.value <= FITTED)) if error else np.zeros(0, int)
    after = int(above[-1]) + 1 if len(above) else len(error.x)
    return float(error.x[after]) if after < len(error.x) else None


@dataclass(frozen=True)
class _Theory:
    """What theory says of one panel: zero, horizontal lines above it, or (neither) nothing."""

    zero: bool
    levels: tuple[Curve, ...] = ()


def _theory(rows: Measured, spec: Panel, curves: Mapping[str, Curve], own: Calibrated | None) -> _Theory:
    _, _, measure, weights, _ = spec
    if own is None or measure not in own.geometry:
        return _Theory(_applies(rows, measure))
    levels = [
        level(f"theory:{name}", own.geometry[name], list(curves.values()))
        for name in (measure, weights)
        if own.geometry.get(name)
    ]
    return _Theory(own.geometry[measure] == 0, tuple(c for c in levels if c))


def _curves(rows: Measured, layer: str, along: str, spec: Panel, known: Facts) -> dict[str, Curve]:
    _, _, name, weights, is_rate = spec
    found = {}
    for split in ("train", "test"):
        some = rows.where(measure=name, split=split, layer=layer, centres="self")
        found[split] = curve(some, f"{split}:{name}", along=along, rate_of=known.samples(split) if is_rate else None)
    if weights:
        found["weights"] = curve(_first_split(rows.where(measure=weights)), f"weights:{weights}", along=along)
    return found


def _first_split(rows: Measured) -> Measured:
    """The classifier's weight is one thing however many splits and layers report it."""
    for column in ("split", "layer", "centres"):
        rows = rows.where(**{column: rows.distinct(column)[0]}) if rows.distinct(column) else rows
    return rows


def _applies(rows: Measured, measure: str) -> bool:
    """Return whether theory predicts 0 for a measure on train; a table without any prediction leaves that to its reader."""
    predicted = rows["predicted"]
    if not np.isfinite(predicted).any():
        return True
    return bool((predicted[(rows["measure"] == measure) & (rows["split"] == "train")] == 0).any())


def _panel(ax: Any, spec: Panel, curves: Mapping[str, Curve], legend: Legend, theory: _Theory) -> None:
    axis = LogAxis.over([*curves.values(), *theory.levels], zero=theory.zero)
    axis.apply(ax)
    for key, label, look in [
        ("train", "Train", "train"),
        ("test", "Test, own means", "test"),
        ("weights", "Classifier weights", "weights"),
    ]:
        if key in curves:
            draw_curve(ax, curves[key], LOOKS[look], axis, legend, label)
    if any(curves.values()) and theory.zero:
        zero_line(ax, axis, LOOKS["optimum"], legend, OPTIMUM)
    for line in theory.levels:
        of_weights = line.key == f"theory:{spec[3]}"
        draw_curve(
            ax, line, LOOKS["floor" if of_weights else "gaussian"], axis, legend, LABEL + (", weights" if of_weights else "")
        )
    if not any(curves.values()):
        ax.text(0.5, 0.5, "not measured", transform=ax.transAxes, ha="center", va="center", color="#666666")
    ax.set_ylabel(spec[1])


def _notes(every: list[Curve], found: Mapping[str, Mapping[str, Curve]], theory: Mapping[str, _Theory]) -> tuple[str, ...]:
    notes = [
        f"Geometric means (NC4: arithmetic if it reaches 0) over {seed_counts(every)}, 95 % t intervals of the log mean.",
        "G: unit-Frobenius Gram of the centred class means (or of the classifier's rows); "
        "W, M: unit-Frobenius weights and centred means.",
        "Limits: training time grows at a fixed training set (t, then n). Epoch 0 is the untrained network; "
        "theory speaks of train alone.",
    ]
    missing = [name.upper() for name, curves in found.items() if not any(curves.values())]
    silent = [name.upper() for name, lines in theory.items() if not lines.zero and not lines.levels]
    if silent:
        notes.append(f"The optimum of this setting is not a simplex ETF, so theory does not say 0 of {', '.join(silent)}.")
    if missing:
        notes.append(f"Not measured: {', '.join(missing)}.")
    return tuple(notes)
