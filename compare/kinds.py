"""The kinds of claims, one test each: what a table of one cell says of one claim, before its null and its control are asked."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from compare import statistics
from compare.outcome import AGREES, DEVIATES, NOT_RUN, UNDECIDED, Verdict, expected
from compare.papers import Claim, Quantity
from compare.quantities import per_seed, sample_errors, series
from compare.rows import Table
from compare.sweeps import Field, Sheet
from ufm.console import format_number


def _equivalence(table: Table, claim: Claim, seeds: Collection[int] | None) -> Verdict:
    values = per_seed(table, claim.value, seeds)
    early = _too_few(claim, values)
    if early:
        return early
    numbers = list(values.values())
    if claim.log and min(numbers) <= 0:
        reason = "a value is not positive, so that the logarithm the claim asks for does not exist"
        return Verdict(claim, UNDECIDED, reason, seeds=tuple(values), values=tuple(numbers))
    errors = sample_errors(table, claim.value, values)
    mean = statistics.mean_over_seeds(numbers, log=claim.log, test_errors=errors)
    low, high = claim.predicted - claim.tolerance, claim.predicted + claim.tolerance
    inside = max(mean.p_above(low), mean.p_below(high))  # two one-sided tests
    outside = min(mean.p_below(low), mean.p_above(high))
    shown = _shown(mean, claim.value) + _unknown(claim.value, errors)
    if inside <= statistics.ALPHA:
        verdict, p, reason = AGREES, inside, f"{shown} lies inside {expected(claim)}"
    elif outside <= statistics.ALPHA:
        verdict, p, reason = DEVIATES, outside, f"{shown} lies outside {expected(claim)}"
    else:
        verdict, p, reason = UNDECIDED, min(inside, outside), f"{shown} straddles the edge of {expected(claim)}"
    return _of_mean(claim, verdict, reason, mean, p, values)


def _ratio(table: Table, claim: Claim, seeds: Collection[int] | None, under: Table | None = None) -> Verdict:
    """`under`: the rows of the cell that `over` is read from, where that is another one."""
    top = per_seed(table, claim.value, seeds)
    if not isinstance(claim.over, float):
        below = table if under is None else under
        bottom = per_seed(below, claim.over, seeds)
        bottom_errors = dict(zip(bottom, sample_errors(below, claim.over, bottom), strict=True))
    else:
        bottom, bottom_errors = dict.fromkeys(top, claim.over), dict.fromkeys(top, 0.0)
    top_errors = dict(zip(top, sample_errors(table, claim.value, top), strict=True))
    both = [s for s in top if s in bottom]
    if any(top[s] <= 0 or bottom[s] <= 0 for s in both):
        return Verdict(claim, UNDECIDED, "a value is not positive, so that a ratio says nothing", seeds=tuple(both))
    ratios = {s: top[s] / bottom[s] for s in both}
    early = _too_few(claim, ratios)
    if early:
        return early
    errors = [ratios[s] * math.hypot(top_errors[s] / top[s], bottom_errors[s] / bottom[s]) for s in both]
    mean = statistics.mean_over_seeds(list(ratios.values()), log=True, test_errors=errors)
    above, below = mean.p_above(claim.least), mean.p_below(claim.least)
    worst = min(ratios.values())
    unknown = _unknown(claim.value, list(top_errors.values())) or _unknown(claim.over, list(bottom_errors.values()))
    shown = f"ratio {_interval(mean)}, smallest {format_number(worst)}{unknown}"
    if above <= statistics.ALPHA and worst >= claim.least_each:
        verdict, p, reason = AGREES, above, f"{shown}: {expected(claim)}"
    elif below <= statistics.ALPHA:
        verdict, p, reason = DEVIATES, below, f"{shown}: below {claim.least:g}"
    elif worst < claim.least_each:
        verdict, p, reason = DEVIATES, math.nan, f"{shown}: one seed is below {claim.least_each:g}"
    else:
        verdict, p, reason = UNDECIDED, min(above, below), f"{shown}: straddles {claim.least:g}"
    return _of_mean(claim, verdict, reason, mean, p, ratios)


def _bound(table: Table, claim: Claim, seeds: Collection[int] | None) -> Verdict:
    value, limit = series(table, claim.value), _limits(table, claim)
    low_rank = _rank_deficient(table, claim)
    margins = {
        key: (value[key] - limit[key]) / max(abs(limit[key]), abs(value[key]), 1e-300)
        for key in value
        if key in limit and key not in low_rank and math.isfinite(value[key] - limit[key]) and (seeds is None or key[0] in seeds)
    }
    left_out = f"; {len(low_rank)} points with means of rank below K-1 left out" if low_rank else ""
    return _every_point(claim, margins, -claim.tolerance, "smallest margin (value - bound)/value", left_out)


def _limits(table: Table, claim: Claim) -> dict[tuple[int, int], float]:
    if not isinstance(claim.over, float):
        return series(table, claim.over)
    return dict.fromkeys(series(table, claim.value), float(claim.over))


def _rank_deficient(table: Table, claim: Claim) -> set[tuple[int, int]]:
    """Return the points where between != 2 err: the means do not have rank K-1 and the floor is no theorem there."""
    if not isinstance(claim.over, Quantity) or claim.over.measure != "ncc_error_between":
        return set()
    error = series(table, dataclasses.replace(claim.over, measure="ncc_error", factor=2.0))
    between = series(table, dataclasses.replace(claim.over, measure="nc1_pinv_between", factor=1.0))
    return {k for k, b in between.items() if k in error and not math.isclose(b, error[k], rel_tol=1e-4, abs_tol=1e-9)}


def _identity(table: Table, claim: Claim, seeds: Collection[int] | None) -> Verdict:
    value = series(table, claim.value)
    parts = [series(table, term) for term in claim.terms]
    residuals = {}
    for key, total in value.items():
        if (seeds is not None and key[0] not in seeds) or not all(key in part for part in parts):
            continue
        terms = [part[key] for part in parts]
        size = max(abs(total), *(abs(t) for t in terms), 1e-300)
        if math.isfinite(total + sum(terms)):
            residuals[key] = -abs(total - sum(terms)) / size  # negative: the worst point is the smallest
    made = _every_point(claim, residuals, -claim.tolerance, "largest relative residual", "")
    sizes = tuple(map(abs, made.values))
    return dataclasses.replace(made, estimate=abs(made.estimate), low=abs(made.high), high=abs(made.low), values=sizes)


def _law(sheet: Sheet, claim: Claim, seeds: Collection[int] | None) -> Verdict:
    if isinstance(claim.value, Field) and claim.value.per == "spread":
        return _spread(sheet, claim)
    value = series(sheet, claim.value)
    target = series(sheet, claim.over) if isinstance(claim.over, Field) else dict.fromkeys(value, claim.predicted)
    missing = [key for key, v in value.items() if not math.isfinite(v - target.get(key, math.nan))]
    if missing:
        seed = missing[0][0]
        reason = f"{len(missing)} of {len(value)} starts have no {claim.value} (first: seed {seed}); their rows say why"
        return Verdict(claim, UNDECIDED, reason, seeds=tuple(sorted({key[0] for key in value})))
    away = {key: -abs(v - target[key]) / (abs(target[key]) if claim.relative else 1.0) for key, v in value.items()}
    made = _every_point(claim, away, -claim.tolerance, "largest distance", "")
    sizes = tuple(map(abs, made.values))
    return dataclasses.replace(made, estimate=abs(made.estimate), low=abs(made.high), high=abs(made.low), values=sizes)


def _spread(sheet: Sheet, claim: Claim) -> Verdict:
    """Hold the bootstrap interval of a spread against the tolerance; where the interval straddles it nothing is decided.

    The percentile interval lies high, since resampling widens a spread: an upper end below the tolerance is the safe side.
    """
    found = [value for value in series(sheet, claim.value).values() if math.isfinite(value)]
    seeds, draws = sheet.resampled(claim.value)
    if not sheet.rows:
        return Verdict(claim, NOT_RUN, f"{claim.value} was not measured")
    if not found or not len(draws) or len(seeds) < statistics.SEEDS:
        reason = f"{len(seeds)} seeds with a number at every setting; at least {statistics.SEEDS} and two settings are needed"
        return Verdict(claim, UNDECIDED, reason, seeds=seeds)
    low, high = (float(np.quantile(draws, q)) for q in (statistics.ALPHA, 1 - statistics.ALPHA))
    low = min(low, found[0])
    away, limit = np.abs(draws - claim.predicted), claim.tolerance
    inside, outside = (float((1 + np.sum(hit)) / (1 + len(draws))) for hit in (away >= limit, away <= limit))
    shown = f"{claim.value} {format_number(found[0])} [{format_number(low)}, {format_number(high)}] over {len(seeds)} seeds"
    if claim.predicted - limit <= low and high <= claim.predicted + limit:
        verdict, p, reason = AGREES, inside, f"{shown} is within {limit:g} of {claim.predicted:g}"
    elif low > claim.predicted + limit or high < claim.predicted - limit:
        verdict, p, reason = DEVIATES, outside, f"{shown} is further than {limit:g} from {claim.predicted:g}"
    else:
        verdict, p, reason = (
            UNDECIDED,
            min(inside, outside),
            f"{shown} straddles the edge of {claim.predicted:g} +- {limit:g}",
        )
    return Verdict(claim, verdict, reason, estimate=found[0], low=low, high=high, p=p, seeds=seeds, points=len(sheet.rows))


def _share(sheet: Sheet, claim: Claim, seeds: Collection[int] | None) -> Verdict:
    """Count starts; the interval is Clopper and Pearson's, the test binomial."""
    from scipy import stats

    hits = [bool(v == 1.0) for v in series(sheet, claim.value).values()]
    if not hits:
        return Verdict(claim, NOT_RUN, f"{claim.value} was not measured")
    number, found = len(hits), sum(hits)
    interval = stats.binomtest(found, number).proportion_ci(statistics.LEVEL)
    above, below = (float(stats.binomtest(found, number, claim.least, side).pvalue) for side in ("greater", "less"))
    reason = f"{found} of {number} starts, {found / number:.3g} [{interval.low:.3g}, {interval.high:.3g}]"
    if above <= statistics.ALPHA:
        verdict, p = AGREES, above
    elif below <= statistics.ALPHA:
        verdict, p = DEVIATES, below
    else:
        verdict, p, reason = UNDECIDED, min(above, below), f"{reason}: straddles {claim.least:g}"
    seeds_run = tuple(sorted({key[0] for key in series(sheet, claim.value)}))
    return Verdict(
        claim, verdict, reason, estimate=found / number, low=interval.low, high=interval.high, p=p, seeds=seeds_run, points=number
    )


def _every_point(claim: Claim, margins: Mapping[tuple[int, int], float], least: float, what: str, left_out: str) -> Verdict:
    by_seed: dict[int, float] = {}
    for (seed, _), margin in margins.items():
        by_seed[seed] = min(margin, by_seed.get(seed, math.inf))
    early = _too_few(claim, by_seed)
    if early:
        return dataclasses.replace(early, reason=early.reason + left_out)
    worst, best = min(margins.values()), max(margins.values())
    broken = [key for key, margin in margins.items() if margin < least]
    if broken:
        first = min(broken)
        place = "row" if isinstance(claim.value, Field) else "epoch"
        reason = f"broken at {len(broken)} of {len(margins)} points, first at seed {first[0]}, {place} {first[1]}"
        reason += f"; largest distance {format_number(abs(worst))}" if claim.kind == "law" else ""
    else:
        reason = f"holds at all {len(margins)} points of {len(by_seed)} seeds; {what}: {format_number(abs(worst))}"
    return Verdict(
        claim,
        DEVIATES if broken else AGREES,
        reason + left_out,
        estimate=worst,
        low=worst,
        high=best,
        seeds=tuple(sorted(by_seed)),
        values=tuple(by_seed[s] for s in sorted(by_seed)),
        points=len(margins),
    )


KINDS = {
    "equivalence": _equivalence,
    "ratio": _ratio,
    "bound": _bound,
    "identity": _identity,
    "law": _law,
    "share": _share,
}


def _unknown(quantity: Quantity | Field | float, errors: Sequence[float]) -> str:
    """Say when a test value's uncertainty over test points is not in the interval."""
    known = not isinstance(quantity, Quantity) or quantity.split != "test" or any(e > 0 for e in errors)
    return "" if known else " (over seeds alone: the test points' share is not known)"


def _too_few(claim: Claim, values: Mapping[int, float]) -> Verdict | None:
    if not values:
        return Verdict(claim, NOT_RUN, f"{claim.value} was not measured")
    # A mean over seeds needs five, whatever a file of claims says; a theorem may be checked on one network.
    needed = max(claim.seeds_needed, statistics.SEEDS if claim.kind in ("equivalence", "ratio") else 1)
    if len(values) < needed:
        reason = f"{len(values)} seeds; at least {needed} are needed"
        return Verdict(claim, UNDECIDED, reason, seeds=tuple(values), values=tuple(values.values()))
    return None


def _of_mean(claim: Claim, verdict: str, reason: str, mean: statistics.Mean, p: float, values: Mapping[int, float]) -> Verdict:
    low, high = mean.interval()
    if len(set(values.values())) == 1:
        reason += "; every seed gives the same number, so that the interval knows no seed"
    return Verdict(
        claim,
        verdict,
        reason,
        estimate=mean.estimate,
        low=low,
        high=high,
        p=p,
        seeds=tuple(values),
        values=tuple(values.values()),
    )


def _interval(mean: statistics.Mean) -> str:
    low, high = mean.interval()
    return f"{format_number(mean.estimate)} [{format_number(low)}, {format_number(high)}]"


def _shown(mean: statistics.Mean, quantity: Quantity | Field) -> str:
    what = str(quantity) if isinstance(quantity, Field) else f"{quantity.measure} {quantity.split}"
    return f"{what} {_interval(mean)}"
