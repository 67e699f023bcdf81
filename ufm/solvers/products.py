"""Products of batches of matrices, by the faster of the two BLAS libraries a process has.

The x86 wheels of PyTorch bring MKL, which keeps to AVX2 on processors that are not Intel's; those of NumPy bring OpenBLAS,
which takes AVX-512 kernels wherever the processor has them. The flat products of a path (10 x 64 by 64 x 1000, float64)
run there at 65 to 90 GF/s against 27 to 47, those of small problems (4 x 16 by 16 x 40) at 50 to 60 against 13 to 16.
Without AVX-512 kernels the two are equal but for the call, which NumPy makes cheaper: it keeps the small products. On a GPU
PyTorch computes. The choice depends on the machine and the shape alone: the same bytes every time.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

WIDE = ("skylakex", "cooperlake", "sapphirerapids")  # OpenBLAS's names of its AVX-512 kernels
SMALL = 1 << 14  # multiplications of one product below which the call counts
NAMES = ("scipy_openblas_{}64_", "scipy_openblas_{}", "openblas_{}64_", "openblas_{}")  # of its functions, by build


@cache
def _openblas() -> Callable[[str], Any] | None:
    """Return what finds a function of NumPy's OpenBLAS by its short name; None for another library."""
    module = getattr(np.linalg, "_umath_linalg", None)  # linked against the BLAS of `np.matmul`
    try:
        library = ctypes.CDLL(module.__file__)
    except (AttributeError, OSError):
        return None
    for name in NAMES:
        if hasattr(library, name.format("get_corename")):
            return lambda short: getattr(library, name.format(short))
    return None


@cache
def kernels() -> str:
    """Return the name of the kernels that NumPy's OpenBLAS runs on this processor, in lower case; "" for another library."""
    function = _openblas()
    if function is None:
        return ""
    ask = function("get_corename")
    ask.restype = ctypes.c_char_p
    return ask().decode().lower()


@contextmanager
def threads_of_torch() -> Iterator[None]:
    """Give NumPy's OpenBLAS as many threads as PyTorch has: the sums of large products depend on their number."""
    function, wanted = _openblas(), torch.get_num_threads()
    before = wanted if function is None else int(function("get_num_threads")())
    if wanted == before:
        yield
        return
    function("set_num_threads")(wanted)
    try:
        yield
    finally:
        function("set_num_threads")(before)


def by_numpy(tensor: Tensor, size: int) -> bool:
    """Whether NumPy computes the products of a tensor, `size` multiplications for each matrix of the batch."""
    return tensor.device.type == "cpu" and (kernels() in WIDE or (kernels() != "" and size <= SMALL))


class Block:
    """A batch of matrices (B, m, n), and views of the same memory that `multiply` takes: as it is, and transposed."""

    __slots__ = ("flipped", "plain", "values")

    def __init__(self, values: Tensor, numpy: bool) -> None:
        self.values = values
        if numpy:
            self.plain = values.numpy()
            self.flipped = self.plain.transpose(0, 2, 1)
        else:
            self.plain, self.flipped = values, values.mT


def multiply(a: np.ndarray | Tensor, b: np.ndarray | Tensor, out: np.ndarray | Tensor) -> None:
    """Write a b into `out`; all three are views of blocks."""
    if isinstance(out, Tensor):
        torch.bmm(a, b, out=out)
    else:
        np.matmul(a, b, out=out)


def product(a: Tensor, b: Tensor) -> Tensor:
    """Return a b, (B, m, n), in new memory."""
    if by_numpy(a, a[0].numel() * b.shape[2]):
        return torch.from_numpy(np.matmul(a.numpy(), b.numpy()))
    return torch.bmm(a, b)
