"""From a data set's raw arrays to a checked, subsampled, normalised train and test `Split`."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

import numpy as np
import torch

from empirical.data import DATASETS
from empirical.data.source import Request, Source, check
from empirical.data.split import Split
from ufm.errors import RequestError
from ufm.seeds import stream
from ufm.tables import load as lookup


def prepare(
    name: str,
    *,
    seed: int,
    per_class: int | None,
    imbalance: float,
    minority: int,
    imbalance_shape: str,
    label_noise: float,
    coarse: tuple[int, ...] | None,
    request: Request | None,
) -> tuple[Split, Split, dict[str, Any]]:
    """Return (train, test, info); see `empirical.data.load`."""
    _check_options(per_class, imbalance, minority, label_noise)
    source = read_source(name, seed, dataclasses.replace(request or Request(), per_class=per_class))
    shares = _shares(source.classes, imbalance, minority, imbalance_shape)
    source = _subsample(name, source, seed, per_class, shares)
    fine = coarse_labels(name, source.classes, coarse)
    labels = _noisy(source.train_labels if fine is None else fine[source.train_labels], fine, source, seed, label_noise)
    return _splits(name, source, labels, fine)


def read_source(name: str, seed: int, request: Request | None = None) -> Source:
    """Return the checked raw arrays of data set `name`; RequestError for missing and for bad data."""
    family, _, path = name.partition(":")
    request = dataclasses.replace(request or Request(), seed=seed, path=path)
    if family == "folder":
        from empirical.data.folder import folder as read
    elif path:
        raise RequestError(f"data set {name!r}: only folder:PATH takes a path; use folder:{path}")
    else:
        read = lookup(DATASETS, name, "data set")
    _check_sizes(name, request)
    source = read(request)
    check(name, source)
    return source


# A size that a data set does not read would be recorded in the run, and hashed, without having any effect.
_SIZES = {
    "gaussian": ("classes", "input_dim", "signal", "noise", "test_per_class"),
    "interpolation": ("classes", "input_dim", "signal", "noise", "test_per_class"),
    "mnist1d": ("noise", "test_per_class"),
    "moons": ("margin", "noise", "test_per_class"),
    "coloured-digits": ("colours", "conflict", "conflict_test", "mislabelled", "saturation"),
    "coloured-mnist5k": ("colours", "conflict", "conflict_test", "mislabelled", "saturation"),
}


def _check_sizes(name: str, request: Request) -> None:
    taken = _SIZES.get(name, ())
    for option in dict.fromkeys(option for options in _SIZES.values() for option in options):
        if getattr(request, option) is not None and option not in taken:
            flag = "--" + option.replace("_", "-")
            takers = ", ".join(key for key, options in _SIZES.items() if option in options)
            raise RequestError(
                f"{flag} {getattr(request, option)}: data set {name} has no such size, {takers} have; leave it out"
            )


def _check_options(per_class: int | None, imbalance: float, minority: int, label_noise: float) -> None:
    if per_class is not None and per_class < 1:
        raise RequestError(f"train samples per class {per_class} must be >= 1; use for example 100")
    if not imbalance >= 1:
        raise RequestError(f"imbalance {imbalance} must be >= 1: minority classes have n / imbalance samples")
    if minority < 0:
        raise RequestError(f"minority {minority} must be >= 0: the number of small classes")
    if not 0 <= label_noise <= 1:
        raise RequestError(f"label noise {label_noise} must lie in [0, 1]; it is the share of wrong train labels")


def _shares(classes: int, imbalance: float, minority: int, shape: str) -> np.ndarray | None:
    """Return the share (K,) of its train samples that each class keeps, None where all keep all."""
    if shape == "long-tail":
        if minority or imbalance == 1:
            raise RequestError(
                f"imbalance {imbalance:g} with minority {minority}: a long tail falls over all classes; "
                "give --imbalance > 1 and leave --minority out"
            )
        return imbalance ** -(np.arange(classes) / (classes - 1))
    if shape != "step":
        raise RequestError(f"imbalance shape {shape!r} is not known; use step or long-tail")
    if minority >= classes or (minority == 0) != (imbalance == 1):
        raise RequestError(
            f"imbalance {imbalance:g} with minority {minority} of {classes} classes; "
            f"give --imbalance > 1 together with --minority 1..{classes - 1}, or --imbalance-shape long-tail"
        )
    return np.repeat([1.0, 1 / imbalance], [classes - minority, minority]) if minority else None


def _subsample(name: str, source: Source, seed: int, per_class: int | None, shares: np.ndarray | None) -> Source:
    """Keep `per_class` train samples of each class (all when None), of these its share, and at least one."""
    if per_class is None and shares is None:
        return source
    available = np.bincount(source.train_labels, minlength=source.classes)
    wanted = available.copy() if per_class is None else np.full(source.classes, per_class)
    if (wanted > available).any():
        k = int(np.argmax(wanted > available))
        raise RequestError(
            f"{name}: class {k} has {available[k]} train samples, {per_class} asked for; use --train-per-class {available.min()}"
        )
    if shares is not None:
        wanted = np.maximum(1, np.rint(wanted * shares)).astype(wanted.dtype)
    draw = stream(seed, "subsample")
    kept = [draw.permutation(np.flatnonzero(source.train_labels == k))[: wanted[k]] for k in range(source.classes)]
    chosen = np.sort(np.concatenate(kept))
    attribute = None if source.train_attribute is None else source.train_attribute[chosen]
    return dataclasses.replace(
        source, train_inputs=source.train_inputs[chosen], train_labels=source.train_labels[chosen], train_attribute=attribute
    )


def coarse_labels(name: str, classes: int, coarse: tuple[int, ...] | None) -> np.ndarray | None:
    """Return the map fine class -> coarse class (K,), or None."""
    if not coarse:
        return None
    if sum(coarse) != classes or min(coarse) < 1 or len(coarse) < 2:
        raise RequestError(f"coarse groups {','.join(map(str, coarse))} of {name}: give two or more sizes that sum to {classes}")
    return np.repeat(np.arange(len(coarse)), coarse)


def _noisy(labels: np.ndarray, fine: np.ndarray | None, source: Source, seed: int, share: float) -> np.ndarray:
    """Return labels where round(share N) of them are another class, drawn uniformly."""
    if share == 0:
        return labels
    classes = source.classes if fine is None else int(fine.max()) + 1
    draw = stream(seed, "label-noise")
    chosen = draw.permutation(len(labels))[: round(share * len(labels))]
    labels = labels.copy()
    labels[chosen] = (labels[chosen] + draw.integers(1, classes, size=len(chosen))) % classes
    return labels


def _splits(name: str, source: Source, labels: np.ndarray, fine: np.ndarray | None) -> tuple[Split, Split, dict[str, Any]]:
    classes = source.classes if fine is None else int(fine.max()) + 1
    counts = np.bincount(labels, minlength=classes)
    if not counts.all():
        raise RequestError(
            f"{name}: class {int(np.argmin(counts))} is empty after the label noise; use less noise or more samples"
        )
    mean, std = _statistics(source) if source.normalise else (None, None)
    test_labels = source.test_labels if fine is None else fine[source.test_labels]
    parts = []
    for inputs, targets, original, attribute in (
        (source.train_inputs, labels, source.train_labels, source.train_attribute),
        (source.test_inputs, test_labels, source.test_labels, source.test_attribute),
    ):
        parts.append(
            Split(
                inputs=torch.from_numpy(np.ascontiguousarray(inputs)),
                labels=torch.from_numpy(targets.astype(np.int64)),
                classes=classes,
                mean=mean,
                std=std,
                fine=None if fine is None else torch.from_numpy(original.astype(np.int64)),
                attribute=None if attribute is None else torch.from_numpy(attribute.astype(np.int64)),
                attributes=source.attributes,
            )
        )
    info = {
        "name": name,
        "digest": digest(source.train_inputs, labels, source.test_inputs, test_labels),
        "licence": source.licence,
        "train": len(labels),
        "test": len(test_labels),
        "classes": classes,
        "counts": counts.tolist(),
        "shape": list(source.train_inputs.shape[1:]),
        "normalisation": None if mean is None else {"mean": mean.tolist(), "std": std.tolist()},
    }
    return parts[0], parts[1], info


def _statistics(source: Source) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and deviation of the train inputs, per channel of images and as one number of vectors.

    Vectors get one number because single pixels of small images are often constant.
    """
    inputs = source.train_inputs
    axes = (0, 2, 3) if inputs.ndim == 4 else None
    scale = 255.0 if inputs.dtype == np.uint8 else 1.0
    mean = np.atleast_1d(inputs.mean(axis=axes, dtype=np.float64)) / scale
    std = np.atleast_1d(inputs.std(axis=axes, dtype=np.float64)) / scale
    std = np.where(std > 0, std, 1.0)
    return torch.from_numpy(mean).float(), torch.from_numpy(std).float()


def digest(*arrays: np.ndarray) -> str:
    """Return the SHA-256 of the arrays' dtypes, shapes and bytes, in order."""
    total = hashlib.sha256()
    for array in arrays:
        total.update(f"{array.dtype.str}{array.shape}".encode())
        total.update(np.ascontiguousarray(array).data)
    return total.hexdigest()
