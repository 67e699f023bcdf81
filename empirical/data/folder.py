"""`folder:PATH`: anybody's data. Either train.npz and test.npz, or train/CLASS/*.png and test/CLASS/*.png."""

from __future__ import annotations

import functools
import warnings
from pathlib import Path

import numpy as np

from empirical.data.source import Request, Source, check_memory, classes_of
from empirical.npz import read_npz
from ufm.console import say
from ufm.errors import RequestError

IMAGES = {".png", ".jpg", ".jpeg", ".bmp", ".ppm", ".webp"}
KEYS = ("inputs", "labels")
DEEP = 65535  # white in an image of 16 bits


def folder(request: Request) -> Source:
    """Read PATH: `.npz` files with the keys inputs and labels, else one folder of images per class (names sorted).

    Images of 8 bits become uint8, greyscale of 16 bits float32 in [0, 1]. Hidden folders are no classes.
    """
    try:
        root = Path(request.path).expanduser()
        if not request.path or not root.is_dir():
            raise RequestError(
                f"data set folder:{request.path}: no such folder; "
                "it must hold train.npz and test.npz, or train/CLASS/*.png and test/"
            )
        if (root / "train.npz").is_file() and (root / "test.npz").is_file():
            return _from_arrays(root)
        return _from_images(root)
    except (OSError, RuntimeError) as error:  # RuntimeError: the home folder of nobody
        reason = getattr(error, "strerror", None) or error
        raise RequestError(f"data set folder:{request.path}: cannot be read ({reason}); give a readable folder") from None


def _from_arrays(root: Path) -> Source:
    parts: list[np.ndarray] = []
    for part in ("train", "test"):
        path = root / f"{part}.npz"
        arrays = read_npz(path, functools.partial(check_memory, str(path)), KEYS)
        missing = [key for key in KEYS if key not in arrays]
        if missing:
            raise RequestError(f"{path}: has no key {missing[0]!r}; save it with the keys inputs and labels")
        inputs = arrays["inputs"]
        with np.errstate(over="ignore"):  # what overflows is refused with its own sentence
            parts += [inputs if inputs.dtype == np.uint8 else inputs.astype(np.float32), arrays["labels"]]
    return Source(*parts, classes=classes_of(f"folder:{root}: train", parts[1]), licence="the owner's")


def _from_images(root: Path) -> Source:
    if not (root / "train").is_dir() or not (root / "test").is_dir() or not (names := _classes(root / "train")):
        raise RequestError(
            f"data set folder:{root}: found neither train.npz and test.npz nor train/CLASS/ and test/CLASS/; add them"
        )
    unknown = [name for name in _classes(root / "test") if name not in names]
    if unknown:
        raise RequestError(f"{root / 'test' / unknown[0]}: train has no class of that name; add it to train or remove it")
    parts: list[np.ndarray] = []
    for part in ("train", "test"):
        files = [_files(root / part / name) for name in names]
        for name, found in zip(names, files, strict=True):
            if part == "train" and not found:
                raise RequestError(f"{root / part / name}: no image; known endings: {', '.join(sorted(IMAGES))}: add some")
        if not any(files):
            raise RequestError(f"{root / part}: no image in any class folder; known endings: {', '.join(sorted(IMAGES))}")
        parts += [_images([path for found in files for path in found]), np.repeat(np.arange(len(names)), list(map(len, files)))]
    return Source(*parts, classes=len(names), licence="the owner's")


def _classes(root: Path) -> list[str]:
    """Return the names of the class folders; what editors and systems hide (.ipynb_checkpoints) is left out, and said."""
    names = sorted(p.name for p in root.iterdir() if p.is_dir())
    for name in names:
        if name.startswith("."):
            _note(f"note: {root / name} is a hidden folder and taken for no class")
    return [name for name in names if not name.startswith(".")]


@functools.cache  # every seed reads the folder again
def _note(text: str) -> None:
    say(text)


def _files(inside: Path) -> list[Path]:
    if not inside.is_dir():
        return []
    return sorted(p for p in inside.iterdir() if p.suffix.lower() in IMAGES and not p.name.startswith("."))


def _images(files: list[Path]) -> np.ndarray:
    """Return the images, (N, C, H, W), uint8 or float32; all must have one size and one colour mode."""
    first = _pixels(files[0])
    check_memory(str(files[0].parent.parent), 2 * first.nbytes * len(files))  # the images, and what they are gathered into
    images = [first]
    for path in files[1:]:
        pixels = _pixels(path)
        if pixels.shape != first.shape or pixels.dtype != first.dtype:
            raise RequestError(
                f"{path}: image of shape {pixels.shape} and {_bits(pixels)} bits, the first one has {first.shape} and "
                f"{_bits(first)}; give all one size and colour mode"
            )
        images.append(pixels)
    return np.ascontiguousarray(np.stack(images).transpose(0, 3, 1, 2))


def _bits(pixels: np.ndarray) -> int:
    return 8 if pixels.dtype == np.uint8 else 16


def _pixels(path: Path) -> np.ndarray:
    """Return one image (H, W, C). Greyscale of 16 bits is scaled to [0, 1]: cut down to 8 bits it would nearly all be white."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd metadata; what cannot be read is refused
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as opened:
                if opened.mode.startswith("I") or opened.mode == "F":
                    pixels = _deep(path, np.asarray(opened))
                else:
                    pixels = np.asarray(opened.convert("L" if opened.mode in ("1", "L") else "RGB"))
    except RequestError:
        raise
    except Exception:  # each decoder raises its own types for damaged files
        raise RequestError(f"{path}: not a readable image; repair or remove it") from None
    return pixels if pixels.ndim == 3 else pixels[:, :, None]


def _deep(path: Path, values: np.ndarray) -> np.ndarray:
    if values.dtype.kind not in "iu" or values.min() < 0 or values.max() > DEEP:
        raise RequestError(f"{path}: pixels of more than 16 bits; convert the images to 8 or 16 bits, or store arrays in .npz")
    return (values / DEEP).astype(np.float32)
