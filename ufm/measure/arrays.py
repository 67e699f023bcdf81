"""What a user hands in (numpy or torch, any real dtype, any device) checked and brought to one form."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from ufm.errors import RequestError


def as_features(features: Any, name: str = "features") -> tuple[torch.Tensor, float]:
    """Return `features` as a detached (N, d) float32 or float64 tensor, and the rounding unit of the dtype it came in.

    Half precision is widened to float32, integers to float64; float64 is narrowed only on a device that has none.
    """
    x = _tensor(features, name).detach()
    if x.ndim != 2 or x.shape[0] == 0 or x.shape[1] == 0:
        raise RequestError(f"{name} has shape {tuple(x.shape)}; it must be (N, d) with N, d >= 1: flatten each sample to one row")
    if x.is_complex():
        raise RequestError(f"{name} is complex; only real features have measures: pass the real part")
    if not x.is_floating_point():
        return x.to(working_dtype(x.device)), float(np.finfo(np.float64).eps)
    eps = torch.finfo(x.dtype).eps
    if x.dtype not in (torch.float32, torch.float64):
        x = x.to(torch.float32)
    return x, float(eps)


def working_dtype(device: torch.device) -> torch.dtype:
    """Return float64 where the device has it (all but MPS)."""
    return torch.float32 if device.type == "mps" else torch.float64


def on_cpu(tensor: torch.Tensor) -> bool:
    """Whether the CPU's ways apply: products in the features' own precision, small blocks, numpy where it is faster."""
    return tensor.device.type == "cpu"


def block_dtype(features: torch.Tensor) -> torch.dtype:
    """Return the dtype of products within a block: the features' own on a CPU, float64 elsewhere (TF32 never enters)."""
    return features.dtype if on_cpu(features) else working_dtype(features.device)


@contextlib.contextmanager
def plain_arithmetic(features: torch.Tensor) -> Iterator[None]:
    """Switch off what a caller's training loop may have on: gradients, and autocast, which would round products to bfloat16."""
    with torch.no_grad(), torch.autocast(features.device.type, enabled=False):
        yield


def as_labels(labels: Any, samples: int, classes: int | None, device: torch.device) -> tuple[torch.Tensor, int]:
    """Return `labels` as (N,) int64 on `device`, and the number of classes (`classes`, or the largest label + 1)."""
    y = _tensor(labels, "labels").detach()
    if y.ndim != 1 or y.shape[0] != samples:
        raise RequestError(f"labels has shape {tuple(y.shape)}; it must be ({samples},), one label for each row of features")
    if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
        raise RequestError(f"labels has dtype {y.dtype}; labels are integers 0..K-1: convert them with .astype(int)")
    y = y.to(torch.int64)
    low, high = int(y.min()), int(y.max())
    if classes is not None and (isinstance(classes, bool) or int(classes) != classes or classes < 1):
        raise RequestError(f"classes is {classes!r}; it must be an integer >= 2: pass the number of classes")
    limit = high + 1 if classes is None else int(classes)
    if low < 0 or high >= limit:
        bad = low if low < 0 else high
        raise RequestError(f"label {bad} is out of range; labels must be 0..{limit - 1}: renumber them or pass classes=")
    return y.to(device), limit


def as_matrix(value: Any, shape: tuple[int | None, ...], name: str) -> np.ndarray:
    """Return `value` as a finite float64 numpy array of `shape` (None: any length)."""
    array = _tensor(value, name).detach().to("cpu", torch.float64).numpy()
    if array.ndim != len(shape) or any(want not in (None, have) for want, have in zip(shape, array.shape, strict=True)):
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise RequestError(f"{name} has shape {array.shape}; it must be ({wanted}): check the classes and the feature dimension")
    if not np.isfinite(array).all():
        raise RequestError(f"{name} has an entry that is not finite; every entry must be: repair it or leave {name} out")
    return array


def _tensor(value: Any, name: str) -> torch.Tensor:
    if isinstance(value, torch.Tensor):
        return value
    try:
        array = np.asarray(value)
    except ValueError:  # rows of different lengths
        array = np.asarray(None)
    if array.dtype.kind not in "fiub":
        raise RequestError(f"{name} is not an array of real numbers; pass a numpy array or a torch tensor")
    if array.dtype.itemsize > 8:  # long double: torch has none
        array = array.astype(np.float64)
    if array.dtype.byteorder not in "=|" or not array.flags.writeable or any(s < 0 for s in array.strides):
        array = array.astype(array.dtype.newbyteorder("="), copy=True)  # what torch cannot share without a warning
    if array.dtype.kind == "u" and array.dtype.itemsize > 1:
        array = array.astype(np.int64)
    return torch.from_numpy(array)
