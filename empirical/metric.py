"""The measures as a torchmetrics metric, for trainers that gather metrics themselves (extra `metrics`)."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from ufm.measure import ClassMoments, from_moments

UNKNOWN = ("ncc_error", "nc4_disagreement")  # every sample is needed, not their moments


class NeuralCollapse(Metric):
    """Neural collapse of features that come in batches, on one process or many; torchmetrics brings the processes together.

    ```
    collapse = empirical.NeuralCollapse(classes=10, dim=512)
    collapse.update(features, labels)      # (n, dim) and (n,), batch by batch
    collapse.compute()                     # name -> number
    ```
    The state is the class moments (K x d and one d x d matrix), not the features, so `ncc_error` and `nc4_disagreement`, which
    need every sample, are left out; everything else is what `ufm.measure.collapse` gives on all features at once: to 1e-9 from
    float64 features, to about 1e-6 from float32 ones, whose products within a batch are float32.
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = None

    def __init__(self, classes: int, dim: int, names: Sequence[str] | None = None) -> None:
        """Start empty. classes: K >= 2; dim: d <= 4096; names: only these measures."""
        super().__init__()
        self.classes, self.dim, self.names = classes, dim, names
        empty = _packed(ClassMoments.empty(classes, dim, scatter=True))
        # one state, not five: the parts of two states can be merged together only
        self.add_state("moments", empty, dist_reduce_fx=functools.partial(_joined, classes=classes, dim=dim))

    def update(self, features: Tensor, labels: Tensor) -> None:
        """Take in one batch: features (n, d), labels (n,) in 0..K-1."""
        taken = _unpacked(self.moments, self.classes, self.dim).update(features, labels)
        self.moments = _packed(taken).to(self.moments)

    def compute(self) -> dict[str, Tensor]:
        """Return name -> value; nan where a measure does not exist."""
        found = from_moments(_unpacked(self.moments, self.classes, self.dim), names=self.names)
        return {name: torch.tensor(value, dtype=torch.float64) for name, value in found.items() if name not in UNKNOWN}


def _packed(moments: ClassMoments) -> Tensor:
    """Return moments with scatter as one float64 vector: counts, means, traces, scatter, eps."""
    parts = (moments.counts, moments.means, moments.traces, moments.scatter, moments.eps)
    return torch.from_numpy(np.concatenate([np.ravel(part) for part in parts]).astype(np.float64))


def _unpacked(vector: Tensor, classes: int, dim: int) -> ClassMoments:
    sizes = np.cumsum([classes, classes * dim, classes, dim * dim])
    counts, means, traces, scatter, eps = np.split(vector.detach().cpu().numpy().astype(np.float64), sizes)
    shaped = means.reshape(classes, dim), traces, scatter.reshape(dim, dim)
    return ClassMoments(counts.round().astype(np.int64), *shaped, eps=float(eps[0]))


def _joined(stacked: Tensor, classes: int, dim: int) -> Tensor:
    """Return the state of all samples from the states (n, size) of processes, or of what was and what came."""
    first, *rest = (_unpacked(vector, classes, dim) for vector in stacked)
    return _packed(functools.reduce(ClassMoments.merge, rest, first)).to(stacked)
