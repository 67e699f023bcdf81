"""The starvation study: the penalty on the logits, the gradient's share, stops, stacks, bad requests, and the effect itself."""

import json

import numpy as np
import pytest
import torch
from scipy.special import logsumexp

from empirical import presets, starvation
from empirical.experiment import from_setting
from empirical.runner import Job, attempt, attempt_stacked
from empirical.studies import study
from empirical.studies.starvation import Starvation
from empirical.train import run_training, set_up
from ufm.errors import RequestError
from ufm.interrupt import Interrupted, Stop
from ufm.provenance import environment
from ufm.record import Run

MOONS = {"decoupling": 0.1, "width": 32, "depth": 1, "train_per_class": 30, "test_per_class": 40, "epochs": 4, "measure_at": "2"}
COLOURED = {**MOONS, "dataset": "coloured-digits", "coarse": (5, 5), "colours": 2, "conflict": 0.1, "test_per_class": None}
CPU = torch.device("cpu")


def small(**changed):
    return Starvation(**(MOONS | {"batch_size": 20, "lr": 0.05} | changed)).resolved()


def rows_at(root, experiment, seed=0):
    job = Job("starvation", experiment, seed, str(root), "cpu")
    outcome = attempt(job)
    assert outcome.exit == 0, outcome.status
    return [json.loads(line) for line in (job.path / "metrics.jsonl").read_text().splitlines()], job.path


@pytest.mark.parametrize("loss", ["ce", "mse"])
def test_the_penalty_is_half_lambda_times_the_squared_logits(loss):
    training = set_up(small(decoupling=0.3, loss=loss), 0, CPU)
    z = np.random.default_rng(0).standard_normal((15, 2))
    y = np.arange(15) % 2
    plain = logsumexp(z, axis=1) - z[np.arange(15), y] if loss == "ce" else ((z - np.eye(2)[y]) ** 2).sum(1) / 2
    wanted = np.mean(plain + 0.15 * (z**2).sum(1))
    assert float(training.minimised(torch.tensor(z), torch.tensor(y))) == pytest.approx(wanted, rel=1e-12)
    assert float(training.objective(torch.tensor(z), torch.tensor(y))) == pytest.approx(plain.mean(), rel=1e-12)
    assert set_up(small(decoupling=0.0), 0, CPU).minimised is not training.minimised
    assert small(decoupling=0.0).recipe == "" and small(decoupling=0.0).references == ()
    assert small().references == ("pezeshki2020",)


def test_the_share_is_that_of_the_slopes_by_differences():
    training = set_up(small(test_per_class=600), 1, CPU)
    network, points = training.network.double().train(), training.test.inputs.double()
    split = type(training.test)(points, training.test.labels, 2)
    before = [p.clone() for p in network.parameters()]

    def f(x):
        with torch.no_grad():
            z = network(x)
        return z[:, 1] - z[:, 0]

    sizes = []
    for axis in range(2):
        step = torch.zeros(2, dtype=torch.float64)
        step[axis] = 1e-6
        sizes.append(float(((f(points + step) - f(points - step)) / 2e-6).abs().mean()))
    found = starvation.gradient_share(network, split)
    assert found == pytest.approx(sizes[1] / sum(sizes), rel=1e-3)
    assert network.training and all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))
    assert all(p.grad is None for p in network.parameters())


@pytest.mark.parametrize(("weights", "share"), [([1.0, 0.0], 0.0), ([0.0, -2.0], 1.0), ([3.0, 1.0], 0.25)])
def test_the_share_of_a_linear_map(weights, share):
    network = torch.nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        network.weight.copy_(torch.tensor([[0.0, 0.0], weights]))
    assert starvation.gradient_share(network, set_up(small(), 0, CPU).test) == pytest.approx(share, abs=1e-7)


@pytest.mark.parametrize("weight", [0.0, float("nan"), float("inf")])
def test_slopes_without_a_share_are_a_null_with_a_reason(weight):
    training = set_up(small(), 0, CPU)
    linear = torch.nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[0.0, 0.0], [weight, 0.0]]))
    assert starvation.gradient_share(linear, training.test) is None
    with torch.no_grad():
        for parameter in training.network.parameters():
            parameter.zero_()
    rows = [row for row in starvation.Look().rows(training) if row["metric"] == "gradient_share"]
    assert [(row["split"], row["value"], "neither coordinate" in row["reason"]) for row in rows] == [
        ("train", None, True),
        ("test", None, True),
    ]


def test_the_rows_are_those_of_the_data():
    moons, coloured = (set_up(small(**one), 0, CPU) for one in (MOONS, COLOURED))
    rows = {(r["split"], r["metric"]): r["value"] for r in starvation.Look().rows(moons)}
    assert 0 < rows["test", "gradient_share"] < 1 and ("test", "accuracy_conflicting") not in rows
    rows = {(r["split"], r["metric"]): r["value"] for r in starvation.Look().rows(coloured)}
    assert ("test", "gradient_share") not in rows and 0 <= rows["test", "accuracy_conflicting"] <= 1
    assert ("train", "nc1_pinv") in rows


def final(changes, seed=7):
    from empirical.step import order_of, take_step

    training = set_up(small(**changes), seed, CPU)
    training.network.train()
    while training.step < training.clock.steps:
        epoch, position = divmod(training.step, training.clock.per_epoch)
        first, last = training.clock.bounds(position)
        take_step(training, order_of(training, epoch)[first:last])
        training.step += 1
    return {(r["split"], r["metric"]): r["value"] for r in starvation.Look().rows(training)}


def test_a_penalty_on_the_logits_lets_the_second_coordinate_in_and_one_on_the_weights_hardly():
    one = {"train_per_class": None, "batch_size": 100, "width": 64, "epochs": 200, "lr": 0.05}
    plain, held, decayed = (
        final({**one, **penalty})["test", "gradient_share"]
        for penalty in ({"decoupling": 0.0}, {"decoupling": 0.05}, {"decoupling": 0.0, "weight_decay": 1e-3})
    )
    assert held > 2 * plain and decayed < 1.5 * plain


def test_a_penalty_on_the_logits_follows_a_colour_that_contradicts_less():
    options = {k: v for k, v in presets.read("starvation-coloured")[1].items() if k not in ("coarse", "measure_at")}
    one = {**options, "coarse": (5, 5), "train_per_class": None, "test_per_class": None, "epochs": None, "steps": 150}
    plain, held = (final({**one, "decoupling": weight})["test", "accuracy_conflicting"] for weight in (0.0, 0.2))
    assert held > plain + 0.1


@pytest.mark.parametrize("stop_at", [0, 5])
@pytest.mark.parametrize("data", [MOONS, COLOURED])
def test_a_stopped_training_goes_on_to_the_same_bytes(tmp_path, stop_at, data):
    experiment = small(**data)
    _, whole = rows_at(tmp_path / "whole", experiment)
    job, stop = Job("starvation", experiment, 0, str(tmp_path / "halved"), "cpu"), Stop()
    described = environment("cpu", seed=0)
    with Run.create(job.root, job.study, experiment.name, experiment.setting(), seed=0, environment=described) as run:
        look = starvation.Look()

        def watched(training):
            if training.step >= stop_at:
                stop.signum = 15
            return look.rows(training)

        with pytest.raises(Interrupted):
            run_training(experiment, run, observe=watched, device=CPU, stop=stop)
    _, again = rows_at(tmp_path / "halved", experiment)
    for file in ("metrics.jsonl", "tensors.safetensors"):
        assert (again / file).read_bytes() == (whole / file).read_bytes()


def test_seeds_in_one_program_are_those_one_by_one(tmp_path):
    experiment = small()
    jobs = [Job("starvation", experiment, seed, str(tmp_path / "stacked"), "cpu") for seed in (0, 1)]
    outcomes = attempt_stacked(jobs, None, None)
    assert [o.exit for o in outcomes] == [0, 0], outcomes
    for outcome in outcomes:
        rows, _ = rows_at(tmp_path / "single", experiment, outcome.seed)
        alone = {(r["split"], r["layer"], r["centres"], r["metric"]): r["value"] for r in rows if r["epoch"] == 4}
        for metric in ("train/network/self/loss", "test/network/self/gradient_share", "train/network/self/loss_running"):
            assert outcome.result["final"][metric] == pytest.approx(alone[tuple(metric.split("/"))], rel=1e-3)


def test_the_setting_finds_its_way_back():
    made = small(**{**COLOURED, "saturation": 0.4, "train_per_class": None, "mislabelled": 0.25})
    assert from_setting(study("starvation").spec, json.loads(json.dumps(made.setting()))).resolved() == made
    assert starvation.check(made, 0).steps == set_up(made, 0, CPU).clock.steps


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"dataset": "digits"}, "starvation needs a feature known to be strong; use moons, coloured-digits"),
        ({"dataset": "moon"}, "did you mean 'moons'"),
        ({"conflict": 0.1}, "--conflict 0.1: data set moons has no such size"),
        ({**COLOURED, "margin": 0.1}, "--margin 0.1: data set coloured-digits has no such size"),
        ({**COLOURED, "mislabelled": 0.1}, "--mislabelled and --train-per-class exclude each other"),
        ({"model": "convnet"}, "convnet"),
    ],
)
def test_wrong_requests_are_one_line(changed, message):
    with pytest.raises(RequestError, match=message) as caught:
        starvation.check(small(**changed), 0)
    assert "\n" not in str(caught.value)
