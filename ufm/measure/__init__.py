"""Measures of neural collapse: one definition per name, on free features and on a network's features alike.

Importing this package imports no torch; the names below are resolved on first use.
"""

from __future__ import annotations

import importlib
from typing import Any

from ufm.measure.names import MEASURES

_LAZY = {
    "collapse": "ufm.measure.measures:collapse",
    "Measures": "ufm.measure.measures:Measures",
    "ClassMoments": "ufm.measure.moments:ClassMoments",
    "spectrum": "ufm.measure.rank:spectrum",
    "rank_effective": "ufm.measure.rank:rank_effective",
    "rank_stable": "ufm.measure.rank:rank_stable",
    "rank_numeric": "ufm.measure.rank:rank_numeric",
    "gnc_margin": "ufm.measure.margins:gnc_margin",
    "hardmax_margin": "ufm.measure.margins:hardmax_margin",
    "gram_coherence": "ufm.measure.margins:gram_coherence",
}
__all__ = ["MEASURES", *_LAZY]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'ufm.measure' has no attribute {name!r}")
    module, _, attribute = _LAZY[name].partition(":")
    value = getattr(importlib.import_module(module), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
