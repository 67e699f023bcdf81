"""L-BFGS for features h >= 0: variables held at zero by their gradient leave the step, the others move as usual.

At V >= 0 the points where a coordinate is 0 and its derivative positive are the active set. The quasi-Newton direction is
taken on the rest (the memory is masked before every product), and a step that crosses a bound is projected back; it is
halved until the projected point is lower. Once the active set has settled this is L-BFGS with the slope-only search.
Reference: Bertsekas 1982 (projected Newton methods with an active set).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ufm.solvers.lbfgs import FIRST, LBFGS, State, forget
from ufm.solvers.linesearch import search

if TYPE_CHECKING:
    from ufm.solvers.objective import Objective

HALVINGS = 40
ROUNDING = 1e-14  # relative noise of a function value: a projected step may not be seen to rise by more


@dataclass(frozen=True)
class Projected(LBFGS):
    """`LBFGS` on the free variables of V >= 0."""

    def init(self, objective: Objective, x: Tensor) -> State:
        """Return the state at a start point with V >= 0; `residual` is that of the projected gradient."""
        state = super().init(objective, x)
        held = self.held(objective, x, state.g)
        state.residual.copy_(objective.relative(x, state.g.masked_fill(held, 0.0)))
        return state

    def held(self, objective: Objective, x: Tensor, g: Tensor) -> Tensor:
        """Return which variables stay at their bound, (B, P) bool."""
        i, j = objective.bounded
        held = torch.zeros_like(x, dtype=torch.bool)
        held[:, i:j] = (x[:, i:j] <= 0) & (g[:, i:j] > 0)
        return held

    def step(self, objective: Objective, state: State) -> State:
        """Return the state after one projected line search."""
        x, g = state.x, state.g
        i, j = objective.bounded
        held = self.held(objective, x, g)
        free = g.masked_fill(held, 0.0)
        d = self._on_free(state, free, held)
        d[:, i:j].masked_fill_((x[:, i:j] <= 0) & (d[:, i:j] < 0), 0.0)
        slope = (d * g).sum(1)
        lost = ~(slope < -1e-12 * d.norm(dim=1) * free.norm(dim=1))
        if bool(lost.any()):
            d[lost], state.gamma[lost] = -free[lost], 0.0
            forget(state, lost)
            slope = (d * g).sum(1)
        plain = state.gamma == 0
        short = FIRST * x.norm(dim=1) / d.norm(dim=1).clamp_min(1e-300)
        a = search(objective.line(x, d), slope, torch.where(plain, short, 1.0))
        new_x, failed = self._project(objective, x, d, a)
        new_g = objective.gradient(new_x)
        new = self.remember(objective, state, new_x, new_g, stalled=failed & plain)
        if bool(failed.any()):
            new.gamma[failed] = 0.0
            forget(new, failed)
        held = self.held(objective, new_x, new_g)
        new.residual.copy_(objective.relative(new_x, new_g.masked_fill(held, 0.0)))
        return new

    def _on_free(self, state: State, free: Tensor, held: Tensor) -> Tensor:
        """Return the quasi-Newton direction of the free variables: a two-loop recursion over masked pairs."""
        m, q = self.memory, free.clone()
        order = [(state.filled - 1 - i) % m for i in range(min(state.filled, m))]  # newest first
        if not order:
            return q.neg_()
        moving = (~held).to(free.dtype).unsqueeze(1)
        s, y = state.pairs[:, order] * moving, state.pairs[:, [m + i for i in order]] * moving
        sy, ss, yy = ((one * other).sum(2) for one, other in ((s, y), (s, s), (y, y)))
        good = sy > 1e-12 * (ss * yy).sqrt()
        rates = torch.where(good, 1 / sy, 0.0)
        # The newest usable pair gives the scale.
        first = good.to(torch.uint8).argmax(1, keepdim=True)
        gamma = torch.where(good, sy / yy.clamp_min(1e-300), 1.0).gather(1, first)
        alphas = []
        for i in range(len(order)):
            alphas.append(rates[:, i] * (s[:, i] * q).sum(1))
            q.addcmul_(alphas[-1][:, None], y[:, i], value=-1)
        q.mul_(gamma)
        for i in reversed(range(len(order))):
            q.addcmul_((alphas[i] - rates[:, i] * (y[:, i] * q).sum(1))[:, None], s[:, i])
        return q.masked_fill_(held, 0.0).neg_()

    def _project(self, objective: Objective, x: Tensor, d: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
        """Return max(x + a d, 0) with a halved until no problem rises, and which problems found no such step."""
        i, j = objective.bounded

        def at(step: Tensor) -> Tensor:
            point = x + step[:, None] * d
            point[:, i:j].clamp_min_(0.0)
            return point

        plain = x + a[:, None] * d
        crossed = (plain[:, i:j] < 0).any(1)
        if not bool(crossed.any()):
            return plain, a == 0
        start = objective.value(x)
        ceiling = start + ROUNDING * start.abs()
        for _ in range(HALVINGS):
            new = at(a)
            high = crossed & ~(objective.value(new) <= ceiling)
            if not bool(high.any()):
                break
            a = torch.where(high, 0.5 * a, a)
        return at(a), a == 0
