"""`Prediction`: what a theorem or a derivation says of the optimum of a `Problem`. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

# How much a prediction may be trusted; printed wherever the prediction is printed or drawn.
STATED = "stated in the source"
DERIVED = "derived and verified numerically"
EVIDENCE = "evidence only (multistart), not proven"


@dataclass(frozen=True, eq=False)
class Prediction:
    """The predicted optimum of one problem, or the sentence that says why there is none.

    Conventions are those of the package: row k of `logits` is the logit vector (bias included) of class k, `gram_w` is
    W W^T (K, K), `gram_h` is H H^T (T, T) of the class means, `singular_values` are those of (logits - b)^T diag(sqrt n),
    descending. Arrays are float64; None where the quantity does not exist or is not unique (`unique` False).
    """

    name: str  # the structure: "etf", "of", "gof", "seli", "code", "zero", ...
    applies: bool = True
    reason: str = ""  # why not, when `applies` is False
    loss: float | None = None
    logits: np.ndarray | None = None
    bias: np.ndarray | None = None
    gram_w: np.ndarray | None = None
    gram_h: np.ndarray | None = None
    singular_values: np.ndarray | None = None
    status: str = DERIVED
    assumptions: tuple[str, ...] = ()
    reference: str = ""  # key of ufm.references.REFERENCES
    tolerance: float = 1e-10  # relative, of `loss`
    unique: bool = True  # whether the Grams are unique up to rotation
    zero: bool = False  # the zero solution is optimal
    thresholds: dict[str, float] = field(default_factory=dict)  # name -> dimensionless number; the regime changes at 1
    details: dict[str, Any] = field(default_factory=dict)  # scalars of the derivation (a, s, margin, ...)
    weights: tuple[np.ndarray, ...] | None = None  # depth > 1: W_1 (d, d) .. W_L (K, d) that attain the loss
    means: np.ndarray | None = None  # depth > 1: (K, d) class means of H_1 that go with them


def not_applicable(reason: str, name: str = "none") -> Prediction:
    """Return the prediction that says no theorem applies, and why."""
    return Prediction(name=name, applies=False, reason=reason)
