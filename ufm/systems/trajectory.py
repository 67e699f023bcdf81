"""`--trajectory`: loss and measures along a path of `single`, at log-spaced steps (times, for the flow)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ufm.errors import RequestError
from ufm.measure import collapse
from ufm.prediction import Prediction
from ufm.problem import Problem
from ufm.solution import Solution
from ufm.solvers.descent import END, STEPS, Path, follow, objective_value

PER_DECADE = 8
MEASURED = ("nc1_pinv", "nc2_equinorm_means", "nc2_equiangular_means", "nc2_etf_means", "nc2_to_prediction", "nc3_cosine")


def follow_many(
    problems: Sequence[Problem],
    seeds: Sequence[int],
    *,
    method: str,
    steps: int | None,
    tol: float,
    lr: float | None,
    device: str,
) -> list[tuple[Solution, Path]]:
    """Return the end point and the snapshots of every problem, at steps 0, 1, 2, ... log-spaced to the last."""
    last = steps or (int(END) if method == "flow" else STEPS)
    return follow(problems, seeds, method=method, steps=steps, tol=tol, lr=lr, device=device, at=log_spaced(last))


def log_spaced(last: int) -> list[int]:
    """Return 0, and about eight integers per decade from 1 to `last`, both included."""
    number = max(2, math.ceil(PER_DECADE * math.log10(max(last, 2))) + 1)
    return [0, *sorted({round(v) for v in np.geomspace(1, last, number)})]


def record_of(path: Path, problem: Problem, prediction: Prediction) -> dict[str, list[float]]:
    """Return columns over the snapshots: step, loss, the norms, and the measures of the features of all samples."""
    gram = prediction.gram_h if prediction.applies and prediction.unique and not prediction.zero else None
    columns: dict[str, list[float]] = {"step": [], "loss": [], "weight_norm": [], "feature_norm": []}
    columns |= {name: [] for name in MEASURED if gram is not None or name != "nc2_to_prediction"}
    labels = np.repeat(np.arange(len(problem.count_vector)), problem.count_vector.astype(int))
    for step, weight, features, bias in zip(path.steps, path.W, path.H, path.b, strict=False):
        with np.errstate(over="ignore", invalid="ignore"):  # a path may be on its way to infinity
            found = _measure(weight, features, bias, labels, problem, gram)
            found["step"] = float(step)
            found["loss"] = objective_value(problem, *map(torch.as_tensor, (weight, features, bias)))
            found["weight_norm"], found["feature_norm"] = float(np.linalg.norm(weight)), float(np.linalg.norm(features))
        for name, column in columns.items():
            column.append(found.get(name, math.nan))
    return columns


def _measure(
    weight: np.ndarray, features: np.ndarray, bias: np.ndarray, labels: np.ndarray, problem: Problem, gram: Any
) -> dict[str, float]:
    if problem.targets is not None or not (np.isfinite(weight).all() and np.isfinite(features).all()):
        return {}  # no classes, or a path that diverged
    names = MEASURED if gram is not None else tuple(name for name in MEASURED if name != "nc2_to_prediction")
    try:
        found = collapse(features, labels, weight=weight, bias=bias, classes=problem.classes, predicted_gram=gram, names=names)
    except RequestError:  # a geometry that does not exist at this step
        return {}
    return {name: float(found[name]) for name in names}
