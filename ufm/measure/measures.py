"""`collapse`: every measure of a feature set in one call, and `Measures`, the mapping it returns."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ufm.errors import RequestError
from ufm.measure.arrays import as_features, as_labels, as_matrix, plain_arithmetic
from ufm.measure.blocks import class_counts
from ufm.measure.centred import self_centred
from ufm.measure.found import Found
from ufm.measure.moments import ClassMoments
from ufm.measure.names import COLLAPSE, DEFAULT, MEASURES, NOT_SCALAR, TRAIN_CENTRED
from ufm.measure.reference import train_centred
from ufm.measure.split import SplitStatistics, means_basis, project, split_statistics
from ufm.tables import find


@dataclass(frozen=True, eq=False)
class Measures(Mapping):
    """Name -> value of what was measured. A value that does not exist is nan, with a sentence in `reasons`.

    reasons   name -> why the value is nan
    flags     name -> "below_floor" (not above what rounding of the features alone gives) or "degenerate" (one sample per class)
    floors    name -> the noise floor of that measure, set by the features' own rounding
    floor     the floor of `nc1_pinv`
    rank      rank of Sigma_B, K - 1 in general
    centres   name -> "self" (the split's own means) or "train" (those of `reference`)
    counts    (K,) samples of each class; `absent` the classes left out
    own       with a reference: the `ncc_error` about the split's own means (the mapping itself holds the one about train means)
    """

    numbers: dict[str, float]
    reasons: dict[str, str] = field(default_factory=dict)
    flags: dict[str, str] = field(default_factory=dict)
    floors: dict[str, float] = field(default_factory=dict)
    floor: float = math.nan
    rank: int = 0
    centres: dict[str, str] = field(default_factory=dict)
    counts: tuple[int, ...] = ()
    absent: tuple[int, ...] = ()
    own: dict[str, float] = field(default_factory=dict)

    def __getitem__(self, name: str) -> float:
        if name not in self.numbers and name not in MEASURES:
            find(MEASURES, name, "measure")
        return self.numbers[name]

    def __contains__(self, name: object) -> bool:
        return name in self.numbers

    def __iter__(self) -> Iterator[str]:
        return iter(self.numbers)

    def __len__(self) -> int:
        return len(self.numbers)

    def to_rows(self) -> list[dict[str, Any]]:
        """Return one dict per value: centres, metric, value (None for nan, with its reason), flag. The rows of metrics.jsonl."""
        listed = [("self", name, value) for name, value in self.own.items()]
        listed += [(self.centres.get(name, "self"), name, value) for name, value in self.numbers.items()]
        rows = []
        for centres, name, value in listed:
            row: dict[str, Any] = {"centres": centres, "metric": name, "value": value if math.isfinite(value) else None}
            if row["value"] is None:
                row["reason"] = self.reasons.get(name, "the value is not finite")
            if name in self.flags:
                row["flag"] = self.flags[name]
            rows.append(row)
        return rows


def collapse(
    features: Any,
    labels: Any,
    *,
    weight: Any = None,
    bias: Any = None,
    reference: ClassMoments | None = None,
    classes: int | None = None,
    predicted_gram: Any = None,
    ood: Any = None,
    names: Iterable[str] | None = None,
) -> Measures:
    """Measure the neural collapse of labelled features; `ufm.measure.MEASURES` defines every name.

    features  (N, d), numpy or torch, any device and real dtype; labels (N,) integers in 0..K-1
    weight    (K, d), bias (K,): the classifier; without it NC3, NC4 and the weights' NC2 are left out
    reference moments of the train split: adds the test measures about train means (`nc1_pinv_strong`, ..., `ncc_error`)
    classes   K, where not every class need occur; predicted_gram (K, K) for `nc2_to_prediction`; ood (m, d) or (d,) for `nc5`
    names     only these of the measures that the inputs allow (default: all but `gnc_margin`, which solves K quadratic programs);
              without `vci` and the ranks no d x d product is made, ten times faster at d = 512

    Returns a `Measures`. RequestError (one line) for a wrong shape, a non-finite feature, a label out of range, fewer than two
    classes. An absent class is left out with a warning.
    """
    wanted = _wanted(names)
    x, eps = as_features(features)
    classifier, rows = _classifier(weight, bias, x.shape[1])
    known = classes if classes is not None else rows if rows is not None else len(reference.counts) if reference else None
    y, total = as_labels(labels, len(x), known, x.device)
    _check_rows(rows, total)
    gram, ood_mean = _gram(predicted_gram, total), _ood_mean(ood, x.shape[1])
    _check_present(class_counts(y, total))
    about_train = None
    with plain_arithmetic(x):
        stats = split_statistics(x, y, total, eps, classifier, wanted)
        if reference is not None:
            about_train = train_centred(x, y, stats.moments.counts, reference, wanted & TRAIN_CENTRED)
    return _report(stats, classifier, gram, ood_mean, wanted, about_train)


def from_moments(
    moments: ClassMoments,
    *,
    weight: Any = None,
    bias: Any = None,
    predicted_gram: Any = None,
    ood: Any = None,
    names: Iterable[str] | None = None,
) -> Measures:
    """Measure from `ClassMoments` alone, as merged from batches or workers: the same numbers as `collapse`, without the features.

    Moments built with scatter=True give all but `ncc_error` and `nc4_disagreement`, which need every sample and are nan with
    that reason; without the scatter the pinv forms, VCI and the ranks are nan as well. Other arguments as `collapse`.
    """
    wanted = _wanted(names)
    _check_present(moments.counts)
    total, dim = moments.means.shape
    classifier, rows = _classifier(weight, bias, dim)
    _check_rows(rows, total)
    basis = means_basis(moments.means[moments.counts > 0])
    within = None
    if moments.scatter is not None:
        within = project(project(moments.scatter, basis).T, basis) / moments.counts.sum()
    stats = SplitStatistics(moments, basis, within, math.nan, math.nan)
    return _report(stats, classifier, _gram(predicted_gram, total), _ood_mean(ood, dim), wanted, None)


def _report(
    stats: SplitStatistics,
    classifier: tuple[np.ndarray, np.ndarray] | None,
    gram: np.ndarray | None,
    ood_mean: np.ndarray | None,
    wanted: frozenset[str],
    about_train: Found | None,
) -> Measures:
    """Put the statistics' measures, and those about train means where there are any, into one mapping."""
    out = self_centred(stats, classifier, gram, ood_mean, wanted)
    own = {}
    centres = dict.fromkeys(out.values, "self")
    if about_train is not None:
        own = {"ncc_error": out.values["ncc_error"]} if "ncc_error" in out.values else {}
        out.update(about_train)
        centres.update(dict.fromkeys(about_train.values, "train"))
    counts = tuple(int(n) for n in stats.moments.counts)
    absent = tuple(k for k, n in enumerate(counts) if n == 0)
    floor = out.floors.get("nc1_pinv", math.nan)
    return Measures(out.values, out.reasons, out.flags, out.floors, floor, out.rank, centres, counts, absent, own)


def _check_present(counts: np.ndarray) -> None:
    absent = np.flatnonzero(counts == 0)
    if len(counts) - len(absent) < 2:
        raise RequestError("fewer than two classes occur in labels; the geometry of class means needs two: pass more samples")
    if len(absent):
        text = ", ".join(map(str, absent))
        warnings.warn(f"no sample of class {text}: left out of every mean over classes", stacklevel=3)


def _check_rows(rows: int | None, total: int) -> None:
    if rows is not None and rows != total:
        raise RequestError(f"weight has {rows} rows but there are {total} classes; they must agree: pass the whole classifier")


def _wanted(names: Iterable[str] | None) -> frozenset[str]:
    if names is None:
        return DEFAULT
    wanted = frozenset([names] if isinstance(names, str) else names)
    for name in sorted(wanted):
        find(MEASURES, name, "measure")
        if name in NOT_SCALAR:
            raise RequestError(f"{name!r} is not one number; collapse gives numbers only: call ufm.measure.{name} instead")
    return wanted & COLLAPSE


def _classifier(weight: Any, bias: Any, dim: int) -> tuple[tuple[np.ndarray, np.ndarray] | None, int | None]:
    if weight is None:
        if bias is not None:
            raise RequestError("bias without weight measures nothing; pass the classifier's weight as well")
        return None, None
    w = as_matrix(weight, (None, dim), "weight")
    b = np.zeros(len(w)) if bias is None else as_matrix(bias, (len(w),), "bias")
    return (w, b), len(w)


def _gram(predicted: Any, classes: int) -> np.ndarray | None:
    return None if predicted is None else as_matrix(predicted, (classes, classes), "predicted_gram")


def _ood_mean(ood: Any, dim: int) -> np.ndarray | None:
    if ood is None:
        return None
    if np.ndim(ood) == 1:
        return as_matrix(ood, (dim,), "ood")
    return as_matrix(ood, (None, dim), "ood").mean(0)
