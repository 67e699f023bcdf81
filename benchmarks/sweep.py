"""Sweeps: 256 optima in one batch, and 512 paths in one batch, against loops over the cells; 10,000 cells by the clock.

    python benchmarks/sweep.py [--json FILE] [--trials 5]   (about 2 minutes on one core)

Process CPU time per cell (or per step and configuration), one thread. The loops run on a part of the cells.
The 10,000 cells are a whole command on two workers: K=10, d=64, n=100, 250 lambda_w x 10 imbalances x 4 losses.
"""

from __future__ import annotations

from harness import Row, arguments, command_seconds, cpu_seconds, once, report  # isort: skip  (sets the thread counts)

import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from floors import floor_note
from solver import autograd_path, scipy_search

from ufm import Problem, solve_many
from ufm.solvers.descent import solve_paths
from ufm.sweep import read_cells

CELLS, LOOPED = 256, 16
CONFIGURATIONS, STEPS = 512, 500
GRID = ["--lambda-w", "1e-6:1e-2:250log", "--imbalance", "1:10:10", "--loss", "ce,mse,smoothing,focal"]
GRID_SECONDS = 60.0


def cells() -> list[Problem]:
    """Return 256 cross-entropy problems: 16 lambda_w x 8 lambda_h, balanced and 10:1 imbalanced."""
    grid = [(lw, lw / ratio) for lw in np.geomspace(1e-5, 3e-3, 16) for ratio in np.geomspace(1, 16, 8)]
    step = (100,) * 5 + (10,) * 5
    return [Problem(10, 64, counts, lambda_w=lw, lambda_h=lh) for lw, lh in grid for counts in (100, step)]


def whole_sweep() -> dict[str, Any]:
    """Run 10,000 cells from the command line; return its seconds and how many cells of each loss are certified."""
    with tempfile.TemporaryDirectory() as folder:
        size = ["--classes", "10", "--dim", "64", "--per-class", "100"]
        command = [sys.executable, "-m", "ufm", "simulate", "single", *size, *GRID, "--workers", "2", "--device", "cpu"]
        clock, cpu = command_seconds([*command, "--out", folder])
        found = read_cells(next(Path(folder, "single").iterdir()))
    cells = Counter(cell["parameters"]["loss"] for cell in found)
    good = Counter(cell["parameters"]["loss"] for cell in found if cell["certificate"]["valid"])
    gap = max(cell["certificate"]["gap"] for cell in found if cell["certificate"]["valid"])
    return {"cells": cells, "certified": good, "largest_gap": gap, "seconds": clock, "cpu_seconds": cpu, "target": GRID_SECONDS}


def main() -> None:
    """Measure and print."""
    options = arguments(__doc__)
    torch.set_num_threads(1)
    problems = cells()
    ours = cpu_seconds(lambda: solve_many(problems), options.trials) / CELLS
    found = solve_many(problems)
    assert all(s.status.ok for s in found)
    part = problems[:: CELLS // LOOPED + 1]  # an odd stride: balanced and imbalanced ones alike
    theirs, searched = once(lambda: [scipy_search(p, ftol=0.0, gtol=0.0, maxcor=20) for p in part])
    mine, other = np.median([s.gradient_norm for s in found]), np.median([r.residual for r in searched])
    note = f"largest gap {max(s.certificate.gap for s in found):.0e}; median residual {mine:.0e} against {other:.0e}"
    rows = [Row(f"optimum, K=10 d=64 n=100, {CELLS} cells", ours, "SciPy L-BFGS-B, all samples", theirs / len(part), 300, note)]
    small = [Problem(4, 16, 10, lambda_w=lw, lambda_h=1e-3) for lw in np.geomspace(1e-4, 1e-2, CONFIGURATIONS)]

    def paths(steps: int, method: str) -> None:
        solve_paths(small, range(CONFIGURATIONS), method=method, steps=steps, tol=0.0, lr=0.1)

    loop = cpu_seconds(lambda: autograd_path(small[0], STEPS), options.trials) / STEPS
    for method in ("gd", "momentum"):
        short, long = (cpu_seconds(lambda s=s, m=method: paths(s, m), options.trials) for s in (STEPS // 5, 4 * STEPS))
        each = (long - short) / (4 * STEPS - STEPS // 5) / CONFIGURATIONS
        task = f"step of {method}, K=4 d=16 n=10, {CONFIGURATIONS} configurations"
        rows.append(Row(task, each, "torch autograd, SGD", loop, 100, floor_note(4, 16, 40, loop, options.trials)))
    whole = whole_sweep()
    print(
        f"10,000 cells on two workers: {whole['seconds']:.1f} s by the clock, {whole['cpu_seconds']:.1f} s of CPU (target "
        f"{GRID_SECONDS:g} s); certified: {dict(whole['certified'])}, largest gap {whole['largest_gap']:.0e}"
    )
    report(rows, options, {"10,000 cells, two workers": whole})


if __name__ == "__main__":
    main()
