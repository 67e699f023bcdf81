"""Limited-memory BFGS, batched, with a slope-only line search along exactly known logits."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from ufm.solvers.linesearch import search

MEMORY = 20


@dataclass(frozen=True)
class State:
    """The iterate of every problem and the last `MEMORY` steps."""

    x: Tensor  # (B, P)
    g: Tensor  # (B, P)
    residual: Tensor  # (B,): the scale-free gradient
    steps: Tensor  # (B, m, P): s_i = x_{i+1} - x_i
    changes: Tensor  # (B, m, P): y_i = g_{i+1} - g_i
    rho: Tensor  # (B, m): 1/(s.y), 0 where a pair is not used
    gamma: Tensor  # (B,): s.y / y.y of the last pair
    filled: int  # pairs stored so far; pair i lives in slot i mod m
    stalled: Tensor  # (B,) bool: the line search found nothing even along the gradient

    def select(self, index: Tensor) -> State:
        """Return some of the problems."""
        return replace(self, **{f.name: getattr(self, f.name)[index] for f in fields(self) if f.name != "filled"})


@dataclass(frozen=True)
class LBFGS:
    """Nocedal's two-loop recursion over a batch.

    Reference: Liu & Nocedal 1989; acceptance by slopes near the optimum as in Hager & Zhang 2005.
    """

    memory: int = MEMORY

    def init(self, objective, x: Tensor) -> State:
        """Return the state at a start point."""
        g = objective.gradient(x)
        empty = x.new_zeros(len(x), self.memory, x.shape[1])
        zero = x.new_zeros(len(x))
        return State(x, g, objective.relative(x, g), empty, empty.clone(), x.new_zeros(len(x), self.memory), zero, 0, zero.bool())

    def step(self, objective, state: State) -> State:
        """Return the state after one line search."""
        x, g = state.x, state.g
        d = self._direction(state)
        slope = (d * g).sum(1)
        reset = ~(slope < 0)
        if bool(reset.any()):  # rounding has spoilt the memory: start again from the gradient
            d = torch.where(reset[:, None], -g, d)
            slope = (d * g).sum(1)
            state.rho[reset] = 0.0
        plain = (state.rho == 0).all(1)
        first = torch.where(plain, (x.norm(dim=1) / d.norm(dim=1).clamp_min(1e-300)).mul(0.1).clamp_min(1e-300), 1.0)
        a = search(objective.line(x, d), slope, first)
        s = a[:, None] * d
        new_x = x + s
        new_g = objective.gradient(new_x)
        y = new_g - g
        sy = (s * y).sum(1)
        keep = sy > 1e-300
        slot = state.filled % self.memory
        state.steps[:, slot], state.changes[:, slot] = s, y
        state.rho[:, slot] = torch.where(keep, 1 / sy.clamp_min(1e-300), 0.0)
        failed = a == 0
        state.rho[failed] = 0.0
        return replace(
            state,
            x=new_x,
            g=new_g,
            residual=objective.relative(new_x, new_g),
            gamma=torch.where(keep, sy / (y * y).sum(1).clamp_min(1e-300), state.gamma),
            filled=state.filled + 1,
            stalled=failed & plain,
        )

    def _direction(self, state: State) -> Tensor:
        """Return -H g, H the inverse-Hessian estimate of the stored pairs."""
        q = state.g.clone()
        count = min(state.filled, self.memory)
        slots = [(state.filled - 1 - i) % self.memory for i in range(count)]
        alphas = []
        for i in slots:
            alpha = (state.steps[:, i] * q).sum(1).mul_(state.rho[:, i])
            q.addcmul_(alpha[:, None], state.changes[:, i], value=-1)
            alphas.append(alpha)
        used = (state.rho != 0).any(1)
        q.mul_(torch.where(used, state.gamma, 1.0)[:, None])
        for i, alpha in zip(reversed(slots), reversed(alphas), strict=True):
            beta = (state.changes[:, i] * q).sum(1).mul_(state.rho[:, i])
            q.addcmul_((alpha - beta)[:, None], state.steps[:, i])
        return q.neg_()
