"""One step of a training: which samples in which order, the loss and its gradient, the optimiser; and the losses so far."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.optim import LBFGS

from empirical.augment import Draws, crop_flip
from empirical.distributed import ALONE, Team
from empirical.optimise import penalty
from empirical.training import Training
from ufm.seeds import stream

GPU_LOSSES = 64  # steps whose losses are read from a GPU in one transfer


class LossTrace:
    """The losses of the last steps, kept on the device and read in one transfer: every step on a CPU, every 64 on a GPU."""

    def __init__(self, device: torch.device) -> None:
        self.length = 1 if device.type == "cpu" else GPU_LOSSES
        self.buffer = torch.zeros(self.length, dtype=torch.float32, device=device)
        self.used = 0

    def add(self, loss: Tensor) -> bool:
        """Keep a loss; return whether the buffer is full."""
        self.buffer[self.used] = loss
        self.used += 1
        return self.used == self.length

    def read(self, team: Team = ALONE) -> list[float]:
        """Return the losses kept, each the sum over the team's processes, and forget them."""
        values = team.total(self.buffer[: self.used]).tolist()
        self.used = 0
        return values


def drawn_order(training: Training, epoch: int) -> Tensor:
    """Return the order of the samples in `epoch`: a stream of its own, so that a resume needs only the epoch's number."""
    return torch.from_numpy(stream(training.seed, f"order-{epoch}").permutation(training.clock.samples))


def order_of(training: Training, epoch: int) -> Tensor:
    """Return `drawn_order` on the training's device."""
    return drawn_order(training, epoch).to(training.device)


def take_step(training: Training, indices: Tensor) -> Tensor:
    """Do one step on the samples `indices`; return the loss before it, detached, on the device.

    In a team this process sends its share of the batch through the network. The mean over the batch is the sum over processes
    of share/batch times the mean over a share; DistributedDataParallel divides by their number, so that is multiplied back.
    The loss returned is this process's part of that sum.
    """
    first, last = training.team.share(len(indices))
    weight = (last - first) / len(indices)
    inputs, targets = batch_of(training, indices, first, last)

    def loss_of() -> Tensor:
        if training.experiment.precision == "float32":
            logits = training.forward(inputs)
        else:
            with torch.autocast(training.device.type, dtype=torch.bfloat16):
                logits = training.forward(inputs)
        # an empty share still takes part in the sums over processes
        return training.minimised(logits.float(), targets) if last > first else logits.sum() * 0

    if isinstance(training.optimizer, LBFGS):
        return _quasi_newton_step(training, loss_of)
    training.optimizer.zero_grad(set_to_none=True)
    loss = loss_of()
    (loss if training.team.size == 1 else loss * (weight * training.team.size)).backward()
    training.optimizer.step()
    return loss.detach() if training.team.size == 1 else loss.detach() * weight


def batch_of(training: Training, indices: Tensor, first: int, last: int) -> tuple[Tensor, Tensor]:
    """Return (inputs as the network takes them, targets) of the places first..last of the batch `indices`, augmented if asked."""
    own = indices[first:last]
    targets = training.targets[own]
    if training.groups is not None:
        own = training.groups[own].flatten()
    if training.experiment.augment == "none":
        inputs = training.train.prepare(training.train.inputs[own])
    else:
        place = training.step % training.clock.per_epoch * training.clock.batch + first
        draws = draws_of(training).at(place, place + last - first)
        inputs = training.train.prepare(crop_flip(training.train.inputs[own], draws))
    if inputs.ndim == 4:
        inputs = inputs.contiguous(memory_format=torch.channels_last)
    return inputs, targets


def draws_of(training: Training) -> Draws:
    """Return the augmentation's draws of the present epoch; drawn once an epoch."""
    epoch = training.step // training.clock.per_epoch
    if training.draws is None or training.draws[0] != epoch:
        training.draws = epoch, Draws.of(training.seed, epoch, len(training.train), training.device)
    return training.draws[1]


def _quasi_newton_step(training: Training, loss_of: Callable[[], Tensor]) -> Tensor:
    def closure() -> Tensor:
        training.optimizer.zero_grad(set_to_none=True)
        total = loss_of() + penalty(training.experiment, training.network)
        total.backward()
        return total

    return training.optimizer.step(closure).detach()


def set_step_size(training: Training) -> None:
    """Put the schedule's step size into the optimiser."""
    value = training.step_size
    for group in training.optimizer.param_groups:
        if group["lr"] != value:
            group["lr"] = value
