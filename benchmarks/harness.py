"""What every benchmark shares: process CPU time, medians, ratios side by side, hardware and versions, one JSON file."""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")  # before torch and numpy start theirs


@dataclass(frozen=True)
class Row:
    """One comparison: seconds of process CPU time (median), per unit of work done by each side."""

    task: str
    ours: float
    alternative: str
    theirs: float
    reach: float  # the ratio to reach, from the project's targets
    note: str = ""

    @property
    def ratio(self) -> float:
        """How many times less than the alternative."""
        return self.theirs / self.ours


def cpu_seconds(work: Callable[[], Any], trials: int = 5) -> float:
    """Return the median process CPU time of `trials` calls, after one that warms caches and imports."""
    work()
    spent = []
    for _ in range(trials):
        begun = time.process_time()
        work()
        spent.append(time.process_time() - begun)
    return statistics.median(spent)


def once(work: Callable[[], Any]) -> tuple[float, Any]:
    """Return (process CPU time, result) of one call: for an alternative too slow to repeat."""
    begun = time.process_time()
    result = work()
    return time.process_time() - begun, result


def command_seconds(command: list[str]) -> tuple[float, float]:
    """Return (seconds by the clock, CPU seconds of it and its workers) of a command, from its start to its end."""
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    after, ended = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    return ended - begun, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def arguments(description: str, *, smoke: bool = False) -> argparse.Namespace:
    """Read `--json FILE`, `--trials N` and, where the benchmark has it, `--smoke`."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", type=Path, help="write the rows, hardware and versions here")
    parser.add_argument("--trials", type=int, default=5, help="calls per median (default 5)")
    if smoke:
        parser.add_argument("--smoke", action="store_true", help="every row once at a tiny size: only to see that all of it runs")
    return parser.parse_args()


def report(rows: list[Row], options: argparse.Namespace, facts: dict[str, Any] | None = None) -> None:
    """Print the comparison; write it, with `facts` measured beside it, hardware and versions, when asked."""
    import torch

    from ufm.provenance import environment

    torch.set_num_threads(1)
    for row in rows:
        verdict = "reached" if row.ratio >= row.reach else "not reached"
        sides = f"ours {row.ours:.3g}   {row.alternative} {row.theirs:.3g}"
        print(f"{row.task}\n  {sides}   ratio {row.ratio:.3g} ({verdict}: {row.reach:g})")
        if row.note:
            print(f"  {row.note}")
    document = {
        "rows": [asdict(row) | {"ratio": row.ratio} for row in rows],
        **({"facts": facts} if facts else {}),
        "trials": options.trials,
        "environment": environment(),
    }
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n")
    sys.stdout.flush()
