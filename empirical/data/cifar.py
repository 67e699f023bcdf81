"""CIFAR-10 and CIFAR-100 in the files that torchvision fetches, read without building any object from them.

The files are streams of Python's object format, which runs code when it is loaded. `pickletools` only lists the
operations of such a stream; the images and labels stand in it as one long string and a list of small integers.
"""

from __future__ import annotations

import hashlib
import pickletools
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from empirical.data.source import Request, Source
from ufm.errors import RequestError

PIXELS = 3 * 32 * 32
INTEGERS = ("BININT1", "BININT2", "BININT", "INT", "LONG1")
# name -> (folder, key of the labels, train files and test files with their published MD5)
FILES = {
    "cifar10": (
        "cifar-10-batches-py",
        "labels",
        {
            "data_batch_1": "c99cafc152244af753f735de768cd75f",
            "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
            "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
            "data_batch_4": "634d18415352ddfa80567beed471001a",
            "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
        },
        {"test_batch": "40351d587109b95175f43aff81a1287e"},
    ),
    "cifar100": (
        "cifar-100-python",
        "fine_labels",
        {"train": "16019d7e3df5f24257cddd939b257f8d"},
        {"test": "f0ef6b0ae62326f3e7ffdfab6717acfc"},
    ),
}


def cifar10(request: Request) -> Source:
    """CIFAR-10: 50000 train and 10000 test images 3x32x32."""
    return _read("cifar10", 10)


def cifar100(request: Request) -> Source:
    """CIFAR-100: 50000 train and 10000 test images 3x32x32, its 100 fine labels."""
    return _read("cifar100", 100)


def _read(name: str, classes: int) -> Source:
    from empirical.data.vision import LICENCES, data_folder

    folder, key, train, test = FILES[name]
    root = data_folder() / name
    if not (root / folder).is_dir():
        raise RequestError(
            f"data set {name!r} is not in {root}; get it with 'empirical data fetch {name}' or set UFM_DATA to where it is"
        )
    parts: list[np.ndarray] = []
    for files in (train, test):
        read = [_batch(root / folder / file, key, md5) for file, md5 in files.items()]
        parts += [np.concatenate(column) for column in zip(*read, strict=True)]
    return Source(*parts, classes=classes, licence=LICENCES[name])


def _batch(path: Path, key: str, md5: str) -> tuple[np.ndarray, np.ndarray]:
    """Return images (n, 3, 32, 32) uint8 and labels (n,) of one file whose MD5 is the published one."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise RequestError(f"{path} cannot be read ({error.strerror}); fetch the data set again") from None
    if hashlib.md5(content, usedforsecurity=False).hexdigest() != md5:
        raise RequestError(f"{path} is not the published file (its MD5 differs); fetch the data set again")
    return images_and_labels(path, content, key)


def images_and_labels(path: Path, content: bytes, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Return images (n, 3, 32, 32) uint8 and labels (n,) int64 of a batch's bytes; RequestError when it is none."""
    pixels, labels, under = b"", [], ""
    try:
        for operation, argument, _ in pickletools.genops(content):
            if isinstance(argument, str) and (argument in ("data", key) or under == key):
                under = argument
            elif under == key and operation.name in INTEGERS:
                labels.append(argument)
            elif under == "data" and isinstance(argument, (str, bytes, bytearray)) and len(argument) >= PIXELS:
                pixels = argument.encode("latin-1") if isinstance(argument, str) else bytes(argument)
    except ValueError as error:
        raise RequestError(f"{path} is not a CIFAR batch ({error}); fetch the data set again") from None
    if not labels or len(pixels) != PIXELS * len(labels):
        raise RequestError(f"{path} holds {len(pixels)} bytes of pixels for {len(labels)} labels; fetch the data set again")
    return np.frombuffer(pixels, np.uint8).reshape(-1, 3, 32, 32), np.asarray(labels, np.int64)


def fetch(name: str, root: Path, datasets: Any) -> None:
    """Download the archive with `torchvision.datasets`, which checks its checksum, and unpack it; nothing of it is loaded."""
    folder = FILES[name][0]
    if (root / folder).is_dir():
        return
    published = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    root.mkdir(parents=True, exist_ok=True)
    datasets.utils.download_url(published.url, str(root), published.filename, published.tgz_md5)
    unpack(root / published.filename, root, folder)


def unpack(archive: Path, root: Path, folder: str) -> None:
    """Unpack `folder` of a .tar.gz into `root`: plain files only, and all of it or nothing."""
    with tempfile.TemporaryDirectory(dir=root) as temporary, tarfile.open(archive, "r:gz") as opened:
        opened.extractall(temporary, filter="data")
        (Path(temporary) / folder).rename(root / folder)
