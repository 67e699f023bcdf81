"""Exact reductions of a single-layer problem, and the way back.

1. Samples -> class means: with a loss that is convex in the logits and a strictly convex feature penalty, all samples with
   the same target share their feature at every critical point. The N columns become T, with data weight n_t/N and feature
   penalty lambda_h n_t/2 |h_t|^2.
2. Dimension d -> min(d, K, T): the objective depends on W and H through inner products of rows only, so that a solution in
   fewer dimensions is embedded by any orthonormal map; min(K, T) dimensions reach the convex optimum (rank of the logits).
3. Balanced coordinates: W = u U and h_t = v_t V_t with u = (lambda_h/lambda_w)^(1/4), v_t = 1/(u sqrt(n_t)), so that the
   penalty is c/2 (|U|^2 + |V|^2), c = sqrt(lambda_w lambda_h), and the logits are U V_t / sqrt(n_t).

Problems of different sizes share a batch: outputs that do not exist have logit scale 0 and offset -1e30, targets that do
not exist have weight 0, and parameters that do not exist start at 0, where their gradient is 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from ufm.losses import LOSSES
from ufm.losses.protocol import Loss, Targets
from ufm.problem import Problem
from ufm.seeds import stream
from ufm.tables import load

ABSENT = -1e30  # offset of a padded output: its probability is 0, and 0 * ABSENT is 0


@cache
def loss_of(name: str) -> Loss:
    """Return the loss object of a name."""
    return load(LOSSES, name, "loss")()


@dataclass(frozen=True)
class Reduced:
    """B problems with class-mean features in balanced coordinates, padded to (T, K, r)."""

    loss: Loss
    targets: Targets
    weight: Tensor  # (B, T, 1): n_t/N times the class weight; 0 for padding
    row_scale: Tensor  # (B, T, 1): 1/sqrt(n_t), or 1 under a norm constraint
    column_scale: Tensor | None  # (B, 1, K): the multiplicative logit adjustment
    offset: Tensor | None  # (B, 1, K): the additive one
    penalty: Tensor  # (B,): c
    bias_penalty: Tensor | None  # (B, 1): lambda_b; None without a bias
    bias_scale: Tensor | None  # (B, 1): b = bias_scale * beta
    sizes: Tensor  # (B, 3): T, K, r of every problem
    dim: int  # r of the batch

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(B, T, K, r)."""
        batch, groups, outputs = self.targets.rows.shape
        return batch, groups, outputs, self.dim

    def select(self, index: Tensor) -> Reduced:
        """Return some of the problems."""
        values = {
            name: value[index] if isinstance(value, Tensor) else value for name, value in vars(self).items() if name != "targets"
        }
        return Reduced(targets=self.targets.select(index), **values)

    def logits_loss(self, raw: Tensor) -> Tensor:
        """Apply the logit scale and offset to raw logits (B, T, K)."""
        z = raw if self.column_scale is None else raw * self.column_scale
        return z if self.offset is None else z + self.offset


def internal_dim(problem: Problem) -> int:
    """Return the dimension r in which a problem is solved."""
    groups = len(problem.count_vector)
    if problem.constraint == "sphere":  # one dimension beyond the span of W holds what unit features have outside it
        return min(problem.dim, problem.classes + 1)
    return min(problem.dim, problem.classes, groups)


def reduce(problems: Sequence[Problem], device: str | torch.device = "cpu") -> Reduced:
    """Return the batch of reduced problems; all must share their `signature`."""
    first = problems[0]
    loss = loss_of(first.loss)
    counts = [p.count_vector for p in problems]
    sizes = np.array([(len(n), p.classes, internal_dim(p)) for p, n in zip(problems, counts, strict=True)])
    groups, outputs, dim = sizes.max(0)
    batch = len(problems)
    rows, mass = np.zeros((batch, groups, outputs)), np.ones((batch, groups, 1))
    weight, row_scale = np.zeros((batch, groups, 1)), np.zeros((batch, groups, 1))
    scale, offset = np.zeros((batch, 1, outputs)), np.full((batch, 1, outputs), ABSENT)
    for i, (p, n) in enumerate(zip(problems, counts, strict=True)):
        t, k, _ = sizes[i]
        rows[i, :t, :k] = loss.rows(p)
        mass[i, :t, 0] = rows[i, :t, :k].sum(1)
        weight[i, :t, 0] = n / n.sum() * (1.0 if p.class_weights is None or p.targets is not None else p.class_weights)
        row_scale[i, :t, 0] = n**-0.5 if p.constraint == "ridge" else 1.0
        scale[i, 0, :k] = 1.0 if p.logit_scale is None else p.logit_scale
        offset[i, 0, :k] = 0.0 if p.logit_offset is None else p.logit_offset
    if first.constraint == "sphere":
        scale /= np.array([p.temperature for p in problems])[:, None, None]
    pivot = rows.argmax(2)[:, :, None]
    diagonal = first.targets is None and bool((sizes[:, 0] == sizes[:, 1]).all())
    hard = bool((rows.sum(2) == rows.max(2)).all())
    has_bias = first.bias != "none"

    def tensor(array: np.ndarray) -> Tensor:
        return torch.as_tensor(np.ascontiguousarray(array), device=device)

    gamma = tensor(np.array([p.focal_gamma for p in problems])[:, None, None]) if first.loss == "focal" else None
    return Reduced(
        loss=loss,
        targets=Targets(tensor(rows), tensor(mass), tensor(pivot), diagonal, hard, gamma),
        weight=tensor(weight),
        row_scale=tensor(row_scale),
        column_scale=None if (scale == 1).all() else tensor(scale),
        offset=None if (offset == 0).all() else tensor(offset),
        penalty=tensor(np.array([p.penalty if p.constraint == "ridge" else 0.0 for p in problems])),
        bias_penalty=tensor(np.array([p.lambda_b for p in problems])[:, None]) if has_bias else None,
        bias_scale=tensor(np.array([_bias_scale(p) for p in problems])[:, None]) if has_bias else None,
        sizes=tensor(sizes),
        dim=int(dim),
    )


def _bias_scale(problem: Problem) -> float:
    """Make the curvature along the bias comparable with that along V: |U_k|^2/N against 1, with |U_k|^2 ~ 5 sqrt(n)."""
    return float((5 / (problem.classes * (problem.total / len(problem.count_vector)) ** 0.5)) ** 0.5)


def signature(problem: Problem) -> tuple:
    """Return what problems must share to be solved in one batch."""
    soft = problem.targets is not None
    return problem.loss, problem.bias != "none", problem.constraint, problem.features, soft


def random_start(problems: Sequence[Problem], seeds: Sequence[int], reduced: Reduced, scale: float) -> Tensor:
    """Return start points (B, P), P = (K + T) r (+ K), from the stream "init" of every seed: the same in every batch."""
    _, groups, outputs, dim = reduced.shape
    x = np.zeros((len(problems), outputs + groups, dim))
    for i, seed in enumerate(seeds):
        t, k, r = (int(v) for v in reduced.sizes[i])
        draw = stream(seed, "init").normal(size=(k + t, r)) * scale
        x[i, :k, :r] = draw[:k]
        x[i, outputs : outputs + t, :r] = draw[k:]
    flat = x.reshape(len(problems), -1)
    if reduced.bias_scale is not None:
        flat = np.concatenate([flat, np.zeros((len(problems), outputs))], 1)
    return torch.as_tensor(flat, device=reduced.weight.device)


def embedding(rows: int, columns: int, seed: int) -> Tensor:
    """Return an orthonormal map (rows, columns), rows <= columns, from the stream "embedding"."""
    if rows == columns:
        return torch.eye(rows, dtype=torch.float64)
    q, _ = np.linalg.qr(stream(seed, "embedding").normal(size=(columns, rows)))
    return torch.as_tensor(np.ascontiguousarray(q.T))


def balance(problem: Problem) -> tuple[float, np.ndarray]:
    """Return (u, v): W = u U and h_t = v_t V_t."""
    u = (problem.lambda_h / problem.layer_lambdas[0]) ** 0.25
    return u, 1 / (u * np.sqrt(problem.count_vector))
