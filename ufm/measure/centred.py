"""The measures about the split's own class means, from its statistics."""

from __future__ import annotations

import functools
import math

import numpy as np

from ufm.measure.algebra import (
    EPS,
    alignment,
    centred_rows,
    cosines,
    equiangular,
    equinorm,
    gram_distance,
    pair_distances,
    pinv_factor,
    pinv_form,
    simplex_gram,
    variability_index,
)
from ufm.measure.found import Found
from ufm.measure.margins import gnc_margin, gram_coherence, hardmax_margin
from ufm.measure.moments import ROUNDING, ClassMoments, rigid_columns
from ufm.measure.rank import ranks
from ufm.measure.split import SplitStatistics, project

FEW = 256  # classes whose pairs are kept from one look to the next
COINCIDE = "all class means coincide, so Sigma_B is zero"
PARTIAL = "a class has no sample, so its row of W has no mean to be compared with"
NO_WITHIN = "needs the within-class scatter or a second read of the features; build the moments with scatter=True"
PER_SAMPLE = "needs every sample, not their moments"
NO_SCATTER = "needs the d x d within-class scatter, which is kept only for d <= 4096"


def self_centred(
    stats: SplitStatistics,
    classifier: tuple[np.ndarray, np.ndarray] | None,
    predicted_gram: np.ndarray | None,
    ood_mean: np.ndarray | None,
    wanted: frozenset[str],
) -> Found:
    """Return every measure about the split's own means that its inputs allow."""
    found = Found(wanted)
    present = stats.moments.counts > 0
    means = stats.moments.means[present]
    centre = means.mean(0)
    put_variability(found, stats)
    put_scatter(found, stats)
    put_means(found, centred_rows(means, centre))
    if classifier is not None:
        put_classifier(found, classifier, means, present.all())
        found.put("nc4_disagreement", stats.nc4_disagreement, PER_SAMPLE)
    found.put("ncc_error", stats.ncc_error, PER_SAMPLE)
    if predicted_gram is not None:
        put_prediction(found, means, predicted_gram, present.all())
    if ood_mean is not None:
        both = np.concatenate([[ood_mean - centre], means - centre])
        found.put("nc5", float(np.abs(cosines(both)[0, 1:]).mean()), "a mean, or the out-of-distribution mean, equals mu_C")
    return found


def put_variability(found: Found, stats: SplitStatistics) -> None:
    """NC1 in its normalisations and CDNV: within-class covariance against what lies between the means."""
    moments = stats.moments
    present = moments.counts > 0
    counts, traces, means = moments.counts[present], moments.traces[present], moments.means[present]
    share = counts / counts.sum()
    classes = len(counts)
    degenerate = bool((counts == 1).all())
    rounding = rounding_variance(moments)
    sample_mean, centre = share @ means, means.mean(0)
    about_centre = project(centred_rows(means, centre), stats.basis)
    about_sample = project(centred_rows(means, sample_mean), stats.basis)
    root = np.sqrt(classes)
    frame, found.rank = pinv_factor(about_centre / root)
    forms = {"nc1_pinv": (frame, 1 / classes), "nc1_pinv_sum": (frame, 1.0)}
    if "nc1_pinv_sample" in found.wanted:
        forms["nc1_pinv_sample"] = pinv_factor(about_sample / root)[0], 1 / classes
    if "nc1_weighted" in found.wanted:
        forms["nc1_weighted"] = pinv_factor(about_sample * np.sqrt(share)[:, None])[0], 1.0
    for name, (frame, factor) in forms.items():
        rank = len(frame)
        value = factor * pinv_form(stats.within, frame) if rank and stats.within is not None else math.nan
        floor = factor * rounding / means.shape[1] * float((frame**2).sum())  # rounding is spread evenly over d coordinates
        found.put_noisy(name, value, floor, degenerate, NO_WITHIN if rank else COINCIDE)
    trace_within = float(share @ traces)
    trace_between = float((about_centre**2).sum() / classes)
    weighted = float(share @ (about_sample**2).sum(1))
    ratio, of_total = (trace_within / b if b > 0 else math.nan for b in (trace_between, trace_within + weighted))
    found.put_noisy("nc1_trace", ratio, rounding / trace_between if trace_between > 0 else math.nan, degenerate, COINCIDE)
    found.put_noisy("nc1_total", of_total, rounding / max(trace_within + weighted, 1e-300), degenerate, "all features coincide")
    apart = pair_distances(about_centre)
    value, floor = pair_mean(traces, apart), pair_mean(np.full(classes, rounding), apart)
    found.put_noisy("cdnv", value, floor, degenerate, "two class means coincide")


def rounding_variance(moments: ClassMoments) -> float:
    """Return eps^2 E|h|^2: what storing the features in their dtype can add to E|h - mu|^2, 3 to 12 times over."""
    share = moments.counts / moments.counts.sum()
    return moments.eps**2 * float(share @ ((moments.means**2).sum(1) + moments.traces))


def pair_mean(traces: np.ndarray, apart: np.ndarray) -> float:
    """Return the mean over pairs i < j of (v_i + v_j)/(2 |mu_i - mu_j|^2); nan if two means coincide."""
    i, j = _pairs(len(traces)) if len(traces) <= FEW else np.triu_indices(len(traces), 1)
    gaps = apart[i, j]
    if (gaps == 0).any():
        return math.nan
    return float(((traces[i] + traces[j]) / (2 * gaps)).mean())


@functools.lru_cache(maxsize=4)
def _pairs(number: int) -> tuple[np.ndarray, np.ndarray]:
    return np.triu_indices(number, 1)


def put_scatter(found: Found, stats: SplitStatistics) -> None:
    """VCI and the ranks, which need the whole d x d scatter."""
    moments = stats.moments
    if moments.scatter is None:
        for name in ("vci", "rank_effective", "rank_stable", "rank_numeric"):
            found.put(name, math.nan, NO_SCATTER)
        return
    present = moments.counts > 0
    share = moments.counts[present] / moments.counts.sum()
    about_sample = centred_rows(moments.means[present], share @ moments.means[present])
    rows = about_sample * np.sqrt(share)[:, None]
    within = moments.scatter / moments.counts.sum()
    silence(within, rows, moments)
    coincide = not np.abs(rows).any()
    if "vci" in found.wanted:
        found.put("vci", math.nan if coincide else variability_index(within, rows), COINCIDE)
    if found.wanted & {"rank_effective", "rank_stable", "rank_numeric"}:
        eigenvalues = np.linalg.eigvalsh(within + rows.T @ rows)[::-1]
        noise = len(within) * np.finfo(np.float64).eps * max(eigenvalues[0], 0.0)
        for name, value in ranks(np.sqrt(np.where(eigenvalues > noise, eigenvalues, 0.0))).items():
            found.put(name, value, "all features coincide")


def silence(within: np.ndarray, rows: np.ndarray, moments: ClassMoments) -> None:
    """Set to exactly zero, in place, what is only rounding of constant coordinates: VCI does not see a coordinate's scale."""
    rigid = rigid_columns(moments)
    within[rigid] = 0.0
    within[:, rigid] = 0.0
    means = moments.means[moments.counts > 0]
    rows[:, rigid & (np.ptp(means, axis=0) <= ROUNDING * EPS * np.abs(means).max(0))] = 0.0


def put_means(found: Found, centred: np.ndarray) -> None:
    """NC2 of the class means, and how far the nearest two are apart in angle."""
    found.put("nc2_equinorm_means", equinorm(centred), COINCIDE)
    found.put("nc2_equiangular_means", equiangular(centred), "a class mean equals mu_C, so it has no direction")
    found.put("nc2_etf_means", gram_distance(centred @ centred.T, simplex_gram(len(centred))), COINCIDE)
    found.put("gram_coherence", gram_coherence(centred), "a class mean equals mu_C, so it has no direction")
    if "gnc_margin" in found.wanted:
        found.put("gnc_margin", gnc_margin(centred), "a class mean equals mu_C, so it has no direction")


def put_classifier(found: Found, classifier: tuple[np.ndarray, np.ndarray], means: np.ndarray, complete: bool) -> None:
    """NC2 of the weights, NC3 and the bias; with an absent class only the bias has a meaning."""
    weight, bias = classifier
    centre = means.mean(0)
    found.put("bias_collapse", float(np.linalg.norm(weight @ centre + bias)))
    names = ("nc2_equinorm_weights", "nc2_equiangular_weights", "nc2_etf_weights", "nc3_papyan", "nc3_zhu", "nc3_cosine")
    if not complete:
        for name in (*names, "hardmax_margin"):
            found.put(name, math.nan, PARTIAL)
        return
    centred = centred_rows(means, centre)
    target = simplex_gram(len(weight))
    sizes = np.linalg.norm(weight), np.linalg.norm(centred)
    papyan = ((weight / sizes[0] - centred / sizes[1]) ** 2).sum() if min(sizes) > 0 else math.nan
    zero = "a row of W or a centred class mean is zero"
    values = equinorm(weight), equiangular(weight), gram_distance(weight @ weight.T, target)
    values += papyan, gram_distance(weight @ centred.T, target), alignment(weight, centred)
    for name, value in zip(names, values, strict=True):
        found.put(name, value, zero)
    found.put("hardmax_margin", hardmax_margin(weight, centred), zero)


def put_prediction(found: Found, means: np.ndarray, gram: np.ndarray, complete: bool) -> None:
    """The distance to a predicted Gram: about mu_C where the predicted means sum to zero, about the origin where they do not."""
    if not complete:
        found.put("nc2_to_prediction", math.nan, PARTIAL)
        return
    centred = np.abs(gram.sum(1)).max() <= 1e-8 * np.abs(gram).max() * len(gram)
    rows = means - means.mean(0) if centred else means
    found.put("nc2_to_prediction", gram_distance(rows @ rows.T, gram), "the class means or the predicted Gram are zero")
