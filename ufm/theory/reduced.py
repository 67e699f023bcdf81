"""The exact reduction to class means, shared by every single-layer prediction.

For a loss that is convex in the logits, all samples of one target share one feature at every critical point (Jensen), and
minimising over the factors of `W M = Z` turns the two penalties into a nuclear norm. What is left is

    min over Z (T, K), b of   sum_t mass_t loss(z_t + b, y_t) + c |diag(columns) Z|_* + lambda_b/2 |b|^2      (ridge)
    the same without the penalty, subject to |diag(columns) Z|_* <= radius                                    (ball)

with mass_t = weight_t n_t / N, columns_t = sqrt(n_t) for the ridge and 1 for the layer-peeled ball. Rows are targets.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ufm.prediction import Prediction, not_applicable
from ufm.problem import Problem

# Above this many distinct targets the (T, T) Gram of the features is left out: 4096^2 float64 are 134 MB.
LARGEST_GRAM = 4096


@dataclass(frozen=True, eq=False)
class Reduced:
    """The reduced problem: numbers only, no solver."""

    classes: int
    dim: int
    counts: np.ndarray  # (T,) n_t
    mass: np.ndarray  # (T,) weight of the data term
    columns: np.ndarray  # (T,) weight of a row of Z inside the nuclear norm
    targets: np.ndarray  # (T, K)
    penalty: float  # c; nan for the ball
    radius: float  # nuclear-norm budget; nan for the ridge
    ratio: float  # |W|^2 / (features in the same units): sqrt(lambda_h / lambda_w), or sqrt(E_W / E_H)
    lambda_b: float | None  # None: no bias; 0: free; > 0: ridge

    @property
    def ball(self) -> bool:
        """Whether the factors are constrained (layer-peeled) instead of penalised."""
        return not math.isnan(self.radius)

    @property
    def uniform(self) -> bool:
        """Whether every row carries the same mass and the same price."""
        return bool(np.ptp(self.mass) == 0 and np.ptp(self.columns) == 0)

    @property
    def price(self) -> np.ndarray:
        """(T,) r_t = c columns_t / mass_t, the dimensionless price of row t: cN / sqrt(n_t) for plain ridge problems."""
        return self.penalty * self.columns / self.mass


def reduce(problem: Problem) -> Reduced:
    """Return the reduced problem of a single-layer `problem`."""
    counts = problem.count_vector
    weights = np.ones_like(counts)
    if problem.class_weights is not None and problem.targets is None:
        weights = np.asarray(problem.class_weights)
    ball = problem.constraint == "ball"
    targets = np.eye(problem.classes) if problem.targets is None else np.asarray(problem.targets)
    lambda_w = problem.layer_lambdas[0]
    if ball:
        ratio = math.sqrt(problem.energy_w / problem.energy_h)
    else:
        ratio = math.sqrt(problem.lambda_h / lambda_w) if lambda_w > 0 else math.inf
    return Reduced(
        classes=problem.classes,
        dim=problem.dim,
        counts=counts,
        mass=counts * weights / counts.sum(),
        columns=np.ones_like(counts) if ball else np.sqrt(counts),
        targets=targets,
        penalty=math.nan if ball else problem.penalty,
        radius=problem.classes * math.sqrt(problem.energy_w * problem.energy_h) if ball else math.nan,
        ratio=ratio,
        lambda_b={"none": None, "free": 0.0, "ridge": problem.lambda_b}[problem.bias],
    )


def factors(reduced: Reduced, z: np.ndarray) -> dict[str, Any]:
    """Return gram_w, gram_h and singular_values of the balanced factorisation of the logits `z` (T, K), bias excluded.

    With diag(columns) Z = V S U^T: W W^T = ratio U S U^T and M M^T = V S V^T / (ratio columns columns^T).
    """
    scaled = z * reduced.columns[:, None]
    v, s, ut = np.linalg.svd(scaled, full_matrices=False)
    plain = s if not reduced.ball else np.linalg.svd(z * np.sqrt(reduced.counts)[:, None], compute_uv=False)
    gram_h = None
    if len(z) <= LARGEST_GRAM:
        side = v / reduced.columns[:, None]
        gram_h = (side * s) @ side.T / reduced.ratio
    return {"gram_w": reduced.ratio * (ut.T * s) @ ut, "gram_h": gram_h, "singular_values": plain}


def frame(reduced: Reduced, t: float, beta: float = 0.0) -> dict[str, Any]:
    """Return what `factors` does for Z = t Pi + beta 11^T/K under equal columns, in closed form: no decomposition."""
    K, column, root = reduced.classes, float(reduced.columns[0]), math.sqrt(reduced.counts[0])
    shape = t * np.eye(K) + (beta - t) / K
    values = np.append(np.full(K - 1, t), beta)
    return {
        "gram_w": reduced.ratio * column * shape,
        "gram_h": shape / (reduced.ratio * column),
        "singular_values": root * np.sort(values)[::-1],
    }


def single_layer(
    problem: Problem,
    losses: tuple[str, ...],
    constraints: tuple[str, ...] = ("ridge",),
    features: str = "free",
    targets: bool = False,
) -> bool:
    """Whether `problem` is one layer with one of `losses` and `constraints`, these `features`, with or without targets."""
    return (
        problem.depth == 1
        and problem.loss in losses
        and problem.constraint in constraints
        and problem.features == features
        and (problem.targets is not None) == targets
    )


def obstacle(problem: Problem, weights: bool = False) -> Prediction | None:
    """Return the refusal of a problem whose minimum is not attained or whose logits are modified, or None.

    `weights`: whether the calling prediction can carry class weights.
    """
    if problem.constraint == "ridge" and problem.penalty == 0:
        return not_applicable(
            "the minimum is not attained when lambda_w * lambda_h = 0; give both > 0 (structures(problem) has the lambda -> 0 "
            "limit of cross-entropy as 'seli')"
        )
    for name in ("logit_scale", "logit_offset") + (() if weights else ("class_weights",)):
        if getattr(problem, name) is not None:
            return not_applicable(f"no closed form is known with {name}; the certificate of the solution decides")
    return None
