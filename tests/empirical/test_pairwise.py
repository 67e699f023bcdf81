"""Every architecture on every family of data: trained for two steps, measured at every layer, and the identities of test NC1."""

import dataclasses
import hashlib
import math

import numpy as np
import pytest
import torch
from test_public_data import batch, pixels

from empirical.collapse import check, train
from empirical.data import cifar
from empirical.experiment import Experiment
from empirical.features import plan_layers
from empirical.models import MODELS
from empirical.train import build_network, load_data
from ufm.errors import RequestError
from ufm.record import Run

OWN = ("mlp", "convnet")
FAMILIES = ("packaged", "generated", "public", "folder")
PARTS = ("weak", "between", "cross")


def need(model):
    if model not in OWN:
        pytest.importorskip("torchvision", reason="torchvision (extra 'vision') is not installed")


@pytest.fixture
def dataset(request, tmp_path, monkeypatch):
    """The name of a small data set of the family, put on disk where the family reads files."""
    if request.param == "public":
        folder = tmp_path / "cifar10" / "cifar-10-batches-py"
        folder.mkdir(parents=True)
        known = []
        for name in ("data_batch_1", "test_batch"):
            content = batch(pixels(20, 3, 32, 32), list(range(10)) * 2)
            (folder / name).write_bytes(content)
            known.append({name: hashlib.md5(content).hexdigest()})
        monkeypatch.setenv("UFM_DATA", str(tmp_path))
        monkeypatch.setitem(cifar.FILES, "cifar10", ("cifar-10-batches-py", "labels", *known))
        return "cifar10"
    if request.param == "folder":
        from PIL import Image

        side = 32 if request.node.callspec.params["model"].startswith("vgg") else 8
        images = pixels(2, 3, 8, side, side, 3)
        for p, part in enumerate(("train", "test")):
            for k, name in enumerate(("ant", "bee", "cat")):
                (tmp_path / "own" / part / name).mkdir(parents=True)
                for i, image in enumerate(images[p, k]):
                    Image.fromarray(image).save(tmp_path / "own" / part / name / f"{i}.png")
        return f"folder:{tmp_path / 'own'}"
    return {"packaged": "photos", "generated": "gaussian"}[request.param]


def experiment(dataset, model, **more):
    small = {"width": 16, "depth": 2} if model in OWN else {}
    sizes = {"train_per_class": 8, "test_per_class": 12} if dataset == "gaussian" else {}
    if dataset == "photos":
        sizes = {"train_per_class": 12}
    budget = {"steps": 2, "batch_size": 12, "lr": 0.01}
    return Experiment(dataset=dataset, model=model, **(small | sizes | budget | more)).resolved()


def narrow_layers(setting):
    """First, middle and last of the layers of `--layers all` with at most 512 features: wider ones cost seconds each."""
    data = load_data(setting, 0)[0]
    plan = plan_layers(build_network(setting, data, 0), data.batch(slice(0, 2))[0], "all")
    names = [layer.name for layer in plan.layers if layer.dim <= 512]
    return ",".join(dict.fromkeys([names[0], names[len(names) // 2], names[-2], names[-1]]))


def trained(tmp_path, setting):
    with Run.create(tmp_path / "runs", "collapse", "x", setting.setting(), seed=0, environment={}) as run:
        result = train(setting, run, device=torch.device("cpu"), threads=1, stop=None, report=None)
        return result, run.rows("metrics.jsonl"), run.read_tensors("tensors.safetensors")


def check_identities(rows):
    """strong = weak + between + cross at every state and layer; strong >= err_B / 2 where the train means have rank K-1."""
    points = {}
    for row in rows:
        if row["split"] == "test" and row["centres"] == "train":
            points.setdefault((row["step"], row["layer"]), {})[row["metric"]] = row["value"]
    full_rank = 0
    for place, value in points.items():
        strong, terms = value["nc1_pinv_strong"], [value[f"nc1_pinv_{part}"] for part in PARTS]
        assert math.fsum(terms) == pytest.approx(strong, rel=1e-6), place
        if value["nc1_pinv_between"] == pytest.approx(2 * value["ncc_error"], rel=1e-4, abs=1e-9):
            full_rank += 1
            assert strong >= value["ncc_error_between"] / 2 - 1e-9, place
    return len(points), full_rank


LARGE = ("resnet34", "resnet50", "vgg13")  # as their smaller sisters, so not on the hundred test crops of the photographs
PAIRS = [(model, family) for model in MODELS for family in FAMILIES if not (model in LARGE and family == "packaged")]


@pytest.mark.parametrize(("model", "dataset"), PAIRS, indirect=["dataset"])
def test_every_architecture_on_every_family(tmp_path, model, dataset):
    need(model)
    setting = experiment(dataset, model)
    if dataset == "gaussian" and model != "mlp":
        with pytest.raises(RequestError, match="needs images"):
            check(setting, 0)
        return
    setting = dataclasses.replace(setting, layers=narrow_layers(setting))
    assert check(setting, 0).steps == 2
    result, rows, _ = trained(tmp_path, setting)
    assert result["status"] == "finished" and result["measured"] == 2
    assert all(row["value"] is None or math.isfinite(row["value"]) for row in rows)
    layers = {row["layer"] for row in rows}
    assert layers == {*setting.layers.split(","), "network"} and len(layers) >= 4
    number, full_rank = check_identities(rows)
    assert number == 2 * (len(layers) - 1) and full_rank > number / 2
    before, after = ([r["value"] for r in rows if r["metric"] == "nc1_pinv" and r["step"] == s] for s in (0, 2))
    assert before != after  # two steps were made


@pytest.mark.parametrize("model", [name for name in MODELS if name not in LARGE])
@pytest.mark.parametrize("head", [{"head": "etf"}, {"bias": False}, {"head": "deep", "head_depth": 3, "head_activation": "relu"}])
@pytest.mark.parametrize("dataset", ["folder"], indirect=True)
def test_every_architecture_with_every_head(tmp_path, model, head, dataset):
    need(model)
    setting = experiment(dataset, model, **head)
    result, rows, kept = trained(tmp_path, setting)
    assert result["status"] == "finished"
    assert ("bias" in kept) == (head.get("head") == "deep")
    gram = kept["weight"] @ kept["weight"].T
    frame = (np.eye(3) - 1 / 3) * 3 / 2  # of the three classes
    assert np.allclose(gram, frame, atol=1e-6) == (head.get("head") == "etf")  # still after the training
    check_identities(rows)
