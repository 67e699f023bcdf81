"""The one training loop: take up what is there, step, measure, save, finish. The same code on CPU, GPU and several of them."""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from empirical.distributed import Shadow
from empirical.experiment import Experiment
from empirical.failures import device_errors
from empirical.keeper import METRICS, TIMING, Keeper
from empirical.step import LossTrace, order_of, set_step_size, take_step
from empirical.training import Training, build_network, clock_of, load_data, set_up
from ufm.errors import RunError
from ufm.interrupt import Interrupted, Stop
from ufm.record import Run

__all__ = ["Observe", "Report", "Training", "build_network", "clock_of", "load_data", "run_training", "set_up"]

FINISHED = "finished"
LOOK_SECONDS = 0.1  # between looks at the clock for progress and checkpoints

Observe = Callable[["Training"], list[dict[str, Any]]]
Report = Callable[["Training"], None]


@contextlib.contextmanager
def numerics(experiment: Experiment, threads: int) -> Iterator[None]:
    """Set torch's process-wide switches for one training, and put them back."""
    before = torch.get_num_threads(), torch.backends.cudnn.benchmark
    asked, warned = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
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
        torch.use_deterministic_algorithms(asked, warn_only=warned)
        torch.backends.cudnn.benchmark = before[1]


def run_training(
    experiment: Experiment,
    run: Run | Shadow,
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
        run: the folder of one seed, open for writing; its shadow in the processes of a team that write nothing.
        observe: returns the rows measured on the training at this moment; it changes nothing.
        keep: returns the named arrays that stay in `tensors.safetensors` of a finished training.
        device, threads: where; 0 threads leaves torch's own choice.
        stop: looked at after every step; when true, a checkpoint is saved and Interrupted raised.
        report: called about ten times a second, for progress.

    A loss that is not finite ends the training within one step, with the status "diverged: ...": a result, not an error.
    """
    with numerics(experiment, threads), device_errors(experiment):
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
    """Step and measure until the budget is spent; return a status, or None when stopped by a signal.

    A team does the same at the same step in all its processes: it looks up when the losses are read, not by the clock.
    """
    clock, due, alone = training.clock, frozenset(training.due), training.team.size == 1
    trace = LossTrace(training.device)
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
        training.begin(training)
        set_step_size(training)
        full = trace.add(take_step(training, order[first:last]))
        training.step += 1
        looking = (bool(stop) or time.monotonic() > look) if alone else full
        if (full or looking) and (bad := _read(training, trace)) is not None:
            return bad
        if looking:
            if _look_up(training, keeper, stop, report):
                return None
            look = time.monotonic() + min(LOOK_SECONDS, keeper.timer.interval)


def _look_up(training: Training, keeper: Keeper, stop: Stop | None, report: Report | None) -> bool:
    """Save when it is time, show the progress; return whether a signal (to any process of a team) ends the training."""
    signum, saving = training.team.agreed(stop.signum if stop else 0, keeper.timer.due())
    if signum:
        if stop is not None:
            stop.signum = signum
        return True
    if saving:
        keeper.save()
    if report is not None:
        report(training)
    return False


def _read(training: Training, trace: LossTrace) -> str | None:
    """Take the losses from the device; return the status of a diverged training, else None."""
    losses = trace.read(training.team)
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
    cited = list(training.experiment.references)
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
        "final": {_place(row): row["value"] for row in last},
        "flags": {_place(row): row["flag"] for row in last if "flag" in row},
    } | ({"references": cited} if cited else {})


def _place(row: Mapping[str, Any]) -> str:
    return f"{row['split']}/{row['layer']}/{row['centres']}/{row['metric']}"
