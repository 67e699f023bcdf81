"""torchvision's architectures. Their own initial law, under a seed of torch; kept in the run as tensors."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from empirical.models import Architecture
from empirical.models.layers import heads
from ufm.errors import RequestError
from ufm.seeds import stream

SMALL = 64  # pixels: below, a first 7x7 convolution of stride 2 and a pooling would leave nothing to look at


def resnet18(architecture: Architecture, seed: int) -> nn.Module:
    """ResNet-18 (He et al. 2016)."""
    return _made("resnet18", architecture, seed, _resnet)


def resnet34(architecture: Architecture, seed: int) -> nn.Module:
    """ResNet-34 (He et al. 2016)."""
    return _made("resnet34", architecture, seed, _resnet)


def resnet50(architecture: Architecture, seed: int) -> nn.Module:
    """ResNet-50 (He et al. 2016)."""
    return _made("resnet50", architecture, seed, _resnet)


def vgg11(architecture: Architecture, seed: int) -> nn.Module:
    """VGG-11 (Simonyan & Zisserman 2015) with one linear classifier on averaged features, as collapse papers use it."""
    return _made("vgg11", architecture, seed, _vgg)


def vgg13(architecture: Architecture, seed: int) -> nn.Module:
    """VGG-13, as VGG-11."""
    return _made("vgg13", architecture, seed, _vgg)


def densenet40(architecture: Architecture, seed: int) -> nn.Module:
    """DenseNet-BC of depth 40 and growth 12 (Huang et al. 2017, table 2): three blocks of six bottleneck layers."""
    return _made("densenet40", architecture, seed, _densenet40)


def vit_tiny(architecture: Architecture, seed: int) -> nn.Module:
    """ViT-Ti (Touvron et al. 2021, table 1): 12 layers, 3 heads, width 192; patches of an eighth of a small image."""
    return _made("vit-tiny", architecture, seed, _vit_tiny)


# --- common to all ---------------------------------------------------------------------------------------------------


def _made(name: str, architecture: Architecture, seed: int, make: Callable[..., nn.Module]) -> nn.Module:
    """Return `make(torchvision.models, name, architecture, draw)`; torch's own draws follow the stream "init" of the seed."""
    try:
        from torchvision import models
    except ModuleNotFoundError:
        raise RequestError(f"model {name!r} needs torchvision; pip install 'ufm[vision]'") from None
    except (ImportError, RuntimeError) as error:  # a build for another torch
        raise RequestError(f"model {name!r}: torchvision does not load ({error}); install the build for your torch") from None
    check_images(name, architecture.shape)
    if architecture.norm != "batch" and not name.startswith("vgg"):
        own = "layer norm" if name.startswith("vit") else "batch norm"
        raise RequestError(f"--norm {architecture.norm}: {name} is defined with {own}; leave --norm out or use --model convnet")
    with drawn(seed):
        return make(models, name, architecture, stream(seed, "head"))


def check_images(name: str, shape: tuple[int, ...]) -> None:
    """Refuse samples that are no images."""
    if len(shape) != 3:
        raise RequestError(f"--model {name} needs images; this data has samples of shape {shape}: use --model mlp")


@contextlib.contextmanager
def drawn(seed: int) -> Iterator[None]:
    """Seed torch's generator by the stream "init" of `seed`, and put it back."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(stream(seed, "init").integers(2**31)))
        yield


def classifier_of(dim: int, architecture: Architecture, draw: np.random.Generator) -> nn.Module:
    """Return our head on features of dimension `dim` as one module, the classifier last in it."""
    inner, classifier = heads(dim, architecture, draw)
    return classifier if isinstance(inner, nn.Identity) else nn.Sequential(inner, classifier)


# --- one architecture each: the stem fitted to the image, our head in the place of theirs ------------------------------


def _resnet(models: Any, name: str, architecture: Architecture, draw: np.random.Generator) -> nn.Module:
    """A 3x3 first convolution of stride 1 and no pooling below 64 pixels (Papyan 2020)."""
    network = getattr(models, name)(weights=None, num_classes=architecture.classes)
    channels = architecture.shape[0]
    if _small(architecture):
        network.conv1 = nn.Conv2d(channels, 64, 3, stride=1, padding=1, bias=False)
        network.maxpool = nn.Identity()
    elif channels != 3:
        network.conv1 = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
    nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
    network.fc = classifier_of(network.fc.in_features, architecture, draw)
    return network


def _vgg(models: Any, name: str, architecture: Architecture, draw: np.random.Generator) -> nn.Module:
    if min(architecture.shape[1:]) < 32:
        raise RequestError(
            f"--model {name} halves the image five times; {architecture.shape[1:]} is too small: use --model resnet18"
        )
    full = f"{name}_bn" if architecture.norm == "batch" else name
    network = getattr(models, full)(weights=None, num_classes=architecture.classes)
    if architecture.shape[0] != 3:
        network.features[0] = nn.Conv2d(architecture.shape[0], 64, 3, padding=1)
    network.avgpool = nn.AdaptiveAvgPool2d(1)
    network.classifier = classifier_of(512, architecture, draw)
    return network


def _densenet40(models: Any, name: str, architecture: Architecture, draw: np.random.Generator) -> nn.Module:
    if min(architecture.shape[1:]) < 4:
        raise RequestError(f"--model {name} halves the image twice; {architecture.shape[1:]} is too small: use --model mlp")
    network = models.DenseNet(12, (6, 6, 6), num_init_features=24, num_classes=architecture.classes)
    channels = architecture.shape[0]
    if _small(architecture):
        network.features.conv0 = nn.Conv2d(channels, 24, 3, stride=1, padding=1, bias=False)
        network.features.pool0 = nn.Identity()
    elif channels != 3:
        network.features.conv0 = nn.Conv2d(channels, 24, 7, stride=2, padding=3, bias=False)
    nn.init.kaiming_normal_(network.features.conv0.weight)
    network.classifier = classifier_of(network.classifier.in_features, architecture, draw)
    return network


def _vit_tiny(models: Any, name: str, architecture: Architecture, draw: np.random.Generator) -> nn.Module:
    """Patches as large as leaves seven or more a side, 16 pixels at most: 4 of 28 or 32 pixels, 16 of 224."""
    channels, height, width = architecture.shape
    if height != width or height < 7:
        raise RequestError(f"--model {name} needs square images of 7 pixels or more, not {height}x{width}; use --model resnet18")
    patch = max(p for p in range(1, 17) if height % p == 0 and height // p >= 7)
    network = models.VisionTransformer(
        image_size=height,
        patch_size=patch,
        num_layers=12,
        num_heads=3,
        hidden_dim=192,
        mlp_dim=768,
        num_classes=architecture.classes,
    )
    if channels != 3:
        network.conv_proj = nn.Conv2d(channels, 192, patch, stride=patch)
        nn.init.trunc_normal_(network.conv_proj.weight, std=math.sqrt(1 / (channels * patch**2)))  # torchvision's own law
        nn.init.zeros_(network.conv_proj.bias)
    network.heads = classifier_of(192, architecture, draw)
    return network


def _small(architecture: Architecture) -> bool:
    return min(architecture.shape[1:]) < SMALL
