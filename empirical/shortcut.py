"""What the shortcut study does: it measures as collapse does, and beside it what the network makes of the spurious attribute."""

from __future__ import annotations

from typing import Any

import torch

from empirical import collapse
from empirical.cost import Cost
from empirical.data.coloured import conflicting
from empirical.data.split import Split
from empirical.primes import check_attribute, stands_for_classes
from empirical.store import Stored, full_float32
from empirical.studies.shortcut import Shortcut
from empirical.train import Report, Training, load_data, run_training
from ufm import measure
from ufm.interrupt import Stop
from ufm.record import Run

LAYER = "penultimate"
BY_ATTRIBUTE = ("nc1_pinv", "cdnv", "ncc_error")
ABOUT_TRAIN = ("nc1_pinv_strong", "cdnv_strong", "ncc_error")


def check(experiment: Shortcut, seed: int) -> Cost:
    """Return what the training will cost; RequestError for anything that cannot be done."""
    for data in load_data(experiment, seed)[:2]:
        check_attribute(data)
    return collapse.check(experiment, seed)


class Look:
    """Measures the labels' collapse, the attribute's collapse and the accuracy by group, all from one forward pass a split."""

    def __init__(self) -> None:
        self.labels = collapse.Look()

    def rows(self, training: Training) -> list[dict[str, Any]]:
        """Return every row of the network as it is now, without primes: as it is at test."""
        stored = self.labels.stored(training)
        rows = self.labels.rows_of(training, *stored)
        for split, kept, data in zip(("train", "test"), stored, (training.train, training.test), strict=True):
            rows += accuracy_rows(split, kept.predicted, data, training.experiment.coarse)
        return rows + attribute_rows(training, stored)

    def tensors(self, training: Training) -> dict[str, Any]:
        """Return what collapse keeps, and by split every sample's attribute, and whether it is its class's, (N,) uint8."""
        kept = self.labels.tensors(training)
        for split, data in (("train", training.train), ("test", training.test)):
            kept[f"{split}/attribute"] = check_attribute(data).cpu().numpy()
            kept[f"{split}/aligned"] = (~conflicting(data)).cpu().numpy().astype("uint8")
        return kept


def accuracy_rows(split: str, predicted: torch.Tensor, data: Split, coarse: tuple[int, ...] | None) -> list[dict[str, Any]]:
    """Return the shares of samples by group; a group without samples has a null and the reason.

    coarse: sizes of the groups of digits that are the classes of `data`; None: each digit is one.

    accuracy_aligned, accuracy_conflicting: the right share of samples whose attribute is their class's, is another's.
    accuracy_unbiased: aligned / A + (1 - 1/A) conflicting: the accuracy where all A values of the attribute are equally likely
    in every class. attribute_followed: of the conflicting samples, the share called what their attribute stands for;
    left out where that is no one class.
    """
    attribute, against = check_attribute(data), conflicting(data)
    right, values = predicted == data.labels, int(data.attributes or 0)
    aligned, opposed = _share(right, ~against), _share(right, against)
    shares = {"accuracy_aligned": aligned, "accuracy_conflicting": opposed, "accuracy_unbiased": None}
    if aligned is not None and opposed is not None:
        shares["accuracy_unbiased"] = aligned / values + (1 - 1 / values) * opposed
    if stands_for_classes(data, coarse):
        shares["attribute_followed"] = _share(predicted == attribute, against)
    place = {"split": split, "layer": "network", "centres": "self"}
    return [
        {**place, "metric": metric, "value": value} | ({} if value is not None else {"reason": f"no {split} sample of a group"})
        for metric, value in shares.items()
    ]


def _share(what: torch.Tensor, group: torch.Tensor) -> float | None:
    number = int(group.sum())
    return int((what & group).sum()) / number if number else None


def attribute_rows(training: Training, stored: tuple[Stored, Stored]) -> list[dict[str, Any]]:
    """Return NC1, CDNV and the nearest-mean error of the last features with the attribute in the place of the label.

    Named `attribute_NC1..`; train about its own means, test about its own and about train's.
    """
    train, test = (
        (kept.features[LAYER], check_attribute(data)) for kept, data in zip(stored, (training.train, training.test), strict=True)
    )
    classes = int(training.train.attributes or 0)
    with full_float32():
        reference = measure.ClassMoments.of(*train, classes=classes)
        found = {
            "train": measure.collapse(*train, classes=classes, names=BY_ATTRIBUTE),
            "test": measure.collapse(*test, classes=classes, names=(*BY_ATTRIBUTE, *ABOUT_TRAIN), reference=reference),
        }
    return [
        {"split": split, "layer": LAYER, **row, "metric": f"attribute_{row['metric']}"}
        for split, measured in found.items()
        for row in measured.to_rows()
    ]


def train(
    experiment: Shortcut, run: Run, *, device: torch.device, threads: int, stop: Stop | None, report: Report | None
) -> dict[str, Any]:
    """Train one network to the end and return the run's result."""
    look = Look()
    return run_training(
        experiment, run, observe=look.rows, keep=look.tensors, device=device, threads=threads, stop=stop, report=report
    )
