"""The training and the measuring on a simulated CUDA card: the same numbers as on the CPU, and nothing a card refuses.

The card itself is in simulated_card.py, which says what it cannot show.
"""

import contextlib
import functools
import math
import re
import signal

import pytest
import torch
from simulated_card import NONDETERMINISTIC, Machine
from torch import nn

from empirical import train as loop
from empirical import training as setting_up
from empirical.collapse import Look
from empirical.data.split import Split
from empirical.experiment import LOSSES, Experiment
from empirical.runner import Job, attempt
from empirical.train import run_training
from ufm.interrupt import Interrupted, Stop
from ufm.record import Run

CARD, CPU = torch.device("cuda:0"), torch.device("cpu")
VECTORS = {
    "dataset": "gaussian",
    "width": 12,
    "depth": 2,
    "train_per_class": 20,
    "test_per_class": 10,
    "batch_size": 32,
    "epochs": 2,
}
IMAGES = {
    "dataset": "digits",
    "model": "convnet",
    "width": 4,
    "depth": 2,
    "train_per_class": 8,
    "batch_size": 32,
    "epochs": 2,
}


@pytest.fixture
def card(monkeypatch):
    """A machine with one simulated card."""
    with Machine().installed(monkeypatch) as machine:
        yield machine


def trained(root, experiment, device, **more):
    """Return (result, rows, tensors) of a training of collapse."""
    look = Look()
    with Run.create(root / device.type, "collapse", experiment.name, experiment.setting(), seed=0, environment={}) as run:
        result = run_training(experiment, run, observe=look.rows, keep=look.tensors, device=device, **more)
        return result, run.rows("metrics.jsonl"), run.read_tensors("tensors.safetensors")


def assert_same(there, here, rel=1e-5):
    """The same rows in the same order, to the rounding of other sums in float32."""
    assert len(there) == len(here) > 0
    for one, other in zip(there, here, strict=True):
        assert {k: v for k, v in one.items() if k != "value"} == {k: v for k, v in other.items() if k != "value"}
        if one["metric"] == "vci" and one["layer"] == "logits":
            continue  # of more logits than there are features: their last dimensions are the rounding of products
        assert one["value"] == (None if other["value"] is None else pytest.approx(other["value"], rel=rel, abs=1e-6)), one


# --- training ------------------------------------------------------------------------------------------------------

SETTINGS = [
    *({"loss": name} for name in LOSSES),
    {"optimizer": "adam"},
    {"optimizer": "adamw", "decay": "weights", "schedule": "cosine"},
    {"optimizer": "lbfgs", "batch_size": None},
    {"precision": "bf16"},
    {"head": "etf", "label_noise": 0.2},
    {"layers": "all"},
    {"head": "deep", "head_depth": 3},
    {"head": "deep", "head_depth": 2, "head_activation": "relu", "bias": False, "weight_decay": 1e-3, "ranks": "every"},
    {"norm": "none", "match_counts": True, "imbalance": 2.0, "minority": 2, "ood": "noise"},
]
PICTURES = [
    {"layers": "all", "ood": "noise", "augment": "crop-flip"},
    {"precision": "bf16", "augment": "crop-flip", "optimizer": "adamw"},
    {"optimizer": "lbfgs", "batch_size": None},
]


@pytest.mark.parametrize(
    "changed",
    [VECTORS | c for c in SETTINGS] + [IMAGES | c for c in PICTURES],
    ids=lambda c: "-".join(str(v) for k, v in c.items() if v not in (VECTORS | IMAGES).values()) or "plain",
)
def test_a_training_is_the_same_on_the_card(tmp_path, monkeypatch, changed):
    experiment = Experiment(**changed).resolved()
    with Machine().installed(monkeypatch) as card:
        result, rows, tensors = trained(tmp_path, experiment, CARD)
    _, expected, arrays = trained(tmp_path, experiment, CPU)
    fused = {"sgd": "_fused_sgd_", "adam": "_fused_adam_", "adamw": "_fused_adamw_", "lbfgs": "mm"}[experiment.optimizer]
    assert result["ok"] and card.operations[fused] >= experiment.epochs
    assert_same(rows, expected, 1e-2 if changed.get("precision") == "bf16" else 1e-4)
    assert tensors.keys() == arrays.keys()
    assert card.allocated < 2**20


# --- what a step asks of the card ----------------------------------------------------------------------------------


def watch_steps(monkeypatch, card):
    """Return the counts of every step that is then taken by the loop."""
    steps, plain = [], loop.take_step

    def take_step(training, indices):
        with card.watched() as counts:
            loss = plain(training, indices)
        steps.append(counts)
        return loss

    monkeypatch.setattr(loop, "take_step", take_step)
    return steps


@pytest.mark.parametrize(
    "changed",
    [
        VECTORS,
        VECTORS | {"optimizer": "adam", "loss": "mse", "precision": "bf16"},
        VECTORS | {"optimizer": "adamw", "loss": "focal", "head": "deep", "head_depth": 3},
        IMAGES | {"augment": "crop-flip", "loss": "smoothing", "batch_size": 20},
    ],
    ids=["sgd", "adam", "adamw", "augmented"],
)
def test_no_step_waits_for_the_card(tmp_path, monkeypatch, card, changed):
    steps = watch_steps(monkeypatch, card)
    experiment = Experiment(**changed).resolved()
    trained(tmp_path, experiment, CARD)
    assert len(steps) >= 6 and all(not step.waits for step in steps)
    sent = sum(sum(step.sent.values()) for step in steps)  # the augmentation's draws of an epoch, and nothing else
    assert sent == (2 * experiment.epochs if experiment.augment != "none" else 0)


def test_losses_are_read_together(tmp_path, monkeypatch, card):
    monkeypatch.setattr(loop, "LOOK_SECONDS", 1e9)  # the clock reads them too, ten times a second
    experiment = Experiment(**(VECTORS | {"epochs": 30, "measure_at": "30"})).resolved()
    trained(tmp_path, experiment, CARD)
    steps = 30 * math.ceil(80 / 32)
    assert card.waits["tolist"] <= steps // 64 + 3  # the full buffers, and before the looks and the end


@pytest.mark.parametrize(
    ("name", "side", "precision"),
    [("resnet18", 8, "bf16"), ("vgg11", 32, "float32"), ("densenet40", 8, "float32"), ("vit-tiny", 7, "float32")],
)
def test_torchvisions_networks_on_the_card(monkeypatch, name, side, precision):
    """Two steps as on the CPU, without waiting, and nothing in them that has no deterministic algorithm."""
    pytest.importorskip("torchvision")
    draw = torch.Generator().manual_seed(0)
    pictures = torch.randint(0, 256, (8, 3, side, side), dtype=torch.uint8, generator=draw)
    split = Split(pictures, torch.arange(8) % 4, 4, torch.full((3,), 0.5), torch.full((3,), 0.25))
    monkeypatch.setattr(setting_up, "load_data", lambda *_: (split, split, {}))
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    changed = {"dataset": "cifar10", "model": name, "epochs": 1, "batch_size": 4, "augment": "crop-flip", "lr": 0.01}
    experiment = Experiment(**changed, deterministic=True, precision=precision).resolved()

    def steps(device):
        with loop.numerics(experiment, 1):
            training = setting_up.set_up(experiment, 0, device)
            order = loop.order_of(training, 0)
            losses = [loop.take_step(training, order[:4]), loop.take_step(training, order[4:])]
        return training, losses

    with Machine().installed(monkeypatch) as card, card.watched() as counts:
        training, losses = steps(CARD)
    assert not counts.waits and counts.operations["_fused_sgd_"] == 2 * len(training.optimizer.param_groups)
    expected, others = steps(CPU)
    assert [loss.held.item() for loss in losses] == pytest.approx([loss.item() for loss in others], rel=1e-3)
    for one, other in zip(training.network.parameters(), expected.network.parameters(), strict=True):
        assert torch.allclose(one.held, other, rtol=1e-2, atol=1e-3)  # attention has another kernel on a CPU


# --- --deterministic and precision ---------------------------------------------------------------------------------

# What the text of torch.use_deterministic_algorithms says will raise on a card, and the operation of the dispatcher it is.
DOCUMENTED = {
    "AvgPool3d": "avg_pool3d_backward",
    "AdaptiveAvgPool2d": "_adaptive_avg_pool2d_backward",
    "AdaptiveAvgPool3d": "_adaptive_avg_pool3d_backward",
    "MaxPool3d": "max_pool3d_with_indices_backward",
    "AdaptiveMaxPool2d": "adaptive_max_pool2d_backward",
    "FractionalMaxPool2d": "fractional_max_pool2d_backward",
    "FractionalMaxPool3d": "fractional_max_pool3d_backward",
    "MaxUnpool1d": "max_unpool2d",
    "MaxUnpool2d": "max_unpool2d",
    "MaxUnpool3d": "max_unpool3d",
    "interpolate": "upsample_bilinear2d_backward",
    "ReflectionPad1d": "reflection_pad1d_backward",
    "ReflectionPad2d": "reflection_pad2d_backward",
    "ReflectionPad3d": "reflection_pad3d_backward",
    "NLLLoss": "nll_loss2d_forward",  # of maps; of vectors it is deterministic
    "CTCLoss": "_ctc_loss_backward",
    "EmbeddingBag": "_embedding_bag_dense_backward",
    "put_": "put_",
    "histc": "histc",
    "bincount": "",  # of weights; these with conditions are in Machine._check_deterministic
    "median": "",
    "cumsum": "",
    "scatter_reduce": "scatter_reduce",
    "grid_sample": "grid_sampler_2d_backward",
    "resize_": "",  # of quantised tensors
}


def test_the_card_refuses_what_torch_documents_as_not_deterministic():
    text = torch.use_deterministic_algorithms.__doc__
    listed = text.partition("operations will throw a")[2].partition("In addition")[0]
    names = set(re.findall(r"\* :(?:class|func):`torch\.(?:[\w.]*\.)?(\w+)`", listed))
    assert len(names) > 20 and names <= DOCUMENTED.keys()
    assert {DOCUMENTED[name] for name in names} - {""} <= NONDETERMINISTIC


@pytest.mark.parametrize("changed", [VECTORS | {"precision": "bf16"}, IMAGES | {"augment": "crop-flip"}], ids=["mlp", "convnet"])
def test_deterministic_sets_every_switch_before_it_counts(tmp_path, monkeypatch, card, changed):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "x")  # so that it is put back in the end
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    experiment = Experiment(**changed, deterministic=True, layers="all", ranks="every").resolved()
    trained(tmp_path, experiment, CARD)
    assert card.switches and all(s["deterministic"] and not s["benchmark"] for s in card.switches)
    assert {s["workspace"] for s in card.switches} == {":4096:8"}
    assert not torch.are_deterministic_algorithms_enabled() and torch.backends.cudnn.benchmark


def test_steps_may_round_and_looks_do_not(tmp_path, monkeypatch, card):
    """bfloat16 and TF32 belong to the steps; every product of a look is in full float32."""
    experiment = Experiment(**(VECTORS | {"precision": "bf16", "layers": "all"})).resolved()
    look, kinds = Look(), []

    def observe(training):
        kinds.append(("steps", list(card.switches)))
        look.of(training)  # the traced pass of two samples, once: only shapes are taken from it
        card.switches = []
        rows = look.rows(training)
        kinds.append(("looks", card.switches))
        card.switches = []
        return rows

    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        with Run.create(tmp_path, "collapse", experiment.name, experiment.setting(), seed=0, environment={}) as run:
            run_training(experiment, run, observe=observe, device=CARD)
        assert torch.backends.cuda.matmul.allow_tf32
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    assert len(kinds) == 6 and all(switches for _, switches in kinds[1:])
    for kind, switches in kinds:
        assert all(s["tf32"] == (kind == "steps") for s in switches)
        assert any(s["autocast"] for s in switches) == (kind == "steps" and bool(switches))


def test_an_operation_without_a_deterministic_algorithm_is_one_sentence(tmp_path, monkeypatch, card):
    build = setting_up.build_network

    def pooled(*given):
        network = build(*given)
        network.blocks.append(nn.AdaptiveMaxPool2d(2))
        return network

    monkeypatch.setattr(setting_up, "build_network", pooled)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    outcome = attempt(Job("collapse", Experiment(**IMAGES, deterministic=True).resolved(), 0, str(tmp_path), "cuda:0"))
    assert (
        outcome.exit == 1 and "leave --deterministic out" in outcome.status and "adaptive_max_pool2d_backward" in outcome.status
    )
    assert attempt(Job("collapse", Experiment(**IMAGES).resolved(), 0, str(tmp_path), "cuda:0")).exit == 0


# --- memory --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("memory", [2_000, 50_000, 90_000], ids=["data", "features or steps", "measuring"])
def test_a_card_too_small_is_said_with_the_remedy(tmp_path, monkeypatch, memory):
    experiment = Experiment(**(VECTORS | {"layers": "all"})).resolved()
    with Machine(memory).installed(monkeypatch):
        outcome = attempt(Job("collapse", experiment, 0, str(tmp_path), "cuda:0"))
    full = "out of memory on the GPU; use a smaller --batch-size" in outcome.status and outcome.exit == 1
    refused = "name fewer layers" in outcome.status and outcome.exit == 2  # which of them depends on when Python collects
    assert full or (refused and memory > 2_000), outcome.status


# --- checkpoints ---------------------------------------------------------------------------------------------------


def interrupted(experiment, root, device, at, signum=signal.SIGINT):
    """Train until `at` steps are done, then stop as a signal does."""
    stop = Stop()
    plain = loop.take_step

    def take_step(training, indices):
        if training.step + 1 == at:
            stop.signum = signum
        return plain(training, indices)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(loop, "take_step", take_step)
        patch.setattr(loop, "LOOK_SECONDS", 0.0)
        finish(experiment, root, device, stop=stop)


def finish(experiment, root, device, **more):
    with Run.create(root, "collapse", experiment.name, experiment.setting(), seed=0, environment={}) as run:
        look = Look()
        result = run_training(experiment, run, observe=look.rows, keep=look.tensors, device=device, **more)
        return result, run.rows("metrics.jsonl"), (run.path / "tensors.safetensors").read_bytes()


@pytest.fixture
def dropping(monkeypatch):
    """Networks that draw from the card's own generator in every step."""
    build = setting_up.build_network

    def drops(*given):
        network = build(*given)
        network.blocks.append(nn.Dropout(0.3))
        return network

    monkeypatch.setattr(setting_up, "build_network", drops)


@pytest.mark.parametrize(
    "changed",
    [
        VECTORS | {"schedule": "cosine"},
        VECTORS | {"optimizer": "adamw", "precision": "bf16"},
        VECTORS | {"optimizer": "lbfgs", "batch_size": None, "epochs": 6},
        IMAGES | {"augment": "crop-flip", "optimizer": "adam", "batch_size": 20},
    ],
    ids=["sgd", "adamw", "lbfgs", "augmented"],
)
def test_resumed_is_uninterrupted_bit_for_bit(tmp_path, monkeypatch, dropping, changed):
    experiment = Experiment(**changed, deterministic=True).resolved()
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    with Machine().installed(monkeypatch):
        whole = finish(experiment, tmp_path / "whole", CARD)
    with Machine().installed(monkeypatch):
        interrupted(experiment, tmp_path / "cut", CARD, at=4)
    with Machine().installed(monkeypatch):  # another card, whose generator is somewhere else
        torch.cuda.manual_seed_all(99)
        result, rows, arrays = finish(experiment, tmp_path / "cut", CARD)
    assert result["resumed_at"] == [4] and rows == whole[1] and arrays == whole[2]


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize(("first", "then"), [(CARD, CPU), (CPU, CARD)], ids=["card to CPU", "CPU to card"])
def test_a_checkpoint_is_taken_up_on_the_other_device(tmp_path, monkeypatch, first, then, optimizer):
    experiment = Experiment(**(VECTORS | {"optimizer": optimizer})).resolved()
    _, expected, _ = finish(experiment, tmp_path / "whole", CPU)
    for device, work in ((first, functools.partial(interrupted, at=4)), (then, finish)):
        with Machine().installed(monkeypatch) if device == CARD else contextlib.nullcontext():
            found = work(experiment, tmp_path / "cut", device)
    assert found[0]["resumed_at"] == [4]
    assert_same(found[1], expected, 1e-4)
