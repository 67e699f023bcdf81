"""Reading `--targets FILE`: T rows of K numbers from JSON, CSV, .npy or safetensors (key "targets"). Nothing is unpickled."""

from __future__ import annotations

import functools
import io
import json
from pathlib import Path
from typing import Any

from ufm.errors import RequestError
from ufm.files import digest
from ufm.spec import FileValue

KINDS = (".json", ".csv", ".npy", ".safetensors")


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
