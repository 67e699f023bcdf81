"""What is found while measuring: values, and beside each what has to be said of it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field


@dataclass(eq=False)
class Found:
    """Values by name with reasons for the nan ones, flags and noise floors. Only names in `wanted` are kept."""

    wanted: frozenset[str]
    values: dict[str, float] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    flags: dict[str, str] = field(default_factory=dict)
    floors: dict[str, float] = field(default_factory=dict)
    rank: int = 0

    def put(self, name: str, value: float, reason: str = "the value is not finite") -> None:
        """Keep a value; a nan is kept with its reason."""
        if name in self.wanted:
            self.values[name] = float(value)
            self.reasons.pop(name, None)
            if not math.isfinite(value):
                self.values[name] = math.nan
                self.reasons[name] = reason

    def put_noisy(self, name: str, value: float, floor: float, degenerate: bool, reason: str = "the value is not finite") -> None:
        """Keep a value that rounding of the features alone makes as large as `floor`, and flag one that is no larger."""
        self.put(name, value, reason)
        if name not in self.wanted or not math.isfinite(value):
            return
        self.floors[name] = float(floor)
        if degenerate:
            self.flags[name] = "degenerate"
        elif value <= floor:
            self.flags[name] = "below_floor"

    def update(self, other: Found) -> None:
        """Take over everything `other` holds; its names win."""
        for name in other.values:
            self.reasons.pop(name, None)
            self.flags.pop(name, None)
        self.values.update(other.values)
        self.reasons.update(other.reasons)
        self.flags.update(other.flags)
        self.floors.update(other.floors)
