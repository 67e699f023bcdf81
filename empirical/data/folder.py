"""`folder:PATH`: anybody's data. Either train.npz and test.npz, or train/CLASS/*.png and test/CLASS/*.png."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from empirical.data.source import Request, Source
from ufm.errors import RequestError

IMAGES = {".png", ".jpg", ".jpeg", ".bmp", ".ppm", ".webp"}
LIMIT = 2**34  # bytes, uncompressed: a larger set does not belong in memory


def folder(request: Request) -> Source:
    """Read PATH: `.npz` files with the keys inputs and labels, else one folder of images per class (names sorted)."""
    root = Path(request.path).expanduser()
    if not request.path or not root.is_dir():
        raise RequestError(
            f"data set folder:{request.path}: no such folder; it must hold train.npz and test.npz, or train/CLASS/*.png and test/"
        )
    if (root / "train.npz").is_file() and (root / "test.npz").is_file():
        train_inputs, train_labels = _arrays(root / "train.npz")
        test_inputs, test_labels = _arrays(root / "test.npz")
        classes = int(train_labels.max(initial=-1)) + 1
        return Source(train_inputs, train_labels, test_inputs, test_labels, classes, "the owner's")
    names = sorted(p.name for p in (root / "train").iterdir() if p.is_dir()) if (root / "train").is_dir() else []
    if not names or not (root / "test").is_dir():
        raise RequestError(
            f"data set folder:{root}: found neither train.npz and test.npz nor train/CLASS/ and test/CLASS/; add them"
        )
    parts: list[np.ndarray] = []
    for part in ("train", "test"):
        parts += _images(root / part, names)
    return Source(*parts, classes=len(names), licence="the owner's")


def _arrays(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Inputs as uint8 or float32, labels as they are. A member's size is looked at before it is unpacked."""
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
        if size > LIMIT:
            raise RequestError(f"{path}: {size / 2**30:.0f} GiB unpacked; at most {LIMIT / 2**30:.0f} GiB: use fewer samples")
        with np.load(path) as loaded:
            missing = [key for key in ("inputs", "labels") if key not in loaded]
            if missing:
                raise RequestError(f"{path}: has no key {missing[0]!r}; save it with the keys inputs and labels")
            inputs, labels = loaded["inputs"], loaded["labels"]
    except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
        if isinstance(error, RequestError):
            raise
        raise RequestError(
            f"{path}: not a readable .npz file of plain arrays ({error}); save it again with numpy.savez"
        ) from None
    if inputs.dtype != np.uint8:
        inputs = inputs.astype(np.float32)
    return inputs, labels


def _images(root: Path, names: list[str]) -> list[np.ndarray]:
    """Return [inputs (N, C, H, W) uint8, labels (N,)] of the folders root/NAME."""
    from PIL import Image, UnidentifiedImageError

    images, labels, shape = [], [], None
    for k, name in enumerate(names):
        inside = root / name
        files = sorted(p for p in inside.iterdir() if p.suffix.lower() in IMAGES) if inside.is_dir() else []
        for path in files:
            try:
                with Image.open(path) as opened:
                    pixels = np.asarray(opened.convert("L" if opened.mode in ("1", "L") else "RGB"))
            except (OSError, UnidentifiedImageError, Image.DecompressionBombError):
                raise RequestError(f"{path}: not a readable image; repair or remove it") from None
            shape = shape or pixels.shape
            if pixels.shape != shape:
                raise RequestError(
                    f"{path}: image of shape {pixels.shape}, the first one has {shape}; give all one size and colour mode"
                )
            images.append(pixels if pixels.ndim == 3 else pixels[:, :, None])
            labels.append(k)
    if not images:
        raise RequestError(f"{root}: no image in any class folder; known endings: {', '.join(sorted(IMAGES))}")
    return [np.ascontiguousarray(np.stack(images).transpose(0, 3, 1, 2)), np.asarray(labels, dtype=np.int64)]
