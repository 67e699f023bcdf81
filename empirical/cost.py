"""What a training will take, estimated before anything is allocated."""

from __future__ import annotations

import itertools
import math
import os
from dataclasses import dataclass

from empirical.experiment import Experiment
from empirical.schedule import Clock, due_steps, small_last_batch
from ufm.errors import RequestError

FLOPS = 5e10  # of one core on small matrices: an estimate within a factor of three is all that is wanted
STEP_SECONDS = 1.1e-4  # of one step and one layer of a small network, whatever its size
PROCESS = 400 * 2**20  # Python with torch and the measures loaded
COPIES = 5  # parameters, gradients, momentum, a checkpoint being written, and one to spare
HOST_COPIES = 3  # with a GPU: the network as it is made, then a checkpoint of parameters and momentum
LOOK_VECTORS, LOOK_IMAGES = 1000, 128  # samples of one forward pass of a look on a CPU
LARGE = 64  # pixels: from here on a ResNet and a DenseNet have a stem that leaves a sixteenth of them
TOKENS = 14**2  # of a ViT at most, with patches of 4 x 4 pixels where an image is small
# (parameters, multiplications per pixel, activations kept per pixel), counted by torch at 3 x 32 x 32 and ten classes.
# A model that is not here (of timm) is taken for a ResNet-18.
PUBLIC = {
    "resnet18": (11_200_000, 542_000, 1_800),
    "resnet34": (21_300_000, 1_132_000, 3_000),
    "resnet50": (23_500_000, 1_267_000, 9_600),
    "vgg11": (9_200_000, 149_000, 500),
    "vgg13": (9_400_000, 223_000, 800),
    "densenet40": (180_000, 71_000, 3_100),
    "vit-tiny": (5_400_000, 338_000, 5_100),
}


@dataclass(frozen=True)
class Cost:
    """parameters: of the network; steps: of the optimiser; bytes: at the peak; seconds: on one core, roughly.

    `bytes` is what one machine without a GPU needs. With one, `card` lies on it and `host` in the machine's own memory.
    """

    parameters: int
    steps: int
    bytes: int
    seconds: float
    warning: str | None = None  # what the plan shows that may spoil the measures
    data: int = 0  # bytes of the data, with the copy that is prepared
    sizes: tuple[str, ...] = ("--width", "--depth", "--batch-size")  # what a smaller training would have smaller

    @property
    def card(self) -> int:
        """Bytes on the GPU: network, optimiser, activations and the data."""
        return max(0, self.bytes - PROCESS)

    @property
    def host(self) -> int:
        """Bytes beside a GPU: the process, the data, the network as it is made and as a checkpoint takes it."""
        return PROCESS + 4 * HOST_COPIES * self.parameters + self.data


def cost_of(experiment: Experiment, shape: tuple[int, ...], classes: int, test: int, clock: Clock) -> Cost:
    """Return the estimate for samples of `shape`; RequestError when it does not fit into this machine's memory.

    On a machine with a GPU only what lies beside it is asked for here; `check_room` knows the device.
    """
    import torch

    sizes = layer_sizes(experiment, shape, classes)
    parameters = sum(weights for weights, _, _ in sizes)
    products = sum(used for _, used, _ in sizes)
    activations = sum(values for _, _, values in sizes)
    looks = len(due_steps(experiment.moments, clock))
    passes = 3 * clock.steps * clock.batch + looks * (clock.samples + test)
    inputs = 4 * math.prod(shape) * (clock.samples + test)
    looked = min(LOOK_IMAGES if len(shape) == 3 and experiment.model != "mlp" else LOOK_VECTORS, clock.samples)
    values = max(3 * clock.batch, looked) * activations  # kept for the gradient, with what the backward pass makes of them
    total = PROCESS + 4 * (COPIES * parameters + values) + 2 * inputs
    seconds = 2 * products * passes / FLOPS + clock.steps * STEP_SECONDS * (len(sizes) + 4)
    warning = small_last_batch(clock) if experiment.norm == "batch" else None
    cost = Cost(parameters, clock.steps, total, seconds, warning, data=2 * inputs, sizes=experiment.sizes)
    need, have = cost.host if torch.cuda.is_available() else total, machine_memory()
    if need > have:  # before the network is made
        raise RequestError(_too_large(cost, need, have))
    return cost


def check_room(cost: Cost, device: str) -> None:
    """Raise RequestError if a training does not fit into the memory of `device` ("cpu" or "cuda:N") or of its machine."""
    import torch

    have = machine_memory()
    if device == "cpu":
        if cost.bytes > have:
            raise RequestError(_too_large(cost, cost.bytes, have))
        return
    if cost.host > have:
        raise RequestError(_too_large(cost, cost.host, have))
    _, card = torch.cuda.mem_get_info(torch.device(device))
    if cost.card > card:
        raise RequestError(_too_large(cost, cost.card, card, f"{device} has"))


def machine_memory() -> int:
    """Return the bytes of this machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _too_large(cost: Cost, need: int, have: int, who: str = "the machine has") -> str:
    sizes = f"{', '.join(cost.sizes[:-1])} or {cost.sizes[-1]}"
    return f"this training needs about {_gib(need)} GiB, {who} {_gib(have)} GiB; use a smaller {sizes}"


def _gib(number: int) -> str:
    return f"{number / 2**30:.0f}" if number >= 2**30 else f"{number / 2**30:.1f}"


def layer_sizes(experiment: Experiment, shape: tuple[int, ...], classes: int) -> list[tuple[int, int, int]]:
    """Return (parameters, multiplications per sample, activations per sample) of every layer."""
    width, depth, head = experiment.width or 0, experiment.depth or 0, experiment.head_depth
    if experiment.model == "mlp":
        dims = [math.prod(shape), *[width] * depth, *[width] * (head - 1), classes]
        return [(a * b + 3 * b, a * b, 3 * b) for a, b in itertools.pairwise(dims)]
    if experiment.model == "convnet" and len(shape) == 3 and depth <= 8:
        sizes, (channels, side, other) = [], shape
        for block in range(depth):
            wide, side, other = width * 2**block, -(-side // 2), -(-other // 2)
            weights = 9 * channels * wide
            sizes.append((weights + 3 * wide, weights * side * other, 3 * wide * side * other))
            channels = wide
        dims = [channels] * head + [classes]
        return sizes + [(a * b + b, a * b, b) for a, b in itertools.pairwise(dims)]
    weights, per_pixel, kept = PUBLIC.get(experiment.model, PUBLIC["resnet18"])
    pixels = _pixels(experiment.model, shape)
    return [(weights, per_pixel * pixels, kept * pixels)]


def _pixels(model: str, shape: tuple[int, ...]) -> int:
    """Return how many pixels an image counts for, in units of those of an image of 32 x 32."""
    pixels = math.prod(shape[1:])
    if model.startswith("vit"):
        return min(pixels, 16 * TOKENS)
    return pixels if min(shape[1:], default=0) < LARGE or model.startswith("vgg") else pixels // 16
