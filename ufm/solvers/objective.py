"""The penalised objective of a batch in balanced coordinates: gradient, and its exact restriction to a line.

f(U, V, beta) = sum_t w_t loss(z_t) + c/2 (|U|^2 + |V|^2) + lambda_b/2 |b|^2,   z_t = scale * (U V_t/sqrt(n_t) + b) + offset
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ufm.certify import spectral_norm
from ufm.losses.mse import MeanSquaredError
from ufm.reduce import Reduced

EPSILON = 2.0**-52
NOISE = 4.0  # measured: the residual wanders up to twice its estimated rounding error
SMALL = 1e-9  # c |x|^2 below this share of the loss at zero: time to ask whether zero is the optimum


class Objective:
    """f of a batch; points are rows of a (B, P) tensor holding U (K, r), V (T, r) and beta (K,)."""

    def __init__(self, reduced: Reduced) -> None:
        self.reduced = reduced
        self.batch, self.outputs, self.groups, self.dim = reduced.shape
        self.split_at = (self.outputs * self.dim, (self.outputs + self.groups) * self.dim)
        scale = reduced.feature_scale if reduced.logit_scale is None else reduced.feature_scale * reduced.logit_scale
        self.scale = scale  # (B, 1, T) or (B, K, T): d z / d (U V_t)
        self.bias_rate = None  # (B, 1, 1) or (B, K, 1): d z / d beta
        if reduced.bias_scale is not None:
            rate = reduced.bias_scale.unsqueeze(2)
            self.bias_rate = rate if reduced.logit_scale is None else rate * reduced.logit_scale
        self.c = reduced.penalty.unsqueeze(1)

    @property
    def bounded(self) -> tuple[int, int]:
        """The range of parameters that are features, which may have to be >= 0."""
        return self.split_at

    def select(self, index: Tensor) -> Objective:
        """Return the objective of some of the problems."""
        return type(self)(self.reduced.select(index))

    def start(self, x: Tensor) -> Tensor:
        """Return a start point of all parameters from random U and V, (B, (K + T) r)."""
        return x if self.bias_rate is None else torch.cat([x, x.new_zeros(len(x), self.outputs)], 1)

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return views U (B, K, r), V (B, T, r) and beta (B, K, 1) or None."""
        i, j = self.split_at
        u = x[:, :i].unflatten(1, (self.outputs, self.dim))
        v = x[:, i:j].unflatten(1, (self.groups, self.dim))
        return u, v, None if self.bias_rate is None else x[:, j : j + self.outputs].unsqueeze(2)

    def logits(self, x: Tensor) -> Tensor:
        """Return z (B, K, T), scale and offset applied."""
        u, v, beta = self.parts(x)
        return self.shift(torch.bmm(u, v.mT).mul_(self.scale), beta)

    def shift(self, z: Tensor, beta: Tensor | None) -> Tensor:
        """Add bias and offset to z, in place."""
        if beta is not None:
            z += beta * self.bias_rate
        if self.reduced.offset is not None:
            z += self.reduced.offset
        return z

    def residual(self, z: Tensor) -> Tensor:
        """Return w_t times the gradient of the loss, (B, K, T), in the memory of z."""
        return self.reduced.loss.gradient(z, self.reduced.targets).mul_(self.reduced.weight)

    def data_value(self, z: Tensor) -> Tensor:
        """Return sum_t w_t loss(z_t), (B,)."""
        return (self.reduced.loss.value(z, self.reduced.targets) * self.reduced.weight.squeeze(1)).sum(1)

    def value(self, x: Tensor) -> Tensor:
        """Return f, (B,)."""
        return self.data_value(self.logits(x)) + 0.5 * (self.penalise(x) * x).sum(1)

    def score(self, x: Tensor) -> Tensor:
        """Return what end points are ranked by, (B,): f, or log f where f is too small for it."""
        return self.value(x)

    def penalise(self, x: Tensor) -> Tensor:
        """Return the gradient of the penalty, (B, P)."""
        out = self.c * x
        if self.bias_rate is not None:
            r, j = self.reduced, self.split_at[1]
            torch.mul(r.bias_penalty * r.bias_scale**2, x[:, j : j + self.outputs], out=out[:, j : j + self.outputs])
        return out

    def gradient(self, x: Tensor, z: Tensor | None = None) -> Tensor:
        """Return the gradient, (B, P); z are the logits at x where they are known, kept as they are."""
        residual = self.residual(self.logits(x) if z is None else z.clone())
        u, v, _ = self.parts(x)
        out = self.penalise(x)
        gu, gv, gb = self.parts(out)
        if gb is not None:
            gb += (residual * self.bias_rate).sum(2, keepdim=True)
        residual.mul_(self.scale)
        gu += torch.bmm(residual, v)
        gv += torch.bmm(residual.mT, u)
        return out

    def hessian(self, x: Tensor, z: Tensor | None = None) -> Callable[[Tensor], Tensor]:
        """Return the map from d (B, P) to the Hessian at x applied to d; z are the logits at x where they are known."""
        r = self.reduced
        u, v, _ = self.parts(x)
        z = self.logits(x) if z is None else z
        curvature = r.loss.hessian(z, r.targets)
        residual = self.residual(z.clone()).mul_(self.scale)
        weighted = r.weight * self.scale

        def product(d: Tensor) -> Tensor:
            du, dv, dbeta = self.parts(d)
            dz = torch.bmm(du, v.mT).baddbmm_(u, dv.mT).mul_(self.scale)
            if dbeta is not None:
                dz += dbeta * self.bias_rate
            curved = curvature(dz)
            out = self.penalise(d)
            gu, gv, gb = self.parts(out)
            if gb is not None:
                gb += (curved * r.weight * self.bias_rate).sum(2, keepdim=True)
            curved.mul_(weighted)
            gu.baddbmm_(curved, v).baddbmm_(residual, dv)
            gv.baddbmm_(curved.mT, u).baddbmm_(residual.mT, du)
            return out

        return product

    def relative(self, x: Tensor, g: Tensor) -> Tensor:
        """Return |grad| / (c |x|), (B,), the bias measured in its own unit."""
        j = self.split_at[1]
        norm = g[:, :j].norm(dim=1)
        if self.bias_rate is not None:
            norm = torch.hypot(norm, g[:, j:].norm(dim=1) / self.reduced.bias_scale.squeeze(1))
        return norm / (self.c.squeeze(1) * x[:, :j].norm(dim=1)).clamp_min(1e-300)

    def rounding(self, x: Tensor) -> Tensor:
        """Return how uncertain `relative` is at x, (B,): epsilon times what is summed up, per c.

        Against a hard target the residual of a probability is as exact as it is small; others are differences of order 1.
        """
        r = self.reduced
        size = r.weight * self.scale.abs()
        if r.targets.hard and not isinstance(r.loss, MeanSquaredError):
            size = size * self.residual(self.logits(x)).abs() / r.weight.clamp_min(1e-300)
        return NOISE * EPSILON * size.flatten(1).amax(1) / self.c.squeeze(1).clamp_min(1e-300)

    def line(self, x: Tensor, d: Tensor, z: Tensor | None = None) -> Line:
        """Return f along x + a d: the logits there are z0 + a z1 + a^2 z2, z0 = z where it is known."""
        u, v, _ = self.parts(x)
        du, dv, dbeta = self.parts(d)
        z1 = torch.bmm(u, dv.mT).add_(torch.bmm(du, v.mT)).mul_(self.scale)
        z2 = torch.bmm(du, dv.mT).mul_(self.scale)
        if dbeta is not None:
            z1 += dbeta * self.bias_rate
        pull = self.penalise(d)
        return Line(self.reduced, self.logits(x) if z is None else z, z1, z2, (pull * x).sum(1), (pull * d).sum(1))

    def zero(self, x: Tensor) -> Tensor:
        """Return x with U = V = 0 and the bias kept."""
        out, j = x.clone(), self.split_at[1]
        out[:, :j] = 0
        return out

    def is_zero(self, x: Tensor) -> Tensor:
        """Return which iterates are the zero solution: small, and zero passes the first-order test |grad loss| <= c.

        The norm is the spectral one, or its bound over v >= 0 where features are: what the duality gap of zero is closed by.
        """
        j = self.split_at[1]
        small = self.c.squeeze(1) * x[:, :j].square().sum(1) < SMALL
        if bool(small.any()):
            index = small.nonzero().squeeze(1)
            some = self.select(index)
            residual = some.residual(some.logits(some.zero(x[index]))).mul_(some.scale)
            small[index] = spectral_norm(residual, self.reduced.nonnegative) <= some.c.squeeze(1) * (1 + 1e-12)
        return small

    def factors(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return U, V and b (B, K) with norm constraints applied; unscaled under penalties."""
        u, v, beta = self.parts(x)
        return u, v, None if beta is None else beta.squeeze(2) * self.reduced.bias_scale


@dataclass
class Line:
    """The objective along a direction; a trial costs elementwise work on (K, T) only."""

    reduced: Reduced
    z0: Tensor
    z1: Tensor
    z2: Tensor
    first: Tensor  # (B,): penalty' = first + a second
    second: Tensor

    def slope(self, a: Tensor) -> Tensor:
        """Return the directional derivative at step a, (B,)."""
        a3 = a.view(-1, 1, 1)
        rate = torch.addcmul(self.z1, a3, self.z2)
        z = torch.addcmul(self.z0, a3, rate)
        rate.addcmul_(a3, self.z2)
        residual = self.reduced.loss.gradient(z, self.reduced.targets).mul_(self.reduced.weight)
        return residual.mul_(rate).sum((1, 2)) + self.first + a * self.second

    def select(self, index: Tensor) -> Line:
        """Return the lines of some of the problems."""
        parts = (self.z0, self.z1, self.z2, self.first, self.second)
        return Line(self.reduced.select(index), *(p[index] for p in parts))
