"""Which device a command computes on."""

from __future__ import annotations

import os
import re

from ufm.errors import RequestError


def resolve_device(text: str) -> str:
    """Return "cpu" or "cuda:N" for auto, cpu, cuda or cuda:N; RequestError when an explicit GPU is not there.

    "auto" takes the first GPU, else the CPU; which it was is in the run's env.json.
    """
    import torch

    if text == "cpu":
        return "cpu"
    if not re.fullmatch(r"auto|cuda(:\d{1,3})?", text):
        raise RequestError(f"--device {text!r} is not known; use auto, cpu, cuda or cuda:N")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if text == "auto":
        return "cuda:0" if count else "cpu"
    number = int(text.partition(":")[2] or 0)
    if number >= count:
        have = f"this machine has {count}" if count else "this machine has no usable CUDA GPU"
        raise RequestError(f"--device {text}: {have}; use --device cpu or auto")
    return f"cuda:{number}"


def processes(asked: int, device: str, jobs: int) -> int:
    """Return how many processes train `jobs` networks: as asked; 0 means one per core on a CPU and one on a GPU.

    No more than there are networks, so that one network never waits for the start of a process.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(asked or (1 if device.startswith("cuda") else cores), jobs))
