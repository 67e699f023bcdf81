"""What `simulate` and `predict` share: the common options, and the way from flags and TOML to the cells of a request."""

from __future__ import annotations

import dataclasses
import math
import re
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import click

from ufm.console import Commands, examples
from ufm.errors import RequestError
from ufm.spec import Cells, cells, click_options, option, read_toml, resolve
from ufm.systems import SYSTEMS, System
from ufm.tables import load, suggest

MAX_WORKERS = 1024


@dataclass(frozen=True)
class Seeded:
    """The option of a command whose cells draw something."""

    seeds: int = option(0, "root seeds, 0 <= seed < 2^32", low=0, high=2**32 - 1, grid=True, setting=False)


@dataclass(frozen=True)
class Chosen:
    """The options that choose cells: every command that takes a grid has them."""

    config: str = option(None, "TOML file of options; flags win", kind="path", setting=False)
    zip: str = option(None, "options (names, comma-separated) whose grids walk together", kind="str", setting=False)
    json: bool = option(False, "print one JSON document on stdout", setting=False)
    strict: bool = option(False, "exit 1 when a cell did not converge or a prediction does not apply", setting=False)


@dataclass(frozen=True)
class Working:
    """The options of a command that computes and writes."""

    out: str = option("runs", "folder of all runs", kind="path", setting=False)
    device: str = option("auto", "auto, cpu, cuda or cuda:N", setting=False)
    dtype: str = option("float64", "precision of the theory", choices=("float64",), setting=False)
    workers: int = option(1, "processes on this machine", low=1, high=MAX_WORKERS, setting=False)
    cluster: str = option(None, "tcp://HOST:PORT of a running dask scheduler", kind="str", setting=False)
    shard: str = option(None, "I/N: only the cells i with i mod N = I", kind="str", setting=False)
    dry_run: bool = option(False, "print the number of cells and what they cost; compute nothing", setting=False)


def load_system(name: str) -> System:
    """Return a system by name."""
    return load(SYSTEMS, name, "system")


def group_of(name: str, make: Callable[[str], click.Command], help: str, *shown: tuple[str, str]) -> Commands:
    """Return the group `ufm NAME` of one command for every system, each made by `make` when it is asked for."""
    return Commands(name, SYSTEMS, help=help, epilog=examples(*shown), what="system", make=make)


def command_of(
    system: System,
    work: Callable[[System, Mapping[str, Any]], int],
    common: Sequence[type],
    help: str,
    shown: Sequence[tuple[str, str]],
) -> click.Command:
    """Return the command of one system, its own options before the `common` ones; `work` gets the system and what was typed."""

    def run(**flags: Any) -> int:
        return work(system, flags)

    for spec in reversed((system.spec, *common)):
        run = click_options(spec)(run)
    return click.command(system.name, help=help, epilog=examples(*shown))(run)


@dataclass(frozen=True)
class Request:
    """Resolved options: the system's grids and the shared ones."""

    values: dict[str, list[Any]]
    grid: Cells
    seeds: list[int]
    shared: dict[str, Any]


def read_request(system: System, shared: tuple[type, ...], flags: Mapping[str, Any]) -> Request:
    """Merge defaults, the TOML file and flags; RequestError for anything unknown or out of range."""
    own = {f.name for f in dataclasses.fields(system.spec)}
    common = {f.name: f for spec in shared for f in dataclasses.fields(spec)}
    file = flags.get("config")
    from_file = read_toml(file) if file is not None else {}
    for key in from_file:
        name = key.replace("-", "_")
        if name not in own and name not in common:
            raise RequestError(f"--config: unknown key {key!r}; {suggest(key, [*own, *common])}")
        if name == "config":
            raise RequestError("--config: a file cannot name another file; put all options in one")
    layers = [{k.replace("-", "_"): v for k, v in layer.items()} for layer in (from_file, flags)]
    values = resolve(system.spec, *[{k: v for k, v in layer.items() if k in own} for layer in layers])
    resolved: dict[str, list[Any]] = {}
    for spec in shared:
        names = {f.name for f in dataclasses.fields(spec)}
        resolved |= resolve(spec, *[{k: v for k, v in layer.items() if k in names} for layer in layers])
    seeds = resolved.pop("seeds", [0])
    single = {name: value[0] for name, value in resolved.items()}
    zipped = [name for name in (single["zip"] or "").split(",") if name.strip()]
    grid = cells(values, zipped)
    if len(grid) * len(seeds) > 1_000_000:
        raise RequestError(f"{len(grid)} cells and {len(seeds)} seeds are {len(grid) * len(seeds)}; at most 1000000: use fewer")
    return Request(values, grid, seeds, single)


def read_shard(text: str | None) -> tuple[int, int] | None:
    """Return (I, N) of "I/N"."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text.strip())
    if not match or not int(match[1]) < int(match[2]):
        raise RequestError(f"--shard {text[:40]!r} is not I/N with 0 <= I < N; write for example 0/4")
    return int(match[1]), int(match[2])


def read_device(text: str) -> str:
    """Return the name of a device if it is one; whether it is there is asked later."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d{1,4})?", text):
        raise RequestError(f"--device {text[:40]!r} is not known; use auto, cpu, cuda or cuda:N")
    return text


def applies(row: Mapping[str, Any]) -> bool:
    """Whether theory says something of a cell, asked of its row: by the record of its prediction, or by the law of its path."""
    prediction = row.get("prediction")
    if isinstance(prediction, Mapping):
        return bool(prediction.get("applies"))
    for name in ("applies", "law"):
        if name in row:
            return bool(row[name])
    return prediction is not None or row.get("predicted") is not None


def again() -> str:
    """Return the command line that continues this one."""
    return shlex.join(["ufm", *sys.argv[1:]])


def label(parameters: Mapping[str, Any], varying: tuple[str, ...], seed: int | None) -> str:
    """Return a short name of a cell for the table: what varies, with its value."""
    parts = [f"{name}={_short(parameters.get(name))}" for name in varying]
    if seed is not None:
        parts.append(f"seed={seed}")
    return " ".join(parts) or "-"


def _short(value: Any) -> str:
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:.4g}"
    if isinstance(value, (list, tuple)):
        text = ",".join(map(_short, value))
        return text if len(text) <= 24 else text[:21] + "..."
    return str(value)
