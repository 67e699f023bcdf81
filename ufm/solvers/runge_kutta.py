"""Dormand-Prince 5(4) for a batch of cells, each with its own step size, and dense output on each cell's own grid.

Gradient flows of unconstrained-features models have long plateaus and short transients at different times in
different cells: one common step would be the smallest of all. Cells that reached their end are taken out of the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

# Dormand & Prince 1980, Table 2 (RK5(4)7M); the last row of A is the fifth-order solution, whose slope starts the next step.
A = (
    (),
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
# Fifth minus fourth order weights.
E = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)
# Dense output of order four (Hairer, Norsett & Wanner 1993, II.6): correction of the cubic Hermite interpolant.
D = (
    -12715105075 / 11282082432,
    0.0,
    87487479700 / 32700410799,
    -10690763975 / 1880347072,
    701980252875 / 199316789632,
    -1453857185 / 822651844,
    69997945 / 29380423,
)
SAFETY, SHRINK, GROW = 0.9, 0.2, 5.0

Flow = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # (x (b, P), cells (b,)) -> dx/dt (b, P)


@dataclass(frozen=True)
class Path:
    """States on the asked times.

    times: (B, T); states: (B, T, P), nan after a cell stopped; evaluations: (B,) calls of the flow per cell;
    finished: (B,) whether the cell reached its last time; limited: (B,) whether it ran out of steps while still finite.
    """

    times: torch.Tensor
    states: torch.Tensor
    evaluations: torch.Tensor
    finished: torch.Tensor
    limited: torch.Tensor


def integrate(
    flow: Flow,
    start: torch.Tensor,
    times: torch.Tensor,
    *,
    rtol: float = 1e-6,
    atol: float = 1e-9,
    max_steps: int = 100_000,
    stop: Callable[[], bool] = lambda: False,
    retract: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> Path:
    """Integrate dx/dt = flow(x, cells) from `start` (B, P) at times[:, 0] to times[:, -1].

    Args:
        flow: takes the active cells' states and their indices in the batch.
        start: (B, P) float64.
        times: (B, T) increasing in each row.
        rtol, atol: local error per step, in the root mean square over the P entries.
        max_steps: per cell; a cell that needs more is left unfinished, with nan states from there on.
        retract: maps states (b, P) back to the manifold that the flow is tangent to, after every step.
    """
    cells = torch.arange(len(start), device=start.device)
    states = torch.full((*times.shape, start.shape[1]), float("nan"), dtype=start.dtype, device=start.device)
    states[:, 0] = start
    evaluations = torch.zeros(len(start), dtype=torch.long, device=start.device)
    next_output = torch.ones(len(start), dtype=torch.long, device=start.device)
    x, t = start.clone(), times[:, 0].clone()
    slope = flow(x, cells)
    step = _first_step(x, slope, times, rtol, atol)
    evaluations += 1
    for count in range(max_steps):
        if not len(cells) or (count % 50 == 0 and stop()):
            break
        step = torch.minimum(step, times[cells, -1] - t)
        slopes = _stages(flow, x, slope, step, cells)
        evaluations[cells] += 6
        arrived = x + step[:, None] * _combine(slopes, A[6])
        error = step[:, None] * _combine(slopes, E)
        ratio = (error / (atol + rtol * torch.maximum(x.abs(), arrived.abs()))).square().mean(1).sqrt()
        accepted = ratio <= 1  # false for nan: the step shrinks and is tried again
        _write_outputs(states, times, next_output, cells, accepted, t, step, x, arrived, slopes)
        t = torch.where(accepted, t + step, t)
        x[accepted], slope = arrived[accepted], torch.where(accepted[:, None], slopes[6], slope)
        if retract is not None and bool(accepted.any()):
            x[accepted] = retract(arrived[accepted])
            slope = torch.where(accepted[:, None], flow(x, cells), slope)
            evaluations[cells] += 1
        factor = (SAFETY * ratio.nan_to_num(1e10, posinf=1e10).clamp_min(1e-10) ** -0.2).clamp(SHRINK, GROW)
        step = step * torch.where(accepted, factor, factor.clamp_max(0.9))
        keep = (next_output[cells] < times.shape[1]) & (step > 1e-14 * (1 + t))
        if not bool(keep.all()):
            cells, x, t, slope, step = cells[keep], x[keep], t[keep], slope[keep], step[keep]
    limited = torch.zeros_like(next_output, dtype=torch.bool)
    limited[cells] = torch.isfinite(x).all(1)
    return Path(times, states, evaluations, next_output == times.shape[1], limited)


def _first_step(x: torch.Tensor, slope: torch.Tensor, times: torch.Tensor, rtol: float, atol: float) -> torch.Tensor:
    """A hundredth of the time in which x changes by itself; the controller corrects it in a step or two."""
    scale = atol + rtol * x.abs()
    size, speed = (x / scale).square().mean(1).sqrt(), (slope / scale).square().mean(1).sqrt()
    guess = torch.where(speed > 1e-10, 0.01 * size / speed.clamp_min(1e-300), torch.full_like(size, 1e-3))
    return torch.minimum(guess.clamp_min(1e-10), times[:, -1] - times[:, 0])


def _stages(flow: Flow, x: torch.Tensor, slope: torch.Tensor, step: torch.Tensor, cells: torch.Tensor) -> list[torch.Tensor]:
    slopes = [slope]
    for row in A[1:]:
        slopes.append(flow(x + step[:, None] * _combine(slopes, row), cells))
    return slopes


def _combine(slopes: list[torch.Tensor], weights: tuple[float, ...]) -> torch.Tensor:
    total = weights[0] * slopes[0]
    for weight, slope in zip(weights[1:], slopes[1:], strict=False):
        if weight:
            total = total.add(slope, alpha=weight)
    return total


def _write_outputs(
    states: torch.Tensor,
    times: torch.Tensor,
    next_output: torch.Tensor,
    cells: torch.Tensor,
    accepted: torch.Tensor,
    t: torch.Tensor,
    step: torch.Tensor,
    x: torch.Tensor,
    arrived: torch.Tensor,
    slopes: list[torch.Tensor],
) -> None:
    """Fill every asked time inside (t, t + step] of the accepted cells from the continuous extension."""
    end = t + step
    last = times.shape[1] - 1
    while True:
        due = times[cells, next_output[cells].clamp_max(last)]
        # The last time is reached by a step that was cut to fit: rounding must not leave it unwritten.
        inside = accepted & (next_output[cells] <= last) & (due <= end * (1 + 1e-14))
        rows = inside.nonzero(as_tuple=True)[0]
        if not len(rows):
            return
        theta = ((due - t)[rows] / step[rows]).clamp(0, 1)[:, None]
        h = step[rows, None]
        start, finish = x[rows], arrived[rows]
        rise = finish - start
        first = h * slopes[0][rows] - rise
        second = rise - h * slopes[6][rows] - first
        fourth = h * _combine([s[rows] for s in slopes], D)
        value = start + theta * (rise + (1 - theta) * (first + theta * (second + (1 - theta) * fourth)))
        states[cells[rows], next_output[cells[rows]]] = value
        next_output[cells[rows]] += 1
