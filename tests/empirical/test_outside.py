"""Out-of-distribution samples: their form, what is refused, and the NC5 that comes of them."""

import numpy as np
import pytest
import torch

from empirical import data
from empirical.collapse import check, train
from empirical.experiment import Experiment
from empirical.train import set_up
from ufm.errors import RequestError
from ufm.record import Run
from ufm.seeds import stream


def info_of(name, **more):
    return data.load(name, seed=0, **more)[2]


def test_images_are_brought_to_the_trainings_size_and_normalised_by_its_numbers():
    info = info_of("digits")
    samples, facts = data.outside("mnist5k", info, seed=0)
    raw = data.load("mnist5k", seed=0)[1].inputs.double().numpy() / 255
    assert samples.inputs.shape == (1000, 1, 8, 8) and facts["shape"] == [1, 28, 28] and facts["samples"] == 1000
    resized = samples.inputs.double().numpy()
    assert resized.min() >= 0 and resized.max() <= 1
    inner = raw[:, :, 4:24, 4:24].mean(axis=(1, 2, 3))  # an antialiased small image keeps the light of the large one
    assert np.corrcoef(resized[:, :, 1:7, 1:7].mean(axis=(1, 2, 3)), inner)[0, 1] > 0.99
    assert resized.mean() == pytest.approx(raw.mean(), rel=0.02)
    prepared = samples.batch(slice(None))[0].double().numpy()
    mean, std = (info["normalisation"][key][0] for key in ("mean", "std"))
    assert np.allclose(prepared, (resized - mean) / std, atol=1e-5)


def test_channels_are_averaged_or_repeated():
    grey, _ = data.outside("photos", info_of("digits"), seed=0)
    coloured, _ = data.outside("digits", info_of("photos"), seed=0)
    crops = data.load("photos", seed=0)[1].inputs.float() / 255
    assert grey.inputs.shape == (120, 1, 8, 8) and coloured.inputs.shape == (797, 3, 32, 32)
    assert grey.inputs.mean().item() == pytest.approx(crops.mean().item(), rel=1e-3)
    assert torch.equal(coloured.inputs[:, 0], coloured.inputs[:, 2])


def test_the_same_size_is_left_as_it_is():
    samples, _ = data.outside("photos", info_of("photos") | {"name": "another"}, seed=0)
    assert torch.equal(samples.inputs, data.load("photos", seed=0)[1].inputs.float() / 255)


def test_noise_is_normal_in_the_networks_own_units_and_follows_the_seed():
    info = info_of("digits")
    one, facts = data.outside("noise", info, seed=1)
    prepared = one.batch(slice(None))[0]
    assert prepared.shape == (2000, 1, 8, 8) and abs(prepared.mean()) < 0.01 and abs(prepared.std() - 1) < 0.01
    assert facts["digest"] == data.outside("noise", info, seed=1)[1]["digest"] != data.outside("noise", info, seed=2)[1]["digest"]
    assert np.array_equal(one.inputs.numpy(), stream(1, "noise").standard_normal((2000, 1, 8, 8)).astype(np.float32))


@pytest.mark.parametrize(
    ("dataset", "ood", "words"),
    [
        ("digits", "digits", "the training's own data"),
        ("digits", "nois", "did you mean 'noise'"),
        ("digits", "folder:/nowhere", "no such folder"),
        ("gaussian", "mnist5k", r"shape \(1, 28, 28\), the training's \(32,\); use --ood noise"),
        ("digits", "cifar10", "empirical data fetch cifar10"),
    ],
)
def test_what_cannot_be_outside_is_refused_before_training(dataset, ood, words, tmp_path, monkeypatch):
    monkeypatch.setenv("UFM_DATA", str(tmp_path))
    with pytest.raises(RequestError, match=words):
        check(Experiment(dataset=dataset, ood=ood).resolved(), 0)


def test_nc5_of_a_training_is_the_definition(tmp_path):
    """mean_k |cos(mu_k - mu_C, mu_OOD - mu_C)| from the network's own features, in numpy."""
    setting = Experiment(
        dataset="gaussian", train_per_class=20, test_per_class=10, ood="noise", width=12, depth=2, steps=5, measure_at="1"
    ).resolved()
    with Run.create(tmp_path, "collapse", "x", setting.setting(), seed=3, environment={}) as run:
        result = train(setting, run, device=torch.device("cpu"), threads=1, stop=None, report=None)
        rows = run.rows("metrics.jsonl")
    at_start = set_up(setting, 3, torch.device("cpu"))
    network = at_start.network.eval()

    def features(split):
        with torch.no_grad():
            return network.blocks(split.batch(slice(None))[0]).double().numpy()

    outside, facts = data.outside("noise", at_start.info, seed=3)
    for split, name in ((at_start.train, "train"), (at_start.test, "test")):
        h, y = features(split), split.labels.numpy()
        means = np.stack([h[y == k].mean(0) for k in range(4)])
        centred, other = means - means.mean(0), features(outside).mean(0) - means.mean(0)
        expected = np.abs(centred @ other / np.linalg.norm(centred, axis=1) / np.linalg.norm(other)).mean()
        found = [r["value"] for r in rows if r["metric"] == "nc5" and r["split"] == name and r["step"] == 0]
        assert found == [pytest.approx(expected, rel=1e-5)]
    assert result["data"]["ood"] == facts
    steps = {r["step"] for r in rows if r["metric"] == "nc5"}
    assert steps == {r["step"] for r in rows}


def test_a_setting_without_it_keeps_its_folder():
    assert "ood" not in Experiment().setting() and Experiment(ood="noise").setting()["ood"] == "noise"
