"""The training and the measuring on a simulated CUDA card: the same numbers as on the CPU, and nothing a card refuses.

The card itself is in simulated_card.py, which says what it cannot show.
"""

import pytest
import torch
from simulated_card import Machine

from empirical.collapse import Look
from empirical.experiment import LOSSES, Experiment
from empirical.train import run_training
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
