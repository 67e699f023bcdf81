"""The passes over stored features: class sums, and residuals about given centres in blocks that stay in cache.

No pass ever forms E[h^2] - mu^2: at a collapse of 1e-6 that loses every digit of float32. Products are made in the features'
own precision within a block, sums over blocks in float64.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import embedding_bag

from ufm.measure import arrays
from ufm.measure.arrays import working_dtype

BLOCK_BYTES = 2**21  # on a CPU: the block, read twice, should still be in cache the second time
ROWS_DEVICE = 16384  # elsewhere a block only has to fit in memory
BAG = 64  # rows summed in the features' precision before float64 takes over


@dataclass(frozen=True, eq=False)
class Block:
    """Rows start..stop of the features about their centres: `residual` is h - centre_y, valid until the next block."""

    start: int
    stop: int
    labels: torch.Tensor  # (B,)
    residual: torch.Tensor  # (B, d), block_dtype
    squares: torch.Tensor  # (B,) |residual|^2, float64


def class_counts(labels: torch.Tensor, classes: int) -> np.ndarray:
    """Return n_k, (K,) int64."""
    return torch.bincount(labels, minlength=classes).cpu().numpy()


def class_sums(values: torch.Tensor, labels: torch.Tensor, classes: int) -> torch.Tensor:
    """Return sum over the rows of each class, (K, p) in float64, the same for every run on one machine (no atomics)."""
    if arrays.on_cpu(values):
        return _bag_sums(values, labels, classes)
    return _one_hot_sums(values, labels, classes)


def _one_hot_sums(values: torch.Tensor, labels: torch.Tensor, classes: int) -> torch.Tensor:
    """One product with the one-hot labels: in a fixed order on every device, where atomic additions are not."""
    wide = working_dtype(values.device)
    total = torch.zeros(classes, values.shape[1], dtype=wide, device=values.device)
    for start in range(0, len(values), ROWS_DEVICE):
        part = labels[start : start + ROWS_DEVICE]
        one_hot = torch.zeros(classes, len(part), dtype=wide, device=values.device)
        one_hot[part, torch.arange(len(part), device=values.device)] = 1
        total += one_hot @ values[start : start + ROWS_DEVICE].to(wide)
    return total


def _bag_sums(values: torch.Tensor, labels: torch.Tensor, classes: int) -> torch.Tensor:
    """Sum short runs of one class in the features' precision (one read, no copy), then the runs in float64."""
    if values.shape[1] == 1:
        return torch.from_numpy(np.bincount(labels.numpy(), values[:, 0].numpy(), classes)[:, None])
    y = labels.numpy()
    order = np.argsort(y.astype(np.int16) if classes < 2**15 else y, kind="stable")  # int16: numpy sorts by radix
    counts = np.bincount(y, minlength=classes)
    runs = -(-counts // BAG)
    first = np.concatenate([[0], np.cumsum(counts)[:-1]])
    run_class = np.repeat(np.arange(classes), runs)
    within = np.arange(len(run_class)) - np.repeat(np.concatenate([[0], np.cumsum(runs)[:-1]]), runs)
    offsets = first[run_class] + BAG * within
    bags = embedding_bag(torch.from_numpy(order), values, torch.from_numpy(offsets), mode="sum").numpy()
    total = np.zeros((classes, values.shape[1]))
    present = counts > 0
    if runs.max() == 1:
        total[present] = bags
        return torch.from_numpy(total)
    starts = np.concatenate([[0], np.cumsum(runs)[:-1]])[present]
    total[present] = np.add.reduceat(bags, starts, axis=0, dtype=np.float64)
    return torch.from_numpy(total)


def residual_blocks(features: torch.Tensor, labels: torch.Tensor, centres: torch.Tensor) -> Iterator[Block]:
    """Yield the features in blocks with their centre subtracted; `centres` (K, d) has `block_dtype(features)`.

    The subtraction of two near values is exact, so a residual is as good as the stored features allow.
    """
    wide = working_dtype(features.device)
    width = features.shape[1] * features.element_size()
    rows = max(64, BLOCK_BYTES // width) if arrays.on_cpu(features) else ROWS_DEVICE
    buffer = torch.empty(min(rows, len(features)), features.shape[1], dtype=centres.dtype, device=features.device)
    for start in range(0, len(features), rows):
        part = features[start : start + rows]
        y = labels[start : start + rows]
        residual = buffer[: len(part)]
        torch.index_select(centres, 0, y, out=residual)
        torch.sub(part, residual, out=residual)
        squares = torch.linalg.vector_norm(residual, dim=1).to(wide).square_()
        yield Block(start, start + len(part), y, residual, squares)
