"""Unconstrained-features models: the theory of neural collapse made executable.

Importing this package imports no torch; the names below are resolved on first use.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

__version__ = "0.1.0"

_LAZY = {
    "Problem": "ufm.problem:Problem",
    "Prediction": "ufm.prediction:Prediction",
    "Solution": "ufm.solution:Solution",
    "Certificate": "ufm.solution:Certificate",
    "Status": "ufm.solution:Status",
    "solve": "ufm.solve:solve",
    "solve_many": "ufm.solve:solve_many",
    "predict": "ufm.predict:predict",
    "structures": "ufm.predict:structures",
    "flow": "ufm.flows:flow",
    "measure": "ufm.measure:",
    "geometry": "ufm.geometry:",
}
__all__ = [*_LAZY]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'ufm' has no attribute {name!r}")
    module, _, attribute = _LAZY[name].partition(":")
    loaded = importlib.import_module(module)
    value = getattr(loaded, attribute) if attribute else loaded
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])


class _Package(ModuleType):
    """Importing a submodule binds its name in the package; `ufm.solve` must stay the function, not the module `ufm.solve`."""

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, ModuleType) and not _LAZY.get(name, ":").endswith(":"):
            return
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
