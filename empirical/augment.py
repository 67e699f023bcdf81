"""Augmentation of whole batches on the device where the data are: random crops after padding, and horizontal flips.

The draws of an epoch come from a stream of its own and belong to places in the epoch's order, so that a resume needs only the
epoch's number, and processes that share a batch see the images one process would see.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ufm.errors import RequestError
from ufm.seeds import stream

PADDING = 4  # pixels on every side, zeros (black): what CIFAR training has used since He et al. (2016)


@dataclass(frozen=True, eq=False)
class Draws:
    """For each place of an epoch: the crop's corner (N, 2) in 0..2 PADDING, and whether it is flipped (N,)."""

    corner: Tensor
    flipped: Tensor

    @classmethod
    def of(cls, seed: int, epoch: int, samples: int, device: torch.device) -> Draws:
        """Return the draws of one epoch: stream "augment-EPOCH" of `seed`."""
        draw = stream(seed, f"augment-{epoch}")
        corner = draw.integers(0, 2 * PADDING + 1, size=(samples, 2))
        flipped = draw.integers(0, 2, size=samples).astype(bool)
        return cls(torch.from_numpy(corner).to(device), torch.from_numpy(flipped).to(device))

    def at(self, first: int, last: int) -> Draws:
        """Return those of the places first..last (exclusive)."""
        return Draws(self.corner[first:last], self.flipped[first:last])


def crop_flip(images: Tensor, draws: Draws) -> Tensor:
    """Return each image (n, C, H, W) padded with zeros, cut to its size at its corner, and mirrored left to right where drawn."""
    n, _, height, width = images.shape
    padded = F.pad(images, (PADDING,) * 4)
    rows = draws.corner[:, :1] + torch.arange(height, device=images.device)
    columns = torch.arange(width, device=images.device).expand(n, width)
    columns = draws.corner[:, 1:] + torch.where(draws.flipped[:, None], width - 1 - columns, columns)
    which = torch.arange(n, device=images.device)[:, None, None]
    cut = padded[which, :, rows[:, :, None], columns[:, None, :]]  # (n, H, W, C): the memory order that channels_last wants
    return cut.permute(0, 3, 1, 2)


def check(name: str, shape: tuple[int, ...]) -> None:
    """Refuse an augmentation that samples of `shape` cannot have."""
    if name != "none" and len(shape) != 3:
        raise RequestError(f"--augment {name} needs images; this data has samples of shape {shape}: use --augment none")
