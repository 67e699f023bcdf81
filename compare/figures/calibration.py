"""The optimum at a network's own regularisation beside the network: logits and Gram matrices, predicted and measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from compare import last_layer
from compare.calibrate import STRUCTURES, expected
from compare.figures.arrays import Kept, classes_note, kept
from compare.figures.axes import Legend, finish, make_square, panels, title
from compare.figures.drawing import Drawing
from compare.figures.maps import COLORS, colour_bar, draw_map, map_rows
from compare.figures.series import COLUMNS, excluded_note
from compare.style import Style
from ufm.errors import RequestError

_NEEDED = ("weight", "penultimate/train/means")
NAMES = {"logits": "Logits", "W W^T": "$WW^{T}$", "M M^T": "$MM^{T}$"}
_OWN = "own class"  # mark of the diagonal's rows in the CSV


@dataclass(frozen=True)
class Pair:
    """One matrix in units of its largest predicted entry, mean over seeds, and the mean relative distance."""

    predicted: np.ndarray
    measured: np.ndarray
    distance: float
    parts: last_layer.Parts  # of the seeds' mean


def draw(table: Mapping[str, Any], style: Style) -> Drawing:
    """Draw logits of the class means, W W^T and M M^T: of the optimum at the network's own regularisation, and as measured.

    The features' decay is inferred from lambda_w |W|^2 = lambda_h sum_i |h_i|^2 (`compare.calibrate`); nothing is fitted. Each
    pair is in units of its largest predicted entry; the title of the measured one says |A - A*| / |A*|. Means over seeds.

    Raises:
        RequestError: several settings, no arrays, or no prediction for this training (the reason is said).
    """
    found = kept(table, "calibration", _NEEDED)
    cell = table.cells[found.cell]  # type: ignore[attr-defined]
    each, described, refused = [], "", {}
    for seed in found.arrays:
        head, problem, prediction, reason = expected(cell, seed)
        if head is None or problem is None or prediction is None or prediction.zero:
            refused[seed] = reason or "the zero solution is predicted"
            continue
        each.append(last_layer.compared(head, prediction, problem.loss))
        described = f"{STRUCTURES.get(prediction.name, prediction.name)}, {problem.features} features; {prediction.status}"
    if not each:
        raise RequestError(f"no prediction at the network's own regularisation: {next(iter(refused.values()))}")
    pairs = {name: _pair([one[name] for one in each]) for name in NAMES}
    with style.applied():
        figure = _draw(style, pairs)
    rows = [
        row
        for name, pair in pairs.items()
        for kind, values in (("predicted", pair.predicted), ("measured", pair.measured))
        for row in _rows(f"{name} {kind}", values, len(each))
    ]
    classes = len(each[0]["logits"][0])
    return Drawing(figure, COLUMNS, rows, _notes(pairs, described, found, refused) + classes_note(classes) + excluded_note(table))


def _pair(seeds: list[tuple[np.ndarray, np.ndarray]]) -> Pair:
    units = [float(np.abs(wanted).max()) or 1.0 for _, wanted in seeds]
    measured, predicted = (np.mean([one[side] / unit for one, unit in zip(seeds, units, strict=True)], axis=0) for side in (0, 1))
    away = [float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted)) for found, wanted in seeds]
    return Pair(predicted, measured, float(np.mean(away)), last_layer.parts(measured, predicted))


def _rows(panel: str, values: np.ndarray, seeds: int) -> list[tuple[Any, ...]]:
    own = [(panel, f"class {i}", float(i), float(v), np.nan, np.nan, seeds, _OWN) for i, v in enumerate(np.diag(values))]
    return map_rows(panel, values, seeds) + own[: len(values)]


def _draw(style: Style, pairs: Mapping[str, Pair]) -> Any:
    from matplotlib.colors import LinearSegmentedColormap, Normalize

    # Predicted above measured where there is room for three columns, else side by side.
    order = [(name, kind) for kind in ("predicted", "measured") for name in pairs]
    if not style.wide:
        order = [(name, kind) for name in pairs for kind in ("predicted", "measured")]
    columns = 3 if style.wide else 2
    figure, grid = panels(style, 6 // columns, columns, (style.width - 0.5) / columns + 0.35 + 0.6 * columns / 6)
    shown = np.concatenate([m.ravel() for pair in pairs.values() for m in (pair.predicted, pair.measured)])
    norm = Normalize(float(shown.min()), max(float(shown.max()), float(shown.min()) + 0.01))
    colors, mesh = LinearSegmentedColormap.from_list("ufm", list(COLORS)), None
    for index, ((name, kind), ax) in enumerate(zip(order, grid.ravel(), strict=True)):
        pair, letter = pairs[name], "abcdef"[index]
        said = NAMES[name] if kind == "predicted" else f"Distance {pair.distance:.2g}"
        title(ax, f"{name} {kind}", f"({letter}) {said}")
        values = pair.predicted if kind == "predicted" else pair.measured
        mesh = draw_map(ax, values, norm, colors, f"{name} {kind}", diagonal=True)
        if index % columns:
            ax.tick_params(labelleft=False)
        else:
            ax.set_ylabel(f"{kind.capitalize()}\nClass $i$" if style.wide else "Class $i$")
        if index >= 6 - columns:
            ax.set_xlabel("Class $j$" if style.wide else f"{kind.capitalize()}, class $j$")
    colour_bar(figure, mesh, grid.ravel(), "Entry / largest predicted one", 0.05)
    make_square(figure, grid[0, 0])
    finish(figure, style, Legend())
    return figure


def _notes(pairs: Mapping[str, Pair], described: str, found: Kept, refused: Mapping[int, str]) -> tuple[str, ...]:
    notes = [
        f"Predicted: the optimum at the networks' own regularisation ({described}); means over {found.seeds()}.",
        "Each pair is divided by its largest predicted entry; logits of the class means less their mean over outputs where the "
        "loss does not see it; M: class means, not centred.",
    ]
    for name, pair in pairs.items():
        shares = f"{pair.parts.scale:.0%} one common factor"
        if np.isfinite(pair.parts.alike):
            shares += f", {pair.parts.alike:.0%} common to all classes, {pair.parts.classes:.0%} differences between classes"
        notes.append(f"{name}: relative distance {pair.distance:.3g}; of the square of the mean over seeds {shares}.")
    if refused:
        notes.append(f"Of these without a prediction: seed {', '.join(map(str, refused))} ({next(iter(refused.values()))}).")
    return tuple(notes)
