"""Supervised contrastive loss of unit features, full batch (Khosla et al. 2020; Graf et al. 2021, arXiv:2102.08817).

`(1/N) sum_i (1/(n_i - 1)) sum_{p != i, y_p = y_i} -log( exp(h_i.h_p/tau) / sum_{j != i} exp(h_i.h_j/tau) )`: a cross-entropy
over the other samples with target 1/(n_i - 1) on those of the same class, so that it shares its numerics.
"""

from __future__ import annotations

import numpy as np

from ufm.errors import RequestError
from ufm.losses.ce import CrossEntropy
from ufm.problem import Problem

LARGEST = 4000  # samples: the similarities are an N x N matrix, and a step needs about ten of them


class SupervisedContrastive(CrossEntropy):
    """Cross-entropy of the similarities of every anchor; outputs and targets are both the N samples."""

    def rows(self, problem: Problem) -> np.ndarray:
        """Return q (N, N): 1/(n_i - 1) on the other samples of the anchor's class."""
        check(problem)
        n = problem.count_vector.astype(int)
        labels = np.repeat(np.arange(problem.classes), n)
        same = (labels[:, None] == labels[None, :]).astype(float)
        np.fill_diagonal(same, 0.0)
        return same / (n[labels] - 1)[:, None]


def check(problem: Problem) -> None:
    """Raise RequestError for a problem on which the loss is not defined."""
    n = problem.count_vector.astype(int)
    if problem.bias != "none":
        raise RequestError(f"loss='supcon' has no classifier and no bias; use bias='none', not {problem.bias!r}")
    if problem.targets is not None or problem.class_weights is not None:
        raise RequestError("loss='supcon' takes hard labels without class_weights; leave targets and class_weights out")
    if problem.logit_scale is not None or problem.logit_offset is not None:
        raise RequestError("loss='supcon' has no logits to adjust; leave logit_scale and logit_offset out")
    if problem.constraint != "sphere":
        raise RequestError("loss='supcon' is defined for unit features; set constraint='sphere' (and temperature)")
    if n.min() < 2:
        raise RequestError(f"counts {n.min()}: a class with one sample has no positive pair; give every class at least 2")
    if n.sum() > LARGEST:
        raise RequestError(f"loss='supcon' with {n.sum()} samples needs their full Gram; use at most {LARGEST}")
