"""Limited-memory BFGS, batched, with a slope-only line search along exactly known logits."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ufm.solvers.linesearch import search

if TYPE_CHECKING:
    from ufm.solvers.objective import Objective

MEMORY = 10
FIRST = 0.1  # first step of a run, relative to |x|: long enough to leave the start, short enough to stay in its valley


@dataclass(frozen=True)
class State:
    """The iterate of every problem and its last m steps; slot i of the memory holds pair number i mod m."""

    x: Tensor  # (B, P)
    g: Tensor  # (B, P)
    residual: Tensor  # (B,): the scale-free gradient
    pairs: Tensor  # (B, 2m, P): s_i = x_{i+1} - x_i in the first half, y_i = g_{i+1} - g_i in the second
    inner: Tensor  # (B, 2m, m): s_i.y_j and y_i.y_j
    along: Tensor  # (B, 2m): s_i.g and y_i.g
    gamma: Tensor  # (B,): s.y / y.y of the last pair; 0 while the memory is empty
    filled: int
    stalled: Tensor  # (B,) bool: the line search found nothing even along the gradient

    def select(self, index: Tensor) -> State:
        """Return some of the problems."""
        return replace(self, **{f.name: getattr(self, f.name)[index] for f in fields(self) if f.name != "filled"})


@dataclass(frozen=True)
class LBFGS:
    """The compact form of limited-memory BFGS: three matrix products with the memory and one m x m triangular solve.

    References: Byrd, Nocedal & Schnabel 1994 (compact form); acceptance by slopes as in Hager & Zhang 2005.
    """

    memory: int = MEMORY

    def init(self, objective: Objective, x: Tensor) -> State:
        """Return the state at a start point."""
        g = objective.gradient(x)
        m, zero = self.memory, x.new_zeros(len(x))
        pairs, inner = x.new_zeros(len(x), 2 * m, x.shape[1]), x.new_zeros(len(x), 2 * m, m)
        return State(x, g, objective.relative(x, g), pairs, inner, x.new_zeros(len(x), 2 * m), zero, 0, zero.bool())

    def step(self, objective: Objective, state: State) -> State:
        """Return the state after one line search."""
        x, g = state.x, state.g
        d = self.direction(state, g)
        slope = (d * g).sum(1)
        lost = ~(slope < 0)
        if bool(lost.any()):  # rounding has spoilt the memory: start again from the gradient
            d[lost], state.gamma[lost] = -g[lost], 0.0
            forget(state, lost)
            slope = (d * g).sum(1)
        plain = state.gamma == 0
        short = FIRST * x.norm(dim=1) / d.norm(dim=1).clamp_min(1e-300)
        a = search(objective.line(x, d), slope, torch.where(plain, short, 1.0))
        new_x = x + a[:, None] * d
        new_g = objective.gradient(new_x)
        return self.remember(objective, state, new_x, new_g, stalled=(a == 0) & plain)

    def remember(self, objective: Objective, state: State, new_x: Tensor, new_g: Tensor, stalled: Tensor) -> State:
        """Return the state at a new point, the step stored over the oldest one."""
        s, y = new_x - state.x, new_g - state.g
        sy, yy = (s * y).sum(1), (y * y).sum(1)
        bad = ~(sy > 0)
        slot, m = state.filled % self.memory, self.memory
        state.pairs[:, slot], state.pairs[:, m + slot] = s, y
        # One product with the memory serves both this update and the next direction: y = g+ - g.
        along = torch.bmm(new_g.unsqueeze(1), state.pairs.mT).squeeze(1)
        products = along - state.along  # s_i.y and y_i.y
        products[:, slot], products[:, m + slot] = sy, yy
        state.inner[:, :, slot] = products
        state.inner[:, m + slot, :] = products[:, m:]
        gamma = sy / yy.clamp_min(1e-300)
        if bool(bad.any()):
            forget(state, bad)
            gamma = torch.where(bad, 0.0, gamma)
        return replace(
            state,
            x=new_x,
            g=new_g,
            residual=objective.relative(new_x, new_g),
            along=along.masked_fill_(bad[:, None], 0.0),
            gamma=gamma,
            filled=state.filled + 1,
            stalled=stalled,
        )

    def direction(self, state: State, g: Tensor) -> Tensor:
        """Return -H g, H the inverse-Hessian estimate of the stored pairs.

        H = gamma I + [S, gamma Y] [[R^-T (D + gamma Y'Y) R^-1, -R^-T], [-R^-1, 0]] [S, gamma Y]',
        R_ij = s_i.y_j for i <= j in order of age, D its diagonal.
        """
        count, m = min(state.filled, self.memory), self.memory
        if count == 0:
            return -g
        # In order of age; what a reused slot still holds of its former pair lies below the triangle.
        order = [(state.filled - count + i) % m for i in range(count)]
        if order != list(range(count)):
            order_s = torch.tensor(order, device=g.device)
            inner_s, inner_y = state.inner[:, order_s][:, :, order_s], state.inner[:, m + order_s][:, :, order_s]
        else:
            order_s = slice(0, count)
            inner_s, inner_y = state.inner[:, :count, :count], state.inner[:, m : m + count, :count]
        gamma = torch.where(state.gamma == 0, 1.0, state.gamma)[:, None]
        products = state.along
        p1, p2 = products[:, :m][:, order_s], gamma * products[:, m:][:, order_s]
        diagonal = inner_s.diagonal(dim1=1, dim2=2)
        upper = inner_s.triu()
        upper.diagonal(dim1=1, dim2=2).copy_(torch.where(diagonal == 0, 1.0, diagonal))  # an empty slot stays out of it
        w = torch.linalg.solve_triangular(upper, p1.unsqueeze(2), upper=True)
        right = diagonal.unsqueeze(2) * w + gamma.unsqueeze(2) * torch.bmm(inner_y, w) - p2.unsqueeze(2)
        w1 = torch.linalg.solve_triangular(upper.mT, right, upper=False).squeeze(2)
        coefficients = torch.zeros_like(products)
        coefficients[:, :m][:, order_s] = w1
        coefficients[:, m:][:, order_s] = -gamma * w.squeeze(2)
        return torch.bmm(coefficients.unsqueeze(1), state.pairs).squeeze(1).add_(gamma * g).neg_()


def forget(state: State, which: Tensor) -> None:
    """Empty the memory of some problems, in place."""
    state.pairs[which] = 0.0
    state.inner[which] = 0.0
    state.along[which] = 0.0
