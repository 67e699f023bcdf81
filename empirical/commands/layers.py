"""`empirical layers MODEL`: the layers of a network that can be measured."""

from __future__ import annotations

import dataclasses
from typing import Any

import click

from empirical.models import ACTIVATIONS, HEADS, MODELS, NORMS, Architecture, build, check_name
from ufm import spec
from ufm.console import examples, print_json, print_table
from ufm.spec import option

EPILOG = examples(
    ("empirical layers mlp --shape 64 --depth 4", "3 s"),
    ("empirical layers resnet18 --shape 3,32,32 --classes 100", "5 s"),
)
COLUMNS = ("layer", "module", "shape", "dim", "pooling", "through", "all", "note")
SHAPES = {"mlp": (64,), "convnet": (1, 28, 28)}  # of digits and MNIST; images of three channels for the others


@dataclasses.dataclass(frozen=True)
class LayersRequest:
    """What `empirical layers` was asked."""

    shape: tuple[int, ...] | None = option(None, "of one input: d, or channels,height,width", kind="ints", low=1, high=4096)
    classes: int = option(10, "number of classes", low=2, high=100_000)
    width: int = option(Architecture.width, "units of a hidden layer (convnet: channels of the first)", low=1, high=65536)
    depth: int = option(Architecture.depth, "hidden layers", low=1, high=1000)
    norm: str = option(Architecture.norm, "normalisation", choices=NORMS)
    head: str = option(Architecture.head, "classifier", choices=HEADS)
    head_depth: int = option(Architecture.head_depth, "linear maps of --head deep", low=1, high=100)
    head_activation: str = option(Architecture.head_activation, "between the maps of --head deep", choices=ACTIVATIONS)


@click.command("layers", epilog=EPILOG)
@click.argument("model", shell_complete=lambda context, parameter, text: [m for m in MODELS if m.startswith(text)])
@spec.click_options(LayersRequest)
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def layers(model: str, as_json: bool, **flags: Any) -> None:
    """List the layers of MODEL that can be measured, with their pooling; `all` marks those of --layers all."""
    check_name(model)
    (cell,) = spec.cells(spec.resolve(LayersRequest, flags))
    rows = layers_of(model, spec.build(LayersRequest, cell))
    if as_json:
        print_json({"model": model, "layers": rows})
    else:
        print_table([{**row, "all": "yes" if row["all"] else ""} for row in rows], COLUMNS)


def layers_of(model: str, request: LayersRequest) -> list[dict[str, Any]]:
    """Return one row per layer of the untrained network."""
    import torch

    from empirical.features import list_layers

    architecture = Architecture(
        shape=request.shape or SHAPES.get(model, (3, 32, 32)),
        classes=request.classes,
        width=request.width,
        depth=request.depth,
        norm=request.norm,
        head=request.head,
        head_depth=request.head_depth,
        head_activation=request.head_activation,
    )
    network = build(model, architecture, 0)
    rows = list_layers(network, torch.zeros(2, *architecture.shape))
    return [{**{k: v for k, v in row.items() if k != "measured_by_all"}, "all": row["measured_by_all"]} for row in rows]
