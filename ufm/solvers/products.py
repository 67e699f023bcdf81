"""Products of batches of matrices, by the faster of the two BLAS libraries a process has.

The x86 wheels of PyTorch bring MKL, which keeps to AVX2 on processors that are not Intel's; those of NumPy bring OpenBLAS,
which takes AVX-512 kernels wherever the processor has them. The flat products of a path (10 x 64 by 64 x 1000, float64)
run there at 65 to 90 GF/s against 27 to 47, those of small problems (4 x 16 by 16 x 40) at 50 to 60 against 13 to 16.
Without AVX-512 kernels the two are equal but for the call, which NumPy makes cheaper: it keeps the small products. On a GPU
PyTorch computes. The choice depends on the machine and the shape alone: the same bytes every time.
"""

from __future__ import annotations

import ctypes
from functools import cache

import numpy as np
import torch
from torch import Tensor

WIDE = ("skylakex", "cooperlake", "sapphirerapids")  # OpenBLAS's names of its AVX-512 kernels
SMALL = 1 << 14  # multiplications of one product below which the call counts
ASKED = ("scipy_openblas_get_corename64_", "scipy_openblas_get_corename", "openblas_get_corename64_", "openblas_get_corename")


@cache
def kernels() -> str:
    """Return the name of the kernels that NumPy's OpenBLAS runs on this processor; "" for another library."""
    module = getattr(np.linalg, "_umath_linalg", None)  # linked against the BLAS of `np.matmul`
    if module is None:
        return ""
    try:
        library = ctypes.CDLL(module.__file__)
    except OSError:
        return ""
    for name in ASKED:
        ask = getattr(library, name, None)
        if ask is not None:
            ask.restype = ctypes.c_char_p
            return ask().decode().lower()
    return ""


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
