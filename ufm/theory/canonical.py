"""Rewrites that change the words of a problem but not its optimum, so that a closed form recognises it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from ufm.prediction import Prediction
from ufm.problem import Problem

SMALLEST, LARGEST = 1e-30, 1e30  # equal scales and weights that penalties can take over without leaving float64


@dataclass(frozen=True, eq=False)
class Canonical:
    """A problem in its simplest words, and the way back."""

    problem: Problem
    rows: np.ndarray | None = None  # original target row -> row of the rewritten problem
    offset: np.ndarray | None = None  # what the free bias absorbed
    scale: float = 1.0  # W and b of the rewritten problem are `scale` times the original's
    weight: float = 1.0  # the original objective is `weight` times the rewritten one's

    def restore(self, answer: Prediction) -> Prediction:
        """Return the prediction in the words of the original problem."""
        if not answer.applies:
            return answer
        if self.offset is not None:
            shift = lambda x: None if x is None else x - self.offset  # noqa: E731
            answer = dataclasses.replace(answer, bias=shift(answer.bias), logits=shift(answer.logits))
        if self.scale != 1:
            answer = self._unscaled(answer)
        if self.weight != 1 and answer.loss is not None:
            answer = dataclasses.replace(answer, loss=answer.loss * self.weight)
        if self.rows is not None:
            index = self.rows
            answer = dataclasses.replace(
                answer,
                logits=None if answer.logits is None else answer.logits[index],
                gram_h=None if answer.gram_h is None else answer.gram_h[np.ix_(index, index)],
            )
        return answer

    def _unscaled(self, answer: Prediction) -> Prediction:
        parts = {"logits": 1, "bias": 1, "singular_values": 1, "gram_w": 2}
        found = {name: getattr(answer, name) for name in parts}
        note = f"equal logit scales {self.scale:g}: the details are of the scaled logits"
        return dataclasses.replace(
            answer,
            assumptions=(*answer.assumptions, note),
            **{name: None if x is None else x / self.scale ** parts[name] for name, x in found.items()},
        )


def canonical(problem: Problem) -> Canonical:
    """Drop what has no effect: neutral offsets, equal scales and weights, gamma = 0, alpha = 0, repeated and one-hot targets.

    Equal scales multiply W, equal class weights divide the penalties, and an additive offset under a free bias is absorbed by
    it where the scales are equal.
    """
    plain, scale = _without_scale(problem)
    plain, weight = _without_weights(plain)
    plain, offset = _without_offset(plain)
    if (plain.loss, plain.smoothing) == ("smoothing", 0.0) or (plain.loss, plain.focal_gamma) == ("focal", 0.0):
        plain = plain.replace(loss="ce")
    back = {"offset": offset, "scale": scale, "weight": weight}
    if plain.targets is None or plain.class_weights is not None or plain.depth > 1 or plain.classes < 2:
        return Canonical(plain, **back)
    merged, rows = _merge(plain)
    return Canonical(merged, rows=rows, **back)


def _equal(values: tuple[float, ...] | None) -> bool:
    return values is not None and len(set(values)) == 1 and SMALLEST <= values[0] <= LARGEST


def _without_scale(problem: Problem) -> tuple[Problem, float]:
    """Let W and b carry equal logit scales, or on the sphere the temperature; return also what W was multiplied by."""
    if not _equal(problem.logit_scale) or problem.depth > 1 or problem.loss == "supcon":
        return problem, 1.0
    scale = problem.logit_scale[0]
    if problem.constraint == "sphere":
        return problem.replace(logit_scale=None, temperature=problem.temperature / scale), 1.0
    size = {"energy_w": problem.energy_w * scale**2} if problem.constraint == "ball" else {}
    if problem.constraint == "ridge":
        size = {"lambda_w": problem.layer_lambdas[0] / scale**2}
    return problem.replace(logit_scale=None, lambda_b=problem.lambda_b / scale**2, **size), scale


def _without_weights(problem: Problem) -> tuple[Problem, float]:
    """Divide the objective by equal class weights; return also what it was divided by.

    Squared error with target rows knows no class weights: that is for its own words to refuse.
    """
    known = problem.loss != "supcon" and (problem.targets is None or problem.loss != "mse")
    if not _equal(problem.class_weights) or problem.depth > 1 or not known:
        return problem, 1.0
    weight = problem.class_weights[0]
    names = ("lambda_w", "lambda_h", "lambda_b") if problem.constraint == "ridge" else ("lambda_b",)
    return problem.replace(class_weights=None, **{name: getattr(problem, name) / weight for name in names}), weight


def _without_offset(problem: Problem) -> tuple[Problem, np.ndarray | None]:
    """Drop an offset that has no effect or that a free bias absorbs; return also what the bias must give back."""
    if problem.logit_offset is None or problem.depth > 1 or problem.loss == "supcon":
        return problem, None
    offset = np.asarray(problem.logit_offset)
    if problem.loss != "mse" and np.ptp(offset) == 0:  # the softmax does not see a common shift
        return problem.replace(logit_offset=None), None
    if problem.bias != "free" or problem.logit_scale is not None:
        return problem, None
    if problem.loss != "mse":  # a free bias of a softmax is returned centred
        offset = offset - offset.mean()
    if problem.constraint == "sphere":  # the temperature divides the bias too
        offset = offset * problem.temperature
    return problem.replace(logit_offset=None), offset


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
