"""Which classes test points are taken for: by the classifier and by the nearest train mean."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from compare.figures.arrays import classes_note, kept
from compare.figures.drawing import Drawing
from compare.figures.maps import draw_maps, map_rows
from compare.figures.series import COLUMNS
from compare.style import Style

_NEEDED = ("test/confusion", "test/labels", "penultimate/test/nearest")


def draw(table: Mapping[str, Any], style: Style) -> Drawing:
    """Draw the share of each class's test points (row) that is taken for another class (column), mean over seeds.

    Raises:
        RequestError: several settings, or the run keeps no confusion matrix.
    """
    found = kept(table, "confusion", _NEEDED)
    classifier = np.mean([shares(counts) for counts in found.each("test/confusion")], axis=0)
    by_mean = np.mean([shares(_counts(arrays, len(classifier))) for arrays in found.arrays.values()], axis=0)
    maps = {"classifier": ("(a) Classifier", classifier), "nearest": ("(b) Nearest train mean", by_mean)}
    apart = ~np.eye(len(classifier), dtype=bool)
    largest = max(float(np.nanmax(m[apart])) for m in (classifier, by_mean)) or 0.01
    with style.applied():
        figure = draw_maps(style, maps, (0.0, largest), "Share of the true class's test points", ("True class", "Decision"))
    rows = [row for name, (_, values) in maps.items() for row in map_rows(name, values, len(found.arrays))]
    agree = np.mean(
        [np.mean(a["test/predicted"] == a["penultimate/test/nearest"]) for a in found.arrays.values() if "test/predicted" in a]
    )
    notes = (
        f"Mean over {found.seeds()} at the last epoch; the diagonal (right decisions) is left out.",
        f"The two decisions agree on {100 * agree:.2f} % of the test points (NC4 on test).",
    )
    return Drawing(figure, COLUMNS, rows, notes + classes_note(len(classifier)))


def _counts(arrays: Mapping[str, np.ndarray], classes: int) -> np.ndarray:
    index = arrays["test/labels"].astype(int) * classes + arrays["penultimate/test/nearest"].astype(int)
    return np.bincount(index, minlength=classes**2).reshape(classes, classes)


def shares(counts: np.ndarray) -> np.ndarray:
    """Return the rows of a confusion matrix as shares; 0 for a class without test points."""
    return counts / np.maximum(counts.sum(1, keepdims=True), 1)
