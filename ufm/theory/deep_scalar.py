"""The one scalar problem behind every MSE structure of the deep unconstrained-features model.

min_x 1/2 (x - 1)^2 + (L+1)/2 g x^(2/(L+1)),   g = (n P C)^(1/(L+1)),   P = lambda_h lambda_1 .. lambda_L,

x is the output scale and C the structure's cost constant (K^(L+1) for deep neural collapse). With x = t^(L+1) the
stationary points solve t^(2L) - t^(L-1) + g = 0; its largest root is the local minimum that can beat zero.
Sukenik, Mondelli & Lampert 2023; the scalar form is derived and verified numerically.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ufm.errors import RequestError


@dataclass(frozen=True)
class Scale:
    """The minimiser of the scalar problem."""

    x: float  # output scale, 0 when the zero solution is the global minimum
    value: float  # the minimum, at most 1/2
    local_x: float | None  # the non-zero local minimum, None above the spinodal
    local_value: float | None


def critical(depth: int) -> float:
    """Return g_crit = ((L-1)/L)^((L-1)/(L+1)) / L: above it zero is the global minimum."""
    return ((depth - 1) / depth) ** ((depth - 1) / (depth + 1)) / depth if depth > 1 else 1.0


def spinodal(depth: int) -> float:
    """Return g above which no non-zero local minimum is left: t*^(L-1) - t*^(2L), t* = ((L-1)/2L)^(1/(L+1))."""
    turning = _turning(depth)
    return turning ** (depth - 1) - turning ** (2 * depth)


def _turning(depth: int) -> float:
    return ((depth - 1) / (2 * depth)) ** (1 / (depth + 1))


def objective(x: float, g: float, depth: int) -> float:
    """Return 1/2 (x - 1)^2 + (L+1)/2 g x^(2/(L+1))."""
    return 0.5 * (x - 1) ** 2 + 0.5 * (depth + 1) * g * x ** (2 / (depth + 1))


def minimise(g: float, depth: int) -> Scale:
    """Solve the scalar problem for cost `g` >= 0 at depth L >= 1.

    >>> round(minimise(0.1, 1).x, 12)
    0.9
    """
    if not (math.isfinite(g) and g >= 0):
        raise RequestError(f"g {g!r} is not a finite number >= 0; check the weight decays")
    root = largest_root(g, depth)
    if root is None:
        return Scale(0.0, 0.5, None, None)
    x = root ** (depth + 1)
    value = objective(x, g, depth)
    return Scale(x, value, x, value) if value < 0.5 else Scale(0.0, 0.5, x, value)


def largest_root(g: float, depth: int) -> float | None:
    """Return the largest root of t^(2L) - t^(L-1) + g = 0, or None above the spinodal."""
    if depth == 1:
        return math.sqrt(1 - g) if g < 1 else None
    from scipy.optimize import brentq

    def slope(t: float) -> float:
        return t ** (2 * depth) - t ** (depth - 1) + g

    low = _turning(depth)
    if slope(low) > 0:
        return None
    return 1.0 if g == 0 else float(brentq(slope, low, 1.0, xtol=1e-16, rtol=4 * 2.3e-16, maxiter=500))


def effective_rank(loss: float, depth: int, per_class: float, product: float) -> float:
    """Return C^(1/(L+1)) of the structure that would have this loss: K for deep neural collapse, the rank as L grows.

    Inverts loss -> g -> C. The loss must lie in (0, 1/2).

    Args:
        loss: regularised loss of a non-zero solution.
        depth: L.
        per_class: n, samples per class.
        product: P = lambda_h lambda_1 .. lambda_L.
    """
    from scipy.optimize import brentq

    if not 0 < loss < 0.5:
        raise RequestError(f"loss {loss!r} is outside (0, 1/2); the effective rank exists for non-zero solutions only")

    def excess(g: float) -> float:
        return minimise(g, depth).value - loss

    g = float(brentq(excess, 0.0, critical(depth), xtol=1e-16, rtol=1e-14))
    return g / (per_class * product) ** (1 / (depth + 1))


def global_minimum(function: Callable[[Any], Any], grid: Sequence[float]) -> tuple[float, float]:
    """Return (x, value) of the lowest minimum of a smooth function that a grid brackets, to full precision.

    The function takes one complex number, or an array of real ones entry by entry.

    A minimiser that compares values stops at half the digits of x; here the slope, from a complex step (exact to
    rounding for an analytic function), is brought to zero by bisection between the neighbours of the lowest grid point.
    """
    from scipy.optimize import brentq

    values = np.asarray(function(np.asarray(grid))).real
    best = int(values.argmin())

    def slope(x: float) -> float:
        return function(complex(x, 1e-30)).imag

    low, high = grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]
    if not slope(low) < 0 < slope(high):
        return float(grid[best]), float(values[best])
    x = float(brentq(slope, low, high, xtol=1e-300, rtol=4 * 2.3e-16, maxiter=500))
    return x, float(function(x).real)
