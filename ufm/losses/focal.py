"""Focal loss: `-(1 - p_k)^gamma log p_k` with p = softmax(z) (Zhou et al. 2022, arXiv:2210.02192). Not convex for gamma > 0."""

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

TINY = 1e-290  # below every probability that matters; keeps 0 * inf out of the powers


class Focal:
    """-(1 - p_k)^gamma log p_k for hard labels; gamma = 0 is cross-entropy."""

    convex = False

    def rows(self, problem: Problem) -> np.ndarray:
        """Return one-hot rows (K, K)."""
        if problem.targets is not None:
            raise RequestError("loss='focal' is defined for hard labels only; use loss='ce' with targets")
        return np.eye(problem.classes)

    def value(self, z: Tensor, targets: Targets) -> Tensor:
        """Return -u^gamma log p_k, with u = 1 - p_k summed from the other classes."""
        _, u = _probabilities(z, targets)
        own = targets.own(torch.log_softmax(z, 1))
        return -(u**targets.parameter) * torch.where(u < 0.5, torch.log1p(-u.clamp_max(0.75)), own)

    def gradient(self, z: Tensor, targets: Targets) -> Tensor:
        """Return A (p - e_k), A = u^gamma - gamma u^(gamma-1) p_k log p_k."""
        p, u = _probabilities(z, targets)
        slope = _slope(u, targets.own(p), targets.parameter)
        targets.set_own(p, -u)
        return p.mul_(slope.unsqueeze(1))

    def hessian(self, z: Tensor, targets: Targets) -> Callable[[Tensor], Tensor]:
        """Return v -> A dp + A'(p_k) dp_k (p - e_k), with dp = p * v - p (p.v)."""
        p, u = _probabilities(z, targets)
        gamma, own = targets.parameter, targets.own(p).clone()
        slope, log_own = _slope(u, own, gamma), _log_own(u, own)
        change = -gamma * u ** (gamma - 1) * (2 + log_own) + gamma * (gamma - 1) * u ** (gamma - 2) * own * log_own
        off = p.clone()
        targets.set_own(off, -u)

        def product(v: Tensor) -> Tensor:
            dp = p * v
            dp.addcmul_(p, dp.sum(1, keepdim=True), value=-1)
            return dp * slope.unsqueeze(1) + off * (change * targets.own(dp)).unsqueeze(1)

        return product

    def curvature(self, z: Tensor, targets: Targets) -> Tensor:
        """Return |A| p (1 - p): the diagonal where the loss is convex, and positive elsewhere."""
        p, u = _probabilities(z, targets)
        slope = _slope(u, targets.own(p), targets.parameter)
        return p.mul_(1 - p).mul_(slope.abs().unsqueeze(1))

    def dual(self, u: Tensor, targets: Targets) -> Tensor:
        """Raise: the loss has no convex dual that would be tight."""
        raise NotImplementedError("the focal loss is not convex")


def _probabilities(z: Tensor, targets: Targets) -> tuple[Tensor, Tensor]:
    """Return softmax(z) and u = sum of the probabilities off the pivot."""
    p = torch.softmax(z, 1)
    own = targets.own(p).clone()
    targets.set_own(p, 0.0)
    u = p.sum(1).clamp_(TINY, 1.0)
    targets.set_own(p, own)
    return p, u


def _log_own(u: Tensor, own: Tensor) -> Tensor:
    return torch.where(u < 0.5, torch.log1p(-u.clamp_max(0.75)), own.clamp_min(TINY).log())


def _slope(u: Tensor, own: Tensor, gamma: Tensor) -> Tensor:
    return u**gamma - gamma * u ** (gamma - 1) * own * _log_own(u, own)
