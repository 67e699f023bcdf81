"""What a loss provides: functions of a batch of logit matrices, and the targets they are compared with.

Logits here are `z` of shape (B, T, K): B problems, T distinct targets (classes), K outputs, after any logit scale and offset.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from ufm.problem import Problem

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Targets:
    """Target rows of a batch. `diagonal` says that row t belongs to class t (hard or smoothed labels, T = K)."""

    rows: Tensor  # (B, T, K): q for cross-entropies, y for squared error
    mass: Tensor  # (B, T, 1): the row sums of q
    pivot: Tensor  # (B, T, 1) index of the largest entry of every row
    diagonal: bool
    hard: bool = False  # every row is one-hot (with mass m at the pivot)
    parameter: Tensor | None = None  # (B, 1, 1): gamma of the focal loss

    def select(self, index: Tensor) -> Targets:
        """Return the targets of some of the problems."""
        parameter = None if self.parameter is None else self.parameter[index]
        return Targets(self.rows[index], self.mass[index], self.pivot[index], self.diagonal, self.hard, parameter)

    def own(self, x: Tensor) -> Tensor:
        """Return the entries of x (B, T, K) at the pivots, (B, T); a view where rows are diagonal."""
        if self.diagonal:
            return x.diagonal(dim1=1, dim2=2)
        return x.gather(2, self.pivot).squeeze(2)

    def set_own(self, x: Tensor, value: Tensor | float) -> None:
        """Write `value` (B, T) into the pivot entries of x (B, T, K), in place."""
        if self.diagonal:
            view = x.diagonal(dim1=1, dim2=2)
            view.fill_(value) if isinstance(value, float) else view.copy_(value)
        elif isinstance(value, float):
            x.scatter_(2, self.pivot, value)
        else:
            x.scatter_(2, self.pivot, value.unsqueeze(2))


class Loss(Protocol):
    """A loss of logits, one object without state; every array is batched over problems."""

    convex: bool  # in the logits: then the class-mean reduction and the duality certificate are theorems

    def rows(self, problem: Problem) -> np.ndarray:
        """Return the target rows (T, K) of a problem; RequestError when the targets do not suit the loss."""

    def value(self, z: Tensor, targets: Targets) -> Tensor:
        """Return the loss of every row, (B, T)."""

    def gradient(self, z: Tensor, targets: Targets) -> Tensor:
        """Return d loss / d z, (B, T, K), in a new tensor."""

    def hessian_product(self, z: Tensor, v: Tensor, targets: Targets) -> Tensor:
        """Return the Hessian of every row applied to v, (B, T, K)."""

    def dual(self, u: Tensor, targets: Targets) -> Tensor:
        """Return -loss*(u), minus the convex conjugate of every row at u = theta * gradient with 0 <= theta <= 1, (B, T)."""
