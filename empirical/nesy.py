"""What the nesy study does: it trains a network of digits on sums alone, and measures it by the digits that it never saw."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from empirical import collapse
from empirical.cost import Cost, layer_sizes
from empirical.data.split import Split
from empirical.devices import launched
from empirical.experiment import Experiment
from empirical.features import plan_layers
from empirical.losses import Loss
from empirical.models.layers import initialise
from empirical.store import Stored, full_float32
from empirical.studies.nesy import Nesy
from empirical.sums import EXACT, PLAIN, SumClassifier, draw_operands
from empirical.train import Report, Training, load_data, run_training
from empirical.training import Recipe
from ufm.errors import RequestError
from ufm.interrupt import Stop
from ufm.record import Run
from ufm.seeds import stream

LAYER = "penultimate"
CHUNK = 4096  # sums looked at together
EXACT_SECONDS = 2.5e-9  # of the exact sum, forward and back, for each of its m^2 K^2 / 2 terms


def check(experiment: Nesy, seed: int) -> Cost:
    """Return what the training will cost; RequestError for anything that cannot be done."""
    launch = launched()
    if launch is not None and launch.size > 1:
        raise RequestError(f"torchrun with {launch.size} processes: nesy trains a network in one; start it without torchrun")
    train, test, _ = load_data(experiment, seed)
    for split, data in (("train", train), ("test", test)):
        if len(data) < experiment.operands:
            raise RequestError(f"--operands {experiment.operands}: there are {len(data)} {split} images; use fewer operands")
    cost = collapse.check(experiment, seed)
    m, batch = experiment.operands, min(int(experiment.batch_size or 1), experiment.samples_of(len(train)))
    values = sum(size[2] for size in layer_sizes(experiment, tuple(train.inputs.shape[1:]), train.classes))
    terms = (m * train.classes) ** 2 // 2
    return dataclasses.replace(
        cost,
        seconds=m * cost.seconds + cost.steps * batch * terms * EXACT_SECONDS,
        bytes=cost.bytes + 4 * 3 * batch * ((m - 1) * values + 4 * terms),
    )


# --- the recipe ----------------------------------------------------------------------------------------------------


def _network(network: nn.Module, experiment: Experiment, train: Split, seed: int) -> nn.Module:
    """Return the network with a classifier that can be trained on sums; the rest starts as without a pretraining."""
    nesy: Nesy = experiment  # type: ignore[assignment]
    path = plan_layers(network, train.batch(slice(0, 2))[0], "last", None).classifier
    given = network.get_submodule(path) if path else None
    if type(given) is not nn.Linear:
        raise RequestError(f"--model {nesy.model}: nesy needs a linear classifier of digits, which this network has not")
    parent, _, name = str(path).rpartition(".")
    plain = None if nesy.start == "scratch" else _plain(nesy, given.in_features, train.classes, seed)
    setattr(network.get_submodule(parent), name, SumClassifier(given, nesy.operands, plain, nesy.joined))
    return network


def _plain(experiment: Nesy, features: int, classes: int, seed: int) -> nn.Module:
    """Return the plain network on the features: one hidden layer, to logits of every possible sum."""
    inputs = features * (experiment.operands if experiment.joined == "concat" else 1)
    sums, width = experiment.operands * (classes - 1) + 1, experiment.plain_width
    return initialise(nn.Sequential(nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, sums)), stream(seed, "plain"))


def _groups(train: Split, experiment: Experiment, seed: int) -> Tensor:
    """Return the images of each train sum, (sums, operands)."""
    nesy: Nesy = experiment  # type: ignore[assignment]
    drawn = draw_operands(len(train), nesy.operands, nesy.repeats, seed, "sums")
    return torch.from_numpy(drawn).to(train.device)


def _targets(train: Split, experiment: Experiment, seed: int) -> Tensor:
    """Return the label of each train sum: the sum of its digits."""
    return train.labels[_groups(train, experiment, seed)].sum(1)


def _loss(experiment: Experiment, train: Split) -> Loss:
    """Cross-entropy; of log probabilities, which are their own log softmax, it is the negative log likelihood."""
    return F.cross_entropy


def classifier_of(network: nn.Module) -> SumClassifier:
    """Return the classifier of a network that this study built."""
    return next(module for module in network.modules() if isinstance(module, SumClassifier))


def begin(training: Training) -> None:
    """Before a step: enter the exact stage where the pretraining is over, with a fresh optimiser, and freeze what is frozen."""
    classifier, switch = classifier_of(training.network), pretrained(training)
    if classifier.plain is None or training.step < switch:
        return
    if training.step == switch:
        training.optimizer.state.clear()
    if classifier.stage == EXACT:
        return
    classifier.stage = EXACT
    if training.experiment.start == "frozen":  # type: ignore[attr-defined]
        for module in training.network.modules():
            if module is not classifier:
                module.training = False  # batch norm keeps its statistics
        own = (classifier.weight, classifier.bias)
        for parameter in training.network.parameters():
            parameter.requires_grad_(parameter.requires_grad and any(parameter is p for p in own))


def pretrained(training: Training) -> int:
    """Return the step at which the exact stage begins; 0 from scratch."""
    return training.experiment.stages(training.clock.per_epoch)[-2]


RECIPE = Recipe(network=_network, targets=_targets, loss=_loss, groups=_groups, begin=begin)


# --- measuring -----------------------------------------------------------------------------------------------------


class Look:
    """Measures the network by digit as collapse does by class, and by the sums, from one forward pass a split."""

    def __init__(self) -> None:
        self.digits = collapse.Look()
        self.sums: dict[str, Tensor] = {}  # the images of the sums of each split

    def rows(self, training: Training) -> list[dict[str, Any]]:
        """Return every row of the network as it is now."""
        stored = self.digits.stored(training)
        rows = self.digits.rows_of(training, *stored)
        if not self.sums:
            assert training.groups is not None
            e: Nesy = training.experiment  # type: ignore[assignment]
            drawn = draw_operands(len(training.test), e.operands, e.repeats, training.seed, "test-sums")
            self.sums = {"train": training.groups, "test": torch.from_numpy(drawn).to(training.device)}
        for split, kept in zip(("train", "test"), stored, strict=True):
            place = {"split": split, "layer": "network", "centres": "self"}
            measured = sum_values(training, kept, self.sums[split])
            if training.step >= pretrained(training):  # before that nothing has trained the digits' classifier
                measured |= digit_values(kept)
            rows += [{**place, "metric": metric, "value": value} for metric, value in measured.items()]
        return rows

    def tensors(self, training: Training) -> dict[str, Any]:
        """Return what collapse keeps."""
        return self.digits.tensors(training)


def digit_values(kept: Stored) -> dict[str, float]:
    """Return the share of digits read right, and the same after the best one-to-one renaming of what was read.

    Where every sum of digits occurs as a label, as those of two do and those of ten hardly can, only the right names fit all
    sums; a training may stop at others all the same, and the second number tells that from digits that it does not tell apart.
    """
    from scipy.optimize import linear_sum_assignment

    labels, read = kept.labels.cpu().numpy(), kept.predicted.cpu().numpy()
    K = int(max(labels.max(), read.max())) + 1
    counts = np.zeros((K, K), dtype=np.int64)
    np.add.at(counts, (labels, read), 1)
    rows, columns = linear_sum_assignment(counts, maximize=True)
    total = len(labels)
    return {
        "digit_accuracy": int(np.trace(counts)) / total,
        "digit_accuracy_matched": int(counts[rows, columns].sum()) / total,
    }


def sum_values(training: Training, kept: Stored, groups: Tensor) -> dict[str, float]:
    """Return mean loss and error on the sums: of the plain network while it is trained, then of the exact model."""
    classifier, switch = classifier_of(training.network), pretrained(training)
    stages = [PLAIN] if classifier.plain is not None and training.step <= switch else []
    stages += [EXACT] if training.step >= switch else []
    features, labels = kept.features[LAYER], kept.labels
    found: dict[str, float] = {}
    with torch.no_grad(), full_float32():
        for stage in stages:
            loss, wrong = 0.0, 0
            for some in groups.split(CHUNK):
                target, operands = labels[some].sum(1), features[some.flatten()]
                logits = classifier.plain_sums(operands) if stage == PLAIN else classifier.exact_sums(operands)
                loss += float(F.cross_entropy(logits, target, reduction="sum"))
                wrong += int((logits.argmax(1) != target).sum())
            name = "plain_sum" if stage == PLAIN else "sum"
            found |= {f"{name}_loss": loss / len(groups), f"{name}_error": wrong / len(groups)}
    return found


def train(
    experiment: Nesy, run: Run, *, device: torch.device, threads: int, stop: Stop | None, report: Report | None
) -> dict[str, Any]:
    """Train one network to the end, its pretraining included, and return the run's result."""
    look = Look()
    return run_training(
        experiment, run, observe=look.rows, keep=look.tensors, device=device, threads=threads, stop=stop, report=report
    )
