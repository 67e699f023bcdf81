"""Read a features file: somebody else's network as arrays, checked before anything is made of them.

Keys: train/features (N, d), train/labels (N,), test/features, test/labels, and optionally weight (K, d), bias (K,),
train/features/LAYER and test/features/LAYER for further layers, ood/features (m, d) and ood/features/LAYER.
Formats: safetensors, and .npz without Python objects.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from empirical.epoch import layer_rows
from empirical.npz import read_npz, readable
from empirical.store import SHARE, check_classes, free_memory
from empirical.tensors import head_arrays, layer_tensors
from ufm.errors import RequestError
from ufm.tables import suggest

KEYS = ("train/features", "train/labels", "test/features", "test/labels", "weight", "bias", "ood/features")
NEEDED = KEYS[:4]
LAYER = re.compile(r"(train|test|ood)/features/([^\x00-\x1f\x7f]{1,200})")


@dataclasses.dataclass(frozen=True, eq=False)
class Foreign:
    """What a features file holds. `layers`: name -> (train (N, d), test (M, d)), penultimate last; all float32 or float64."""

    layers: dict[str, tuple[Tensor, Tensor]]
    train_labels: Tensor
    test_labels: Tensor
    weight: Tensor | None
    bias: Tensor | None
    ood: dict[str, Tensor]
    classes: int
    digest: str


def read_features(path: str | Path, classes: int | None = None) -> Foreign:
    """Read and check a features file.

    Args:
        path: a .safetensors or .npz file with the keys above.
        classes: K; None: the rows of `weight`, else the largest label + 1.

    Raises: RequestError, one line naming the key, for anything that cannot be measured.
    """
    path = Path(path)
    arrays = read_arrays(path)
    for key in arrays:
        if key not in KEYS and not LAYER.fullmatch(key):
            raise RequestError(f"{path}: unknown key {key[:80]!r}; {suggest(key[:80], KEYS)}")
    missing = [key for key in NEEDED if key not in arrays]
    if missing:
        raise RequestError(
            f"{path}: no {', '.join(missing)}; a features file has {', '.join(NEEDED)}, and weight, bias if it can"
        )
    layers = _layers(path, arrays)
    samples = {split: len(layers["penultimate"][i]) for i, split in enumerate(("train", "test"))}
    labels = {split: _labels(path, arrays, split, samples[split]) for split in samples}
    weight, bias = _classifier(path, arrays, layers["penultimate"][0].shape[1])
    total = _classes(path, labels, classes, weight)
    ood = {_layer_of(key): _matrix(path, key, arrays[key]) for key in arrays if key.startswith("ood/")}
    _check_ood(path, ood, layers)
    return Foreign(layers, labels["train"], labels["test"], weight, bias, ood, total, digest(path))


def digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_arrays(path: Path) -> dict[str, Tensor]:
    """Return the file's tensors by key; the sizes it states are checked before anything is loaded."""
    if not path.is_file():
        raise RequestError(f"{path}: no such file; give a .safetensors or .npz file with the keys {', '.join(NEEDED)}")
    if path.suffix not in (".safetensors", ".npz"):
        raise RequestError(f"{path}: unknown format {path.suffix!r}; write the features as .safetensors or .npz")
    if path.suffix == ".npz":
        return {key: torch.from_numpy(array) for key, array in read_npz(path, lambda size: _check_size(path, size)).items()}
    with readable(path):
        return _read_safetensors(path)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import safe_open

    _check_size(path, path.stat().st_size)
    with safe_open(path, framework="pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)


def _check_size(path: Path, size: int) -> None:
    free = free_memory(torch.device("cpu"))
    if free is not None and size > SHARE * free:
        raise RequestError(
            f"{path}: its arrays take {size / 2**30:.1f} GiB, {free / 2**30:.1f} GiB of memory are free; store fewer samples"
        )


# --- checks ------------------------------------------------------------------------------------------------------


def _layer_of(key: str) -> str:
    return key.split("/", 2)[2] if key.count("/") > 1 else "penultimate"


def _layers(path: Path, arrays: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    named = [_layer_of(key) for key in arrays if key.startswith("train/features/")]
    for key in arrays:
        if key.startswith("test/features/") and _layer_of(key) not in named:
            raise RequestError(f"{path}: {key!r} has no train/features/{_layer_of(key)}; give both splits of a layer")
    reserved = sorted({"penultimate", "network"}.intersection(named))
    if reserved:
        raise RequestError(f"{path}: the layer name {reserved[0]!r} is taken; train/features itself is the penultimate layer")
    layers = {}
    for name in [*named, "penultimate"]:
        pair = []
        for split in ("train", "test"):
            key = f"{split}/features" + ("" if name == "penultimate" else f"/{name}")
            if key not in arrays:
                raise RequestError(f"{path}: no {key}; give both splits of layer {name!r}")
            pair.append(_matrix(path, key, arrays[key]))
            whole = arrays[f"{split}/features"]
            if len(pair[-1]) != len(whole):
                raise RequestError(
                    f"{path}: {key!r} has {len(pair[-1])} samples, {split}/features has {len(whole)}; give the same"
                )
        if pair[0].shape[1] != pair[1].shape[1]:
            sizes = f"{pair[0].shape[1]} on train, {pair[1].shape[1]} on test"
            raise RequestError(f"{path}: layer {name!r} has feature dimension {sizes}; both splits need the same")
        layers[name] = (pair[0], pair[1])
    return layers


def _matrix(path: Path, key: str, value: Tensor) -> Tensor:
    """Return (N, d) finite floats; half precision is widened."""
    if value.ndim != 2 or 0 in value.shape:
        raise RequestError(f"{path}: {key!r} has shape {tuple(value.shape)}; it must be (N, d) with N, d >= 1")
    return _finite(path, key, value)


def _finite(path: Path, key: str, value: Tensor) -> Tensor:
    if value.is_complex() or value.dtype == torch.bool:
        raise RequestError(f"{path}: {key!r} has dtype {value.dtype}; it must be real numbers")
    if value.dtype not in (torch.float32, torch.float64):
        value = value.to(torch.float32 if value.is_floating_point() else torch.float64)
    bad = torch.nonzero(~torch.isfinite(value))
    if len(bad):
        place = ", ".join(map(str, bad[0].tolist()))
        raise RequestError(f"{path}: {key}[{place}] is {float(value[tuple(bad[0])])}; it must be finite: drop that sample")
    return value


def _labels(path: Path, arrays: Mapping[str, Tensor], split: str, samples: int) -> Tensor:
    labels = arrays[f"{split}/labels"]
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise RequestError(f"{path}: {split}/labels has dtype {labels.dtype}; labels are integers 0..K-1")
    if labels.shape != (samples,):
        raise RequestError(f"{path}: {split}/labels has shape {tuple(labels.shape)}; it must be ({samples},), one per sample")
    return labels.to(torch.int64)


def _check_ood(path: Path, ood: Mapping[str, Tensor], layers: Mapping[str, tuple[Tensor, Tensor]]) -> None:
    for name, rows in ood.items():
        if name not in layers or rows.shape[1] != layers[name][0].shape[1]:
            raise RequestError(f"{path}: ood features of layer {name!r} do not match that layer; give (m, d) with its d")


def _classifier(path: Path, arrays: Mapping[str, Tensor], dim: int) -> tuple[Tensor | None, Tensor | None]:
    weight, bias = arrays.get("weight"), arrays.get("bias")
    if weight is None:
        if bias is not None:
            raise RequestError(f"{path}: bias without weight; add weight (K, d) or leave bias out")
        return None, None
    if weight.ndim != 2 or weight.shape[1] != dim or not len(weight):
        raise RequestError(f"{path}: weight has shape {tuple(weight.shape)}; it must be (K, {dim}), row k the weight of class k")
    weight = _finite(path, "weight", weight)
    if bias is None:
        return weight, None
    if bias.shape != (len(weight),):
        raise RequestError(f"{path}: bias has shape {tuple(bias.shape)}; it must be ({len(weight)},), one per row of weight")
    return weight, _finite(path, "bias", bias)


def _classes(path: Path, labels: Mapping[str, Tensor], asked: int | None, weight: Tensor | None) -> int:
    """Return K and check every label against it; at least two classes must occur on train."""
    if asked is not None and weight is not None and asked != len(weight):
        raise RequestError(f"--classes {asked}, but weight has {len(weight)} rows; leave --classes out")
    highest = max(int(y.max()) for y in labels.values())
    total = asked if asked is not None else len(weight) if weight is not None else highest + 1
    for split, y in labels.items():
        bad = int(y.min()) if int(y.min()) < 0 else int(y.max())
        if bad < 0 or bad >= total:
            raise RequestError(f"{path}: {split}/labels holds {bad}; labels must be 0..{total - 1} for {total} classes")
    check_classes(total, f"{path}: labels up to {highest}: " if asked is None and weight is None else "")
    seen = torch.unique(labels["train"])
    if len(seen) < 2:
        raise RequestError(f"{path}: train/labels holds one class only; the geometry of class means needs two or more")
    return total


def counts_of(labels: Tensor, classes: int) -> list[int]:
    """Return the samples of each class."""
    return torch.bincount(labels, minlength=classes).tolist()


def summary(foreign: Foreign) -> dict[str, Any]:
    """Return what identifies the data: layers with their dimension, class counts, the file's digest."""
    return {
        "classes": foreign.classes,
        "layers": {name: pair[0].shape[1] for name, pair in foreign.layers.items()},
        "train_counts": counts_of(foreign.train_labels, foreign.classes),
        "test_counts": counts_of(foreign.test_labels, foreign.classes),
        "classifier": foreign.weight is not None,
        "features": foreign.digest,
    }


def with_ood(foreign: Foreign, path: str | Path) -> Foreign:
    """Return the data with the out-of-distribution features of another file: ood/features (m, d), ood/features/LAYER."""
    path = Path(path)
    arrays = read_arrays(path)
    found = {_layer_of(key): _matrix(path, key, value) for key, value in arrays.items() if key.startswith("ood/features")}
    if not found:
        raise RequestError(f"--ood {path}: no ood/features; write the features (m, d) of other data under that key")
    _check_ood(path, found, foreign.layers)
    return dataclasses.replace(foreign, ood={**foreign.ood, **found})


# --- measuring ---------------------------------------------------------------------------------------------------


def measure_foreign(
    foreign: Foreign, device: str, *, match_counts: bool = False, seed: int = 0, report: Callable[[], None] = lambda: None
) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
    """Return the rows and the arrays of a run, the same kinds as of a training; `report` is called twice per layer."""
    where = torch.device(device)
    weight, bias = (None if t is None else t.to(where) for t in (foreign.weight, foreign.bias))
    labels = [y.to(where) for y in (foreign.train_labels, foreign.test_labels)]
    rows: list[dict[str, Any]] = []
    arrays: dict[str, np.ndarray] = {}
    for name, pair in foreign.layers.items():
        last = name == "penultimate"
        train, test = ((x.to(where), y) for x, y in zip(pair, labels, strict=True))
        head = (weight, bias) if last else (None, None)
        rows += layer_rows(
            name,
            train,
            test,
            *head,
            classes=foreign.classes,
            match_counts=match_counts,
            seed=seed,
            ood=foreign.ood.get(name),
        )
        report()
        arrays.update({f"{name}/{k}": v for k, v in layer_tensors(train, test, foreign.classes, products=last).items()})
        report()
        if last:
            guesses = {}
            for split, (x, y) in (("train", train), ("test", test)):
                if weight is not None:
                    guesses[split], found = _network_rows(split, x, y, weight, bias)
                    rows += found
            arrays.update(head_arrays(tuple(labels), guesses, weight, bias, foreign.classes))
    return rows, arrays


def _network_rows(
    split: str, features: Tensor, labels: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, list[dict[str, Any]]]:
    """Return the classifier's decisions, and its loss (cross-entropy) and error."""
    total, guesses = 0.0, []
    for start in range(0, len(features), 4096):
        logits = features[start : start + 4096].double() @ weight.double().T
        logits = logits if bias is None else logits + bias.double()
        total += float(torch.nn.functional.cross_entropy(logits, labels[start : start + 4096], reduction="sum"))
        guesses.append(logits.argmax(1))
    guess = torch.cat(guesses)
    values = {"loss": total / len(labels), "error": float((guess != labels).double().mean())}
    return guess, [{"split": split, "layer": "network", "centres": "self", "metric": k, "value": v} for k, v in values.items()]
