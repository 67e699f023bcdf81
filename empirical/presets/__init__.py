"""Shipped settings: one small TOML file each, every number with its reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ufm.errors import RequestError
from ufm.spec import read_toml
from ufm.tables import suggest

ABOUT = ("version", "study", "summary", "cost", "reference")


def names() -> list[str]:
    """Return the names of the presets."""
    return sorted(path.stem for path in Path(__file__).parent.glob("*.toml"))


def read(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return (about, options) of the preset `name`; RequestError with a suggestion when there is none."""
    if name not in names():
        raise RequestError(f"unknown preset {name!r}; {suggest(name, names())}")
    document = read_toml(Path(__file__).parent / f"{name}.toml")
    about = {key: document.pop(key) for key in ABOUT if key in document}
    return about, document
