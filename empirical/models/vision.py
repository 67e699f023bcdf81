"""torchvision's architectures. Their own initial law, under a seed of torch; kept in the run as tensors."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from empirical.models import Architecture
from empirical.models.layers import heads
from ufm.errors import RequestError
from ufm.seeds import stream


def _make(name: str, architecture: Architecture, seed: int) -> nn.Module:
    try:
        from torchvision import models
    except ModuleNotFoundError:
        raise RequestError(f"model {name!r} needs torchvision; pip install 'ufm[vision]'") from None
    except (ImportError, RuntimeError) as error:  # a build for another torch
        raise RequestError(f"model {name!r}: torchvision does not load ({error}); install the build for your torch") from None
    if len(architecture.shape) != 3:
        raise RequestError(f"--model {name} needs images; this data has samples of shape {architecture.shape}: use --model mlp")
    if architecture.norm != "batch" and name.startswith("resnet"):
        raise RequestError(f"--norm {architecture.norm}: {name} is defined with batch norm; use --norm batch or --model convnet")
    if name.startswith("vgg") and min(architecture.shape[1:]) < 32:
        raise RequestError(
            f"--model {name} halves the image five times; {architecture.shape[1:]} is too small: use --model resnet18"
        )
    builders: dict[str, Callable[..., nn.Module]] = {
        "resnet18": models.resnet18,
        "resnet34": models.resnet34,
        "resnet50": models.resnet50,
        "vgg11": models.vgg11_bn if architecture.norm == "batch" else models.vgg11,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(stream(seed, "init").integers(2**31)))
        network = builders[name](weights=None, num_classes=architecture.classes)
        return _adapt(name, network, architecture, seed)


def _adapt(name: str, network: nn.Module, architecture: Architecture, seed: int) -> nn.Module:
    """Fit the stem to the image and put our head on: 3x3 stride 1 without max-pooling below 64 pixels (Papyan 2020)."""
    channels, small = architecture.shape[0], min(architecture.shape[1:]) < 64
    draw = stream(seed, "head")
    if name.startswith("resnet"):
        if small:
            network.conv1 = nn.Conv2d(channels, 64, 3, stride=1, padding=1, bias=False)
            network.maxpool = nn.Identity()
        elif channels != 3:
            network.conv1 = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
        nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
        inner, classifier = heads(network.fc.in_features, architecture, draw)
        network.fc = classifier if isinstance(inner, nn.Identity) else nn.Sequential(inner, classifier)
        return network
    if channels != 3:
        network.features[0] = nn.Conv2d(channels, 64, 3, padding=1)
    network.avgpool = nn.AdaptiveAvgPool2d(1)
    inner, classifier = heads(512, architecture, draw)
    network.classifier = classifier if isinstance(inner, nn.Identity) else nn.Sequential(inner, classifier)
    return network


def resnet18(architecture: Architecture, seed: int) -> nn.Module:
    """ResNet-18 (He et al. 2016)."""
    return _make("resnet18", architecture, seed)


def resnet34(architecture: Architecture, seed: int) -> nn.Module:
    """ResNet-34 (He et al. 2016)."""
    return _make("resnet34", architecture, seed)


def resnet50(architecture: Architecture, seed: int) -> nn.Module:
    """ResNet-50 (He et al. 2016)."""
    return _make("resnet50", architecture, seed)


def vgg11(architecture: Architecture, seed: int) -> nn.Module:
    """VGG-11 (Simonyan & Zisserman 2015) with one linear classifier on averaged features, as collapse papers use it."""
    return _make("vgg11", architecture, seed)
