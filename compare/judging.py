"""Which claims a set of runs can be held against: the papers whose cells they are, and the general claims for the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from compare.papers import PAPERS, SCALES, Paper, paper
from compare.rows import Table
from compare.verdict import AGREES, DEVIATES, NOT_RUN, Verdict, judge, match_cells, summary

VERDICT_COLUMNS = ("claim", "verdict", "of", "estimate", "low", "high", "expected", "seeds", "control", "cell")


@dataclass(frozen=True)
class Judged:
    """One paper's claims at one scale, judged."""

    paper: Paper
    scale: str | None
    verdicts: list[Verdict]

    @property
    def agrees(self) -> bool:
        """Whether every claim agrees; one that the literature has contradicted must deviate."""
        return all(v.verdict == (DEVIATES if v.claim.contradicted else AGREES) for v in self.verdicts)

    @property
    def title(self) -> str:
        """The paper's name, version and scale."""
        scale = f", scale {self.scale}" if self.scale else ""
        return f"{self.paper.name} (claims version {self.paper.version}{scale})"

    def record(self) -> dict[str, Any]:
        """Return everything as a JSON-ready record."""
        return {
            "paper": self.paper.name,
            "version": self.paper.version,
            "scale": self.scale,
            "summary": summary(self.verdicts),
            "claims": [v.row() for v in self.verdicts],
        }


def judge_runs(table: Table, name: str | None = None) -> list[Judged]:
    """Judge runs against the paper `name`, or against every paper that has them among its cells.

    With a name and no cell of it among the runs, its claims are judged on every training given, as if it were meant; without a
    name what belongs to no paper is held against the general claims.
    """
    if name is not None:
        chosen = paper(name)
        scale = best_scale(table, chosen)
        if scale is None and chosen.scales:
            trainings = [cell for cell in table.cells if "#" not in cell]
            cells = {key: trainings for one in chosen.scales.values() for key in one.cells}
            return [Judged(chosen, None, judge(table, chosen, cells=cells))]
        return [Judged(chosen, scale, judge(table, chosen, scale))]
    judged, taken = [], set()
    for known in PAPERS:
        one = paper(known)
        scale = best_scale(table, one)
        if scale is not None:
            judged.append(Judged(one, scale, judge(table, one, scale)))
            taken |= {cell for cells in match_cells(table, one, scale).values() for cell in cells}
    rest = [cell for cell in table.cells if cell not in taken and "#" not in cell]
    if rest:
        general = paper("general")
        judged.append(Judged(general, None, judge(table, general, cells={"*": rest})))
    return judged


def best_scale(table: Table, one: Paper) -> str | None:
    """Return the scale with most cells of which a registered seed is among the runs (of equals the smaller), or None."""
    found = {
        name: sum(
            any(set(table.cells[cell].seeds) & set(one.scales[name].seeds) for cell in cells)
            for cells in match_cells(table, one, name).values()
        )
        for name in SCALES
        if name in one.scales
    }
    best = max(found, key=lambda name: found[name], default=None)  # of equals the first, which is the smaller scale
    return best if best and found[best] else None


def named_cell(v: Verdict) -> str:
    """Return the paper's own name of a verdict's cell before its run's name, which is a hash: `few: digits-mlp-ddc4e599ea95`."""
    return f"{v.claim.cell}: {v.cell}" if v.claim.cell not in ("", "*", v.cell) and v.cell else v.cell


def lines(judged: Sequence[Judged], table: Table) -> list[str]:
    """Return what is said below the table of verdicts: each reason, what was left out, and the warnings."""
    said = []
    for one in judged:
        for v in one.verdicts:
            said.append(f"{v.claim.name}: {v.verdict}; {v.reason}")
            if v.control is not None and v.verdict != NOT_RUN:
                said.append(f"  control ({v.claim.control_text}): {v.control.verdict}; {v.control.reason}")
    said += [excluded_line(x.cell, x.seed, x.reason) for x in table.excluded]
    said += [f"warning: {warning}" for warning in table.warnings]
    return said


def excluded_line(cell: str, seed: int, reason: str) -> str:
    """Return the sentence for something that was found and left out."""
    place = cell if seed < 0 else f"{cell}, seed {seed}"
    return f"left out: {place}: {reason}"
