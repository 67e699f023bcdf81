"""Cross-entropy with hard, soft, mixup or multi-label targets.

`loss(z, q) = m logsumexp(z) - q.z` with mass m = sum(q); m = 1 for a distribution, m = number of labels for the
pick-all-labels loss of multi-label learning (Li et al. 2023, arXiv:2310.15903).
"""

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

DOMINATED = 1e100  # sum of exp(z_j - z_k) above which log1p would overflow first


class CrossEntropy:
    """m logsumexp(z) - q.z, with residuals that keep their relative accuracy down to the smallest probabilities."""

    convex = True

    def rows(self, problem: Problem) -> np.ndarray:
        """Return q (T, K): one-hot rows, or the problem's targets; class weights multiply q as they do in PyTorch."""
        if problem.classes < 2:
            raise RequestError(f"loss {problem.loss!r} needs at least 2 outputs, not {problem.classes}; use loss='mse'")
        if problem.targets is None:
            return np.eye(problem.classes)
        q = np.asarray(problem.targets)
        if q.min() < 0 or q.sum(1).min() <= 0:
            raise RequestError(f"targets of loss {problem.loss!r} must be >= 0 with row sums > 0; use loss='mse' for others")
        return q if problem.class_weights is None else q * np.asarray(problem.class_weights)

    def value(self, z: Tensor, targets: Targets) -> Tensor:
        """Return m logsumexp(z) - q.z relative to the pivot logit, so that small losses keep their digits."""
        shifted = z - targets.own(z).unsqueeze(1)
        off = shifted.exp()
        targets.set_own(off, 0.0)
        others = off.sum(1)
        log_sum = torch.where(others < DOMINATED, others.log1p(), torch.logsumexp(shifted, 1))
        value = targets.mass.squeeze(1) * log_sum
        return value if targets.hard else value - (targets.rows * shifted).sum(1)

    def gradient(self, z: Tensor, targets: Targets) -> Tensor:
        """Return m softmax(z) - q; the pivot entry is minus the sum of the others (p_k - 1 would lose all digits)."""
        p = torch.softmax(z, 1)
        if not targets.unit:
            p.mul_(targets.mass)
        if targets.rough:
            return p.sub_(targets.rows)
        if not targets.hard:
            p.sub_(targets.rows)
        targets.set_own(p, 0.0)
        targets.set_own(p, p.sum(1).neg_())
        return p

    def hessian(self, z: Tensor, targets: Targets) -> Callable[[Tensor], Tensor]:
        """Return v -> m (p * v - p (p.v))."""
        p = torch.softmax(z, 1)

        def product(v: Tensor) -> Tensor:
            pv = p * v
            pv.addcmul_(p, pv.sum(1, keepdim=True), value=-1)
            return pv if targets.unit else pv.mul_(targets.mass)

        return product

    def curvature(self, z: Tensor, targets: Targets) -> Tensor:
        """Return m p (1 - p); at the pivot 1 - p is the sum of the others."""
        p = torch.softmax(z, 1)
        off = p * (1 - p)
        targets.set_own(off, 0.0)
        own = targets.own(p).clone()
        targets.set_own(p, 0.0)
        targets.set_own(off, own * p.sum(1))
        return off.mul_(targets.mass)

    def dual(self, u: Tensor, targets: Targets) -> Tensor:
        """Return m Ent(p) with p = (q + u)/m, a distribution for u = theta (m softmax - q)."""
        p = ((targets.rows + u) / targets.mass).clamp_min(0.0)
        return targets.mass.squeeze(1) * torch.special.entr(p).sum(1)
