"""Out-of-distribution samples in the form that a trained network takes: NC5 compares their mean with the class means."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from empirical.data import DATASETS
from empirical.data.prepare import digest, read_source
from empirical.data.split import Split
from ufm.errors import RequestError
from ufm.seeds import stream
from ufm.tables import suggest

NOISE = "noise"
POINTS = 2000  # samples taken, evenly spaced: their mean is all that NC5 asks for, and a look should stay cheap


def outside(name: str, info: Mapping[str, Any], *, seed: int) -> tuple[Split, dict[str, Any]]:
    """Return (samples, their info) of the data set `name` in the form of the data that `info` describes.

    Of a data set the test part is taken, at most 2000 evenly spaced samples. Images are resized (bilinear with
    antialiasing) and their channels repeated or averaged; vectors must have the same length. All are normalised as the
    train data are, by *their* mean and deviation, as they would be in use. "noise" is independent normal noise of the
    train inputs' mean and deviation (0 and 1 where the data are not normalised). The labels are 0: nothing asks for them.

    Raises RequestError in one line for a data set that is the training's own, missing, bad, or of another shape.
    """
    shape = tuple(info["shape"])
    if name == info["name"]:
        raise RequestError(f"--ood {name} is the training's own data; name another data set, or noise")
    if name not in DATASETS and name != NOISE and not name.startswith("folder:"):
        raise RequestError(f"--ood {name!r} is not known; {suggest(name, [*DATASETS, NOISE])}")
    if name == NOISE:
        inputs = torch.from_numpy(stream(seed, "noise").standard_normal((POINTS, *shape)).astype(np.float32))
        licence, own, normalisation = "none needed: generated", shape, None
    else:
        source = read_source(name, seed)
        own, licence, normalisation = source.test_inputs.shape[1:], source.licence, info["normalisation"]
        last = len(source.test_inputs) - 1
        chosen = np.unique(np.linspace(0, last, min(POINTS, last + 1)).round().astype(int))
        raw = torch.from_numpy(np.ascontiguousarray(source.test_inputs[chosen]))
        inputs = _fitted(name, raw.float() / 255 if raw.dtype == torch.uint8 else raw, shape)
    mean, std = (torch.tensor(normalisation[key], dtype=torch.float32) if normalisation else None for key in ("mean", "std"))
    samples = Split(inputs.contiguous(), torch.zeros(len(inputs), dtype=torch.int64), info["classes"], mean, std)
    facts = {"name": name, "samples": len(inputs), "shape": list(own), "licence": licence, "digest": digest(inputs.numpy())}
    return samples, facts


def _fitted(name: str, inputs: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return inputs (n, ...) with samples of `shape`."""
    if len(shape) == 3 and inputs.ndim == 4:
        if inputs.shape[1] != shape[0]:
            inputs = inputs.mean(1, keepdim=True).expand(-1, shape[0], -1, -1)
        if tuple(inputs.shape[2:]) == shape[1:]:
            return inputs
        return F.interpolate(inputs, size=shape[1:], mode="bilinear", antialias=True, align_corners=False)
    if math.prod(inputs.shape[1:]) != math.prod(shape):
        raise RequestError(
            f"--ood {name}: its samples have shape {tuple(inputs.shape[1:])}, the training's {shape}; use --ood noise"
        )
    return inputs.reshape(-1, *shape)
