"""Supervised contrastive loss on the unit sphere (full batch): orthogonal frame with ReLU features, simplex without."""

from __future__ import annotations

import math

import numpy as np

from ufm.prediction import STATED, Prediction, not_applicable
from ufm.problem import Problem
from ufm.theory.etf import centring


def supervised(problem: Problem) -> Prediction:
    """Predict mean over anchors i of mean over same-class p of -log(exp(h_i.h_p/tau) / sum_{j != i} exp(h_i.h_j/tau)).

    h >= 0, any counts:  (1/N) sum_k n_k log(n_k - 1 + (N - n_k) e^{-1/tau})       orthogonal frame, d >= K
    free h, balanced:    log(n - 1 + (K-1) n e^{-K/((K-1) tau)})                   simplex frame, d >= K-1
    """
    if problem.loss != "supcon" or problem.depth != 1:
        return not_applicable("")
    if problem.constraint != "sphere" or problem.targets is not None:
        return not_applicable("the contrastive optimum is known for unit features and hard labels; set constraint='sphere'")
    n, K, tau = problem.count_vector, problem.classes, problem.temperature
    if n.min() < 2:
        return not_applicable("a class with one sample has no positive pair; give every class at least 2 samples")
    relu = problem.features == "nonnegative"
    if not relu and not problem.balanced:
        return not_applicable("without non-negative features the contrastive optimum is known for balanced classes only")
    needed = K if relu else K - 1
    if problem.dim < needed:
        return not_applicable(f"the {'orthogonal' if relu else 'simplex'} frame needs d >= {needed}, here d = {problem.dim}")
    others = -1 / tau if relu else -K / ((K - 1) * tau)
    loss = float(n @ np.log(n - 1 + (n.sum() - n) * math.exp(others)) / n.sum())
    gram = np.eye(K) if relu else K / (K - 1) * centring(K)
    return Prediction(
        name="of" if relu else "etf",
        loss=loss,
        gram_h=gram,
        status=STATED,
        assumptions=("full batch", "unit features", f"d >= {needed}", "features >= 0" if relu else "balanced classes"),
        reference="kini2023" if relu else "graf2021",
        details={"cos_between_classes": 0.0 if relu else -1 / (K - 1)},
    )
