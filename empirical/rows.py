"""Measured rows as a list that knows how to show itself: one line per layer and measure, train beside test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from io import StringIO
from typing import Any

from ufm.console import print_table

COLUMNS = ("layer", "measure", "train", "test (own centres)", "test (train centres)", "flag")
_PLACE = {("train", "self"): COLUMNS[2], ("test", "self"): COLUMNS[3], ("test", "train"): COLUMNS[4]}
SENTENCES = {"below_floor": "below the noise floor", "degenerate": "degenerate (one sample per class)"}


class Rows(list):
    """A list of measured rows (dicts with split, layer, centres, metric, value); `print` shows the table."""

    def value(self, metric: str, *, split: str = "test", layer: str = "penultimate", centres: str | None = None) -> float | None:
        """Return one value; None where it does not exist. KeyError where it was not measured.

        With `centres` None, test values about train means come first where both conventions exist.
        """
        found = {
            row["centres"]: row["value"] for row in self if (row["metric"], row["split"], row["layer"]) == (metric, split, layer)
        }
        for key in ("train", "self") if centres is None else (centres,):
            if key in found:
                return found[key]
        raise KeyError(f"{metric} of {split} features at {layer} was not measured")

    def table(self) -> list[dict[str, Any]]:
        """Return one dict per layer and measure: train, test about its own centres, test about train's, flag."""
        return table_of(self)

    def __str__(self) -> str:
        with redirect_stdout(StringIO()) as text:
            print_table(self.table(), COLUMNS)
        return text.getvalue().rstrip()


def table_of(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the lines of the table: values of one layer and measure side by side, flags in words."""
    lines: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:
        line = lines.setdefault((row["layer"], row["metric"]), {"layer": row["layer"], "measure": row["metric"], "flag": ""})
        line[_PLACE[row["split"], row["centres"]]] = row["value"]
        if "flag" in row:
            flag = f"{row['split']}: {SENTENCES.get(row['flag'], row['flag'])}"
            line["flag"] = flag if not line["flag"] else line["flag"] if flag in line["flag"] else f"{line['flag']}; {flag}"
    return list(lines.values())
