"""One forward pass over a data set: the asked layers' features, the loss and the predictions, with nothing left changed."""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from empirical.data.split import Split
from empirical.features import Layer, Plan, Taps, bare, evaluating, pooled
from ufm.errors import RequestError, RunError
from ufm.machine import tf32_switches

Batches = Split | Iterable[tuple[Tensor, Tensor]]
Loss = Callable[[Tensor, Tensor], Tensor]
SHARE = 0.8  # of the free memory that stored features may take
PAIR_MATRICES = 6  # of size K x K, held at once by the measures: Grams, cosines, distances
CPU_CONV_BATCH = 128  # larger batches of maps leave the cache of a CPU: 1000 takes twice as long
GPU_BATCH_VALUES = 2**24  # input numbers of a batch on a GPU: 1000 images of 3 x 32 x 32 and more, 111 of 3 x 224 x 224


@dataclasses.dataclass(frozen=True, eq=False)
class Stored:
    """What one pass kept: features (N, d) by layer, labels (N,), the argmax of the logits (N,), mean loss and error."""

    features: dict[str, Tensor]
    labels: Tensor
    predicted: Tensor
    loss: float
    error: float


def collect(
    model: nn.Module, plan: Plan, data: Batches, *, device: torch.device, batch_size: int = 1000, loss: Loss | None = None
) -> Stored:
    """Run `data` through the network once, in eval mode and full float32, and keep the planned layers' features.

    Args:
        model: the network, on `device`.
        plan: from `plan_layers`.
        data: a Split, or an iterable of (inputs, labels) batches, gone through once.
        device: where batches are sent.
        batch_size: for a Split.
        loss: mean loss of (logits, labels); None: cross-entropy.

    Raises:
        RequestError: wrong batches or labels, or features that would not fit into memory (with the estimate).
        RunError: a feature or logit is not finite.
    """
    mean_loss = loss or F.cross_entropy
    check_classes(plan.outputs)
    check_memory(plan, length(data), device, network_dtype(model).itemsize)
    store = _Store(plan, device)
    labels, predicted, total = [], [], 0.0
    batch_size = _batch_size(model, device, batch_size, data)
    with undisturbed(data), evaluating(model), full_float32(), Taps(model, plan, store.add) as taps:
        forward = _Forward(taps, store, device.type == "cpu" and has_maps(model))
        for x, y in batches(model, data, device, batch_size, plan.outputs):
            logits = forward(x)
            logits = logits.float() if logits.dtype.itemsize < 4 else logits
            total += float(mean_loss(logits, y)) * len(y)
            labels.append(y)
            predicted.append(logits.argmax(1))
    if not labels:
        raise RequestError("the data has no batches; give at least one batch of (inputs, labels)")
    y, guess = torch.cat(labels), torch.cat(predicted)
    features = store.joined()
    if not math.isfinite(total):
        raise RunError("the loss is not finite: the network has diverged")
    return Stored(features, y, guess, total / len(y), int((guess != y).sum()) / len(y))


class _Store:
    """Chunks of each layer's features. A chunk that shares memory with an activation is copied before it is overwritten."""

    def __init__(self, plan: Plan, device: torch.device) -> None:
        self.chunks: dict[str, list[Tensor]] = {name: [] for name in plan.names}
        self.device, self.held, self.look = device, 0, 2**30

    def add(self, layer: Layer, raw: Tensor) -> None:
        features = pooled(raw, layer.pooling)
        self.held += features.nbytes
        if self.held > self.look:  # data of unknown length: stop before the machine does
            free, self.look = free_memory(self.device), 2 * self.look
            if free is not None and self.held > SHARE * free:
                have = f"{self.held / 2**30:.1f} GiB of features are held and {free / 2**30:.1f} GiB are left"
                raise RequestError(f"{have}; name fewer layers or leave ':flat' out")
        shared = features.untyped_storage().data_ptr() == raw.untyped_storage().data_ptr()
        self.chunks[layer.name].append(features.clone() if shared else features)

    def cut(self, batches: int) -> None:
        """Forget all but the first `batches` chunks."""
        for chunks in self.chunks.values():
            del chunks[batches:]

    def joined(self) -> dict[str, Tensor]:
        features = {}
        for name in list(self.chunks):
            chunks = self.chunks.pop(name)
            whole = features[name] = chunks[0].contiguous() if len(chunks) == 1 else torch.cat(chunks)
            # the sum is one read; only if it overflowed are the numbers themselves looked at
            if not bool(torch.isfinite(whole.sum())) and not bool(torch.isfinite(whole).all()):
                raise RunError(f"the features of layer {name!r} are not finite: the network has diverged")
        return features


class _Forward:
    """The forward pass of one batch: images channels last where that is faster and the network can take it."""

    def __init__(self, taps: Taps, store: _Store, channels_last: bool) -> None:
        self.taps, self.store, self.channels_last, self.done = taps, store, channels_last, 0

    def __call__(self, x: Tensor) -> Tensor:
        if self.channels_last and x.ndim == 4:
            try:
                logits = self.taps.forward(x.contiguous(memory_format=torch.channels_last))
                self.done += 1
                return logits
            except RuntimeError:  # x.view(n, -1) refuses this layout, which it never sees in training
                self.channels_last = False
                self.store.cut(self.done)
        self.done += 1
        return self.taps.forward(x)


def batches(
    model: nn.Module, data: Batches, device: torch.device, batch_size: int, outputs: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (inputs, labels) on `device`, inputs in the network's dtype."""
    dtype = network_dtype(model)
    for x, y in _pairs(data, batch_size):
        x = x.to(device, dtype if x.is_floating_point() else None, non_blocking=True)
        yield x, _labels(y, len(x), outputs).to(device, non_blocking=True)


def first_inputs(model: nn.Module, data: Batches, device: torch.device) -> Tensor:
    """Return the first two inputs, prepared: the example that `plan_layers` traces."""
    if isinstance(data, Iterator):  # asking a DataLoader for its iterator would already draw from its generator
        raise RequestError("the data is an iterator, used up after one pass; give a DataLoader or a list of batches")
    with undisturbed(data):
        for x, _ in batches(model, data, device, 2, 2**31):
            return x[:2]
    raise RequestError("the data has no batches; give at least one batch of (inputs, labels)")


def network_dtype(model: nn.Module) -> torch.dtype:
    """Return the floating type of the network's first parameter, which its inputs must have."""
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)


def has_maps(model: nn.Module) -> bool:
    """Whether the network has two-dimensional convolutions."""
    return any(isinstance(m, nn.Conv2d) for m in model.modules())


def _batch_size(model: nn.Module, device: torch.device, batch_size: int, data: Batches) -> int:
    """Return the batch size of a Split: what suits a CPU's cache, or what a GPU holds whatever the size of the images."""
    if device.type == "cpu":
        return min(batch_size, CPU_CONV_BATCH) if has_maps(model) else batch_size
    values = data.inputs[0].numel() if isinstance(data, Split) and len(data) else 1
    return max(1, min(batch_size, GPU_BATCH_VALUES // values))


def _pairs(data: Batches, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    if isinstance(data, Split):
        for start in range(0, len(data), batch_size):
            yield data.batch(slice(start, start + batch_size))
        return
    for batch in beside(data):
        if not isinstance(batch, (tuple, list)) or len(batch) < 2:
            raise RequestError(f"a batch is {type(batch).__name__}; it must be a pair (inputs, labels)")
        x, y = batch[0], torch.as_tensor(batch[1])
        if not isinstance(x, Tensor):
            raise RequestError(f"a batch's inputs are {type(x).__name__}; they must be one tensor (n, ...)")
        yield x, y


def _labels(y: Tensor, samples: int, outputs: int) -> Tensor:
    if y.shape != (samples,) or y.is_floating_point():
        raise RequestError(f"labels have shape {tuple(y.shape)}, {y.dtype}; they must be ({samples},) integers, not one-hot")
    y = y.to(torch.int64)
    if samples and (int(y.min()) < 0 or int(y.max()) >= outputs):
        bad = int(y.min()) if int(y.min()) < 0 else int(y.max())
        raise RequestError(f"label {bad} is out of range; the network has {outputs} outputs, so labels must be 0..{outputs - 1}")
    return y


def facts(train: Tensor, test: Tensor, classes: int) -> dict[str, Any]:
    """Return what a result says of its data, from both splits' labels: sizes, the number of classes, train's class counts."""
    counts = torch.bincount(train, minlength=classes).tolist()
    return {"train": len(train), "test": len(test), "classes": classes, "counts": counts}


# --- memory ------------------------------------------------------------------------------------------------------


def length(data: Batches) -> int | None:
    """Return the number of samples, None where only a pass would tell."""
    source = data if isinstance(data, Split) else getattr(data, "dataset", None)
    try:
        return len(source) if source is not None else None
    except TypeError:  # an iterable data set
        return None


def check_memory(plan: Plan, samples: int | None, device: torch.device, itemsize: int = 4) -> None:
    """Refuse, with the estimate, features that would take more than the free memory allows."""
    if samples is None:
        return
    need = samples * sum(layer.dim for layer in plan.layers) * max(itemsize, 4)
    free = free_memory(device)
    if free is not None and need > SHARE * free:
        raise RequestError(
            f"features of {len(plan.layers)} layers x {samples} samples take about {need / 2**30:.1f} GiB, "
            f"{free / 2**30:.1f} GiB are free; name fewer layers or leave ':flat' out"
        )


def check_classes(classes: int, why: str = "") -> None:
    """Refuse, with the estimate, a number of classes whose K x K matrices would not fit. why: where the number comes from."""
    need, free = PAIR_MATRICES * 8 * classes**2, free_memory(torch.device("cpu"))
    if free is not None and need > SHARE * free:
        size = f"about {need / 2**30:.1f} GiB" if need < 2**50 else "more memory than any machine has"
        raise RequestError(
            f"{why}{classes} classes need {size} for matrices of class pairs, {free / 2**30:.1f} GiB are free; "
            "renumber the labels 0..K-1 or measure fewer classes"
        )


def free_memory(device: torch.device) -> int | None:
    """Return the free bytes on `device`, None where the system does not say."""
    if device.type == "cuda":  # what torch holds back for itself from earlier tensors is free to us too
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + held
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return None


# --- leaving no trace --------------------------------------------------------------------------------------------


def beside(data: Batches) -> Batches:
    """Return what can be gone through without moving the data's own iterator: for most, the data themselves.

    A DataLoader with persistent workers has one iterator for good, and asking for it again starts it anew: that would cut short
    the epoch that the caller is in, and its workers would have drawn. So a loader like it is made, with workers for one pass.

    Raises: RequestError for a loader with persistent workers that goes through its data in a way of its own.
    """
    if not isinstance(data, DataLoader) or not data.persistent_workers:
        return data
    kind = type(data)
    if kind.__iter__ is not DataLoader.__iter__ or kind._get_iterator is not DataLoader._get_iterator:
        raise RequestError(
            f"{kind.__name__} has persistent_workers=True and an iterator of its own, so measuring would disturb the training; "
            "use persistent_workers=False or pass a second loader"
        )
    if isinstance(data.dataset, IterableDataset):
        batches = {"batch_size": data.batch_size, "drop_last": data.drop_last}
    elif data.batch_sampler is None:
        batches = {"batch_size": None, "sampler": data.sampler}
    else:
        batches = {"batch_sampler": data.batch_sampler}
    return DataLoader(
        data.dataset,
        **batches,
        num_workers=data.num_workers,
        collate_fn=data.collate_fn,
        pin_memory=data.pin_memory,
        timeout=data.timeout,
        worker_init_fn=data.worker_init_fn,
        multiprocessing_context=data.multiprocessing_context,
        generator=data.generator,
        prefetch_factor=data.prefetch_factor,
    )


@contextmanager
def undisturbed(*data: Batches) -> Iterator[None]:
    """Put back every random state that going through the data may move: torch, numpy, Python, and the loaders' own."""
    generators = []
    for one in data:
        for owner in (one, getattr(one, "sampler", None), getattr(getattr(one, "batch_sampler", None), "sampler", None)):
            generator = getattr(owner, "generator", None)
            if isinstance(generator, torch.Generator) and all(generator is not g for g in generators):
                generators.append(generator)
    states = [(generator, generator.get_state()) for generator in generators]
    python, legacy, main = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)
        torch.set_rng_state(main)
        for generator, state in states:
            generator.set_state(state)


@contextmanager
def full_float32() -> Iterator[None]:
    """Products in full float32, whatever the caller's autocast and torch's switches for faster products say.

    TF32 keeps 10 bits and bfloat16 7: a collapse of 1e-4 would drown in their rounding.
    """
    kinds = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
    with ExitStack() as stack:
        for kind in kinds:
            stack.enter_context(torch.autocast(kind, enabled=False))
        stack.enter_context(_exact_products("cuda" in kinds))
        yield


@contextmanager
def _exact_products(gpu: bool) -> Iterator[None]:
    """Torch's switches of precision at full float32: those of a CPU, which may take bfloat16 too, and those of a GPU.

    They have old and new names, and reading the old ones raises while the two disagree (as a compiled part of the network
    does, which is traced on its first batch): both are set. An old one that already raises is the caller's own disagreement,
    and stays.
    """
    new = [(place, name, full) for place, name, full in tf32_switches() if gpu]
    if hasattr(torch.backends.mkldnn, "matmul"):  # torch 2.9
        new += [(place, "fp32_precision", "ieee") for place in (torch.backends.mkldnn.matmul, torch.backends.mkldnn.conv)]
    before = [(place, name, getattr(place, name)) for place, name, _ in new]
    products, convolutions = _read(torch.get_float32_matmul_precision), _read(_convolutions_may_round) if gpu else None
    try:
        if products not in (None, "highest"):
            torch.set_float32_matmul_precision("highest")
        if convolutions:
            torch.backends.cudnn.allow_tf32 = False
        for place, name, full in new:
            setattr(place, name, full)
        yield
    finally:
        if convolutions:
            torch.backends.cudnn.allow_tf32 = True
        if products not in (None, "highest"):
            torch.set_float32_matmul_precision(products)
        for place, name, value in before:  # last: the old names set the new ones along
            setattr(place, name, value)


def _convolutions_may_round() -> bool:
    return torch.backends.cudnn.allow_tf32


def _read(switch: Callable[[], Any]) -> Any:
    try:
        return switch()
    except RuntimeError:
        return None


def network_of(model: nn.Module, device: torch.device | str | None) -> tuple[nn.Module, torch.device]:
    """Return the network without wrappers, and the device it is on (or is asked to be measured on)."""
    model = bare(model)
    here = next((t.device for t in itertools.chain(model.parameters(), model.buffers())), torch.device("cpu"))
    if device is None or str(device) == "auto":
        return model, here
    asked = torch.device(device)
    if asked.type != here.type or (asked.index is not None and here.index is not None and asked.index != here.index):
        raise RequestError(f"the network is on {here}, not on {asked}; move it with model.to or pass device='auto'")
    return model, here
