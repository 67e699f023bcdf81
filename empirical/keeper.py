"""`Keeper`: what a training writes into its run folder (rows, times, checkpoints) and takes up again from there."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from empirical import checkpoint
from empirical.distributed import Shadow
from empirical.schedule import small_last_batch
from empirical.training import Training
from ufm.errors import RunError
from ufm.files import digest
from ufm.record import Run, RunWarning

METRICS, TIMING = "metrics.jsonl", "timing.jsonl"  # times apart, so that metrics are the same bytes on every run


class Keeper:
    """Writes the training into its run: rows, times, checkpoints; and takes it up again from them."""

    def __init__(self, run: Run | Shadow, training: Training) -> None:
        self.run, self.training = run, training
        self.timer = checkpoint.Timer()
        self.lines = {METRICS: 0, TIMING: 0}
        self.number = 0

    def restore(self) -> None:
        """Go back to the newest good checkpoint; rows written after it are cut off."""
        tree = self._newest()
        self.take_up(self.number, tree)

    def take_up(self, number: int, tree: dict[str, Any] | None) -> None:
        """Go back to the checkpoint `number` with this tree, or (None) to the start."""
        training, self.number = self.training, number
        note = small_last_batch(training.clock) if training.experiment.norm == "batch" else None
        if tree is None and note is not None:
            self.run.log(f"warning: {note}")
        if tree is None and isinstance(self.run, Run) and self.run.lines(METRICS):
            self.run.log("begun again from the start: there is no checkpoint")
            warnings.warn(f"{self.run.path}: no checkpoint; the training begins again from the start", RunWarning, stacklevel=2)
        if tree is not None:
            put_state(training, tree)
            self.lines = dict(tree["lines"])
            self._check_rows(tree.get("sums", {}))
            training.resumed_at.append(training.step)
            self.run.log(f"resumed at step {training.step} of {training.clock.steps}")
        for file, lines in self.lines.items():
            self.run.truncate(file, lines)

    def _newest(self) -> dict[str, Any] | None:
        """Return the newest good checkpoint; in a team the first process reads it for all."""
        tree = None
        if isinstance(self.run, Run):
            self.number, tree = checkpoint.newest(self.run)
        team = self.training.team
        if team.size == 1:
            return tree
        data = team.sent(None if tree is None else checkpoint.pack(tree))
        return checkpoint.unpack(data) if data else None

    def _check_rows(self, sums: Mapping[str, str]) -> None:
        """Raise RunError if the rows before a checkpoint are not those it was written after, where the checkpoint says."""
        for file, stated in sums.items():
            if isinstance(self.run, Run) and self._sum(file) != stated:
                raise RunError(
                    f"{self.run.path / file} is damaged (its first {self.lines[file]} lines are not those before checkpoint "
                    f"{self.number}); restore it from a copy, or delete {self.run.path} and run the command again"
                )

    def _sum(self, file: str) -> str:
        """Return the SHA-256 of the lines of a file that count."""
        assert isinstance(self.run, Run)
        return digest(b"".join(line + b"\n" for line in self.run.lines(file)[: self.lines[file]]))

    def append(self, file: str, rows: list[dict[str, Any]]) -> None:
        """Add rows to a file and count them."""
        self.run.append(file, rows)
        self.lines[file] += len(rows)

    def save(self) -> None:
        """Write a checkpoint."""
        begun = time.perf_counter()
        self.number += 1
        if isinstance(self.run, Run):
            rows = {"lines": dict(self.lines), "sums": {file: self._sum(file) for file in self.lines}}
            checkpoint.save(self.run, self.number, state_of(self.training) | rows)
        seconds = time.perf_counter() - begun
        self.timer.saved(seconds)
        self.training.seconds["saving"] += seconds


def state_of(training: Training) -> dict[str, Any]:
    """Return everything that changes, as a tree for a checkpoint."""
    return {
        "network": training.network.state_dict(),
        "optimizer": training.optimizer.state_dict(),
        "random": checkpoint.random_states(training.device),
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
    checkpoint.set_random_states(tree["random"], training.device)
    for name in ("step", "measured", "loss_sum", "loss_steps", "seconds", "resumed_at"):
        setattr(training, name, tree[name])
