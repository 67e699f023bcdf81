"""Rewrites that change the words of a problem but not its optimum, so that a closed form recognises it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from ufm.prediction import Prediction
from ufm.problem import Problem


@dataclass(frozen=True, eq=False)
class Canonical:
    """A problem in its simplest words, and the way back."""

    problem: Problem
    rows: np.ndarray | None = None  # original target row -> row of the rewritten problem
    offset: np.ndarray | None = None  # what the free bias absorbed

    def restore(self, answer: Prediction) -> Prediction:
        """Return the prediction in the words of the original problem."""
        if not answer.applies:
            return answer
        if self.offset is not None:
            shift = lambda x: None if x is None else x - self.offset  # noqa: E731
            answer = dataclasses.replace(answer, bias=shift(answer.bias), logits=shift(answer.logits))
        if self.rows is not None:
            index = self.rows
            answer = dataclasses.replace(
                answer,
                logits=None if answer.logits is None else answer.logits[index],
                gram_h=None if answer.gram_h is None else answer.gram_h[np.ix_(index, index)],
            )
        return answer


def canonical(problem: Problem) -> Canonical:
    """Drop what has no effect: neutral scales, offsets and weights, gamma = 0, alpha = 0, repeated and one-hot targets.

    An additive offset under a free bias of an unscaled cross-entropy is absorbed by the bias.
    """
    changes: dict[str, object] = {}
    for name in ("logit_scale", "class_weights"):
        value = getattr(problem, name)
        if value is not None and set(value) == {1.0}:
            changes[name] = None
    if (problem.loss, problem.smoothing) == ("smoothing", 0.0) or (problem.loss, problem.focal_gamma) == ("focal", 0.0):
        changes["loss"] = "ce"
    offset = _offset(problem, changes)
    plain = problem.replace(**changes) if changes else problem
    if plain.targets is None or plain.class_weights is not None or plain.depth > 1 or plain.classes < 2:
        return Canonical(plain, offset=offset)
    merged, rows = _merge(plain)
    return Canonical(merged, rows=rows, offset=offset)


def _offset(problem: Problem, changes: dict[str, object]) -> np.ndarray | None:
    """Note in `changes` that a neutral or absorbed offset goes; return what the bias must give back."""
    if problem.logit_offset is None or problem.loss == "mse":
        return None
    offset = np.asarray(problem.logit_offset)
    scaled = problem.logit_scale is not None and "logit_scale" not in changes
    if np.ptp(offset) == 0:  # the softmax does not see a common shift
        changes["logit_offset"] = None
        return None
    if problem.bias != "free" or scaled:
        return None
    changes["logit_offset"] = None
    return offset - offset.mean()


def _merge(problem: Problem) -> tuple[Problem, np.ndarray | None]:
    """Merge equal target rows (their samples share one feature); turn one-hot rows of all classes into labels."""
    targets, counts = np.asarray(problem.targets), problem.count_vector
    unique, inverse = np.unique(targets, axis=0, return_inverse=True)
    inverse = inverse.reshape(-1)
    totals = np.bincount(inverse, weights=counts).astype(int)
    one_hot = len(unique) == problem.classes and np.array_equal(np.sort(unique, axis=0)[-1], np.ones(problem.classes))
    if one_hot and np.all(unique.sum(axis=1) == 1) and set(np.unique(unique)) <= {0.0, 1.0}:
        label = unique.argmax(axis=1)
        sizes = np.zeros(problem.classes, dtype=int)
        sizes[label] = totals
        return problem.replace(targets=None, counts=tuple(sizes.tolist())), label[inverse]
    if len(unique) == len(targets):
        return problem, None
    return problem.replace(targets=tuple(map(tuple, unique.tolist())), counts=tuple(totals.tolist())), inverse
