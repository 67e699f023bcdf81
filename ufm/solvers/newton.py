"""Truncated Newton, batched: conjugate gradients on Hessian products, then the slope-only line search."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ufm.solvers.lbfgs import FIRST
from ufm.solvers.linesearch import search

if TYPE_CHECKING:
    from ufm.solvers.objective import Objective

INNER = 250  # most products of one step
TRUST = 0.1  # ... which ends where it is longer than this share of |x|: beyond it the model says nothing


@dataclass(frozen=True)
class State:
    """The iterate of every problem."""

    x: Tensor  # (B, P)
    g: Tensor  # (B, P)
    residual: Tensor  # (B,)
    stalled: Tensor  # (B,) bool

    def select(self, index: Tensor) -> State:
        """Return some of the problems."""
        return replace(self, **{f.name: getattr(self, f.name)[index] for f in fields(self)})


@dataclass(frozen=True)
class Newton:
    """Newton-CG with the Eisenstat-Walker accuracy min(1/4, sqrt(residual)); negative curvature ends the inner loop.

    Reference: Nocedal & Wright 2006, algorithm 7.1.
    """

    def init(self, objective: Objective, x: Tensor) -> State:
        """Return the state at a start point."""
        g = objective.gradient(x)
        return State(x, g, objective.relative(x, g), x.new_zeros(len(x), dtype=torch.bool))

    def step(self, objective: Objective, state: State) -> State:
        """Return the state after one Newton direction and one line search."""
        x, g = state.x, state.g
        z = objective.logits(x)
        d, newton = inner(objective.hessian(x, z), x, g, state.residual.sqrt().clamp_max(0.25))
        slope = (d * g).sum(1)
        short = FIRST * x.norm(dim=1) / d.norm(dim=1).clamp_min(1e-300)
        a = search(objective.line(x, d, z), slope, torch.where(newton, 1.0, short))
        new_x = x + a[:, None] * d
        new_g = objective.gradient(new_x)
        return State(new_x, new_g, objective.relative(new_x, new_g), a == 0)


def inner(product: Callable[[Tensor], Tensor], x: Tensor, g: Tensor, accuracy: Tensor) -> tuple[Tensor, Tensor]:
    """Return directions (B, P), and for which problems they are Newton's (no negative curvature at the first product)."""
    d, r = torch.zeros_like(g), -g
    p, rr = r, g.square().sum(1)
    goal = accuracy.square() * rr
    radius = TRUST * x.norm(dim=1)
    going, newton = rr > 0, torch.ones_like(accuracy, dtype=torch.bool)
    for i in range(INNER):
        q = product(p)
        curvature, length = (p * q).sum(1), p.norm(dim=1)
        bent = curvature <= 1e-12 * q.norm(dim=1) * length
        if i == 0:
            newton = ~bent
            d = torch.where(bent[:, None], r, d)
        going = going & ~bent
        a = torch.where(going, rr / curvature.clamp_min(1e-300), 0.0)[:, None]
        d, r = torch.addcmul(d, a, p), torch.addcmul(r, a, q, value=-1)
        new = r.square().sum(1)
        going = going & (new > goal) & (d.norm(dim=1) < radius)
        if not bool(going.any()):
            break
        p = torch.addcmul(r, torch.where(going, new / rr.clamp_min(1e-300), 0.0)[:, None], p)
        rr = new
    return d, newton
