"""What becomes of a claim: agrees, deviates, undecided or not run, with the numbers and the sentence that say why."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from compare.papers import Claim
from compare.sweeps import Field

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
            "of": estimated(self.claim),
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


def estimated(claim: Claim) -> str:
    """Return what kind of number the estimate is: a mean of values, of ratios or of slopes, a share, or the worst point."""
    if claim.kind == "equivalence":
        slope = isinstance(claim.value, Field) and claim.value.per == "slope"
        return "slope" if slope else "geometric mean" if claim.log else "mean"
    return {"ratio": "ratio", "share": "share", "bound": "worst margin", "identity": "worst residual", "law": "worst distance"}[
        claim.kind
    ]


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


def summary(verdicts: Sequence[Verdict]) -> str:
    """Return '5 agree, 0 deviate, 1 undecided, 2 not run'."""
    counts = {name: int(np.sum([v.verdict == name for v in verdicts])) for name in VERDICTS}
    return f"{counts[AGREES]} agree, {counts[DEVIATES]} deviate, {counts[UNDECIDED]} undecided, {counts[NOT_RUN]} not run"
