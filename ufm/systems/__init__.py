"""The systems that `ufm simulate` and `ufm predict` know: one file each, and one line in `SYSTEMS`.

A system file is light (no torch at import): it declares its options and names its heavy functions as "module:function".
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ufm.tables import Entry


class Cost(NamedTuple):
    """What one cell needs; `full` counts what is allocated at once."""

    seconds: float
    memory: float  # bytes


class Task(NamedTuple):
    """One cell of a sweep: the spec instance and the seed."""

    spec: Any
    seed: int


@dataclass(frozen=True)
class System:
    """One system: its options, what it computes, and how it is shown.

    Args:
        name: as typed after `ufm simulate`.
        summary: one line for `--help`.
        spec: a frozen dataclass whose fields are made by `ufm.spec.option`.
        check: "module:function", spec -> Cost. Raises RequestError for a wrong cell; imports nothing heavy, since it runs on
            every cell before anything is created.
        simulate: "module:function", (list[Task], device: str) -> list[dict], one row per task in order. A row has `status`
            (a value of ufm.solution.Status) and where they exist `loss`, `prediction`, `certificate`, `measures`, `reasons`,
            `flags`; numbers that do not exist are nan.
        predict: "module:function", spec -> dict: one row with `prediction`, `loss`, `status`, `reference`, `assumptions`,
            `reason` and arrays for `--json`. With `predict_seeds`: (spec, seed) -> dict.
        validate: "module:function", list of specs -> None. Raises RequestError for a cell that no solver takes; it may import
            what it needs, and runs on all cells before anything is created.
        columns, predict_columns: what the table on screen shows; "a.b" reaches into a nested record.
        naming: the options whose values make the run's readable name.
        chunk_seconds: how long a chunk takes at most; a system that gains from large batches takes longer ones.
        gpu: whether it computes on a GPU; else on the CPU, whatever the machine has.
        predict_seeds: whether a prediction depends on what the seed draws; else `ufm predict` has no --seeds.
        version: of the definition of what is computed; part of the run's hash.
        examples: two (command, how long it takes).
        reference: keys of `ufm.references.REFERENCES` that every run of the system cites.
    """

    name: str
    summary: str
    spec: type
    check: str
    simulate: str
    predict: str
    columns: tuple[str, ...]
    predict_columns: tuple[str, ...]
    naming: tuple[str, ...]
    validate: str = ""
    chunk_seconds: float = 2.0
    gpu: bool = True
    predict_seeds: bool = False
    version: int = 1
    examples: tuple[tuple[str, str], ...] = ()
    reference: tuple[str, ...] = field(default=())


SYSTEMS: dict[str, Entry] = {
    "single": Entry(
        "ufm.systems.single:SYSTEM",
        "one weight matrix on free features: sweeps to the optimum, with certificate and prediction",
        "every loss, penalty, bias, imbalance and target of ufm.Problem with depth 1",
        "zhu2021",
    ),
    "deep": Entry(
        "ufm.systems.deep:SYSTEM",
        "several weight matrices, linear or ReLU: end points of random starts, classified, beside every known structure",
        "one-hot labels, ridge penalties, free features",
        "sukenik2024",
    ),
    "flow": Entry(
        "ufm.systems.flow:SYSTEM",
        "gradient flow and descent beside the paths with closed forms",
        "depth 1, ce or mse, one-hot labels, penalties may be zero",
        "mixon2020",
    ),
    "benign": Entry(
        "ufm.systems.benign:SYSTEM",
        "two-layer convolutional networks on a signal and a noise patch: when overfitting is benign",
        "two patches, one signal, Gaussian noise, fixed output weights, full-batch gradient descent",
        "cao2022",
    ),
    "starvation": Entry(
        "ufm.systems.starvation:SYSTEM",
        "features of different strength in a linearised model: what a strong one takes from a weak one",
        "two classes, logistic loss; ridge, or the penalty of spectral decoupling on the logits",
        "pezeshki2020",
    ),
    "shallow": Entry(
        "ufm.systems.shallow:SYSTEM",
        "two-layer ReLU networks in training beside the laws of their kernel regime",
        "squared error, summed over samples; the laws hold as the width grows",
        "razborov2022",
    ),
}
