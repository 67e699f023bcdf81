"""Worker processes: one is killed, then everything is asked to stop; the numbers are those of an undisturbed training."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from empirical import runner
from empirical.experiment import Experiment
from empirical.runner import FileStop, Job, Outcome, run_jobs, work
from ufm.interrupt import Stop

SETTING = {"dataset": "gaussian", "width": 8, "depth": 1, "train_per_class": 16, "schedule": "none", "layers": "last"}
SETTING |= {"ranks": "every"}  # the last moment of a stopped training is none of the ends
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
        # a training killed before its first checkpoint begins anew: nothing would be resumed
        wait_for(lambda: all(list(tmp_path.glob(f"collapse/*/seed-{seed}/checkpoint-*.json")) for seed in (0, 1)), process)
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


def test_a_killed_worker_of_a_cluster_costs_no_number(tmp_path, monkeypatch):
    """Its training goes on from its checkpoint on another worker, the rest is not touched."""
    distributed = pytest.importorskip("distributed", reason="the extra 'cluster' is not installed")
    monkeypatch.setenv("UFM_CHECKPOINT_SECONDS", "0.05")
    experiment = Experiment(**SETTING, epochs=600, measure_at="1,10,100").resolved()
    jobs = [Job("collapse", experiment, seed, str(tmp_path), "cpu") for seed in range(3)]
    killed = []

    def kill_once(workers):
        end = time.monotonic() + 100
        while time.monotonic() < end and not list(jobs[0].path.glob("checkpoint-2.json")):
            time.sleep(0.02)
        holder = [pid for pid in workers if _has_open(pid, jobs[0].path)]
        killed.extend(holder)
        for pid in holder:
            os.kill(pid, signal.SIGKILL)

    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        distributed.Client(cluster.scheduler_address) as client,
    ):
        pids = list(client.run(os.getpid).values())
        killer = threading.Thread(target=kill_once, args=(pids,))
        killer.start()
        outcomes = run_jobs(jobs, workers=1, resume="", cluster=cluster.scheduler_address)
        killer.join()
    assert len(killed) == 1
    assert [outcome.status for outcome in outcomes] == ["finished"] * 3
    assert outcomes[0].result["resumed_at"] and not outcomes[1].result["resumed_at"]
    for job in (jobs[0], jobs[2]):
        work(Job("collapse", experiment, job.seed, str(tmp_path / "whole"), "cpu"))
        assert lines(tmp_path, job.seed, "metrics.jsonl") == lines(tmp_path / "whole", job.seed, "metrics.jsonl")


def _has_open(pid, folder):
    """Whether a process holds a file of the folder open: the lock of its writer."""
    links = []
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            links.append(os.readlink(link))
    return any(link.startswith(str(folder.resolve())) for link in links)


class KilledWorker(Exception):
    """What dask raises, by name, when a task has ended several of its workers."""


def test_a_training_that_ends_its_workers_is_given_up_and_the_rest_goes_on(tmp_path, monkeypatch, capsys):
    jobs = [Job("collapse", Experiment(**SETTING, epochs=1).resolved(), seed, str(tmp_path), "cpu") for seed in range(3)]
    tries = []

    def dispatch(left, workers, cluster, scratch):
        for number, job in enumerate(left):
            (Path(scratch) / f"begun-{number}").touch()
            if job.seed == 1:
                tries.append(cluster)
                raise KilledWorker
            (Path(scratch) / f"ended-{number}").touch()
            yield number, Outcome(str(job.path), job.seed, "finished", 0)

    monkeypatch.setattr(runner, "_dispatch", dispatch)
    outcomes = run_jobs(jobs, workers=1, resume="", cluster="tcp://nowhere:1")
    assert [(outcome.status, outcome.exit) for outcome in outcomes] == [("finished", 0), (runner.LOST, 1), ("finished", 0)]
    assert len(tries) == runner.ATTEMPTS and "a worker process was lost" in capsys.readouterr().err


def test_the_file_of_the_parent_stops_a_worker(tmp_path):
    stop = FileStop(Stop(), tmp_path / "stop", seconds=0)
    assert not stop
    (tmp_path / "stop").write_text("2")
    assert stop and stop.signum == 2
