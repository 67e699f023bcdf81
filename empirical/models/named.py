"""`timm:NAME`: any classifier of timm (extra `timm`) that ends in one linear layer, with our head in its place."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn

from empirical.models import Architecture
from empirical.models.vision import check_images, classifier_of, drawn
from ufm.errors import RequestError
from ufm.seeds import stream


def timm_model(name: str, architecture: Architecture, seed: int) -> nn.Module:
    """Return timm's network `name` untrained, for images of the asked size; its own initial law, under a seed of torch."""
    full = f"timm:{name}"
    try:
        import timm
    except ModuleNotFoundError:
        raise RequestError(f"model {full!r} needs timm; pip install 'ufm[timm]'") from None
    except (ImportError, RuntimeError) as error:  # its torchvision is a build for another torch
        raise RequestError(f"model {full!r}: timm does not load ({error}); install the torchvision for your torch") from None
    check_images(full, architecture.shape)
    if architecture.norm != "batch":
        raise RequestError(f"--norm {architecture.norm}: {full} comes with its own norm; leave --norm out")
    if not timm.is_model(name):
        near = timm.list_models(f"*{name}*")[:3]
        raise RequestError(f"timm has no model {name!r}; {'near: ' + ', '.join(near) if near else 'see timm.list_models()'}")
    with drawn(seed):
        network = _created(timm, full, name, architecture)
        path, layer = _classifier(full, network)
        parent, _, leaf = path.rpartition(".")
        setattr(network.get_submodule(parent), leaf, classifier_of(layer.in_features, architecture, stream(seed, "head")))
    try:
        with torch.no_grad():
            network.eval()(torch.zeros(2, *architecture.shape))
    except RuntimeError as error:
        raise _no_fit(full, architecture, error) from None
    return network.train()


def _no_fit(full: str, architecture: Architecture, error: Exception) -> RequestError:
    reason = str(error).strip().partition("\n")[0]
    return RequestError(f"model {full!r} cannot be used on images {architecture.shape} ({reason}); name another")


def _created(timm: Any, full: str, name: str, architecture: Architecture) -> nn.Module:
    channels, height, width = architecture.shape
    options: dict[str, Any] = {"num_classes": architecture.classes, "in_chans": channels}
    try:
        made = timm.create_model(name, pretrained=False, **options)
        if "img_size" in inspect.signature(type(made).__init__).parameters:  # a transformer is made for one size
            made = timm.create_model(name, pretrained=False, img_size=(height, width), **options)
    except (AssertionError, TypeError, ValueError, RuntimeError) as error:
        raise _no_fit(full, architecture, error) from None
    return made


def _classifier(full: str, network: nn.Module) -> tuple[str, nn.Linear]:
    """Return (path, layer) of the one linear classifier."""
    path = getattr(network, "default_cfg", {}).get("classifier")
    layer = network.get_submodule(path) if isinstance(path, str) else None
    if not isinstance(layer, nn.Linear):
        raise RequestError(f"model {full!r} does not end in one linear layer ({path}); name another, such as timm:resnet18")
    return path, layer
