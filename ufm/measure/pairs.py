"""What is measured of each pair of classes: CDNV, its directional form, and the margins of the nearest-class-mean rule."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ufm.errors import RequestError
from ufm.measure.algebra import pair_distances
from ufm.measure.arrays import as_features, as_labels, block_dtype, plain_arithmetic, working_dtype
from ufm.measure.blocks import class_counts, class_sums, residual_blocks
from ufm.measure.moments import ClassMoments

COVARIANCE_BYTES = 2**31  # K covariances of (K-1) x (K-1): K = 645


def cdnv_matrix(moments: ClassMoments) -> np.ndarray:
    """Return (v_i + v_j)/(2 |mu_i - mu_j|^2), (K, K), nan on the diagonal and for absent classes. Galanti et al. (2022)."""
    apart = pair_distances(moments.means)
    np.fill_diagonal(apart, np.nan)
    absent = moments.counts == 0
    apart[absent], apart[:, absent] = np.nan, np.nan
    with np.errstate(divide="ignore", invalid="ignore"):
        return (moments.traces[:, None] + moments.traces[None, :]) / (2 * apart)


@dataclass(frozen=True, eq=False)
class PairMargins:
    """The nearest-class-mean rule on class j, pair by pair: g_ji(h) = (mu_j - mu_i).(h - (mu_i + mu_j)/2), right while positive.

    counts       (K,) samples of each class
    means        (K, K) mean over class j of g_ji; nan on the diagonal and where a class has no mean or no sample
    variances    (K, K) variance over class j of g_ji (divided by n_j)
    covariances  (K, K, K) covariance over class j of (g_ji, g_jl), or None
    """

    counts: np.ndarray
    means: np.ndarray
    variances: np.ndarray
    covariances: np.ndarray | None = None

    def union_bound(self) -> float:
        """Return the Gaussian union bound on the nearest-class-mean error, mean over classes by n_j of sum_i Phi(-mean/sd)."""
        return self._over_classes(lambda mean, sd: 0.5 * math.erfc(mean / sd / math.sqrt(2)) if sd > 0 else float(mean <= 0))

    def cantelli_bound(self) -> float:
        """Return the bound that holds for every distribution: sum_i of 1/(1 + (mean/sd)^2), 1 where the mean is not positive."""
        return self._over_classes(lambda mean, sd: sd**2 / (sd**2 + mean**2) if mean > 0 else 1.0)

    def _over_classes(self, term: Any) -> float:
        per_class = np.zeros(len(self.counts))
        for j, i in zip(*np.nonzero(np.isfinite(self.means)), strict=True):
            per_class[j] += term(self.means[j, i], math.sqrt(self.variances[j, i]))
        return float(self.counts @ np.minimum(per_class, 1.0) / self.counts.sum())


def pair_margins(features: Any, labels: Any, *, reference: ClassMoments | None = None, covariances: bool = False) -> PairMargins:
    """Measure the margins of the nearest-class-mean rule with the means of `reference` (default: the features' own).

    features (N, d), labels (N,) in 0..K-1. `covariances` keeps what a Gaussian orthant needs, K (K-1)^2 numbers.
    RequestError as `collapse`, and for covariances over 2 GiB.
    """
    x, _ = as_features(features)
    y, classes = as_labels(labels, len(x), None if reference is None else len(reference.counts), x.device)
    own = ClassMoments.of(x, y, classes=classes)
    centre_of = own if reference is None else reference
    if centre_of.means.shape != own.means.shape:
        raise RequestError(f"reference has shape {centre_of.means.shape}, the features {own.means.shape}; they must agree")
    if covariances and 8 * classes**3 > COVARIANCE_BYTES:
        raise RequestError(f"covariances of {classes} classes take {8e-9 * classes**3:.1f} GB; K must be <= 645: leave them out")
    means = centre_of.means
    usable = (centre_of.counts > 0)[None, :] & (own.counts > 0)[:, None] & (centre_of.counts > 0)[:, None]
    np.fill_diagonal(usable, False)
    margin = np.full((classes, classes), np.nan)
    for j in np.flatnonzero(own.counts):
        gaps = means[j] - means
        margin[j] = np.einsum("kd,kd->k", gaps, own.means[j] - (means[j] + means) / 2)
    margin[~usable] = np.nan
    with plain_arithmetic(x):
        variances, joint = _margin_scatter(x, y, own, means, covariances)
    variances[~usable] = np.nan
    return PairMargins(own.counts, margin, variances, joint)


def _margin_scatter(
    x: torch.Tensor, y: torch.Tensor, own: ClassMoments, means: np.ndarray, covariances: bool
) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the variance over class j of (mu_j - mu_i).h, (K, K), and the covariances over i, l, (K, K, K), or None."""
    classes, wide = len(own.counts), working_dtype(x.device)
    centres = torch.from_numpy(own.means).to(x.device, block_dtype(x))
    gap = torch.from_numpy(own.means - centres.cpu().numpy().astype(np.float64)).to(x.device, wide)
    table = torch.from_numpy(means - means.mean(0)).to(x.device, wide)
    shift = gap @ table.T
    squares = torch.zeros(classes, classes, dtype=wide, device=x.device)
    joint = np.zeros((classes, classes, classes)) if covariances else None
    for block in residual_blocks(x, y, centres):
        along = block.residual.to(wide) @ table.T - shift[block.labels]
        along = along.gather(1, block.labels[:, None]) - along  # (mu_j - mu_i).(h - own mean)
        squares += class_sums(along**2, block.labels, classes)
        if joint is not None:
            rows, label = along.cpu().numpy(), block.labels.cpu().numpy()
            for j in np.unique(label):
                part = rows[label == j]
                joint[j] += part.T @ part
    size = np.maximum(own.counts, 1)
    return squares.cpu().numpy() / size[:, None], None if joint is None else joint / size[:, None, None]


def directional_cdnv(features: Any, labels: Any, *, classes: int | None = None) -> np.ndarray:
    """Return the variance of class i along the line to class j over the squared distance, (K, K), not symmetric.

    V_ij = E_i [((h - mu_i).u_ij)^2] / |mu_i - mu_j|^2 with u_ij the unit vector of mu_i - mu_j; nan on the diagonal and for an
    absent class. features (N, d), labels (N,). Luthra et al. (2024): it, not CDNV, bounds few-shot error with many shots.
    """
    x, _ = as_features(features)
    y, total = as_labels(labels, len(x), classes, x.device)
    moments = ClassMoments.of(x, y, classes=total)
    with plain_arithmetic(x):
        variances, _ = _margin_scatter(x, y, moments, moments.means, False)
    apart = pair_distances(moments.means)
    absent = moments.counts == 0
    apart[absent], apart[:, absent] = np.nan, np.nan
    np.fill_diagonal(apart, np.nan)
    with np.errstate(divide="ignore", invalid="ignore"):
        return variances / apart**2


def class_covariances(features: Any, labels: Any, *, classes: int | None = None) -> np.ndarray:
    """Return the covariance of each class (divided by n_k), (K, d, d) float64. RequestError over 2 GiB."""
    x, _ = as_features(features)
    y, total = as_labels(labels, len(x), classes, x.device)
    if 8 * total * x.shape[1] ** 2 > COVARIANCE_BYTES:
        raise RequestError(f"{total} covariances of d = {x.shape[1]} take over 2 GiB; project the features to fewer dimensions")
    moments = ClassMoments.of(x, y, classes=total)
    counts = class_counts(y, total)
    out = np.zeros((total, x.shape[1], x.shape[1]))
    for k in np.flatnonzero(counts):
        rows = x[y == int(k)].to("cpu", torch.float64).numpy() - moments.means[k]
        out[k] = rows.T @ rows / counts[k]
    return out
