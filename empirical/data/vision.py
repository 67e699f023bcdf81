"""Public image sets in torchvision's own files, under $UFM_DATA or the user's cache. Never downloaded in passing."""

from __future__ import annotations

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
    root = data_folder() / name
    try:
        from torchvision import datasets
    except ModuleNotFoundError:
        raise RequestError(f"data set {name!r} needs torchvision; pip install 'ufm[vision]'") from None
    except (ImportError, RuntimeError) as error:  # a build for another torch
        raise RequestError(f"data set {name!r}: torchvision does not load ({error}); install the build for your torch") from None
    part = "train" if train else "test"
    try:
        if name == "mnist":
            return datasets.MNIST(str(root), train=train, download=download)
        if name == "fashion":
            return datasets.FashionMNIST(str(root), train=train, download=download)
        if name == "svhn":
            return datasets.SVHN(str(root), split=part, download=download)
        if name == "cifar10":
            return datasets.CIFAR10(str(root), train=train, download=download)
        if name == "cifar100":
            return datasets.CIFAR100(str(root), train=train, download=download)
        return datasets.STL10(str(root), split=part, download=download)
    except (RuntimeError, OSError) as error:
        if download:
            raise RequestError(f"data set {name!r} could not be fetched ({error}); put its files in {root} by hand") from None
        raise RequestError(
            f"data set {name!r} is not in {root}; get it with 'empirical data fetch {name}' or set UFM_DATA to where it is"
        ) from None


def _read(name: str) -> Source:
    parts: list[np.ndarray] = []
    for train in (True, False):
        opened = open_set(name, train)
        images = np.asarray(opened.data)
        labels = np.asarray(opened.labels if name in ("svhn", "stl10") else opened.targets).astype(np.int64)
        if images.ndim == 3:
            images = images[:, None]
        elif images.shape[-1] == 3:  # CIFAR keeps channels last; SVHN and STL-10 keep them first
            images = images.transpose(0, 3, 1, 2)
        parts += [np.ascontiguousarray(images, dtype=np.uint8), labels]
    return Source(*parts, classes=int(parts[1].max()) + 1, licence=LICENCES[name])


def mnist(request: Request) -> Source:
    """MNIST: 60000 train and 10000 test images 1x28x28."""
    return _read("mnist")


def fashion(request: Request) -> Source:
    """Fashion-MNIST: 60000 train and 10000 test images 1x28x28."""
    return _read("fashion")


def svhn(request: Request) -> Source:
    """SVHN cropped digits: 73257 train and 26032 test images 3x32x32 (unbalanced)."""
    return _read("svhn")


def cifar10(request: Request) -> Source:
    """CIFAR-10: 50000 train and 10000 test images 3x32x32."""
    return _read("cifar10")


def cifar100(request: Request) -> Source:
    """CIFAR-100: 50000 train and 10000 test images 3x32x32."""
    return _read("cifar100")


def stl10(request: Request) -> Source:
    """STL-10, its labelled part: 5000 train and 8000 test images 3x96x96."""
    return _read("stl10")
