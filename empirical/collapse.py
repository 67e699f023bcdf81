"""What the collapse study does: it checks a request, and trains while looking at every measure of the chosen layers."""

from __future__ import annotations

from typing import Any

import torch

from empirical.cost import Cost, cost_of
from empirical.epoch import measure_network
from empirical.experiment import Experiment
from empirical.features import Plan, plan_layers
from empirical.tensors import measure_tensors
from empirical.train import Report, Training, build_network, clock_of, load_data, run_training
from ufm.interrupt import Stop
from ufm.record import Run


def check(experiment: Experiment, seed: int) -> Cost:
    """Return what the training will cost; RequestError for anything that cannot be done, before anything is written."""
    data, test, _ = load_data(experiment, seed)
    clock = clock_of(experiment, len(data))
    cost = cost_of(experiment, tuple(data.inputs.shape[1:]), data.classes, len(test), clock)
    network = build_network(experiment, data, seed)
    plan_layers(network, data.batch(slice(0, 2))[0], layers_of(experiment), None)
    return cost


def layers_of(experiment: Experiment) -> str | list[str]:
    """Return --layers as `measure_network` takes it."""
    return experiment.layers if experiment.layers in ("last", "all") else experiment.layers.split(",")


class Look:
    """Measures a training. The plan of layers is made once: it costs a traced forward pass."""

    def __init__(self) -> None:
        self.plan: Plan | None = None

    def of(self, training: Training) -> Plan:
        """Return the layers to measure."""
        if self.plan is None:
            example = training.train.batch(slice(0, 2))[0]
            self.plan = plan_layers(training.network, example, layers_of(training.experiment), None)
        return self.plan

    def rows(self, training: Training) -> list[dict[str, Any]]:
        """Return every measure of the network as it is now."""
        return measure_network(
            training.network,
            training.train,
            training.test,
            layers=self.of(training),
            device=training.device,
            match_counts=training.experiment.match_counts,
            seed=training.seed,
            loss=training.objective,
        )

    def tensors(self, training: Training) -> dict[str, Any]:
        """Return what `tensors.safetensors` keeps of the trained network."""
        plan = self.of(training)
        return measure_tensors(training.network, training.train, training.test, layers=plan, device=training.device)


def train(
    experiment: Experiment, run: Run, *, device: torch.device, threads: int, stop: Stop | None, report: Report | None
) -> dict[str, Any]:
    """Train one network to the end and return the run's result."""
    look = Look()
    return run_training(
        experiment,
        run,
        observe=look.rows,
        keep=look.tensors,
        device=device,
        threads=threads,
        stop=stop,
        report=report,
    )
