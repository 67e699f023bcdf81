"""A system for the tests of sweeps: its cells are cheap, or fail in the way they are told to."""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from ufm.errors import RequestError
from ufm.spec import option
from ufm.systems import Cost, System


@dataclass(frozen=True)
class Toy:
    x: float = option(1.0, "a number", low=0, grid=True)
    k: int = option(1, "an integer", low=0, grid=True)
    mode: str = option(
        "ok", "what happens", choices=("ok", "raise", "memory", "kill", "nan", "term", "sleep", "diverge", "pause"), grid=True
    )
    deaths: int = option(99, "how often the mode's accident happens", low=0)
    marks: str = option(None, "folder in which accidents are counted", kind="path", setting=False)
    weight: float = option(0.01, "seconds that a cell is said to need", low=0)
    size: float = option(1.0, "bytes that a cell is said to need", low=0)


def check(spec):
    if spec.x == 13:
        raise RequestError("--x 13 is unlucky; use another number")
    return Cost(spec.weight, spec.size)


def simulate(tasks, device):
    return [_cell(spec, seed) for spec, seed in tasks]


def _cell(spec, seed):
    row = {"status": "converged", "loss": spec.x**2 / 3 + spec.k + seed * 1e-3, "measures": {"nc1_pinv": 1 / (1 + spec.x)}}
    if spec.mode == "ok" or not _accident(spec, seed):
        return row
    if spec.mode == "raise":
        raise ValueError(f"x = {spec.x}\nis bad")
    if spec.mode == "memory":
        raise MemoryError
    if spec.mode == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if spec.mode == "term":
        os.kill(os.getpid(), signal.SIGTERM)
    if spec.mode == "pause":
        time.sleep(0.02)
    if spec.mode == "sleep":
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(20)
    if spec.mode == "nan":
        row["loss"] = float("nan")
    if spec.mode == "diverge":
        row.update(status="diverged: the loss became non-finite", loss=float("inf"))
    return row


def _accident(spec, seed):
    """Whether this cell's accident happens (again); each one leaves a mark, which also counts them."""
    if spec.marks is None:
        return True
    folder, before = Path(spec.marks), 0
    while (folder / f"{spec.x}-{spec.k}-{seed}-{before}").exists():
        before += 1
    (folder / f"{spec.x}-{spec.k}-{seed}-{before}").touch()
    return before < spec.deaths


def predict(spec):
    return {"prediction": "toy", "loss": spec.x**2 / 3 + spec.k, "status": "derived", "applies": spec.k < 5, "reason": ""}


SYSTEM = System(
    name="toy",
    summary="a toy",
    spec=Toy,
    check="toy_system:check",
    simulate="toy_system:simulate",
    predict="toy_system:predict",
    columns=("loss", "measures.nc1_pinv", "status"),
    predict_columns=("prediction", "loss"),
    naming=("mode", "k"),
    examples=(("ufm simulate toy", "1 s"), ("ufm simulate toy --x 1,2", "1 s")),
)
