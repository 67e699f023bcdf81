"""The one training loop: configuration, set-up, loop, finish, read from top to bottom. The same code on CPU and GPU."""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer

from empirical import checkpoint, data, models
from empirical.data.source import Request
from empirical.data.split import Split
from empirical.experiment import Experiment
from empirical.losses import Loss, objective
from empirical.optimise import optimizer_of, penalty
from empirical.schedule import Clock, due_steps, learning_rate
from ufm.errors import RequestError, RunError
from ufm.interrupt import Interrupted, Stop
from ufm.record import Run
from ufm.seeds import stream

FINISHED = "finished"
METRICS, TIMING = "metrics.jsonl", "timing.jsonl"  # times apart, so that metrics are the same bytes on every run
LOOK_SECONDS = 0.1  # between looks at the clock for progress and checkpoints
GPU_LOSSES = 64  # steps whose losses are read from a GPU in one transfer

Observe = Callable[["Training"], list[dict[str, Any]]]
Report = Callable[["Training"], None]


@dataclass
class Training:
    """A training in progress: what it is made of, then what changes from step to step."""

    experiment: Experiment
    seed: int
    device: torch.device
    train: Split
    test: Split
    info: dict[str, Any]
    network: nn.Module
    forward: Callable[[Tensor], Tensor]  # the network, compiled where that was asked for
    objective: Loss
    optimizer: Optimizer
    clock: Clock
    due: tuple[int, ...]  # steps after which the network is measured
    step: int = 0
    measured: int = -1  # the step of the last measurement
    loss_sum: float = 0.0  # over the steps since the last measurement, in training mode
    loss_steps: int = 0
    lines: dict[str, int] = field(default_factory=dict)  # of each file, at the last checkpoint
    seconds: dict[str, float] = field(default_factory=lambda: {"training": 0.0, "measuring": 0.0, "saving": 0.0})
    resumed_at: list[int] = field(default_factory=list)

    @property
    def epoch(self) -> int | float:
        """Epochs done."""
        return self.clock.epoch_of(self.step)

    @property
    def step_size(self) -> float:
        """The step size of the next step."""
        e = self.experiment
        return learning_rate(e.schedule, float(e.lr or 0), self.step, self.clock, e.step_epochs, e.step_factor)


# --- set-up --------------------------------------------------------------------------------------------------------


def load_data(experiment: Experiment, seed: int) -> tuple[Split, Split, dict[str, Any]]:
    """Return the experiment's (train, test, info) under `seed`."""
    e = experiment
    request = Request(test_per_class=e.test_per_class, classes=e.classes, input_dim=e.input_dim, signal=e.signal, noise=e.noise)
    return data.load(
        e.dataset,
        seed=seed,
        per_class=e.train_per_class,
        imbalance=e.imbalance,
        minority=e.minority,
        label_noise=e.label_noise,
        coarse=e.coarse,
        request=request,
    )


def clock_of(experiment: Experiment, samples: int) -> Clock:
    """Return the clock of a training on `samples` samples."""
    batch = min(experiment.batch_size or samples, samples)
    if experiment.norm == "batch" and batch < 2:
        raise RequestError(f"--batch-size {batch}: batch norm needs 2 samples or more; use --batch-size 2 or --norm none")
    clock = Clock(samples, batch, 1)
    return Clock(samples, batch, experiment.steps or clock.per_epoch * int(experiment.epochs or 1))


def build_network(experiment: Experiment, train: Split, seed: int) -> nn.Module:
    """Return the untrained network for samples like those of `train`."""
    e = experiment
    architecture = models.Architecture(
        shape=tuple(train.inputs.shape[1:]),
        classes=train.classes,
        width=e.width or 0,
        depth=e.depth or 0,
        norm=e.norm,
        head=e.head,
        head_depth=e.head_depth,
        bias=e.bias,
    )
    network = models.build(e.model, architecture, seed)
    if e.init_scale is not None:
        models.scale_weights(network, e.init_scale)
    return network


def set_up(experiment: Experiment, seed: int, device: torch.device) -> Training:
    """Return the training at step 0; every wrong request is found here, before anything is written."""
    train, test, info = load_data(experiment, seed)
    clock = clock_of(experiment, len(train))
    network = build_network(experiment, train, seed)
    due = due_steps(experiment.moments, clock)
    network = network.to(device)
    train, test = train.to(device).baked(), test.to(device).baked()
    if train.inputs.ndim == 4:
        network = network.to(memory_format=torch.channels_last)
    network.train()
    return Training(
        experiment=experiment,
        seed=seed,
        device=device,
        train=train,
        test=test,
        info=info,
        network=network,
        forward=torch.compile(network, dynamic=False) if experiment.compile else network,
        objective=objective(experiment.loss, experiment.smoothing, experiment.focal_gamma),
        optimizer=optimizer_of(experiment, network),
        clock=clock,
        due=due,
    )


@contextlib.contextmanager
def numerics(experiment: Experiment, threads: int) -> Iterator[None]:
    """Set torch's process-wide switches for one training, and put them back."""
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    if threads:
        torch.set_num_threads(threads)
    if experiment.deterministic:  # cuBLAS asks for it; it counts when the first GPU product comes later, as here
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(experiment.deterministic)
    torch.backends.cudnn.benchmark = not experiment.deterministic
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.use_deterministic_algorithms(before[1])
        torch.backends.cudnn.benchmark = before[2]


# --- one step ------------------------------------------------------------------------------------------------------


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

    def read(self) -> list[float]:
        """Return the losses kept, and forget them."""
        values = self.buffer[: self.used].tolist()
        self.used = 0
        return values


def order_of(training: Training, epoch: int) -> Tensor:
    """Return the order of the samples in `epoch`: a stream of its own, so that a resume needs only the epoch's number."""
    order = stream(training.seed, f"order-{epoch}").permutation(len(training.train))
    return torch.from_numpy(order).to(training.device)


def take_step(training: Training, indices: Tensor) -> Tensor:
    """Do one step on the samples `indices`; return the loss before it, detached, on the device."""
    inputs, labels = training.train.batch(indices)
    if inputs.ndim == 4:
        inputs = inputs.contiguous(memory_format=torch.channels_last)

    def loss_of() -> Tensor:
        if training.experiment.precision == "float32":
            return training.objective(training.forward(inputs), labels)
        with torch.autocast(training.device.type, dtype=torch.bfloat16):
            logits = training.forward(inputs)
        return training.objective(logits.float(), labels)

    if isinstance(training.optimizer, LBFGS):
        return _quasi_newton_step(training, loss_of)
    training.optimizer.zero_grad(set_to_none=True)
    loss = loss_of()
    loss.backward()
    training.optimizer.step()
    return loss.detach()


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


# --- the loop ------------------------------------------------------------------------------------------------------


class Keeper:
    """Writes the training into its run: rows, times, checkpoints; and takes it up again from them."""

    def __init__(self, run: Run, training: Training) -> None:
        self.run, self.training = run, training
        self.timer = checkpoint.Timer()
        self.lines = {METRICS: 0, TIMING: 0}
        self.number = 0

    def restore(self) -> None:
        """Go back to the newest good checkpoint; rows written after it are cut off."""
        training = self.training
        self.number, tree = checkpoint.newest(self.run)
        if tree is not None:
            put_state(training, tree)
            self.lines = dict(tree["lines"])
            training.resumed_at.append(training.step)
            self.run.log(f"resumed at step {training.step} of {training.clock.steps}")
        for file, lines in self.lines.items():
            self.run.truncate(file, lines)

    def append(self, file: str, rows: list[dict[str, Any]]) -> None:
        """Add rows to a file and count them."""
        self.run.append(file, rows)
        self.lines[file] += len(rows)

    def save(self) -> None:
        """Write a checkpoint."""
        begun = time.perf_counter()
        self.number += 1
        checkpoint.save(self.run, self.number, state_of(self.training) | {"lines": dict(self.lines)})
        seconds = time.perf_counter() - begun
        self.timer.saved(seconds)
        self.training.seconds["saving"] += seconds


def state_of(training: Training) -> dict[str, Any]:
    """Return everything that changes, as a tree for a checkpoint."""
    return {
        "network": training.network.state_dict(),
        "optimizer": training.optimizer.state_dict(),
        "random": checkpoint.random_states(),
        "seed": training.seed,
        "step": training.step,
        "epoch": training.step // training.clock.per_epoch,
        "position": training.step % training.clock.per_epoch,
        "steps": training.clock.steps,
        "step_size": training.step_size,
        "data": training.info["digest"],
        "measured": training.measured,
        "loss_sum": training.loss_sum,
        "loss_steps": training.loss_steps,
        "seconds": training.seconds,
        "resumed_at": training.resumed_at,
    }


def put_state(training: Training, tree: Mapping[str, Any]) -> None:
    """Put a checkpoint's tree back into the training; RunError when the data are not those it was trained on."""
    if tree["data"] != training.info["digest"] or tree["seed"] != training.seed:
        raise RunError(
            f"the data are not those of the checkpoint ({training.info['name']}: SHA-256 {training.info['digest'][:12]}, "
            f"checkpoint {tree['data'][:12]}); restore the data, or name another --out to start again"
        )
    training.network.load_state_dict(tree["network"])
    training.optimizer.load_state_dict(tree["optimizer"])
    for parameter, state in training.optimizer.state.items():
        for key, value in state.items():
            # The fused kernels walk parameter and state in memory order, so the layouts must agree again.
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                state[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
    checkpoint.set_random_states(tree["random"])
    for name in ("step", "measured", "loss_sum", "loss_steps", "seconds", "resumed_at"):
        setattr(training, name, tree[name])


def run_training(
    experiment: Experiment,
    run: Run,
    *,
    observe: Observe,
    device: torch.device,
    keep: Callable[[Training], Mapping[str, Any]] | None = None,
    threads: int = 1,
    stop: Stop | None = None,
    report: Report | None = None,
) -> dict[str, Any]:
    """Train to the end of the budget, from the newest checkpoint if there is one; return the run's result.

    Args:
        experiment: a resolved experiment.
        run: the folder of one seed, open for writing.
        observe: returns the rows measured on the training at this moment; it changes nothing.
        keep: returns the named arrays that stay in `tensors.safetensors` of a finished training.
        device, threads: where; 0 threads leaves torch's own choice.
        stop: looked at after every step; when true, a checkpoint is saved and Interrupted raised.
        report: called about ten times a second, for progress.

    A loss that is not finite ends the training within one step, with the status "diverged: ...": a result, not an error.
    """
    with numerics(experiment, threads), _memory_errors(experiment):
        training = set_up(experiment, int(run.seed or 0), device)
        keeper = Keeper(run, training)
        keeper.restore()
        begun, before = time.perf_counter(), sum(training.seconds.values())
        try:
            status = _loop(training, keeper, observe, stop, report)
        finally:
            elapsed = time.perf_counter() - begun + before
            training.seconds["training"] = elapsed - training.seconds["measuring"] - training.seconds["saving"]
        if stop and status is None:
            keeper.save()
            raise Interrupted(stop.signum)
        if status == FINISHED:  # a network that blew up is no place to go on from: its resume would diverge one step later
            keeper.save()
        if keep is not None and status == FINISHED:
            run.write_tensors("tensors.safetensors", keep(training))
    return finish(training, run, status or FINISHED)


def _loop(training: Training, keeper: Keeper, observe: Observe, stop: Stop | None, report: Report | None) -> str | None:
    """Step and measure until the budget is spent; return a status, or None when stopped by a signal."""
    clock, trace, due = training.clock, LossTrace(training.device), frozenset(training.due)
    order = order_of(training, training.step // clock.per_epoch)
    look = time.monotonic() + LOOK_SECONDS
    while True:
        if training.step in due and training.measured < training.step:
            if (bad := _read(training, trace)) is not None:
                return bad
            if (bad := measure(training, keeper, observe)) is not None:
                return bad
        if training.step >= clock.steps:
            return FINISHED
        epoch, position = divmod(training.step, clock.per_epoch)
        if position == 0:
            order = order_of(training, epoch)
        first, last = clock.bounds(position)
        set_step_size(training)
        full = trace.add(take_step(training, order[first:last]))
        training.step += 1
        if full and (bad := _read(training, trace)) is not None:
            return bad
        if stop or time.monotonic() > look:
            if (bad := _read(training, trace)) is not None:
                return bad
            if stop:
                return None
            if keeper.timer.due():
                keeper.save()
            if report is not None:
                report(training)
            look = time.monotonic() + min(LOOK_SECONDS, keeper.timer.interval)


def _read(training: Training, trace: LossTrace) -> str | None:
    """Take the losses from the device; return the status of a diverged training, else None."""
    losses = trace.read()
    for number, loss in enumerate(losses):
        if not math.isfinite(loss):
            training.step += number + 1 - len(losses)
            return f"diverged: the loss became non-finite at step {training.step}"
    for loss in losses:  # one by one: when the GPU was read is a matter of time, and must not show in the last bits
        training.loss_sum += loss
    training.loss_steps += len(losses)
    return None


def measure(training: Training, keeper: Keeper, observe: Observe) -> str | None:
    """Append the rows of this moment: what `observe` sees, the mean train loss since the last time, the step size.

    Returns the status of a training whose weights the last step has blown up, else None.
    """
    begun = time.perf_counter()
    network: dict[str, Any] = {"split": "train", "layer": "network", "centres": "self"}
    try:
        rows = observe(training)
    except RunError as error:
        return f"diverged: at step {training.step} {error}"
    rows.append(network | {"metric": "lr", "value": training.step_size})
    if training.loss_steps:
        rows.append(network | {"metric": "loss_running", "value": training.loss_sum / training.loss_steps})
    moment = {"seed": training.seed, "epoch": training.epoch, "step": training.step}
    keeper.append(METRICS, [moment | row for row in rows])
    training.measured, training.loss_sum, training.loss_steps = training.step, 0.0, 0
    seconds = time.perf_counter() - begun
    training.seconds["measuring"] += seconds
    keeper.append(TIMING, [moment | {"measuring": round(seconds, 6)}])
    return None


def finish(training: Training, run: Run, status: str) -> dict[str, Any]:
    """Return the result of a training that ended."""
    last = [row for row in run.rows(METRICS) if row["step"] == training.measured]
    return {
        "status": status,
        "ok": status == FINISHED,
        "step": training.step,
        "epoch": training.epoch,
        "steps": training.clock.steps,
        "measured": training.measured,
        "parameters": sum(p.numel() for p in training.network.parameters()),
        "seconds": {name: round(value, 3) for name, value in training.seconds.items()},
        "resumed_at": training.resumed_at,
        "data": training.info,
        "final": {f"{r['split']}/{r['layer']}/{r['centres']}/{r['metric']}": r["value"] for r in last},
    }


@contextlib.contextmanager
def _memory_errors(experiment: Experiment) -> Iterator[None]:
    """Turn every way of running out of memory into one sentence with the remedy."""
    remedy = f"use a smaller --batch-size (now {experiment.batch_size or 'all'}), --width or data set"
    try:
        yield
    except MemoryError:
        raise RunError(f"out of memory; {remedy}") from None
    except torch.OutOfMemoryError:
        raise RunError(f"out of memory on the GPU; {remedy}") from None
    except RuntimeError as error:
        if "can't allocate memory" not in str(error) and "not enough memory" not in str(error):
            raise
        raise RunError(f"out of memory; {remedy}") from None
