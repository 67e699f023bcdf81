"""Public image sets in torchvision's own files, under $UFM_DATA or the user's cache. Never downloaded in passing."""

from __future__ import annotations

import gzip
import hashlib
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

from empirical.data.source import Request, Source
from ufm.errors import RequestError

LICENCES = {
    "mnist": "CC BY-SA 3.0",
    "fashion": "MIT",
    "svhn": "non-commercial use only",
    "cifar10": "not stated (University of Toronto)",
    "cifar100": "not stated (University of Toronto)",
    "stl10": "not stated (Stanford University)",
}


def data_folder() -> Path:
    """Return $UFM_DATA, else the `ufm` folder of the user's cache."""
    if named := os.environ.get("UFM_DATA"):
        return Path(named).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "ufm"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ufm"


def open_set(name: str, train: bool, download: bool = False) -> Any:
    """Return torchvision's data set object; RequestError in one line when the files or the package are missing."""
    root, datasets = data_folder() / name, _torchvision(name)
    part = "train" if train else "test"
    try:
        if name == "mnist":
            return datasets.MNIST(str(root), train=train, download=download)
        if name == "fashion":
            return datasets.FashionMNIST(str(root), train=train, download=download)
        if name == "svhn":
            return datasets.SVHN(str(root), split=part, download=download)
        return datasets.STL10(str(root), split=part, download=download)
    except (RuntimeError, OSError) as error:
        if download:
            raise _not_fetched(name, error) from None
        found = f"in {root} does not read ({str(error).splitlines()[0]})" if root.is_dir() else f"is not in {root}"
        raise RequestError(
            f"data set {name!r} {found}; get it with 'empirical data fetch {name}' or set UFM_DATA to where it is"
        ) from None


def fetch(name: str) -> None:
    """Download a public data set with torchvision, which checks the published checksums; RequestError where that fails."""
    if name not in ("cifar10", "cifar100"):
        for train in (True, False):
            open_set(name, train, download=True)
        return
    from empirical.data import cifar

    try:
        cifar.fetch(name, data_folder() / name, _torchvision(name))
    except (RuntimeError, OSError) as error:
        raise _not_fetched(name, error) from None


def published(name: str) -> str:
    """Say how the files of a set that was read compare with the published ones; RequestError naming one that differs.

    CIFAR, SVHN and STL-10 are read only when their MD5 is the published one. Of MNIST and Fashion-MNIST the MD5 of the
    archives is published, so that the files are known only while their archives lie beside them.
    """
    if name not in ("mnist", "fashion"):
        return "as published"
    datasets = _torchvision(name)
    family = {"mnist": datasets.MNIST, "fashion": datasets.FashionMNIST}[name]
    raw = data_folder() / name / family.__name__ / "raw"
    for archive, md5 in family.resources:
        if not (raw / archive).is_file():
            return "not known: no archive"
        packed, file = (raw / archive).read_bytes(), raw / archive.removesuffix(".gz")
        if hashlib.md5(packed, usedforsecurity=False).hexdigest() != md5 or gzip.decompress(packed) != file.read_bytes():
            raise RequestError(f"{file} is not the published file; remove {raw} and fetch the data set again")
    return "as published"


def _torchvision(name: str) -> Any:
    try:
        from torchvision import datasets
    except ModuleNotFoundError:
        raise RequestError(f"data set {name!r} needs torchvision; pip install 'ufm[vision]'") from None
    except (ImportError, RuntimeError) as error:  # a build for another torch
        raise RequestError(f"data set {name!r}: torchvision does not load ({error}); install the build for your torch") from None
    return datasets


def _not_fetched(name: str, error: Exception) -> RequestError:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return RequestError(f"data set {name!r} could not be fetched ({reason}); put its files in {data_folder() / name} by hand")


def _read(name: str) -> Source:
    parts: list[np.ndarray] = []
    for train in (True, False):
        opened = open_set(name, train)
        images = np.asarray(opened.data)
        labels = np.asarray(opened.labels if name in ("svhn", "stl10") else opened.targets).astype(np.int64)
        parts += [np.ascontiguousarray(images[:, None] if images.ndim == 3 else images, dtype=np.uint8), labels]
    return Source(*parts, classes=10, licence=LICENCES[name])


def mnist(request: Request) -> Source:
    """MNIST: 60000 train and 10000 test images 1x28x28."""
    return _read("mnist")


def fashion(request: Request) -> Source:
    """Fashion-MNIST: 60000 train and 10000 test images 1x28x28."""
    return _read("fashion")


def svhn(request: Request) -> Source:
    """SVHN cropped digits: 73257 train and 26032 test images 3x32x32 (unbalanced)."""
    return _read("svhn")


def stl10(request: Request) -> Source:
    """STL-10, its labelled part: 5000 train and 8000 test images 3x96x96."""
    return _read("stl10")
