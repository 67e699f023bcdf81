"""A line search that looks at slopes only, so that it works down to the last digit (function values stall at 1e-8)."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

SLOPE = 0.1  # accepted when |slope| <= SLOPE |slope at 0| ...
LATE, PATIENT = 0.5, 2  # ... and after PATIENT trials already at LATE: the stragglers of a batch cost everybody a round
TRIALS = 40
GROW = 10.0  # largest factor of one extrapolation
EDGE = 0.1  # a trial stays this fraction of the bracket away from its ends


class Line(Protocol):
    """Anything with a slope along a ray and a way to keep some of its problems."""

    def slope(self, a: Tensor) -> Tensor:
        """Return the derivative at step a, (B,)."""

    def select(self, index: Tensor) -> Line:
        """Return some of the problems."""


def search(line: Line, slope0: Tensor, first: Tensor, trials: int = TRIALS) -> Tensor:
    """Return steps (B,) with |slope| <= SLOPE |slope0|, by secants inside a bracket that always shrinks.

    Args:
        line: the objective along every direction.
        slope0: the slope at 0, (B,), negative.
        first: the first trial, (B,).
        trials: the most evaluations; then the step with the smallest slope seen is returned (0 where none was smaller).
    """
    best, best_slope = torch.zeros_like(first), slope0.abs()
    active = torch.arange(len(first), device=first.device)
    low, low_slope = torch.zeros_like(first), slope0.clone()
    high, high_slope = torch.full_like(first, torch.inf), torch.full_like(first, torch.nan)
    target, a = slope0.abs(), first
    for trial in range(trials):
        slope = line.slope(a)
        size = slope.abs()
        better = size < best_slope[active]
        best[active] = torch.where(better, a, best[active])
        best_slope[active] = torch.where(better, size, best_slope[active])
        going = ~(size <= (SLOPE if trial < PATIENT else LATE) * target)
        left = int(going.sum())
        if left == 0:
            break
        down = slope < 0  # a non-finite slope counts as too far
        low, low_slope = torch.where(down, a, low), torch.where(down, slope, low_slope)
        high, high_slope = torch.where(down, high, a), torch.where(down, high_slope, slope)
        if left < 0.5 * len(a):
            index = going.nonzero().squeeze(1)
            line, active, target, going = line.select(index), active[index], target[index], going[index]
            low, low_slope, high, high_slope, a = (t[index] for t in (low, low_slope, high, high_slope, a))
        a = torch.where(going, _next(low, low_slope, high, high_slope), a)
    return best


def _next(low: Tensor, low_slope: Tensor, high: Tensor, high_slope: Tensor) -> Tensor:
    """Return the next trial: the secant inside the bracket, a geometric mean when that fails, growth without a bracket."""
    width = high - low
    secant = low - low_slope * width / (high_slope - low_slope)
    inside = secant.clamp(low + EDGE * width, high - EDGE * width)
    middle = torch.where(low > 0, (low * high).sqrt(), 0.1 * high)
    inside = torch.where(torch.isfinite(inside), inside, middle)
    return torch.where(torch.isinf(high), GROW * low, inside)
