"""The architectures: one file per family, one line per name. Listing them imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ufm.errors import RequestError
from ufm.tables import Entry, find, load

if TYPE_CHECKING:
    from torch import nn

VGG = "body, batch norm or none, averaged, one linear classifier"
MODELS = {
    "mlp": Entry("empirical.models.mlp:mlp", "depth hidden layers of width units, ReLU, batch norm or none", "", ""),
    "convnet": Entry("empirical.models.convnet:convnet", "depth strided 3x3 convolutions, width doubling, averaged", "", ""),
    "resnet18": Entry("empirical.models.vision:resnet18", "torchvision ResNet-18, CIFAR stem for images below 64", "", "he2016"),
    "resnet34": Entry("empirical.models.vision:resnet34", "torchvision ResNet-34, CIFAR stem for images below 64", "", "he2016"),
    "resnet50": Entry("empirical.models.vision:resnet50", "torchvision ResNet-50, CIFAR stem for images below 64", "", "he2016"),
    "vgg11": Entry("empirical.models.vision:vgg11", f"torchvision VGG-11 {VGG}", "", "simonyan2015"),
    "vgg13": Entry("empirical.models.vision:vgg13", f"torchvision VGG-13 {VGG}", "", "simonyan2015"),
    "densenet40": Entry(
        "empirical.models.vision:densenet40", "torchvision DenseNet-BC, depth 40, growth 12, CIFAR stem below 64", "", "huang2017"
    ),
    "vit-tiny": Entry(
        "empirical.models.vision:vit_tiny", "torchvision ViT, 12 layers, 3 heads, width 192, small patches", "", "touvron2021"
    ),
}
TIMM = "timm:"  # before the name of a model of timm
HEADS = ("linear", "etf", "polygon", "deep")
NORMS = ("batch", "none")
ACTIVATIONS = ("linear", "relu")  # between the maps of a deep head


@dataclass(frozen=True)
class Architecture:
    """What a model is built from.

    shape: of one sample, (d,) or (channels, height, width). classes: K.
    width, depth: units and number of hidden layers (convnet: channels of the first block and number of blocks).
    norm: "batch" or "none". head: "linear", "etf" (a fixed simplex frame), "polygon" (fixed at a regular K-gon in
    a random plane) or "deep" (head_depth linear maps, with nothing between them or, head_activation "relu", a rectifier; only the
    last may have a bias). bias: whether the classifier has one (a fixed one never has).
    """

    shape: tuple[int, ...]
    classes: int
    width: int = 128
    depth: int = 4
    norm: str = "batch"
    head: str = "linear"
    head_depth: int = 1
    bias: bool = True
    head_activation: str = "linear"


def scale_weights(network: nn.Module, factor: float) -> None:
    """Multiply the trainable weights and biases of every linear and convolutional layer by `factor`; norms stay."""
    import torch
    from torch.nn import Conv2d, Linear

    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, (Linear, Conv2d)):
                for parameter in module.parameters(recurse=False):
                    if parameter.requires_grad:
                        parameter.mul_(factor)


def build(name: str, architecture: Architecture, seed: int) -> nn.Module:
    """Return the untrained network `name`; the draws come from the stream "init" of `seed`.

    The network maps prepared inputs (n, *shape) to logits (n, K); its last Linear is the classifier.
    """
    check_name(name)
    if architecture.head not in HEADS or architecture.norm not in NORMS:
        raise RequestError(f"head {architecture.head!r}, norm {architecture.norm!r}: known heads {HEADS}, norms {NORMS}")
    if (architecture.head == "deep") != (architecture.head_depth > 1):
        raise RequestError(
            f"--head {architecture.head} with --head-depth {architecture.head_depth}; a deep head has --head-depth > 1, others 1"
        )
    between = architecture.head_activation
    if between not in ACTIVATIONS or (between != "linear" and architecture.head != "deep"):
        raise RequestError(f"--head-activation {between} with --head {architecture.head}; use linear, or relu with --head deep")
    if name.startswith(TIMM):
        from empirical.models.named import timm_model

        return timm_model(name.removeprefix(TIMM), architecture, seed)
    return load(MODELS, name, "model")(architecture, seed)


def check_name(name: str) -> None:
    """Refuse the name of no model; whether timm has the one after `timm:` is found out when it is built."""
    if name == TIMM or not name.startswith(TIMM):
        find(MODELS, name, "model")
