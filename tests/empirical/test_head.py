"""A head of several linear maps: found in the network's own graph, its ranks and the balance of its norms."""

import json

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from torch import nn

import empirical
from empirical import collapse
from empirical.experiment import Experiment
from empirical.features import plan_layers
from empirical.head import find_head, head_rows, means_rows
from empirical.models import Architecture, build
from empirical.runner import Job, work
from empirical.store import collect

EXAMPLE = torch.linspace(-1, 1, 2 * 6).view(2, 6)


def network(activation="relu", maps=4, bias=False, **changed):
    shape = {"shape": (6,), "classes": 3, "width": 5, "depth": 1, "norm": "none"} | changed
    return build("mlp", Architecture(**shape, head="deep", head_depth=maps, bias=bias, head_activation=activation), 0)


def test_a_relu_head_is_found_with_the_layers_that_all_measures():
    net = network()
    plan = plan_layers(net, EXAMPLE, "all")
    head = find_head(net, EXAMPLE, plan.classifier)
    assert head.paths == ("head.0.0", "head.1.0", "head.2.0", "classifier") and not head.linear and head.reason == ""
    assert head.layers == ("head.0", "head.1", "penultimate", "logits") and set(head.layers) <= set(plan.names)
    h = torch.linspace(-1, 1, 15).view(3, 5)
    by_hand = h
    for weight in head.weights(net)[:-1]:
        by_hand = torch.relu(by_hand @ weight.T)
    assert torch.allclose(net.classifier(net.head(h)), by_hand @ head.weights(net)[-1].T)


def test_a_linear_head_is_found_and_the_depth_bounds_it():
    net = network("linear")
    head = find_head(net, EXAMPLE, "classifier")
    assert head.paths == ("head.0", "head.1", "head.2", "classifier") and head.linear
    assert find_head(net, EXAMPLE, "classifier", 2).layers == ("penultimate", "logits")


def test_the_run_ends_at_a_bias_a_norm_a_fork_and_a_smooth_activation():
    class Skip(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = (nn.Linear(6, 6, bias=False) for _ in range(3))

        def forward(self, x):
            h = self.a(x)
            return self.c(h + self.b(h))

    tail = [nn.Linear(5, 5, bias=False), nn.LeakyReLU(0.1), nn.Linear(5, 3, bias=False)]
    for before in (nn.Linear(6, 5), nn.Sequential(nn.Linear(6, 5, bias=False), nn.BatchNorm1d(5))):
        assert find_head(nn.Sequential(before, *tail), EXAMPLE, "3").paths == ("1", "3")
    smooth = nn.Sequential(nn.Linear(6, 5, bias=False), nn.GELU(), *tail)
    assert find_head(smooth, EXAMPLE, "4").paths == ("2", "4")
    assert find_head(Skip(), EXAMPLE, "c").paths == ("c",)
    assert find_head(nn.Sequential(nn.Conv1d(1, 1, 1)), torch.ones(2, 1, 3), "0") is None


def split(samples=60):
    draw = torch.Generator().manual_seed(3)
    labels = torch.arange(samples) % 3
    return torch.randn(samples, 6, generator=draw) + 3 * torch.eye(6)[labels], labels


def rows_at(net, data, decay, loss=nn.functional.cross_entropy):
    plan = plan_layers(net, data[0][:2], "all")
    head = find_head(net, data[0][:2], plan.classifier)
    stored = collect(net, plan, [data], device=torch.device("cpu"))
    return {(r["layer"], r["metric"]): r for r in head_rows(head, net, plan, stored, loss=loss, decay=decay)}


def test_at_a_stationary_point_of_the_penalised_loss_everything_is_balanced():
    """scipy finds the stationary point of a linear head alone, from features that stay; with ReLU it stops on kinks."""
    from scipy.optimize import minimize

    decay, data = 0.02, split()
    net = network("linear", maps=3).double()
    data = (data[0].double(), data[1])
    maps = [m.weight for m in net.modules() if isinstance(m, nn.Linear) and m.bias is None]
    with torch.no_grad():
        features = net.blocks(data[0])

    def objective(x):
        at = 0
        for weight in maps:
            weight.data = torch.from_numpy(x[at : at + weight.numel()]).view_as(weight).clone()
            at += weight.numel()
        for weight in maps:
            weight.grad = None
        value = nn.functional.cross_entropy(net.classifier(net.head(features)), data[1])
        value = value + decay / 2 * sum(w.square().sum() for w in maps)
        value.backward()
        return value.item(), torch.cat([w.grad.flatten() for w in maps]).numpy()

    start = np.concatenate([1.5 * w.detach().numpy().ravel() for w in maps])
    rows = rows_at(net, data, decay)
    assert rows["network", "norm_balance"]["value"] > 0.05  # not where it started
    found = minimize(objective, start, jac=True, method="L-BFGS-B", options={"maxiter": 3000, "ftol": 1e-16, "gtol": 1e-10})
    objective(found.x)
    rows = rows_at(net, data, decay)
    assert found.fun < 0.8 * np.log(3) and rows["head.0", "head_norm"]["value"] > 0.1  # not the zero solution
    assert rows["network", "norm_balance"]["value"] < 1e-5
    assert rows["network", "norm_balance_fit"]["value"] < 1e-5
    assert max(row["value"] for (_, metric), row in rows.items() if metric == "norm_balance_neurons") < 1e-4
    assert max(row["value"] for (_, metric), row in rows.items() if metric == "balancedness") < 1e-4
    assert rows["logits", "head_norm"]["value"] == pytest.approx(np.linalg.norm(maps[-1].detach().numpy()))


def test_a_relu_head_of_equal_maps_is_balanced_where_its_scale_is_stationary():
    """W_l = c I and features e_k: logits c^3 e_k; d/dc [log(1 + 2 e^{-c^3}) + (3 decay/2) 3 c^2] = 0 by scipy's root finder."""
    from scipy.optimize import brentq

    decay = 0.01
    scale = brentq(lambda c: 9 * decay * c - 6 * c**2 / (np.exp(c**3) + 2), 0.8, 3, xtol=1e-14)
    net = network("relu", maps=3, shape=(3,), depth=0).double()
    with torch.no_grad():
        for weight in find_head(net, torch.eye(3).double(), "classifier").weights(net):
            weight.copy_(scale * torch.eye(3).double())
    data = torch.eye(3).double().repeat(2, 1), torch.arange(6) % 3
    rows = rows_at(net, data, decay)
    assert rows["network", "norm_balance"]["value"] < 1e-14 and rows["penultimate", "norm_balance_neurons"]["value"] < 1e-14
    assert rows["network", "norm_balance_fit"]["value"] < 1e-9
    assert rows_at(net, data, 2 * decay)["network", "norm_balance_fit"]["value"] == pytest.approx(0.5)
    assert rows["head.0", "head_norm"]["value"] == pytest.approx(scale * 3**0.5)
    assert rows["head.0", "means_cosine_most"]["value"] == 0 and rows["head.0", "means_rank_effective"]["value"] == pytest.approx(
        3
    )


def test_a_bias_leaves_the_ranks_and_says_why_there_is_no_balance():
    rows = rows_at(network(bias=True), split(), 0.1)
    for place in (("network", "norm_balance"), ("network", "norm_balance_fit"), ("penultimate", "norm_balance_neurons")):
        assert rows[place]["value"] is None and "--no-bias" in rows[place]["reason"]
    assert rows["logits", "head_rank_numeric"]["value"] == 3
    assert "weight decay is 0" in rows_at(network(), split(), 0.0)["network", "norm_balance_fit"]["reason"]


def test_ranks_and_cosines_of_class_means_by_hand():
    means = torch.tensor([[2.0, 0, 0], [0, 1, 0], [1, 1, 0]])
    found = dict(means_rows(means.repeat(4, 1), torch.arange(12) % 3, 3))
    assert found["means_rank_numeric"] == 2
    assert found["means_cosine_most"] == pytest.approx(0.5**0.5)
    assert found["means_cosine"] == pytest.approx(2 * 0.5**0.5 / 3)


def test_a_training_writes_the_rows_and_keeps_the_spectra(tmp_path):
    options = {"dataset": "gaussian", "classes": 3, "input_dim": 6, "train_per_class": 10, "test_per_class": 5}
    small = {"width": 6, "depth": 1, "norm": "none", "steps": 20, "batch_size": 30, "layers": "all", "measure_at": "1"}
    experiment = Experiment(
        **options, **small, head="deep", head_depth=3, head_activation="relu", bias=False, loss="mse"
    ).resolved()
    assert collapse.check(experiment, 0).parameters > 0
    job = Job("collapse", experiment, 0, str(tmp_path), "cpu")
    assert work(job).exit == 0
    rows = [json.loads(line) for line in (job.path / "metrics.jsonl").read_text().splitlines()]
    last = {(r["layer"], r["metric"]): r["value"] for r in rows if r["step"] == 20 and r["split"] == "train"}
    assert 0 < last["network", "norm_balance"] < 1 and last["network", "norm_balance_fit"] > 0
    arrays = load_file(job.path / "tensors.safetensors")
    norms = [last[name, "head_norm"] for name in ("head.0", "penultimate", "logits")]
    for name, norm in zip(("head.0", "penultimate", "logits"), norms, strict=True):
        for key in ("spectrum", "rows", "columns"):
            assert np.linalg.norm(arrays[f"{name}/weight/{key}"]) == pytest.approx(norm, rel=1e-6)
    squares = np.square(norms)
    assert last["network", "norm_balance"] == pytest.approx(np.abs(squares / squares.mean() - 1).max(), rel=1e-6)


def test_anybodys_network_brings_the_rows_and_the_recorder_keeps_them(tmp_path):
    data, net = split(), network("relu", maps=3)
    rows = empirical.measure(net, [data], [data])
    layers = [r["layer"] for r in rows if r["metric"] == "head_norm"]
    assert layers == ["head.0", "penultimate", "logits"]
    assert rows.value("norm_balance", split="train", layer="network") > 0
    reason = next(r["reason"] for r in rows if r["metric"] == "norm_balance_fit")
    assert "not known" in reason
    with empirical.Recorder(tmp_path, net, [data], [data], config={"weight_decay": 0.1}) as recorder:
        recorded = recorder.epoch(0)
        folder = recorder.path
    assert recorded.value("norm_balance_fit", split="train", layer="network") > 0
    assert "head.0/weight/spectrum" in load_file(folder / "tensors.safetensors")
    plain = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    assert not any(r["metric"].startswith(("head", "norm_balance")) for r in empirical.measure(plain, [data], [data]))
