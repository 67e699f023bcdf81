"""A sweep in a process of its own, to be killed; every cell that is begun leaves a line. `python sweep_process.py REQUEST`."""

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from ufm import spec, sweep
from ufm.tables import resolve_target

ENV = {"version": "1", "commit": "a", "dirty": False}


def simulate(tasks, device):
    """Note the cells, then do what the real system does. Appending one short write is atomic."""
    with open(os.environ["UFM_TEST_BEGUN"], "a", encoding="ascii") as log:
        log.write("".join(f"{name_of(task)}\n" for task in tasks))
    return resolve_target(os.environ["UFM_TEST_SIMULATE"])(tasks, device)


def name_of(task):
    return hashlib.sha256(repr(task).encode()).hexdigest()[:16]


def plan_of(request):
    system = resolve_target(request["system"])
    values = spec.resolve(system.spec, request["values"])
    shard = tuple(request["shard"]) if request.get("shard") else None
    noting = dataclasses.replace(system, simulate="sweep_process:simulate")
    return sweep.plan(noting, values, spec.cells(values), range(request.get("seeds", 1)), shard=shard)


def main(request):
    outcome = sweep.execute(plan_of(request), root=request["root"], workers=request.get("workers", 1), environment=ENV)
    print(json.dumps({"computed": outcome.computed, "statuses": outcome.statuses}))


class Session:
    """One process of a sweep: `begun` are the names of the cells it began."""

    def __init__(self, request, log):
        self.log = Path(log)
        self.log.touch()
        self.before = self.log.stat().st_size
        own = Path(__file__).parent
        env = os.environ | {
            "UFM_TEST_BEGUN": str(log),
            "UFM_TEST_SIMULATE": resolve_target(request["system"]).simulate,
            "PYTHONPATH": os.pathsep.join([str(own), os.environ.get("PYTHONPATH", "")]),
        }
        command = [sys.executable, __file__, json.dumps(request)]
        self.process = subprocess.Popen(
            command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )

    def wait_for_work(self, seconds=120):
        """Wait until a cell is begun, or the process has nothing to do."""
        end = time.monotonic() + seconds
        while self.log.stat().st_size == self.before and self.process.poll() is None and time.monotonic() < end:
            time.sleep(0.002)

    def kill(self):
        """Kill the process and its workers; return whether there was anything to kill."""
        alive = self.process.poll() is None
        if alive:
            os.killpg(self.process.pid, 9)
        if not self.process.stdout.closed:
            self.process.communicate()
        return alive

    def end(self, seconds=1000):
        """Return what the process printed at its end."""
        out, err = self.process.communicate(timeout=seconds)
        assert self.process.returncode == 0, err
        return json.loads(out)

    @property
    def begun(self):
        return self.log.read_text()[self.before :].split()


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main(json.loads(sys.argv[1]))
