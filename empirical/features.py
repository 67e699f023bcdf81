"""Which tensors of a network are "the features of layer l", and which weight is the classifier.

A layer is named by
    input         the network's input, flattened;
    penultimate   what the classifier sees: the input of the last linear layer (or of the module named as classifier);
    logits        the network's output;
    PATH          a module path as in `model.named_modules()`. A linear or convolutional layer stands for its block: its
                  output is followed through the normalisation, activation and dropout that alone read it, functional
                  ones included. Every other module (a residual block, a norm, a pooling) stands for what it returns.
and measured in eval mode as an (n, d) matrix: convolutional maps (n, C, H, W) are averaged over space, token sequences
(n, T, D) over tokens; `NAME:flat` keeps every number, `NAME:cls` takes the first token.

Of a module that is called several times in one forward pass the last call counts.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from empirical.finder import TAKEN, Finder, Layer, find_classifier, has_matrix
from empirical.trace import first_tensor, kind_of, trace
from ufm.errors import RequestError, RunError

LARGEST_INPUT = 10_000  # "all" leaves a larger input out: its features would be the data set over again


@dataclasses.dataclass(frozen=True)
class Plan:
    """The layers to measure, the classifier's path (None when there is none) and the number of logits."""

    layers: tuple[Layer, ...]
    classifier: str | None
    outputs: int

    @property
    def names(self) -> list[str]:
        """The layers' names, input first."""
        return [layer.name for layer in self.layers]


def bare(model: nn.Module) -> nn.Module:
    """Return the network inside torch.compile, DataParallel or DistributedDataParallel wrappers.

    Hooks inside a compiled module would not fire.
    """
    while True:
        if isinstance(model, torch.jit.ScriptModule):
            raise RequestError("a torch.jit module takes no hooks; pass the network it was made from")
        if hasattr(model, "_orig_mod"):
            model = model._orig_mod
        elif isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            model = model.module
        else:
            return model


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode, no gradient, no autocast; every module's own training flag and torch's random state are put back."""
    flags = [(module, module.training) for module in model.modules()]
    device = next((t.device for t in itertools.chain(model.parameters(), model.buffers())), torch.device("cpu"))
    cards = [device] if device.type == "cuda" else []
    try:
        model.eval()
        with torch.random.fork_rng(cards), torch.no_grad(), torch.autocast(device.type, enabled=False):
            yield
    finally:
        for module, training in flags:
            module.training = training


def pooled(tensor: torch.Tensor, pooling: str) -> torch.Tensor:
    """Return the (n, d) features of a raw activation, in float32 or float64."""
    if not tensor.dtype.is_floating_point or tensor.dtype.itemsize < 4:
        tensor = tensor.float()
    if pooling == "cls":
        return tensor[:, 0].flatten(1)
    if pooling == "space":
        return tensor.flatten(2).mean(2)
    if pooling == "tokens":
        return tensor.flatten(1, -2).mean(1)
    return tensor.flatten(1) if tensor.ndim > 1 else tensor[:, None]


# --- choosing the layers -----------------------------------------------------------------------------------------


def plan_layers(model: nn.Module, example: Any, layers: str | Sequence[str] = "last", classifier: str | None = None) -> Plan:
    """Find where the asked layers' features are taken, from one forward pass of `example` (two samples are enough).

    Args:
        model: any network; its mode, buffers and hooks are left as they were.
        example: one batch of inputs, as the network takes it.
        layers: "last" (penultimate), "all" (`input`, every block, `penultimate`, `logits`) or names (see the module's text),
            as a sequence or joined by commas.
        classifier: the path of the module that maps features to logits; None finds the last linear layer.

    Returns: a Plan. Raises RequestError for an unknown or unusable layer.
    """
    model = bare(model)
    with evaluating(model):
        flow = trace(model, example)
        if flow.output is None or len(flow.output) != 2:
            shape = "no tensor" if flow.output is None else f"shape {flow.output}"
            raise RequestError(f"the network returns {shape}; it must return logits of shape (batch, classes)")
        outputs = flow.output[1]
        if outputs < 2:
            raise RequestError("the network returns one logit; measures need one per class: return two")
        finder = Finder(model, flow, find_classifier(model, flow, outputs, classifier))
        names = _names(finder, layers, example)
        plan = Plan(tuple(finder.layer(name) for name in names), finder.classifier, outputs)
        sized, features = _sized(model, example, plan)
        if layers == "all":
            sized = _without_twin(sized, features)
        return dataclasses.replace(plan, layers=sized)


def list_layers(model: nn.Module, example: Any, classifier: str | None = None) -> list[dict[str, Any]]:
    """Return one row per layer that can be measured: name, module, shape, dim, what follows it inside, and a note.

    Rows with `measured_by_all` are those of `layers="all"`: the points that every path through the network crosses, one
    per block. The others are the linear and convolutional layers inside blocks. Any other module path works too.
    """
    model = bare(model)
    every = plan_layers(model, example, "all", classifier)
    with evaluating(model):
        flow = trace(model, example)
    chosen = every.names
    twins = [name for name in Finder(model, flow, every.classifier).blocks if name not in chosen]
    modules, known = dict(model.named_modules()), {*chosen, *TAKEN}
    inner = [c.path for c in flow.calls if has_matrix(modules[c.path]) and c.path not in known]
    plan = plan_layers(model, example, [*chosen, *dict.fromkeys([*twins, *inner])], classifier)
    notes = {
        "penultimate": f"input of {plan.classifier}, the classifier",
        plan.classifier: "the classifier",
        **dict.fromkeys(twins, "the same features as penultimate"),
    }
    return [
        {
            "layer": layer.name,
            "module": layer.module,
            "shape": "x".join(map(str, layer.shape)),
            "dim": layer.dim,
            "pooling": layer.pooling,
            "through": " + ".join(layer.after),
            "measured_by_all": layer.name in chosen,
            "note": notes.get(layer.name, ""),
        }
        for layer in plan.layers
    ]


def classifier_weight(model: nn.Module, plan: Plan) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Return the classifier's weight (K, d) and bias (K,), detached; None where it has none."""
    if plan.classifier is None:
        return None, None
    module = bare(model).get_submodule(plan.classifier)
    weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    if not isinstance(weight, torch.Tensor) or weight.ndim != 2:
        return None, None
    return weight.detach(), bias.detach() if isinstance(bias, torch.Tensor) else None


def _names(finder: Finder, layers: str | Sequence[str], example: Any) -> list[str]:
    if isinstance(layers, str):
        if layers == "last":
            return ["penultimate"]
        if layers == "all":
            given = first_tensor(example)
            size = 0 if given is None else given[0].numel()
            ends = ["penultimate"] if finder.classifier is not None else []
            return [*(["input"] if 0 < size <= LARGEST_INPUT else []), *finder.blocks, *ends, "logits"]
        layers = [part.strip() for part in layers.split(",")]
    names = list(layers)
    if not names or not all(isinstance(n, str) and n for n in names):
        raise RequestError(f"layers {layers!r} names no layer; use last, all or names such as penultimate")
    if len(set(names)) != len(names):
        raise RequestError(f"layers {','.join(names)!r} names a layer twice; name each layer once")
    return names


def _sized(model: nn.Module, example: Any, plan: Plan) -> tuple[tuple[Layer, ...], dict[str, torch.Tensor]]:
    """The same layers with their shapes, and their features, seen on the example."""
    shapes: dict[str, tuple[int, ...]] = {}
    features: dict[str, torch.Tensor] = {}

    def look(layer: Layer, raw: torch.Tensor) -> None:
        if layer.pooling == "cls" and raw.ndim != 3:
            raise RequestError(f"layer {layer.name!r} has no tokens (shape {tuple(raw.shape[1:])}); leave ':cls' out")
        shapes[layer.name] = tuple(raw.shape[1:])
        features[layer.name] = pooled(raw, layer.pooling).clone()

    with Taps(model, plan, look) as taps:
        taps.forward(example)
    sized = []
    for layer in plan.layers:
        shape, dim = shapes[layer.name], features[layer.name].shape[1]
        pooling = "none" if len(shape) <= 1 else layer.pooling
        sized.append(dataclasses.replace(layer, shape=shape, dim=dim, pooling=pooling))
    return tuple(sized), features


def _without_twin(layers: tuple[Layer, ...], features: dict[str, torch.Tensor]) -> tuple[Layer, ...]:
    """Leave out a last block that the classifier sees as it is: `penultimate` is the same features."""
    names = [layer.name for layer in layers]
    if names[-2:-1] != ["penultimate"] or len(names) < 3 or names[-3] == "input":
        return layers
    block, seen = features[names[-3]], features["penultimate"]
    same = block.shape == seen.shape and torch.allclose(block, seen, rtol=1e-5, atol=1e-7)
    return (*layers[:-3], *layers[-2:]) if same else layers


# --- taking the features -----------------------------------------------------------------------------------------


class Taps:
    """Forward hooks on the planned layers: `take(layer, raw activation)` is called once per layer and batch.

    The activation is handed over at once, because a later in-place operation may overwrite it: `take` must copy.
    """

    def __init__(self, model: nn.Module, plan: Plan, take: Callable[[Layer, torch.Tensor], None]) -> None:
        self.model, self.plan, self.take = bare(model), plan, take
        self.handles: list[Any] = []
        self.counts: dict[str, int] = {}
        self.taken: set[str] = set()
        self.following = _Following(self._give)

    def __enter__(self) -> Taps:
        at: dict[str, list[Layer]] = {}
        for layer in self.plan.layers:
            at.setdefault(layer.path, []).append(layer)
        for path, here in at.items():
            module = self.model.get_submodule(path)
            self.handles.append(module.register_forward_pre_hook(self._before(here), with_kwargs=True))
            self.handles.append(module.register_forward_hook(self._after(here)))
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self.handles:
            handle.remove()

    def forward(self, batch: Any) -> torch.Tensor:
        """Run one batch; returns the logits."""
        self.counts.clear()
        self.taken.clear()
        self.following.pending.clear()
        if any(layer.follow for layer in self.plan.layers):
            with self.following:
                out = first_tensor(self.model(batch))
        else:
            out = first_tensor(self.model(batch))
        for layer in self.plan.layers:
            if layer.name not in self.taken:
                raise RunError(f"layer {layer.name!r} was not reached for this batch; the network's path depends on the data")
        assert out is not None
        return out

    def _give(self, layer: Layer, raw: torch.Tensor) -> None:
        self.taken.add(layer.name)
        self.take(layer, raw)

    def _before(self, layers: list[Layer]) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple, kwargs: dict) -> None:
            path = layers[0].path
            self.counts[path] = self.counts.get(path, 0) + 1
            for layer in layers:
                given = first_tensor((args, kwargs)) if layer.side == "read" and self.counts[path] == layer.call else None
                if given is not None:
                    self._give(layer, given)

        return hook

    def _after(self, layers: list[Layer]) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple, out: Any) -> None:
            for layer in layers:
                made = first_tensor(out) if layer.side == "returned" and self.counts[layer.path] == layer.call else None
                if made is not None and layer.follow:
                    self.following.watch(layer, made, layer.follow)
                elif made is not None:
                    self._give(layer, made)

        return hook


class _Following(TorchFunctionMode):
    """Follows a layer's output through the norms and activations of its block, functional ones included."""

    def __init__(self, give: Callable[[Layer, torch.Tensor], None]) -> None:
        super().__init__()
        self.give = give
        self.pending: dict[int, list[tuple[Layer, torch.Tensor, int]]] = {}  # holds the tensor, so that its id stays its own

    def watch(self, layer: Layer, tensor: torch.Tensor, steps: int) -> None:
        self.pending.setdefault(id(tensor), []).append((layer, tensor, steps))

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        given = args[0] if args else kwargs.get("input")
        waiting = self.pending.pop(id(given), ()) if id(given) in self.pending and kind_of(func) else ()
        out = func(*args, **kwargs)
        for layer, _, steps in waiting:
            if steps > 1:
                self.watch(layer, out, steps - 1)
            else:
                self.give(layer, out)
        return out
