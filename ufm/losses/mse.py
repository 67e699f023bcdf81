"""Squared error, `loss(z, y) = 1/2 |z - y|^2`, for one-hot labels or any real targets (regression)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch

from ufm.errors import RequestError
from ufm.losses.protocol import Targets
from ufm.problem import Problem

if TYPE_CHECKING:
    from torch import Tensor


class MeanSquaredError:
    """1/2 |z - y|^2, summed over the outputs."""

    convex = True

    def rows(self, problem: Problem) -> np.ndarray:
        """Return y (T, K): one-hot rows or the problem's targets."""
        if problem.targets is None:
            return np.eye(problem.classes)
        if problem.class_weights is not None:
            raise RequestError("class_weights have no meaning for loss='mse' with targets; put the weights into counts")
        return np.asarray(problem.targets)

    def value(self, z: Tensor, targets: Targets) -> Tensor:
        """Return 1/2 |z - y|^2."""
        return (z - targets.rows).square_().sum(1).mul_(0.5)

    def gradient(self, z: Tensor, targets: Targets) -> Tensor:
        """Return z - y."""
        return z.sub_(targets.rows)

    def hessian(self, z: Tensor, targets: Targets) -> Callable[[Tensor], Tensor]:
        """Return v -> v: the Hessian is the identity."""
        return torch.clone

    def curvature(self, z: Tensor, targets: Targets) -> Tensor:
        """Return 1."""
        return torch.ones_like(z)

    def dual(self, u: Tensor, targets: Targets) -> Tensor:
        """Return -|u|^2/2 - u.y."""
        return -(0.5 * u + targets.rows).mul(u).sum(1)
