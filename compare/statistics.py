"""Intervals and tests over seeds: thin wrappers over `scipy.stats`, named for what they are used for here."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

ALPHA = 0.05  # of every one-sided test; two of them make the 90 % interval shown
LEVEL = 1 - 2 * ALPHA
SEEDS = 5  # fewest for a claim about a mean over seeds


@dataclass(frozen=True)
class Mean:
    """A mean over seeds with its standard error; `log` says that all of it is on the scale of the natural logarithm.

    `deviation` (the standard error) joins the spread over seeds with the uncertainty of the test sample.
    """

    centre: float
    deviation: float
    freedom: float  # degrees of freedom of Student's t (Welch-Satterthwaite)
    number: int
    log: bool = False

    def _back(self, x: float) -> float:
        return math.exp(min(x, 700.0)) if self.log else x

    @property
    def estimate(self) -> float:
        """The mean, or the geometric mean where `log`."""
        return self._back(self.centre)

    def interval(self, level: float = LEVEL) -> tuple[float, float]:
        """Return the two-sided interval, transformed back where `log`."""
        half = self._quantile(0.5 + level / 2) * self.deviation if self.deviation > 0 else 0.0
        return self._back(self.centre - half), self._back(self.centre + half)

    def _quantile(self, probability: float) -> float:
        from scipy import stats

        return float(stats.t.ppf(probability, self.freedom))

    def p_above(self, limit: float) -> float:
        """Return the p-value of "the mean is above `limit`" (one-sided t test of mean <= limit)."""
        return self._p(limit, +1)

    def p_below(self, limit: float) -> float:
        """Return the p-value of "the mean is below `limit`" (one-sided t test of mean >= limit)."""
        return self._p(limit, -1)

    def _p(self, limit: float, side: int) -> float:
        from scipy import stats

        if self.log:
            limit = math.log(limit) if limit > 0 else -math.inf
        gap = side * (self.centre - limit)
        if math.isinf(gap):
            return 0.0 if gap > 0 else 1.0
        if self.deviation == 0:
            return 0.0 if gap > 0 else 1.0
        return float(stats.t.sf(gap / self.deviation, self.freedom))


def mean_over_seeds(values: Sequence[float], *, log: bool = False, test_errors: Sequence[float] | None = None) -> Mean:
    """Return the mean of one value per seed with Student's t uncertainty.

    Args:
        values: (n,) one number per seed, n >= 2; positive where `log`.
        log: work with logarithms: the geometric mean, right for positive skewed quantities such as NC1.
        test_errors: (n,) standard error of each value over the points of its test sample. Seeds may share that sample, so the
            mean square is added whole, not divided by n: var = s^2/n + mean(e^2); freedom by Welch and Satterthwaite with the
            second part known. Where each seed has its own sample this is conservative.
    """
    x = np.asarray(values, dtype=np.float64)
    errors = np.zeros_like(x) if test_errors is None else np.nan_to_num(np.asarray(test_errors, dtype=np.float64))
    if log:
        errors, x = errors / x, np.log(x)
    number = len(x)
    seeds = float(np.var(x, ddof=1)) / number if number > 1 else math.inf
    sample = float(np.mean(errors**2))
    total = seeds + sample
    freedom = (number - 1) * (total / seeds) ** 2 if 0 < seeds < math.inf else max(number - 1, 1)
    return Mean(float(np.mean(x)), math.sqrt(total), float(min(freedom, 1e9)), number, log)


def bootstrap_error(
    sample: np.ndarray, statistic: Callable[..., float] = np.mean, *, seed: int = 0, resamples: int = 1000
) -> float:
    """Return the bootstrap standard error of `statistic` over the points of one test sample (n,) or (n, m)."""
    from scipy import stats

    data = np.asarray(sample, dtype=np.float64)
    if len(data) < 2:
        return math.nan
    # SciPy renamed the argument in 1.15.
    name = "rng" if "rng" in inspect.signature(stats.bootstrap).parameters else "random_state"
    options = {"n_resamples": resamples, "method": "percentile", "vectorized": True, name: np.random.default_rng(seed)}
    result = stats.bootstrap((data,), statistic, axis=0, **options)
    return float(np.max(result.standard_error))


def proportion_error(share: float, number: int) -> float:
    """Return the standard error of a share of `number` test points, by Agresti and Coull's added two of each."""
    adjusted = (share * number + 2) / (number + 4)
    return math.sqrt(adjusted * (1 - adjusted) / (number + 4))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return Holm's adjusted p-values: valid for any dependence between the tests (Holm 1979)."""
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    steps = (len(p) - np.arange(len(p))) * p[order]
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted.tolist()


def lower_quantile(values: Sequence[float], probability: float = 0.01) -> float:
    """Return a low quantile of a positive quantity: the sample's, or from few values what one more falls below so rarely.

    Below 1/probability values no sample quantile exists: then the lognormal prediction limit
    exp(m + t_{n-1}(probability) s sqrt(1 + 1/n)), which allows for mean and spread being estimated themselves.
    """
    from scipy import stats

    x = np.asarray(values, dtype=np.float64)
    if len(x) >= 1 / probability:
        return float(np.quantile(x, probability))
    if np.any(x <= 0):
        return 0.0
    if len(x) < 2:
        return 0.0
    logs = np.log(x)
    spread = float(np.std(logs, ddof=1)) * math.sqrt(1 + 1 / len(x))
    return float(np.exp(np.mean(logs) + stats.t.ppf(probability, len(x) - 1) * spread))
