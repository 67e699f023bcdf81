"""Public names of a package that are imported on first use, so that `import ufm` and `--help` stay light."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any


def attach(package: str, names: Mapping[str, str]) -> None:
    """Make `names` (name -> "module:attribute", or "module:" for the module itself) attributes of a package.

    A name that is also a submodule's (`ufm.solve`) stays what the table says: importing the submodule would bind the
    module over it.
    """
    module = sys.modules[package]

    class Lazy(ModuleType):
        def __getattr__(self, name: str) -> Any:
            if name not in names:
                raise AttributeError(f"module {package!r} has no attribute {name!r}")
            target, _, attribute = names[name].partition(":")
            loaded = importlib.import_module(target)
            value = getattr(loaded, attribute) if attribute else loaded
            self.__dict__[name] = value
            return value

        def __dir__(self) -> list[str]:
            return sorted({*self.__dict__, *names})

        def __setattr__(self, name: str, value: Any) -> None:
            if isinstance(value, ModuleType) and not names.get(name, ":").endswith(":"):
                return
            super().__setattr__(name, value)

    module.__class__ = Lazy
