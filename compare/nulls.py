"""What a measure gives where there is nothing to find: centred Gaussian class means of the same K and d.

In high dimension random directions are nearly orthogonal, so that some of NC2 comes for free: at K = 10, d = 2048 the mean
|cos + 1/(K-1)| of random means is already .013 to .022. A tolerance is worth something only well below that.
"""

from __future__ import annotations

import functools

import numpy as np

from ufm.errors import RequestError
from ufm.seeds import stream
from ufm.tables import suggest

DRAWS = 400


def _equinorm(means: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(means, axis=2)
    return norms.std(axis=1, ddof=1) / norms.mean(axis=1)


def _equiangular(means: np.ndarray) -> np.ndarray:
    K = means.shape[1]
    unit = means / np.linalg.norm(means, axis=2, keepdims=True)
    off = ~np.eye(K, dtype=bool)
    return np.abs((unit @ unit.transpose(0, 2, 1))[:, off] + 1 / (K - 1)).mean(axis=1)


def _etf(means: np.ndarray) -> np.ndarray:
    K = means.shape[1]
    gram = means @ means.transpose(0, 2, 1)
    gram /= np.linalg.norm(gram, axis=(1, 2), keepdims=True)
    return np.linalg.norm(gram - (np.eye(K) - 1 / K) / np.sqrt(K - 1), axis=(1, 2))


_MEASURES = {
    "nc2_equinorm_means": _equinorm,
    "nc2_equinorm_weights": _equinorm,
    "nc2_equiangular_means": _equiangular,
    "nc2_equiangular_weights": _equiangular,
    "nc2_etf_means": _etf,
    "nc2_etf_weights": _etf,
}


@functools.lru_cache(maxsize=64)
def gaussian_means(measure: str, classes: int, dim: int, draws: int = DRAWS) -> tuple[float, ...]:
    """Return `draws` values of a class-mean measure on K centred Gaussian means in d dimensions (a fixed stream).

    Raises RequestError for a measure that is not one of class means.
    """
    if measure not in _MEASURES:
        raise RequestError(f"measure {measure!r} has no null of random means; {suggest(measure, _MEASURES)}")
    generator = stream(0, f"null-{classes}-{dim}")
    values: list[float] = []
    chunk = max(1, 2_000_000 // (classes * dim))
    while len(values) < draws:
        means = generator.standard_normal((min(chunk, draws - len(values)), classes, dim))
        values += _MEASURES[measure](means - means.mean(axis=1, keepdims=True)).tolist()
    return tuple(values)
