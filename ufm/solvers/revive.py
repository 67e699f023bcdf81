"""Out of the local minima of features >= 0: a class whose feature died is given a direction of its own again.

With M = U V', V >= 0 the objective is convex in M where the dimension suffices, and at an optimum |L v| <= c for every unit
v >= 0, L the gradient of the loss in M. A stationary point with |L v| > c for some v >= 0 is left by one more column,
u = -L v/|L v| beside v, at a rate of c - |L v| per unit of |u||v|. Columns with the same v are one and make room. v is looked for
among the axes (dead classes) and at the Perron vector of (L'L)_+, where the bound of the certificate would be attained.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from ufm.solvers import Solver
    from ufm.solvers.objective import Objective

ROUNDS = 6  # of leaving a minimum and walking down again; one revives all dead classes at once
EMPTY = 1e-7  # share of the longest column below which a column has room
PARALLEL = 1e-6  # 1 - cosine below which two columns are one
STEEP = 1e-9  # relative excess of |L v| over c that counts
SIZES = 25  # lengths of new columns tried


def revive(
    objective: Objective,
    x: Tensor,
    end: dict[str, Tensor],
    solver: Solver,
    steps: int,
    tol: float,
    prove: Callable[[Objective, Tensor], Tensor] | None,
) -> Tensor:
    """Return end points (B, P) at least as low as x; `end` is brought up to date where they are lower."""
    from ufm.loop import iterate, settle

    x, left = x.clone(), torch.arange(len(x), device=x.device)
    for _ in range(ROUNDS):
        if prove is not None:
            left = left[~prove(objective.select(left), x[left])]
        if not len(left):
            break
        some = objective.select(left)
        new, lower = widened(some, x[left], convex=prove is not None)
        if not bool(lower.any()):
            break
        left, some = left[lower], some.select(lower.nonzero().squeeze(1))
        again = iterate(some, solver, new[lower], steps, tol, prove, sublinear=True)
        found = settle(some, again)
        better = some.value(found) < some.value(x[left])
        left = left[better]
        x[left] = found[better]
        for name in ("residual", "iterations", "status"):
            end[name][left] = again[name][better]
    return x


def widened(objective: Objective, x: Tensor, convex: bool = True) -> tuple[Tensor, Tensor]:
    """Return x with its columns merged and steep new ones added, and for which problems (B,) that lowered the value.

    A loss that is not `convex` may be lower with a class alive though it is not steep where it died: such classes are added too.
    """
    merged = x.clone()
    u, v, _ = objective.parts(merged)
    pull = objective.residual(objective.logits(x)).mul_(objective.scale)
    additions = torch.zeros_like(x)
    au, av, _ = objective.parts(additions)
    for i in range(len(x)):
        room = _merge(u[i], v[i], int(objective.reduced.sizes[i, 2]))
        steep = _steep(pull[i], float(objective.c[i])) if convex else _dead(pull[i], v[i])
        for column, (left, right) in zip(room, steep, strict=False):
            au[i, :, column], av[i, :, column] = left, right
    before = objective.value(x)
    length = x[:, : objective.split_at[1]].norm(dim=1, keepdim=True).clamp_min(1e-8)
    lowest, best = before.clone(), x
    for share in torch.logspace(-5, 1, SIZES, dtype=x.dtype).tolist():
        trial = merged + share * length * additions
        value = objective.value(trial)
        best = torch.where((value < lowest)[:, None], trial, best)
        lowest = torch.minimum(value, lowest)
    return best, lowest < before - 1e-14 * before.abs()


def _merge(u: Tensor, v: Tensor, dim: int) -> list[int]:
    """Join columns of u (K, r) and v (T, r) with the same direction v, in place; return the columns that are empty then."""
    for i in range(dim):
        for j in range(i):
            a, b = v[:, i].norm(), v[:, j].norm()
            if float(a * b) > 0 and float(v[:, i] @ v[:, j]) > (1 - PARALLEL) * float(a * b):
                direction, both = v[:, j] / b, a * u[:, i] + b * u[:, j]
                size = both.norm().sqrt()
                u[:, j], v[:, j] = both / size.clamp_min(1e-300), size * direction
                u[:, i], v[:, i] = 0.0, 0.0
    lengths = (u.norm(dim=0) * v.norm(dim=0))[:dim]
    return (lengths <= EMPTY * lengths.amax()).nonzero().flatten().tolist()


def _steep(pull: Tensor, c: float) -> list[tuple[Tensor, Tensor]]:
    """Return unit (u, v >= 0) with |L v| > c, L = pull (K, T): the steepest first."""
    perron = torch.linalg.eigh((pull.mT @ pull).clamp_min_(0.0))[1][:, -1].abs()
    axes = torch.eye(pull.shape[1], dtype=pull.dtype, device=pull.device)
    rates = (pull @ axes).norm(dim=0)
    order = rates.argsort(descending=True).tolist()
    chosen = [axes[t] for t in order if float(rates[t]) > c * (1 + STEEP)] or [perron]
    found = []
    for v in chosen:
        moved = pull @ v
        rate = moved.norm()
        if float(rate) > c * (1 + STEEP):
            found.append((-moved / rate, v))
    return found


def _dead(pull: Tensor, v: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Return unit (u, v) of every class without a feature: its axis, and the steepest way along it."""
    lengths = v.norm(dim=1)
    classes = (lengths <= EMPTY * lengths.amax().clamp_min(1e-300)).nonzero().flatten().tolist()
    axes = torch.eye(len(v), dtype=v.dtype, device=v.device)
    return [(-pull[:, t] / pull[:, t].norm().clamp_min(1e-300), axes[t]) for t in classes]
