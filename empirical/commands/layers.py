"""`empirical layers MODEL`: the layers of a network that can be measured."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import click

from empirical.experiment import Experiment
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
    width: int | None = option(
        None, "units per hidden layer (mlp 128; convnet: first channels, 16)", kind="int", low=1, high=65536
    )
    depth: int | None = option(None, "hidden layers (mlp 4; convnet: blocks, 3)", kind="int", low=0, high=1000)
    norm: str = option(Architecture.norm, "normalisation", choices=NORMS)
    head: str = option(Architecture.head, "classifier", choices=HEADS)
    head_depth: int = option(Architecture.head_depth, "linear maps of --head deep", low=1, high=100)
    head_activation: str = option(Architecture.head_activation, "between the maps of --head deep", choices=ACTIVATIONS)
    bias: bool = option(Architecture.bias, "a bias in the classifier")


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
    """Return one row per layer of the untrained network, the one that `empirical run` trains with the same options."""
    import torch

    from empirical.cost import layer_sizes
    from empirical.data.source import check_memory
    from empirical.features import list_layers

    setting = Experiment(model=model, width=request.width, depth=request.depth).resolved()
    architecture = Architecture(
        shape=request.shape or SHAPES.get(model, (3, 32, 32)),
        classes=request.classes,
        width=setting.width or 0,
        depth=setting.depth or 0,
        norm=request.norm,
        head=request.head,
        head_depth=request.head_depth,
        head_activation=request.head_activation,
        bias=request.bias,
    )
    sizes = layer_sizes(setting, architecture.shape, request.classes)
    weights, kept = sum(w for w, _, _ in sizes), math.prod(architecture.shape) + sum(values for _, _, values in sizes)
    check_memory(f"empirical layers {model}", 12 * weights + 8 * kept)  # drawn in float64; two samples go through
    network = build(model, architecture, 0)
    rows = list_layers(network, torch.zeros(2, *architecture.shape))
    return [{**{k: v for k, v in row.items() if k != "measured_by_all"}, "all": row["measured_by_all"]} for row in rows]
