"""Geometry of many solutions at once: what `ufm.measure.collapse` says of class means without samples, for a batch of cells.

One feature per class means no within-class scatter, so that the measures are K x K algebra. One call of numpy on (B, K, d)
then costs less than one cell alone. Degenerate cells (two means or a weight row that vanish or coincide) go to `collapse`.
"""

from __future__ import annotations

import numpy as np

from ufm.measure.algebra import EPS

SCATTER = ("nc1_pinv", "nc1_trace", "nc1_total", "cdnv")  # exactly 0 without scatter
APART = 1e-3  # rows shorter than this share of the longest, or as near to each other, are left to `collapse`
VANISHED = 1e-6  # a row shorter than this share of the longest is that of a dead class, and its direction rounding
CENTRED = 1e-8  # a predicted Gram whose rows sum to less than this share is about the means' mean


def regular(weight: np.ndarray, means: np.ndarray) -> np.ndarray:
    """Return which of the cells, W (B, K, d) and means (B, K, d), are far from every degenerate geometry."""
    centred = means - means.mean(1, keepdims=True)
    keep = np.isfinite(weight).all((1, 2)) & np.isfinite(means).all((1, 2))
    with np.errstate(invalid="ignore", over="ignore"):
        for rows in (centred, weight):
            length = np.linalg.norm(rows, axis=2)
            keep &= length.min(1) > APART * length.max(1)
        lengths = (centred**2).sum(2)
        apart = lengths[:, :, None] + lengths[:, None] - 2 * centred @ centred.swapaxes(1, 2)
        apart[:, *np.diag_indices(means.shape[1])] = np.inf
        keep &= apart.min((1, 2)) > APART**2 * lengths.max(1)
        spread = np.sqrt(lengths.sum(1))
        return keep & (spread > 1e3 * EPS * np.linalg.norm(means, axis=(1, 2)))


def measure_means(
    weight: np.ndarray, means: np.ndarray, bias: np.ndarray, grams: list[np.ndarray | None]
) -> list[dict[str, float]]:
    """Return measure -> value of regular cells; definitions in `ufm.measure.MEASURES`.

    weight, means: (B, K, d); bias: (B, K); grams: a predicted Gram of the means (K, K) or None for each cell.
    """
    centre = means.mean(1, keepdims=True)
    centred, classes = means - centre, means.shape[1]
    simplex = (np.eye(classes) - 1 / classes) / np.sqrt(classes - 1)
    gram_h, gram_w = centred @ centred.swapaxes(1, 2), weight @ weight.swapaxes(1, 2)
    cosines_h, cosines_w = _cosines(gram_h), _cosines(gram_w)
    off = ~np.eye(classes, dtype=bool)
    unit = [rows / np.linalg.norm(rows, axis=2, keepdims=True) for rows in (weight, centred)]
    whole = [rows / np.linalg.norm(rows, axis=(1, 2), keepdims=True) for rows in (weight, centred)]
    decided = (means @ weight.swapaxes(1, 2) + bias[:, None]).argmax(2)
    columns = {
        **{name: np.zeros(len(means)) for name in SCATTER},
        "nc2_equinorm_means": _equinorm(centred),
        "nc2_equinorm_weights": _equinorm(weight),
        "nc2_equiangular_means": np.abs(cosines_h[:, off] + 1 / (classes - 1)).mean(1),
        "nc2_equiangular_weights": np.abs(cosines_w[:, off] + 1 / (classes - 1)).mean(1),
        "nc2_etf_means": _distance(gram_h, simplex),
        "nc2_etf_weights": _distance(gram_w, simplex),
        "nc3_papyan": ((whole[0] - whole[1]) ** 2).sum((1, 2)),
        "nc3_zhu": _distance(weight @ centred.swapaxes(1, 2), simplex),
        "nc3_cosine": ((unit[0] - unit[1]) ** 2).sum(2).mean(1) / 2,
        "bias_collapse": np.linalg.norm((weight @ centre.swapaxes(1, 2))[:, :, 0] + bias, axis=1),
        "nc4_disagreement": (decided != np.arange(classes)).mean(1),
        "gram_coherence": cosines_h[:, off].max(1),
    }
    cells = [dict(zip(columns, values, strict=True)) for values in zip(*(c.tolist() for c in columns.values()), strict=True)]
    for cell, rows, middle, gram in zip(cells, means, centre, grams, strict=True):
        if gram is not None and gram.any():
            about_mean = np.abs(gram.sum(1)).max() <= CENTRED * np.abs(gram).max() * classes
            shown = rows - middle if about_mean else rows
            cell["nc2_to_prediction"] = float(_distance((shown @ shown.T)[None], gram / np.linalg.norm(gram))[0])
    return cells


def _cosines(grams: np.ndarray) -> np.ndarray:
    lengths = np.sqrt(np.diagonal(grams, axis1=1, axis2=2))
    return grams / (lengths[:, :, None] * lengths[:, None])


def _equinorm(rows: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(rows, axis=2)
    return lengths.std(1, ddof=1) / lengths.mean(1)


def _distance(grams: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Return |G/|G| - target|_F of every G, for a target of norm 1."""
    return np.linalg.norm(grams / np.linalg.norm(grams, axis=(1, 2), keepdims=True) - target, axis=(1, 2))


# --- scalars that theory predicts ----------------------------------------------------------------------------------


def scalars(
    logits: np.ndarray | None, gram_w: np.ndarray | None, gram_h: np.ndarray | None, counts: np.ndarray, classes: bool
) -> dict[str, float]:
    """Return the numbers of an optimum that a curve is drawn of, found and predicted alike; nan where one does not exist.

    logit_gap: mean over classes k of z_kk - mean_{j != k} z_kj. weight_norm: |W|_F. feature_norm: |H|_F of all N samples.
    angle_weights, angle_means: the mean angle between two rows of W, and between two class means (not centred), in degrees.

    Args:
        logits: (T, K); gram_w: W W^T (K, K); gram_h: H H^T of the class means (T, T); counts: (T,).
        classes: whether row k is class k; False (soft targets) leaves the norms alone.
    """
    found = dict.fromkeys(("logit_gap", "weight_norm", "feature_norm", "angle_weights", "angle_means"), np.nan)
    if gram_w is not None:
        found["weight_norm"] = float(np.sqrt(max(np.trace(gram_w), 0.0)))
    if gram_h is not None:
        found["feature_norm"] = float(np.sqrt(max(counts @ np.diagonal(gram_h), 0.0)))
    if not classes:
        return found
    if logits is not None:
        own = np.trace(logits)
        found["logit_gap"] = float((own - (logits.sum() - own) / (len(logits) - 1)) / len(logits))
    for name, gram in (("angle_weights", gram_w), ("angle_means", gram_h)):
        if gram is not None:
            found[name] = mean_angle(gram)
    return found


def mean_angle(gram: np.ndarray) -> float:
    """Return the mean angle between two rows in degrees, from their Gram matrix; nan beside a zero row."""
    lengths = np.sqrt(np.maximum(np.diagonal(gram), 0.0))
    if lengths.min() <= VANISHED * max(lengths.max(), 1e-150):
        return float("nan")
    pairs = np.triu_indices(len(gram), 1)
    cosines = (gram / np.outer(lengths, lengths))[pairs]
    return float(np.degrees(np.arccos(np.clip(cosines, -1.0, 1.0))).mean())
