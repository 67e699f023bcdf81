"""Checkpoints: numbered pairs, the tensors first and the JSON with their SHA-256 last. Nothing is ever unpickled.

A checkpoint holds everything a training is: tensors of the network and the optimiser, the states of the random
generators, where in the data it stands, and how many lines of metrics belong to it.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import time
import warnings
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from ufm.errors import RunError
from ufm.record import Run, RunWarning

FORMAT = 1
KEEP = 2
LONGEST, SHORTEST, SHARE = 60.0, 5.0, 0.02  # seconds between saves, and the share of the time they may cost
_NAME = re.compile(r"checkpoint-(\d{1,12})\.json")


# --- trees of tensors and plain values <-> flat tensors and JSON ---------------------------------------------------


def flatten(tree: Any, tensors: dict[str, Tensor], name: str) -> Any:
    """Return `tree` (mappings, lists, tensors, numbers, strings, None) as strict JSON; tensors go into `tensors`."""
    if isinstance(tree, Tensor):
        tensors[name] = tree.detach().cpu().contiguous().clone()
        return {"tensor": name}
    if isinstance(tree, dict):
        return {"items": [[key, flatten(value, tensors, f"{name}.{key}")] for key, value in tree.items()]}
    if isinstance(tree, (list, tuple)):
        return {"list": [flatten(value, tensors, f"{name}.{i}") for i, value in enumerate(tree)]}
    if isinstance(tree, float) and not math.isfinite(tree):
        return {"float": repr(tree)}
    if tree is None or isinstance(tree, (bool, int, float, str)):
        return tree
    raise TypeError(f"{name}: a {type(tree).__name__} cannot be kept in a checkpoint")


def unflatten(document: Any, tensors: dict[str, Tensor]) -> Any:
    """Return the tree that `flatten` took apart (tuples come back as lists)."""
    if not isinstance(document, dict):
        return document
    if "tensor" in document:
        return tensors[document["tensor"]]
    if "items" in document:
        return {key: unflatten(value, tensors) for key, value in document["items"]}
    if "list" in document:
        return [unflatten(value, tensors) for value in document["list"]]
    return float(document["float"])


def pack(tree: dict[str, Any]) -> bytes:
    """Return a tree as bytes, for another process: the length of the JSON, the JSON, the tensors."""
    tensors: dict[str, Tensor] = {}
    body = json.dumps(flatten(tree, tensors, "state"), allow_nan=False).encode()
    return len(body).to_bytes(8, "little") + body + safetensors.torch.save(tensors)


def unpack(data: bytes) -> dict[str, Any]:
    """Return the tree that `pack` made into bytes."""
    end = 8 + int.from_bytes(data[:8], "little")
    return unflatten(json.loads(data[8:end]), safetensors.torch.load(data[end:]))


# --- one pair ------------------------------------------------------------------------------------------------------


def save(run: Run, number: int, tree: dict[str, Any]) -> None:
    """Write the pair `number` of the run, then remove the pairs older than the newest two."""
    tensors: dict[str, Tensor] = {}
    document = flatten(tree, tensors, "state")
    data = safetensors.torch.save(tensors)
    run.write_bytes(f"checkpoint-{number}.safetensors", data)
    sealed = {"format": FORMAT, "sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data), "state": document}
    body = json.dumps(sealed, allow_nan=False, sort_keys=True)
    run.write_json(f"checkpoint-{number}.json", {"sha256": hashlib.sha256(body.encode()).hexdigest(), "body": body})
    for old in numbers(run)[:-KEEP]:
        for ending in ("json", "safetensors"):  # the JSON first: a pair without it does not count
            (run.path / f"checkpoint-{old}.{ending}").unlink(missing_ok=True)


def load(run: Run, number: int) -> dict[str, Any]:
    """Return the tree of the pair `number`; RunError naming the file that is missing or damaged."""
    name = f"checkpoint-{number}.json"
    outer = run.read_json(name)
    body = outer.get("body") if isinstance(outer, dict) else None
    if not isinstance(body, str) or hashlib.sha256(body.encode()).hexdigest() != outer.get("sha256"):
        raise RunError(f"{run.path / name} is damaged")
    sealed = json.loads(body)
    if sealed["format"] > FORMAT:
        raise RunError(f"{run.path / name} has checkpoint format {sealed['format']}, this version reads up to {FORMAT}")
    path = run.path / f"checkpoint-{number}.safetensors"
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RunError(f"{path}: {error.strerror}") from None
    if hashlib.sha256(data).hexdigest() != sealed["sha256"]:
        raise RunError(f"{path} is damaged (its SHA-256 is not the one in {name})")
    return unflatten(sealed["state"], safetensors.torch.load(data))


def numbers(run: Run) -> list[int]:
    """Return the numbers of the pairs present, oldest first."""
    return sorted(int(match[1]) for path in run.path.iterdir() if (match := _NAME.fullmatch(path.name)))


def newest(run: Run) -> tuple[int, dict[str, Any] | None]:
    """Return (number, tree) of the newest good pair; (0, None) when there is none at all.

    A bad newest pair falls back to the older one with a warning; when every pair is bad: RunError naming the files.
    """
    found = numbers(run)
    problems = []
    for number in reversed(found):
        try:
            tree = load(run, number)
        except RunError as error:
            problems.append(str(error))
            continue
        if problems:
            warnings.warn(f"{'; '.join(problems)}: going on from checkpoint {number}, the one before", RunWarning, stacklevel=2)
        return number, tree
    if problems:
        raise RunError(
            f"no checkpoint can be read: {'; '.join(problems)}; restore one from a copy, or delete {run.path} to start again"
        )
    return 0, None


def every(run: Run) -> list[tuple[int, dict[str, Any]]]:
    """Return (number, tree) of all good pairs, oldest first; a bad one is left out with a warning."""
    good = []
    for number in numbers(run):
        try:
            good.append((number, load(run, number)))
        except RunError as error:
            warnings.warn(f"{error}: left out", RunWarning, stacklevel=2)
    return good


# --- random generators ---------------------------------------------------------------------------------------------


def random_states(device: torch.device) -> dict[str, Any]:
    """Return the states of torch's generators of the CPU and of `device`.

    Ours (numpy) are streams named by seed and epoch and need no state.
    """
    states: dict[str, Any] = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = [torch.cuda.get_rng_state(device)]
    return states


def set_random_states(states: dict[str, Any], device: torch.device) -> None:
    """Put torch's generators back; a training taken up on another kind of device keeps that device's own."""
    torch.set_rng_state(states["cpu"])
    kept = states.get("cuda") or []
    if device.type == "cuda" and kept:  # once they were kept of all GPUs of the machine
        number = device.index or 0
        torch.cuda.set_rng_state(kept[number if number < len(kept) else 0], device)


# --- when ----------------------------------------------------------------------------------------------------------


class Timer:
    """Says when the next checkpoint is due: at least every 60 s, and seldom enough to cost at most 2 % of the time.

    $UFM_CHECKPOINT_SECONDS replaces the rule by a fixed interval (0: after every step).
    """

    def __init__(self) -> None:
        fixed = os.environ.get("UFM_CHECKPOINT_SECONDS")
        self.fixed = float(fixed) if fixed else None
        self.interval = SHORTEST if self.fixed is None else self.fixed
        self.last = time.monotonic()

    def due(self) -> bool:
        """Whether a checkpoint should be written now."""
        return time.monotonic() - self.last >= self.interval

    def saved(self, seconds: float) -> None:
        """Take note of a save that took `seconds`."""
        self.last = time.monotonic()
        if self.fixed is None:
            self.interval = min(LONGEST, max(SHORTEST, seconds / SHARE))
