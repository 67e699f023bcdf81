"""Writes the features files of this folder: what a careless or hostile sender could hand to `empirical measure`.

    python tests/attacks/make_feature_files.py

Each is a small file that a careless reader would unpack, execute, allocate for, or believe.
"""

import io
import json
import struct
import warnings
import zipfile
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent


def arrays():
    y = np.arange(12) % 3
    x = np.eye(3, 4)[y] + 0.01 * np.arange(48).reshape(12, 4)
    return {"train/features": x, "train/labels": y, "test/features": x + 0.1, "test/labels": y}


def npy(array):
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array)
    return buffer.getvalue()


def archive(members):
    buffer = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        warnings.simplefilter("ignore")  # a name twice
        for name, data in members:
            file.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def members(**changed):
    given = {f"{key}.npy": npy(value) for key, value in arrays().items()}
    return [*{**given, **changed}.items()]


class Payload:
    """Unpickling this would raise AssertionError: somebody executed the file."""

    def __reduce__(self):
        return (exec, ("raise AssertionError('the file was executed')",))


def header(shape):
    """An array header without the array."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<f8", "fortran_order": False, "shape": shape})
    return buffer.getvalue() + bytes(64)


def stated(size):
    """A member whose central directory states `size` bytes."""
    data = bytearray(archive(members()))
    place = data.index(b"PK\x01\x02")
    data[place + 24 : place + 28] = struct.pack("<I", size)
    return bytes(data)


def tensors(entries, data=b""):
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text + data


def files():
    whole = archive(members())
    entry = {"dtype": "F64", "shape": [12, 4], "data_offsets": [0, 384]}
    yield "features-executable.npz", archive(members(**{"weight.npy": npy(np.array([Payload()], dtype=object))}))
    yield "features-enormous-shape.npz", archive(members(**{"train/features.npy": header((10**9, 10**6))}))
    yield "features-negative-shape.npz", archive(members(**{"train/features.npy": header((-1, 4))}))
    yield "features-stated-size.npz", stated(2**32 - 2)
    yield "features-bomb.npz", archive(members(**{"weight.npy": npy(np.zeros((2, 2**21)))}))
    yield "features-path.npz", archive(members(**{"../../escaped.npy": npy(np.zeros(3))}))
    yield "features-twice.npz", archive([*members(), ("train/labels.npy", npy(np.zeros(12, int)))])
    yield "features-no-array.npz", archive([*members(), ("readme.txt", b"hello")])
    yield "features-truncated.npz", whole[: len(whole) // 2]
    yield (
        "features-evil-header.npz",
        archive(members(**{"weight.npy": b"\x93NUMPY\x01\x00" + struct.pack("<H", 40) + b"__import__('os').abort()".ljust(40)})),
    )
    yield "features-header-length.safetensors", struct.pack("<Q", 2**60) + b"{}"
    yield "features-offsets.safetensors", tensors({"train/features": {**entry, "data_offsets": [0, 2**50]}}, bytes(384))
    yield "features-overlap.safetensors", tensors({"train/features": entry, "test/features": entry}, bytes(384))
    yield "features-truncated.safetensors", tensors({"train/features": entry}, bytes(100))
    yield "features-key.safetensors", tensors({"\x1b[31mtrain\n": entry}, bytes(384))


if __name__ == "__main__":
    for name, data in files():
        (HERE / name).write_bytes(data)
        print(name, len(data))
