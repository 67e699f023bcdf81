"""The transfer study: probes of the fine labels in the run's rows, at the epochs asked for, and the same after a stop."""

import json

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestCentroid

from empirical import transfer
from empirical.experiment import from_setting
from empirical.runner import Job, attempt
from empirical.studies import study
from empirical.studies.transfer import FEATURE_PROBES, PROBES, Transfer
from empirical.train import run_training, set_up
from ufm.errors import RequestError
from ufm.interrupt import Interrupted, Stop
from ufm.provenance import environment
from ufm.record import Run

SMALL = {
    "dataset": "gaussian",
    "classes": 6,
    "coarse": (2, 3, 1),
    "width": 12,
    "depth": 2,
    "train_per_class": 20,
    "test_per_class": 15,
    "batch_size": 32,
    "epochs": 4,
    "probe": "raw,ncc,finetune",
    "probe_at": "2",
    "measure_at": "1",
}
CPU = torch.device("cpu")


def small(**changed):
    return Transfer(**(SMALL | changed)).resolved()


def rows_at(root, experiment, seed=0):
    job = Job("transfer", experiment, seed, str(root), "cpu")
    outcome = attempt(job)
    assert outcome.exit == 0, outcome.status
    return [json.loads(line) for line in (job.path / "metrics.jsonl").read_text().splitlines()], job.path


def test_probes_are_rows_beside_those_of_collapse_at_the_epochs_asked_for(tmp_path):
    rows, folder = rows_at(tmp_path, small())
    assert {r["epoch"] for r in rows} == {0, 1, 2, 4}
    probes = [r for r in rows if r["metric"].startswith("probe_")]
    assert {r["epoch"] for r in probes} == {0, 2, 4}
    assert {r["metric"] for r in probes} == {"probe_raw", "probe_ncc", "probe_finetune"}
    assert {(r["layer"], r["centres"]) for r in probes} == {("penultimate", "self")}
    assert {r["split"] for r in probes} == {"train", "test"} and all(0 <= r["value"] <= 1 for r in probes)
    assert {r["epoch"] for r in rows if r["metric"] == "nc1_pinv"} == {0, 1, 2, 4}
    with Run.open(folder) as run:
        kept = run.read_tensors("tensors.safetensors")
    assert kept["weight"].shape == (3, 12)  # trained on three coarse classes
    values = kept["penultimate/test/feature_spectrum"]
    p = values / values.sum()
    effective = [r["value"] for r in rows if r["metric"] == "rank_effective" and r["split"] == "test"][-1]
    assert np.exp(-(p[p > 0] * np.log(p[p > 0])).sum()) == pytest.approx(effective, rel=1e-4)


def test_the_rows_are_of_the_fine_classes():
    """Nearest means by scikit-learn on the features that the network has, and CDNV by hand."""
    training = set_up(small(), 3, CPU)
    rows = {(r["split"], r["metric"]): r["value"] for r in transfer.Look().rows(training)}
    training.network.eval()
    with torch.no_grad():
        features = [
            training.network.blocks(data.batch(slice(None))[0]).double().numpy() for data in (training.train, training.test)
        ]
    fine = [data.fine.numpy() for data in (training.train, training.test)]
    assert set(fine[0]) == set(range(6)) and set(training.train.labels.tolist()) == {0, 1, 2}
    score = NearestCentroid().fit(features[0], fine[0]).score(features[1], fine[1])
    assert rows["test", "probe_ncc"] == pytest.approx(score, abs=1e-9)
    means = np.stack([features[1][fine[1] == k].mean(0) for k in range(6)])
    spread = np.array([((features[1][fine[1] == k] - means[k]) ** 2).sum(1).mean() for k in range(6)])
    cdnv, along = [], []
    for i in range(6):
        for j in range(6):
            if i != j:
                d = means[i] - means[j]
                cdnv.append((spread[i] + spread[j]) / (2 * d @ d))
                along.append((((features[1][fine[1] == i] - means[i]) @ d) ** 2).mean() / (d @ d) ** 2)
    assert rows["test", "fine_cdnv"] == pytest.approx(np.mean(cdnv), rel=1e-4)
    assert rows["test", "fine_cdnv_directional"] == pytest.approx(np.mean(along), rel=1e-4)
    assert 0 < rows["test", "fine_few_shot_error"] < rows["test", "fine_few_shot_bound"] < 1


@pytest.mark.parametrize("stop_at", [3, 8])
def test_a_stopped_transfer_goes_on_to_the_same_rows(tmp_path, stop_at):
    """Probes draw from streams of their own, so that they move nothing in the training."""
    whole, _ = rows_at(tmp_path / "whole", small())
    job = Job("transfer", small(), 0, str(tmp_path / "halved"), "cpu")
    stop = Stop()
    with Run.create(
        job.root, job.study, job.experiment.name, job.experiment.setting(), seed=0, environment=environment("cpu", seed=0)
    ) as run:
        look = transfer.Look()

        def watched(training):
            if training.step >= stop_at:
                stop.signum = 15
            return look.rows(training)

        with pytest.raises(Interrupted):
            run_training(job.experiment, run, observe=watched, device=CPU, stop=stop)
    assert rows_at(tmp_path / "halved", small())[0] == whole


def test_probing_changes_no_training(tmp_path):
    """The coarse task's numbers are those of a run that was probed at other epochs and with other probes."""
    one, _ = rows_at(tmp_path / "a", small())
    other, _ = rows_at(tmp_path / "b", small(probe=",".join(FEATURE_PROBES), probe_at="1,3"))
    pick = [
        {(r["metric"], r["split"], r["layer"], r["centres"]): r["value"] for r in rows if r["epoch"] == 4}
        for rows in (one, other)
    ]
    shared = {key for key in pick[0] if not key[0].startswith("probe_") and key[0] != "loss_running"}
    assert len(shared) > 50 and all(pick[0][key] == pick[1][key] for key in shared)


def test_the_setting_finds_its_way_back():
    made = small()
    assert from_setting(study("transfer").spec, json.loads(json.dumps(made.setting()))).resolved() == made
    assert made.probes == ("raw", "ncc", "finetune") and set(FEATURE_PROBES) == set(PROBES) - {"finetune"}
    assert set(FEATURE_PROBES) == set(transfer.probe_features.__globals__["PROBES"])
    assert transfer.check(made, 0).steps == set_up(made, 0, CPU).clock.steps


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"coarse": None}, "give --coarse"),
        ({"coarse": (2, 2)}, "sum to 6"),
        ({"probe": "raw,white"}, "did you mean 'whiten'"),
        ({"probe": ""}, "--probe ''"),
        ({"probe_at": "1,99"}, r"--probe-at 1,99: epochs must lie in 0\.\.4"),
        ({"probe_at": "often"}, "--probe-at 'often' is not known"),
        ({"layers": "blocks.0"}, "add penultimate"),
    ],
)
def test_wrong_requests_are_one_line(changed, message):
    with pytest.raises(RequestError, match=message) as caught:
        transfer.check(small(**changed), 0)
    assert "\n" not in str(caught.value)
