"""Every released run format opens for ever: small examples are kept in tests/legacy and are never rewritten."""

from pathlib import Path

import numpy as np
import pytest

from ufm.record import Run, find_runs, seed_folders
from ufm.sweep import read_cells

LEGACY = Path(__file__).resolve().parents[1] / "legacy"


@pytest.mark.parametrize("run", find_runs(LEGACY), ids=lambda p: p.name)
def test_old_runs_open_and_verify(run):
    for place in seed_folders(run) or [run]:
        opened = Run.open(place)
        opened.verify()
        assert opened.done and opened.read_json("result.json")["status"] == "done" and opened.environment["version"]


def test_format_1_sweep():
    rows = read_cells(next((LEGACY / "format-1" / "single").iterdir()))
    assert [(row["parameters"]["lambda_w"], row["seed"]) for row in rows] == [(1e-3, 0), (1e-3, 1), (1e-2, 0), (1e-2, 1)]
    assert rows[0]["parameters"]["classes"] == 3 and rows[0]["status"] == "converged"
    # The optimum in closed form (balanced cross-entropy, s = sqrt(n lambda_w lambda_h)).
    s = np.sqrt(5 * 1e-3 * 5e-4)
    assert rows[0]["loss"] == pytest.approx(-np.log(1 - 2 * s) + 2 * s * np.log(1 / s - 2), rel=1e-10)


def test_format_1_training():
    (setting,) = (LEGACY / "format-1" / "collapse").iterdir()
    run = Run.open(setting / "seed-3")
    assert run.seed == 3 and run.config == {"definition": 1, "dataset": "digits", "lr": 0.1}
    assert [row["value"] for row in run.rows("metrics.jsonl") if row["split"] == "test"] == [1.0, 0.5, 1 / 11]
    tensors = run.read_tensors("tensors.safetensors")
    assert np.array_equal(tensors["weight"], np.arange(6.0).reshape(2, 3)) and tensors["bias"].dtype == np.float32
