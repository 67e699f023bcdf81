"""Worker processes: one is killed, then everything is asked to stop; the numbers are those of an undisturbed training."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from empirical.experiment import Experiment
from empirical.runner import FileStop, Job, work
from ufm.interrupt import Stop

SETTING = {"dataset": "gaussian", "width": 8, "depth": 1, "train_per_class": 16, "schedule": "none", "layers": "last"}
EPOCHS = ",".join(str(2**k) for k in range(15))


def wait_for(condition, process, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.05)


def workers_of(process):
    """The worker processes, by their command lines."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(pid) for pid in children if b"LokyProcess" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def lines(root, seed, name):
    found = list(root.glob(f"collapse/*/seed-{seed}/{name}"))
    return found[0].read_text().splitlines() if found else []


@pytest.mark.skipif(not Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").exists(), reason="needs Linux's /proc")
def test_a_killed_worker_and_a_signal_cost_no_number(tmp_path):
    flags = [f"--{key.replace('_', '-')}={value}" for key, value in SETTING.items()]
    command = [sys.executable, "-m", "empirical", "run", "collapse", *flags, "--epochs=1000000", f"--measure-at={EPOCHS}"]
    process = subprocess.Popen(
        [*command, "--seeds=0:2", "--workers=2", "--device=cpu", f"--out={tmp_path}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"UFM_CHECKPOINT_SECONDS": "0.05"},
        start_new_session=True,
    )
    try:
        wait_for(lambda: all(len(lines(tmp_path, seed, "timing.jsonl")) > 5 for seed in (0, 1)), process)
        os.kill(workers_of(process)[0], signal.SIGKILL)
        wait_for(lambda: all("resumed" in "".join(lines(tmp_path, seed, "log.txt")) for seed in (0, 1)), process)
        time.sleep(0.3)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 143, err
    assert "a worker process was lost" in err and "empirical resume " in err and "Traceback" not in err
    for seed in (0, 1):
        rows = [json.loads(line) for line in lines(tmp_path, seed, "metrics.jsonl")]
        last = rows[-1]["epoch"]
        assert last >= 16
        experiment = Experiment(**SETTING, epochs=last, measure_at=",".join(str(2**k) for k in range(15) if 2**k <= last))
        work(Job("collapse", experiment.resolved(), seed, str(tmp_path / "whole"), "cpu"))
        assert rows == [json.loads(line) for line in lines(tmp_path / "whole", seed, "metrics.jsonl")]


def test_the_file_of_the_parent_stops_a_worker(tmp_path):
    stop = FileStop(Stop(), tmp_path / "stop", seconds=0)
    assert not stop
    (tmp_path / "stop").write_text("2")
    assert stop and stop.signum == 2
