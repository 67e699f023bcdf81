"""Writes the config, cells, tensors, options and targets files of this folder, each meant to harm its reader.

python tests/attacks/make_run_files.py
"""

import hashlib
import json
import struct
from pathlib import Path

HERE = Path(__file__).parent


def digest(value):
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def config(setting, **changes):
    marks = {key: digest({key: value})[:8] for key, value in setting.items()}
    document = {"run_format": 1, "system": "single", "name": "x", "hash": digest(setting), "setting": setting, "marks": marks}
    return json.dumps({**document, **changes}).encode()


def tensors(header, body=b""):
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


CONFIGS = {
    "config-forged-hash.json": config({"classes": 10}, hash="0" * 64),
    "config-edited-value.json": config({"classes": 10}).replace(b'"classes": 10', b'"classes": 11'),
    "config-twice.json": config({"classes": 10})[:-1] + b', "setting": {"classes": 99}}',
    "config-deep.json": b'{"setting": ' + b"[" * 20_000 + b"]" * 20_000 + b"}",
    "config-number.json": b'{"run_format": 1' + b"0" * 5000 + b"}",
    "config-nan.json": config({"classes": 10})[:-1] + b', "more": NaN}',
    "config-infinite.json": config({"classes": 10})[:-1] + b', "more": 1e999}',
    "config-surrogate.json": config({"classes": 10})[:-1] + b', "more": "\xed\xa0\x80"}',
    "config-future.json": config({"classes": 10}, run_format=10**6),
    "config-no-marks.json": config({"classes": 10}, marks={}),
    "config-list.json": b"[]",
    "config-empty.json": b"",
    "config-binary.json": bytes(range(256)),
}
CELLS = {
    "cells-nan.jsonl": b'{"cell": "a", "status": "converged", "loss": NaN}\n',
    "cells-infinite.jsonl": b'{"cell": "a", "status": "converged", "loss": -1e400}\n',
    "cells-deep.jsonl": b'{"cell": ' + b"[" * 20_000 + b"]" * 20_000 + b"}\n",
    "cells-array.jsonl": b'["cell"]\n',
    "cells-blank.jsonl": b'{"cell": "a", "status": "x"}\n\n{"cell": "b", "status": "x"}\n',
    "cells-twice.jsonl": b'{"cell": "a", "cell": "b", "status": "x"}\n',
    "cells-nul.jsonl": b"\0" * 64 + b"\n",
    "cells-no-status.jsonl": b'{"cell": "a"}\n',
    "cells-number-name.jsonl": b'{"cell": 7, "status": "x"}\n',
    "cells-glued.jsonl": b'{"cell": "a", "status": "x"}{"cell": "b", "status": "x"}\n',
}
TENSORS = {
    "tensors-length.safetensors": struct.pack("<Q", 2**63 - 1) + b"{}",
    "tensors-offsets.safetensors": tensors({"W": {"dtype": "F64", "shape": [4], "data_offsets": [0, 2**40]}}, b"\0" * 32),
    "tensors-overflow.safetensors": tensors(
        {"W": {"dtype": "F64", "shape": [2**33, 2**33], "data_offsets": [0, 32]}}, b"\0" * 32
    ),
    "tensors-kind.safetensors": tensors({"W": {"dtype": "PY", "shape": [4], "data_offsets": [0, 32]}}, b"\0" * 32),
    "tensors-short.safetensors": b"\1\2\3",
    "tensors-archive.safetensors": b"PK\3\4" + b"\0" * 60,
}
OPTIONS = {
    "options-deep.toml": b"x = " + b"[" * 20_000,
    "options-twice.toml": b"classes = 3\nclasses = 4\n",
    "options-nan.toml": b"lambda_w = nan\n",
    "options-infinite.toml": b"lambda_w = [1e-3, inf]\n",
    "options-date.toml": b"lambda_w = 1979-05-27\n",
    "options-table.toml": b"[lambda_w]\nvalue = 1\n",
    "options-kind.toml": b"classes = true\n",
    "options-list.toml": b"lambda_w = [[1e-3]]\n",
    "options-huge.toml": b'seeds = "0:999999999999"\n',
    "options-self.toml": b'config = "options-self.toml"\n',
    "options-encoding.toml": b"# \xff\xfe\n",
    "options-escape.toml": b'loss = "\\u001b[31m\\u202e"\n',
    "options-unknown.toml": b"__class__ = 1\n",
}
TARGETS = {
    "targets-deep.json": b"[" * 20_000,
    "targets-ragged.json": b"[[1, 0, 0], [1]]",
    "targets-text.json": b'[["a", "b", "c"]]',
    "targets-infinite.json": b"[[1e999, 0, 0]]",
    "targets-code.csv": b"=cmd|' /C calc'!A0,0,0\n",
    "targets-objects.npy": b"\x93NUMPY\x01\x00\x46\x00"
    + b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }".ljust(69)
    + b"\n"
    + b"cos\nsystem\n",
    "targets-shape.npy": b"\x93NUMPY\x01\x00\x56\x00"
    + b"{'descr': '<f8', 'fortran_order': False, 'shape': (99999999, 99999999), }".ljust(85)
    + b"\n",
}


if __name__ == "__main__":
    for name, data in {**CONFIGS, **CELLS, **TENSORS, **OPTIONS, **TARGETS}.items():
        (HERE / name).write_bytes(data)
