"""What the name of a layer stands for, on one traced network, and which points of it are block boundaries."""

from __future__ import annotations

import dataclasses
import itertools

import torch
from torch import nn

from empirical.trace import Call, Flow
from ufm.errors import RequestError
from ufm.tables import suggest

KEYS = ("input", "penultimate", "logits")
POOLINGS = ("flat", "cls")
TAKEN = frozenset((*KEYS, "network"))  # "network" is what rows of the whole network say in the place of a layer


@dataclasses.dataclass(frozen=True)
class Layer:
    """Where one layer's features are taken, and how they become an (n, d) matrix."""

    name: str
    path: str  # of the module; "" for the network itself
    call: int  # the how-many-th call of the module
    side: str  # "read" or "returned"
    follow: int  # how many norm and activation operations after it belong to it
    pooling: str  # "none", "space", "tokens", "flat" or "cls"
    shape: tuple[int, ...] = ()  # of one sample, before pooling
    dim: int = 0  # after pooling
    module: str = ""
    after: tuple[str, ...] = ()


def has_matrix(module: nn.Module) -> bool:
    """Whether the module itself has a weight of two dimensions or more."""
    weight = getattr(module, "weight", None)
    return isinstance(weight, torch.Tensor) and weight.ndim >= 2


def find_classifier(model: nn.Module, flow: Flow, outputs: int, named: str | None) -> str | None:
    """Return the path of the named classifier, or of the last linear layer that could have made the logits."""
    paths = [c.path for c in flow.calls if c.path]
    if named is not None:
        if named not in paths:
            raise RequestError(f"classifier {named!r} is not a module that the network calls; {suggest(named, paths)}")
        return named
    linear, modules = [], dict(model.named_modules())
    for call in flow.calls:
        weight = getattr(modules[call.path], "weight", None)
        if isinstance(weight, torch.Tensor) and weight.ndim == 2 and weight.shape[0] == outputs and call.read is not None:
            linear.append(call)
    final = [c for c in linear if c.returned == flow.sink]
    return (final or linear)[-1].path if linear else None


class Finder:
    """Turns layer names into Layers, on one traced network."""

    def __init__(self, model: nn.Module, flow: Flow, classifier: str | None) -> None:
        self.flow, self.classifier = flow, classifier
        # looked up once: get_submodule walks the path at every call, and a network of a thousand layers has millions of pairs
        self.modules = dict(model.named_modules())
        self.last: dict[str, Call] = {c.path: c for c in flow.calls}
        self.blocks = self._blocks()

    def layer(self, name: str) -> Layer:
        """Return where the features of this name are taken; RequestError says which names there are."""
        base, _, pooling = name.rpartition(":")
        if not base:
            base, pooling = name, ""
        if pooling and pooling not in POOLINGS:
            raise RequestError(f"layer {name!r}: unknown pooling {pooling!r}; use {base}, {base}:flat or {base}:cls")
        if base == "input":
            return Layer(name, "", 1, "read", 0, pooling or "flat", module="input")
        if base == "logits":
            return Layer(name, "", 1, "returned", 0, pooling or "flat", module="output")
        if base == "penultimate":
            if self.classifier is None:
                raise RequestError("no linear layer makes this network's logits; name the classifier's module path")
            call = self.last[self.classifier]
            kind = f"input of {self._type(self.classifier)}"
            return Layer(name, call.path, call.index, "read", 0, pooling or self._pooling(call), module=kind)
        if base == "network":
            raise RequestError("layer 'network' is the name of what concerns the whole network; name a module inside it")
        if base not in self.last or not base:
            raise RequestError(f"unknown layer {base!r}; {self._suggest(base)}")
        call = self.last[base]
        after = self._after(call)
        names = tuple(self.flow.names[node] for node in after)
        follow = len(after)
        return Layer(
            name, base, call.index, "returned", follow, pooling or self._pooling(call), module=self._type(base), after=names
        )

    def _type(self, path: str) -> str:
        return type(self.modules[path]).__name__

    def _after(self, call: Call) -> list[int]:
        """What belongs to a layer with a weight matrix; containers and norms stand for what they return."""
        module = self.modules[call.path]
        if not has_matrix(module) or call.path == self.classifier:
            return []
        return self.flow.following(call.returned)

    def _suggest(self, name: str) -> str:
        """Known names without the thousand inner paths of a large network, but a near miss among those is found."""
        known = [*KEYS, *self.blocks]
        hint = suggest(name, self.last).partition("known: ")[0]
        return hint + suggest(name, known).partition("known: ")[2].join(("known: ", "")) if hint else suggest(name, known)

    def _pooling(self, call: Call) -> str:
        """How the maps of this module are averaged; channels come first unless the module knows only token layers."""
        if len(call.shape) <= 2:
            return "none"
        inside = list(self.modules[call.path].modules())
        conv = any(isinstance(m, (nn.modules.conv._ConvNd, nn.modules.batchnorm._BatchNorm)) for m in inside)
        token = any(isinstance(m, (nn.Linear, nn.LayerNorm, nn.Embedding, nn.MultiheadAttention)) for m in inside)
        if conv:
            return "space"
        return "tokens" if token or len(call.shape) == 3 else "space"

    def _blocks(self) -> list[str]:
        """One name per point that every path crosses and that a weight matrix lies before: the block boundaries."""
        flow, blocks, weighted = self.flow, [], False
        cuts = flow.cuts()
        if not cuts:  # an operation that torch cannot report broke the graph: fall back on the order of execution
            paths = [path for path in self.last if path and path not in TAKEN and path != self.classifier]
            return [path for path in paths if has_matrix(self.modules[path])]
        names = self._names()
        for before, node in itertools.pairwise([0, *cuts]):
            weighted |= any(flow.weighted[before + 1 : node + 1])
            if not weighted or flow.following(node) or node == flow.sink:
                continue
            name = names.get(node)
            if name and name != self.classifier:
                blocks.append(name)
                weighted = False
        return blocks

    def _names(self) -> dict[int, str]:
        """Node -> the innermost container that returns it, else the weighted layer whose block ends there.

        Else a norm or activation module that returns it (after a sum at top level, say).
        """
        whole: dict[int, str] = {}
        leaf: dict[int, str] = {}
        returning: dict[int, str] = {}
        for path, call in self.last.items():
            if not path or path in TAKEN:
                continue
            module, node = self.modules[path], call.returned
            returning.setdefault(node, path)
            if has_matrix(module):
                leaf[[node, *self._after(call)][-1]] = path
            elif any(has_matrix(inner) for inner in module.modules()):
                whole[node] = max(whole.get(node, path), path, key=lambda name: name.count("."))
        return {**returning, **leaf, **whole}
