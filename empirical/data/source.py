"""What a data set's file returns (`Source`), what it is asked for (`Request`), and the checks before any training."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ufm.errors import RequestError


@dataclass(frozen=True)
class Request:
    """What a generator or a loader may need to know; loaders of fixed files ignore the sizes.

    classes, input_dim: K and d of the generated sets (None: the set's own default).
    signal, noise: s and sigma of x = s mean_y + sigma N(0, I).
    margin: Delta of the moons (`empirical.data.generated`).
    colours, conflict, conflict_test, mislabelled, saturation: of the coloured sets (`empirical.data.coloured`).
    test_per_class: generated test samples per class.
    """

    seed: int = 0
    per_class: int | None = None
    test_per_class: int | None = None
    classes: int | None = None
    input_dim: int | None = None
    signal: float | None = None
    noise: float | None = None
    margin: float | None = None
    colours: int | None = None
    conflict: float | None = None
    conflict_test: float | None = None
    mislabelled: float | None = None
    saturation: float | None = None
    path: str = ""


@dataclass(frozen=True)
class Source:
    """Raw arrays: inputs (N, d) or (N, channels, height, width) uint8 or float32; labels (N,) integers.

    train_attribute, test_attribute: a spurious attribute of each sample, (N,) integers 0..attributes-1, where the data has one.
    """

    train_inputs: np.ndarray
    train_labels: np.ndarray
    test_inputs: np.ndarray
    test_labels: np.ndarray
    classes: int
    licence: str
    normalise: bool = True
    train_attribute: np.ndarray | None = None
    test_attribute: np.ndarray | None = None
    attributes: int | None = None


def check_memory(what: str, size: int) -> None:
    """Refuse what takes `size` bytes where that does not fit into the free memory."""
    import torch

    from empirical.store import SHARE, free_memory

    free = free_memory(torch.device("cpu"))
    if free is not None and size > SHARE * free:
        need = f"about {size / 2**30:.1f} GiB" if size < 2**50 else "more memory than any machine has"
        raise RequestError(f"{what}: needs {need}, {free / 2**30:.1f} GiB are free; use smaller sizes")


def check(name: str, source: Source) -> None:
    """Refuse bad data in one line: wrong shapes, non-finite inputs, labels out of range, an empty train class."""
    if source.classes < 2:
        raise RequestError(f"{name}: {source.classes} class; classification needs at least 2 classes")
    if source.train_inputs.shape[1:] != source.test_inputs.shape[1:]:
        raise RequestError(
            f"{name}: train samples have shape {source.train_inputs.shape[1:]} and test samples "
            f"{source.test_inputs.shape[1:]}; give both the same shape"
        )
    kinds = source.train_inputs.dtype, source.test_inputs.dtype
    if kinds[0] != kinds[1] and np.uint8 in kinds:  # uint8 means 0..255 and float32 is taken as it is
        raise RequestError(f"{name}: train inputs are {kinds[0]} and test inputs {kinds[1]}; give both the same type")
    for part, inputs, labels in (
        ("train", source.train_inputs, source.train_labels),
        ("test", source.test_inputs, source.test_labels),
    ):
        _check_part(f"{name}: {part}", inputs, labels, source.classes)
    samples = len(source.train_labels)
    if source.classes > samples:  # before anything of the size of K is made
        raise RequestError(
            f"{name}: labels up to {source.classes - 1} make {source.classes} classes, but there are {samples} train samples "
            "and every class needs one; number the classes 0..K-1"
        )
    counts = np.bincount(source.train_labels.astype(np.int64), minlength=source.classes)
    if not counts.all():
        empty = int(np.flatnonzero(counts == 0)[0])
        raise RequestError(f"{name}: class {empty} has no train sample; leave the class out or add samples of it")


def classes_of(what: str, labels: np.ndarray) -> int:
    """Return K, the largest label + 1; RequestError where the labels are not one integer a sample."""
    _check_labels(what, labels, "0..K-1")
    return int(labels.max()) + 1


def _check_labels(what: str, labels: np.ndarray, range_: str) -> None:
    if labels.ndim != 1 or not len(labels):
        raise RequestError(f"{what} labels have shape {labels.shape}; give one label per sample")
    if not np.issubdtype(labels.dtype, np.integer):
        raise RequestError(f"{what} labels are {labels.dtype}; give integers {range_}")


def _check_part(what: str, inputs: np.ndarray, labels: np.ndarray, classes: int) -> None:
    if inputs.dtype not in (np.uint8, np.float32) or inputs.ndim not in (2, 4):
        raise RequestError(
            f"{what} inputs are {inputs.dtype} {inputs.shape}; give uint8 or float32 of shape (N, d) or (N, C, H, W)"
        )
    if 0 in inputs.shape[1:]:
        raise RequestError(f"{what} samples have shape {inputs.shape[1:]}, so they hold no number; give at least one")
    if labels.ndim != 1 or len(labels) != len(inputs) or not len(labels):
        raise RequestError(f"{what}: {len(inputs)} inputs and labels of shape {labels.shape}; give one label per sample")
    _check_labels(what, labels, f"0..{classes - 1}")
    outside = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(outside):
        first = int(outside[0])
        raise RequestError(f"{what} label {int(labels[first])} of sample {first} is out of range; use 0..{classes - 1}")
    if inputs.dtype == np.float32:
        finite = np.isfinite(inputs.reshape(len(inputs), -1)).all(axis=1)
        if not finite.all():
            first = int(np.flatnonzero(~finite)[0])
            raise RequestError(
                f"{what}: {int((~finite).sum())} samples hold non-finite values (first: sample {first}); repair or remove them"
            )
