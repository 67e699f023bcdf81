"""Read what a claim speaks of: a measured quantity of a training, or a field of a theory sweep's rows."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

import numpy as np

from compare import points
from compare.papers import Quantity
from compare.rows import Table
from compare.sweeps import Field, Sheet


def series(table: Table | Sheet, quantity: Quantity | Field) -> dict[tuple[int, int], float]:
    """Return (seed, epoch) -> value of a quantity in the table of one cell; "last" gives each seed's last epoch.

    "fitted" gives each seed's first epoch of train error 0; seeds that never get there are left out.
    "mean" gives each seed's mean over its measured epochs, at the last of them.
    Of a sweep's sheet: (seed, row) -> value of a field.
    """
    if isinstance(quantity, Field):
        return table.series(quantity)
    some = table.where(measure=quantity.measure, split=quantity.split, layer=quantity.layer, centres=quantity.centres)
    if isinstance(quantity.epoch, int):
        some = some.where(epoch=quantity.epoch)
    elif quantity.epoch == "last":
        some = some.last()
    elif quantity.epoch == "fitted":
        some = _fitted(table, some)
    some = some.take(~some.mask(flag="degenerate"))  # scatter of one sample per class is 0 whatever the network does
    values = some.data["value"] * quantity.factor
    if quantity.epoch == "mean":
        return _means(some.data["seed"], some.data["epoch"], values)
    return dict(zip(zip(some.data["seed"].tolist(), some.data["epoch"].tolist(), strict=True), values.tolist(), strict=True))


def _means(seeds: np.ndarray, epochs: np.ndarray, values: np.ndarray) -> dict[tuple[int, int], float]:
    """Return (seed, last epoch) -> mean of the seed's values, nan where one of them does not exist."""
    own = {int(seed): seeds == seed for seed in np.unique(seeds)}
    return {(seed, int(epochs[rows].max())): float(values[rows].mean()) for seed, rows in own.items()}


def _fitted(table: Table, some: Table) -> Table:
    """Return the rows of `some` at each seed's first measured epoch of train error 0."""
    errors = table.where(measure="error", split="train", layer="network", value=0.0)
    first: dict[int, int] = {}
    for seed, epoch in zip(errors.data["seed"].tolist(), errors.data["epoch"].tolist(), strict=True):
        first[seed] = min(epoch, first.get(seed, epoch))
    keep = [first.get(s) == e for s, e in zip(some.data["seed"].tolist(), some.data["epoch"].tolist(), strict=True)]
    return some.take(np.array(keep, dtype=bool))


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
