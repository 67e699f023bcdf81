"""Training and measuring against the loop everybody writes: DataLoader, batches of 1000 to evaluate, `.item()` per batch.

    python benchmarks/train.py [--json FILE] [--trials 5]

Process CPU time, one thread. With a CUDA GPU also: steps per second of a ResNet-18 on CIFAR-shaped data, the share of the
card's measured bfloat16 matrix rate that is, and what 350 epochs would take.
"""

from __future__ import annotations

from harness import Row, arguments, cpu_seconds, report  # isort: skip  (sets the thread counts)

import tempfile
import time

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from empirical import collapse
from empirical.data.split import Split
from empirical.experiment import Experiment
from empirical.losses import objective
from empirical.models import Architecture, build
from empirical.optimise import optimizer_of
from empirical.schedule import Clock
from empirical.train import Training, load_data, numerics, order_of, run_training, set_up, take_step
from ufm.record import Run

CPU = torch.device("cpu")
JOBS = {  # a tenth of the two laptop jobs; cost per epoch is constant
    "digits, MLP 4x128": Experiment(dataset="digits", epochs=20, weight_decay=2e-3, measure_at="1,2,5,10,20"),
    "MNIST-5k, convnet": Experiment(dataset="mnist5k", model="convnet", epochs=4, weight_decay=2e-3, measure_at="1,2,4"),
}


# --- ours ----------------------------------------------------------------------------------------------------------


def ours(experiment: Experiment, measured: bool) -> None:
    """Train as `empirical run collapse` does, files included; without `measured` nothing is measured."""
    look = collapse.Look().rows if measured else lambda training: []
    with (
        tempfile.TemporaryDirectory() as folder,
        Run.create(folder, "collapse", "benchmark", experiment.setting(), seed=0, environment={}) as run,
    ):
        run_training(experiment, run, observe=look, device=CPU)


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


# --- a GPU ---------------------------------------------------------------------------------------------------------


def gpu_training(batch: int) -> Training:
    """A ResNet-18 on random CIFAR-shaped images, compiled, in bfloat16."""
    experiment = Experiment(dataset="cifar10", model="resnet18", precision="bf16", compile=True, epochs=350).resolved()
    device = torch.device("cuda")
    inputs = torch.randint(0, 256, (50_000, 3, 32, 32), dtype=torch.uint8)
    split = Split(inputs, torch.arange(50_000) % 10, 10, torch.full((3,), 0.5), torch.full((3,), 0.25)).to(device)
    network = build("resnet18", Architecture((3, 32, 32), 10), 0).to(device, memory_format=torch.channels_last)
    clock = Clock(50_000, batch, 350 * (50_000 // batch))
    return Training(
        experiment, 0, device, split, split, {}, network, torch.compile(network, dynamic=False),
        objective("ce"), optimizer_of(experiment, network), clock, (),
    )  # fmt: skip


def matrix_rate(size: int = 8192, repeats: int = 20) -> float:
    """Return the card's bfloat16 flop/s on a large product."""
    a = torch.randn(size, size, device="cuda", dtype=torch.bfloat16)
    for _ in range(3):
        a @ a
    torch.cuda.synchronize()
    begun = time.perf_counter()
    for _ in range(repeats):
        a @ a
    torch.cuda.synchronize()
    return 2 * size**3 * repeats / (time.perf_counter() - begun)


def gpu_part(batch: int = 128, steps: int = 300) -> None:
    """Print what the GPU does."""
    training = gpu_training(batch)
    order = order_of(training, 0)
    with numerics(training.experiment, 0):
        for step in range(30 + steps):
            if step == 30:  # compiled and warm
                torch.cuda.synchronize()
                begun = time.perf_counter()
            first, last = training.clock.bounds(step)
            take_step(training, order[first:last])
        torch.cuda.synchronize()
    seconds = (time.perf_counter() - begun) / steps
    flops = 3 * 2 * 0.5566e9 * batch  # forward and backward; 0.5566 G multiplications of a ResNet-18 at 32 x 32
    share = flops / seconds / matrix_rate()
    print(
        f"{torch.cuda.get_device_name()}: {seconds * 1e3:.2f} ms a step of {batch}; {share:.0%} of the measured bf16 matrix rate;"
    )
    print(f"350 epochs of 50000: {350 * 50_000 / batch * seconds / 60:.1f} min, without measuring")


def main() -> None:
    """Measure and print."""
    options = arguments(__doc__)
    torch.set_num_threads(1)
    rows = []
    for name, job in JOBS.items():
        experiment = job.resolved()
        set_up(experiment, 0, CPU)  # the data are read once, for both sides
        seconds = {}
        for measured in (False, True):
            fast = cpu_seconds(lambda e=experiment, m=measured: ours(e, m), options.trials)
            slow = cpu_seconds(lambda e=experiment, m=measured: common_loop(e, m), options.trials)
            seconds[measured] = fast
            what = "trained and measured" if measured else "trained"
            rows.append(Row(f"{name}, {experiment.epochs} epochs {what}", fast, "DataLoader loop", slow, 1.0))
        share = 1 - seconds[False] / seconds[True]
        print(f"{name}: measuring took {share:.0%} of the CPU time of {len(experiment.measure_at.split(',')) + 1} looks")
    report(rows, options)
    if torch.cuda.is_available():
        gpu_part()
    else:
        print("no CUDA GPU: its part was left out")


if __name__ == "__main__":
    main()
