"""`ClassMoments`: what a split's class statistics are, gathered in one pass or many, in any order, on any number of workers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ufm.errors import RequestError
from ufm.measure import arrays
from ufm.measure.arrays import as_features, as_labels, block_dtype, plain_arithmetic, working_dtype
from ufm.measure.blocks import class_counts, class_sums, residual_blocks

SCATTER_LIMIT = 4096  # d x d float64 is then 128 MiB
# Of a class mean's entries. Grams of Grams (fourth powers) are float64, which ends at 1e308; sums of squares are in the
# features' precision, and float32 ends at 3e38.
LARGEST, LARGEST_SINGLE = 1e75, 1e15
DOUBLE = float(np.finfo(np.float64).eps)
ROUNDING = 16  # float64 rounding units of a coordinate's mean that merged class means may be off by


@dataclass(eq=False)
class ClassMoments:
    """Per class the count, the mean and the scatter's trace; with `scatter` also the pooled within-class scatter matrix.

    counts  (K,) int64        n_k, zero for a class not seen yet
    means   (K, d) float64    mu_k = (1/n_k) sum h_i, zero where n_k = 0
    traces  (K,) float64      v_k = (1/n_k) sum |h_i - mu_k|^2, the trace of the class covariance
    scatter (d, d) float64    sum_i (h_i - mu_y)(h_i - mu_y)^T over all classes, or None
    eps     float             rounding unit of the coarsest features seen: it sets the noise floor

    Batches and workers are joined by Chan, Golub and LeVeque's update (1983), so any chunking and any order give the same
    numbers to 1e-12 in float64; sums of squares are never formed.
    """

    counts: np.ndarray
    means: np.ndarray
    traces: np.ndarray
    scatter: np.ndarray | None = None
    eps: float = float(np.finfo(np.float64).eps)

    @classmethod
    def empty(cls, classes: int, dim: int, *, scatter: bool = False) -> ClassMoments:
        """Return the moments of no sample at all; `update` fills them."""
        if isinstance(classes, bool) or int(classes) != classes or classes < 2:
            raise RequestError(f"classes is {classes!r}; moments need an integer >= 2: pass the number of classes")
        if isinstance(dim, bool) or int(dim) != dim or dim < 1:
            raise RequestError(f"dim is {dim!r}; it must be an integer >= 1: pass the feature dimension")
        _check_scatter(scatter, dim)
        pooled = np.zeros((dim, dim)) if scatter else None
        return cls(np.zeros(classes, dtype=np.int64), np.zeros((classes, dim)), np.zeros(classes), pooled)

    @classmethod
    def of(cls, features: Any, labels: Any, *, classes: int | None = None, scatter: bool = False) -> ClassMoments:
        """Return the moments of `features` (N, d) with integer `labels` (N,) in 0..K-1; K is `classes` or the largest label + 1.

        numpy or torch, any device. RequestError for a wrong shape, a non-finite feature, a label out of range, and
        `scatter` with d > 4096.
        """
        x, eps = as_features(features)
        y, total = as_labels(labels, len(x), classes, x.device)
        _check_scatter(scatter, x.shape[1])
        counts = class_counts(y, total)
        with plain_arithmetic(x):
            return cls._of(x, y, counts, scatter, eps)

    @classmethod
    def _of(cls, x: torch.Tensor, y: torch.Tensor, counts: np.ndarray, scatter: bool, eps: float) -> ClassMoments:
        total = len(counts)
        centres = first_means(x, y, counts).to(block_dtype(x))
        sums = torch.zeros(total, x.shape[1], dtype=working_dtype(x.device), device=x.device)
        squares = torch.zeros(total, 1, dtype=sums.dtype, device=x.device)
        pooled = torch.zeros(x.shape[1], x.shape[1], dtype=sums.dtype, device=x.device) if scatter else None
        for block in residual_blocks(x, y, centres):
            # with a scatter the sums are float64: what they miss of a constant column would stay in it as variance
            residual = block.residual if pooled is None else block.residual.to(pooled.dtype)
            sums += class_sums(residual, block.labels, total)
            squares += class_sums(block.squares[:, None], block.labels, total)
            if pooled is not None:
                add_scatter(pooled, residual)
        shift = sums.cpu().numpy().astype(np.float64) / np.maximum(counts, 1)[:, None]
        means = centres.cpu().numpy().astype(np.float64) + shift
        return cls(*settle(counts, means, shift, squares[:, 0], pooled), eps)

    def update(self, features: Any, labels: Any) -> ClassMoments:
        """Take in one more batch, in place, and return self. Features (N, d), labels (N,) in 0..K-1."""
        batch = ClassMoments.of(features, labels, classes=len(self.counts), scatter=self.scatter is not None)
        joined = self.merge(batch)
        self.counts, self.means, self.traces = joined.counts, joined.means, joined.traces
        self.scatter, self.eps = joined.scatter, joined.eps
        return self

    def merge(self, other: ClassMoments) -> ClassMoments:
        """Return the moments of both sets of samples together; neither operand changes."""
        if self.means.shape != other.means.shape:
            raise RequestError(
                f"moments of shape {self.means.shape} and {other.means.shape} do not merge; (K, d) must agree: pass classes="
            )
        if (self.scatter is None) != (other.scatter is None):
            raise RequestError("moments with and without scatter do not merge; build both with scatter=True or both without")
        total = self.counts + other.counts
        share = other.counts / np.maximum(total, 1)
        gap = other.means - self.means
        means = self.means + share[:, None] * gap
        means[self.counts == 0] = other.means[self.counts == 0]  # exactly, not 0 + 1 * mean
        spread = share * (1 - share) * (gap**2).sum(1)
        traces = (1 - share) * self.traces + share * other.traces + spread
        pooled = None
        if self.scatter is not None and other.scatter is not None:
            weight = np.sqrt(self.counts * share)[:, None]  # n_a n_b / n
            pooled = self.scatter + other.scatter + (weight * gap).T @ (weight * gap)
        return ClassMoments(total, means, traces, pooled, max(self.eps, other.eps))

    @property
    def classes(self) -> np.ndarray:
        """The labels that occur, ascending."""
        return np.flatnonzero(self.counts)


def rigid_columns(moments: ClassMoments) -> np.ndarray:
    """Return which of the d coordinates have no within-class variance but rounding, (d,); `scatter` must be there.

    A coordinate that is the constant c in every sample leaves ROUNDING eps |c| of deviation through the class means, which are
    float64, and through the products of the residuals about centres in the features' precision, whose float64 sums over N
    samples cancel to N eps of themselves. Either is far below what one float32 in N can deviate by; a coordinate that varies
    more keeps its variance, however small it is beside its mean.
    """
    samples = moments.counts.sum()
    size = np.abs(moments.means[moments.counts > 0]).max(0)
    stored = min(moments.eps, float(np.finfo(np.float32).eps))  # half precision is widened before anything is subtracted
    floor = size**2 * ((ROUNDING * DOUBLE) ** 2 + samples * DOUBLE * stored**2)
    return np.diag(moments.scatter) / samples <= floor


def first_means(features: torch.Tensor, labels: torch.Tensor, counts: np.ndarray) -> torch.Tensor:
    """Return class means good enough to subtract, (K, d) float64, zero where absent. RequestError for a non-finite feature."""
    sums = class_sums(features, labels, len(counts))
    means = sums / torch.from_numpy(np.maximum(counts, 1)).to(sums.device)[:, None]
    if not bool(torch.isfinite(means).all()):
        _name_bad_feature(features)
        raise RequestError("features overflow their precision when summed; scale them down or pass float64")
    size = float(means.abs().max())
    if size > (LARGEST if features.dtype == torch.float64 else LARGEST_SINGLE):
        raise RequestError(f"class means reach {size:.3g}, whose powers overflow; scale the features down")
    return means


def add_scatter(pooled: torch.Tensor, residual: torch.Tensor) -> None:
    """Add residual^T residual to `pooled` in place, in float64 where the device has it."""
    pooled += outer_square(residual.to(pooled.dtype).T)


def outer_square(rows: torch.Tensor) -> torch.Tensor:
    """Return rows rows^T, (p, p), for rows (p, B)."""
    if arrays.on_cpu(rows):
        array = rows.numpy()
        return torch.from_numpy(array @ array.T)  # numpy sends X X^T to the symmetric product: half the work
    return rows @ rows.T


def settle(
    counts: np.ndarray, means: np.ndarray, shift: np.ndarray, squares: torch.Tensor, pooled: torch.Tensor | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]:
    """Return counts, means, traces and scatter from sums about centres that were `shift` (K, d) short of the means."""
    size = np.maximum(counts, 1)
    traces = np.maximum(squares.cpu().numpy().astype(np.float64) / size - (shift**2).sum(1), 0.0)
    traces[counts == 1] = 0.0  # exactly: one sample is its own mean
    if not traces.max(initial=0.0) <= LARGEST**2:
        raise RequestError("the features' squares overflow; scale the features down or pass float64")
    scatter = None
    if pooled is not None:
        root = np.sqrt(counts)[:, None] * shift
        scatter = pooled.cpu().numpy().astype(np.float64) - root.T @ root
    return counts, means, traces, scatter


def _check_scatter(scatter: bool, dim: int) -> None:
    if scatter and dim > SCATTER_LIMIT:
        raise RequestError(f"scatter of d = {dim} features is refused; d must be <= {SCATTER_LIMIT}: leave scatter out")


def _name_bad_feature(features: torch.Tensor) -> None:
    bad = torch.nonzero(~torch.isfinite(features))
    if len(bad):
        row, column = (int(i) for i in bad[0])
        value = float(features[row, column])
        raise RequestError(f"features[{row}, {column}] is {value}; every feature must be finite: drop or repair that sample")
