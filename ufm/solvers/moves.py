"""The best arrangement of classes in fewer non-negative dimensions than classes: starts, then one class moved at a time.

With H >= 0 and d < K classes share axes, and which share one with which is a choice that no descent revises: from some optima
one random start in a thousand arrives. But a good arrangement is mostly right. So from the best end found every arrangement is
tried that differs from it in one class (put beside another one, on an axis, between axes) or in two exchanged, and this again
from the best of those, until none is lower. Walks are short at first; only the lowest of each problem are walked to the end.
Evidence, not proof: no theorem says that such a local search ends at the optimum.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ufm.loop import ZERO, iterate, settle
from ufm.seeds import stream

if TYPE_CHECKING:
    from ufm.solvers import Solver
    from ufm.solvers.objective import Objective

SHORT, ROUGH = 100, 1e-3  # iterations and tolerance of a first walk
FIRST_KEPT, KEPT = 12, 8  # distinct lowest ends of random starts, and of moves, that are walked to the end
SAME = 1e-9  # relative difference of values below which two short walks went to one place
LOWER = 1e-10  # relative gain that counts as one
ROUNDS = 12  # of moves; three are the most that were seen
MOST = 400  # moves tried of one arrangement; with more there are (16 classes and more), so many drawn of them
NOISE = 0.02  # of a moved arrangement: two classes at one place would stay together for ever


def arrange(
    objective: Objective,
    starts: Tensor,
    tries: int,
    solver: Solver,
    steps: int,
    tol: float,
    prove: Callable[[Objective, Tensor], Tensor] | None,
    labels: list[Tensor] | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the best end points (B, P) of `starts` (tries B, P), moved on while that lowers them, and how they ended.

    `objective` is that of the B problems; start i belongs to problem i modulo B. `labels`, of every problem, say which samples
    make up a class where they are what moves (supervised contrastive loss).
    """

    def move(some: Objective, x: Tensor, problems: Tensor) -> tuple[Tensor, Tensor]:
        if labels is None:
            moved = neighbours(some, x)
            owner = torch.arange(len(x), device=x.device).repeat_interleave(moved.shape[1])
            return moved.flatten(0, 1), owner
        parts = [contrastive_neighbours(v, labels[i]) for v, i in zip(some.units(x)[1], problems.tolist(), strict=True)]
        counts = torch.tensor([len(part) for part in parts], device=x.device)
        return torch.cat(parts), torch.arange(len(x), device=x.device).repeat_interleave(counts)

    short = min(SHORT, steps // 2)

    def best_of(some: Objective, x: Tensor, owner: Tensor, kept: int) -> tuple[Tensor, dict[str, Tensor]]:
        every = some.select(owner)
        rough = iterate(every, solver, x, short, ROUGH)
        x = settle(every, rough)
        index = lowest(every.score(x), owner, kept)
        last = every.select(index)
        end = iterate(last, solver, x[index], steps - short, tol, prove, sublinear=True)
        end["iterations"] += rough["iterations"][index]
        x = settle(last, end)
        best = index_of_lowest(last.score(x), owner[index], some.batch)
        return x[best], {name: part[best] for name, part in end.items()}

    count = objective.batch
    left = torch.arange(count, device=starts.device)
    x, end = best_of(objective, starts, left.repeat(tries), FIRST_KEPT)
    if prove is not None:
        left = left[end["status"] != ZERO]  # zero is the optimum
    for _ in range(ROUNDS):
        if not len(left):
            break
        some, value = objective.select(left), objective.select(left).score(x[left])
        moved, owner = move(some, x[left], left)
        new, again = best_of(some, moved, owner, KEPT)
        better = some.score(new) < value - LOWER * value.abs()
        left = left[better]
        x[left] = new[better]
        for name in end:
            end[name][left] = again[name][better]
    return x, end


def lowest(values: Tensor, owner: Tensor, kept: int) -> Tensor:
    """Return the indices of the `kept` lowest distinct values of every owner."""
    order = torch.nan_to_num(values, nan=torch.inf).argsort()
    chosen: list[int] = []
    seen: dict[int, list[float]] = {}
    for i, problem, value in zip(order.tolist(), owner[order].tolist(), values[order].tolist(), strict=True):
        found = seen.setdefault(problem, [])
        if len(found) < kept and not (found and value - found[-1] <= SAME * abs(value)):
            found.append(value)
            chosen.append(i)
    return torch.tensor(sorted(chosen), device=values.device)


def index_of_lowest(values: Tensor, owner: Tensor, count: int) -> Tensor:
    """Return the index of the lowest value of each of `count` owners."""
    values = torch.nan_to_num(values, nan=torch.inf)
    return torch.stack([torch.where(owner == problem, values, torch.inf).argmin() for problem in range(count)])


def neighbours(objective: Objective, x: Tensor) -> Tensor:
    """Return all arrangements one move away from every x (B, P): (B, M, P)."""
    u, v, beta = objective.parts(x)
    classes, dim = v.shape[1:]
    us, vs = [], []
    size_u, size_v = (part.flatten(1).norm(dim=1)[:, None] / classes**0.5 for part in (u, v))

    def add(rows: list[int], new_u: Tensor, new_v: Tensor) -> None:
        us.append(u.clone())
        vs.append(v.clone())
        us[-1][:, rows], vs[-1][:, rows] = new_u, new_v

    for i, j in combinations(range(classes), 2):
        add([i, j], u[:, [j, i]], v[:, [j, i]])
        add([i], u[:, [j]], v[:, [j]])
        add([j], u[:, [i]], v[:, [i]])
    for direction in _directions(dim).to(x):
        for i in range(classes):
            add([i], (size_u * direction)[:, None], (size_v * direction)[:, None])
    draws = stream(0, "moves")  # the same for every problem: a batch does not matter
    some = sorted(draws.permutation(len(us))[:MOST].tolist())
    moved_u, moved_v = (torch.stack([side[i] for i in some], 1) for side in (us, vs))
    draw = draws.normal(size=(2, *moved_v.shape[1:]))
    noise = NOISE * torch.as_tensor(draw).to(x)
    moved_u += noise[0] * size_u[:, None, None]
    moved_v += noise[1].abs() * size_v[:, None, None]
    parts = [moved_u.flatten(2), moved_v.flatten(2)]
    if beta is not None:
        parts.append(beta.squeeze(2)[:, None].expand(-1, moved_u.shape[1], -1))
    return torch.cat(parts, 2)


def contrastive_neighbours(v: Tensor, labels: Tensor) -> Tensor:
    """Return all arrangements one move away from unit rows v (N, d): (M, N d); classes move whole, to one place each."""
    dim, classes = v.shape[1], int(labels.max()) + 1
    of = [labels == k for k in range(classes)]
    places = [v[rows].mean(0) for rows in of]
    moved = []

    def add(*changes: tuple[int, Tensor]) -> None:
        new = v.clone()
        for k, place in changes:
            new[of[k]] = place / place.norm()
        moved.append(new)

    for i, j in combinations(range(classes), 2):
        add((i, places[j]), (j, places[i]))
        add((i, places[j]))
        add((j, places[i]))
    for direction in _directions(dim).to(v):
        for i in range(classes):
            add((i, direction))
    draws = stream(0, "moves")
    some = sorted(draws.permutation(len(moved))[:MOST].tolist())
    noise = torch.as_tensor(draws.normal(size=(len(some), *v.shape))).to(v)
    return (torch.stack([moved[i] for i in some]) + NOISE * noise.abs()).flatten(1)


def _directions(dim: int) -> Tensor:
    """Return unit vectors of the orthant: the axes, what bisects two of them, and its middle."""
    axes = torch.eye(dim, dtype=torch.float64)
    pairs = [(axes[i] + axes[j]) / 2**0.5 for i, j in combinations(range(dim), 2)]
    middle = [axes.sum(0) / dim**0.5] if dim > 2 else []
    return torch.stack([*axes, *pairs, *middle])
