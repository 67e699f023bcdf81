"""Real networks on real data, measured on train and test, at every layer, over training.

Importing this package imports no torch; the names below are resolved on first use.
"""

from __future__ import annotations

import importlib
from typing import Any

_LAZY = {
    "measure": "empirical.epoch:measure",
    "Recorder": "empirical.recorder:Recorder",
    "NeuralCollapse": "empirical.metric:NeuralCollapse",
    "list_layers": "empirical.features:list_layers",
}
__all__ = [*_LAZY]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'empirical' has no attribute {name!r}")
    module, _, attribute = _LAZY[name].partition(":")
    value = getattr(importlib.import_module(module), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
