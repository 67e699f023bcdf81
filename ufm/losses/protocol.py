"""What a loss provides: functions of a batch of logit matrices, and the targets they are compared with.

Logits here are `z` of shape (B, K, T): B problems, K outputs, T distinct targets (classes), after any logit scale and
offset; column t holds the logits of target t. Reductions run over the outputs, so that memory is walked along T.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np

from ufm.problem import Problem

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Targets:
    """Target columns of a batch, and where their largest entries (the pivots) are."""

    rows: Tensor  # (B, K, T), or (1, K, T) for all: q for cross-entropies, y for squared error
    mass: Tensor  # (B, 1, T): the sums of q
    pivot: Tensor  # (B, 1, T): index of the largest entry of every column
    diagonal: bool  # column t belongs to class t (hard or smoothed labels, T = K)
    hard: bool  # every column has its whole mass at the pivot
    parameter: Tensor | None = None  # (B, 1): gamma of the focal loss
    unit: bool = False  # every mass is 1
    rough: bool = False  # residuals may lose digits below 1e-16 of the largest: enough to follow a path, and cheaper

    def select(self, index: Tensor) -> Targets:
        """Return the targets of some of the problems."""
        parameter = None if self.parameter is None else self.parameter[index]
        rows = self.rows if len(self.rows) == 1 else self.rows[index]
        return replace(self, rows=rows, mass=self.mass[index], pivot=self.pivot[index], parameter=parameter)

    def own(self, x: Tensor) -> Tensor:
        """Return the entries of x (B, K, T) at the pivots, (B, T); a view where columns are diagonal."""
        if self.diagonal:
            return x.diagonal(dim1=1, dim2=2)
        return x.gather(1, self.pivot).squeeze(1)

    def set_own(self, x: Tensor, value: Tensor | float) -> None:
        """Write `value`, (B, T) or a number, into the pivot entries of x (B, K, T), in place."""
        if self.diagonal:
            view = x.diagonal(dim1=1, dim2=2)
            view.fill_(value) if isinstance(value, float) else view.copy_(value)
        elif isinstance(value, float):
            x.scatter_(1, self.pivot, value)
        else:
            x.scatter_(1, self.pivot, value.unsqueeze(1))


class Loss(Protocol):
    """A loss of logits, one object without state; every array is batched over problems."""

    convex: bool  # in the logits: then the class-mean reduction and the duality certificate are theorems

    def rows(self, problem: Problem) -> np.ndarray:
        """Return the target rows (T, K) of a problem; RequestError when the targets do not suit the loss."""

    def value(self, z: Tensor, targets: Targets) -> Tensor:
        """Return the loss of every column, (B, T)."""

    def gradient(self, z: Tensor, targets: Targets) -> Tensor:
        """Return d loss / d z, (B, K, T). The memory of z is used for the result."""

    def hessian(self, z: Tensor, targets: Targets) -> Callable[[Tensor], Tensor]:
        """Return the map from v (B, K, T) to the Hessian of every column applied to v, in new memory."""

    def curvature(self, z: Tensor, targets: Targets) -> Tensor:
        """Return the diagonal of the Hessian of every column, (B, K, T), >= 0, in new memory."""

    def dual(self, u: Tensor, targets: Targets) -> Tensor:
        """Return -loss*(u), minus the convex conjugate of every column at u = theta * gradient, 0 <= theta <= 1, (B, T)."""
