"""`Split`: one half of a data set as tensors, normalised on the device where it lives."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

BAKE_LIMIT = 2**28  # bytes of float32 inputs kept normalised instead of normalised batch by batch


@dataclass(frozen=True, eq=False)
class Split:
    """Inputs and labels of a train or test set.

    inputs: (N, d) or (N, channels, height, width), uint8 (0..255) or float32, not yet normalised.
    labels: (N,) int64 in 0..classes-1.
    mean, std: per channel (or one number), in units of inputs (uint8: of inputs / 255); None when nothing is to be done.
    fine: (N,) the labels before coarse grouping, else None.
    attribute: (N,) int64 in 0..attributes-1, a spurious attribute of each sample (its colour), else None.
    """

    inputs: Tensor
    labels: Tensor
    classes: int
    mean: Tensor | None = None
    std: Tensor | None = None
    fine: Tensor | None = None
    attribute: Tensor | None = None
    attributes: int | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def device(self) -> torch.device:
        """Where the tensors live."""
        return self.inputs.device

    def prepare(self, inputs: Tensor) -> Tensor:
        """Return raw inputs (n, ...) as the network's float32 input."""
        if inputs.dtype == torch.uint8:
            inputs = inputs.to(torch.float32) / 255
        if self.mean is None or self.std is None:
            return inputs
        shape = (1, -1) + (1,) * (inputs.ndim - 2)
        return (inputs - self.mean.view(shape)) / self.std.view(shape)

    def batch(self, indices: Tensor | slice) -> tuple[Tensor, Tensor]:
        """Return (prepared inputs, labels) of the samples `indices`, on the split's device."""
        return self.prepare(self.inputs[indices]), self.labels[indices]

    def subset(self, indices: Tensor) -> Split:
        """Return the samples `indices` as a Split of their own."""
        fine, attribute = (None if values is None else values[indices] for values in (self.fine, self.attribute))
        chosen = {"inputs": self.inputs[indices], "labels": self.labels[indices], "fine": fine, "attribute": attribute}
        return dataclasses.replace(self, **chosen)

    def to(self, device: torch.device | str) -> Split:
        """Return the split on `device`."""
        moved = {
            field.name: value.to(device)
            for field in dataclasses.fields(self)
            if isinstance(value := getattr(self, field.name), Tensor)
        }
        return dataclasses.replace(self, **moved)

    def baked(self) -> Split:
        """Return the split with its inputs normalised once for all, where that fits; else itself."""
        size = self.inputs.numel() * 4
        if size > BAKE_LIMIT or (self.mean is None and self.inputs.dtype == torch.float32):
            return self
        return dataclasses.replace(self, inputs=self.prepare(self.inputs).contiguous(), mean=None, std=None)
