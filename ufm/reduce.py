"""Exact reductions of a single-layer problem, and the way back.

1. Samples -> class means: with a loss that is convex in the logits and a strictly convex feature penalty, all samples with
   the same target share their feature at every critical point. The N columns become T, with data weight n_t/N and feature
   penalty lambda_h n_t/2 |h_t|^2.
2. Dimension d -> min(d, K, T): the objective depends on W and H through inner products of rows only, so that a solution in
   fewer dimensions is embedded by any orthonormal map; min(K, T) dimensions reach the convex optimum (rank of the logits).
3. Balanced coordinates: W = u U and h_t = v_t V_t with u = (lambda_h/lambda_w)^(1/4), v_t = 1/(u sqrt(n_t)), so that the
   penalty is c/2 (|U|^2 + |V|^2), c = sqrt(lambda_w lambda_h), and the logits are U V_t / sqrt(n_t).

Problems of different sizes share a batch: outputs that do not exist have logit scale 0 and offset -1e30 (MSE: 0), targets that do
not exist have weight 0, and parameters that do not exist start at 0, where their gradient is 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
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


def loss_name(problem: Problem) -> str:
    """Return the name of the loss that is minimised: the focal loss at gamma = 0 is cross-entropy, convex and with a dual."""
    return "ce" if problem.loss == "focal" and problem.focal_gamma == 0 else problem.loss


@dataclass(frozen=True)
class Reduced:
    """B problems with one feature per distinct target, padded to (K, T, r)."""

    loss: Loss
    targets: Targets
    weight: Tensor  # (B, 1, T): n_t/N times the class weight; 0 for padding
    feature_scale: Tensor  # (B, 1, T): the logits of target t are feature_scale_t U V_t
    logit_scale: Tensor | None  # (B, K, 1): the multiplicative logit adjustment, 1/temperature included
    offset: Tensor | None  # (B, K, 1), or (B, K, T): the additive one
    penalty: Tensor  # (B,): c, of U and V alike; 0 under a norm constraint
    bias_penalty: Tensor | None  # (B, 1): lambda_b; None without a bias
    bias_scale: Tensor | None  # (B, 1): b = bias_scale * beta
    sizes: np.ndarray  # (B, 3): K, T, r of every problem
    dim: int  # r of the batch
    budget: Tensor | None = None  # (B, 2): largest |W| and |H| of the layer-peeled ball
    nonnegative: bool = False  # whether features are

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(B, K, T, r)."""
        batch, outputs, groups = self.targets.rows.shape
        return batch, outputs, groups, self.dim

    def select(self, index: Tensor) -> Reduced:
        """Return some of the problems."""
        tensors = {name: value[index] for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, targets=self.targets.select(index), sizes=self.sizes[index.cpu().numpy()], **tensors)


def groups_of(problem: Problem) -> int:
    """Return the number of distinct targets."""
    return problem.classes if problem.targets is None else len(problem.targets)


def columns(problem: Problem) -> int:
    """Return T, the number of features a problem is solved for: its distinct targets, or its samples (supcon)."""
    return problem.total if problem.loss == "supcon" else groups_of(problem)


def outputs_of(problem: Problem) -> int:
    """Return the number of logits of a feature: K, or the N similarities of supcon."""
    return problem.total if problem.loss == "supcon" else problem.classes


def internal_dim(problem: Problem, wide: bool = True) -> int:
    """Return the dimension r in which a problem is solved.

    With features >= 0 there are bad local minima, hardly any at r >= 2T (theory: 0 of 16 starts against 2 of 8 at r = T):
    such problems are first solved `wide`, and in their own dimension only where the wide solution does not fit into it.
    """
    groups = groups_of(problem)
    if problem.features == "nonnegative":  # non-negativity ties features to coordinates: no rotation is free
        wide = wide and problem.loss != "supcon" and problem.constraint == "ridge" and problem.dim >= groups
        return max(problem.dim, 2 * groups) if wide else problem.dim
    if problem.loss == "supcon":  # every sample moves: the span of the optimum is at most K - 1, its samples' N
        return min(problem.dim, problem.total)
    if problem.constraint == "sphere":  # one dimension beyond the span of W holds what unit features have outside it
        return min(problem.dim, problem.classes + 1)
    return min(problem.dim, problem.classes, groups)


def rank_bound(problem: Problem) -> int:
    """Return the largest rank that an optimum of unlimited dimension can have; from there on no minimum is only local.

    The optimum has the rank of its gradient U diag(w/sqrt n) at most: K outputs, less one where 1^T U = 0 (a softmax), and T
    targets, less one where U w = 0 (a free bias).
    """
    return min(problem.classes - (problem.loss != "mse"), groups_of(problem) - (problem.bias == "free"))


def reduce(problems: Sequence[Problem], device: str | torch.device = "cpu", wide: bool = True) -> Reduced:
    """Return the batch of reduced problems; all must share their `signature`."""
    first, loss = problems[0], loss_of(loss_name(problems[0]))
    sizes = np.array([(outputs_of(p), columns(p), internal_dim(p, wide)) for p in problems])
    outputs, groups, dim = (int(s) for s in sizes.max(0))
    batch = len(problems)
    rows, weight = np.zeros((batch, outputs, groups)), np.zeros((batch, 1, groups))
    mass, feature_scale = np.ones((batch, 1, groups)), np.zeros((batch, 1, groups))
    # A squared error would count an absent output: there a logit of 0, which is its target, is what adds nothing.
    nothing = 0.0 if first.loss == "mse" else ABSENT
    scale, offset = np.zeros((batch, outputs, 1)), np.full((batch, outputs, 1), nothing)
    for i, p in enumerate(problems):
        k, t, _ = sizes[i]
        rows[i, :k, :t] = loss.rows(p).T
        mass[i, 0, :t] = rows[i, :k, :t].sum(0)
        n = p.count_vector
        weight[i, 0, :t] = 1 / t if p.loss == "supcon" else n / n.sum() * sample_weights(p)
        feature_scale[i, 0, :t] = n**-0.5 if p.constraint == "ridge" else 1.0
        scale[i, :k, 0] = np.ones(k) if p.logit_scale is None else p.logit_scale
        offset[i, :k, 0] = np.zeros(k) if p.logit_offset is None else p.logit_offset
    if first.constraint == "sphere":
        scale /= np.array([p.temperature for p in problems])[:, None, None]
    if first.loss == "supcon":  # an anchor is not compared with itself
        offset = offset + ABSENT * np.eye(groups)
    budget = None
    if first.constraint == "ball":
        budget = np.array([(p.classes * p.energy_w, groups_of(p) * p.energy_h) for p in problems]) ** 0.5
    has_bias = first.bias != "none"

    def tensor(array: np.ndarray) -> Tensor:
        return torch.as_tensor(np.ascontiguousarray(array), device=device)

    targets = Targets(
        rows=tensor(rows),
        mass=tensor(mass),
        pivot=tensor(rows.argmax(1)[:, None, :]),
        diagonal=first.targets is None and first.loss != "supcon",
        hard=bool((rows.sum(1) == rows.max(1)).all()),
        parameter=tensor(np.array([[p.focal_gamma] for p in problems])) if loss_name(first) == "focal" else None,
        unit=bool((mass == 1).all()),
    )
    return Reduced(
        loss=loss,
        targets=targets,
        weight=tensor(weight),
        feature_scale=tensor(feature_scale),
        logit_scale=None if (scale == 1).all() else tensor(scale),
        offset=None if (offset == 0).all() else tensor(offset),
        penalty=tensor(np.array([p.penalty if p.constraint == "ridge" else 0.0 for p in problems])),
        bias_penalty=tensor(np.array([[p.lambda_b] for p in problems])) if has_bias else None,
        bias_scale=tensor(np.array([[bias_scale(p)] for p in problems])) if has_bias else None,
        sizes=sizes,
        dim=dim,
        budget=None if budget is None else tensor(budget),
        nonnegative=first.features == "nonnegative",
    )


def sample_weights(problem: Problem) -> np.ndarray | float:
    """Return the weight of the samples of every class; with explicit targets the weights are in the target rows."""
    if problem.class_weights is None or problem.targets is not None:
        return 1.0
    return np.asarray(problem.class_weights)


def bias_scale(problem: Problem) -> float:
    """Make the curvature along the bias comparable with that along V: |U_k|^2/N against 1, with |U_k|^2 ~ 5 sqrt(n)."""
    if problem.constraint != "ridge":
        return 1.0
    return float((5 / (problem.classes * (problem.total / groups_of(problem)) ** 0.5)) ** 0.5)


def signature(problem: Problem) -> tuple:
    """Return what problems must share to be solved in one batch."""
    soft = problem.targets is not None
    return loss_name(problem), problem.bias != "none", problem.constraint, problem.features, soft


def random_start(problems: Sequence[Problem], seeds: Sequence[int], reduced: Reduced, scale: float, attempt: int = 0) -> Tensor:
    """Return start points (B, (K + T) r): U and V normal with standard deviation `scale`, V >= 0 where features are.

    Drawn from the stream "init" of every seed in the problem's own size, so that a start does not depend on the batch.
    """
    _, outputs, groups, dim = reduced.shape
    tied = problems[0].loss == "supcon"
    x = np.zeros((len(problems), groups if tied else outputs + groups, dim))
    name = "init" if attempt == 0 else f"init-{attempt}"
    for i, seed in enumerate(seeds):
        k, t, r = (int(v) for v in reduced.sizes[i])
        draw = stream(seed, name).normal(size=(t if tied else k + t, r)) * scale
        if not tied:
            x[i, :k, :r] = draw[:k]
        start = 0 if tied else outputs
        x[i, start : start + t, :r] = draw[-t:] if problems[i].features == "free" else np.abs(draw[-t:])
    return torch.as_tensor(x.reshape(len(problems), -1), device=reduced.weight.device)


def padded(sizes: tuple[int, ...]) -> tuple[int, ...]:
    """Return sizes rounded up to 1..4, 6, 8, 12, 16, ...: problems equal after rounding share a batch."""
    out = []
    for size in sizes:
        power = 1 << max(size - 1, 1).bit_length()
        out.append(size if size <= 4 else (3 * power // 4 if size <= 3 * power // 4 else power))
    return tuple(out)


def balance(problem: Problem) -> tuple[float, np.ndarray]:
    """Return (u, v): W = u U and h_t = v_t V_t."""
    if problem.constraint != "ridge":
        return 1.0, np.ones(columns(problem))
    u = (problem.lambda_h / problem.layer_lambdas[0]) ** 0.25
    return u, 1 / (u * np.sqrt(problem.count_vector))


def expand(problem: Problem, u: Tensor, v: Tensor, b: Tensor | None) -> dict[str, Tensor | None]:
    """Return W (K, d), H (T, d), b, logits (T, K) and features from the factors of one reduced problem."""
    scale_w, scale_h = balance(problem)
    if problem.features == "free":
        pad = (0, problem.dim - u.shape[1])  # the simplest orthonormal embedding: coordinates that are zero
        u, v = torch.nn.functional.pad(u, pad), torch.nn.functional.pad(v, pad)
    else:
        u, v = _fit(u, v, problem.dim)
    weight, means = scale_w * u, torch.as_tensor(scale_h)[:, None] * v
    if problem.loss == "supcon":  # every sample moved; the classifier of a contrastive loss is that of class means
        labels = torch.repeat_interleave(torch.arange(problem.classes), torch.as_tensor(problem.count_vector).long())
        features, means = means, torch.zeros(problem.classes, problem.dim, dtype=u.dtype)
        means.index_add_(0, labels, features)
        means /= torch.as_tensor(problem.count_vector)[:, None]
        return {"W": means.clone(), "H": means, "b": _none(problem), "logits": means @ means.T, "features": features}
    b = _none(problem) if b is None else b
    if problem.bias == "free" and problem.loss != "mse" and problem.logit_scale is None:
        b = b - b.mean()  # the loss does not see a common shift
    return {"W": weight, "H": means, "b": b, "logits": means @ weight.T + b, "features": None}


def _none(problem: Problem) -> Tensor:
    return torch.zeros(problem.classes, dtype=torch.float64)


def fits(problem: Problem, v: Tensor) -> bool:
    """Whether features v (T, r) can be written in the problem's own dimension: r <= d, or disjoint supports."""
    if v.shape[1] <= problem.dim:
        return True
    gram = v @ v.T
    diagonal = gram.diagonal()
    return bool(((gram - torch.diag(diagonal)).abs() <= 1e-12 * diagonal.amax()).all())


def _fit(u: Tensor, v: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Return non-negative factors with `dim` columns from a wider or narrower solution, W h unchanged.

    In more columns than asked for, features with disjoint supports need one column each: h_t -> |h_t| e_t.
    """
    if v.shape[1] <= dim:
        pad = (0, dim - v.shape[1])
        return torch.nn.functional.pad(u, pad), torch.nn.functional.pad(v, pad)
    length = v.norm(dim=1)
    unit = v / length.clamp_min(1e-300)[:, None]
    return (
        torch.nn.functional.pad(u @ unit.T, (0, dim - len(v))),
        torch.nn.functional.pad(torch.diag(length), (0, dim - len(v))),
    )
