"""What theory says of the end of a training at its own regularisation, for the lines of other figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from compare.figures.series import Curve

EXACT = 1e-6  # below it a predicted measure is 0 but for rounding
LABEL = "Theory, train: UFM, own decay"


@dataclass(frozen=True)
class Calibrated:
    """The data loss on train, in the training's own normalisation, and NC2 and NC3; geometric or plain means over seeds."""

    loss: float
    geometry: Mapping[str, float] = field(default_factory=dict)
    seeds: int = 0

    def note(self) -> str:
        """Say where the lines come from."""
        each = f"{self.seeds} seed" + ("s" if self.seeds != 1 else "")
        return (
            f"Own decay: the optimum of the unconstrained-features model at the networks' own regularisation ({each}; train loss "
            f"{self.loss:.3g}); the features' decay follows from the balance of the two penalties at the last epoch."
        )


def calibrated(table: Mapping[str, Any], cell: str) -> Calibrated | None:
    """Return the predictions for the only setting `cell` of a loaded table; None where a seed has none.

    Where no closed form exists, one optimum is solved for at the seeds' mean decay of the features: a solution takes seconds.
    """
    from compare import last_layer
    from compare.calibrate import known, loss_scale, problem_of
    from ufm.predict import predict

    setting = (getattr(table, "cells", None) or {}).get(cell)
    if setting is None or not setting.seeds or not setting.config.get("weight_decay"):
        return None
    problems = [problem_of(setting, seed)[1] for seed in setting.seeds]
    if any(problem is None for problem in problems):
        return None
    found = [(problem, predict(problem)) for problem in problems]
    if not all(known(q) for _, q in found):
        middle = float(np.exp(np.mean([np.log(problem.lambda_h) for problem in problems])))
        one = problems[0].replace(lambda_h=middle)
        found = [(one, last_layer.optimum(one))]
    if not all(known(q) and not q.zero for _, q in found):
        return None
    scale = loss_scale(setting.config, problems[0].classes)
    losses = [last_layer.predicted_values(q, problem)[2] / scale for problem, q in found]
    shapes = [last_layer.geometry(q) for _, q in found]
    means = {name: float(np.mean([shape[name] for shape in shapes])) for name in shapes[0]}
    geometry = {name: value if value > EXACT else 0.0 for name, value in means.items()}
    return Calibrated(float(np.exp(np.mean(np.log(losses)))) if min(losses) > 0 else 0.0, geometry, len(problems))


def level(key: str, value: float, curves: list[Curve]) -> Curve:
    """Return a horizontal line from the first to the last measurement of some curves."""
    x = np.unique(np.concatenate([c.x for c in curves if c] or [np.zeros(0)]))
    x = x[[0, -1]] if len(x) > 1 else x
    nothing = np.full(len(x), np.nan)
    return Curve(key, x, np.full(len(x), value), nothing, nothing, np.zeros(len(x), int), np.zeros(len(x), bool))
