"""Losses along the ray of tied non-target logits: phi(a) = loss at z = a e_k, the scalar every symmetric optimum reduces to."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ufm.problem import Problem

GRID = 4001  # scan of the focal stationarity condition; it has at most a few roots, all of width O(1) in a


@dataclass(frozen=True)
class Contrast:
    """phi(a) for cross-entropy, label smoothing and focal loss with K classes; `a` is the gap target minus other logits."""

    loss: str
    classes: int
    smoothing: float = 0.0
    gamma: float = 0.0

    @classmethod
    def of(cls, problem: Problem) -> Contrast:
        """Return the contrast of the problem's loss."""
        return cls(
            problem.loss,
            problem.classes,
            problem.smoothing if problem.loss == "smoothing" else 0.0,
            problem.focal_gamma if problem.loss == "focal" else 0.0,
        )

    def value(self, a: float | np.ndarray) -> float | np.ndarray:
        """phi(a) = log(1 + (K-1) e^-a) [+ (K-1) alpha/K a] [times (1-p)^gamma for focal]."""
        others = self.classes - 1
        log_p = -np.logaddexp(0.0, math.log(others) - np.asarray(a, dtype=float))
        if self.gamma:
            return -((-np.expm1(log_p)) ** self.gamma) * log_p
        return -log_p + others * self.smoothing / self.classes * a

    def slope(self, a: float | np.ndarray) -> float | np.ndarray:
        """-phi'(a): 1 - p for cross-entropy, (1-p)^gamma ((1-p) - gamma p log p) for focal."""
        others = self.classes - 1
        log_p = -np.logaddexp(0.0, math.log(others) - np.asarray(a, dtype=float))
        miss = -np.expm1(log_p)
        if self.gamma:
            return miss**self.gamma * (miss - self.gamma * np.exp(log_p) * log_p)
        return miss - others * self.smoothing / self.classes

    @property
    def best(self) -> float:
        """The gap that minimises phi itself: infinite unless the labels are smoothed."""
        if not self.smoothing:
            return math.inf
        return math.log(self.classes * (1 - self.smoothing) / self.smoothing + 1)

    def minimise(self, price: float) -> float:
        """Return the global argmin over a >= 0 of phi(a) + price * a."""
        if self.gamma:
            return self._minimise_focal(price)
        others = self.classes - 1
        miss = price / others + self.smoothing / self.classes  # softmax probability of one wrong class at the optimum
        return math.log(1 / miss - others) if miss * self.classes < 1 else 0.0

    def _minimise_focal(self, price: float) -> float:
        """Scan the stationarity condition: phi is not convex, so the global minimum may jump from 0 to a finite gap."""
        from scipy.optimize import brentq

        others = self.classes - 1
        top = math.log(others) + max(0.0, math.log((1 + self.gamma) / price)) + 5.0
        grid = np.linspace(0.0, top, GRID)
        residual = self.slope(grid) - price
        ends = np.flatnonzero((residual[:-1] > 0) & (residual[1:] <= 0))  # descent then ascent: local minima only
        roots = [brentq(lambda a: float(self.slope(a) - price), grid[i], grid[i + 1], xtol=1e-15) for i in ends]
        candidates = [0.0, *roots]
        return min(candidates, key=lambda a: float(self.value(a) + price * a))

    def critical_price(self) -> tuple[float, float]:
        """Return (price above which a = 0 is the global minimum, gap just below it: 0 when the onset is continuous).

        The price is sup over a > 0 of (phi(0) - phi(a)) / a, which is the slope at 0 for a convex phi.
        """
        start = float(self.slope(0.0))
        if not self.gamma:
            return start, 0.0
        from scipy.optimize import minimize_scalar

        def negative(a: float) -> float:
            return -float(self.value(0.0) - self.value(a)) / a

        grid = np.linspace(1e-3, math.log(self.classes) + 20.0, GRID)
        rate = (self.value(0.0) - self.value(grid)) / grid
        i = int(np.argmax(rate))
        if i == 0 or rate[i] <= start:
            return start, 0.0
        found = minimize_scalar(negative, bounds=(grid[i - 1], grid[min(i + 1, GRID - 1)]), options={"xatol": 1e-12})
        return max(start, -float(found.fun)), float(found.x)

    def supported(self, a: float, price: float) -> bool:
        """Whether phi(x) + price x >= phi(a) + price a for every real x: the pairing bound is then tight at a."""
        if price >= 1:  # phi grows like |x| for x -> -inf
            return False
        reach = 60.0 + 2 * math.log(self.classes) + abs(a) + min(200.0, 20.0 / max(1e-3, 1 - price))
        grid = np.linspace(-reach, reach, 20 * GRID)
        least = float(np.min(self.value(grid) + price * grid))
        floor = float(self.value(a) + price * a)
        return least >= floor - 1e-9 * max(1.0, abs(floor))
