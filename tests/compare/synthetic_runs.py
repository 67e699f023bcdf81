"""Run folders with known numbers, written through `ufm.record`: what the tests of `compare` judge instead of a training."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from compare.papers import paper
from ufm.record import Run

ENVIRONMENT = {"version": "0.1.0", "commit": "abc1234", "dirty": False, "python": "3.11", "argv": ["empirical", "run"]}
EPOCHS = (0, 1, 10, 100)


def hui_setting(**changes):
    """The setting of the demo's cell, as a resolved config would hold it."""
    options = paper("hui2022").scales["demo"].cells["collapse"]["options"]
    return {**options, "label_noise": 0.0, **changes}


def rows_of_seed(
    seed, *, train_end=5e-4, test_end=0.03, start=2.0, error=0.01, classes=10, epochs=EPOCHS, layers=("penultimate",)
):
    """Rows of one training in which NC1_train falls to `train_end` and NC1_test to `test_end`; the identity holds exactly."""
    rng = np.random.default_rng(seed)
    rows = []
    for position, epoch in enumerate(epochs):
        share = position / (len(epochs) - 1)
        for depth, layer in enumerate(layers):
            soften = 3.0 ** (len(layers) - 1 - depth)
            train = start ** (1 - share) * (train_end * soften) ** share * np.exp(0.1 * rng.standard_normal())
            test = (1.1 * start) ** (1 - share) * (test_end * soften) ** share * np.exp(0.1 * rng.standard_normal())
            err = 0.6 ** (1 - share) * error**share
            between, cross = 2 * err, 0.1 * err
            values = [
                ("train", "self", "nc1_pinv", train),
                ("train", "self", "nc2_etf_weights", train**0.5),
                ("test", "self", "nc1_pinv", 0.9 * test),
                ("test", "train", "nc1_pinv_strong", test),
                ("test", "train", "nc1_pinv_weak", test - between - cross),
                ("test", "train", "nc1_pinv_between", between),
                ("test", "train", "nc1_pinv_cross", cross),
                ("test", "train", "ncc_error", err),
                ("test", "train", "ncc_error_between", err),
            ]
            for split, centres, metric, value in values:
                rows.append(_row(seed, epoch, split, layer, centres, metric, float(value)))
        rows.append(_row(seed, epoch, "test", "network", "", "samples", 797))
        rows.append(_row(seed, epoch, "test", "network", "", "error", 0.6 ** (1 - share) * error**share))
    return rows


def _row(seed, epoch, split, layer, centres, metric, value):
    return {
        "seed": seed, "epoch": epoch, "step": epoch * 8, "split": split, "layer": layer,
        "centres": centres, "metric": metric, "value": value,
    }  # fmt: skip


def write_training(
    root, *, seeds=range(5), setting=None, name="digits", study="collapse", finish=True, rows=None, tensors=None, **numbers
):
    """Write one training setting with its seeds; return the setting's folder."""
    setting = hui_setting() if setting is None else setting
    folder = Path(root)
    for seed in seeds:
        with Run.create(root, study, name, setting, seed=seed, environment=ENVIRONMENT) as run:
            run.append("metrics.jsonl", rows if rows is not None else rows_of_seed(seed, **numbers))
            if tensors is not None:
                run.write_tensors("tensors.safetensors", tensors)
            if finish:
                run.finish({"status": "done"})
            folder = run.setting_path
    return folder
