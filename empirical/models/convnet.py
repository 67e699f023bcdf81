"""A small convolutional network for the images a laptop can train on."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from empirical.models import Architecture
from empirical.models.layers import heads, initialise
from ufm.errors import RequestError
from ufm.seeds import stream


class ConvNet(nn.Module):
    """blocks (each 3x3 convolution of stride 2, batch norm, ReLU) -> mean over space -> head -> classifier."""

    def __init__(self, blocks: nn.Sequential, head: nn.Module, classifier: nn.Linear) -> None:
        super().__init__()
        self.blocks, self.pool, self.head, self.classifier = blocks, nn.AdaptiveAvgPool2d(1), head, classifier

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits (n, K) of images (n, channels, height, width)."""
        return self.classifier(self.head(torch.flatten(self.pool(self.blocks(inputs)), 1)))


def convnet(architecture: Architecture, seed: int) -> nn.Module:
    """Return `depth` blocks of width, 2 width, 4 width, ... channels; strides instead of pooling, which costs less."""
    if len(architecture.shape) != 3:
        raise RequestError(f"--model convnet needs images; this data has samples of shape {architecture.shape}: use --model mlp")
    if not 1 <= architecture.depth <= 8:
        raise RequestError(f"--depth {architecture.depth}: a convnet halves the image at every block; use --depth 1..8")
    draw = stream(seed, "init")
    normed = architecture.norm == "batch"
    blocks, channels, width = [], architecture.shape[0], architecture.width
    for _ in range(architecture.depth):
        convolution = nn.Conv2d(channels, width, 3, stride=2, padding=1, bias=not normed)
        norm = [nn.BatchNorm2d(width)] if normed else []
        blocks.append(nn.Sequential(convolution, *norm, nn.ReLU()))
        channels, width = width, 2 * width
    head, classifier = heads(channels, architecture, draw)
    return initialise(ConvNet(nn.Sequential(*blocks), head, classifier), draw)
