"""The angles between class means: what theory says, what train shows, what test shows; Gram matrices of a theory sweep."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from compare.figures import gram_theory
from compare.figures.arrays import classes_note, kept
from compare.figures.drawing import Drawing
from compare.figures.gram_predicted import predicted_angles
from compare.figures.maps import draw_maps, map_rows
from compare.figures.series import COLUMNS
from compare.style import Style

LEAST = 0.3  # of the cosines' range 2, from the first to the last colour: less would blow up small distances from theory
_NEEDED = ("penultimate/train/gram", "penultimate/test/gram")


def _heading(what: str, style: Style) -> str:
    return f"(a) Theory: {what}" if style.wide else f"(a) {what[:1].upper()}{what[1:]}"


def draw(table: Mapping[str, Any], style: Style) -> Drawing:
    """Draw the cosines between class means as heat maps, mean over seeds: predicted, train, test.

    Predicted is the optimum at the networks' own regularisation, else the simplex ETF's -1/(K-1) about the means' centre; see
    `compare.figures.gram_predicted`.

    Cells of `ufm simulate single`: the predicted and the found Gram matrices of W and H, see `compare.figures.gram_theory`.

    Raises:
        RequestError: several settings, or the run keeps no Gram matrices.
    """
    if gram_theory.is_theory(table):
        return gram_theory.draw(table, style)
    found = kept(table, "gram", _NEEDED)
    theory = predicted_angles(table, found)
    train, test = (np.mean([theory.of(one, split) for one in found.arrays.values()], axis=0) for split in ("train", "test"))
    maps = {
        "theory": (_heading(theory.title, style), theory.cosines),
        "train": ("(b) Train", train),
        "test": ("(c) Test", test),
    }
    apart = ~np.eye(len(train), dtype=bool)
    middle = float(np.mean(theory.cosines[apart]))
    shown = np.concatenate([m[apart] for m in (theory.cosines, train, test)])
    low = float(np.nanmin(shown))
    limits = (low, max(float(np.nanmax(shown)), low + LEAST))
    label = r"$\cos(\mu_i-\mu_C,\ \mu_j-\mu_C)$" if theory.centred else r"$\cos(\mu_i,\ \mu_j)$"
    with style.applied():
        figure = draw_maps(style, maps, limits, label, ("Class $i$", "Class $j$"))
    rows = [row for name, (_, values) in maps.items() for row in map_rows(name, values, len(found.arrays))]
    about = "their centre" if theory.centred else "the origin"
    away = {name: np.abs(m - theory.cosines)[apart].mean() for name, m in (("train", train), ("test", test))}
    notes = [
        f"Mean cosines of the class means about {about} over {found.seeds()}; mean predicted cosine {middle:.4g}.",
        "Mean |cos - predicted|: " + ", ".join(f"{name} {value:.3g}" for name, value in away.items()) + ".",
        *theory.notes,
    ]
    return Drawing(figure, COLUMNS, rows, (*notes, *classes_note(len(train))))
