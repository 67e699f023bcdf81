"""What the transfer study does: it measures the coarse task as collapse does, and probes the fine labels behind it."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import torch

from empirical import collapse
from empirical.cost import Cost
from empirical.data.split import Split
from empirical.features import Plan
from empirical.probe import finetune, probe_features
from empirical.schedule import measuring_steps
from empirical.store import Stored, full_float32
from empirical.studies.transfer import FEATURE_PROBES, Transfer
from empirical.train import Report, Training, build_network, clock_of, load_data, run_training
from ufm import measure
from ufm.errors import RequestError
from ufm.interrupt import Stop
from ufm.record import Run

LAYER = "penultimate"
SHOTS = 5  # of the few-shot formula: the common benchmark has 1 and 5
COVARIANCE_NUMBERS = 2**26  # K d^2: above this the covariances of the fine classes are not formed


def check(experiment: Transfer, seed: int) -> Cost:
    """Return what the training will cost, without the probes; RequestError for anything that cannot be done."""
    from empirical.features import plan_layers

    cost = collapse.check(experiment, seed)
    data, _, _ = load_data(experiment, seed)
    measuring_steps(experiment.probe_at, clock_of(experiment, len(data)), "--probe-at")
    if "finetune" in experiment.probes:
        network = build_network(experiment, data, seed)
        plan = plan_layers(network, data.batch(slice(0, 2))[0], LAYER.split(), None)
        if plan.classifier is None:
            raise RequestError("--probe finetune replaces a linear classifier; this network has none: leave finetune out")
    return cost


class Look:
    """Measures the coarse task and, at the epochs asked for, the fine one; both from one forward pass."""

    def __init__(self) -> None:
        self.coarse = collapse.Look()
        self.probed: frozenset[int] | None = None

    def rows(self, training: Training) -> list[dict[str, Any]]:
        """Return every row of the network as it is now."""
        experiment: Any = training.experiment
        plan = self.coarse.of(training)
        stored = list(self.coarse.stored(training))
        if self.probed is None:
            self.probed = frozenset(measuring_steps(experiment.probe_at, training.clock, "--probe-at"))
        probed = training.step in self.probed
        rows = self.coarse.rows_of(training, *stored, whole=probed)  # the effective rank is shown beside the probes
        if probed:
            rows += fine_rows(training, stored) + probe_rows(training, plan, stored)
        return rows

    def tensors(self, training: Training) -> dict[str, Any]:
        """Return what collapse keeps, and the singular values of all centred train and test features, (min(N, d),)."""
        kept = self.coarse.tensors(training)
        for split, stored in zip(("train", "test"), self.coarse.stored(training), strict=True):
            features = stored.features[LAYER].double()
            kept[f"{LAYER}/{split}/feature_spectrum"] = torch.linalg.svdvals(features - features.mean(0)).cpu().numpy()
        return kept


def probe_rows(training: Training, plan: Plan, stored: list[Stored]) -> list[dict[str, Any]]:
    """Return the accuracy of every probe asked for on the fine labels; the network stays as it is."""
    wanted = training.experiment.probes  # type: ignore[attr-defined]
    train, test = (fine_split(data) for data in (training.train, training.test))
    rows = probe_features(
        (stored[0].features[LAYER], train.labels),
        (stored[1].features[LAYER], test.labels),
        classes=train.classes,
        probes=[name for name in wanted if name in FEATURE_PROBES],
        seed=training.seed,
    )
    if "finetune" in wanted:
        rows += finetune(training.network, plan, train, test, classes=train.classes, seed=training.seed)
    return [{"layer": LAYER, "centres": "self", **row} for row in rows]


def fine_split(data: Split) -> Split:
    """Return the same samples with the labels from before the coarse grouping."""
    if data.fine is None:
        raise RequestError("the data has no fine labels; give --coarse")
    return dataclasses.replace(data, labels=data.fine, classes=int(data.fine.max()) + 1, fine=None)


def fine_rows(training: Training, stored: list[Stored]) -> list[dict[str, Any]]:
    """Return how the fine classes lie in the features: NC1, CDNV and its directional form, few-shot error and bound.

    All about each split's own means, names with `fine_` before them; the pairwise ones are means over ordered pairs.
    """
    rows = []
    for split, kept, data in (("train", stored[0], training.train), ("test", stored[1], training.test)):
        features, labels = kept.features[LAYER], fine_split(data).labels
        place = {"split": split, "layer": LAYER, "centres": "self"}
        with full_float32():
            measured = measure.collapse(features, labels, names=("nc1_pinv", "cdnv", "ncc_error"))
            pairs = {"cdnv_directional": measure.directional_cdnv(features, labels), **_few_shot(features, labels)}
        rows += [{**place, **row, "metric": f"fine_{row['metric']}"} for row in measured.to_rows()]
        for name, matrix in pairs.items():
            value = float(np.nanmean(matrix)) if np.isfinite(matrix).any() else math.nan
            row: dict[str, Any] = {**place, "metric": f"fine_{name}", "value": value if math.isfinite(value) else None}
            rows.append(row if math.isfinite(value) else {**row, "reason": "two fine class means coincide"})
    return rows


def _few_shot(features: torch.Tensor, labels: torch.Tensor) -> dict[str, np.ndarray]:
    """Return the predicted error of nearest means from 5 samples a class and Cantelli's bound on it, each (K, K)."""
    classes = int(labels.max()) + 1
    if classes * features.shape[1] ** 2 > COVARIANCE_NUMBERS:
        return {}
    moments = measure.ClassMoments.of(features, labels)
    covariances = measure.class_covariances(features, labels)
    return {
        "few_shot_error": measure.few_shot_error(moments.means, covariances, SHOTS),
        "few_shot_bound": measure.few_shot_bound(moments.means, covariances, SHOTS),
    }


def train(
    experiment: Transfer, run: Run, *, device: torch.device, threads: int, stop: Stop | None, report: Report | None
) -> dict[str, Any]:
    """Train one network on the coarse labels, probe it on the way, and return the run's result."""
    look = Look()
    return run_training(
        experiment, run, observe=look.rows, keep=look.tensors, device=device, threads=threads, stop=stop, report=report
    )
