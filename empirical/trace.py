"""The data flow of one forward pass: which tensors every path goes through, and what follows each module.

Hooks alone do not see a functional ReLU, and a module tree does not show a shortcut. One traced forward of a two-sample
example shows both: every torch operation becomes a node, every module call knows the nodes it read and returned.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

NORMS = frozenset(("batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm", "local_response_norm"))
RECTIFIERS = ("relu", "relu6", "leaky_relu", "rrelu", "prelu", "elu", "selu", "celu", "threshold", "clamp", "clamp_min")
SMOOTH = ("gelu", "silu", "mish", "hardswish", "hardtanh", "hardsigmoid", "tanh", "sigmoid", "softplus", "softsign")
DROPOUT = ("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout")
ACTIVATIONS = frozenset((*RECTIFIERS, *SMOOTH, *DROPOUT))  # in eval mode dropout is the identity, in the middle of a block
WEIGHTED = ("linear", "bilinear", "conv", "multi_head_attention", "embedding")


def kind_of(func: Any) -> str:
    """Return "norm", "activation" or "" for a torch function; in-place forms end in an underscore."""
    name = str(getattr(func, "__name__", "")).rstrip("_")
    return "norm" if name in NORMS else "activation" if name in ACTIVATIONS else ""


def tensors(value: Any, depth: int = 3) -> Iterator[torch.Tensor]:
    """Yield the tensors of a nested tuple, list or dict."""
    if isinstance(value, torch.Tensor):
        yield value
    elif depth and isinstance(value, dict):
        for part in value.values():
            yield from tensors(part, depth - 1)
    elif depth and isinstance(value, (list, tuple)):
        for part in value:
            yield from tensors(part, depth - 1)


def first_tensor(value: Any) -> torch.Tensor | None:
    """Return the tensor that stands for a module's output: itself, `.logits`, or the first one inside."""
    inner = getattr(value, "logits", None)
    return inner if isinstance(inner, torch.Tensor) else next(tensors(value), None)


@dataclasses.dataclass(frozen=True)
class Call:
    """One call of one module: its path, its how-many-th call this is, the nodes read and returned."""

    path: str
    index: int
    read: int | None
    returned: int
    shape: tuple[int, ...]


@dataclasses.dataclass
class Flow:
    """The graph of one forward pass. Node 0 is the input; nodes are numbered in execution order."""

    parents: list[tuple[int, ...]] = dataclasses.field(default_factory=lambda: [()])
    names: list[str] = dataclasses.field(default_factory=lambda: ["input"])
    kinds: list[str] = dataclasses.field(default_factory=lambda: [""])
    weighted: list[bool] = dataclasses.field(default_factory=lambda: [False])
    calls: list[Call] = dataclasses.field(default_factory=list)
    sink: int | None = None
    output: tuple[int, ...] | None = None  # shape of what the network returned

    def __post_init__(self) -> None:
        self.consumers: list[list[int]] = []

    def close(self, sink: int | None) -> None:
        """Note the output node and who reads what."""
        self.sink = sink
        self.consumers = [[] for _ in self.parents]
        for node, parents in enumerate(self.parents):
            for parent in set(parents):
                self.consumers[parent].append(node)

    def following(self, node: int) -> list[int]:
        """Return the norm and activation nodes that alone read `node`, then each other: the rest of its block."""
        chain: list[int] = []
        while len(self.consumers[node]) == 1 and node != self.sink:
            (after,) = self.consumers[node]
            if not self.kinds[after] or self.parents[after][0] != node:
                break
            chain.append(node := after)
        return chain

    def cuts(self) -> list[int]:
        """Return the nodes that every path from input to output goes through, in order; [] when no path was seen.

        Execution order is a topological order, so `v` is such a node exactly when no edge jumps over it.
        """
        if self.sink is None:
            return []
        forward = {0}
        for node in range(1, len(self.parents)):
            if forward.intersection(self.parents[node]):
                forward.add(node)
        live = {self.sink} & forward
        for node in range(self.sink, 0, -1):
            if node in live:
                live.update(forward.intersection(self.parents[node]))
        if 0 not in live:
            return []
        cuts, reach = [], 0
        for node in sorted(live):
            if reach <= node:
                cuts.append(node)
            reach = max([reach, *(c for c in self.consumers[node] if c in live)])
        return cuts


class _Recording(TorchFunctionMode):
    """Writes every torch operation into a Flow. Keeps the tensors alive, so that an id means one tensor."""

    def __init__(self, flow: Flow, weights: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self.flow, self.node_of, self.alive = flow, {}, []
        self.weights = {id(w) for w in weights}

    def start(self, example: Any) -> None:
        for tensor in tensors(example):
            self.node_of[id(tensor)] = 0
            self.alive.append(tensor)

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        given = [*tensors(args), *tensors(kwargs)]
        parents = tuple(self.node_of[id(t)] for t in given if id(t) in self.node_of)
        out = func(*args, **kwargs)
        made = list(tensors(out))
        if made and parents:
            kind = kind_of(func)
            flow = self.flow
            flow.parents.append(parents)
            flow.names.append(str(getattr(func, "__name__", "op")).rstrip("_"))
            flow.kinds.append(kind)
            named = flow.names[-1].startswith(WEIGHTED)  # a parametrised weight is a new tensor at every call
            flow.weighted.append(not kind and (named or any(id(t) in self.weights for t in given)))
            for tensor in made:
                self.node_of[id(tensor)] = len(flow.parents) - 1
                self.alive.append(tensor)
        return out


def trace(model: nn.Module, example: Any) -> Flow:
    """Run `model` once on `example` and return its data flow. The caller sets eval mode and no_grad."""
    flow = Flow()
    matrices = [p for p in [*model.parameters(), *model.buffers()] if p.ndim >= 2]
    mode = _Recording(flow, matrices)
    counts: dict[str, int] = {}
    entered: dict[str, list[int | None]] = {}

    def before(path: str):
        def hook(module: nn.Module, args: tuple, kwargs: dict) -> None:
            given = first_tensor((args, kwargs))
            entered.setdefault(path, []).append(None if given is None else mode.node_of.get(id(given)))

        return hook

    def after(path: str):
        def hook(module: nn.Module, args: Any, out: Any) -> None:
            read = entered[path].pop()
            index = counts[path] = counts.get(path, 0) + 1
            given = first_tensor(out)
            if given is not None and id(given) in mode.node_of:
                flow.calls.append(Call(path, index, read, mode.node_of[id(given)], tuple(given.shape)))

        return hook

    handles = []
    try:
        for path, module in model.named_modules():
            handles.append(module.register_forward_pre_hook(before(path), with_kwargs=True))
            handles.append(module.register_forward_hook(after(path)))
        mode.start(example)
        with mode:
            out = first_tensor(model(example))
    finally:
        for handle in handles:
            handle.remove()
    flow.output = None if out is None else tuple(out.shape)
    flow.close(None if out is None else mode.node_of.get(id(out)))
    return flow
