"""What the starvation study does: a loss with a penalty on the logits, and two measures of what the network lives on."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from empirical import collapse
from empirical.cost import Cost
from empirical.data.split import Split
from empirical.experiment import Experiment
from empirical.losses import Loss
from empirical.shortcut import accuracy_rows
from empirical.store import full_float32
from empirical.studies.starvation import Starvation
from empirical.train import Report, Training, run_training
from empirical.training import PLAIN, Recipe
from ufm.interrupt import Stop
from ufm.record import Run

POINTS = 1000  # in one backward pass
NO_SHARE = "the logits change with neither coordinate, or a slope is no finite number"


def penalised(experiment: Experiment, train: Split) -> Loss:
    """Return mean_i [loss(z_i, y_i) + lambda/2 |z_i|^2] of logits z (n, K): spectral decoupling.

    Of two logits (-f/2, f/2) it is lambda/4 f^2 on the logit f of a binary classifier.
    """
    plain, weight = PLAIN.loss(experiment, train), float(experiment.decoupling)  # type: ignore[attr-defined]

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        return plain(logits, labels) + weight / 2 * logits.square().sum(1).mean()

    return loss


RECIPE = Recipe(PLAIN.network, PLAIN.targets, penalised)


def check(experiment: Starvation, seed: int) -> Cost:
    """Return what the training will cost; RequestError for anything that cannot be done."""
    return collapse.check(experiment, seed)


class Look:
    """Measures collapse, and beside it what the network lives on: one coordinate of the moons, or the colour."""

    def __init__(self) -> None:
        self.labels = collapse.Look()

    def rows(self, training: Training) -> list[dict[str, Any]]:
        """Return every row of the network as it is now."""
        stored = self.labels.stored(training)
        rows = self.labels.rows_of(training, *stored)
        for split, kept, data in zip(("train", "test"), stored, (training.train, training.test), strict=True):
            if data.attribute is None:
                share = gradient_share(training.network, data)
                row = {"split": split, "layer": "network", "centres": "self", "metric": "gradient_share", "value": share}
                rows.append(row | ({} if share is not None else {"reason": NO_SHARE}))
            else:
                rows += accuracy_rows(split, kept.predicted, data, training.experiment.coarse)
        return rows

    def tensors(self, training: Training) -> dict[str, Any]:
        """Return what collapse keeps."""
        return self.labels.tensors(training)


def gradient_share(network: nn.Module, data: Split) -> float | None:
    """Return E|df/dx_2| / (E|df/dx_1| + E|df/dx_2|) of the logit difference f = z_1 - z_0 over the samples, in [0, 1].

    inputs (N, 2). 0: the second coordinate does not enter; 1/2: both enter alike; None: neither enters, or a slope is no finite
    number. In eval mode; the network stays as it is.
    """
    training = network.training
    network.eval()
    sizes = torch.zeros(2, dtype=torch.float64, device=data.device)
    try:
        with full_float32(), torch.enable_grad():
            for first in range(0, len(data), POINTS):
                points = data.batch(slice(first, first + POINTS))[0].detach().clone().requires_grad_()
                logits = network(points).float()
                (slopes,) = torch.autograd.grad((logits[:, 1] - logits[:, 0]).sum(), points)
                sizes += slopes.double().abs().sum(0)
    finally:
        network.train(training)
    total = float(sizes.sum())
    return float(sizes[1]) / total if 0 < total < math.inf else None


def train(
    experiment: Starvation, run: Run, *, device: torch.device, threads: int, stop: Stop | None, report: Report | None
) -> dict[str, Any]:
    """Train one network to the end and return the run's result."""
    look = Look()
    return run_training(
        experiment, run, observe=look.rows, keep=look.tensors, device=device, threads=threads, stop=stop, report=report
    )
