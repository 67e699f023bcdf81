"""Which Gram matrix of class means theory predicts for a training: the calibrated one where it applies, else the simplex ETF."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from compare.figures.arrays import Kept

_TITLES = {"etf": "simplex ETF", "of": "orthogonal", "gof": "orthogonal"}
_ZERO = 1e-9  # share of the common mean below which the predicted means are centred


@dataclass(frozen=True)
class Expected:
    """The predicted cosines (K, K), of class means about their centre or about the origin, and what it is called."""

    title: str
    cosines: np.ndarray
    centred: bool
    notes: tuple[str, ...] = ()

    def of(self, arrays: Mapping[str, np.ndarray], split: str) -> np.ndarray:
        """Return the measured cosines of one seed's split, in the same convention."""
        if self.centred:
            return cosines(arrays[f"penultimate/{split}/gram"])
        means = arrays[f"penultimate/{split}/means"]
        return cosines(means @ means.T)


def predicted_angles(table: Mapping[str, Any], found: Kept) -> Expected:
    """Return the prediction for a training's class means.

    The optimum at the network's own regularisation (`compare.calibrate`), whose means may have a common part: then cosines are
    about the origin, because about the centre an orthogonal frame is a simplex ETF too. Without one the simplex ETF, about the
    centre, with the reason.
    """
    from compare.calibrate import STRUCTURES, expected

    cell = table.cells[found.cell]  # type: ignore[attr-defined]
    classes = len(next(iter(found.arrays.values()))["penultimate/train/gram"])
    grams, distances, name, reason = [], [], "", ""
    for seed, arrays in found.arrays.items():
        head, problem, prediction, why = expected(cell, seed)
        if head is None or problem is None or prediction is None or prediction.zero or "penultimate/test/means" not in arrays:
            reason = why or "the zero solution is predicted, which has no angles"
            continue
        gram, means = np.asarray(prediction.gram_h), head.means
        grams.append(gram)
        distances.append(float(np.linalg.norm(means @ means.T - gram) / np.linalg.norm(gram)))
        name = f"{STRUCTURES.get(prediction.name, prediction.name)}, {problem.features} features"
        title = _TITLES.get(prediction.name, "own optimum")
    if len(grams) < len(found.arrays):
        simplex = np.where(np.eye(classes, dtype=bool), 1.0, -1 / (classes - 1))
        wrong = (f"Panel a is not the prediction here: {found.not_etf}.",) if found.not_etf else ()
        return Expected("simplex ETF", simplex, True, (*wrong, f"No prediction at the network's own regularisation: {reason}."))
    gram = np.mean(grams, axis=0)
    away = f"Relative distance of the train means' Gram matrix to it, lengths included: {np.mean(distances):.3g}."
    note = f"Panel a is the optimum at the networks' own regularisation: {name}."
    return Expected(title, cosines(gram), abs(float(gram.mean())) <= _ZERO * float(np.trace(gram)) / classes, (note, away))


def cosines(gram: np.ndarray) -> np.ndarray:
    """Return the cosines of a Gram matrix; NaN beside a zero vector."""
    norms = np.sqrt(np.diag(gram))
    with np.errstate(invalid="ignore", divide="ignore"):
        return gram / np.outer(norms, norms)
