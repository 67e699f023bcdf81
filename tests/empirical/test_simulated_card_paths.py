"""Every other way onto a GPU, on a simulated card: transfer, stacks, other people's networks, theory, commands, benchmarks."""

import importlib
import json
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from command_line import Shell
from simulated_card import HERE, CardTensor, Machine
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import empirical
from empirical import stacked
from empirical import train as loop
from empirical.__main__ import _load
from empirical.collapse import Look
from empirical.distributed import Team
from empirical.experiment import Experiment
from empirical.runner import Job, attempt
from empirical.stacked import Stack, run_stack
from empirical.studies import study
from empirical.studies.transfer import Transfer
from ufm.problem import Problem
from ufm.record import Run
from ufm.solve import solve_many
from ufm.systems import SYSTEMS, Task
from ufm.tables import load, resolve_target

SMALL = {
    "dataset": "gaussian",
    "width": 12,
    "depth": 2,
    "train_per_class": 20,
    "test_per_class": 10,
    "batch_size": 32,
    "epochs": 2,
}
DIGITS = {"dataset": "digits", "model": "convnet", "width": 4, "depth": 2, "train_per_class": 8, "batch_size": 32, "epochs": 2}


@pytest.fixture
def card(monkeypatch):
    """A machine with one simulated card."""
    with Machine().installed(monkeypatch) as machine:
        yield machine


def assert_same(there, here, rel=1e-4):
    assert len(there) == len(here) > 0
    for one, other in zip(there, here, strict=True):
        assert {k: v for k, v in one.items() if k != "value"} == {k: v for k, v in other.items() if k != "value"}
        assert one["value"] == (None if other["value"] is None else pytest.approx(other["value"], rel=rel, abs=1e-6)), one


# --- the card itself -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("work", "error"),
    [
        (lambda x: x + torch.ones(3), "two devices"),
        (lambda x: torch.stack([x[0], torch.ones(3)]), "two devices"),
        (lambda x: nn.functional.linear(x, torch.ones(2, 3)), "two devices"),
        (lambda x: nn.functional.cross_entropy(x, torch.tensor([0, 1])), "two devices"),
        (lambda x: torch.ones(2, 3)[x > 0], "indices should be"),
        (lambda x: x.numpy(), "can't convert cuda"),
        (lambda x: np.asarray(x), "can't convert cuda"),
        (lambda x: x.long() @ x.long().T, "not implemented"),
        (lambda x: torch.randn(2, device="cuda", generator=torch.Generator()), "generator"),
        (lambda x: x.to("cuda:1"), "invalid device"),
        (lambda x: torch.empty(2**40, device="cuda"), "memory"),
    ],
    ids=["sum", "stack", "linear", "loss", "index", "numpy", "asarray", "integers", "generator", "second card", "memory"],
)
def test_the_card_refuses_what_a_card_refuses(card, work, error):
    with pytest.raises((RuntimeError, TypeError), match=error):
        work(torch.ones(2, 3, device="cuda"))


def test_the_card_takes_what_a_card_takes_and_counts_the_waiting(card):
    x = torch.arange(6.0).view(2, 3).to("cuda")
    assert x.device == HERE and x.is_cuda and isinstance(x + torch.tensor(2.0), CardTensor) and not card.waits
    assert x[torch.tensor([1])].tolist() == x[[1]].tolist() == [[3, 4, 5]] and card.sent["index"] == 2
    assert x.new_tensor([1, 2]).tolist() == [1.0, 2.0]
    with card.watched() as counts:
        assert float(x.sum()) == 15 and x[x > 3].cpu().numpy().tolist() == [4, 5]
    assert dict(counts.waits) == {"_local_scalar_dense": 1, "boolean index": 1, "_to_copy": 1}
    state = torch.cuda.get_rng_state()
    before, first = torch.get_rng_state(), torch.rand(4, device="cuda").tolist()
    assert torch.equal(before, torch.get_rng_state())  # a generator of its own
    torch.cuda.set_rng_state(state)
    assert torch.rand(4, device="cuda").tolist() == first
    with torch.autocast("cuda", dtype=torch.bfloat16):
        assert (x @ x.T).dtype == torch.bfloat16 and (x + x).dtype == torch.float32
    held = card.allocated
    kept = torch.zeros(1000, device="cuda")
    assert card.allocated == held + 4000 and kept[2:].sum() == 0
    del kept
    assert card.allocated == held


# --- transfer and stacked seeds ------------------------------------------------------------------------------------


def transferred(root, experiment, device):
    job = Job("transfer", experiment, 0, str(root / device[:4]), device)
    outcome = attempt(job)
    assert outcome.exit == 0, outcome.status
    return [json.loads(line) for line in (job.path / "metrics.jsonl").read_text().splitlines()]


def test_transfer_with_every_probe(tmp_path, monkeypatch):
    experiment = Transfer(**SMALL, classes=4, coarse=(2, 2), probe_at="2", measure_at="2").resolved()
    with Machine().installed(monkeypatch):
        rows = transferred(tmp_path, experiment, "cuda:0")
    assert {row["metric"] for row in rows if row["metric"].startswith("probe")} == {f"probe_{p}" for p in experiment.probes}
    assert_same(rows, transferred(tmp_path, experiment, "cpu"))


def together(root, experiment, device, seeds=(0, 1)):
    with ExitStack() as stack:
        runs = [
            stack.enter_context(Run.create(root, "collapse", experiment.name, experiment.setting(), seed=seed, environment={}))
            for seed in seeds
        ]
        results = run_stack(experiment, runs, Look, device=device, threads=1, stop=None, report=None)
        return results, [run.rows("metrics.jsonl") for run in runs]


@pytest.mark.parametrize(
    "changed",
    [
        SMALL | {"deterministic": True, "label_noise": 0.1},
        SMALL | {"optimizer": "adamw", "loss": "mse", "decay": "weights"},
        DIGITS | {"augment": "crop-flip", "loss": "focal"},
    ],
    ids=["sgd", "adamw", "augmented"],
)
def test_stacked_seeds(tmp_path, monkeypatch, changed):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    experiment = Experiment(**changed).resolved()
    waits, plain = [], Stack.take_step

    def take_step(stack, order):
        with card.watched() as counts:
            losses = plain(stack, order)
        waits.append(counts.waits)
        return losses

    with Machine().installed(monkeypatch) as card, monkeypatch.context() as patch:
        patch.setattr(Stack, "take_step", take_step)
        results, rows = together(tmp_path / "card", experiment, HERE)
    assert all(result["ok"] for result in results) and len(waits) >= 6 and not any(waits)
    for one, other in zip(rows, together(tmp_path / "cpu", experiment, torch.device("cpu"))[1], strict=True):
        assert_same(one, other)


def test_seeds_are_stacked_by_themselves_on_a_card_and_taken_up_on_a_cpu(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shell, stacks = Shell("empirical", _load, tmp_path, capsys), []
    monkeypatch.setattr(stacked, "run_stack", lambda *a, **k: (stacks.append(len(a[1])), run_stack(*a, **k))[1])
    words = [f"--{key.replace('_', '-')}={value}" for key, value in SMALL.items()]
    with Machine().installed(monkeypatch):
        answer = shell("run", "collapse", *words, "--seeds", "0:3", "--out", "runs")
        assert answer.code == 0 and stacks == [3], answer
    (folder,) = (tmp_path / "runs" / "collapse").iterdir()
    found = json.loads((folder / "seed-1" / "env.json").read_text())
    assert found["device"] == "cuda:0" and found["gpu"] == "Simulated card"
    assert shell("resume", str(folder), "--device", "cpu").code == 0


STUDIES = {
    "alignment": {"dataset": "gaussian", "classes": 5, "train_per_class": 12, "steps": 4, "permutations": 2, "starts": 1},
    "shortcut": {"dataset": "coloured-digits", "train_per_class": 20, "conflict": 0.1, "primes": "etf", "optimizer": "adam"},
    "nesy": {"train_per_class": 12, "operands": 3, "start": "finetune", "pretrain_epochs": 1, "repeats": 2, "plain_width": 8},
    "starvation": {"dataset": "moons", "train_per_class": 20, "decoupling": 0.1},
}


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_with_a_recipe_of_its_own(tmp_path, monkeypatch, name):
    shared = {"width": 12, "depth": 1, "batch_size": 25, "measure_at": "1"} | ({} if name == "alignment" else {"epochs": 2})
    experiment = study(name).spec(**(shared | STUDIES[name])).resolved()
    waits, plain, rows = [], loop.take_step, {}

    def take_step(training, indices):
        with card.watched() as counts:
            loss = plain(training, indices)
        waits.append(counts.waits)
        return loss

    for device in ("cuda:0", "cpu"):
        job = Job(name, experiment, 0, str(tmp_path / device[:4]), device)
        with ExitStack() as stack:
            if device != "cpu":
                card = stack.enter_context(Machine().installed(monkeypatch))
                stack.enter_context(pytest.MonkeyPatch.context()).setattr(loop, "take_step", take_step)
            outcome = attempt(job)
        assert outcome.exit == 0, outcome.status
        rows[device] = [json.loads(line) for line in (job.path / "metrics.jsonl").read_text().splitlines()]
    assert len(waits) >= 4 and not any(waits)
    assert_same(rows["cuda:0"], rows["cpu"])


# --- anybody's network ---------------------------------------------------------------------------------------------


def their_network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8, bias=False), nn.Linear(8, 3, bias=False)
    )


def samples(number):
    y = torch.arange(number) % 3
    return torch.randn(number, 6, generator=torch.Generator().manual_seed(number)) + y[:, None], y


@pytest.mark.parametrize("there", [False, True], ids=["loaders on the CPU", "batches on the card"])
def test_measure_on_the_card(card, there):
    pairs = [samples(30), samples(24)]
    expected = empirical.measure(their_network(), *([pair] for pair in pairs), match_counts=True)
    loaders = [[(x.cuda(), y.cuda())] if there else DataLoader(TensorDataset(x, y), batch_size=8) for x, y in pairs]
    assert_same(empirical.measure(their_network().cuda(), *loaders, match_counts=True, device="cuda"), expected)


def test_the_recorder_on_the_card(tmp_path, card):
    (x, y), test = samples(30), samples(24)
    network = their_network().cuda()
    optimiser = torch.optim.SGD(network.parameters(), lr=0.1)
    with empirical.Recorder(tmp_path, network, [(x, y)], [test], config={"weight_decay": 1e-3}) as recorder:
        recorder.epoch(0)
        for epoch in (1, 2):
            optimiser.zero_grad()
            nn.functional.cross_entropy(network(x.cuda()), y.cuda()).backward()
            optimiser.step()
            recorder.step()
            recorder.epoch(epoch)
    with Run.open(recorder.path) as run:
        assert run.read_json("env.json")["gpu"] == "Simulated card" and run.read_tensors("tensors.safetensors")
        assert {row["epoch"] for row in run.rows("metrics.jsonl")} == {0, 1, 2}


def test_the_metric_on_the_card(card):
    pytest.importorskip("torchmetrics")
    x, y = samples(30)
    found = {}
    for device in ("cpu", "cuda"):
        metric = empirical.NeuralCollapse(classes=3, dim=6).to(device)
        metric.update(x[:14].to(device), y[:14].to(device))
        metric.update(x[14:].to(device), y[14:].to(device))
        found[device] = {name: float(value) for name, value in metric.compute().items()}
    assert found["cuda"] == pytest.approx(found["cpu"], rel=1e-5, abs=1e-6, nan_ok=True)


def test_stored_features_are_measured_on_the_card(tmp_path, monkeypatch, capsys):
    (x, y), (u, v) = samples(30), samples(24)
    arrays = {"train/features": x, "train/labels": y, "test/features": u, "test/labels": v, "ood/features": u[:9] - 3}
    arrays |= {"weight": torch.eye(6)[:3], "bias": torch.zeros(3)}
    np.savez(tmp_path / "features.npz", **{key: value.numpy() for key, value in arrays.items()})
    monkeypatch.chdir(tmp_path)
    shell, rows = Shell("empirical", _load, tmp_path, capsys), {}
    for device in ("cuda", "cpu"):
        with Machine().installed(monkeypatch) as card:
            answer = shell("measure", "--features", "features.npz", "--match-counts", "--device", device, "--out", device)
            assert answer.code == 0 and (card.operations["addmm"] + card.operations["mm"] > 0) == (device == "cuda"), answer
        (file,) = (tmp_path / device).rglob("metrics.jsonl")
        rows[device] = [json.loads(line) for line in file.read_text().splitlines()]
    assert_same(rows["cuda"], rows["cpu"])


# --- processes -----------------------------------------------------------------------------------------------------


def test_what_processes_exchange_lies_on_their_cards(monkeypatch, card):
    """NCCL takes nothing else. Here the other process has nothing to add."""
    seen = []
    monkeypatch.setattr(dist, "broadcast", lambda tensor, rank: seen.append(tensor))
    monkeypatch.setattr(dist, "all_reduce", seen.append)
    team = Team(0, 2, HERE)
    assert team.sent(b"state") == b"state" and team.said({"a": 1}) == {"a": 1}
    assert team.agreed(2, True) == (2, True)
    part = torch.arange(6.0, device="cuda").view(3, 2)
    assert team.joined(part, 6).shape == (6, 2) and team.total(part).tolist() == part.tolist()
    assert len(seen) == 8 and all(isinstance(tensor, CardTensor) for tensor in seen)


# --- theory --------------------------------------------------------------------------------------------------------

PROBLEMS = {
    "ce": ({}, {}),
    "uneven mse": ({"loss": "mse", "bias": "free", "counts": (5, 3, 1)}, {}),
    "narrow smoothing": ({"loss": "smoothing", "dim": 2}, {}),
    "focal": ({"loss": "focal"}, {}),
    "newton": ({}, {"method": "newton", "steps": 4}),
    "classwise": ({}, {"method": "classwise"}),
    "sphere": ({"constraint": "sphere"}, {}),
    "signs": ({"constraint": "sphere", "temperature": 0.5, "dim": 1}, {}),
    "supcon": ({"loss": "supcon", "constraint": "sphere"}, {}),
    "nonnegative": ({"features": "nonnegative", "dim": 6}, {"steps": 2}),
    "gd": ({}, {"method": "gd", "lr": 0.1}),
    "adam": ({"bias": "ridge", "lambda_b": 0.01}, {"method": "adam", "lr": 0.1}),
    "flow": ({}, {"method": "flow"}),
    "deep": ({"depth": 3, "loss": "mse", "lambda_w": 1e-3}, {}),
    "deep relu": ({"depth": 3, "loss": "mse", "lambda_w": 1e-3, "activation": "relu"}, {}),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_solvers_walk_the_same_way(monkeypatch, name):
    changed, settings = PROBLEMS[name]
    problem = Problem(**({"classes": 3, "dim": 4, "counts": 4, "lambda_w": 0.01, "lambda_h": 0.005} | changed))
    settings = {"steps": 6} | settings
    with Machine().installed(monkeypatch) as card:
        (found,) = solve_many([problem], device="cuda:0", **settings)
        assert sum(card.operations.values()) > 50 and card.sent
    (expected,) = solve_many([problem], device="cpu", **settings)
    assert found.status == expected.status and found.loss == pytest.approx(expected.loss, rel=1e-9)


SPECS = {"benign": {}, "shallow": {}}


@pytest.mark.parametrize("name", SPECS)
def test_a_system_computes_the_same_on_the_card(monkeypatch, name):
    if name not in SYSTEMS:
        pytest.skip("no such system")
    system = load(SYSTEMS, name, "system")
    simulate = resolve_target(system.simulate)
    with Machine().installed(monkeypatch) as card:
        (row,) = simulate([Task(system.spec(**SPECS[name]), 0)], "cuda:0")
        assert system.gpu and card.operations
    (expected,) = simulate([Task(system.spec(**SPECS[name]), 0)], "cpu")
    assert row["status"] == expected["status"] and row["loss"] == pytest.approx(expected["loss"], rel=1e-4)


def test_ufm_simulate_on_the_card(tmp_path, monkeypatch, ufm):
    flags = ["--classes", "3", "--dim", "4", "--counts", "4,4,4", "--steps", "5", "--json"]
    with Machine().installed(monkeypatch) as card:
        answer = ufm("simulate", "single", *flags)
        assert card.operations and "device: cuda:0" in answer.err, answer
    assert '"device":"cuda:0"' in next(tmp_path.rglob("cells.jsonl")).read_text()


@pytest.mark.parametrize("name", ["flow", "starvation"])
def test_what_is_computed_on_the_cpu_says_so(tmp_path, monkeypatch, ufm, name):
    if name not in SYSTEMS:
        pytest.skip("no such system")
    with Machine().installed(monkeypatch) as card:
        assert "on the CPU only" in ufm.refuses("simulate", name, "--device", "cuda")
        answer = ufm("simulate", name, *(["--t-end", "1", "--points", "3"] if name == "flow" else []))
        assert answer.code == 0 and "device: cpu" in answer.err and not card.operations, answer
    assert '"device":"cpu"' in next(tmp_path.rglob("cells.jsonl")).read_text()


# --- benchmarks ----------------------------------------------------------------------------------------------------


@pytest.fixture
def train_gpu(monkeypatch):
    """The module benchmarks/train_gpu.py, and what it imports from its folder."""
    folder = Path(__file__).parents[2] / "benchmarks"
    monkeypatch.syspath_prepend(str(folder))
    known = set(sys.modules)
    yield importlib.import_module("train_gpu")
    for name in {"train_gpu", "harness"} - known:
        sys.modules.pop(name, None)


def test_the_benchmark_of_many_networks_runs_on_a_card(card, train_gpu, capsys):
    size = replace(train_gpu.size_of(True), device=train_gpu.size_of(False).device, product=8, networks=2)
    rows, facts = train_gpu.stack_rows(size, 1, True)
    assert len(rows) == 1 and facts["stack"]["networks"] == 2 and card.operations["_fused_sgd_"] > 0
    assert train_gpu.matrix_rate(size, 1) > 0 and card.waits["synchronize"] > 0 and "2 MLPs" in capsys.readouterr().out


def test_the_benchmark_of_a_resnet_runs_on_a_card(card, train_gpu):
    pytest.importorskip("torchvision")
    size = replace(train_gpu.size_of(True), device=train_gpu.size_of(False).device, train=20, test=10, batch=4, side=8, steps=1)
    training = train_gpu.resnet(size, "crop-flip")
    assert train_gpu.step_seconds(training, size, 1) > 0 and train_gpu.look_seconds(training, size, 1) > 0
    assert train_gpu.common_step_seconds(size, 1) > 0
