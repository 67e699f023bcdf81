"""`Problem`: one unconstrained-features model, stated completely. Imports no torch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ufm.errors import RequestError
from ufm.tables import suggest

LOSSES = ("ce", "mse", "smoothing", "focal", "supcon")
BIASES = ("none", "free", "ridge")
CONSTRAINTS = ("ridge", "sphere", "ball")
FEATURES = ("free", "nonnegative")
ACTIVATIONS = ("linear", "relu")


@dataclass(frozen=True)
class Problem:
    """An unconstrained-features model: free features and a free classifier under a loss and a penalty or constraint.

    The objective, everywhere in this package::

        f = (1/N) sum_i loss(W h_i + b, y_i) + lambda_w/2 |W|^2 + lambda_h/2 sum_i |h_i|^2 + lambda_b/2 |b|^2

    with N the total number of samples. MSE is 1/2 |z - y|^2 per sample with one-hot y. Under constraint="sphere" the loss is
    taken of (W h + b)/temperature; the logits of a Solution or a Prediction are W h + b everywhere.

    Args:
        classes: K >= 2, the number of classes (outputs). K = 1 is allowed only with regression `targets`.
        dim: d >= 1, the feature dimension (the width, for depth > 1).
        counts: n_k, samples per class: one int for a balanced problem, or K ints. With `targets`, T ints.
        loss: "ce", "mse", "smoothing" (label smoothing), "focal" or "supcon" (supervised contrastive).
        lambda_w: weight decay on W, >= 0; a sequence of L values for depth L > 1 (W_1 .. W_L).
        lambda_h: weight decay on the features, >= 0.
        bias: "none", "free" (unpenalised) or "ridge" (penalty `lambda_b` > 0).
        constraint: "ridge" (the penalties above), "sphere" (unit rows of W and features) or "ball"
            (layer-peeled: (1/K)|W|^2 <= energy_w and (1/K) sum_k (1/n_k) sum_i |h_ki|^2 <= energy_h).
        features: "free" or "nonnegative" (h >= 0, ReLU features).
        smoothing: label smoothing alpha in [0, 1), used by loss="smoothing".
        focal_gamma: gamma >= 0 of the focal loss, used by loss="focal".
        temperature: tau > 0 of constraint="sphere": the loss is taken of (W h + b)/temperature; with
            loss="supcon", of the similarities over temperature.
        logit_scale, logit_offset: (K,) per class y of the *output*: the loss is taken of scale * z + offset (CDT / LA / VS),
            z = W h + b, on the sphere z = (W h + b)/temperature.
        class_weights: (K,) positive weights of the samples of each class.
        targets: (T, K) rows of soft, mixup, multi-label or regression targets; replaces one-hot labels.
        depth: L >= 1 weight matrices; activation between them is "linear" or "relu".

    Raises:
        RequestError (a ValueError): one line naming the value, the rule and the remedy.
    """

    classes: int
    dim: int
    counts: int | tuple[int, ...] = 100
    loss: str = "ce"
    lambda_w: float | tuple[float, ...] = 5e-4
    lambda_h: float = 5e-4
    bias: str = "none"
    lambda_b: float = 0.0
    constraint: str = "ridge"
    temperature: float = 1.0
    energy_w: float = 1.0
    energy_h: float = 1.0
    features: str = "free"
    smoothing: float = 0.1
    focal_gamma: float = 2.0
    logit_scale: tuple[float, ...] | None = None
    logit_offset: tuple[float, ...] | None = None
    class_weights: tuple[float, ...] | None = None
    targets: tuple[tuple[float, ...], ...] | None = None
    depth: int = 1
    activation: str = "linear"

    def __post_init__(self) -> None:
        for name, known in (
            ("loss", LOSSES),
            ("bias", BIASES),
            ("constraint", CONSTRAINTS),
            ("features", FEATURES),
            ("activation", ACTIVATIONS),
        ):
            if getattr(self, name) not in known:
                raise RequestError(f"unknown {name} {getattr(self, name)!r}; {suggest(str(getattr(self, name)), known)}")
        least = 1 if self.targets is not None else 2
        for name, low in (("classes", least), ("dim", 1), ("depth", 1)):
            object.__setattr__(self, name, _whole(getattr(self, name), name, low))
        self._freeze_arrays()
        self._check_counts()
        for name in ("lambda_h", "lambda_b"):
            object.__setattr__(self, name, _finite(getattr(self, name), name, 0.0))
        self._check_lambda_w()
        for name in ("temperature", "energy_w", "energy_h"):
            object.__setattr__(self, name, _finite(getattr(self, name), name, 0.0, strict=True))
        object.__setattr__(self, "focal_gamma", _finite(self.focal_gamma, "focal_gamma", 0.0))
        object.__setattr__(self, "smoothing", _finite(self.smoothing, "smoothing", 0.0))
        if self.smoothing >= 1:
            raise RequestError(f"smoothing {self.smoothing} is outside [0, 1); use for example 0.1")
        if self.bias == "ridge" and self.lambda_b == 0:
            raise RequestError("bias='ridge' needs lambda_b > 0; use bias='free' for an unpenalised bias")
        if self.bias != "ridge" and self.lambda_b > 0:
            raise RequestError(f"lambda_b {self.lambda_b} is used only with bias='ridge'; set bias='ridge' or lambda_b=0")

    def _freeze_arrays(self) -> None:
        for name in ("logit_scale", "logit_offset", "class_weights"):
            value = getattr(self, name)
            if value is None:
                continue
            value = tuple(
                _finite(v, name, -math.inf if name == "logit_offset" else 0.0, strict=True) for v in _sequence(value, name)
            )
            if len(value) != self.classes:
                raise RequestError(f"{name} has {len(value)} entries but there are {self.classes} classes; give {self.classes}")
            object.__setattr__(self, name, value)
        if self.targets is not None:
            rows = tuple(
                tuple(_finite(v, "targets", -math.inf) for v in _sequence(row, "targets"))
                for row in _sequence(self.targets, "targets")
            )
            if not rows or any(len(row) != self.classes for row in rows):
                raise RequestError(
                    f"targets must be (T, K) with K = {self.classes} columns; got rows of {sorted({len(r) for r in rows})}"
                )
            object.__setattr__(self, "targets", rows)

    def _check_counts(self) -> None:
        groups = len(self.targets) if self.targets is not None else self.classes
        if isinstance(_plain_number(self.counts), (int, float)):
            object.__setattr__(self, "counts", _whole(self.counts, "counts", 1))
            return
        counts = tuple(_whole(n, "counts", 1) for n in _sequence(self.counts, "counts"))
        if len(counts) != groups:
            noun = "classes" if self.targets is None else "targets"
            raise RequestError(f"counts has {len(counts)} entries but there are {groups} {noun}; give one int or {groups}")
        object.__setattr__(self, "counts", counts)

    def _check_lambda_w(self) -> None:
        if isinstance(_plain_number(self.lambda_w), (int, float)):
            object.__setattr__(self, "lambda_w", _finite(self.lambda_w, "lambda_w", 0.0))
            return
        values = tuple(_finite(v, "lambda_w", 0.0) for v in _sequence(self.lambda_w, "lambda_w"))
        if len(values) != self.depth:
            raise RequestError(f"lambda_w has {len(values)} entries but depth is {self.depth}; give one number or {self.depth}")
        object.__setattr__(self, "lambda_w", values[0] if self.depth == 1 else values)

    @property
    def count_vector(self) -> np.ndarray:
        """n_k as a (T,) float64 array, T = K without `targets`."""
        groups = len(self.targets) if self.targets is not None else self.classes
        return np.broadcast_to(np.asarray(self.counts, dtype=np.float64), (groups,)).copy()

    @property
    def total(self) -> int:
        """N, the total number of samples."""
        return int(self.count_vector.sum())

    @property
    def balanced(self) -> bool:
        """Whether every class (or distinct target) has the same number of samples."""
        return len(set(self.count_vector)) == 1

    @property
    def layer_lambdas(self) -> tuple[float, ...]:
        """Weight decay of W_1 .. W_L."""
        return self.lambda_w if isinstance(self.lambda_w, tuple) else (self.lambda_w,) * self.depth

    @property
    def penalty(self) -> float:
        """c = sqrt(lambda_w * lambda_h), the price of one unit of the nuclear norm (depth 1)."""
        return math.sqrt(self.layer_lambdas[0] * self.lambda_h)

    def replace(self, **changes: Any) -> Problem:
        """Return a copy with some fields changed, checked again."""
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON-ready values (tuples become lists)."""
        return {f.name: _plain(getattr(self, f.name)) for f in dataclasses.fields(self)}


def _plain(value: Any) -> Any:
    return [_plain(v) for v in value] if isinstance(value, tuple) else value


def _plain_number(value: Any) -> Any:
    """Return the Python number of a NumPy number, or of an array or tensor without dimensions; others as they are."""
    dimensions = getattr(value, "ndim", None)
    return value.item() if dimensions == 0 and hasattr(value, "item") else value


def _sequence(value: Any, name: str) -> Sequence[Any]:
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise RequestError(f"{name} {value!r} is not a sequence of numbers; give a list such as [1.0, 2.0]")
    return value


def _finite(value: Any, name: str, low: float, strict: bool = False) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise RequestError(f"{name} {value!r} is not a number; give a finite number") from None
    if not math.isfinite(number) or number < low or (strict and number == low):
        bound = "" if low == -math.inf else f" {'>' if strict else '>='} {low:g}"
        raise RequestError(f"{name} {value!r} is out of range; give a finite number{bound}")
    return number


def _whole(value: Any, name: str, low: int) -> int:
    number = _plain_number(value)
    if isinstance(number, float) and number.is_integer():  # 3.0, as arrays of counts often come
        number = int(number)
    if isinstance(number, bool) or not isinstance(number, int) or number < low:
        raise RequestError(f"{name} {value!r} is out of range; give an integer >= {low}")
    return number
