"""The sizes that theory predicts of a trained head at its own regularisation: loss, effective rank from the loss, logit scale.

A training has no weight decay on features. At an optimum of the model lambda_h sum_i |h_i|^2 = lambda_l |W_l|^2 for every l, and
that gives the lambda_h at which the measured numbers are held against the structures.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from compare.figures.heads import DECOUPLED, Trained, name_of, problem_of, structures_of
from compare.points import arrays_of, seed_folder
from ufm.errors import RequestError


@dataclass(frozen=True)
class Sizes:
    """Of one seed: lambda_h, the regularised loss, the rank that has this loss, the logit gap; and each structure's (loss, gap).

    gap: own logit less the mean of the others, mean over classes. effective_rank is nan where no structure has such a loss.
    """

    lambda_h: float
    loss: float
    effective_rank: float
    gap: float
    structures: dict[str, tuple[float, float]]


def sizes(table: Mapping[str, Any], one: Trained) -> list[Sizes]:
    """Return the sizes of every seed; [] where the balance infers nothing (another loss than MSE, decoupled decay, no arrays)."""
    cell = (getattr(table, "cells", None) or {}).get(one.cell)
    decay = float(one.setting.get("weight_decay") or 0)
    usable = one.setting.get("loss") == "mse" and one.setting.get("optimizer") not in DECOUPLED and decay > 0
    if cell is None or not usable or not one.features or not one.features[0]:
        return []
    found = [_of_seed(one, arrays_of(seed_folder(cell, seed)), float(seed), decay) for seed in cell.seeds]
    return [one for one in found if one is not None]


def _of_seed(one: Trained, arrays: Mapping[str, np.ndarray], seed: float, decay: float) -> Sizes | None:
    from ufm.theory.deep_scalar import effective_rank

    keys = [f"{one.features[0]}/train/{name}" for name in ("means", "traces", "counts")]
    own = one.rows.where(seed=seed, split="train")
    fit, norms = own.where(measure="loss", layer="network")["value"], own.where(measure="head_norm")["value"]
    if not all(key in arrays for key in (*keys, "logits/train/means")) or not len(fit) or len(norms) != one.depth:
        return None
    means, traces, counts = (arrays[key] for key in keys)
    energy = float((counts * ((means**2).sum(1) + traces)).sum())
    pull = decay * float((norms**2).mean())
    problem, _ = problem_of(one, decay, pull / energy) if energy > 0 and pull > 0 else (None, "")
    if problem is None:
        return None
    loss = float(fit[-1]) + (one.depth + 1) / 2 * pull
    try:
        rank = effective_rank(loss, one.depth, float(counts.mean()), pull / energy * decay**one.depth)
    except (RequestError, ValueError):  # above the zero solution's loss: no structure has it
        rank = np.nan
    known = {head.structure: (head.loss, float(np.mean(head.logit_gap))) for head in structures_of(problem)[0] if head.exists}
    return Sizes(pull / energy, loss, rank, _gap(arrays["logits/train/means"]), known)


def _gap(logits: np.ndarray) -> float:
    own = np.diag(logits)
    return float((own - (logits.sum(1) - own) / (len(logits) - 1)).mean())


def sentence(one: Trained, found: list[Sizes]) -> str:
    """Return the comparison in one sentence, means over seeds; "" for none."""
    if not found:
        return ""
    mean = lambda values: f"{np.mean(values):.4g}"  # noqa: E731
    names = [name for name in found[0].structures if all(name in each.structures for each in found)]
    beside = "".join(
        f", {name_of(name)} {mean([e.structures[name][0] for e in found])} and {mean([e.structures[name][1] for e in found])}"
        for name in names
    )
    ranks = [each.effective_rank for each in found]
    rank = f"; the loss is that of effective rank {np.mean(ranks):.3g}" if np.isfinite(ranks).all() else ""
    return (
        f"{one.label}: at the lambda_h of the balance ({mean([e.lambda_h for e in found])}) the regularised loss is "
        f"{mean([e.loss for e in found])} and the logit gap {mean([e.gap for e in found])}{beside}{rank}."
    )
