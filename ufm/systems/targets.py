"""Reading `--targets FILE`: T rows of K numbers from JSON, CSV, .npy or safetensors (key "targets"). Nothing is unpickled."""

from __future__ import annotations

import functools
import io
import json
import math
from pathlib import Path
from typing import Any

from ufm.errors import RequestError
from ufm.files import digest
from ufm.spec import FileValue

KINDS = (".json", ".csv", ".npy", ".safetensors")
SUM = 1e-6  # how far a row of soft labels may be from 1: what float32 leaves of it
HARD = ("focal", "supcon")  # defined for hard labels only


@functools.lru_cache(maxsize=8)
def read_targets(file: FileValue) -> tuple[tuple[float, ...], ...]:
    """Return the rows of a targets file; RequestError when it is no table of numbers, or was changed since it was named."""
    path = Path(file.path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RequestError(f"--targets {path}: {error.strerror}; name a readable file") from None
    if digest(data) != file.sha256:
        raise RequestError(f"--targets {path}: the file changed while the sweep ran; start again")
    if path.suffix.lower() not in KINDS:
        raise RequestError(f"--targets {path}: unknown kind of file; use one of {', '.join(KINDS)}")
    try:
        table = _parse(data, path.suffix.lower())
        rows = tuple(tuple(float(value) for value in row) for row in table)
    except Exception as error:  # each library has its own errors for damaged files; all mean the same here
        kind = f"{type(error).__name__}: {' '.join(str(error).split())[:100]}"
        raise RequestError(f"--targets {path}: not a table of numbers ({kind}); give T rows of K numbers") from None
    if not rows or len({len(row) for row in rows}) != 1 or not rows[0]:
        raise RequestError(f"--targets {path}: rows of different lengths or none; give T rows of K numbers")
    return rows


@functools.lru_cache(maxsize=64)
def check_targets(file: FileValue, classes: int, loss: str) -> None:
    """Raise RequestError for rows that are no targets of `loss` with K = `classes` outputs.

    Cross-entropy takes soft labels (>= 0, sum 1) and multi-label rows (0 and 1, sum = number of labels); squared error any rows.
    """
    rows, name = read_targets(file), f"--targets {file.path}"
    if loss in HARD:
        raise RequestError(f"{name}: --loss {loss} takes hard labels; leave --targets out or use --loss ce")
    if len(rows[0]) != classes:
        raise RequestError(f"{name} has {len(rows[0])} columns and --classes is {classes}; use --classes {len(rows[0])}")
    for number, row in enumerate(rows, 1):
        where = f"{name}, row {number}"
        odd = next((value for value in row if not math.isfinite(value)), None)
        if odd is not None:
            raise RequestError(f"{where}: {odd} is no target; give finite numbers")
        if loss == "mse":
            continue
        least, total = min(row), math.fsum(row)
        if least < 0:
            raise RequestError(f"{where}: {least:g} is negative; --loss {loss} needs probabilities, --loss mse takes any numbers")
        if abs(total - 1) > SUM and not (total >= 1 and set(row) <= {0.0, 1.0}):
            raise RequestError(
                f"{where} sums to {total:.9g}; with --loss {loss} a row sums to 1 (soft labels) or holds only 0 and 1, "
                "at least one of them 1 (several labels)"
            )


def _parse(data: bytes, suffix: str) -> Any:
    if suffix == ".json":
        table = json.loads(data)
        return table["targets"] if isinstance(table, dict) else table
    if suffix == ".csv":
        lines = data.decode("utf-8").splitlines()
        return [line.split(",") for line in lines if line.strip() and not line.startswith("#")]
    if suffix == ".npy":
        import numpy as np

        array = np.load(io.BytesIO(data))  # numpy refuses object arrays unless told otherwise
        return array.tolist()
    import safetensors.numpy

    return safetensors.numpy.load(data)["targets"].tolist()
