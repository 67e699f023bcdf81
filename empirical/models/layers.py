"""Parts every architecture shares: seeded initial values and the kinds of head."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import nn

from empirical.models import Architecture
from ufm.errors import RequestError
from ufm.geometry import polygon


def initialise(network: nn.Module, draw: np.random.Generator) -> nn.Module:
    """Redraw every Linear and Conv2d in module order: U(-1/sqrt(fan_in), 1/sqrt(fan_in)), torch's own default law.

    Drawn by numpy in float64 and cast, because torch's draws differ in bits between CPUs. Fixed weights stay.
    """
    for module in network.modules():
        if not isinstance(module, (nn.Linear, nn.Conv2d)) or not module.weight.requires_grad:
            continue
        bound = 1 / math.sqrt(module.weight[0].numel())
        for parameter in (module.weight, module.bias):
            if parameter is not None:
                values = draw.uniform(-bound, bound, size=tuple(parameter.shape))
                with torch.no_grad():
                    parameter.copy_(torch.from_numpy(values).to(parameter.dtype))
    return network


def heads(dim: int, architecture: Architecture, draw: np.random.Generator) -> tuple[nn.Module, nn.Linear]:
    """Return (the maps before the classifier, the classifier (K, last width)) on features of dimension `dim`."""
    K = architecture.classes
    if architecture.head == "etf":
        return nn.Identity(), _etf(dim, K, draw)
    if architecture.head == "polygon":
        return nn.Identity(), _polygon(dim, K, draw)
    if architecture.head == "deep":
        inner: list[nn.Module] = [nn.Linear(dim, dim, bias=False) for _ in range(architecture.head_depth - 1)]
        if architecture.head_activation == "relu":
            inner = [nn.Sequential(linear, nn.ReLU()) for linear in inner]
        return nn.Sequential(*inner), nn.Linear(dim, K, bias=architecture.bias)
    return nn.Identity(), nn.Linear(dim, K, bias=architecture.bias)


def _etf(dim: int, K: int, draw: np.random.Generator) -> nn.Linear:
    """A classifier fixed at a randomly turned simplex ETF with rows of norm 1, without bias (Yang et al. 2022, eq. 1)."""
    if dim < K - 1:
        raise RequestError(
            f"--head etf needs features of dimension {K - 1} or more for {K} classes; this model has {dim}: use --width {K}"
        )
    center = np.eye(K) - 1 / K
    corners = np.linalg.svd(center)[2][: K - 1].T * math.sqrt(K / (K - 1))  # (K, K-1): rows of norm 1
    # The signs of QR as they come: not quite uniform (see `turned`), but what --head etf has always been.
    turn = np.linalg.qr(draw.standard_normal((dim, K - 1)))[0]
    return _fixed(corners @ turn.T)


def _polygon(dim: int, K: int, draw: np.random.Generator) -> nn.Linear:
    """A classifier fixed at the vertices of a regular K-gon in a uniformly random plane, rows of norm 1, without bias."""
    if dim < 2:
        raise RequestError(f"--head polygon needs features of dimension 2 or more; this model has {dim}: use --width 2")
    return _fixed(turned(polygon(K), dim, draw))


def turned(vertices: np.ndarray, dim: int, draw: np.random.Generator) -> np.ndarray:
    """Return `vertices` (K, p) in a uniformly random p-dimensional frame of R^dim, (K, dim): cosines and norms stay.

    QR leaves the signs of the frame to the algorithm, which makes its first entry negative always; with the signs of R's diagonal
    moved into it the law is Haar's: no direction of R^dim and no turn of the vertices is preferred (Mezzadri 2007).
    """
    turn, upper = np.linalg.qr(draw.standard_normal((dim, vertices.shape[1])))
    return vertices @ (turn * np.sign(np.diag(upper))).T


def _fixed(rows: np.ndarray) -> nn.Linear:
    """Return a linear map without bias whose weight (K, d) is not trained."""
    classifier = nn.Linear(rows.shape[1], rows.shape[0], bias=False)
    with torch.no_grad():
        classifier.weight.copy_(torch.from_numpy(rows))
    classifier.weight.requires_grad_(False)
    return classifier
