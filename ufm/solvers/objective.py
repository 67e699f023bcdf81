"""The penalised objective of a batch in balanced coordinates: gradient, and its exact restriction to a line.

f(U, V, beta) = sum_t w_t loss(z_t) + c/2 (|U|^2 + |V|^2) + lambda_b/2 |b|^2,   z_t = scale * (U V_t/sqrt(n_t) + b) + offset
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ufm.reduce import Reduced


class Objective:
    """f of a batch; points are rows of a (B, P) tensor holding U (K, r), V (T, r) and beta (K,)."""

    def __init__(self, reduced: Reduced) -> None:
        self.reduced = reduced
        self.batch, self.groups, self.outputs, self.dim = reduced.shape
        self.split_at = (self.outputs * self.dim, (self.outputs + self.groups) * self.dim)
        scale = reduced.row_scale if reduced.column_scale is None else reduced.row_scale * reduced.column_scale
        self.scale = scale  # (B, T, 1) or (B, T, K): d z / d (U V_t)
        self.bias_rate = None  # (B, 1, 1) or (B, 1, K): d z / d beta
        if reduced.bias_scale is not None:
            rate = reduced.bias_scale.unsqueeze(2)
            self.bias_rate = rate if reduced.column_scale is None else rate * reduced.column_scale
        self.c = reduced.penalty.unsqueeze(1)

    def select(self, index: Tensor) -> Objective:
        """Return the objective of some of the problems."""
        return type(self)(self.reduced.select(index))

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return views U (B, K, r), V (B, T, r) and beta (B, 1, K) or None."""
        i, j = self.split_at
        u = x[:, :i].view(-1, self.outputs, self.dim)
        v = x[:, i:j].view(-1, self.groups, self.dim)
        return u, v, None if self.bias_rate is None else x[:, j:].unsqueeze(1)

    def logits(self, x: Tensor) -> Tensor:
        """Return z (B, T, K), scale and offset applied."""
        u, v, beta = self.parts(x)
        z = torch.bmm(v, u.mT).mul_(self.scale)
        if beta is not None:
            z.addcmul_(beta.expand_as(z), self.bias_rate.expand_as(z))
        if self.reduced.offset is not None:
            z += self.reduced.offset
        return z

    def value(self, x: Tensor) -> Tensor:
        """Return f, (B,)."""
        loss = self.reduced.loss.value(self.logits(x), self.reduced.targets)
        return (loss * self.reduced.weight.squeeze(2)).sum(1) + 0.5 * (self.penalise(x) * x).sum(1)

    def penalise(self, x: Tensor) -> Tensor:
        """Return the gradient of the penalty, (B, P)."""
        if self.bias_rate is None:
            return self.c * x
        out, j = self.c * x, self.split_at[1]
        r = self.reduced
        out[:, j:] = r.bias_penalty * r.bias_scale**2 * x[:, j:]
        return out

    def gradient(self, x: Tensor, z: Tensor | None = None) -> Tensor:
        """Return the gradient, (B, P); `z` are the logits of x where they are known."""
        r = self.reduced
        residual = r.loss.gradient(self.logits(x) if z is None else z, r.targets).mul_(r.weight)
        u, v, _ = self.parts(x)
        out = self.penalise(x)
        gu, gv, gb = self.parts(out)
        if gb is not None:
            gb += (residual * self.bias_rate).sum(1, keepdim=True)
        residual.mul_(self.scale)
        gu.baddbmm_(residual.mT, v)
        gv.baddbmm_(residual, u)
        return out

    def relative(self, x: Tensor, g: Tensor) -> Tensor:
        """Return |grad| / (c |x|), (B,), the bias measured in its own unit."""
        j = self.split_at[1]
        size = x[:, :j].norm(dim=1)
        norm = g[:, :j].norm(dim=1)
        if self.bias_rate is not None:
            norm = torch.hypot(norm, g[:, j:].norm(dim=1) / self.reduced.bias_scale.squeeze(1))
        return norm / (self.c.squeeze(1) * size).clamp_min(1e-300)

    def line(self, x: Tensor, d: Tensor, z: Tensor | None = None) -> Line:
        """Return f along x + a d: the logits there are z0 + a z1 + a^2 z2."""
        u, v, _ = self.parts(x)
        du, dv, dbeta = self.parts(d)
        z1 = torch.bmm(v, du.mT).baddbmm_(dv, u.mT).mul_(self.scale)
        z2 = torch.bmm(dv, du.mT).mul_(self.scale)
        if dbeta is not None:
            z1 += dbeta * self.bias_rate
        pull = self.penalise(d)
        return Line(self.reduced, self.logits(x) if z is None else z, z1, z2, (pull * x).sum(1), (pull * d).sum(1))


@dataclass
class Line:
    """The objective along a direction; a trial costs elementwise work on (T, K) only."""

    reduced: Reduced
    z0: Tensor
    z1: Tensor
    z2: Tensor
    first: Tensor  # (B,): penalty' = first + a second
    second: Tensor

    def at(self, a: Tensor) -> Tensor:
        """Return the logits at step a (B,)."""
        a = a.view(-1, 1, 1)
        return torch.addcmul(self.z0, a, torch.addcmul(self.z1, a, self.z2))

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
