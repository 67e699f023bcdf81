"""What a training kept of its single test points, and of the class moments: read once, used for intervals and moment theory."""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any

import numpy as np

from compare import statistics
from compare.papers import Quantity
from compare.rows import Cell
from ufm.errors import RequestError, RunError
from ufm.theory import separation

TENSORS = "tensors.safetensors"
# Measures that are means over test points, and the array that holds each point's share.
SHARES = {"nc1_pinv_strong": "test/strong", "nc1_pinv_weak": "test/weak"}


# Shares of the samples of a split, each of which counts or does not. The rest of the names with "error" are no counts.
COUNTED = ("error", "ncc_error", "ncc_error_between", "nc4_disagreement", "fine_ncc_error", "attribute_ncc_error")
# Shares of the samples whose spurious attribute is, or is not, their class's (study shortcut).
GROUPS = {"accuracy_aligned": True, "accuracy_conflicting": False, "attribute_followed": False}


def is_count(measure: str) -> bool:
    """Whether a measure is a share of the samples of its split or of a group of them: errors, disagreements, accuracies."""
    return measure in COUNTED or measure in GROUPS or measure.startswith(("probe_", "accuracy_"))


def arrays_of(folder: str) -> dict[str, np.ndarray]:
    """Return the arrays of one seed's folder; {} where it kept none or they are damaged (its interval is then of seeds alone)."""
    try:
        stamp = (Path(folder) / TENSORS).stat().st_mtime_ns  # a seed that was trained again is read again
    except OSError:
        return {}
    return _arrays(folder, stamp)


@functools.lru_cache(maxsize=64)
def _arrays(folder: str, stamp: int) -> dict[str, np.ndarray]:
    from ufm.record import Run

    try:
        return Run.open(folder).read_tensors(TENSORS)
    except (RunError, RequestError, OSError):
        return {}


def seed_folder(cell: Cell, seed: int) -> str:
    """Return the folder of one seed of a training."""
    return str(Path(cell.path) / f"seed-{seed}")


def sample_error(cell: Cell | None, seed: int, quantity: Quantity, value: float) -> float:
    """Return the standard error of a test value over the points of its test sample; 0 where the run kept no single points.

    NC1 about the train means is a mean over points: bootstrapped. A share of the points: binomial, from their number.
    Only the last epoch's points are kept.
    """
    if cell is None or quantity.split != "test" or quantity.epoch != "last":
        return 0.0
    folder, size = seed_folder(cell, seed), abs(quantity.factor)
    if quantity.measure in SHARES:
        sample = arrays_of(folder).get(f"{quantity.layer}/{SHARES[quantity.measure]}")
        return size * statistics.bootstrap_error(sample) if sample is not None and len(sample) > 1 else 0.0
    if is_count(quantity.measure):
        number = _group_size(folder, quantity.measure) if quantity.measure in GROUPS else sample_size(cell, (seed,))
        return size * statistics.proportion_error(value / size, number) if number and size else 0.0
    return 0.0


def _group_size(folder: str, measure: str) -> int:
    """Return how many test samples are in the group that a measure of `GROUPS` is a share of; 0 where the run does not say."""
    kept = arrays_of(folder)
    return int(np.count_nonzero(kept["test/aligned"] == GROUPS[measure])) if "test/aligned" in kept else 0


def moment_error(cell: Cell, seed: int, layer: str = "penultimate") -> tuple[separation.MomentError, float] | None:
    """Return (what the test features' class moments predict of the error, the measured one) of one seed; None without moments."""
    found = arrays_of(seed_folder(cell, seed))
    names = ("basis", "train/means", "test/means", "test/within_class", "test/ncc_correct", "test/counts")
    part: dict[str, Any] = {name: found.get(f"{layer}/{name}") for name in names}
    if any(value is None for value in part.values()) or not len(part["basis"]):
        return None
    train, test = part["train/means"] @ part["basis"].T, part["test/means"] @ part["basis"].T
    if not (np.isfinite(train).all() and np.isfinite(test).all() and np.isfinite(part["test/within_class"]).all()):
        return None
    predicted = separation.moment_error(train, test, part["test/within_class"], part["test/counts"])
    return predicted, float(1 - np.mean(part["test/ncc_correct"]))


def _data(cell: Cell, seed: int) -> dict[str, Any]:
    """Return what a seed's result.json says of its data."""
    data = cell.results.get(seed, {}).get("data")
    return data if isinstance(data, dict) else {}


def classifier_shape(cell: Cell) -> tuple[int, int] | None:
    """Return (K, d) of the classifier of the first seed that kept it, None where none did."""
    for seed in cell.seeds:
        weight = arrays_of(seed_folder(cell, seed)).get("weight")
        if weight is not None and weight.ndim == 2:
            return int(weight.shape[0]), int(weight.shape[1])
    return None


def sample_size(cell: Cell, seeds: tuple[int, ...]) -> int:
    """Return the number of test points, as the first seed's result or kept points say; 0 where neither does."""
    for seed in seeds:
        known = _data(cell, seed).get("test") or len(arrays_of(seed_folder(cell, seed)).get("test/labels", ()))
        if isinstance(known, int) and known > 0:
            return known
    return 0


def classes_of(cell: Cell, seeds: tuple[int, ...]) -> int | None:
    """Return K, the classes with train samples, as the first seed's result or kept means say; None where neither does."""
    for seed in seeds:
        known = _data(cell, seed).get("counts")
        if isinstance(known, list) and sum(n > 0 for n in known) >= 2:
            return sum(n > 0 for n in known)
        counts = arrays_of(seed_folder(cell, seed)).get("penultimate/train/counts")
        if counts is not None and len(counts) >= 2 and math.isfinite(float(np.sum(counts))):
            return int(np.count_nonzero(counts))
    return None
