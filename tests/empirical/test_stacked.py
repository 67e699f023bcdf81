"""Seeds trained in one program give the rows of trainings of their own."""

import math
from contextlib import ExitStack

import pytest
import torch
from command_line import Shell

from empirical import stacked
from empirical.__main__ import _load
from empirical.collapse import Look
from empirical.cost import PROCESS, Cost
from empirical.experiment import Experiment
from empirical.runner import Job, attempt, attempt_stacked, stacks
from empirical.stacked import Apart, Stack, run_stack
from empirical.train import run_training
from empirical.training import set_up
from ufm.interrupt import Interrupted, Stop
from ufm.record import Run

CPU = torch.device("cpu")
SEEDS = (0, 1, 5)
SMALL = {"dataset": "gaussian", "width": 8, "depth": 2, "train_per_class": 12, "test_per_class": 5, "batch_size": 20, "epochs": 5}
DIGITS = {"dataset": "digits", "train_per_class": 10, "model": "convnet", "width": 4, "depth": 2, "batch_size": 40, "epochs": 2}


def setting(**changed):
    return Experiment(**(SMALL | {"measure_at": "2"} | changed)).resolved()


def together(root, experiment, seeds=SEEDS, stop=None):
    with ExitStack() as stack:
        runs = [
            stack.enter_context(Run.create(root, "collapse", experiment.name, experiment.setting(), seed=seed, environment={}))
            for seed in seeds
        ]
        results = run_stack(experiment, runs, Look, device=CPU, threads=1, stop=stop, report=None)
        return results, [run.rows("metrics.jsonl") for run in runs]


def apart(root, experiment, seed):
    with Run.create(root, "collapse", experiment.name, experiment.setting(), seed=seed, environment={}) as run:
        look = Look()
        result = run_training(experiment, run, observe=look.rows, keep=look.tensors, device=CPU)
        return result, run.rows("metrics.jsonl")


def same(one, other):
    assert [{**row, "value": 0} for row in one] == [{**row, "value": 0} for row in other]
    for a, b in zip(one, other, strict=True):
        assert a["value"] == pytest.approx(b["value"], rel=1e-4, abs=1e-5), a


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"norm": "none", "loss": "mse", "schedule": "cosine", "width": 32},
        {"optimizer": "adam", "loss": "smoothing"},
        {"optimizer": "adamw", "decay": "weights", "head": "etf", "momentum": 0.0, "loss": "focal"},
        DIGITS | {"test_per_class": None},
        DIGITS | {"test_per_class": None, "augment": "crop-flip", "norm": "none", "lr": 0.01, "width": 16},
    ],
    ids=["batch-norm", "mse", "adam", "etf", "convnet", "augmented"],
)
def test_stacked_seeds_are_the_separate_ones(tmp_path, changed):
    experiment = setting(**changed)
    results, rows = together(tmp_path / "stack", experiment)
    for seed, result, own in zip(SEEDS, results, rows, strict=True):
        expected, separate = apart(tmp_path / "apart", experiment, seed)
        assert result["status"] == expected["status"] == "finished" and result["step"] == expected["step"]
        same(own, separate)


def test_one_step_is_each_networks_own_step():
    """Against the gradient of each network alone, in float64, without an optimiser in between."""
    experiment = setting(norm="none", weight_decay=0.0, momentum=0.0)
    stack = Stack([set_up(experiment, seed, CPU) for seed in SEEDS])
    inputs, labels = stack.batch(stack.order(0), 0, 20)
    stack.losses(inputs, labels).sum().backward()
    for number, training in enumerate(stack.trainings):
        network = training.network.double()
        loss = torch.nn.functional.cross_entropy(network(inputs[number].double()), labels[number])
        gradients = torch.autograd.grad(loss, list(network.parameters()))
        for (name, _), gradient in zip(network.named_parameters(), gradients, strict=True):
            torch.testing.assert_close(stack.parameters[name].grad[number].double(), gradient, rtol=1e-5, atol=1e-6)


def interrupted(monkeypatch, at):
    """A Stop that turns true after the step `at` of a stack."""
    stop, plain = Stop(), Stack.take_step

    def step(stack, order):
        losses = plain(stack, order)
        stop.signum = 15 if stack.step == at else stop.signum
        return losses

    monkeypatch.setattr(Stack, "take_step", step)
    return stop


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_stopped_stack_goes_on_together_and_apart_to_the_same_numbers(tmp_path, monkeypatch, optimizer):
    experiment = setting(optimizer=optimizer)
    _, whole = together(tmp_path / "whole", experiment)
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        together(tmp_path / "cut", experiment, stop=interrupted(patch, 7))
    _, rest = apart(tmp_path / "cut", experiment, SEEDS[1])
    same(rest, whole[1])
    results, rows = together(tmp_path / "cut", experiment, seeds=(SEEDS[0], SEEDS[2]))
    assert rows == [whole[0], whole[2]]  # bit for bit
    assert [result["resumed_at"] for result in results] == [[7], [7]]


def test_a_seed_that_diverges_leaves_the_others_alone(tmp_path, monkeypatch):
    experiment = setting()
    _, whole = together(tmp_path / "whole", experiment)
    plain = Stack.take_step

    def step(stack, order):
        losses = plain(stack, order).clone()
        if stack.step == 5:
            losses[1] = math.inf
        return losses

    monkeypatch.setattr(Stack, "take_step", step)
    results, rows = together(tmp_path / "bad", experiment)
    assert [result["ok"] for result in results] == [True, False, True]
    assert results[1]["status"] == "diverged: the loss became non-finite at step 5"
    assert results[1]["step"] == 5 and results[1]["epoch"] == pytest.approx(5 / 3, abs=1e-6) and results[0]["step"] > 5
    assert rows[0] == whole[0] and rows[2] == whole[2] and max(row["step"] for row in rows[1]) < 5


def test_a_diverged_seed_keeps_its_step_when_the_others_are_stopped_and_taken_up(tmp_path, monkeypatch):
    experiment = setting()
    _, whole = together(tmp_path / "whole", experiment)
    plain, stop = Stack.take_step, Stop()

    def step(stack, order):
        losses = plain(stack, order).clone()
        if stack.step == 5:
            losses[0] = math.nan
        stop.signum = 15 if stack.step == 8 else 0
        return losses

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(Stack, "take_step", step)
        together(tmp_path / "cut", experiment, stop=stop)
    jobs = [Job("collapse", experiment, seed, str(tmp_path / "cut"), "cpu") for seed in SEEDS]
    assert [(job.path / "done").is_file() for job in jobs] == [True, False, False]
    result = Run.open(jobs[0].path).read_json("result.json")
    assert result["step"] == 5 and result["status"] == "diverged: the loss became non-finite at step 5"
    assert stacks(jobs, lambda experiment: 9) == [jobs[:1], jobs[1:]]
    results, rows = together(tmp_path / "cut", experiment, seeds=SEEDS[1:])
    assert rows == whole[1:] and [result["resumed_at"] for result in results] == [[8], [8]]


@pytest.mark.filterwarnings("ignore:seed-.. begun by version None")
def test_seeds_that_are_not_at_one_step_are_trained_one_by_one(tmp_path, monkeypatch, capsys):
    experiment = setting()
    jobs = [Job("collapse", experiment, seed, str(tmp_path), "cpu") for seed in SEEDS[:2]]
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        together(tmp_path, experiment, seeds=SEEDS[:1], stop=interrupted(patch, 3))
    with pytest.raises(Apart):
        together(tmp_path, experiment, seeds=SEEDS[:2])
    outcomes = attempt_stacked(jobs, None, None)
    assert [outcome.status for outcome in outcomes] == ["finished", "finished"] and "one by one" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:seed-.. begun by version None", "ignore:.* is damaged")
@pytest.mark.parametrize("damaged", [SEEDS[:2], SEEDS[:1]], ids=["all", "one"])
def test_damaged_checkpoints_are_refused_as_without_a_stack_and_nothing_is_thrown_away(tmp_path, monkeypatch, damaged):
    experiment = setting()
    jobs = [Job("collapse", experiment, seed, str(tmp_path), "cpu") for seed in SEEDS[:2]]
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        together(tmp_path, experiment, seeds=damaged, stop=interrupted(patch, 7))
    kept = {}
    for job in jobs[: len(damaged)]:
        for path in job.path.glob("checkpoint-*.safetensors"):
            content = bytearray(path.read_bytes())
            content[-4:] = bytes(255 - byte for byte in content[-4:])
            path.write_bytes(content)
        kept |= {path: path.read_bytes() for path in [job.path / "metrics.jsonl", *job.path.glob("checkpoint-*")]}
    outcomes = attempt_stacked(jobs, None, None)
    for outcome in outcomes[: len(damaged)]:
        assert outcome.exit == 1 and "no checkpoint can be read" in outcome.status
    assert all(outcome.status == "finished" for outcome in outcomes[len(damaged) :])
    assert len(kept) > 2 and all(path.read_bytes() == content for path, content in kept.items())


def test_jobs_are_grouped_by_setting_and_finished_ones_left_out(tmp_path):
    one, other = setting(), setting(weight_decay=1e-3)
    jobs = [Job("collapse", e, seed, str(tmp_path), "cpu") for e in (one, other) for seed in range(4)]
    attempt(jobs[1])
    groups = stacks(jobs, lambda experiment: 3 if experiment is other else 9)
    assert [[(job.experiment is other, job.seed) for job in group] for group in groups] == [
        [(False, 0)],
        [(False, 1)],
        [(False, 2), (False, 3)],
        [(True, 0), (True, 1), (True, 2)],
        [(True, 3)],
    ]
    assert stacks(jobs, lambda experiment: 1) == [[job] for job in jobs]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--workers=2"], "--workers 2"),
        (["--optimizer=lbfgs"], "lbfgs"),
        (["--precision=bf16"], "float32"),
        (["--cluster=tcp://localhost:1"], "--cluster"),
    ],
)
def test_what_cannot_be_stacked_is_refused_in_one_line(tmp_path, monkeypatch, capsys, words, said):
    monkeypatch.chdir(tmp_path)
    shell = Shell("empirical", _load, tmp_path, capsys)
    for more in ([], ["--dry-run"]):
        assert said in shell.refuses("run", "collapse", "--dataset=gaussian", "--stack=on", *words, *more)


def test_the_command_writes_one_folder_per_seed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shell = Shell("empirical", _load, tmp_path, capsys)
    words = [f"--{key.replace('_', '-')}={value}" for key, value in SMALL.items()]
    answer = shell("run", "collapse", *words, "--stack=on", "--seeds=0:3", "--device=cpu", "--json")
    assert answer.code == 0 and [run["status"] for run in answer.json["runs"]] == ["finished"] * 3
    for run in answer.json["runs"]:
        found = Run.open(run["path"])
        found.verify()
        assert found.environment["stacked"] == 3


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
def test_cuda_stack_trains_to_the_same_place(tmp_path):
    experiment = setting(epochs=20)
    with Run.create(tmp_path, "collapse", experiment.name, experiment.setting(), seed=0, environment={}) as run:
        (result,) = run_stack(experiment, [run], Look, device=torch.device("cuda"), threads=1, stop=None, report=None)
    expected, _ = apart(tmp_path / "cpu", experiment, 0)
    assert result["final"]["train/network/self/loss"] == pytest.approx(expected["final"]["train/network/self/loss"], rel=0.05)


def test_a_large_network_is_not_stacked_unasked_and_a_stack_fits_the_memory(monkeypatch):
    small, large = Cost(1000, 1, PROCESS + 2**20, 1.0), Cost(10**7, 1, PROCESS + 2**20, 1.0)
    monkeypatch.setattr(stacked, "free_memory", lambda device: 2**25)
    assert stacked.room(setting(), small, "cpu", False) == 16  # half of 32 MiB, 1 MiB each
    assert stacked.room(setting(), large, "cpu", False) == 1 and stacked.room(setting(), large, "cpu", True) == 16
    monkeypatch.setattr(stacked, "free_memory", lambda device: None)
    assert stacked.room(setting(), small, "cpu", False) == stacked.LARGEST
    assert stacked.refusal(setting()) is None
    assert "resnet18" in stacked.refusal(Experiment(dataset="cifar10", model="resnet18").resolved())
