"""What the collapse study does: it checks a request, and trains while looking at every measure of the chosen layers."""

from __future__ import annotations

import itertools
from typing import Any

import torch

from empirical.cost import Cost, cost_of
from empirical.data import outside
from empirical.data.split import Split
from empirical.devices import launched
from empirical.distributed import collect_together
from empirical.epoch import rows_of
from empirical.experiment import Experiment
from empirical.features import Plan, classifier_weight, plan_layers
from empirical.head import Head, find_head, head_arrays, head_rows
from empirical.store import Stored, check_classes
from empirical.tensors import tensors_of
from empirical.train import Report, Training, build_network, load_data, run_training
from empirical.training import check_data
from ufm.errors import RequestError
from ufm.interrupt import Stop
from ufm.measure.names import DEFAULT, NEEDS_SCATTER
from ufm.record import Run


def check(experiment: Experiment, seed: int) -> Cost:
    """Return what the training will cost; RequestError for anything that cannot be done, before anything is written."""
    data, test, info = load_data(experiment, seed)
    launch = launched()
    clock = check_data(experiment, data, test, 1 if launch is None else launch.size)
    check_classes(data.classes)
    cost = cost_of(experiment, tuple(data.inputs.shape[1:]), data.classes, len(test), clock)
    network = build_network(experiment, data, seed)
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise RequestError(
            f"--head {experiment.head} --depth {experiment.depth}: a frozen head on no layer leaves nothing to train; "
            "use --depth 1 or more, or --head linear"
        )
    plan_layers(network, data.batch(slice(0, 2))[0], layers_of(experiment), None)
    if experiment.ood is not None:
        outside(experiment.ood, info, seed=seed)
    return cost


def layers_of(experiment: Experiment) -> str | list[str]:
    """Return --layers as `measure_network` takes it."""
    return experiment.layers if experiment.layers in ("last", "all") else experiment.layers.split(",")


class Look:
    """Measures a training. The plan of layers is made once: it costs a traced forward pass."""

    def __init__(self) -> None:
        self.plan: Plan | None = None
        self.outside: Split | None = None  # of --ood
        self.head: Head | None = None  # of --head deep
        self.last: tuple[Any, tuple[Stored, Stored]] | None = None  # the network as the last look saw it, and what it kept

    def of(self, training: Training) -> Plan:
        """Return the layers to measure."""
        if self.plan is None:
            example, experiment = training.train.batch(slice(0, 2))[0], training.experiment
            self.plan = plan_layers(training.network, example, layers_of(experiment), None)
            if experiment.head == "deep":
                self.head = find_head(training.network, example, self.plan.classifier, experiment.head_depth)
        return self.plan

    def rows(self, training: Training) -> list[dict[str, Any]]:
        """Return every measure of the network as it is now."""
        return self.rows_of(training, *self.stored(training))

    def stored(self, training: Training) -> tuple[Stored, Stored]:
        """Return what one pass over train and one over test keep; `tensors` asks for those of the last look once more."""
        plan, network = self.of(training), training.network
        state = [(id(t), t._version) for t in itertools.chain(network.parameters(), network.buffers())]
        if self.last is not None and self.last[0] == state:
            return self.last[1]
        same = {"device": training.device, "loss": training.objective}
        both = tuple(collect_together(network, plan, data, **same) for data in (training.train, training.test))
        self.last = (state, both) if training.step == training.clock.steps else None  # not held while it trains
        return both

    def rows_of(self, training: Training, train: Stored, test: Stored, whole: bool = False) -> list[dict[str, Any]]:
        """Return the measures from stored features. VCI and the ranks, which decompose d x d matrices, as --ranks says.

        whole: with VCI and the ranks in any case.
        """
        ends = training.step in (0, training.clock.steps)
        names = None if whole or ends or training.experiment.ranks == "every" else tuple(DEFAULT - NEEDS_SCATTER)
        plan, network, experiment = self.of(training), training.network, training.experiment
        classifier = classifier_weight(network, plan)
        matched = {"match_counts": experiment.match_counts, "seed": training.seed}
        rows = rows_of(train, test, plan, *classifier, **matched, ood=self.ood(training), names=names)
        if self.head is not None:
            rows += head_rows(self.head, network, plan, train, loss=training.objective, decay=experiment.weight_decay)
        return rows

    def ood(self, training: Training) -> Stored | None:
        """Return the features of the out-of-distribution samples, which the run's result then names, or None."""
        name = training.experiment.ood
        if name is None:
            return None
        if self.outside is None:
            samples, training.info["ood"] = outside(name, training.info, seed=training.seed)
            self.outside = samples.to(training.device)
        return collect_together(training.network, self.of(training), self.outside, device=training.device)

    def tensors(self, training: Training) -> dict[str, Any]:
        """Return what `tensors.safetensors` keeps of the trained network."""
        plan, network = self.of(training), training.network
        arrays = tensors_of(*self.stored(training), plan, *classifier_weight(network, plan))
        return arrays if self.head is None else arrays | head_arrays(self.head, network)


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
