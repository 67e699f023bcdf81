"""Judge claims: agrees, deviates or undecided, by tests fixed before the run, each with a negative control that must deviate."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from compare import nulls, points, statistics, sweeps
from compare.papers import Claim, Paper, Quantity
from compare.rows import Table
from compare.sweeps import Field, Sheet
from ufm.console import format_number

AGREES, DEVIATES, UNDECIDED, NOT_RUN = "agrees", "deviates", "undecided", "not run"
VERDICTS = (AGREES, DEVIATES, UNDECIDED, NOT_RUN)


@dataclass(frozen=True)
class Verdict:
    """What became of one claim on one cell; everything the report prints of it."""

    claim: Claim
    verdict: str
    reason: str  # one sentence
    cell: str = ""
    estimate: float = math.nan
    low: float = math.nan  # 90 % interval over seeds; for a bound or an identity the worst and the best point
    high: float = math.nan
    p: float = math.nan  # of the one-sided test that the verdict rests on
    p_holm: float = math.nan
    seeds: tuple[int, ...] = ()
    values: tuple[float, ...] = ()  # per seed
    points: int = 0  # how many measured points a bound or an identity was checked at
    control: Verdict | None = field(default=None, repr=False)

    def row(self) -> dict[str, Any]:
        """Return the verdict as a flat record (JSON, CSV, tables)."""
        return {
            "claim": self.claim.name,
            "verdict": self.verdict,
            "estimate": self.estimate,
            "low": self.low,
            "high": self.high,
            "expected": expected(self.claim),
            "p": self.p,
            "p_holm": self.p_holm,
            "seeds": len(self.seeds),
            "points": self.points,
            "control": self.control.verdict if self.control else "",
            "cell": self.cell,
            "reason": self.reason,
            "text": self.claim.text,
        }


def expected(claim: Claim) -> str:
    """Return what the claim demands of its estimate, in a few characters."""
    if claim.kind == "equivalence":
        return f"{claim.predicted:g} +- {claim.tolerance:g}"
    if claim.kind == "ratio":
        each = f", each seed >= {claim.least_each:g}" if claim.least_each else ""
        return f">= {claim.least:g}{each}"
    if claim.kind == "share":
        return f"in a share >= {claim.least:g}"
    if claim.kind == "law":
        size = "relative distance" if claim.relative else "distance"
        target = "theory" if isinstance(claim.over, Field) else f"{claim.predicted:g}"
        return f"{size} to {target} <= {claim.tolerance:g}"
    return "margin >= 0" if claim.kind == "bound" else f"residual <= {claim.tolerance:g}"


# --- reading a quantity ------------------------------------------------------------------------------------------


def series(table: Table | Sheet, quantity: Quantity | Field) -> dict[tuple[int, int], float]:
    """Return (seed, epoch) -> value of a quantity in the table of one cell; "last" gives each seed's last epoch.

    Of a sweep's sheet: (seed, row) -> value of a field.
    """
    if isinstance(quantity, Field):
        return table.series(quantity)
    some = table.where(measure=quantity.measure, split=quantity.split, layer=quantity.layer, centres=quantity.centres)
    if isinstance(quantity.epoch, int):
        some = some.where(epoch=quantity.epoch)
    elif quantity.epoch == "last":
        some = some.last()
    some = some.take(~some.mask(flag="degenerate"))  # scatter of one sample per class is 0 whatever the network does
    values = some.data["value"] * quantity.factor
    return dict(zip(zip(some.data["seed"].tolist(), some.data["epoch"].tolist(), strict=True), values.tolist(), strict=True))


def per_seed(table: Table, quantity: Quantity, seeds: Collection[int] | None) -> dict[int, float]:
    """Return seed -> value of a quantity at one epoch, finite values of the registered seeds only."""
    found = {seed: value for (seed, _), value in series(table, quantity).items()}
    return {s: v for s, v in sorted(found.items()) if math.isfinite(v) and (seeds is None or s in seeds)}


def sample_errors(table: Table, quantity: Quantity, values: Mapping[int, float]) -> list[float]:
    """Return the standard error over test points of each seed's value, 0 where the run kept no single points."""
    if isinstance(quantity, Field):
        return [0.0] * len(values)
    cell = next(iter(table.cells.values())) if len(table.cells) == 1 else None
    return [points.sample_error(cell, seed, quantity, value) for seed, value in values.items()]


# --- the four kinds ----------------------------------------------------------------------------------------------


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


def _against_null(table: Table, made: Verdict, seeds: Collection[int] | None) -> Verdict:
    """A tolerance that noise would meet decides nothing: at most a third of the null's 1 % quantile."""
    claim = made.claim
    if claim.null is None:
        return dataclasses.replace(made, reason=f"{made.reason}; no null distribution exists for it")
    null = [abs(v - claim.predicted) for v in _null_values(table, claim, seeds)]
    if len(null) < claim.seeds_needed:
        return dataclasses.replace(made, verdict=UNDECIDED, reason=f"{made.reason}; its null was not measured")
    quantile = statistics.lower_quantile(null)
    if claim.tolerance > quantile / 3:
        reason = (
            f"not distinguishable from random: the tolerance {claim.tolerance:g} is above a third of the null's 1 % quantile "
            f"({quantile:.3g})"
        )
        return dataclasses.replace(made, verdict=UNDECIDED, reason=reason)
    return dataclasses.replace(made, reason=f"{made.reason}; the null's 1 % quantile is {quantile:.3g}")


def _null_values(table: Table, claim: Claim, seeds: Collection[int] | None) -> Sequence[float]:
    """Return what the quantity is where nothing is to be found: measured elsewhere, or of random Gaussian class means."""
    change = claim.null or {}
    if change.get("random") != "gaussian_means":
        return list(per_seed(table, claim.value.changed(change), seeds).values())
    cell = next(iter(table.cells.values())) if len(table.cells) == 1 else None
    shape = points.classifier_shape(cell) if cell else None
    return nulls.gaussian_means(claim.value.measure, *shape) if shape else []


def _ratio(table: Table, claim: Claim, seeds: Collection[int] | None) -> Verdict:
    top = per_seed(table, claim.value, seeds)
    if not isinstance(claim.over, float):
        bottom = per_seed(table, claim.over, seeds)
        bottom_errors = dict(zip(bottom, sample_errors(table, claim.over, bottom), strict=True))
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


_KINDS = {
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


# --- a table of claims -------------------------------------------------------------------------------------------


def judge_claim(
    table: Table,
    claim: Claim,
    *,
    cell: str = "",
    seeds: Collection[int] | None = None,
    others: Mapping[str, Table] | None = None,
) -> Verdict:
    """Judge one claim and its negative control on the rows of one cell.

    Args:
        table: the rows of the cell (`Table.of_cell`). cell: its name, for the record.
        seeds: the registered ones; None: all.
        others: the paper's cell name -> rows, for a null or a control that is measured in another cell.
    """
    others = others or {}
    made = dataclasses.replace(_KINDS[claim.kind](table, claim, seeds), cell=cell)
    missing = sorted(set(seeds or ()) - set(made.seeds)) if made.verdict != NOT_RUN else []
    if missing:  # a mean over the seeds that went well may be a mean over the lucky ones
        made = dataclasses.replace(made, reason=f"{made.reason}; without the registered seeds {', '.join(map(str, missing))}")
    if claim.kind == "equivalence" and math.isfinite(made.estimate):
        made = _against_null(_elsewhere(table, claim.null, others), made, seeds)
    if made.verdict == NOT_RUN:
        return made
    if claim.contradicted:
        made = dataclasses.replace(made, reason=f"{made.reason}; the claim is contradicted by {claim.contradicted}")
    there = _elsewhere(table, claim.control, others)
    control = dataclasses.replace(_KINDS[claim.kind](there, claim.controlled(), seeds), cell=cell)
    made = dataclasses.replace(made, control=control)
    if made.verdict == AGREES and control.verdict != DEVIATES:
        reason = f"{made.reason}; but its negative control ({claim.control_text}) does not deviate: {control.reason}"
        return dataclasses.replace(made, verdict=UNDECIDED, reason=reason)
    return made


def _elsewhere(table: Table, changes: Mapping[str, Any] | None, others: Mapping[str, Table]) -> Table:
    """Return the rows that a null or a control is read from: another cell's if it names one (none, if that was not run)."""
    name = (changes or {}).get("cell")
    if name is None:
        return table
    if isinstance(table, Sheet):
        return others.get(name, Sheet(name))
    return others.get(name, table.take(np.zeros(table.rows, dtype=bool)))


def judge(
    table: Table, paper: Paper, scale: str | None = None, *, cells: Mapping[str, Sequence[str]] | None = None
) -> list[Verdict]:
    """Judge every claim of a paper on the cells that test it; one verdict per claim and cell, Holm over all of them.

    Args:
        table: what `load` returned.
        scale: judge the claims of this scale on its registered seeds; None judges every claim on all seeds found.
        cells: the paper's cell name -> names of cells of the table; None matches them by their settings.
    """
    registered = set(paper.scale(scale).seeds) if scale else None
    matched = match_cells(table, paper, scale) if cells is None else cells
    parts = table.by_cell([name for names in matched.values() for name in names])
    others = {key: parts[names[0]] for key, names in matched.items() if names}
    sheets = _sheets(table, paper, scale, matched)
    verdicts = []
    for claim in paper.claims:
        if scale and scale not in claim.scales:
            continue
        if isinstance(claim.value, Field):
            verdicts.append(judge_claim(sheets.get(claim.cell, Sheet(claim.cell)), claim, cell=claim.cell, others=sheets))
            continue
        found = [n for names in matched.values() for n in names] if claim.cell == "*" else matched.get(claim.cell, ())
        if not found:
            verdicts.append(Verdict(claim, NOT_RUN, f"no run of the cell {claim.cell!r} was found"))
        verdicts += [judge_claim(parts[name], claim, cell=name, seeds=registered, others=others) for name in dict.fromkeys(found)]
    return _with_holm(verdicts)


def _sheets(table: Table, paper: Paper, scale: str | None, matched: Mapping[str, Sequence[str]]) -> dict[str, Sheet]:
    """Return the paper's theory sweeps: cell name -> its rows, read whole, what did not converge included."""
    found: dict[str, Sheet] = {}
    for one in [paper.scale(scale)] if scale else paper.scales.values():
        for key, cell in one.cells.items():
            folders = [table.cells[name].path for name in matched.get(key, ()) if "#" in name]
            if "system" in cell and folders and not (key in found and found[key].rows):
                found[key] = sweeps.sheet(cell, key, folders, one.seeds)
    return found


def match_cells(table: Table, paper: Paper, scale: str | None = None) -> dict[str, list[str]]:
    """Return the paper's cell name -> the table's cells of that setting; a paper without scales takes every training."""
    from compare.papers import fits

    if not paper.scales:
        return {"*": [name for name in table.cells if "#" not in name]}
    scales = [paper.scale(scale)] if scale else list(paper.scales.values())
    matched: dict[str, list[str]] = {}
    for one in scales:
        for key, wanted in one.cells.items():
            names = [n for n, cell in table.cells.items() if fits(wanted, cell.system, cell.config)]
            matched[key] = list(dict.fromkeys([*matched.get(key, ()), *names]))
    return matched


def _with_holm(verdicts: list[Verdict]) -> list[Verdict]:
    """Adjust the p-values of one table; what no longer passes is undecided, and says so."""
    # Every test that was made counts: a family of those alone that passed would correct for nothing.
    tested = [i for i, v in enumerate(verdicts) if math.isfinite(v.p)]
    adjusted = statistics.holm([verdicts[i].p for i in tested]) if tested else []
    for i, p in zip(tested, adjusted, strict=True):
        v = dataclasses.replace(verdicts[i], p_holm=p)
        if p > statistics.ALPHA and v.verdict in (AGREES, DEVIATES):
            v = dataclasses.replace(v, verdict=UNDECIDED, reason=f"{v.reason}; not after Holm's correction (p = {p:.3g})")
        verdicts[i] = v
    return verdicts


def summary(verdicts: Sequence[Verdict]) -> str:
    """Return '5 agree, 0 deviate, 1 undecided, 2 not run'."""
    counts = {name: int(np.sum([v.verdict == name for v in verdicts])) for name in VERDICTS}
    return f"{counts[AGREES]} agree, {counts[DEVIATES]} deviate, {counts[UNDECIDED]} undecided, {counts[NOT_RUN]} not run"
