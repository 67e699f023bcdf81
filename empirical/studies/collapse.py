"""The collapse study: train a classifier and measure NC1..NC5 on train and test while it is trained."""

from __future__ import annotations

from empirical.experiment import Experiment
from empirical.studies import Study

STUDY = Study(
    name="collapse",
    summary="neural collapse on train and on test while a network is trained",
    spec=Experiment,
    check="empirical.collapse:check",
    train="empirical.collapse:train",
    look="empirical.collapse:Look",
    columns={
        "train NC1": ("train/penultimate/self/nc1_pinv", 1.0),
        "test NC1": ("test/penultimate/train/nc1_pinv_strong", 1.0),
        "2 err": ("test/penultimate/train/ncc_error", 2.0),
        "train error": ("train/network/self/error", 1.0),
        "test error": ("test/network/self/error", 1.0),
    },
    examples=(
        ("empirical run collapse --preset digits --seeds 0:5", "5 networks, 15 s on 2 cores"),
        ("empirical run collapse --preset mnist5k --weight-decay 5e-4,2e-3", "2 networks, 1 min on 2 cores"),
    ),
)
