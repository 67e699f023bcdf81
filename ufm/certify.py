"""The certificate of a solution: a lower bound on the optimum from convex duality, at the cost of one K x K eigenproblem.

In the logits Z the penalised problem is convex (its penalty is c times a nuclear norm when the dimension suffices):

    P = sum_t w_t loss(z_t + b) + c |Z diag(sqrt n)|_* + lambda_b/2 |b|^2

With u_t the gradient of the loss at the solution, L = U diag(w_t/sqrt(n_t)), sigma = |L|_2 and theta = min(1, c/sigma),

    D = sum_t w_t (-loss*(theta u_t)) - [lambda_b > 0] |theta U w|^2/(2 lambda_b)  <=  P*  <=  f(W, H, b).

A free bias needs U w = 0: the bias is first solved for. With H >= 0, |L|_2 becomes sqrt(lambda_max((L'L)_+)).
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ufm.losses.protocol import Loss
from ufm.problem import Problem
from ufm.reduce import Reduced
from ufm.solution import Certificate

NEWTON_STEPS = 50
"""Enough for any start: the damped Newton iteration below converges quadratically once the bias is near."""


def optimal_bias(reduced: Reduced, z: Tensor) -> Tensor:
    """Return the shift b (B, 1, K) that makes U w = 0 for logits z + scale * b, by damped Newton on a K-dim convex problem."""
    r = reduced
    scale = torch.ones_like(z[:, :1]) if r.column_scale is None else r.column_scale
    b = torch.zeros_like(z[:, :1])
    identity = torch.eye(z.shape[2], dtype=z.dtype, device=z.device)

    def residual(shift: Tensor) -> Tensor:
        return (r.loss.gradient(z + scale * shift, r.targets) * r.weight).sum(1, keepdim=True) * scale

    gradient = residual(b)
    for _ in range(NEWTON_STEPS):
        size = gradient.abs().amax((1, 2))
        if bool((size < 1e-17).all()):
            break
        hessian = _bias_hessian(r, z + scale * b, scale)
        ridge = 1e-14 * hessian.diagonal(dim1=1, dim2=2).amax(1)[:, None, None] + 1e-300
        step = torch.linalg.solve(hessian + ridge * identity, -gradient.mT).mT
        step, found, found_gradient = 1.0 * step, torch.zeros_like(size).bool(), gradient
        fraction = torch.ones_like(size)
        for _ in range(12):
            trial = residual(b + fraction[:, None, None] * step)
            found = trial.norm(dim=2).squeeze(1) < gradient.norm(dim=2).squeeze(1)
            if bool(found.all()):
                break
            fraction = torch.where(found, fraction, 0.5 * fraction)
        found_gradient = torch.where(found[:, None, None], trial, gradient)
        b = torch.where(found[:, None, None], b + fraction[:, None, None] * step, b)
        gradient = found_gradient
        if not bool(found.any()):
            break
    return b


def _bias_hessian(r: Reduced, z: Tensor, scale: Tensor) -> Tensor:
    """Return d^2 loss / d b^2, (B, K, K), column by column from Hessian products."""
    columns = []
    for k in range(z.shape[2]):
        unit = torch.zeros_like(z)
        unit[:, :, k] = scale[:, :, k]
        columns.append((r.loss.hessian_product(z, unit, r.targets) * r.weight).sum(1) * scale.squeeze(1))
    return torch.stack(columns, 2)


def dual_bound(reduced: Reduced, z: Tensor, free_bias: bool, nonnegative: bool = False) -> tuple[Tensor, Tensor]:
    """Return (D, sigma / c), each (B,), at logits z with scale, offset and bias applied."""
    r = reduced
    if free_bias:
        shift = optimal_bias(r, z)
        z = z + (shift if r.column_scale is None else shift * r.column_scale)
    u = r.loss.gradient(z, r.targets)
    scaled = u if r.column_scale is None else u * r.column_scale
    lagrangian = scaled * (r.weight * r.row_scale)  # L' (B, T, K)
    sigma = spectral_norm(lagrangian, nonnegative)
    theta = (r.penalty / sigma.clamp_min(1e-300)).clamp_max(1.0)
    # Among (T, K) arrays: -loss*(theta u) in the coordinates after scale and offset, plus theta u . offset.
    u_theta = theta[:, None, None] * u
    rows = r.loss.dual(u_theta, r.targets)
    if r.offset is not None:
        rows = rows + (u_theta * torch.where(r.offset > -1e29, r.offset, 0.0)).sum(2)
    bound = (rows * r.weight.squeeze(2)).sum(1)
    if r.bias_penalty is not None and not free_bias:
        pull = (theta[:, None] * (scaled * r.weight).sum(1)).square().sum(1)
        bound = bound - pull / (2 * r.bias_penalty.squeeze(1))
    return bound, sigma / r.penalty


def spectral_norm(matrix: Tensor, nonnegative: bool = False) -> Tensor:
    """Return |L|_2 of every (T, K) matrix L', or max_{v >= 0, |v| = 1} bounded by sqrt(lambda_max((L'L)_+))."""
    if nonnegative:
        gram = torch.bmm(matrix, matrix.mT).clamp_min(0.0)
    else:
        gram = torch.bmm(matrix.mT, matrix) if matrix.shape[1] >= matrix.shape[2] else torch.bmm(matrix, matrix.mT)
    # scaled so that squares of small residuals do not underflow
    size = gram.abs().amax((1, 2)).clamp_min(1e-300)
    top = torch.linalg.eigvalsh(gram / size[:, None, None])[:, -1]
    return (top.clamp_min(0.0) * size).sqrt()


def certificates(problems: list[Problem], reduced: Reduced, z: Tensor, f: Tensor) -> list[Certificate]:
    """Return the certificate of every problem of a batch at logits z and objective values f."""
    first = problems[0]
    if not reduced.loss.convex and first.focal_gamma > 0:
        return [uncertified("the focal loss is not convex: no duality bound")] * len(problems)
    nonnegative = first.features == "nonnegative"
    free = torch.tensor([p.bias == "free" for p in problems])
    out: list[Certificate | None] = [None] * len(problems)
    for is_free in (False, True):
        index = (free == is_free).nonzero().squeeze(1)
        if not len(index):
            continue
        device_index = index.to(z.device)
        bound, ratio = dual_bound(reduced.select(device_index), z[device_index], is_free, nonnegative)
        gaps = (f[device_index] - bound).tolist()
        for i, gap, norm, value in zip(index.tolist(), gaps, ratio.tolist(), f[device_index].tolist(), strict=True):
            out[i] = Certificate(gap, gap / abs(value) if value else gap, norm, True, _reason(problems[i]))
    return out  # type: ignore[return-value]


def uncertified(reason: str) -> Certificate:
    """Return the certificate that certifies nothing, and says why."""
    return Certificate(float("nan"), float("nan"), float("nan"), False, reason)


def _reason(problem: Problem) -> str:
    if problem.dim < min(problem.classes, len(problem.count_vector)):
        return "f - f* <= gap; the bound is that of unlimited dimension, so that a positive gap may remain at the optimum (d < K)"
    return "f - f* <= gap by convex duality"


__all__ = ["Loss", "certificates", "dual_bound", "optimal_bias", "replace", "spectral_norm", "uncertified"]
