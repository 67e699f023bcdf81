"""What this machine offers: memory and devices. Torch is imported only where a device is asked for."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ufm.errors import RequestError


def memory_limit() -> float:
    """Return the bytes a process may use: the machine's memory, or the control group's limit where that is smaller."""
    limit = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            text = Path(file).read_text(encoding="ascii").strip()
        except OSError:
            continue  # no such control group
        if text.isdigit():
            limit = min(limit, float(text))
    return limit


def bytes_text(number: float) -> str:
    """Return a readable size: 1.5 GB."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} PB"


def seconds_text(number: float) -> str:
    """Return a readable duration: 40 s, 12 min, 3 h."""
    if number < 100:
        return f"{max(number, 1):.0f} s"
    return f"{number / 60:.0f} min" if number < 6000 else f"{number / 3600:.0f} h"


def tf32_switches() -> list[tuple[Any, str, Any]]:
    """Return (owner, attribute, value for full float32) of torch's switches for TF32 in matrix products and convolutions.

    From torch 2.9 on they have new names, and the old ones raise as soon as a caller has used a new one.
    """
    import torch

    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    if hasattr(matmul, "fp32_precision"):
        return [(place, "fp32_precision", "ieee") for place in (matmul, cudnn.conv, cudnn.rnn)]
    return [(place, "allow_tf32", False) for place in (matmul, cudnn)]


def resolve_device(name: str, gpu: bool = True) -> str:
    """Return "cpu" or "cuda:N" for what was asked; RequestError for a device that is not there.

    gpu: whether what is to be computed can use one; if not, "auto" is the CPU and a GPU by name is refused.
    """
    if name == "cpu" or (name == "auto" and not gpu):
        return "cpu"
    if not gpu:
        raise RequestError(f"--device {name}: this is computed on the CPU only; use --device cpu or auto")
    import torch

    number = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return "cuda:0" if number else "cpu"
    index = name.removeprefix("cuda").removeprefix(":") or "0"
    if not number:
        raise RequestError(f"--device {name}: this machine has no CUDA device; use --device cpu or auto")
    if int(index) >= number:
        raise RequestError(f"--device {name}: there are {number} CUDA devices; use cuda:0 to cuda:{number - 1}")
    return f"cuda:{index}"
