"""Test features about the TRAIN means: strong and weak variability, what lies between, and their exact identity."""

from __future__ import annotations

import math
import warnings

import numpy as np
import torch

from ufm.errors import RequestError
from ufm.measure.algebra import centred_rows, pair_distances, pinv_factor
from ufm.measure.arrays import block_dtype, working_dtype
from ufm.measure.blocks import class_counts, class_sums, residual_blocks
from ufm.measure.centred import COINCIDE, pair_mean, rounding_variance
from ufm.measure.found import Found
from ufm.measure.moments import ClassMoments
from ufm.measure.split import Judge, lowest, means_basis, project


def train_centred(
    features: torch.Tensor, labels: torch.Tensor, counts: np.ndarray, reference: ClassMoments, wanted: frozenset[str]
) -> Found:
    """Return the measures of `features` about the means and the Sigma_B of `reference`.

    With |x|_B^2 = x^T Sigma_B^+ x and yhat the nearest train mean: strong = E|h - mu_y|_B^2/K, weak = E|h - mu_yhat|_B^2/K,
    between = E|mu_yhat - mu_y|_B^2/K, cross = (2/K) E<h - mu_yhat, mu_yhat - mu_y>_B: strong = weak + between + cross exactly.
    """
    found = Found(wanted)
    if reference.means.shape != (len(counts), features.shape[1]):
        have = (len(counts), features.shape[1])
        raise RequestError(
            f"reference has moments of shape {reference.means.shape}; these features need {have}: pass classes= to both"
        )
    known = reference.counts > 0
    stray = np.flatnonzero((counts > 0) & ~known)
    if len(stray):
        text = ", ".join(map(str, stray))
        warnings.warn(f"no train mean for class {text}: its samples are left out of the train-centred measures", stacklevel=3)
        keep = torch.from_numpy(known).to(labels.device)[labels]
        features, labels = features[keep], labels[keep]
    if known.sum() < 2 or not len(labels):
        for name in wanted:
            found.put(name, math.nan, "fewer than two classes have a train mean")
        return found
    means = reference.means
    basis = means_basis(means[known])
    reduced = project(means - means[known].mean(0), basis)
    reduced[known] = project(centred_rows(means[known], means[known].mean(0)), basis)
    factor, found.rank = pinv_factor(reduced[known] / np.sqrt(known.sum()))
    sums, scatter = _sums(features, labels, means, known, basis, factor)
    size, classes = len(labels), int(known.sum())
    missing = COINCIDE if found.rank == 0 else "the value is not finite"
    for name in ("strong", "weak", "between", "cross"):
        value = sums[name] / (size * classes) if found.rank else math.nan
        found.put(f"nc1_pinv_{name}", value, missing)
    found.put("ncc_error", sums["wrong"] / size)
    found.put("ncc_error_between", sums["wrong_between"] / size if found.rank else math.nan, missing)
    both = known & (counts > 0)
    traces = scatter[both] / counts[both]
    apart = pair_distances(reduced[both])
    alone = "two train means coincide" if both.sum() > 1 else "fewer than two classes have test samples and a train mean"
    found.put("cdnv_strong", pair_mean(traces, apart) if both.sum() > 1 else math.nan, alone)
    rounding = rounding_variance(reference)
    floor = rounding / means.shape[1] * float((factor**2).sum()) / classes
    if "nc1_pinv_strong" in found.values and found.values["nc1_pinv_strong"] <= floor:
        found.flags["nc1_pinv_strong"] = "below_floor"
    found.floors.update({name: floor for name in ("nc1_pinv_strong", "nc1_pinv_weak") if name in found.values})
    return found


def _sums(
    features: torch.Tensor,
    labels: torch.Tensor,
    means: np.ndarray,
    known: np.ndarray,
    basis: np.ndarray | None,
    factor: np.ndarray,
) -> tuple[dict[str, float], np.ndarray]:
    """Return the sums over samples behind each measure, and per class sum |h - mu_k|^2."""
    wide = working_dtype(features.device)
    centres = torch.from_numpy(means).to(features.device, block_dtype(features))
    gap = means - centres.cpu().numpy().astype(np.float64)  # what the features' dtype could not hold of the means
    lost = torch.from_numpy(project(gap, basis)).to(centres.device, wide)
    judge = Judge(means, known, basis, None, centres)
    metric = torch.from_numpy(factor.T).to(centres.device, wide)  # |x|_B = |x metric|
    spots = project(means - means[known].mean(0), basis) @ factor.T
    apart = pair_distances(spots)
    apart[:, ~known] = np.inf
    places, gaps = (torch.from_numpy(table).to(centres.device, wide) for table in (spots, apart))
    totals = dict.fromkeys(("strong", "weak", "between", "cross", "wrong", "wrong_between"), 0.0)
    scatter, size = np.zeros(len(means)), class_counts(labels, len(means))
    sums = torch.zeros(means.shape, dtype=wide, device=features.device)
    for block in residual_blocks(features, labels, centres):
        projected, _ = judge.project(block.residual)
        nearest = judge.nearest(projected, block.labels)
        own = (projected.T.to(wide) - lost[block.labels]) @ metric  # h - mu_y in the metric's coordinates
        jump = places[nearest] - places[block.labels]
        rest = own - jump
        totals["strong"] += float((own**2).sum())
        totals["weak"] += float((rest**2).sum())
        totals["between"] += float((jump**2).sum())
        totals["cross"] += 2 * float((rest * jump).sum())
        totals["wrong"] += int((nearest != block.labels).sum())
        inside = lowest(torch.addmm(gaps[block.labels], own, places.T, alpha=-2))  # as in Judge.nearest
        totals["wrong_between"] += int((inside != block.labels).sum())
        sums += class_sums(block.residual, block.labels, len(means))
        scatter += np.bincount(block.labels.cpu().numpy(), block.squares.cpu().numpy(), minlength=len(means))
    scatter += size * (gap**2).sum(1) - 2 * (gap * sums.cpu().numpy()).sum(1)
    return totals, scatter
