"""Margins and coherence of class means on the sphere: the measures of generalised neural collapse (Jiang et al. 2023)."""

from __future__ import annotations

import math

import numpy as np

from ufm.geometry import one_vs_rest_margins
from ufm.measure.algebra import cosines


def unit_rows(rows: np.ndarray) -> np.ndarray:
    """Return the rows scaled to norm 1; a zero row becomes nan."""
    norms = np.linalg.norm(rows, axis=1)
    return rows / np.where(norms > 0, norms, np.nan)[:, None]


def gram_coherence(centred: np.ndarray) -> float:
    """Return the largest cosine between two of the centred class means (K, d), in [-1/(K-1), 1]."""
    values = cosines(centred)
    np.fill_diagonal(values, -np.inf)
    return float(values.max()) if np.isfinite(values[~np.eye(len(values), dtype=bool)]).all() else math.nan


def gnc_margin(centred: np.ndarray) -> float:
    """Return min_k dist(u_k, conv{u_j : j != k}) of the unit centred means (K, d): K/(K-1) at the simplex, its maximum."""
    unit = unit_rows(np.asarray(centred, dtype=np.float64))
    return float(one_vs_rest_margins(unit).min()) if np.isfinite(unit).all() else math.nan


def hardmax_margin(weight: np.ndarray, centred: np.ndarray) -> float:
    """Return min over k and j != k of (w_k - w_j).u_k with unit rows w, u (K, d): K/(K-1) at the simplex with W = M."""
    scores = unit_rows(centred) @ unit_rows(weight).T
    gaps = np.diag(scores)[:, None] - scores
    np.fill_diagonal(gaps, np.inf)
    return float(gaps.min()) if not np.isnan(gaps).any() else math.nan
