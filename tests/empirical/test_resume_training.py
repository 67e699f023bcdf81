"""A training that is killed and resumed gives the same bytes as one that was not."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

# Imports torch once and forks: a kill then costs a second, not a start of Python. No thread runs before the forks.
SERVER = """
import json, os, pathlib, signal, sys, time
import torch
from empirical.experiment import Experiment
from empirical.runner import Job, attempt
import empirical.collapse, empirical.epoch, ufm.measure, empirical.data.generated, empirical.checkpoint
torch.set_num_threads(1)
import empirical.train as loop
plain = loop.take_step
request = json.load(sys.stdin)
experiment = Experiment(**request["experiment"]).resolved()

def newest(root):
    found = [int(p.stem.split("-")[1]) for p in pathlib.Path(root).glob("collapse/*/seed-7/checkpoint-*.json")]
    return max(found, default=0)

def child(root, target=None, pause=0.0):
    pid = os.fork()
    if pid == 0:
        if target is not None:  # leave time to find the moment
            loop.take_step = lambda training, indices: (time.sleep(0.004), plain(training, indices))[1]
        os._exit(attempt(Job("collapse", experiment, 7, root, "cpu")).exit)
    if target is None:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    while newest(root) < target:
        time.sleep(0.001)
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
    time.sleep(pause)
    os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

codes = [child(request["whole"])]
total = newest(request["whole"])
codes += [child(request["killed"], 1 + int(share * total), pause) for share, pause in request["kills"]]
codes.append(child(request["killed"]))
print(json.dumps(codes))
"""

TINY = {
    "dataset": "gaussian",
    "model": "mlp",
    "width": 16,
    "depth": 2,
    "train_per_class": 30,
    "test_per_class": 10,
    "batch_size": 25,
    "epochs": 30,
    "schedule": "cosine",
    "measure_at": "1,2,5,11,20",
}
CONV = TINY | {"dataset": "digits", "model": "convnet", "width": 4, "depth": 2, "epochs": 3, "measure_at": "1,2"}
del CONV["test_per_class"]  # only a generated data set has it


def kill_and_resume(tmp_path, experiment, kills, seed):
    """A checkpoint after every step; each kill comes some milliseconds after a checkpoint drawn at random."""
    rng = np.random.default_rng(seed)
    shares = np.sort(rng.uniform(0, 0.8, size=kills)).tolist()
    moments = list(zip(shares, rng.uniform(0, 0.01, size=kills).tolist(), strict=True))
    request = {
        "experiment": experiment,
        "whole": str(tmp_path / "whole"),
        "killed": str(tmp_path / "killed"),
        "kills": moments,
    }
    done = subprocess.run(
        [sys.executable, "-c", SERVER],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        timeout=280,
        env=os.environ | {"UFM_CHECKPOINT_SECONDS": "0"},
    )
    assert done.returncode == 0, done.stderr
    codes = json.loads(done.stdout)
    assert codes[0] == codes[-1] == 0, done.stderr
    return codes[1:-1], seed_folder(tmp_path / "whole"), seed_folder(tmp_path / "killed")


def seed_folder(root: Path) -> Path:
    (found,) = root.glob("collapse/*/seed-7")
    return found


def tensors(folder: Path) -> bytes:
    newest = max(folder.glob("checkpoint-*.safetensors"), key=lambda p: int(p.stem.split("-")[1]))
    return newest.read_bytes()


def same_results(one: Path, other: Path) -> None:
    assert (one / "metrics.jsonl").read_bytes() == (other / "metrics.jsonl").read_bytes()
    assert tensors(one) == tensors(other)
    first, second = (json.loads((folder / "result.json").read_text()) for folder in (one, other))
    assert first["final"] == second["final"]
    assert first["resumed_at"] == []


def test_kills_change_nothing(tmp_path):
    codes, whole, killed = kill_and_resume(tmp_path, TINY, kills=4, seed=1)
    assert -9 in codes
    same_results(whole, killed)
    assert json.loads((killed / "result.json").read_text())["resumed_at"]


def test_convolutions_and_weights_only_decay_resume_to_the_same_bits(tmp_path):
    """Channels-last parameters: the momentum must come back in the same memory order."""
    codes, whole, killed = kill_and_resume(tmp_path, CONV | {"decay": "weights"}, kills=2, seed=2)
    assert -9 in codes
    same_results(whole, killed)


@pytest.mark.torture
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw", "lbfgs"])
def test_many_kills_change_nothing(tmp_path, optimizer):
    experiment = TINY | {"optimizer": optimizer, "batch_size": None if optimizer == "lbfgs" else 25}
    for seed in range(10):
        _, whole, killed = kill_and_resume(tmp_path / str(seed), experiment, kills=10, seed=seed)
        same_results(whole, killed)
