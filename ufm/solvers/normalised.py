"""Objectives under norm constraints, by parametrisations that satisfy them: unit rows (sphere), total norms (ball).

Sphere: w_k = U_k/|U_k|, h_t = V_t/|V_t|, logits w_k.h_t / tau.
Ball (layer-peeled): W = R_w U/sqrt(|U|^2 + u_0^2), H = R_h V/sqrt(|V|^2 + v_0^2) with two slack numbers u_0, v_0, so that
points inside the ball are reached too; R_w^2 = K E_w, R_h^2 = T E_h.
Along a line every squared norm is a quadratic in the step, so that a trial stays elementwise. What is minimised is log f
for losses that decay exponentially: at temperature .03 f itself is 1e-20 and flat to every solver.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus

from ufm.losses.ce import CrossEntropy
from ufm.losses.mse import MeanSquaredError
from ufm.reduce import Reduced
from ufm.solvers.objective import Objective

COLD = 100.0  # logit scale 1/temperature above which log f is summed in logarithms: f itself leaves float64 near 1000


class Normalised(Objective):
    """What sphere and ball share; a subclass says what is normalised and by what."""

    def __init__(self, reduced: Reduced) -> None:
        super().__init__(reduced)
        self.log = reduced.bias_penalty is None and not isinstance(reduced.loss, MeanSquaredError)
        plain = self.log and type(reduced.loss) is CrossEntropy and reduced.targets.hard and reduced.targets.unit
        self.cold = plain and bool((self.scale.abs().amax() > COLD).item())

    def rounding(self, x: Tensor) -> Tensor:
        """Return 0, (B,): nothing divides `relative` by a small penalty."""
        return x.new_zeros(len(x))

    def norms(self, x: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
        """Return x.d over the parts that share a norm: (B, K, 1) or (B, 1, 1) for U, (B, 1, T) or (B, 1, 1) for V."""
        raise NotImplementedError

    def units(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor]:
        """Return the normalised U and V, beta, and the two norms."""
        u, v, beta = self.parts(x)
        nu, nv = (n.sqrt() for n in self.norms(x, x))
        return u / nu, v / nv.mT, beta, nu, nv

    def logits(self, x: Tensor) -> Tensor:
        """Return z (B, K, T)."""
        u, v, beta, _, _ = self.units(x)
        return self.shift(torch.bmm(u, v.mT).mul_(self.scale), beta)

    def value(self, x: Tensor) -> Tensor:
        """Return f itself, (B,)."""
        penalty = 0.0 if self.bias_rate is None else 0.5 * (self.penalise(x) * x).sum(1)
        return self.data_value(self.logits(x)) + penalty

    def log_columns(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return z_jt - z_tt with -inf at the own class, s_t = log sum_j exp of it, and log(w_t loss_t); no underflow."""
        off = z - self.reduced.targets.own(z).unsqueeze(1)
        self.reduced.targets.set_own(off, -torch.inf)
        s = torch.logsumexp(off, 1)
        log_loss = torch.where(s < -30, s, softplus(s).clamp_min(1e-300).log())  # log(1 + e^s) = e^s to rounding
        return off, s, log_loss + self.reduced.weight.squeeze(1).log()

    def score(self, x: Tensor) -> Tensor:
        """Return log f at a cold temperature, where f is 0 to the machine, else f."""
        return self.log_columns(self.logits(x))[2].logsumexp(1) if self.cold else self.value(x)

    def slopes(self, z: Tensor) -> Tensor:
        """Return d log f/d z (or d f/d z), (B, K, T), in the memory of z where that serves."""
        if not self.cold:
            divisor = self.divisor(z)
            residual = self.residual(z)
            return residual if divisor is None else residual.div_(divisor)
        off, s, log_loss = self.log_columns(z)
        rate = self.reduced.weight.squeeze(1).log() - softplus(s) - log_loss.logsumexp(1, keepdim=True)
        p = off.add_(rate.unsqueeze(1)).exp_()
        self.reduced.targets.set_own(p, p.sum(1).neg_())
        return p

    def divisor(self, z: Tensor) -> Tensor | None:
        """Return what turns the gradient of f into that of log f, (B, 1, 1)."""
        return self.data_value(z).clamp_min(1e-300).view(-1, 1, 1) if self.log else None

    def gradient(self, x: Tensor) -> Tensor:
        """Return the gradient of log f (or f) with respect to the unnormalised parameters, (B, P)."""
        u, v, beta, nu, nv = self.units(x)
        z = self.shift(torch.bmm(u, v.mT).mul_(self.scale), beta)
        residual = self.slopes(z)
        out = self.penalise(x)  # zero but for the bias
        gu, gv, gb = self.parts(out)
        if gb is not None:
            gb += (residual * self.bias_rate).sum(2, keepdim=True)
        residual.mul_(self.scale)
        gu += torch.bmm(residual, v)
        gv += torch.bmm(residual.mT, u)
        ru, rv = self.norms(out, x)  # minus the radial part of every group that shares a norm
        ru, rv = ru / nu, rv / nv
        self.project(out, x, ru / nu, (rv / nv).mT)
        gu /= nu
        gv /= nv.mT
        return out

    def project(self, g: Tensor, x: Tensor, au: Tensor, av: Tensor) -> None:
        """Subtract au U and av V from the parts of g, in place."""
        gu, gv, _ = self.parts(g)
        u, v, _ = self.parts(x)
        gu -= au * u
        gv -= av * v

    def hessian(self, x: Tensor, z: Tensor | None = None) -> Callable[[Tensor], Tensor]:
        """Return d -> a central difference of gradients: the exact product of a quotient is not worth its length."""

        def product(d: Tensor) -> Tensor:
            h = 1e-6 * x.norm(dim=1, keepdim=True) / d.norm(dim=1, keepdim=True).clamp_min(1e-300)
            return (self.gradient(x + h * d) - self.gradient(x - h * d)) / (2 * h)

        return product

    def relative(self, x: Tensor, g: Tensor) -> Tensor:
        """Return |grad| of log f per unit of parameter norm and per unit of logit scale, (B,)."""
        nu, nv = (n.sqrt() for n in self.norms(x, x))
        gu, gv, gb = self.parts(g)
        size = torch.hypot((gu * nu).flatten(1).norm(dim=1), (gv * nv.mT).flatten(1).norm(dim=1))
        if gb is not None:
            size = torch.hypot(size, gb.flatten(1).norm(dim=1))
        reach = self.scale.abs().flatten(1).amax(1).clamp_min(1.0)
        return size / (reach * (self.outputs + self.groups) ** 0.5)

    def line(self, x: Tensor, d: Tensor) -> NormalisedLine:
        """Return log f (or f) along x + a d."""
        u, v, beta = self.parts(x)
        du, dv, dbeta = self.parts(d)
        z0 = torch.bmm(u, v.mT).mul_(self.scale)
        z1 = torch.bmm(u, dv.mT).add_(torch.bmm(du, v.mT)).mul_(self.scale)
        z2 = torch.bmm(du, dv.mT).mul_(self.scale)
        norms = tuple(zip(self.norms(x, x), self.norms(x, d), self.norms(d, d), strict=True))
        shift = (None, None) if beta is None else (beta * self.bias_rate, dbeta * self.bias_rate)
        pull = self.penalise(d)
        return NormalisedLine(self, (z0, z1, z2), norms[0], norms[1], shift, ((pull * x).sum(1), (pull * d).sum(1)))

    def is_zero(self, x: Tensor) -> Tensor:
        """Return False: zero is no point of a sphere, and of no interest in a ball."""
        return x.new_zeros(len(x), dtype=torch.bool)


class Sphere(Normalised):
    """Unit rows of W and unit features."""

    def norms(self, x: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
        """Return row-wise inner products."""
        u, v, _ = self.parts(x)
        du, dv, _ = self.parts(d)
        return (u * du).sum(2, keepdim=True), (v * dv).sum(2).unsqueeze(1)

    def factors(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return W, H and b."""
        u, v, beta, _, _ = self.units(x)
        return u, v, None if beta is None else beta.squeeze(2) * self.reduced.bias_scale


class Ball(Normalised):
    """|W| <= R_w and |H| <= R_h over all rows together; the last two parameters are the slacks."""

    def __init__(self, reduced: Reduced) -> None:
        super().__init__(reduced)
        self.scale = self.scale * reduced.budget.prod(1).view(-1, 1, 1)

    def start(self, x: Tensor) -> Tensor:
        """Append beta = 0 and slacks of a tenth of the norm."""
        x = super().start(x)
        return torch.cat([x, 0.1 * x.norm(dim=1, keepdim=True).expand(-1, 2)], 1)

    def norms(self, x: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
        """Return total inner products, slacks included."""
        i, j = self.split_at
        product = x * d
        u = product[:, :i].sum(1) + product[:, -2]
        v = product[:, i:j].sum(1) + product[:, -1]
        return u.view(-1, 1, 1), v.view(-1, 1, 1)

    def project(self, g: Tensor, x: Tensor, au: Tensor, av: Tensor) -> None:
        """Subtract the radial part, slacks included (they enter the norms only)."""
        super().project(g, x, au, av)
        nu, nv = (n.sqrt() for n in self.norms(x, x))
        g[:, -2] = -(au * x[:, -2].view(-1, 1, 1) / nu).flatten()
        g[:, -1] = -(av * x[:, -1].view(-1, 1, 1) / nv).flatten()

    def relative(self, x: Tensor, g: Tensor) -> Tensor:
        """Return the measure of `Normalised` with the slacks counted."""
        nu, nv = (n.sqrt().flatten() for n in self.norms(x, x))
        reach = self.scale.abs().flatten(1).amax(1).clamp_min(1.0)
        slack = torch.hypot(g[:, -2] * nu, g[:, -1] * nv) / reach
        return torch.hypot(super().relative(x, g), slack)

    def factors(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return W, H and b."""
        u, v, beta, _, _ = self.units(x)
        rw, rh = (self.reduced.budget[:, i].view(-1, 1, 1) for i in (0, 1))
        return rw * u, rh * v, None if beta is None else beta.squeeze(2) * self.reduced.bias_scale


class Tied(Sphere):
    """Supervised contrastive features: one set of unit rows V whose similarities with each other are the logits."""

    def start(self, x: Tensor) -> Tensor:
        """Return x: the parameters are V alone."""
        return x

    @property
    def bounded(self) -> tuple[int, int]:
        """All parameters are features."""
        return 0, self.groups * self.dim

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor, None]:
        """Return V twice."""
        v = x.unflatten(1, (self.groups, self.dim))
        return v, v, None

    def gradient(self, x: Tensor) -> Tensor:
        """Return the gradient of log f with respect to V."""
        v, _, _, nv, _ = self.units(x)
        z = self.shift(torch.bmm(v, v.mT).mul_(self.scale), None)
        divisor = self.divisor(z)
        residual = self.residual(z).mul_(self.scale)
        g = torch.bmm(residual + residual.mT, v) / divisor
        g -= (g * v).sum(2, keepdim=True) * v
        return (g / nv).flatten(1)

    def factors(self, x: Tensor) -> tuple[Tensor, Tensor, None]:
        """Return the features, in the place of H, and again in that of W."""
        v = self.units(x)[0]
        return v, v, None


@dataclass
class NormalisedLine:
    """log f (or f) along a direction: a quotient of quadratics in the step, elementwise."""

    objective: Normalised
    z: tuple[Tensor, Tensor, Tensor]
    norm_u: tuple[Tensor, Tensor, Tensor]  # x.x, x.d, d.d
    norm_v: tuple[Tensor, Tensor, Tensor]
    shift: tuple[Tensor | None, Tensor | None]
    pull: tuple[Tensor, Tensor]

    def slope(self, a: Tensor) -> Tensor:
        """Return the directional derivative at step a, (B,)."""
        a3 = a.view(-1, 1, 1)
        nu = self.norm_u[0] + a3 * (2 * self.norm_u[1] + a3 * self.norm_u[2])
        nv = self.norm_v[0] + a3 * (2 * self.norm_v[1] + a3 * self.norm_v[2])
        shrink = (self.norm_u[1] + a3 * self.norm_u[2]) / nu + (self.norm_v[1] + a3 * self.norm_v[2]) / nv
        both = (nu * nv).sqrt()
        z0, z1, z2 = self.z
        z = (z0 + a3 * (z1 + a3 * z2)) / both
        rate = (z1 + 2 * a3 * z2) / both - z * shrink
        if self.shift[0] is not None:
            z = z + self.shift[0] + a3 * self.shift[1]
            rate = rate + self.shift[1]
        if self.objective.reduced.offset is not None:
            z = z + self.objective.reduced.offset
        slope = (self.objective.slopes(z) * rate).sum((1, 2))
        return slope + self.pull[0] + a * self.pull[1]

    def select(self, index: Tensor) -> NormalisedLine:
        """Return the lines of some of the problems."""

        def some(parts: tuple) -> tuple:
            return tuple(None if p is None else p[index] for p in parts)

        return NormalisedLine(
            self.objective.select(index),
            some(self.z),
            some(self.norm_u),
            some(self.norm_v),
            some(self.shift),
            some(self.pull),
        )
