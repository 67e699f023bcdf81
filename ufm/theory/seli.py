"""lambda -> 0 of imbalanced cross-entropy: simplex-encoded labels interpolation (SELI), and its cost-sensitive version.

The UFM-SVM  min |Z diag(sqrt n)|_*  subject to margins >= 1  has the solution Z = Pi for every imbalance; with logits
multiplied by delta (CDT), Z = (I - v v^T) diag(1/delta), v ~ 1/delta. The polar factor of the optimum is the square root of
an M-matrix (a graph Laplacian in the harmonic weights), so every dual multiplier is positive: a certificate for all n, delta.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ufm.errors import RequestError
from ufm.prediction import Prediction

RATE_WARNING = (
    "the ridge path approaches this limit like 1/log(1/lambda): 20 % away at lambda = 1e-3, 5 % at 1e-12; compare a finite "
    "lambda with the block solution or the certificate, not with this limit"
)


def directions(counts: np.ndarray, delta: np.ndarray | None = None) -> np.ndarray:
    """Return the limiting logits at margin 1, before the logit scale: (K, K), row = class of the sample."""
    delta = np.ones(len(counts)) if delta is None else delta
    v = 1 / delta
    v = v / np.linalg.norm(v)
    return (np.eye(len(v)) - np.outer(v, v)) / delta[:, None]


def limit(counts: Sequence[int], delta: Sequence[float] | None = None) -> Prediction:
    """Return the lambda -> 0 limit of cross-entropy with class sizes `counts` (SELI), or with multiplicative `delta` (CDT).

    Args:
        counts: n_k >= 1, K >= 2 of them.
        delta: K positive logit scales; None is plain cross-entropy.

    Returns:
        Prediction without a loss (it tends to 0): `logits` at margin 1, `gram_w` and `gram_h` of unit Frobenius norm (only
        directions exist), `singular_values` of Z diag(sqrt n), details: svm_value, dual_value, least_multiplier, rate.

    Raises:
        RequestError: fewer than two classes, or a count or scale that is not positive.
    """
    n = np.asarray(counts, dtype=float)
    scale = np.ones_like(n) if delta is None else np.asarray(delta, dtype=float)
    if n.ndim != 1 or len(n) < 2 or scale.shape != n.shape or np.any(n <= 0) or np.any(scale <= 0):
        raise RequestError(f"counts {list(counts)}, delta {delta}: give K >= 2 positive counts and as many positive scales")
    z = directions(n, scale)
    v, s, ut = np.linalg.svd(z * np.sqrt(n)[:, None])
    s[-1] = 0.0  # the range is orthogonal to 1/delta: K-1 directions
    side = v / np.sqrt(n)[:, None]
    gram_w, gram_h = (ut.T * s) @ ut, (side * s) @ side.T
    multipliers = _multipliers(v[:, :-1], ut[:-1], n, scale)
    return Prediction(
        name="seli" if delta is None else "cdt",
        logits=z,
        bias=np.zeros(len(n)),
        gram_w=gram_w / np.linalg.norm(gram_w),
        gram_h=gram_h / np.linalg.norm(gram_h),
        singular_values=s,
        assumptions=("cross-entropy", "lambda -> 0", "no bias", "d >= K-1"),
        reference="thrampoulidis2022" if delta is None else "behnia2023",
        details={
            "svm_value": float(s.sum()),
            "dual_value": float(multipliers.sum()),
            "least_multiplier": float(multipliers[~np.eye(len(n), dtype=bool)].min()),
            "rate": RATE_WARNING,
        },
    )


def _multipliers(v: np.ndarray, ut: np.ndarray, n: np.ndarray, delta: np.ndarray) -> np.ndarray:
    """Return the dual multipliers (K, K) of the margins: column j of row k belongs to delta_k z_kk - delta_j z_kj >= 1.

    The subgradient V U^T of the norm, pulled back to Z, is sum_j lambda_kj (delta_k e_k - delta_j e_j) in row k; its
    off-diagonal entries give lambda, which is positive because the polar factor is minus an M-matrix root off the diagonal.
    """
    pulled = (v @ ut) * np.sqrt(n)[:, None]
    multipliers = -pulled / delta[None, :]
    np.fill_diagonal(multipliers, 0.0)
    return multipliers
