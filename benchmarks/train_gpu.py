"""The rows of benchmarks/train.py that need a GPU: ResNet-18 at CIFAR shape beside the common loop, and many small networks.

Random images: what is timed does not depend on what they show. Every number is a median of several passes, after passes that
compile and warm up, with the device synchronised at both ends.
"""

from __future__ import annotations

from harness import Row  # isort: skip  (sets the thread counts)

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset

from empirical.collapse import Look
from empirical.data.split import Split
from empirical.experiment import Experiment
from empirical.models import Architecture, build
from empirical.stacked import Stack
from empirical.step import order_of, take_step
from empirical.train import numerics
from empirical.training import Training, set_up, set_up_on

MULTIPLICATIONS = 0.5566e9  # of a ResNet-18 with the CIFAR stem, one image of 32 x 32
EPOCHS, LOOKS = 350, 40  # of the run whose time is estimated
TARGET_MINUTES, TARGET_SHARE, TARGET_STACK = 7.0, 0.25, 20.0


@dataclass(frozen=True)
class Size:
    """How much is done: for real on a GPU, or just to see that every line runs."""

    device: torch.device
    train: int
    test: int
    side: int
    batch: int
    steps: int
    warm: int
    compiled: bool
    product: int
    networks: int
    precision: str


def size_of(smoke: bool) -> Size:
    """Return the sizes: CIFAR's on the GPU, tiny ones on whatever there is for a smoke test."""
    if smoke:
        return Size(torch.device("cpu"), 24, 12, 16, 8, 2, 1, False, 64, 3, "bf16")
    return Size(torch.device("cuda"), 50_000, 10_000, 32, 128, 300, 30, True, 8192, 256, "bf16")


def seconds(work: Callable[[], Any], device: torch.device, trials: int) -> float:
    """Return the median time of `work` on the device, by the clock."""
    spent = []
    for _ in range(max(trials, 1)):
        _wait(device)
        begun = time.perf_counter()
        work()
        _wait(device)
        spent.append(time.perf_counter() - begun)
    return statistics.median(spent)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def matrix_rate(size: Size, trials: int) -> float:
    """Return the device's bfloat16 flop/s on a large product."""
    a = torch.randn(size.product, size.product, device=size.device, dtype=torch.bfloat16)
    for _ in range(3):
        a @ a
    return 2 * size.product**3 * 20 / seconds(lambda: [a @ a for _ in range(20)], size.device, trials)


# --- one ResNet-18 -------------------------------------------------------------------------------------------------


def images(number: int, side: int) -> Split:
    """Random CIFAR-shaped uint8 images with labels in turn."""
    inputs = torch.randint(0, 256, (number, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Split(inputs, torch.arange(number) % 10, 10, torch.full((3,), 0.5), torch.full((3,), 0.25))


def resnet(size: Size, augment: str) -> Training:
    """A ResNet-18 as `empirical run collapse --model resnet18 --precision bf16 --compile` trains it."""
    experiment = Experiment(
        dataset="cifar10",
        model="resnet18",
        precision=size.precision,
        compile=size.compiled,
        epochs=EPOCHS,
        batch_size=size.batch,
        augment=augment,
    ).resolved()
    pictures = images(size.train, size.side), images(size.test, size.side)
    return set_up_on(experiment, 0, size.device, *pictures, {})


def step_seconds(training: Training, size: Size, trials: int) -> float:
    """Return the time of one step."""
    order = order_of(training, 0)
    places = training.clock.per_epoch - 1  # the last batch is smaller and would be compiled apart

    def steps(number: int) -> None:
        for _ in range(number):
            first, last = training.clock.bounds(training.step % places)
            take_step(training, order[first:last])
            training.step = (training.step + 1) % places

    with numerics(training.experiment, 0):
        steps(size.warm)
        return seconds(lambda: steps(size.steps), size.device, trials) / size.steps


def look_seconds(training: Training, size: Size, trials: int) -> float:
    """Return the time of one look at train and test, as it is taken in the middle of a training."""
    look = Look()
    with numerics(training.experiment, 0):
        look.rows(training)
        training.step = 1  # none of the ends, where VCI and the ranks are measured too
        return seconds(lambda: look.rows(training), size.device, trials)


def common_step_seconds(size: Size, trials: int) -> float:
    """Return the time of one step of the loop everybody writes: DataLoader, float32, NCHW, two `.item()` per batch."""
    split = images(size.train, size.side)
    inputs = (split.inputs.float() / 255 - 0.5) / 0.25
    loader = DataLoader(TensorDataset(inputs, split.labels), batch_size=size.batch, shuffle=True, drop_last=True)
    network = build("resnet18", Architecture((3, size.side, size.side), 10), 0).to(size.device)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)

    def steps(number: int) -> None:
        for done, (x, y) in enumerate(loader):
            if done == number:
                return
            x, y = x.to(size.device), y.to(size.device)
            optimizer.zero_grad()
            logits = network(x)
            loss = F.cross_entropy(logits, y)
            loss.backward()
            optimizer.step()
            loss.item(), (logits.argmax(1) == y).sum().item()

    number = min(size.steps, len(loader))
    steps(size.warm)
    return seconds(lambda: steps(number), size.device, trials) / number


def resnet_rows(size: Size, trials: int) -> tuple[list[Row], dict[str, Any]]:
    """Return images per second, the share of the matrix rate, the cost of measuring, and the common loop beside it."""
    training = resnet(size, "none")
    step = step_seconds(training, size, trials)
    augmented = step_seconds(resnet(size, "crop-flip"), size, trials)
    one_look = look_seconds(training, size, trials)
    common = common_step_seconds(size, trials)
    rate = matrix_rate(size, trials)
    share = 6 * MULTIPLICATIONS * (size.side / 32) ** 2 * size.batch / step / rate  # forward and backward: 3 times 2 flop each
    training_seconds = EPOCHS * (size.train / size.batch) * step
    measuring = LOOKS * one_look
    facts = {
        "step_seconds": step,
        "images_per_second": size.batch / step,
        "images_per_second_augmented": size.batch / augmented,
        "images_per_second_common": size.batch / common,
        "matrix_flops": rate,
        "share_of_matrix_rate": share,
        "look_seconds": one_look,
        "cost_of_measuring": measuring / (measuring + training_seconds),
        "minutes_of_350_epochs": (training_seconds + measuring) / 60,
    }
    per_second = [f"{facts[f'images_per_second{kind}']:.0f}" for kind in ("", "_augmented", "_common")]
    print(
        f"ResNet-18, batches of {size.batch}: {per_second[0]} images/s ({per_second[1]} augmented, {per_second[2]} the common "
        f"loop); {share:.0%} of the measured bf16 matrix rate {rate:.3g} flop/s (target {TARGET_SHARE:.0%})"
    )
    print(
        f"{EPOCHS} epochs with {LOOKS} looks: {facts['minutes_of_350_epochs']:.1f} min (target {TARGET_MINUTES:g}), "
        f"{facts['cost_of_measuring']:.1%} of it measuring (target 5%)"
    )
    name = f"ResNet-18, one step of {size.batch} images"
    return [Row(name, step, "DataLoader, fp32, NCHW", common, 1.0, "seconds by the clock on the device")], {"resnet18": facts}


# --- many small networks -------------------------------------------------------------------------------------------


def stack_rows(size: Size, trials: int, smoke: bool) -> tuple[list[Row], dict[str, Any]]:
    """Return the time of a step of one network among many stacked, against the step of one alone on the same device."""
    experiment = Experiment(dataset="digits", train_per_class=10 if smoke else None).resolved()
    trainings = [set_up(experiment, seed, size.device) for seed in range(size.networks)]
    alone = set_up(experiment, 0, size.device)
    order, stack = order_of(alone, 0), Stack(trainings)
    orders = stack.order(0)
    number = 2 if smoke else 50

    def single() -> None:
        for position in range(number):
            first, last = alone.clock.bounds(position % (alone.clock.per_epoch - 1 or 1))
            take_step(alone, order[first:last])

    def together() -> None:
        for _ in range(number):
            stack.take_step(orders)

    for work in (single, together):
        work()
    one = seconds(single, size.device, trials) / number
    many = seconds(together, size.device, trials) / number / size.networks
    print(f"{size.networks} MLPs 4x128 on digits: {1 / many:.0f} network steps/s stacked, {1 / one:.0f} one after the other")
    name = f"{size.networks} small networks at once, one step of one of them"
    row = Row(name, many, "a loop of runs", one, TARGET_STACK, "seconds by the clock on the device")
    return [row], {"stack": {"networks": size.networks, "steps_per_second": 1 / many, "steps_per_second_alone": 1 / one}}


def rows(trials: int, smoke: bool) -> tuple[list[Row], dict[str, Any]]:
    """Return all rows of the GPU; with `smoke` at a tiny size on the CPU."""
    size = size_of(smoke)
    if not smoke:
        print(torch.cuda.get_device_name())
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError):  # or a build for another torch
        print("ResNet-18: left out, torchvision is not installed, or does not load")
        found: tuple[list[Row], dict[str, Any]] = ([], {})
    else:
        found = resnet_rows(size, trials)
    more, facts = stack_rows(size, trials, smoke)
    return found[0] + more, found[1] | facts
