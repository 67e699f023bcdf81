"""The training loop, its losses, optimisers, schedules and the way it ends."""

import itertools
import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from empirical import collapse
from empirical import train as loop
from empirical import training as setting_up
from empirical.experiment import LOSSES, Experiment
from empirical.losses import objective
from empirical.runner import Job, attempt, work
from empirical.schedule import PAPYAN, Clock, learning_rate, measuring_steps
from empirical.train import run_training, set_up
from ufm.errors import RequestError
from ufm.interrupt import Interrupted, Stop
from ufm.record import Run, RunWarning

SMALL = {
    "dataset": "gaussian",
    "width": 12,
    "depth": 2,
    "train_per_class": 20,
    "test_per_class": 10,
    "batch_size": 32,
    "epochs": 6,
}
CPU = torch.device("cpu")


def small(**changed):
    return Experiment(**(SMALL | changed)).resolved()


def open_run(root, experiment, seed=0):
    return Run.create(root, "collapse", experiment.name, experiment.setting(), seed=seed, environment={})


def look(training):
    value = float(sum(p.detach().double().abs().sum() for p in training.network.parameters()))
    return [{"split": "train", "layer": "network", "centres": "self", "metric": "size", "value": value}]


def trained(tmp_path, experiment, seed=0, **more):
    with open_run(tmp_path, experiment, seed) as run:
        result = run_training(experiment, run, observe=look, device=CPU, **more)
        return result, run.rows("metrics.jsonl")


# --- losses --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LOSSES)
def test_losses_follow_their_definition(name):
    rng = np.random.default_rng(0)
    z, y = rng.normal(size=(6, 4)), rng.integers(0, 4, size=6)
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    hot, own = np.eye(4)[y], p[np.arange(6), y]
    smooth = 0.9 * hot + 0.1 / 4
    expected = {
        "ce": -np.log(own).mean(),
        "mse": 0.5 * ((z - hot) ** 2).sum(1).mean(),
        "mse-mean": ((z - hot) ** 2).mean(),
        "smoothing": -(smooth * np.log(p)).sum(1).mean(),
        "focal": -((1 - own) ** 2 * np.log(own)).mean(),
    }
    loss = objective(name)(torch.from_numpy(z), torch.from_numpy(y))
    assert loss.item() == pytest.approx(expected[name], rel=1e-12)


# --- schedules -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("samples", "batch"), [(1000, 128), (129, 128), (100, 128), (1, 128), (256, 128), (7, 3)])
def test_an_epoch_sees_every_sample_once_and_no_batch_has_one(samples, batch):
    clock = Clock(samples, min(batch, samples), 1)
    seen = [range(*clock.bounds(position)) for position in range(clock.per_epoch)]
    assert list(itertools.chain(*seen)) == list(range(samples))
    assert samples == 1 or min(map(len, seen)) > 1


def test_step_sizes_over_the_training():
    clock = Clock(100, 10, 300)
    rates = [learning_rate("thirds", 0.1, step, clock, 1, 1) for step in (0, 99, 100, 199, 200, 299)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])
    assert learning_rate("step", 1.0, 45, clock, 2, 0.5) == 0.25
    assert learning_rate("cosine", 1.0, 150, clock, 1, 1) == pytest.approx(0.5)
    assert learning_rate("none", 0.3, 299, clock, 1, 1) == 0.3


def test_measuring_times():
    clock = Clock(1000, 100, 3500)
    assert measuring_steps("papyan", clock) == (0, *(10 * e for e in PAPYAN))
    assert measuring_steps("2,350", clock) == (0, 20, 3500)
    assert measuring_steps("every", Clock(10, 5, 5)) == (0, 2, 4, 5)
    log = measuring_steps("log", clock)
    assert log[:4] == (0, 10, 20, 30) and log[-1] == 3500 and len(log) < 26
    with pytest.raises(RequestError, match=r"0\.\.350"):
        measuring_steps("351", clock)
    assert len(PAPYAN) == 50  # of Papyan, Han & Donoho's 350 epochs
    with pytest.raises(RequestError, match="at most 100000 times"):  # before a set of 10^14 epochs is made
        measuring_steps("every", Clock(100, 10, 10**15))
    assert len(measuring_steps("log", Clock(100, 10, 10**15))) == 25


# --- the loop ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decay", ["all", "weights"])
def test_sgd_is_the_plain_loop(tmp_path, decay):
    """The same steps written out by hand in float64: weight decay in the gradient, heavy-ball momentum, mean loss."""
    experiment = small(decay=decay, norm="none", schedule="thirds", weight_decay=0.01)
    training = set_up(experiment, 0, CPU)
    network = nn.Sequential(nn.Flatten(), *[m for m in training.network.modules() if isinstance(m, (nn.Linear, nn.ReLU))])
    network = network.double()
    parameters = [p.detach().clone().requires_grad_() for p in network.parameters()]
    velocity = [torch.zeros_like(p) for p in parameters]
    inputs, labels = training.train.batch(slice(None))
    names = [name for name, _ in network.named_parameters()]
    for step in range(training.clock.steps):
        epoch, position = divmod(step, training.clock.per_epoch)
        chosen = loop.order_of(training, epoch)[slice(*training.clock.bounds(position))]
        logits = torch.func.functional_call(network, dict(zip(names, parameters, strict=True)), inputs[chosen].double())
        gradients = torch.autograd.grad(F.cross_entropy(logits, labels[chosen]), parameters)
        rate = 0.1 * 0.1 ** (3 * step // training.clock.steps)
        with torch.no_grad():
            for p, v, g in zip(parameters, velocity, gradients, strict=True):
                v.mul_(0.9).add_(g + (0.01 * p if p.ndim > 1 or decay == "all" else 0))
                p.sub_(rate * v)
    _, rows = trained(tmp_path, experiment)
    expected = float(sum(p.detach().abs().sum() for p in parameters))
    assert rows[-3]["value"] == pytest.approx(expected, rel=1e-5) and rows[-3]["metric"] == "size"


@pytest.mark.parametrize(
    "changed",
    [
        {"optimizer": "adam"},
        {"optimizer": "adamw", "decay": "weights"},
        {"optimizer": "lbfgs", "batch_size": None, "norm": "none"},
        {"loss": "mse", "schedule": "cosine"},
        {"loss": "focal", "head": "deep", "head_depth": 2},
        {"precision": "bf16"},
        {"deterministic": True, "head": "etf", "schedule": "step", "step_epochs": 2},
    ],
)
def test_every_way_to_train_lowers_the_loss(tmp_path, changed):
    result, rows = trained(tmp_path, small(**({"measure_at": "every"} | changed)))
    losses = [row["value"] for row in rows if row["metric"] == "loss_running"]
    assert result["status"] == "finished" and losses[-1] < losses[0]


def test_lbfgs_minimises_the_regularised_loss(tmp_path):
    """A linear model: scipy finds the same minimum."""
    from scipy.optimize import minimize

    experiment = small(
        optimizer="lbfgs", depth=0, batch_size=None, norm="none", epochs=200, weight_decay=0.05, bias=False, schedule="none"
    )
    training = set_up(experiment, 0, CPU)
    x, y = training.train.inputs.double(), training.train.labels

    def objective_of(flat):
        weight = torch.from_numpy(flat).view(4, -1).requires_grad_()
        value = F.cross_entropy(x @ weight.T, y) + 0.025 * weight.square().sum()
        return value.item(), torch.autograd.grad(value, weight)[0].numpy().ravel()

    best = minimize(objective_of, np.zeros(4 * x.shape[1]), jac=True, method="L-BFGS-B", options={"ftol": 1e-14, "gtol": 1e-9})
    _, rows = trained(tmp_path, experiment)
    assert rows[-3]["value"] == pytest.approx(np.abs(best.x).sum(), rel=2e-3)


def test_the_same_seed_gives_the_same_rows_and_another_seed_others(tmp_path):
    one = trained(tmp_path / "a", small())[1]
    assert one == trained(tmp_path / "b", small())[1]
    assert [r["value"] for r in one] != [r["value"] for r in trained(tmp_path / "c", small(), seed=1)[1]]


def test_the_untrained_network_and_the_last_step_are_always_measured(tmp_path):
    _, rows = trained(tmp_path, small(epochs=None, steps=10, measure_at="2"))
    clock = set_up(small(epochs=None, steps=10), 0, CPU).clock
    steps = [row["step"] for row in rows if row["metric"] == "size"]
    assert steps == [0, 2 * clock.per_epoch, 10]
    assert rows[0]["epoch"] == 0 and rows[-1]["epoch"] == pytest.approx(10 / clock.per_epoch, abs=1e-6)


def test_measuring_more_often_changes_no_number(tmp_path):
    often = trained(tmp_path / "a", small(measure_at="every"))[1]
    seldom = trained(tmp_path / "b", small(measure_at="6"))[1]
    assert often[-3]["value"] == seldom[-3]["value"]


@pytest.mark.parametrize("batch", [None, 8])
def test_divergence_is_seen_at_its_step_and_leaves_no_nan(tmp_path, batch, monkeypatch):
    """The loss of step 5 is made infinite; the trace of a GPU (read every few steps) finds the same step."""
    if batch:
        real = loop.LossTrace.__init__

        def longer(trace, device):
            real(trace, device)
            trace.length, trace.buffer = batch, torch.zeros(batch)

        monkeypatch.setattr(loop.LossTrace, "__init__", longer)
    calls = []
    plain = loop.take_step

    def broken(training, indices):
        calls.append(1)
        return plain(training, indices) * (math.inf if len(calls) == 5 else 1)

    monkeypatch.setattr(loop, "take_step", broken)
    result, rows = trained(tmp_path, small(epochs=60))
    assert result["status"] == "diverged: the loss became non-finite at step 5" and not result["ok"]
    assert result["step"] == 5 and len(calls) <= 8 + 4
    json.dumps([result, rows], allow_nan=False)
    assert max(row["step"] for row in rows) < 5


def test_a_divergence_that_is_found_again_is_at_the_same_step(tmp_path, monkeypatch):
    """The process ends after the divergence was seen and before it was written down."""
    plain, written = loop.take_step, loop.finish

    def broken(training, indices):
        return plain(training, indices) * (math.inf if training.step >= 4 else 1)

    def ended(*more):
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "take_step", broken)
    monkeypatch.setattr(loop, "finish", ended)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, small())
    monkeypatch.setattr(loop, "finish", written)
    with pytest.warns(RunWarning, match="no checkpoint; the training begins again"):
        result, _ = trained(tmp_path, small())
    assert result["status"] == "diverged: the loss became non-finite at step 5"


def test_a_step_size_too_large_diverges_and_the_other_jobs_go_on(tmp_path):
    wild = small(lr=1e20, norm="none", loss="mse")
    outcomes = [attempt(Job("collapse", e, 0, str(tmp_path), "cpu")) for e in (wild, small())]
    assert [o.exit for o in outcomes] == [1, 0]
    assert outcomes[0].status.startswith("diverged: ") and outcomes[1].status == "finished"


def test_a_last_step_that_blows_the_weights_up_is_seen_when_measuring(tmp_path):
    outcome = attempt(Job("collapse", small(lr=1e38, epochs=None, steps=1, norm="none", loss="mse"), 0, str(tmp_path), "cpu"))
    assert outcome.exit == 1 and outcome.status.startswith("diverged: at step 1 ")
    rows = Run.open(outcome.path).rows("metrics.jsonl")
    assert {row["step"] for row in rows} == {0}


def test_a_signal_saves_and_the_rest_gives_the_same_rows(tmp_path, monkeypatch):
    experiment = small(epochs=20)
    whole = trained(tmp_path / "whole", experiment)[1]
    stop, plain = Stop(), loop.take_step

    def signalled(training, indices):
        stop.signum = 15 if training.step == 12 else 0
        return plain(training, indices)

    with monkeypatch.context() as patch, open_run(tmp_path / "cut", experiment) as run:
        patch.setattr(loop, "take_step", signalled)
        with pytest.raises(Interrupted) as caught:
            run_training(experiment, run, observe=look, device=CPU, stop=stop)
    result, rows = trained(tmp_path / "cut", experiment)
    assert caught.value.signum == 15 and rows == whole and result["resumed_at"] == [13]


def test_train_collapses_and_test_does_not(tmp_path):
    """A fifth of the digits preset: the claim's sign, against the untrained network of the same run."""
    experiment = Experiment(dataset="digits", weight_decay=2e-3, steps=600, measure_at="1").resolved()
    outcome = work(Job("collapse", experiment, 0, str(tmp_path), "cpu"))
    rows = Run.open(outcome.path).rows("metrics.jsonl")
    untrained, train, test = (
        next(
            r["value"]
            for r in rows
            if (r["step"], r["split"], r["layer"], r["centres"], r["metric"]) == (step, split, "penultimate", centres, metric)
        )
        for step, split, centres, metric in (
            (0, "train", "self", "nc1_pinv"),
            (600, "train", "self", "nc1_pinv"),
            (600, "test", "train", "nc1_pinv_strong"),
        )
    )
    assert train < 0.05 * untrained and test > 2 * train
    assert Run.open(outcome.path).read_tensors("tensors.safetensors")["weight"].shape == (10, 128)


def test_a_finished_seed_is_not_touched(tmp_path):
    job = Job("collapse", small(epochs=1), 0, str(tmp_path), "cpu")
    first = work(job)
    before = {p: p.stat().st_mtime_ns for p in job.path.iterdir()}
    second = work(job)
    assert second.skipped and second.result == json.loads(json.dumps(first.result))
    assert before == {p: p.stat().st_mtime_ns for p in job.path.iterdir()}
    Run.open(job.path).verify()


def test_other_data_than_the_checkpoints_are_refused(tmp_path, monkeypatch):
    job = Job("collapse", small(epochs=1), 0, str(tmp_path), "cpu")
    attempt(job)
    (job.path / "done").unlink()
    real = setting_up.load_data
    monkeypatch.setattr(setting_up, "load_data", lambda e, seed: real(e, seed + 1))
    outcome = attempt(job)
    assert outcome.exit == 1 and "not those of the checkpoint" in outcome.status


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
@pytest.mark.parametrize("changed", [{}, {"precision": "bf16"}, {"compile": True}, {"deterministic": True}])
def test_cuda_trains_to_the_same_place(tmp_path, changed):
    experiment = small(epochs=20, **changed)
    on_cpu = trained(tmp_path / "cpu", small(epochs=20))[1][-3]["value"]
    with open_run(tmp_path / "gpu", experiment) as run:
        run_training(experiment, run, observe=look, device=torch.device("cuda"))
        on_gpu = run.rows("metrics.jsonl")[-3]["value"]
    assert on_gpu == pytest.approx(on_cpu, rel=0.05)


def test_what_stays_of_a_finished_training_is_of_the_last_looks_forward_pass(tmp_path, monkeypatch):
    passes, plain = [], collapse.collect_together

    def counted(network, plan, data, **more):
        passes.append(len(data))
        return plain(network, plan, data, **more)

    monkeypatch.setattr(collapse, "collect_together", counted)
    trained = set_up(small(), 0, CPU)
    look = collapse.Look()
    look.rows(trained)
    assert look.last is None and len(passes) == 2  # features are not held while the network trains
    trained.step = trained.clock.steps
    look.rows(trained)
    arrays = look.tensors(trained)
    assert len(passes) == 4
    fresh = collapse.Look().tensors(trained)
    assert len(passes) == 6 and all(np.array_equal(arrays[name], fresh[name], equal_nan=True) for name in fresh)
    with torch.no_grad():
        next(trained.network.parameters()).add_(1.0)
    changed = look.tensors(trained)
    assert len(passes) == 8 and not np.array_equal(changed["penultimate/train/means"], arrays["penultimate/train/means"])
