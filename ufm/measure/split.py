"""Everything a split's measures need, gathered in two reads of the stored features: `SplitStatistics`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ufm.measure.arrays import working_dtype
from ufm.measure.blocks import class_counts, class_sums, residual_blocks
from ufm.measure.moments import ClassMoments, _finish, add_scatter, first_means

REFINE = 1e-7  # means worse than this share of their spread are improved by one more read before anything is projected


@dataclass(frozen=True, eq=False)
class SplitStatistics:
    """Moments of a split, its within-class covariance in the span of its class means, and its two counts of labels."""

    moments: ClassMoments
    basis: np.ndarray | None  # (d, p) orthonormal columns spanning the centred means; None: p = d, no projection
    within: np.ndarray  # (p, p) Sigma_W in that basis
    ncc_error: float
    nc4_disagreement: float  # nan without a classifier


def means_basis(means: np.ndarray) -> np.ndarray | None:
    """Return orthonormal columns (d, K-1) that span the differences of `means` (K, d); None when K - 1 >= d."""
    if len(means) - 1 >= means.shape[1]:
        return None
    return np.linalg.qr((means[1:] - means[0]).T)[0]


def project(rows: np.ndarray, basis: np.ndarray | None) -> np.ndarray:
    """Return rows (m, d) in the basis, (m, p)."""
    return rows if basis is None else rows @ basis


def split_statistics(
    features: torch.Tensor,
    labels: torch.Tensor,
    classes: int,
    eps: float,
    classifier: tuple[np.ndarray, np.ndarray] | None,
    scatter: bool,
) -> SplitStatistics:
    """Read the features once for the means and once for everything else (once more where a large offset needs it)."""
    counts = class_counts(labels, classes)
    present = counts > 0
    means = good_means(features, labels, counts)
    basis = means_basis(means[present])
    centres = torch.from_numpy(means).to(features)
    wide = working_dtype(features.device)
    dim = features.shape[1]
    sums = torch.zeros(classes, dim, dtype=wide, device=features.device)
    squares = torch.zeros(classes, 1, dtype=wide, device=features.device)
    pooled = torch.zeros(dim, dim, dtype=wide, device=features.device) if scatter else None
    judge = Judge(means, present, basis, classifier, centres)
    within = torch.zeros(judge.size, judge.size, dtype=wide, device=features.device)
    wrong = disagree = 0
    for block in residual_blocks(features, labels, centres):
        sums += class_sums(block.residual, block.labels, classes)
        squares += class_sums(block.squares[:, None], block.labels, classes)
        projected, logits = judge.project(block.residual)
        within += (projected.T @ projected).to(wide)
        nearest = judge.nearest(projected, block.labels)
        wrong += int((nearest != block.labels).sum())
        if logits is not None:
            disagree += int((judge.decide(logits, block.labels) != nearest).sum())
        if pooled is not None:
            add_scatter(pooled, block.residual)
    moments = _finish(counts, centres, sums, squares[:, 0], pooled, eps)
    shift = project(moments.means - centres.cpu().numpy().astype(np.float64), basis)
    root = np.sqrt(counts)[:, None] * shift
    covariance = (within.cpu().numpy().astype(np.float64) - root.T @ root) / len(features)
    share = disagree / len(features) if classifier is not None else float("nan")
    return SplitStatistics(moments, basis, covariance, wrong / len(features), share)


def good_means(features: torch.Tensor, labels: torch.Tensor, counts: np.ndarray) -> np.ndarray:
    """Return class means (K, d) float64 whose error is small against the distance between them."""
    means = first_means(features, labels, counts).cpu().numpy().astype(np.float64)
    seen = means[counts > 0]
    spread = np.sqrt(((seen - seen.mean(0)) ** 2).sum(1).mean())
    error = np.finfo(np.float32 if features.dtype == torch.float32 else np.float64).eps * np.abs(seen).max()
    if error <= REFINE * spread:
        return means
    centres = torch.from_numpy(means).to(features)
    sums = torch.zeros(means.shape, dtype=working_dtype(features.device), device=features.device)
    for block in residual_blocks(features, labels, centres):
        sums += class_sums(block.residual, block.labels, len(counts))
    shift = sums.cpu().numpy() / np.maximum(counts, 1)[:, None]
    return centres.cpu().numpy().astype(np.float64) + shift


class Judge:
    """Projects residuals and decides, for each sample, the nearest mean and the classifier's label.

    With h = mu_y + r the squared distance to mu_k is |r|^2 + |mu_y - mu_k|^2 + 2 r.(mu_y - mu_k): every term is small where the
    features have collapsed, so no digits are lost to a common offset.
    """

    def __init__(
        self,
        means: np.ndarray,
        present: np.ndarray,
        basis: np.ndarray | None,
        classifier: tuple[np.ndarray, np.ndarray] | None,
        like: torch.Tensor,
    ):
        reduced = project(means - means[present].mean(0), basis)
        reduced[~present] = 0.0
        self.size = reduced.shape[1]
        table = torch.from_numpy(reduced)
        apart = torch.cdist(table, table, compute_mode="donot_use_mm_for_euclid_dist") ** 2
        apart[:, torch.from_numpy(~present)] = torch.inf
        self.means, self.apart = table.to(like), apart.to(like)
        parts = [] if basis is None else [basis.T]
        self.offsets = None
        if classifier is not None:
            weight, bias = classifier
            parts.append(weight)
            self.offsets = torch.from_numpy(like.cpu().numpy().astype(np.float64) @ weight.T + bias).to(like)
        self.rows = torch.from_numpy(np.concatenate(parts)).to(like) if parts else None
        self.whole = basis is None

    def project(self, residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the residuals in the basis (B, p), and their logits W r (B, K) or None."""
        both = residual if self.rows is None else (self.rows @ residual.T).T
        if self.whole:
            return residual, None if self.offsets is None else both
        return both[:, : self.size], None if self.offsets is None else both[:, self.size :]

    def nearest(self, projected: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the label of the nearest class mean, (B,)."""
        cross = projected @ self.means.T
        return (self.apart[labels] - 2 * cross).argmin(1)  # terms without k are left out

    def decide(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the classifier's label argmax_k (W h + b)_k, (B,)."""
        return (logits + self.offsets[labels]).argmax(1)
