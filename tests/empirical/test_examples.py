"""The examples run as they stand."""

import importlib.util
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from ufm.record import Run

EXAMPLES = Path(__file__).parent.parent.parent / "examples"


def test_plain_loop(tmp_path, capsys):
    example = runpy.run_path(str(EXAMPLES / "plain_loop.py"))
    path = example["main"](out=tmp_path, epochs=6)
    assert f"written to {path}" in capsys.readouterr().out
    run = Run.open(path)
    rows = run.rows("metrics.jsonl")
    assert run.done and {r["epoch"] for r in rows} == {0, 1, 2, 3, 4, 5, 6}
    value = {(r["epoch"], r["split"]): r["value"] for r in rows if r["metric"] == "nc1_pinv" and r["layer"] == "penultimate"}
    assert value[6, "train"] < value[6, "test"] < value[0, "test"]  # it collapses on train, less on test


def test_plain_loop_marks_every_added_line():
    text = (EXAMPLES / "plain_loop.py").read_text()
    added = [line for line in text.splitlines() if "# <-" in line]
    assert len(added) == 5 and all("empirical" in line or "recorder" in line for line in added)


@pytest.mark.skipif(importlib.util.find_spec("lightning") is None, reason="lightning is not installed")
def test_lightning_callback(tmp_path):
    command = [sys.executable, str(EXAMPLES / "lightning_callback.py"), "--out", str(tmp_path), "--epochs", "3"]
    subprocess.run(command, check=True, timeout=120)
    (path,) = tmp_path.glob("measure/lightning-*/seed-0")
    assert Run.open(path).done and {r["epoch"] for r in Run.open(path).rows("metrics.jsonl")} == {0, 1, 2, 3}
