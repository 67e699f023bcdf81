"""Judge claims: agrees, deviates or undecided, by tests fixed before the run, each with a negative control that must deviate."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from compare import nulls, points, statistics, sweeps
from compare.kinds import KINDS
from compare.outcome import AGREES, DEVIATES, NOT_RUN, UNDECIDED, VERDICTS, Verdict, expected, summary
from compare.papers import Claim, Paper, Quantity
from compare.quantities import per_seed
from compare.rows import Table
from compare.sweeps import Field, Sheet

__all__ = [
    "AGREES",
    "DEVIATES",
    "NOT_RUN",
    "UNDECIDED",
    "VERDICTS",
    "Verdict",
    "expected",
    "judge",
    "judge_claim",
    "match_cells",
    "summary",
]


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
    made = dataclasses.replace(_judged(table, claim, seeds, others), cell=cell)
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
    control = dataclasses.replace(_judged(there, claim.controlled(), seeds, others), cell=cell)
    made = dataclasses.replace(made, control=control)
    if made.verdict == AGREES and control.verdict != DEVIATES:
        reason = f"{made.reason}; but its negative control ({claim.control_text}) does not deviate: {control.reason}"
        return dataclasses.replace(made, verdict=UNDECIDED, reason=reason)
    return made


def _judged(table: Table, claim: Claim, seeds: Collection[int] | None, others: Mapping[str, Table]) -> Verdict:
    """Apply the claim's own test; a ratio may be over the same seeds in another cell."""
    if claim.kind == "ratio" and isinstance(claim.over, Quantity) and claim.over.cell:
        return KINDS["ratio"](table, claim, seeds, _elsewhere(table, {"cell": claim.over.cell}, others))
    return KINDS[claim.kind](table, claim, seeds)


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
