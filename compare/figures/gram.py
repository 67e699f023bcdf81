"""The angles between class means: what theory says, what train shows, what test shows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from compare.figures.arrays import classes_note, kept
from compare.figures.drawing import Drawing
from compare.figures.maps import draw_maps, map_rows
from compare.figures.series import COLUMNS
from compare.style import Style

_NEEDED = ("penultimate/train/gram", "penultimate/test/gram")


def draw(table: Mapping[str, Any], style: Style) -> Drawing:
    """Draw cos(mu_i - mu_C, mu_j - mu_C) as heat maps, mean over seeds: the simplex ETF's -1/(K-1), train, test.

    Raises:
        RequestError: several settings, or the run keeps no Gram matrices.
    """
    found = kept(table, "gram", _NEEDED)
    train, test = (np.mean([cosines(gram) for gram in found.each(name)], axis=0) for name in _NEEDED)
    theory = np.full(train.shape, -1 / (len(train) - 1))
    np.fill_diagonal(theory, 1.0)
    maps = {"theory": ("(a) Simplex ETF", theory), "train": ("(b) Train", train), "test": ("(c) Test", test)}
    apart = ~np.eye(len(theory), dtype=bool)
    reach = max(float(np.nanmax(np.abs(m[apart] - theory[apart]))) for m in (train, test)) or 0.01
    limits = (float(theory[0, 1]) - reach, float(theory[0, 1]) + reach)
    with style.applied():
        figure = draw_maps(style, maps, limits, r"$\cos(\mu_i-\mu_C,\ \mu_j-\mu_C)$", ("Class $i$", "Class $j$"))
    rows = [row for name, (_, values) in maps.items() for row in map_rows(name, values, len(found.arrays))]
    notes = [
        f"Mean cosines of the centred class means over {found.seeds()}; the simplex ETF has -1/(K-1) = {theory[0, 1]:.4g}.",
        "Mean |cos + 1/(K-1)|: "
        + ", ".join(f"{name} {np.abs(m - theory)[apart].mean():.3g}" for name, m in (("train", train), ("test", test)))
        + ".",
    ]
    if found.not_etf:
        notes.append(f"Panel a is not the prediction here: {found.not_etf}.")
    return Drawing(figure, COLUMNS, rows, (*notes, *classes_note(len(theory))))


def cosines(gram: np.ndarray) -> np.ndarray:
    """Return the cosines of a Gram matrix; NaN beside a zero vector."""
    norms = np.sqrt(np.diag(gram))
    with np.errstate(invalid="ignore", divide="ignore"):
        return gram / np.outer(norms, norms)
