"""Training and measuring against the loop everybody writes: DataLoader, batches of 1000 to evaluate, `.item()` per batch.

    python benchmarks/train.py [--json FILE] [--trials 5] [--smoke]

Process CPU time, one thread. The whole laptop commands (200 epochs, train and test measured) are timed by the clock and by the
CPU. With a CUDA GPU also what benchmarks/train_gpu.py holds: ResNet-18 at CIFAR shape and many small networks at once; without
one these rows say so. --smoke runs every row once at a tiny size, those of a GPU on the CPU: its times mean nothing.
"""

from __future__ import annotations

from harness import Row, arguments, command_seconds, cpu_seconds, report  # isort: skip  (sets the thread counts)

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
import train_gpu
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from empirical import collapse
from empirical.experiment import Experiment
from empirical.models import Architecture, build
from empirical.schedule import due_steps
from empirical.step import order_of, take_step
from empirical.train import load_data, run_training, set_up
from ufm.record import Run

CPU = torch.device("cpu")
JOBS = {  # a tenth of the two laptop jobs; cost per epoch is constant
    "digits, MLP 4x128": Experiment(dataset="digits", epochs=20, weight_decay=2e-3, measure_at="1,2,5,10,20"),
    "MNIST-5k, convnet": Experiment(dataset="mnist5k", model="convnet", epochs=4, weight_decay=2e-3, measure_at="1,2,4"),
}
COMMANDS = {  # the laptop jobs as typed: one network, two cores
    "digits, MLP 4x128": ["--dataset", "digits", "--weight-decay", "2e-3"],
    "MNIST-5k, MLP 4x128": ["--dataset", "mnist5k", "--weight-decay", "2e-3"],
    "MNIST-5k, convnet": ["--dataset", "mnist5k", "--model", "convnet", "--weight-decay", "2e-3"],
}
COMMAND_SECONDS = 60.0


# --- ours ----------------------------------------------------------------------------------------------------------


def ours(experiment: Experiment, measured: bool) -> None:
    """Train as `empirical run collapse` does, files included; without `measured` nothing is measured."""
    look = collapse.Look().rows if measured else lambda training: []
    with (
        tempfile.TemporaryDirectory() as folder,
        Run.create(folder, "collapse", "benchmark", experiment.setting(), seed=0, environment={}) as run,
    ):
        run_training(experiment, run, observe=look, device=CPU)


def measuring_cost(experiment: Experiment, trials: int) -> dict[str, float]:
    """Return the share of a whole training's CPU time that goes into measuring: looks and epochs timed in turn."""
    training, look = set_up(experiment, 0, CPU), collapse.Look()
    look.rows(training)
    order = order_of(training, 0)
    steps, forwards, looks = [], [], []
    for _ in range(max(trials, 3)):
        training.step = 0
        begun = time.process_time()
        for position in range(training.clock.per_epoch):
            first, last = training.clock.bounds(position)
            take_step(training, order[first:last])
            training.step += 1
        steps.append((time.process_time() - begun) / training.clock.per_epoch)
        looks.append(_cpu(lambda: look.rows(training)))
        forwards.append(_cpu(lambda: look.stored(training)))
    step, one, forward = (statistics.median(times) for times in (steps, looks, forwards))
    number = len(due_steps(experiment.moments, training.clock))
    whole = training.clock.steps * step + number * one
    return {"looks": number, "step": step, "look": one, "share": number * one / whole, "forward_share": number * forward / whole}


def _cpu(work: Callable[[], Any]) -> float:
    begun = time.process_time()
    work()
    return time.process_time() - begun


def whole_command(flags: list[str], epochs: int) -> tuple[float, float]:
    """Return (seconds by the clock, CPU seconds) of `empirical run collapse` from its start to its end."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "empirical", "run", "collapse", *flags, "--epochs", str(epochs), "--out", folder]
        return command_seconds([*command, "--device", "cpu", "--workers", "1"])


# --- what a user has -----------------------------------------------------------------------------------------------


def common_loop(experiment: Experiment, measured: bool) -> None:
    """Train with a DataLoader; at the measured epochs take class means and then covariances, a pass over the data each."""
    train, test, _ = load_data(experiment, 0)
    architecture = Architecture(tuple(train.inputs.shape[1:]), train.classes, experiment.width, experiment.depth)
    network = build(experiment.model, architecture, 0)
    sets = [TensorDataset(*split.batch(slice(None))) for split in (train, test)]
    loader = DataLoader(sets[0], batch_size=experiment.batch_size, shuffle=True)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=experiment.weight_decay)
    at = {0, *map(int, experiment.measure_at.split(","))}
    for epoch in range(experiment.epochs + 1):
        if epoch:
            total = correct = 0.0
            for inputs, labels in loader:
                optimizer.zero_grad()
                logits = network(inputs)
                loss = F.cross_entropy(logits, labels)
                loss.backward()
                optimizer.step()
                total += loss.item()
                correct += (logits.argmax(1) == labels).sum().item()
        if measured and epoch in at:
            network.eval()
            for part in sets:
                common_measures(network, DataLoader(part, batch_size=1000), train.classes)
            network.train()


@torch.no_grad()
def common_measures(network: nn.Module, loader: DataLoader, classes: int) -> tuple[float, float]:
    """NC1 and the error: one pass for the class means, one for the covariance, hooks for the features."""
    kept = []
    hook = network.classifier.register_forward_hook(lambda module, inputs, output: kept.append(inputs[0]))
    sums, counts, wrong = 0.0, torch.zeros(classes), 0
    for inputs, labels in loader:
        wrong += (network(inputs).argmax(1) != labels).sum().item()
        features = kept.pop()
        hot = F.one_hot(labels, classes).float()
        sums, counts = sums + hot.T @ features, counts + hot.sum(0)
    means = sums / counts[:, None]
    within = 0.0
    for inputs, labels in loader:
        network(inputs)
        centred = kept.pop() - means[labels]
        within = within + centred.T @ centred
    hook.remove()
    spread = means - means.mean(0)
    between = spread.T @ spread / classes
    nc1 = torch.trace(within / counts.sum() @ torch.linalg.pinv(between, hermitian=True)) / classes
    return nc1.item(), wrong / counts.sum().item()


# --- the rows ------------------------------------------------------------------------------------------------------


def laptop_rows(trials: int, smoke: bool) -> tuple[list[Row], dict[str, Any]]:
    """Return the comparisons with the common loop, and what was measured beside them."""
    rows, facts = [], {}
    for name, job in JOBS.items():
        small = {"epochs": 1, "measure_at": "1", "train_per_class": 20} if smoke else {}
        experiment = replace(job, **small).resolved()
        set_up(experiment, 0, CPU)  # the data are read once, for both sides
        for measured in (False, True):
            fast = cpu_seconds(lambda e=experiment, m=measured: ours(e, m), trials)
            slow = cpu_seconds(lambda e=experiment, m=measured: common_loop(e, m), trials)
            what = "trained and measured" if measured else "trained"
            rows.append(Row(f"{name}, {experiment.epochs} epochs {what}", fast, "DataLoader loop", slow, 1.0))
        whole = replace(job, epochs=2 if smoke else 200, measure_at="log", **({"train_per_class": 20} if smoke else {}))
        cost = facts[f"cost of measuring: {name}"] = measuring_cost(whole.resolved(), trials)
        print(
            f"cost of measuring: {name}, {whole.epochs} epochs, {cost['looks']} log-spaced looks: {cost['share']:.1%} of the CPU "
            f"time, {cost['forward_share']:.1%} the two forward passes alone (target 5%)"
        )
    for name, flags in COMMANDS.items():
        epochs = 2 if smoke else 200
        clock, cpu = whole_command([*flags, *(["--train-per-class", "20"] if smoke else [])], epochs)
        fact = facts[f"whole command: {name}"] = {"seconds": clock, "cpu_seconds": cpu, "target": COMMAND_SECONDS}
        spent = f"{clock:.1f} s by the clock, {cpu:.1f} s of CPU (target {COMMAND_SECONDS:g} s)"
        if cost := facts.get(f"cost of measuring: {name}"):
            fact["share"] = cost["looks"] * cost["look"] / clock
            spent += f", {fact['share']:.1%} of it measuring (target 5%)"
        print(f"whole command: {name}, {epochs} epochs: {spent}")
    return rows, facts


def main() -> None:
    """Measure and print."""
    options = arguments(__doc__, smoke=True)
    torch.set_num_threads(1)
    trials = 1 if options.smoke else options.trials
    rows, facts = laptop_rows(trials, options.smoke)
    if torch.cuda.is_available() or options.smoke:
        more, found = train_gpu.rows(trials, options.smoke)
        rows, facts = rows + more, facts | found
    else:
        print("ResNet-18 at CIFAR shape, many small networks at once: left out, no CUDA GPU")
    report(rows, options, facts)


if __name__ == "__main__":
    main()
