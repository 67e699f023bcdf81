"""Exact frames, codes and graphs: the geometries that theorems predict, in closed form. A leaf: numpy only.

Codes are returned as rows (K, d) of unit norm; turn one with an orthogonal matrix for a random copy.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ufm.errors import RequestError


def simplex_etf(classes: int, dim: int | None = None) -> np.ndarray:
    """Return the simplex equiangular tight frame, (K, d): unit rows with cosines -1/(K-1), their sum zero.

    `dim` >= K - 1 (default K - 1).
    """
    k = _integer(classes, "classes", 2)
    d = k - 1 if dim is None else _integer(dim, "dim", k - 1, f"a simplex of {k} classes needs d >= K - 1")
    rows = np.zeros((k, d))
    for i in range(k - 1):  # row i keeps what the earlier coordinates left of its unit norm
        rows[i, i] = np.sqrt((k * (k - 1 - i)) / ((k - 1) * (k - i)))
        rows[i + 1 :, i] = -rows[i, i] / (k - 1 - i)
    return rows


def one_vs_rest_margins(code: Any) -> np.ndarray:
    """Return rho_k = dist(w_k, conv{w_j : j != k}) = max over |h| <= 1 of min_j (w_k - w_j).h, (K,), for the rows of `code` (K, d).

    With V = [w_k - w_j] (d, K-1) the nearest point of the hull is V y, y = x/sum x, where x >= 0 minimises
    |[V; 1^T] x - [0; 1]|: one non-negative least-squares problem, solved exactly. Jiang et al. (2023), eq. of the softmax code.
    """
    rows = _code(code)
    if len(rows) < 2:
        raise RequestError("a code of one row has no margin; pass at least two rows")
    margins = np.empty(len(rows))
    for k in range(len(rows)):
        gaps = rows[k] - np.delete(rows, k, axis=0)
        scale = np.abs(gaps).max()
        if scale == 0:
            margins[k] = 0.0
            continue
        stacked = np.concatenate([gaps.T / scale, np.ones((1, len(gaps)))])
        x = nonnegative_least_squares(stacked, np.append(np.zeros(rows.shape[1]), 1.0))
        margins[k] = np.linalg.norm(x @ gaps) / x.sum()
    return margins


def nonnegative_least_squares(matrix: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Return argmin over x >= 0 of |matrix x - target| by the active-set method of Lawson and Hanson (1974, chapter 23)."""
    count = matrix.shape[1]
    x, free = np.zeros(count), np.zeros(count, dtype=bool)
    slack = 10 * max(matrix.shape) * np.finfo(float).eps * np.abs(matrix).max() * max(np.linalg.norm(target), 1.0)
    for _ in range(10 * count + 10):
        gain = matrix.T @ (target - matrix @ x)
        gain[free] = -np.inf
        if free.all() or gain.max() <= slack:
            return x
        free[int(gain.argmax())] = True
        while True:
            trial = np.zeros(count)
            trial[free] = np.linalg.lstsq(matrix[:, free], target, rcond=None)[0]
            if (trial[free] > 0).all():
                break
            block = free & (trial <= 0)
            step = (x[block] / (x[block] - trial[block])).min()
            x = np.maximum(x + step * (trial - x), 0.0)
            free &= x > 0
            free[block & (x <= np.finfo(float).eps * np.abs(x).max(initial=0.0))] = False
            x[~free] = 0.0
            if not free.any():
                return x
        x = trial
    return x


def _integer(value: Any, name: str, low: int, rule: str = "") -> int:
    if isinstance(value, bool) or not np.isscalar(value) or int(value) != value or value < low:
        raise RequestError(f"{name} is {value!r}; {rule or f'it must be an integer >= {low}'}: pass at least {low}")
    return int(value)


def _code(code: Any) -> np.ndarray:
    rows = np.asarray(code, dtype=np.float64)
    if rows.ndim != 2 or rows.size == 0 or not np.isfinite(rows).all():
        raise RequestError(f"code has shape {rows.shape}; it must be (K, d) and finite: one row for each class")
    return rows
