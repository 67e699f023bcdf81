"""Losses of logit rows, accurate down to the smallest values: the data term of a reduced problem."""

from __future__ import annotations

import numpy as np

from ufm.problem import Problem
from ufm.theory.reduced import Reduced

FAR = 200.0  # logits above the pivot's by more than this: exp would be safe, but log1p no longer helps


def cross_entropy(rows: np.ndarray, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return m logsumexp(z) - q.z of every row q (T, K) with mass m = sum q, and its gradient m softmax(z) - q.

    Both are taken relative to the pivot, the largest target: a loss of 1e-20 and a probability of 1 - 1e-20 keep their
    digits.
    """
    mass, index, pivot = rows.sum(axis=1), np.arange(len(rows)), rows.argmax(axis=1)
    shifted = z - z[index, pivot][:, None]
    others = np.exp(np.minimum(shifted, FAR))
    others[index, pivot] = 0.0
    log_sum = np.where(shifted.max(axis=1) < FAR, np.log1p(others.sum(axis=1)), np.logaddexp.reduce(shifted, axis=1))
    gradient = mass[:, None] * np.exp(shifted - log_sum[:, None]) - rows
    gradient[index, pivot] = 0.0
    gradient[index, pivot] = -gradient.sum(axis=1)
    return mass * log_sum - (rows * shifted).sum(axis=1), gradient


def soft_rows(problem: Problem, reduced: Reduced) -> np.ndarray:
    """Return the target rows that the loss compares with: smoothed one-hot rows for label smoothing, (T, K)."""
    alpha = problem.smoothing if problem.loss == "smoothing" else 0.0
    return (1 - alpha) * reduced.targets + alpha / problem.classes * reduced.targets.sum(axis=1, keepdims=True)


def logit_scale(problem: Problem) -> np.ndarray:
    """Return what multiplies the logits W h + b inside the loss (K,): the scale, on the sphere over the temperature."""
    scale = np.ones(problem.classes) if problem.logit_scale is None else np.asarray(problem.logit_scale)
    return scale / problem.temperature if problem.constraint == "sphere" else scale


def modify(problem: Problem, z: np.ndarray) -> np.ndarray:
    """Return what the loss sees of the logits z = W h + b: scale * z + offset."""
    z = z * logit_scale(problem)
    return z if problem.logit_offset is None else z + np.asarray(problem.logit_offset)


def row_losses(problem: Problem, rows: np.ndarray, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the loss of every row (T,) at logits z (T, K) and its gradient in z, for losses convex in the logits."""
    out, scale = modify(problem, z), logit_scale(problem)
    if problem.loss == "mse":
        return ((out - rows) ** 2).sum(axis=1) / 2, scale * (out - rows)
    losses, gradient = cross_entropy(rows, out)
    return losses, scale * gradient
