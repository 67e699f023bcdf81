"""The measures as a torchmetrics metric, for trainers that gather metrics themselves (extra `metrics`)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

from ufm.measure import ClassMoments, from_moments

STATES = ("counts", "means", "traces", "scatter")


class NeuralCollapse(Metric):
    """Neural collapse of features that come in batches, on one process or many; torchmetrics brings the processes together.

    ```
    collapse = empirical.NeuralCollapse(classes=10, dim=512)
    collapse.update(features, labels)      # (n, dim) and (n,), batch by batch
    collapse.compute()                     # name -> number
    ```
    The state is the class moments (K x d and one d x d matrix), not the features, so `ncc_error` and `nc4_disagreement`, which
    need every sample, are left out; everything else is what `ufm.measure.collapse` gives on all features at once, to 1e-9.
    """

    full_state_update = True
    is_differentiable = False
    higher_is_better = None

    def __init__(self, classes: int, dim: int, names: Sequence[str] | None = None) -> None:
        """Start empty. classes: K >= 2; dim: d <= 4096; names: only these measures."""
        super().__init__()
        self.names = names
        empty = ClassMoments.empty(classes, dim, scatter=True)
        self.shapes = {name: getattr(empty, name).shape for name in STATES}
        for name in STATES:
            # None: the processes' states arrive stacked, to be merged together; each alone could not be
            self.add_state(name, torch.from_numpy(getattr(empty, name)), dist_reduce_fx=None)
        self.add_state("eps", torch.tensor(empty.eps, dtype=torch.float64), dist_reduce_fx="max")

    def update(self, features: Tensor, labels: Tensor) -> None:
        """Take in one batch: features (n, d), labels (n,) in 0..K-1."""
        moments = self._merged().update(features, labels)
        for name in STATES:
            old = getattr(self, name)
            setattr(self, name, torch.from_numpy(getattr(moments, name)).to(old.device, old.dtype))
        self.eps = torch.tensor(moments.eps, dtype=self.eps.dtype, device=self.eps.device)

    def compute(self) -> dict[str, Tensor]:
        """Return name -> value; nan where a measure does not exist."""
        found = from_moments(self._merged(), names=self.names)
        unknown = ("ncc_error", "nc4_disagreement")
        return {name: torch.tensor(value, dtype=torch.float64) for name, value in found.items() if name not in unknown}

    def _merged(self) -> ClassMoments:
        """Join the processes' moments (one of them when nothing was gathered)."""
        parts = {}
        for name in STATES:
            state = getattr(self, name)
            state = torch.stack(list(state)) if isinstance(state, (list, tuple)) else state
            parts[name] = state.detach().cpu().numpy().reshape(-1, *self.shapes[name])
        eps = float(self.eps.max())
        first, *rest = (ClassMoments(*(parts[name][i].copy() for name in STATES), eps=eps) for i in range(len(parts["counts"])))
        for other in rest:
            first = first.merge(other)
        return first
