"""The multilayer perceptron."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from empirical.models import Architecture
from empirical.models.layers import heads, initialise
from ufm.seeds import stream


class MLP(nn.Module):
    """blocks (each Linear, batch norm, ReLU) -> head -> classifier; a block's output is a layer's features."""

    def __init__(self, blocks: nn.Sequential, head: nn.Module, classifier: nn.Linear) -> None:
        super().__init__()
        self.blocks, self.head, self.classifier = blocks, head, classifier

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits (n, K) of inputs (n, ...)."""
        return self.classifier(self.head(self.blocks(torch.flatten(inputs, 1))))


def mlp(architecture: Architecture, seed: int) -> nn.Module:
    """Return an MLP of `depth` hidden layers (0: a linear classifier); a layer followed by batch norm has no bias."""
    draw = stream(seed, "init")
    normed = architecture.norm == "batch"
    blocks, dim = [], math.prod(architecture.shape)
    for _ in range(architecture.depth):
        linear = nn.Linear(dim, architecture.width, bias=not normed)
        norm = [nn.BatchNorm1d(architecture.width)] if normed else []
        blocks.append(nn.Sequential(linear, *norm, nn.ReLU()))
        dim = architecture.width
    head, classifier = heads(dim, architecture, draw)
    return initialise(MLP(nn.Sequential(*blocks), head, classifier), draw)
