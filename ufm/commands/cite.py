"""`ufm cite RUN...`: what a methods section says of runs, and BibTeX of exactly what they used.

Their system, losses, solvers, and the predictions they were held against; the sentences are comments that BibTeX skips.
"""

from __future__ import annotations

import dataclasses
import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from ufm.console import examples, print_json, safe_text
from ufm.errors import RequestError
from ufm.losses import LOSSES
from ufm.record import Run, find_runs, seed_folders
from ufm.solvers import METHODS
from ufm.systems import SYSTEMS
from ufm.tables import Entry, load

TOLD = ("name", "status", "assumptions", "reference", "tolerance")  # of a prediction
CERTIFIED = 1e-6  # relative gap below which a cell is called proven


@click.command(
    "cite",
    help="Print what the runs used, with BibTeX of exactly that.",
    epilog=examples(("ufm cite runs/", "1 s"), ("ufm cite runs/single --json", "1 s")),
)
@click.argument("runs", nargs=-1, required=True, metavar="RUN...", type=click.Path())
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def command(runs: tuple[str, ...], as_json: bool) -> None:
    """Print the references of runs."""
    from ufm.references import cite

    folders = find_runs(runs)
    if not folders:
        raise RequestError(f"{runs[0]}: no run below it (no config.json); name a folder written by ufm or empirical")
    used = [use_of(folder) for folder in folders]
    keys = sorted(set().union(*(one.references for one in used)))
    text = cite(keys)
    if as_json:
        records = [one.record() for one in used]
        print_json({"runs": [str(folder) for folder in folders], "keys": keys, "used": records, "bibtex": text})
        return
    for one in used:
        for sentence in one.sentences():
            for line in textwrap.wrap(safe_text(sentence), 116, subsequent_indent="    ", break_long_words=False):
                click.echo(f"% {line}")
    click.echo(f"\n{text}" if any(one.cells for one in used) else text)


@dataclass
class Use:
    """What one run used: numbers of cells by name, and the sentences of each prediction."""

    name: str
    system: str
    references: set[str] = field(default_factory=set)
    cells: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    losses: Counter[str] = field(default_factory=Counter)
    methods: Counter[str] = field(default_factory=Counter)
    predictions: dict[str, dict[str, Any]] = field(default_factory=dict)
    unpredicted: int = 0
    certified: int = 0
    gap: float = 0.0  # the largest relative one of those certified

    def add(self, row: Mapping[str, Any]) -> None:
        """Count one cell of a sweep."""
        self.cells += 1
        self.statuses[str(row["status"])] += 1
        for table, counted, name in (
            (LOSSES, self.losses, row["parameters"].get("loss")),
            (METHODS, self.methods, method_of(self.system, row)),
        ):
            if isinstance(name, str):
                counted[name] += 1
                self.references.update(_of(table, name))
        self._certify(row)
        predictions = predictions_of(self.system, row)
        self.unpredicted += not predictions
        for told in predictions:
            self.references.add(told["reference"])
            kept = self.predictions.setdefault(repr(told), {**told, "cells": 0})
            kept["cells"] += 1

    def _certify(self, row: Mapping[str, Any]) -> None:
        """A loss below the smallest number, or a gap as large as the loss (d < K - 1), proves nothing of the geometry."""
        certificate, loss = row.get("certificate"), row.get("loss")
        relative = certificate.get("relative") if isinstance(certificate, Mapping) and certificate.get("valid") else None
        if isinstance(relative, (int, float)) and relative <= CERTIFIED and loss:
            self.certified += 1
            self.gap = max(self.gap, float(relative))

    def record(self) -> dict[str, Any]:
        """Return everything, JSON-ready."""
        counted = {name: dict(getattr(self, name)) for name in ("statuses", "losses", "methods")}
        return {
            "run": self.name,
            "system": self.system,
            "cells": self.cells,
            **counted,
            "predictions": list(self.predictions.values()),
            "unpredicted": self.unpredicted,
            "certified": self.certified,
            "largest_relative_gap": self.gap if self.certified else None,
            "references": sorted(key for key in self.references if key),
        }

    def sentences(self) -> list[str]:
        """Return one sentence for each thing that a reader must know; none for a run without cells (a training)."""
        if not self.cells:
            return []
        lines = [f"{self.name}: {_cells(self.cells)} of `{self.system}`; {_counted(self.statuses)}"]
        for word, table, counted in (("loss", LOSSES, self.losses), ("solver", METHODS, self.methods)):
            lines += [f"  {word} {name} ({_cells(number)}){_cited(table, name)}" for name, number in counted.items()]
        for told in self.predictions.values():
            assumed = told["assumptions"] if isinstance(told["assumptions"], (list, tuple)) else []
            parts = [
                f"prediction {told['name']} ({_cells(told['cells'])})" + (f" [{told['reference']}]" if told["reference"] else ""),
                str(told["status"]),
                *([f"assumes {', '.join(map(str, assumed))}"] if assumed else []),
                *([f"loss to {told['tolerance']:g} relative"] if isinstance(told["tolerance"], (int, float)) else []),
            ]
            lines.append("  " + "; ".join(parts))
        if self.unpredicted:
            lines.append(f"  no closed form is known for {_cells(self.unpredicted)}")
        if self.certified:
            proven = f"{self.certified} of {_cells(self.cells)}"
            lines.append(f"  optimal by its certificate: {proven}, (f - f*)/f <= {self.gap:.2g} in each")
        return lines


def use_of(folder: Path) -> Use:
    """Return everything a run used."""
    from ufm.sweep import read_cells

    run = Run.open(folder)
    used = Use(folder.name, run.system, {*_of_system(run.system), *_of(LOSSES, run.config.get("loss")), *_listed(run.config)})
    for place in [folder, *seed_folders(folder)]:
        if (place / "result.json").is_file():
            used.references.update(_listed(Run.open(place).read_json("result.json")))
    for row in read_cells(folder):
        used.add(row)
    used.references.discard("")
    return used


# --- what a row says it used -----------------------------------------------------------------------------------------


def method_of(system: str, row: Mapping[str, Any]) -> str | None:
    """Return the name in `METHODS` of what solved a cell: what its row says, else what its options stand for."""
    if isinstance(row.get("method"), str):
        return row["method"]
    asked = row["parameters"]
    if system == "flow":  # the central path has one integrator
        return "flow" if asked.get("init") == "central" else asked.get("method")
    if system == "deep" and asked.get("method") == "auto":
        return "adam" if asked.get("activation") == "relu" else "lbfgs"
    return asked.get("method") if system == "deep" else None


def predictions_of(system: str, row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what a cell was held against, one record each: name, status, assumptions, reference, tolerance."""
    prediction = row.get("prediction")
    if isinstance(prediction, Mapping) and not (prediction.get("applies") and isinstance(prediction.get("reference"), str)):
        return []
    if system == "deep":  # beside every known structure, not only the lowest
        return _structures(row)
    if system == "flow":
        return _law(row)
    return [{name: prediction.get(name) for name in TOLD}] if isinstance(prediction, Mapping) else []


def _law(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    from ufm.systems.flow_run import LAWS

    law = row.get("law")
    if not isinstance(law, str) or law not in LAWS:
        return []
    return [_told(f"law {law}: {LAWS[law].quantity}", LAWS[law].status, LAWS[law].reference)]


def _structures(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the structures whose losses a deep cell was set beside; zero only where nothing known lies lower."""
    from ufm.systems.deep import Deep, problem_of
    from ufm.theory.deep import structures

    losses = row.get("structures")
    if not isinstance(losses, Mapping) or not losses:
        return []
    fields = {f.name for f in dataclasses.fields(Deep)}
    setting = {k: tuple(v) if isinstance(v, list) else v for k, v in row["parameters"].items() if k in fields}
    known = structures(problem_of(Deep(**setting)))
    lowest = row.get("lowest_known")
    return [
        _told(q.name, q.status, q.reference, q.assumptions)
        for name, q in known.items()
        if name in losses and (name != "zero" or lowest == "zero")
    ]


def _told(name: str, status: str, reference: str, assumptions: Iterable[str] = ()) -> dict[str, Any]:
    return dict(zip(TOLD, (name, status, list(assumptions), reference, None), strict=True))


def _cells(number: int) -> str:
    return f"{number} cell{'s' * (number != 1)}"


def _counted(counter: Mapping[str, int]) -> str:
    return ", ".join(f"{number} {name}" for name, number in counter.items())


def _cited(table: Mapping[str, Entry], name: str) -> str:
    keys = [key for key in _of(table, name) if key]
    return f" [{keys[0]}]" if keys else ""


def _of(table: Mapping[str, Entry], name: Any) -> Iterable[str]:
    return [table[name].reference] if isinstance(name, str) and name in table else []


def _of_system(name: str) -> Iterable[str]:
    """Return the works that every run of a system rests on; of a study's runs, their results say."""
    return load(SYSTEMS, name, "system").reference if name in SYSTEMS else ()


def _listed(record: Any) -> Iterable[str]:
    listed = record.get("references") if isinstance(record, Mapping) else None
    return [key for key in listed if isinstance(key, str)] if isinstance(listed, list) else []
