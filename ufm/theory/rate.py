"""The loss of unit rows in the form in which temperatures compare."""

from __future__ import annotations

import numpy as np


def rate(products: np.ndarray, counts: np.ndarray, temperature: float) -> float:
    """Return -temperature log(loss) of cross-entropy at inner products W h_k (K, K), row = class, counts n_k: (K,).

    The scale-free form of the loss on the sphere: it tends to the smallest one-vs-rest margin as the temperature falls
    (Jiang et al. 2023, arXiv:2310.05351), and is summed in logarithms, so that it has digits where the loss is 0 in float64.

    >>> round(rate(np.array([[1.0, -1.0], [-1.0, 1.0]]), np.ones(2), 5e-4), 6)
    2.0
    """
    gaps = (products - np.diag(products)[:, None]) / temperature
    np.fill_diagonal(gaps, -np.inf)
    above = np.logaddexp.reduce(gaps, axis=1)
    soft = np.logaddexp(0.0, above)
    each = np.where(above < -30, above, np.log(np.maximum(soft, 1e-300)))  # log(1 + e^s) = e^s to rounding
    return -temperature * float(np.logaddexp.reduce(each + np.log(counts / counts.sum())))
