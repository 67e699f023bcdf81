"""Which device a command computes on, and whether torchrun started it."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from ufm.errors import RequestError


@dataclass(frozen=True)
class Launch:
    """What torchrun told this process: its rank of `size`, and its number on this machine."""

    rank: int
    size: int
    local: int


def launched() -> Launch | None:
    """Return what torchrun told this process; None when it was not started by torchrun."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return None
    try:
        return Launch(*(int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")))
    except (KeyError, ValueError):
        return None


def resolve_device(text: str) -> str:
    """Return "cpu" or "cuda:N" for auto, cpu, cuda or cuda:N; RequestError when an explicit GPU is not there.

    "auto" takes the first GPU, else the CPU; which it was is in the run's env.json. Under torchrun each process takes the
    GPU of its own number.
    """
    import torch

    if text == "cpu":
        return "cpu"
    if not re.fullmatch(r"auto|cuda(:\d{1,3})?", text):
        raise RequestError(f"--device {text!r} is not known; use auto, cpu, cuda or cuda:N")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if text == "auto" and not count:
        return "cpu"
    launch = launched()
    if launch is not None and launch.size > 1:
        if ":" in text:
            raise RequestError(f"--device {text}: torchrun gives every process a GPU of its own; use --device cuda or cpu")
        number = launch.local
    else:
        number = int(text.partition(":")[2] or 0)
    if number >= count:
        have = f"this machine has {count}" if count else "this machine has no usable CUDA GPU"
        raise RequestError(f"--device {text}{_asking(launch)}: {have}; use --device cpu or auto{_fewer(launch)}")
    return f"cuda:{number}"


def _asking(launch: Launch | None) -> str:
    return "" if launch is None or launch.size == 1 else f" with {launch.size} processes of torchrun"


def _fewer(launch: Launch | None) -> str:
    return "" if launch is None or launch.size == 1 else ", or a smaller --nproc-per-node"


def processes(asked: int, device: str, jobs: int) -> int:
    """Return how many processes train `jobs` networks: as asked; 0 means one per core on a CPU and one on a GPU.

    No more than there are networks, so that one network never waits for the start of a process.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(asked or (1 if device.startswith("cuda") else cores), jobs))
