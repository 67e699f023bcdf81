"""How many directions a set of features, or a weight, really uses."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ufm.measure.arrays import as_matrix

NUMERIC = 1e-2  # a singular value counts when it is above this share of the largest


def spectrum(matrix: Any) -> np.ndarray:
    """Return the singular values of `matrix` (m, d), descending, float64. RequestError for a wrong shape or an infinite entry."""
    return np.linalg.svd(as_matrix(matrix, (None, None), "matrix"), compute_uv=False)


def rank_effective(values: np.ndarray) -> float:
    """Return exp(-sum p log p), p = s/sum s, of singular values: between 1 and their number. Roy and Vetterli (2007)."""
    total = values.sum()
    if not total > 0:
        return math.nan
    p = values[values > 0] / total
    return float(np.exp(-(p * np.log(p)).sum()))


def rank_stable(values: np.ndarray) -> float:
    """Return sum s^2 / max s^2 of singular values: between 1 and their number."""
    top = values.max(initial=0.0)
    return float(((values / top) ** 2).sum()) if top > 0 else math.nan


def rank_numeric(values: np.ndarray) -> float:
    """Return the number of singular values above 1e-2 of the largest."""
    top = values.max(initial=0.0)
    return float((values > NUMERIC * top).sum()) if top > 0 else math.nan


def ranks(values: np.ndarray) -> dict[str, float]:
    """Return the three ranks of a vector of singular values by name."""
    return {
        "rank_effective": rank_effective(values),
        "rank_stable": rank_stable(values),
        "rank_numeric": rank_numeric(values),
    }
