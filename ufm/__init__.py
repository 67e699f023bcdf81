"""Unconstrained-features models: the theory of neural collapse made executable.

Importing this package imports no torch; the names below are resolved on first use.
"""

from __future__ import annotations

from ufm import lazy

__version__ = "0.1.0"

_NAMES = {
    "Problem": "ufm.problem:Problem",
    "Prediction": "ufm.prediction:Prediction",
    "Solution": "ufm.solution:Solution",
    "Certificate": "ufm.solution:Certificate",
    "Status": "ufm.solution:Status",
    "solve": "ufm.solve:solve",
    "solve_many": "ufm.solve:solve_many",
    "predict": "ufm.predict:predict",
    "structures": "ufm.predict:structures",
    "layer_predictions": "ufm.theory.layers:layer_predictions",
    "flow": "ufm.flows:flow",
    "measure": "ufm.measure:",
    "geometry": "ufm.geometry:",
}
__all__ = [*_NAMES]

lazy.attach(__name__, _NAMES)
