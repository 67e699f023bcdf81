"""The arrays that a training keeps of its last state (`seed-K/tensors.safetensors`), for figures of geometry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from compare.figures.series import one_setting
from compare.figures.settings import setting_of
from ufm.console import safe_text
from ufm.errors import RequestError

MOST_CLASSES = 100  # rows of a heat map: with more, a cell is no longer seen in print


@dataclass(frozen=True)
class Kept:
    """One setting's arrays by seed, and why its optimum is not a simplex ETF ("" where it is)."""

    cell: str
    arrays: dict[int, dict[str, np.ndarray]]
    not_etf: str
    left_out: tuple[int, ...] = ()

    def each(self, name: str) -> list[np.ndarray]:
        """Return one array of every seed that has it."""
        return [found[name] for found in self.arrays.values() if name in found]

    def seeds(self) -> str:
        """Return '5 seeds' or '1 seed', and which seeds are left out: none is dropped without a word."""
        text = f"{len(self.arrays)} seed" + ("s" if len(self.arrays) != 1 else "")
        if self.left_out:
            text += f" (left out: seed {', '.join(map(str, self.left_out))}, arrays missing, damaged or not finite)"
        return text


def kept(table: Mapping[str, Any], figure: str, needed: Sequence[str]) -> Kept:
    """Return the arrays of a loaded table's only setting, for the seeds that have all of `needed`.

    Raises:
        RequestError: several settings, or no seed keeps what the figure needs.
    """
    from compare.pair import class_counts, not_an_etf
    from compare.points import arrays_of, seed_folder

    names = one_setting(table, figure).distinct("cell")
    cell = (getattr(table, "cells", None) or {}).get(names[0] if names else "")
    if cell is None:
        raise RequestError(f"the figure {figure} needs a run folder's arrays; load the runs with compare.load(RUN)")
    found = {seed: arrays_of(seed_folder(cell, seed)) for seed in cell.seeds}
    whole = {seed: arrays for seed, arrays in found.items() if all(name in arrays for name in needed)}
    whole = {seed: arrays for seed, arrays in whole.items() if all(_finite(arrays[name]) for name in needed)}
    if not whole:
        missing = ", ".join(needed[:3])
        raise RequestError(
            f"{safe_text(cell.name)[:60]} keeps no finite {missing}; train it again, runs keep their arrays at the end"
        )
    left_out = tuple(seed for seed in cell.seeds if seed not in whole)
    return Kept(cell.name, whole, not_an_etf(setting_of(cell), class_counts(cell)), left_out)


def _finite(array: np.ndarray) -> bool:
    return array.size > 0 and bool(np.isfinite(array).all())


def classes_note(classes: int) -> tuple[str, ...]:
    """Say when a heat map does not show all classes."""
    return (f"The first {MOST_CLASSES} of {classes} classes are shown.",) if classes > MOST_CLASSES else ()
