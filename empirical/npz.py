"""Read the arrays of a .npz file that somebody else wrote: plain numbers only, sizes looked at before anything is unpacked."""

from __future__ import annotations

import contextlib
import zipfile
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import numpy as np

from ufm.errors import RequestError


def read_npz(path: Path, check_size: Callable[[int], None], keys: Collection[str] | None = None) -> dict[str, np.ndarray]:
    """Return the arrays by key (only those of `keys`, where they are there), in the machine's byte order.

    Long doubles become float64, unsigned integers of more than a byte int64. `check_size` is given the unpacked bytes and raises
    what is too much. RequestError, one line, for everything that is not a whole file of real numbers.
    """
    with readable(path), zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        names = [member.filename for member in members]
        if len(set(names)) != len(names) or not all(name.endswith(".npy") for name in names):
            raise RequestError(f"{path}: holds something other than arrays with distinct names; write it with numpy.savez")
        wanted = [m for m in members if keys is None or m.filename.removesuffix(".npy") in keys]
        check_size(sum(member.file_size for member in wanted))
        return {member.filename.removesuffix(".npy"): _member(path, archive, member) for member in wanted}


@contextlib.contextmanager
def readable(path: Path) -> Iterator[None]:
    """Refuse in one line what cannot be read inside: zipfile, zlib, numpy and others raise their own types for damaged files."""
    try:
        yield
    except RequestError:
        raise
    except PermissionError:
        raise RequestError(f"{path}: permission denied; make the file readable") from None
    except MemoryError:
        raise RequestError(f"{path}: its arrays do not fit into memory; store fewer samples") from None
    except Exception as error:
        raise RequestError(f"{path}: not a readable {path.suffix} file ({type(error).__name__}); write it again") from None


def _member(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    """Read one array after comparing the size its header states with the bytes that are there."""
    key = member.filename.removesuffix(".npy")
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        read = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}.get(version[0])
        if read is None:
            raise RequestError(f"{path}: {key!r} is in an unknown array format; write it with numpy.savez")
        shape, fortran, kind = read(file)
        if kind.kind not in "fiub":
            raise RequestError(f"{path}: {key!r} has dtype {kind}, not real numbers; write plain arrays without objects")
        size = kind.itemsize
        for axis in shape:
            size *= axis
        if size != member.file_size - file.tell():
            raise RequestError(f"{path}: {key!r} states {size} bytes but holds {member.file_size - file.tell()}; write it again")
        array = np.frombuffer(bytearray(file.read()), dtype=kind)
    wide = np.float64 if kind.itemsize > 8 else kind.newbyteorder("=") if kind.kind != "u" or kind.itemsize == 1 else np.int64
    return array.astype(wide, copy=False).reshape(shape, order="F" if fortran else "C")
