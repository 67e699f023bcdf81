"""Theory laid against measurement: paired, judged, drawn."""

from __future__ import annotations

from ufm import lazy

_NAMES = {"load": "compare.load:load"}
__all__ = [*_NAMES]

lazy.attach(__name__, _NAMES)
