"""Named random streams from one root seed, so that adding a draw in one place never moves the draws of another."""

from __future__ import annotations

import hashlib

import numpy as np

from ufm.errors import RequestError

LIMIT = 2**32


def check_seed(seed: int) -> int:
    """Return `seed` as an int if 0 <= seed < 2**32, else raise RequestError."""
    try:
        whole = -1 if isinstance(seed, (bool, str)) else int(seed)
    except (TypeError, ValueError, OverflowError):
        whole = -1
    if whole != seed or not 0 <= whole < LIMIT:
        raise RequestError(f"seed {seed!r} is not an integer with 0 <= seed < 2**32; use for example 0")
    return whole


def stream(seed: int, name: str) -> np.random.Generator:
    """Return the PCG64 generator of the stream `name` ("init", "order", "sample", "noise", ...) under root `seed`.

    PCG64 in float64 gives the same draws on every CPU; torch's normal draws do not.
    """
    key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([check_seed(seed), key])))
