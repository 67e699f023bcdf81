"""Label smoothing: cross-entropy with q = (1 - alpha) e_k + alpha/K (Zhou et al. 2022, arXiv:2210.02192)."""

from __future__ import annotations

import numpy as np

from ufm.losses.ce import CrossEntropy
from ufm.problem import Problem


class LabelSmoothing(CrossEntropy):
    """Cross-entropy whose target rows are mixed with the uniform distribution."""

    def rows(self, problem: Problem) -> np.ndarray:
        """Return (1 - alpha) q + alpha m/K, (T, K)."""
        q = super().rows(problem)
        return (1 - problem.smoothing) * q + problem.smoothing * q.sum(1, keepdims=True) / problem.classes
