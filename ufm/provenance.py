"""What produced a result: code, libraries, machine, flags and command line; no user name and no path."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ufm.machine import tf32_switches

LIBRARIES = ("torch", "numpy", "scipy", "safetensors", "joblib", "matplotlib", "scikit-learn", "torchvision", "mlxtend")
GIT_SECONDS = 5.0
# The folders of an absolute path, of one below home or above here, anywhere in a word ("a,/home/ann/b", "folder:/home/ann/x").
_FOLDERS = re.compile(r"(?<![\w./\\-])(?:~[^/\\,;]*|\.\.|[A-Za-z]:)?[/\\](?:[^/\\,;]*[/\\])*")


def environment(device: str | None = None, *, seed: int | None = None, argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Return the record for `env.json`, JSON-ready.

    Args:
        device: the device that computes ("cpu", "cuda:0"), as resolved.
        seed: the root seed, where there is one.
        argv: the command line; that of this process when None. Paths in it are reduced to their last part.

    Torch is described only when it is already imported: asking must not load it.
    """
    import ufm

    commit, dirty = source_state()
    return {
        "package": "ufm",
        "version": ufm.__version__,
        "commit": commit,
        "dirty": dirty,
        "python": platform.python_version(),
        "libraries": versions(),
        "blas": blas(),
        "system": platform.system(),
        "machine": platform.machine(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "device": device,
        **_torch_state(device),
        "argv": clean_argv(sys.argv if argv is None else argv),
        "seed": seed,
    }


@functools.cache
def source_state() -> tuple[str, bool | str]:
    """Return (commit, dirty) of the package's own checkout; "unknown" where there is none."""
    here = Path(__file__).resolve().parent
    commit = _git(here, "rev-parse", "HEAD")
    inside = _git(here, "ls-files", "--error-unmatch", "__init__.py")
    if not re.fullmatch(r"[0-9a-f]{40,64}", commit) or inside != "__init__.py":
        return "unknown", "unknown"  # installed, or inside somebody else's repository
    status = _git(here, "status", "--porcelain", "--untracked-files=no", "--", str(here.parent))
    return commit, status if status == "unknown" else status != ""


def _git(folder: Path, *arguments: str) -> str:
    """Return git's answer; "unknown" on any failure. No shell, no prompt, no user configuration that runs programs."""
    command = ["git", "-C", str(folder), "-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null", *arguments]
    quiet = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")} | {
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_OPTIONAL_LOCKS": "0",
    }
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=GIT_SECONDS, env=quiet, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return "unknown"
    return done.stdout.strip() if done.returncode == 0 else "unknown"


@functools.cache
def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def versions() -> dict[str, str | None]:
    """Return the installed version of each library, None for one that is not installed."""
    return {name: _installed(name) for name in LIBRARIES}


@functools.cache
def blas() -> str:
    """Return the name and version of the BLAS that numpy was built with."""
    import numpy as np

    try:
        found = np.show_config(mode="dicts")["Build Dependencies"]["blas"]  # type: ignore[index]
        return f"{found.get('name', 'unknown')} {found.get('version', '')}".strip()
    except (KeyError, TypeError, AttributeError):
        return "unknown"


@functools.cache
def processor() -> str:
    """Return the CPU's model name, or the architecture."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
        match = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
        if match:
            return match[1].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine() or "unknown"


def _torch_state(device: str | None) -> dict[str, Any]:
    torch = sys.modules.get("torch")
    threads = os.environ.get("OMP_NUM_THREADS")
    state: dict[str, Any] = {"threads": int(threads) if threads and threads.isdigit() else None}
    if torch is None or not hasattr(torch, "get_num_threads"):
        return state | {"cuda": None, "gpu": None, "tf32": None, "deterministic": None}
    gpu = None
    if device is not None and device.startswith("cuda") and torch.cuda.is_available():
        gpu = torch.cuda.get_device_name(device)
    return {
        "threads": torch.get_num_threads(),
        "cuda": torch.version.cuda,
        "gpu": gpu,
        # On a GPU convolutions are rounded to TF32 unless somebody forbids it.
        "tf32": gpu is not None and any(getattr(place, name) in (True, "tf32") for place, name, _ in tf32_switches()),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }


def clean_argv(argv: Sequence[str]) -> list[str]:
    """Return the command line without folders: absolute paths are reduced to their last part, since folders name people."""
    cleaned = [_FOLDERS.sub("", str(word).rstrip("/\\")) for word in argv[1:]]
    program = Path(argv[0]) if argv else Path("")
    return [program.parent.name if program.name == "__main__.py" else program.name, *cleaned]
