"""Finite samples: train and test values at different samples per class are not comparable. Two remedies, each an option."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ufm.errors import RequestError
from ufm.measure.arrays import as_labels
from ufm.measure.moments import ClassMoments
from ufm.seeds import stream


def match_counts(labels: Any, counts: Any, *, seed: int = 0) -> np.ndarray:
    """Return the ascending indices of a random subsample of `labels` that has min(n_k, counts_k) samples of class k.

    labels (N,) of the train split, counts (K,) of the test split. With no signal nc1_pinv is about (K-1) n_c/d, so measures
    about own means compare only at equal n_c; those about train means must keep every train sample. The draw is set by `seed`.
    """
    wanted = np.asarray(counts)
    if wanted.ndim != 1 or wanted.dtype.kind not in "iu" or (wanted < 0).any():
        raise RequestError("counts must be K integers >= 0: pass ClassMoments.counts of the smaller split")
    size = len(labels) if np.ndim(labels) == 1 else -1
    if size < 1:
        raise RequestError(f"labels has shape {np.shape(labels)}; it must be (N,): pass the labels of the larger split")
    y, _ = as_labels(labels, size, len(wanted), _cpu())
    order = stream(seed, "match_counts").permutation(size)
    shuffled = y.numpy()[order]
    rank = np.empty(size, dtype=np.int64)  # how many of the same class come earlier in the shuffled order
    by_class = np.argsort(shuffled, kind="stable")
    have = np.bincount(shuffled, minlength=len(wanted))
    rank[by_class] = np.arange(size) - np.repeat(np.cumsum(have) - have, have)
    return np.sort(order[rank < wanted[shuffled]])


def isotropic_correction(moments: ClassMoments) -> float:
    """Return the factor that takes nc1_pinv at these counts to its value at infinitely many samples, for isotropic noise.

    Sampling noise of the means adds v_k/n_k to the Gram G = M M^T of the centred means, and Sigma_W has N - K degrees of freedom:
    factor = N/(N-K) * Tr(G_c^+)/Tr(G^+), G_c = G - P diag(v_k/n_k) P with unbiased traces v_k and P = I - J/K.
    nan where some direction of the means is no larger than its noise, or N = K. Right for d >> K and within-class noise that is
    alike in all directions; collapsed features have little noise and the factor is then near 1.
    """
    present = moments.counts > 0
    counts, means = moments.counts[present].astype(float), moments.means[present]
    classes, total = len(counts), counts.sum()
    if total <= classes or (counts < 2).any():
        return math.nan
    centred = means - means.mean(0)
    noise = moments.traces[present] / (counts - 1)  # v_k n_k/(n_k - 1) / n_k
    projector = np.eye(classes) - 1.0 / classes
    frame = np.linalg.svd(projector)[0][:, : classes - 1]  # the zero eigenvalue of both Grams is left out
    plain = np.linalg.eigvalsh(frame.T @ (centred @ centred.T) @ frame)
    cleaned = np.linalg.eigvalsh(frame.T @ (centred @ centred.T - projector @ np.diag(noise) @ projector) @ frame)
    if cleaned[0] <= 0 or plain[0] <= 0:
        return math.nan
    return float(total / (total - classes) * (1 / cleaned).sum() / (1 / plain).sum())


def _cpu() -> Any:
    import torch

    return torch.device("cpu")
