"""One step of gradient descent, momentum or Adam for a batch of problems of equal shape; see `ufm.solvers.descent`."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ufm.losses.protocol import Targets
from ufm.problem import Problem
from ufm.reduce import loss_of, sample_weights
from ufm.solvers.products import Block, by_numpy, multiply, product

if TYPE_CHECKING:
    from ufm.solvers.descent import Columns

MOMENTUM = 0.9
BETAS, EPSILON = (0.9, 0.999), 1e-8  # torch.optim.Adam


class System:
    """A batch of equal shape: U (B, K, r), X (B, r, C), b (B, K, 1), and the gradient of f there."""

    def __init__(self, problems: Sequence[Problem], columns: Sequence[Columns], device: str) -> None:
        first, self.loss = problems[0], loss_of(problems[0].loss)
        batch, count = len(problems), len(columns[0].kept)
        rows, weight = np.zeros((batch, first.classes, count)), np.zeros((batch, 1, count))
        outputs, on = np.ones((batch, first.classes, 1)), np.zeros((batch, 1, count))
        share, offset = np.zeros((batch, 1, count)), np.zeros((batch, first.classes, 1))
        for i, (p, c) in enumerate(zip(problems, columns, strict=True)):
            real = c.kept >= 0
            rows[i][:, real] = self.loss.rows(p)[c.kept[real]].T
            weights = np.broadcast_to(sample_weights(p), p.count_vector.shape)
            weight[i, 0], share[i, 0] = np.where(real, weights[c.kept], 1.0) / p.total, c.share
            on[i, 0] = real * c.share**0.5
            if p.logit_scale is not None:
                outputs[i, :, 0] = p.logit_scale
            offset[i, :, 0] = 0.0 if p.logit_offset is None else p.logit_offset

        def tensor(array: np.ndarray) -> Tensor:
            return torch.as_tensor(np.ascontiguousarray(array, dtype=np.float64), device=device)

        mass = rows.sum(1, keepdims=True)
        if (rows == rows[:1]).all():
            rows = rows[:1]
        gamma = tensor(np.array([[p.focal_gamma] for p in problems])) if first.loss == "focal" else None
        self.targets = Targets(
            tensor(rows),
            tensor(mass),
            torch.as_tensor(np.broadcast_to(rows.argmax(1)[:, None], mass.shape).copy(), device=device),
            diagonal=False,
            hard=first.targets is None and first.loss != "smoothing",
            parameter=gamma,
            unit=bool((mass == 1).all()),
            rough=True,
        )
        # a kept column of norm sqrt(share) h stands for `share` samples: z = scale U X, d f/d (U X) = rate * d loss/d z
        self.scale = _plain(tensor(outputs * share**-0.5))
        self.rate = _plain(tensor(weight * share**0.5 * outputs))
        self.on = tensor(on) if first.bias != "none" else None
        self.offset = tensor(offset) if (offset != 0).any() else None
        lambdas = [[p.layer_lambdas[0], p.lambda_h, p.lambda_b] for p in problems]
        self.lambda_w, self.lambda_h, self.lambda_b = (tensor(np.array(lambdas))[:, i].view(-1, 1, 1) for i in range(3))
        self.nonnegative = first.features == "nonnegative"
        # residuals that are `slope * p + shift`, p = z or p = softmax(z): one pass instead of three
        self.squared = first.loss == "mse"
        self.slope = self.shift = None
        if self.squared:
            self.slope = _plain(tensor(weight * outputs**2))  # rate * scale: the share cancels
            self.shift = _alike((tensor(offset) - self.targets.rows) * self.rate)
        elif self.targets.unit and first.loss in ("ce", "smoothing"):
            self.slope, self.shift = self.rate, _alike(-self.targets.rows * self.rate)

    def select(self, index: Tensor) -> System:
        """Return some of the problems."""
        some = copy.copy(self)
        for name, value in vars(self).items():
            if isinstance(value, Tensor) and len(value) > 1:
                some.__dict__[name] = value[index]
        some.targets = self.targets.select(index)
        return some

    def times(self, factor: float) -> System:
        """Return the same system with its residuals multiplied by a number."""
        some = copy.copy(self)
        some.rate = self.rate * factor
        if self.slope is not None:
            some.slope, some.shift = self.slope * factor, self.shift * factor
        return some

    def residual(self, z: Tensor, b: Tensor, out: Tensor) -> None:
        """Write d f/d (U X) of the data term, (B, K, C), into `out`; z is U X, and its memory is used."""
        if self.on is not None:
            z.addcmul_(b, self.on)
        if not self.squared:
            if not isinstance(self.scale, float) or self.scale != 1.0:
                z.mul_(self.scale)
            if self.offset is not None:
                z += self.offset
        if self.slope is None:
            torch.mul(self.loss.gradient(z, self.targets), self.rate, out=out)
            return
        p = z if self.squared else torch.softmax(z, 1, out=out)
        if isinstance(self.slope, float):
            torch.add(self.shift, p, alpha=self.slope, out=out)
        else:
            torch.addcmul(self.shift, p, self.slope, out=out)

    def gradient(self, u: Tensor, x: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return the gradients with respect to U, X and b."""
        z = product(u, x)
        r = torch.empty_like(z)
        self.residual(z, b, r)
        gu = product(r, x.mT).addcmul_(u, self.lambda_w)
        gx = product(u.mT, r).addcmul_(x, self.lambda_h)
        gb = None if self.on is None else (r * self.on).sum(2, keepdim=True).addcmul_(self.lambda_b, b)
        return gu, gx, gb

    def relative(self, u: Tensor, x: Tensor, b: Tensor) -> Tensor:
        """Return |grad| / (c |x|) in balanced coordinates, |grad| itself where there is no penalty, (B,)."""
        gu, gx, gb = self.gradient(u, x, b)
        c = (self.lambda_w * self.lambda_h).sqrt().flatten()
        ratio = torch.where(c > 0, (self.lambda_h / self.lambda_w).flatten().sqrt(), 1.0)
        norm = ratio * gu.square().sum((1, 2)) + gx.square().sum((1, 2)) / ratio
        if gb is not None:
            norm = norm + gb.square().sum((1, 2))
        size = u.square().sum((1, 2)) / ratio + ratio * x.square().sum((1, 2))
        return norm.sqrt() / torch.where(c > 0, c * size.sqrt(), 1.0).clamp_min(1e-300)


def _plain(tensor: Tensor) -> Tensor | float:
    """Return a number for a tensor of equal entries: elementwise work with a number is half the memory traffic."""
    first = float(tensor.flatten()[0])
    return first if bool((tensor == first).all()) else tensor


def _alike(tensor: Tensor) -> Tensor:
    """Return one matrix for a batch of equal ones."""
    return tensor[:1].clone() if bool((tensor == tensor[:1]).all()) else tensor


class Walk:
    """The moving matrices of a batch; gradient descent and momentum are one recurrence for U, X and b alike.

        next = keep now - mu before - lr (data gradient),   keep = 1 + mu - lr lambda,

    in two or three buffers that take turns. PyTorch adds a product to what it writes over, at no cost; NumPy only writes,
    so that its product goes into the spare buffer and the rest is added there.
    """

    def __init__(self, method: str, system: System, parts: Sequence[Tensor], lr: float) -> None:
        self.method, self.system, self.lr, self.count = method, system, lr, 0
        slots = {"gd": 0, "momentum": 1, "adam": 2}[method]
        memory = [[t.clone() if method == "momentum" else torch.zeros_like(t) for t in parts] for _ in range(slots)]
        self._place([t.contiguous() for t in parts], memory)

    def _place(self, parts: list[Tensor], memory: list[list[Tensor]]) -> None:
        """Take the tensors of a walk, and the buffers and constants of its steps."""
        s, self.bias, self.memory = self.system, parts[2], memory
        shape = (len(parts[0]), parts[0].shape[1], parts[1].shape[2])
        numpy = by_numpy(parts[0], parts[0][0].numel() * shape[2])
        self.now = [Block(t, numpy) for t in parts[:2]]
        if self.method == "adam":
            return
        self.before = [Block(t, numpy) for t in memory[0][:2]] if memory else []
        self.spare = [Block(torch.empty_like(t), numpy) for t in parts[:2]]
        self.logits, self.residual = (Block(parts[0].new_empty(shape), numpy) for _ in range(2))
        self.descending = s.times(-self.lr)
        whole = 1.0 + (MOMENTUM if memory else 0.0)
        self.keep = [whole - self.lr * penalty for penalty in (s.lambda_w, s.lambda_h, s.lambda_b)]
        self.adds = not numpy

    @property
    def parts(self) -> list[Tensor]:
        """U, X, b; the next step changes them."""
        return [self.now[0].values, self.now[1].values, self.bias]

    def step(self) -> None:
        """Move once."""
        self.count += 1
        if self.method == "adam":
            self._adam()
        else:
            (u, x), r = self.now, self.residual
            multiply(u.plain, x.plain, self.logits.plain)
            self.descending.residual(self.logits.values, self.bias, r.values)
            self._advance(0, r.plain, x.flipped)
            self._advance(1, u.flipped, r.plain)
            if self.system.on is not None:
                self._advance_bias()
        if self.system.nonnegative:
            self.now[1].values.clamp_min_(0.0)

    def _advance(self, i: int, a: np.ndarray | Tensor, b: np.ndarray | Tensor) -> None:
        """Move U (i = 0) or X (i = 1), given two factors of its step; U stays readable until X has moved."""
        now, keep = self.now[i], self.keep[i]
        if self.adds and self.before:
            new = self.before[i]
            new.values.baddbmm_(a, b, beta=-MOMENTUM).addcmul_(now.values, keep)
            self.before[i] = now
        elif self.adds and i == 1:
            now.values.mul_(keep).baddbmm_(a, b)
            return
        else:
            new = self.spare[i]
            multiply(a, b, new.plain)
            new.values.addcmul_(now.values, keep)
            self.spare[i] = now
            if self.before:
                new.values.add_(self.before[i].values, alpha=-MOMENTUM)
                self.spare[i], self.before[i] = self.before[i], now
        self.now[i] = new

    def _advance_bias(self) -> None:
        new = (self.residual.values * self.system.on).sum(2, keepdim=True).addcmul_(self.bias, self.keep[2])
        if self.before:
            new.add_(self.memory[0][2], alpha=-MOMENTUM)
            self.memory[0][2] = self.bias
        self.bias = new

    def _adam(self) -> None:
        corrections = [1 - beta**self.count for beta in BETAS]
        for part, g, first, second in zip(self.parts, self.system.gradient(*self.parts), *self.memory, strict=True):
            if g is None:
                continue
            first.lerp_(g, 1 - BETAS[0])
            second.mul_(BETAS[1]).addcmul_(g, g, value=1 - BETAS[1])
            part.addcdiv_(first, (second / corrections[1]).sqrt_().add_(EPSILON), value=-self.lr / corrections[0])

    def select(self, index: Tensor) -> Walk:
        """Return some of the problems."""
        some = copy.copy(self)
        some.system = self.system.select(index)
        memory = self.memory
        if self.method == "momentum":
            memory = [[*(block.values for block in self.before), self.memory[0][2]]]
        some._place([t[index] for t in self.parts], [[t[index] for t in slot] for slot in memory])
        return some
