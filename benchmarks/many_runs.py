"""compare over many runs: 10,000 run folders written, loaded into one table, tabulated, judged and drawn as one figure.

    python benchmarks/many_runs.py [--runs 10000] [--settings 100] [--json FILE]   (a minute on one core, 300 MB of disk)

Process CPU time in seconds, one thread, one pass after the imports. The folders are those of tiny trainings: two epochs, two
layers. (Not called compare.py: a script's own folder comes first on the path, and it would hide the package.)
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")  # before numpy starts its own

LIMIT = 60.0  # seconds for load, table and hero together
LAYERS, EPOCHS = ("blocks.0", "penultimate"), (0, 10)


def rows_of(setting: int, seed: int) -> list[dict[str, Any]]:
    """Return the rows of one training that ends collapsed on train and not on test."""
    rows = []
    for epoch in EPOCHS:
        for depth, layer in enumerate(LAYERS):
            train, error = (1.0 if epoch == 0 else 0.1 ** (depth + 1) * (1 + 0.01 * seed)), 0.5 if epoch == 0 else 0.02
            test = 2 * error + train + 0.001 * setting
            values = [
                *(("train", "self", "nc1_pinv", train), ("test", "self", "nc1_pinv", test)),
                *(("test", "train", "nc1_pinv_strong", test), ("test", "train", "nc1_pinv_weak", test - 2.1 * error)),
                *(("test", "train", "nc1_pinv_between", 2 * error), ("test", "train", "nc1_pinv_cross", 0.1 * error)),
                *(("test", "train", "ncc_error", error), ("test", "train", "ncc_error_between", error)),
            ]
            where = {"seed": seed, "epoch": epoch, "step": 8 * epoch, "layer": layer}
            rows += [{**where, "split": s, "centres": c, "metric": m, "value": v} for s, c, m, v in values]
    return rows


def write(root: Path, runs: int, settings: int) -> None:
    """Write `runs` finished seeds of `settings` settings as `empirical` does, but for the waiting on the disk."""
    from ufm.record import Run

    with mock.patch("os.fsync"):
        for setting in range(settings):
            config = {"dataset": "digits", "model": "mlp", "loss": "ce", "weight_decay": 1e-4 * (setting + 1)}
            for seed in range(runs // settings):
                with Run.create(root, "collapse", "bench", config, seed=seed, environment={"version": "bench"}) as run:
                    run.append("metrics.jsonl", rows_of(setting, seed))
                    run.finish({"status": "finished", "data": {"train": 1000, "test": 797, "classes": 10, "counts": [100] * 10}})


def timed(work: Any) -> tuple[float, Any]:
    """Return (process CPU seconds, result)."""
    begun = time.process_time()
    made = work()
    return time.process_time() - begun, made


def main() -> None:
    """Write the folders, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=10_000, help="seeds of all settings together (default 10000)")
    parser.add_argument("--settings", type=int, default=100, help="settings (default 100; of more the figure draws no more)")
    parser.add_argument("--json", type=Path, help="write the seconds, hardware and versions here")
    options = parser.parse_args()
    from compare import table as tables
    from compare.figures import draw, save
    from compare.judging import judge_runs
    from compare.load import load
    from compare.style import Style
    from ufm.provenance import environment

    root, style, spent = Path(tempfile.mkdtemp(prefix="ufm-bench-")), Style.of("neurips"), {}
    try:
        spent["write"], _ = timed(lambda: write(root / "runs", options.runs, options.settings))
        spent["load"], table = timed(lambda: load(root / "runs"))
        assert sum(len(cell.seeds) for cell in table.cells.values()) == options.runs and not table.excluded
        spent["table"], rows = timed(lambda: tables.numbers(tables.chosen_layers(table, None)))
        spent["hero"], made = timed(
            lambda: save(draw("hero", table, style), root / "hero.png", style=style, provenance={"runs": options.runs})
        )
        spent["verdict"], judged = timed(lambda: judge_runs(table))
    finally:
        shutil.rmtree(root)
    whole = spent["load"] + spent["table"] + spent["hero"]
    for name, seconds in spent.items():
        print(f"{name:8} {seconds:8.2f} s")
    verdict = "reached" if whole <= LIMIT else "not reached"
    print(f"load, table and hero of {options.runs} runs: {whole:.1f} s ({verdict}: {LIMIT:g} s)")
    verdicts = sum(len(one.verdicts) for one in judged)
    print(f"{table.rows} rows, {len(rows)} lines of the table, {verdicts} verdicts, {len(made)} files")
    if options.json:
        size = {"runs": options.runs, "settings": options.settings, "rows": table.rows}
        document = {**size, "seconds": spent, "load_table_hero": whole, "limit": LIMIT}
        options.json.write_text(json.dumps({**document, "environment": environment()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
