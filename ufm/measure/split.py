"""Everything a split's measures need, gathered in two reads of the stored features: `SplitStatistics`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ufm.measure import arrays
from ufm.measure.arrays import block_dtype, working_dtype
from ufm.measure.blocks import class_counts, class_sums, residual_blocks
from ufm.measure.moments import SCATTER_LIMIT, ClassMoments, add_scatter, first_means, outer_square, settle
from ufm.measure.names import NEEDS_SCATTER

REFINE = 1e-7  # means worse than this share of their spread are improved by one more read before anything is projected
TINY = {torch.float32: 1e4, torch.float64: 1e7}  # rounding units of the means: below this spread they are improved as well


@dataclass(frozen=True, eq=False)
class SplitStatistics:
    """Moments of a split, its within-class covariance in the span of its class means, and its two counts of labels."""

    moments: ClassMoments
    basis: np.ndarray | None  # (d, p) orthonormal columns spanning the centred means; None: p = d, no projection
    within: np.ndarray | None  # (p, p) Sigma_W in that basis
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
    wanted: frozenset[str],
) -> SplitStatistics:
    """Read the features once for the means and once for everything else; twice more where rounding of the means would show."""
    counts = class_counts(labels, classes)
    means = first_means(features, labels, counts).cpu().numpy().astype(np.float64)
    seen = means[counts > 0]
    error = torch.finfo(features.dtype).eps * np.abs(seen).max()
    # VCI sees no scale: neither in a constant coordinate nor in a dependent one may the rounding of the means be left
    scatter = bool(wanted & NEEDS_SCATTER) and features.shape[1] <= SCATTER_LIMIT  # its product costs far more than a read
    exact = scatter or error > REFINE * np.sqrt(((seen - seen.mean(0)) ** 2).sum(1).mean())
    if exact:
        means = better_means(features, labels, means)
    stats = second_read(features, labels, means, counts, eps, classifier, wanted)
    spread = np.sqrt((counts * stats.moments.traces).sum() / counts.sum())
    if not exact and spread < TINY[features.dtype] * error:
        means = better_means(features, labels, means)
        stats = second_read(features, labels, means, counts, eps, classifier, wanted)
    return stats


def better_means(features: torch.Tensor, labels: torch.Tensor, means: np.ndarray) -> np.ndarray:
    """Return the class means (K, d) from the residuals about `means`: right to rounding of the result, whatever the offset."""
    centres = torch.from_numpy(means).to(features.device, block_dtype(features))
    sums = torch.zeros(means.shape, dtype=working_dtype(features.device), device=features.device)
    for block in residual_blocks(features, labels, centres):
        sums += class_sums(block.residual.to(sums.dtype), block.labels, len(means))
    size = np.maximum(class_counts(labels, len(means)), 1)
    return centres.cpu().numpy().astype(np.float64) + sums.cpu().numpy() / size[:, None]


def second_read(
    features: torch.Tensor,
    labels: torch.Tensor,
    means: np.ndarray,
    counts: np.ndarray,
    eps: float,
    classifier: tuple[np.ndarray, np.ndarray] | None,
    wanted: frozenset[str],
) -> SplitStatistics:
    """Return the statistics about known means (K, d)."""
    basis = means_basis(means[counts > 0])
    centres = torch.from_numpy(means).to(features.device, block_dtype(features))
    wide, dim = working_dtype(features.device), features.shape[1]
    squares = torch.zeros(len(counts), 1, dtype=wide, device=features.device)
    scatter = bool(wanted & NEEDS_SCATTER) and dim <= SCATTER_LIMIT
    pooled = torch.zeros(dim, dim, dtype=wide, device=features.device) if scatter else None
    judged = bool(wanted & {"ncc_error", "nc4_disagreement"})
    judge = Judge(means, counts > 0, basis, classifier if "nc4_disagreement" in wanted else None, centres)
    within = torch.zeros(judge.size, judge.size, dtype=wide, device=features.device)
    wrong = disagree = 0
    for block in residual_blocks(features, labels, centres):
        squares += class_sums(block.squares[:, None], block.labels, len(counts))
        projected, logits = judge.project(block.residual)
        within += outer_square(projected)
        if judged:
            nearest = judge.nearest(projected, block.labels)
            wrong += int((nearest != block.labels).sum())
            if logits is not None:
                disagree += int((judge.decide(logits, block.labels) != nearest).sum())
        if pooled is not None:
            add_scatter(pooled, block.residual)
    shift = means - centres.cpu().numpy().astype(np.float64)  # what the features' dtype could not hold of the means
    moments = ClassMoments(*settle(counts, means, shift, squares[:, 0], pooled), eps)
    root = np.sqrt(counts)[:, None] * project(shift, basis)
    covariance = (within.cpu().numpy().astype(np.float64) - root.T @ root) / len(features)
    shares = [count / len(features) for count in (wrong, disagree)]
    return SplitStatistics(moments, basis, covariance, shares[0], shares[1])


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
        """Return the residuals in the basis, (p, B), and their logits W r, (K, B) or None: one product, samples in columns."""
        if self.rows is None:
            return residual.T, None
        both = self.rows @ residual.T
        if self.whole:
            return residual.T, both
        return both[: self.size], None if self.offsets is None else both[self.size :]

    def nearest(self, projected: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the label of the nearest class mean, (B,)."""
        return lowest(torch.addmm(self.apart[labels], projected.T, self.means.T, alpha=-2))  # terms without k are left out

    def decide(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the classifier's label argmax_k (W h + b)_k, (B,)."""
        return lowest(self.offsets[labels].add_(logits.T).neg_())


def lowest(scores: torch.Tensor) -> torch.Tensor:
    """Return argmin over the columns of (B, K): the first of equals."""
    if arrays.on_cpu(scores):
        return torch.from_numpy(scores.numpy().argmin(1))  # seven times faster than torch's
    return scores.argmin(1)
