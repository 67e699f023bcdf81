"""Real networks on real data, measured on train and test, at every layer, over training.

Importing this package imports no torch; the names below are resolved on first use.
"""

from __future__ import annotations

from ufm import lazy

_NAMES = {
    "measure": "empirical.epoch:measure",
    "Recorder": "empirical.recorder:Recorder",
    "NeuralCollapse": "empirical.metric:NeuralCollapse",
    "list_layers": "empirical.features:list_layers",
}
__all__ = [*_NAMES]

lazy.attach(__name__, _NAMES)
