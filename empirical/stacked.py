"""Many seeds of a small network in one program: their tensors stacked, one launch of each kernel for all of them.

A small network leaves a GPU idle between launches; S of them stacked cost little more than one. On a CPU one process per core
does as well. Every seed keeps its own data, order of samples, run folder and checkpoints, in the form of a training of its own,
so that either kind can take up what the other began. The networks share nothing: the gradient of the sum of their losses is each
one's own gradient, and the optimisers act on each number alone.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from empirical import checkpoint
from empirical.augment import crop_flip
from empirical.cost import Cost
from empirical.experiment import Experiment
from empirical.failures import device_errors
from empirical.keeper import Keeper
from empirical.optimise import optimizer_on, parameter_groups
from empirical.step import GPU_LOSSES, drawn_order, draws_of, set_step_size
from empirical.store import free_memory
from empirical.train import FINISHED, LOOK_SECONDS, finish, measure, numerics
from empirical.training import Training, set_up
from ufm.interrupt import Interrupted, Stop
from ufm.record import Run

MODELS = ("mlp", "convnet")
SMALL = 2_000_000  # parameters: above it one network keeps a GPU busy
LARGEST = 256  # networks in one stack
SHARE = 0.5  # of the free memory that a stack may take, by an estimate


def refusal(experiment: Experiment) -> str | None:
    """Return why seeds of this experiment cannot be stacked, as "value: rule"; None where they can."""
    e = experiment
    if e.model not in MODELS:
        return f"--model {e.model}: only {' and '.join(MODELS)} are stacked"
    if e.optimizer == "lbfgs":
        return "--optimizer lbfgs: its line search goes its own way for every network"
    if e.precision != "float32" or e.compile:
        return f"--precision {e.precision}{' --compile' if e.compile else ''}: stacked networks are trained in plain float32"
    return None


def room(experiment: Experiment, cost: Cost, device: str, asked: bool) -> int:
    """Return how many networks of this setting fit into one program on `device`; 1 where they are better trained one by one.

    asked: also networks that would keep a GPU busy by themselves.
    """
    if refusal(experiment) is not None or (cost.parameters > SMALL and not asked):
        return 1
    free = free_memory(torch.device(device))
    return LARGEST if free is None else max(1, min(LARGEST, int(SHARE * free / max(1, cost.card))))


class Apart(Exception):
    """These seeds cannot be stacked after all (their sizes or checkpoints differ, or are damaged): train them one by one."""


class Stack:
    """The networks of several trainings as tensors with a first axis for the seed, and one optimiser for them."""

    def __init__(self, trainings: Sequence[Training]) -> None:
        self.trainings = list(trainings)
        first = self.trainings[0]
        self.experiment, self.clock, self.device = first.experiment, first.clock, first.device
        self.parameters, self.buffers = stack_module_state([_plain(t.network) for t in self.trainings])
        self.base = copy.deepcopy(first.network).to("meta")
        names = {id(parameter): name for name, parameter in first.network.named_parameters()}
        groups = parameter_groups(self.experiment, first.network)
        stacked = [g | {"params": [self.parameters[names[id(p)]] for p in g["params"]]} for g in groups]
        self.optimizer = optimizer_on(self.experiment, stacked)
        self.rows = torch.arange(len(self.trainings), device=self.device)[:, None]
        self.inputs = _shared([t.train.inputs for t in self.trainings])
        self.targets = torch.stack([t.targets for t in self.trainings])
        self.step = first.step  # steps done, by all that have not diverged
        self.statuses: list[str | None] = [None] * len(self.trainings)  # of those that have
        self._load_optimizer()

    @property
    def leader(self) -> Training:
        """The first training that goes on."""
        going = (t for t, status in zip(self.trainings, self.statuses, strict=True) if status is None)
        return next(going, self.trainings[0])

    def order(self, epoch: int) -> Tensor:
        """Return every seed's own order of its samples, (S, N)."""
        drawn = torch.stack([drawn_order(t, epoch) for t in self.trainings])
        return drawn.to(self.device)  # in one transfer

    def batch(self, order: Tensor, first: int, last: int) -> tuple[Tensor, Tensor]:
        """Return (inputs (S, B, ...), targets (S, B, ...)) of the places first..last of the order."""
        chosen = order[:, first:last]
        inputs = self.inputs[0 if len(self.inputs) == 1 else self.rows, chosen]
        if self.experiment.augment != "none":
            inputs = torch.stack(
                [
                    t.train.prepare(crop_flip(own, draws_of(t).at(first, last)))
                    for t, own in zip(self.trainings, inputs, strict=True)
                ]
            )
        elif self.trainings[0].train.mean is not None:
            inputs = torch.stack([t.train.prepare(own) for t, own in zip(self.trainings, inputs, strict=True)])
        return inputs.contiguous(), self.targets[self.rows, chosen]

    def losses(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Return each network's loss on its own batch, (S,)."""
        minimised = self.trainings[0].minimised

        def one(parameters: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
            return minimised(functional_call(self.base, (parameters, buffers), (x,)), y)

        return vmap(one, randomness="different")(self.parameters, self.buffers, inputs, targets)

    def take_step(self, order: Tensor) -> Tensor:
        """Do one step of every network; return the losses before it, (S,), detached."""
        set_step_size(self)
        first, last = self.clock.bounds(self.step % self.clock.per_epoch)
        inputs, targets = self.batch(order, first, last)
        self.optimizer.zero_grad(set_to_none=True)
        losses = self.losses(inputs, targets)
        losses.sum().backward()
        self.optimizer.step()
        self.step += 1
        for training, status in zip(self.trainings, self.statuses, strict=True):
            if status is None:
                training.step = self.step
        return losses.detach()

    @property
    def step_size(self) -> float:
        """The step size of the next step."""
        return self.leader.step_size

    def unload(self) -> None:
        """Copy the state into each training's own network and optimiser, to be measured or saved."""
        for number, training in enumerate(self.trainings):
            own = dict(training.network.named_parameters())
            with torch.no_grad():
                for name, parameter in own.items():
                    parameter.copy_(self.parameters[name][number])
                for name, buffer in training.network.named_buffers():
                    buffer.copy_(self.buffers[name][number])
            for name, parameter in own.items():
                state = self.optimizer.state.get(self.parameters[name])
                if state:
                    training.optimizer.state[parameter] = {
                        key: _part(value, self.parameters[name], number, parameter) for key, value in state.items()
                    }
            set_step_size(training)

    def _load_optimizer(self) -> None:
        owns = [dict(t.network.named_parameters()) for t in self.trainings]
        for name, stacked in self.parameters.items():
            states = [t.optimizer.state.get(own[name]) for t, own in zip(self.trainings, owns, strict=True)]
            if not all(states):
                continue
            shape = owns[0][name].shape
            self.optimizer.state[stacked] = {
                key: torch.stack([s[key] for s in states]).view_as(stacked)
                if isinstance(value, Tensor) and value.shape == shape
                else copy.deepcopy(value)
                for key, value in states[0].items()
            }


def _plain(network: nn.Module) -> nn.Module:
    """Return a copy whose images are not channels last: batched convolutions and poolings know no such order."""
    return copy.deepcopy(network).to(memory_format=torch.contiguous_format)


def _shared(inputs: list[Tensor]) -> Tensor:
    """Return (S, N, ...), or (1, N, ...) where all seeds have the same inputs."""
    if all(torch.equal(inputs[0], other) for other in inputs[1:]):
        return inputs[0][None]
    return torch.stack(inputs)


def _part(value: Any, stacked: Tensor, number: int, like: Tensor) -> Any:
    if isinstance(value, Tensor) and value.shape == stacked.shape:
        return torch.empty_like(like, dtype=value.dtype).copy_(value[number])
    return value.clone() if isinstance(value, Tensor) else value


# --- the loop ------------------------------------------------------------------------------------------------------


class _Losses:
    """The losses of the last steps of every network, read in one transfer; what each training makes of its own."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.length = 1 if stack.device.type == "cpu" else GPU_LOSSES
        self.buffer = torch.zeros(self.length, len(stack.trainings), device=stack.device)
        self.used = 0

    def add(self, losses: Tensor) -> bool:
        """Keep a step's losses; return whether the buffer is full."""
        self.buffer[self.used] = losses
        self.used += 1
        return self.used == self.length

    def read(self) -> None:
        """Add the losses to their trainings' sums; a loss that is not finite ends its training only, at its step."""
        statuses = self.stack.statuses
        values = self.buffer[: self.used].T.tolist()
        begun = self.stack.step - self.used
        for number, training in enumerate(self.stack.trainings):
            if statuses[number] is not None:
                continue
            bad = next((i for i, loss in enumerate(values[number]) if not math.isfinite(loss)), None)
            if bad is not None:
                training.step = begun + bad + 1
                statuses[number] = f"diverged: the loss became non-finite at step {training.step}"
                continue
            for loss in values[number]:
                training.loss_sum += loss
            training.loss_steps += len(values[number])
        self.used = 0


class _Watch:
    """Gives each training its share of the time that all took together, beside its own for measuring and saving."""

    def __init__(self, trainings: list[Training]) -> None:
        self.trainings, self.begun = trainings, time.perf_counter()
        self.earlier = [t.seconds["training"] for t in trainings]
        self.apart = self._apart()

    def _apart(self) -> float:
        return sum(t.seconds["measuring"] + t.seconds["saving"] for t in self.trainings)

    def share(self) -> None:
        """Write the time until now."""
        together = time.perf_counter() - self.begun - (self._apart() - self.apart)
        for training, seconds in zip(self.trainings, self.earlier, strict=True):
            training.seconds["training"] = seconds + max(0.0, together) / len(self.trainings)


def run_stack(
    experiment: Experiment,
    runs: Sequence[Run],
    look: Callable[[], Any],
    *,
    device: torch.device,
    threads: int,
    stop: Stop | None,
    report: Callable[[Training], None] | None,
) -> list[dict[str, Any]]:
    """Train one network per run, all at once, from the newest checkpoints that all have; return the runs' results.

    look: makes what measures one training, with `rows` and `tensors` as `empirical.collapse.Look`. The rest as `run_training`.

    Raises: Apart when the seeds differ in size, have no step in common or only damaged checkpoints; Interrupted after a
        signal, with all saved.
    """
    with numerics(experiment, threads), device_errors(experiment):
        trainings = [set_up(experiment, int(run.seed or 0), device) for run in runs]
        if len({t.clock for t in trainings}) > 1 or len({t.train.inputs.shape for t in trainings}) > 1:
            raise Apart
        keepers = [Keeper(run, training) for run, training in zip(runs, trainings, strict=True)]
        _restore(keepers)
        looks = [look() for _ in trainings]
        watch = _Watch(trainings)
        stack = Stack(trainings)
        try:
            ended = _loop(stack, keepers, looks, watch, stop, report)
        finally:
            watch.share()
        if stop and not ended:
            _save(stack, keepers, watch)
            raise Interrupted(stop.signum)
        stack.unload()
        for keeper, own, training, status in zip(keepers, looks, trainings, stack.statuses, strict=True):
            if status is None:
                keeper.save()
                keeper.run.write_tensors("tensors.safetensors", own.tensors(training))
    return [finish(t, run, status or FINISHED) for t, run, status in zip(trainings, runs, stack.statuses, strict=True)]


def _loop(
    stack: Stack,
    keepers: list[Keeper],
    looks: list[Any],
    watch: _Watch,
    stop: Stop | None,
    report: Callable[[Training], None] | None,
) -> bool:
    """Step and measure until the budget is spent; return whether it is, or else a signal has come."""
    clock, losses, due = stack.clock, _Losses(stack), frozenset(stack.trainings[0].due)
    statuses = stack.statuses
    order = stack.order(stack.step // clock.per_epoch)
    clocked = time.monotonic() + LOOK_SECONDS
    while True:
        if stack.step in due and any(t.measured < stack.step for t in stack.trainings):
            losses.read()
            stack.unload()
            for number, training in enumerate(stack.trainings):
                if statuses[number] is None and training.measured < training.step:
                    statuses[number] = measure(training, keepers[number], looks[number].rows)
        if stack.step >= clock.steps or all(statuses):
            return True
        if stack.step % clock.per_epoch == 0:
            order = stack.order(stack.step // clock.per_epoch)
        if losses.add(stack.take_step(order)):
            losses.read()
        if stop or time.monotonic() > clocked:
            losses.read()
            if stop:
                return False
            if keepers[0].timer.due():
                _save(stack, keepers, watch)
            if report is not None:
                report(stack.leader)
            clocked = time.monotonic() + min(LOOK_SECONDS, keepers[0].timer.interval)


def _save(stack: Stack, keepers: list[Keeper], watch: _Watch) -> None:
    """Write every training's checkpoint; the time of all of them decides when the next are due.

    One that has diverged is over, as it would be by itself: its result is written, and whoever goes on does so without it.
    """
    watch.share()
    begun = time.perf_counter()
    stack.unload()
    for keeper, training, status in zip(keepers, stack.trainings, stack.statuses, strict=True):
        if status is None:
            keeper.save()
        elif not keeper.run.done:
            keeper.run.log(status)
            keeper.run.finish(finish(training, keeper.run, status))
    keepers[0].timer.saved(time.perf_counter() - begun)


def _restore(keepers: list[Keeper]) -> None:
    """Go back to the newest step of which every training has a checkpoint; to the start when none has any.

    Raises: Apart where that is not possible; also for a training whose checkpoints are all damaged, which is refused by itself.
    """
    found = [checkpoint.every(keeper.run) for keeper in keepers]
    if any(checkpoint.numbers(keeper.run) and not pairs for keeper, pairs in zip(keepers, found, strict=True)):
        raise Apart
    if not any(found):
        for keeper in keepers:
            keeper.take_up(0, None)
        return
    steps = set.intersection(*({tree["step"] for _, tree in pairs} for pairs in found))
    if not steps:
        raise Apart
    step = max(steps)
    for keeper, pairs in zip(keepers, found, strict=True):
        number, tree = next(pair for pair in reversed(pairs) if pair[1]["step"] == step)
        keeper.take_up(number, tree)
