"""The certificate of a solution: a lower bound on the optimum from convex duality, at the cost of one K x K eigenproblem.

In the logits Z the penalised problem is convex (its penalty is c times a nuclear norm when the dimension suffices):

    P = sum_t w_t loss(z_t + b) + c |Z diag(sqrt n)|_* + lambda_b/2 |b|^2

With u_t the gradient of the loss at the solution, L = U diag(w_t/sqrt(n_t)), sigma = |L|_2 and theta = min(1, c/sigma),

    D = sum_t w_t (-loss*(theta u_t)) - [lambda_b > 0] |theta U w|^2/(2 lambda_b)  <=  P*  <=  f(W, H, b).

A free bias needs U w = 0: the bias is first solved for. With H >= 0, |L|_2 becomes sqrt(lambda_max((L'L)_+)).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from ufm.problem import Problem
from ufm.reduce import ABSENT, Reduced, loss_name, rank_bound
from ufm.solution import Certificate

NEWTON_STEPS = 50  # the damped Newton iteration converges quadratically once the bias is near
HALVINGS = 60  # where probabilities are saturated the Newton step overshoots by many orders of magnitude
CLOSED, FLOOR = 1e-9, 1e-12  # relative and absolute gap at which an end point counts as the optimum
UNSOLVED = 1e-12  # |U w| above which there is no bound: the free bias could lower the Lagrangian without end


def optimal_bias(reduced: Reduced, z: Tensor) -> Tensor:
    """Return the b (B, K, 1) that makes U w = 0 for logits z + scale * b: damped Newton steps, each solved by CG."""
    r = reduced
    scale = torch.ones_like(z[:, :, :1]) if r.logit_scale is None else r.logit_scale
    b = torch.zeros_like(z[:, :, :1])

    def residual(shift: Tensor) -> Tensor:
        return (r.loss.gradient(z + scale * shift, r.targets) * r.weight).sum(2, keepdim=True) * scale

    gradient = residual(b)
    for _ in range(NEWTON_STEPS):
        if bool((gradient.abs() < 1e-17).all()):
            break
        hessian = r.loss.hessian(z + scale * b, r.targets)

        def product(v: Tensor, hessian: Callable[[Tensor], Tensor] = hessian) -> Tensor:
            return (hessian((scale * v).expand_as(z)) * r.weight).sum(2, keepdim=True) * scale

        step = conjugate_gradients(product, -gradient)
        fraction = torch.ones_like(gradient[:, :1])
        for _ in range(HALVINGS):
            trial = residual(b + fraction * step)
            found = trial.norm(dim=1, keepdim=True) < gradient.norm(dim=1, keepdim=True)
            if bool(found.all()):
                break
            fraction = torch.where(found, fraction, 0.5 * fraction)
        if not bool(found.any()):
            break
        b = torch.where(found, b + fraction * step, b)
        gradient = torch.where(found, trial, gradient)
    return b


def conjugate_gradients(product: Callable[[Tensor], Tensor], right: Tensor) -> Tensor:
    """Return x (B, K, 1) with product(x) = right, to 1e-9 of its size; null directions are left alone."""
    x, r, p = torch.zeros_like(right), right, right
    rr = r.square().sum(1, keepdim=True)
    goal = 1e-18 * rr
    for _ in range(2 * right.shape[1] + 10):
        q = product(p)
        curvature = (p * q).sum(1, keepdim=True)
        going = (rr > goal) & (curvature > 0)
        if not bool(going.any()):
            break
        a = torch.where(going, rr / curvature.clamp_min(1e-300), 0.0)
        x, r = x + a * p, r - a * q
        new = r.square().sum(1, keepdim=True)
        p = r + torch.where(going, new / rr.clamp_min(1e-300), 0.0) * p
        rr = new
    return x


def dual_bound(reduced: Reduced, z: Tensor, free_bias: bool, nonnegative: bool = False) -> tuple[Tensor, Tensor]:
    """Return (D, sigma / c), each (B,), at logits z (B, K, T) with scale, offset and bias applied."""
    r = reduced
    if free_bias:
        shift = optimal_bias(r, z)
        z = z + (shift if r.logit_scale is None else shift * r.logit_scale)
    u = r.loss.gradient(z.clone(), r.targets)
    scaled = u if r.logit_scale is None else u * r.logit_scale
    sigma = spectral_norm(scaled * (r.weight * r.feature_scale), nonnegative)
    theta = (r.penalty / sigma.clamp_min(1e-300)).clamp_max(1.0)
    bound = lagrangian(r, u, theta)
    if r.bias_penalty is not None and not free_bias:
        pull = (theta[:, None] * (scaled * r.weight).sum(2)).square().sum(1)
        bound = bound - pull / (2 * r.bias_penalty.squeeze(1))
    if free_bias:
        bound = bound.masked_fill((scaled * r.weight).sum(2).abs().amax(1) > UNSOLVED, -torch.inf)
    return bound, sigma / r.penalty


def proven(reduced: Reduced, z: Tensor, f: Tensor, nonnegative: bool = False) -> Tensor:
    """Return (B,) bool: the duality gap of logits z and values f is within `CLOSED` of f, or below `FLOOR`."""
    free = torch.zeros_like(f, dtype=torch.bool) if reduced.bias_penalty is None else reduced.bias_penalty.squeeze(1) == 0
    bound = torch.full_like(f, -torch.inf)
    for kind in (False, True):
        index = (free == kind).nonzero().squeeze(1)
        if len(index):
            bound[index] = dual_bound(reduced.select(index), z[index], kind, nonnegative)[0]
    return f - bound <= (CLOSED * f.abs()).clamp_min(FLOOR)


def closed(certificate: Certificate) -> bool:
    """Whether a certificate proves its end point optimal, to the same tolerance."""
    return certificate.valid and (certificate.gap <= FLOOR or certificate.relative <= CLOSED)


def lagrangian(r: Reduced, u: Tensor, theta: Tensor) -> Tensor:
    """Return sum_t w_t (-loss*(theta u_t)), (B,), the conjugate taken before scale and offset."""
    u = theta[:, None, None] * u
    columns = r.loss.dual(u, r.targets)
    if r.offset is not None:
        columns = columns + (u * torch.where(r.offset > 0.5 * ABSENT, r.offset, 0.0)).sum(1)
    return (columns * r.weight.squeeze(1)).sum(1)


def spectral_norm(matrix: Tensor, nonnegative: bool = False) -> Tensor:
    """Return |L|_2 of every L (B, K, T), or the bound sqrt(lambda_max((L'L)_+)) on max |L v| over v >= 0, |v| = 1."""
    size = matrix.abs().amax((1, 2)).clamp_min(1e-300)  # squares of small residuals must not underflow
    scaled = matrix / size[:, None, None]
    if nonnegative:
        gram = torch.bmm(scaled.mT, scaled).clamp_min_(0.0)
    else:
        gram = torch.bmm(scaled, scaled.mT) if matrix.shape[1] <= matrix.shape[2] else torch.bmm(scaled.mT, scaled)
    return torch.linalg.eigvalsh(gram)[:, -1].clamp_min(0.0).sqrt() * size


def ball_bound(reduced: Reduced, z: Tensor, free_bias: bool) -> tuple[Tensor, Tensor]:
    """Return (D, sigma R / <-L, Z>) of the layer-peeled problem, |Z|_* <= R: D = max over theta of Lagrangian - theta R sigma."""
    r = reduced
    if free_bias:
        shift = optimal_bias(r, z)
        z = z + (shift if r.logit_scale is None else shift * r.logit_scale)
    u = r.loss.gradient(z.clone(), r.targets)
    scaled = (u if r.logit_scale is None else u * r.logit_scale) * r.weight
    price = spectral_norm(scaled) * r.budget.prod(1)
    best = torch.full_like(price, -torch.inf)
    for theta in (1.0, 1 - 1e-6, 1 - 1e-3, 0.9, 0.75, 0.5, 0.25, 0.0):  # 1 is the optimum's own; the others serve early iterates
        bound = lagrangian(r, u, torch.full_like(price, theta)) - theta * price
        if r.bias_penalty is not None and not free_bias:
            bound = bound - theta**2 * scaled.sum(2).square().sum(1) / (2 * r.bias_penalty.squeeze(1))
        best = torch.maximum(best, bound)
    if free_bias:
        best = best.masked_fill(scaled.sum(2).abs().amax(1) > UNSOLVED, -torch.inf)
    raw = z if r.offset is None else z - r.offset
    work = -(scaled * (raw if r.logit_scale is None else raw / r.logit_scale.clamp_min(1e-300))).sum((1, 2))
    return best, price / work


def sphere_gap(reduced: Reduced, z: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Return (gap, dual norm) for unit rows: the loss is convex in the Gram S of all K + T rows, S >= 0 with unit diagonal.

    With G the gradient in S and y = diag(G S) the multipliers of the diagonal, f - f* <= -(K + T) min(0, lambda_min(G - Diag y)).
    """
    r = reduced
    scaled = r.loss.gradient(z.clone(), r.targets).mul_(r.weight)
    half = 0.5 * scaled * r.feature_scale if r.logit_scale is None else 0.5 * scaled * r.logit_scale * r.feature_scale
    yu = (torch.bmm(half, v) * u).sum(2)
    yv = (torch.bmm(half.mT, u) * v).sum(2)
    k, t = half.shape[1:]
    matrix = half.new_zeros(len(half), k + t, k + t)
    matrix[:, :k, k:], matrix[:, k:, :k] = half, half.mT
    matrix.diagonal(dim1=1, dim2=2).copy_(-torch.cat([yu, yv], 1))
    size = matrix.abs().amax((1, 2)).clamp_min(1e-300)
    lowest = torch.linalg.eigvalsh(matrix / size[:, None, None])[:, 0] * size
    rows = (-yu).clamp_min(1e-300).rsqrt().unsqueeze(2) * half * (-yv).clamp_min(1e-300).rsqrt().unsqueeze(1)
    return (k + t) * (-lowest).clamp_min(0.0), spectral_norm(rows)


def contrastive_gap(reduced: Reduced, z: Tensor, v: Tensor, nonnegative: bool) -> tuple[Tensor, Tensor]:
    """Return (gap, nan) for the contrastive loss of unit features, convex in their Gram; `sphere_gap` with one set of rows.

    Where features are non-negative so are the entries of the Gram: positive entries of G where S = 0 are multipliers of theirs.
    """
    r = reduced
    half = r.loss.gradient(z.clone(), r.targets).mul_(r.weight * r.feature_scale)
    if r.logit_scale is not None:  # None where the temperature is 1
        half.mul_(r.logit_scale)
    matrix = 0.5 * (half + half.mT)
    y = (torch.bmm(matrix, v) * v).sum(2)
    if nonnegative:
        gram = torch.bmm(v, v.mT)
        matrix = torch.where((gram < 1e-7) & (matrix > 0), 0.0, matrix)
    matrix.diagonal(dim1=1, dim2=2).sub_(y)
    lowest = torch.linalg.eigvalsh(matrix)[:, 0]
    return matrix.shape[1] * (-lowest).clamp_min(0.0), torch.full_like(lowest, torch.nan)


def focal_bound(problem: Problem) -> tuple[float, str]:
    """Return (lower bound, "") of a balanced focal problem, or (nan, why not).

    Per sample the loss is at least phi(a) = its value with all other logits equal, a gap a below the own one, so that
    f >= min over a of phi(a) + s (K - 1) a, s = c sqrt(n), as long as s < 1/(K - 1) and the minimiser has a >= 0
    (Zhou et al. 2022, arXiv:2210.02192).
    """
    K, gamma = problem.classes, problem.focal_gamma
    plain = problem.logit_scale is None and problem.logit_offset is None and problem.class_weights is None
    if problem.constraint != "ridge" or not problem.balanced or not plain:
        return np.nan, "the focal loss is not convex, and the scalar bound needs a balanced plain ridge problem"
    s = problem.penalty * problem.count_vector[0] ** 0.5
    if s * (K - 1) >= 1:
        return np.nan, "the focal loss is not convex, and the scalar bound needs (K - 1) sqrt(n lambda_w lambda_h) < 1"

    def g(a: np.ndarray | float) -> np.ndarray | float:
        log_own = -np.log1p((K - 1) * np.exp(-a))
        off = (K - 1) * np.exp(-a) * np.exp(log_own)
        return -(off**gamma) * log_own + s * (K - 1) * a

    grid = np.linspace(-10.0, 10 - np.log(s), 20001)
    values = g(grid)
    at = int(np.argmin(values))
    if grid[at] < -grid[1] + grid[0]:
        return np.nan, "the focal loss is not convex, and the scalar bound has its minimum at a wrong sign"
    ends = grid[max(at - 1, 0)], grid[min(at + 1, len(grid) - 1)]
    found = minimize_scalar(g, bounds=ends, method="bounded", options={"xatol": 1e-12})
    return float(min(found.fun, values[at], g(0.0))), ""


def certificates(problems: list[Problem], reduced: Reduced, z: Tensor, f: Tensor, factors: tuple) -> list[Certificate]:
    """Return the certificate of every problem of a batch.

    Args:
        problems: B problems of one signature.
        reduced: their batch.
        z: the logits (B, K, T), scale, offset and bias applied.
        f: the objective values (B,).
        factors: W, H and b as the objective gives them, with norm constraints applied.
    """
    first = problems[0]
    if loss_name(first) == "focal":
        return [_focal(p, value) for p, value in zip(problems, f.tolist(), strict=True)]
    out: list[Certificate | None] = [None] * len(problems)
    free = [p.bias == "free" for p in problems]
    for kind in set(free):
        index = torch.tensor([i for i, is_free in enumerate(free) if is_free == kind], device=z.device)
        some, at, value = reduced.select(index), z[index], f[index]
        u, v = factors[0][index], factors[1][index]
        if first.loss == "supcon":
            gap, ratio = contrastive_gap(some, at, v, first.features == "nonnegative")
        elif first.constraint == "sphere":
            if first.bias != "none":
                return [uncertified("no duality bound is known for unit rows with a bias")] * len(problems)
            gap, ratio = sphere_gap(some, at, u, v)
        elif first.constraint == "ball":
            bound, ratio = ball_bound(some, at, kind)
            gap = value - bound
        else:
            bound, ratio = dual_bound(some, at, kind, first.features == "nonnegative")
            gap = value - bound
        for i, *numbers in zip(index.tolist(), gap.tolist(), ratio.tolist(), value.tolist(), strict=True):
            out[i] = _certificate(problems[i], *numbers)
    return out  # type: ignore[return-value]


def _certificate(problem: Problem, gap: float, norm: float, value: float) -> Certificate:
    if not np.isfinite(gap):
        return uncertified("no bound: the end point is not finite, or its free bias could not be made optimal")
    trivial = 0 < value <= gap
    gap = min(gap, value)
    reason = "f - f* <= gap by convex duality"
    if trivial:
        reason = "f - f* <= gap = f only because f* >= 0: the bound of convex duality says less"
    needed = rank_bound(problem)
    if problem.dim < needed and problem.features == "free":
        reason += f"; the bound is that of unlimited dimension: for d < {needed} a positive gap may remain at the optimum"
    relative = gap / abs(value) if value else gap
    if problem.features == "nonnegative" and gap > FLOOR and relative > CLOSED:
        reason += "; the gap is open: a local minimum, or an optimum where the bound for non-negative features is not tight"
    return Certificate(gap, relative, norm, True, reason)


def _focal(problem: Problem, value: float) -> Certificate:
    bound, reason = focal_bound(problem)
    if reason:
        return uncertified(reason)
    gap = value - bound
    return Certificate(gap, gap / abs(value), float("nan"), True, "f - f* <= gap by the per-sample scalar bound")


def uncertified(reason: str) -> Certificate:
    """Return the certificate that certifies nothing, and says why."""
    return Certificate(float("nan"), float("nan"), float("nan"), False, reason)
