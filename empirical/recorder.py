"""`Recorder`: the measuring pass inside anybody's training loop, written as a run folder that `compare` draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import nn

from empirical.epoch import rows_of
from empirical.features import classifier_weight, plan_layers
from empirical.head import head_arrays, head_rows, own_head
from empirical.rows import Rows
from empirical.schedule import PAPYAN
from empirical.store import Batches, Loss, collect, facts, first_inputs, length, network_of
from empirical.tensors import tensors_of
from ufm.errors import RequestError, RunError
from ufm.provenance import environment
from ufm.record import Run

METRICS, TENSORS = "metrics.jsonl", "tensors.safetensors"
PER_DOUBLING = 4  # measured epochs of at="log" between e and 2e


class Recorder:
    """Measures a network on train and test during its training, in a run folder OUT/measure/NAME-HASH/seed-K/.

    ```
    with empirical.Recorder("runs/", model, train_loader, test_loader, seed=0) as recorder:
        recorder.epoch(0)                       # the untrained network: a negative control
        for epoch in range(1, epochs + 1):
            for x, y in train_loader:
                ...
                recorder.step()
            recorder.epoch(epoch)               # measures where `at` says so, else does nothing
    ```
    Leaving the block measures the final state, writes the arrays that `compare` needs and marks the run done. After an
    exception the run stays unfinished; opened again with the same arguments it goes on, and an epoch that comes again
    replaces what was recorded from that epoch on. Of several processes only one may record.
    """

    def __init__(
        self,
        out: str | Path,
        model: nn.Module,
        train_loader: Batches,
        test_loader: Batches,
        *,
        layers: str | Sequence[str] = "all",
        name: str = "network",
        seed: int = 0,
        at: str | Sequence[int] = "log",
        classifier: str | None = None,
        match_counts: bool = False,
        loss: Loss | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        """Check everything and open the run folder.

        Args:
            out: the folder of all runs.
            model, train_loader, test_loader, layers, classifier, match_counts: as in `empirical.measure`.
            name: of the run, [A-Za-z0-9][A-Za-z0-9._-]{0,99}. seed: 0 <= seed < 2**32; each seed is a folder of its own.
            at: which epochs are measured: "log" (4 between e and 2e), "papyan", "every" or a list of epochs.
            loss: mean loss of (logits, labels) for the row `loss`; None: cross-entropy.
            config: what else identifies the run (learning rate, weight_decay, ...): strict JSON values. With weight_decay the
                norms of a bias-free head are held against the pull of the loss too. Figures draw the theory of a head of
                several maps from head "deep", bias False, head_activation ("linear" or "relu"), loss ("mse": half the sum
                over classes; "ce") and width, the options of `empirical run collapse` of these names.

        Raises: RequestError for anything wrong (nothing is created); RunError when another process writes this run.
        """
        self._due = schedule(at)
        self.model, self.device = network_of(model, None)
        self.train, self.test = train_loader, test_loader
        self.match_counts, self.seed, self.loss = match_counts, seed, loss
        example = first_inputs(self.model, train_loader, self.device)
        self.plan = plan_layers(self.model, example, layers, classifier)
        self.head = own_head(self.model, example, self.plan.classifier)
        decay = dict(config or {}).get("weight_decay")
        self.decay = float(decay) if isinstance(decay, (int, float)) and not isinstance(decay, bool) else None
        first_inputs(self.model, test_loader, self.device)
        self.steps = 0  # to be set by a loop that goes on from a checkpoint
        self.last: int | None = None
        self._values: dict[str, float] = {}
        self._data: dict[str, Any] = {}
        self._run: Run | None = Run.create(
            out, "measure", name, self._setting(config), seed=seed, environment=environment(str(self.device), seed=seed)
        )
        self.path = self._run.path
        self._epochs = [row.get("epoch") for row in self._run.rows(METRICS)]

    def _setting(self, config: Mapping[str, Any] | None) -> dict[str, Any]:
        return {
            "study": "measure",
            "model": type(self.model).__name__,
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "classes": self.plan.outputs,
            "layers": self.plan.names,
            "train": length(self.train),
            "test": length(self.test),
            "match_counts": self.match_counts,
            "config": dict(config or {}),
        }

    @property
    def recorded(self) -> list[int]:
        """The epochs in the run folder, ascending."""
        return sorted({epoch for epoch in self._epochs if epoch is not None})

    def step(self, steps: int = 1) -> None:
        """Count optimisation steps; they are written beside the epoch."""
        self.steps += steps

    def epoch(self, epoch: int, values: Mapping[str, float] | None = None) -> Rows:
        """Measure the network after `epoch` epochs of training if that epoch is due; returns the rows, or none.

        values: further numbers of the whole network, such as {"lr": 0.1}.
        """
        if isinstance(epoch, bool) or int(epoch) != epoch or epoch < 0:
            raise RequestError(f"epoch {epoch!r} is not an integer >= 0; give the number of epochs trained")
        self._open()
        self.last, self._values = int(epoch), dict(values or {})
        if not self._due(self.last):
            return Rows()
        if any(recorded is None or recorded >= self.last for recorded in self._epochs):
            self._open().log(f"epoch {self.last} comes again: measurements from there on are replaced")
        return self._measure(final=False)

    def _measure(self, final: bool) -> Rows:
        """Replace what is recorded from the last epoch on by the state of now; `final`: with the arrays for the comparison."""
        run, epoch = self._open(), self.last
        later = [i for i, recorded in enumerate(self._epochs) if recorded is None or recorded >= epoch]
        try:
            train, test = (collect(self.model, self.plan, d, device=self.device, loss=self.loss) for d in (self.train, self.test))
        except RunError as error:
            run.write_json("result.json", {"status": f"diverged: {error}", "ok": False, "epoch": epoch, "step": self.steps})
            raise
        weight, bias = classifier_weight(self.model, self.plan)
        rows = rows_of(train, test, self.plan, weight, bias, match_counts=self.match_counts, seed=self.seed)
        if self.head is not None:
            rows += head_rows(self.head, self.model, self.plan, train, loss=self.loss, decay=self.decay)
        rows += [network_row(name, value) for name, value in self._values.items()]
        if final:
            maps = {} if self.head is None else head_arrays(self.head, self.model)
            run.write_tensors(TENSORS, tensors_of(train, test, self.plan, weight, bias) | maps)
            self._data = facts(train.labels, test.labels, self.plan.outputs)
        if later:
            run.truncate(METRICS, later[0])
            del self._epochs[later[0] :]
        stamp = {"seed": self.seed, "epoch": epoch, "step": self.steps}
        run.append(METRICS, [{**stamp, **row} for row in rows])
        self._epochs += [epoch] * len(rows)
        return Rows(rows)

    def _open(self) -> Run:
        if self._run is None:
            raise RequestError("this Recorder is closed; open another one with the same arguments to go on")
        return self._run

    def close(self, finished: bool = True) -> None:
        """Measure the final state, mark the run done and free it. Not `finished`: only free it.

        The final state is measured anew even if its epoch was due: rows and arrays are then of the same network.
        """
        if self._run is None:
            return
        try:
            if finished and self.last is not None:
                self._measure(final=True)
                self._run.finish({"status": "finished", "ok": True, "epoch": self.last, "step": self.steps, "data": self._data})
        finally:
            self._run.close()
            self._run = None

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close(finished=kind is None)


def network_row(name: str, value: float) -> dict[str, Any]:
    """Return the row of a number of the whole network at training time."""
    number = float(value)
    if number - number != 0:  # infinite or nan
        return {"split": "train", "layer": "network", "centres": "self", "metric": name, "value": None, "reason": "not finite"}
    return {"split": "train", "layer": "network", "centres": "self", "metric": name, "value": number}


def schedule(at: str | Sequence[int]):
    """Return a predicate of the epoch: whether it is measured."""
    if at == "every":
        return lambda epoch: True
    if at == "papyan":
        return lambda epoch: epoch == 0 or epoch in PAPYAN
    if at == "log":
        return log_spaced
    if isinstance(at, str):
        raise RequestError(f"at {at!r} is not known; use log, papyan, every or a list of epochs such as [0, 1, 10, 100]")
    chosen = set(at)
    if not chosen or not all(isinstance(e, int) and not isinstance(e, bool) and e >= 0 for e in chosen):
        raise RequestError(f"at {at!r} must name epochs >= 0; use for example [0, 1, 10, 100]")
    return lambda epoch: epoch in chosen


def log_spaced(epoch: int) -> bool:
    """Whether `epoch` is 0 or a rounded 2^(j/4): the end of the training need not be known."""
    exponent = PER_DOUBLING * (epoch.bit_length() - 1)
    return epoch == 0 or any(round(2 ** (j / PER_DOUBLING)) == epoch for j in range(exponent, exponent + PER_DOUBLING + 1))
