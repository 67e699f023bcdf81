"""One training on several processes that `torchrun` started: each takes its share of every batch and of every measured split.

All processes hold the same network, optimiser and random states and run the same program. What differs is which samples they
send through the network, and that the first alone writes. A step's gradient is the mean over the whole batch (shares are
weighted by their size, none is padded), batch norm sees the whole batch, and a measured split's features are joined in their
order; so the numbers are those of one process, up to the order of sums: in float32 to 1e-6 as long as steps do not amplify it.
In bfloat16 each process rounds the gradient of its share to 8 bits before the sum, so two trainings part by about 2^-8 from the
first steps on, and by several per cent in the measures that are differences of larger ones (such as the cross term).
"""

from __future__ import annotations

import inspect
import json
import re
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import MethodType
from typing import Any, NoReturn

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from empirical.data.split import Split
from empirical.devices import launched
from empirical.features import Plan
from empirical.store import Loss, Stored, collect
from ufm.console import explain, safe_text
from ufm.errors import RequestError, RunError

SPOKEN = "spoken"  # key of the store: how many processes had something to say of an error
PATIENCE = 1.0  # seconds that the process where an error arose has to say so, before the others speak of its end
_LOST = re.compile(r"gloo|nccl|Connection (closed|reset|refused)|Broken pipe|Socket", re.IGNORECASE)


@dataclass(frozen=True)
class Team:
    """The processes of one training. rank: 0..size-1; device: where this one computes; store: what they share for messages."""

    rank: int = 0
    size: int = 1
    device: torch.device | None = None
    store: Any = None

    @property
    def leads(self) -> bool:
        """Whether this process writes and speaks."""
        return self.rank == 0

    def share(self, samples: int) -> tuple[int, int]:
        """Return the first and last (exclusive) of `samples` consecutive samples that this process takes; none is padded."""
        return samples * self.rank // self.size, samples * (self.rank + 1) // self.size

    def total(self, values: Tensor) -> Tensor:
        """Return the sum of `values` over the processes."""
        if self.size > 1:
            values = values.clone()
            dist.all_reduce(values)
        return values

    def joined(self, part: Tensor, samples: int) -> Tensor:
        """Return the rows of all processes in order, (samples, ...), from this one's share of them."""
        if self.size == 1:
            return part
        whole = torch.empty(samples, *part.shape[1:], dtype=part.dtype, device=part.device)
        for rank in range(self.size):
            first, last = Team(rank, self.size).share(samples)
            rows = part.contiguous() if rank == self.rank else torch.empty_like(whole[first:last])
            dist.broadcast(rows, rank)
            whole[first:last] = rows
        return whole

    def sent(self, data: bytes | None) -> bytes:
        """Return the bytes that the first process has, in all of them."""
        if self.size == 1:
            return data or b""
        length = torch.tensor([len(data or b"")], device=self.device)
        dist.broadcast(length, 0)
        buffer = torch.empty(int(length), dtype=torch.uint8, device=self.device)
        if self.leads and data:
            buffer.copy_(torch.frombuffer(bytearray(data), dtype=torch.uint8))
        if len(buffer):
            dist.broadcast(buffer, 0)
        return buffer.cpu().numpy().tobytes()

    def said(self, value: Any) -> Any:
        """Return the first process's `value` (of JSON), in all of them."""
        return value if self.size == 1 else json.loads(self.sent(json.dumps(value).encode() if self.leads else None))

    def agreed(self, signum: int, save: bool) -> tuple[int, bool]:
        """Return (a signal that any process has got, whether the first wants to save), the same in all processes."""
        if self.size == 1:
            return signum, save
        flags = self.total(torch.tensor([signum, signum > 0, save and self.leads], device=self.device, dtype=torch.int64))
        arrived, processes, wanted = flags.tolist()
        return (arrived // processes if processes else 0), bool(wanted)


ALONE = Team()
_TEAM: list[Team] = []  # of this process, as torch's own process group is


def team() -> Team:
    """Return the processes that train together with this one."""
    return _TEAM[0] if _TEAM else ALONE


# --- starting and ending -------------------------------------------------------------------------------------------


@contextmanager
def started(device: str) -> Iterator[Team]:
    """Join the processes that torchrun started, on `device` as resolved; without torchrun, or with one process: ALONE.

    An error of any of them ends all, in one line and with exit status 1 (2 for a wrong request).
    """
    launch = launched()
    if launch is None or launch.size == 1:
        yield ALONE
        return
    from torch.distributed.rendezvous import rendezvous

    where = torch.device(device)
    store, rank, size = next(rendezvous("env://"))
    found = Team(rank, size, where, store)
    try:
        _join(found)
        _TEAM.append(found)
        yield found
    except Exception as error:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun ends those that are left: not before one has spoken
        _speak(found, error)
    finally:
        _TEAM.clear()
    dist.destroy_process_group()  # not after an error: it would wait for the others


def _join(team: Team) -> None:
    """Bring the processes together: on GPUs over NCCL, bound to this process's GPU from the start, so that none is guessed."""
    card = team.device if team.device.type == "cuda" else None
    backend = "gloo" if card is None else "nccl"
    try:
        if card is not None:
            torch.cuda.set_device(card)
        dist.init_process_group(backend, store=team.store, rank=team.rank, world_size=team.size, device_id=card)
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0][:300]
        raise RunError(
            f"torchrun's processes cannot be brought together over {backend} ({reason}); repair that, or train on one device"
        ) from None


def _speak(team: Team, error: Exception) -> NoReturn:
    """Say what went wrong once, whichever process it befell; the end of another process is only said when nothing else is."""
    lost = isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and _LOST.search(str(error)) is not None)
    if lost and not isinstance(error, (RequestError, RunError)):
        time.sleep(PATIENCE)
        error = RunError("another process of this training was lost; give the same command again to go on from its checkpoint")
    code, message = explain(error)
    if team.store.add(SPOKEN, 1) == 1:
        print(f"error: {safe_text(message)}", file=sys.__stderr__, flush=True)
    raise SystemExit(code)


def check(jobs: Sequence[Any], size: int, flags: Mapping[str, Any]) -> None:
    """Refuse what does not go together with torchrun's `size` processes: any of `flags` that is set, and some settings."""
    for flag, value in flags.items():
        if value:
            raise RequestError(f"{flag} {value}: torchrun's {size} processes train one network together; leave {flag} out")
    for job in jobs:
        experiment = job.experiment
        if experiment.optimizer == "lbfgs":
            raise RequestError("--optimizer lbfgs does not go together with torchrun; use sgd, adam or adamw")
        if experiment.batch_size is not None and experiment.batch_size < size:
            raise RequestError(
                f"--batch-size {experiment.batch_size}: torchrun's {size} processes share every batch; use {size} or more"
            )


class Shadow:
    """Stands for the run folder in the processes that write nothing."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def log(self, message: str) -> None:
        """Write nothing."""

    def append(self, file: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write nothing."""

    def truncate(self, file: str, keep_lines: int) -> None:
        """Cut nothing."""

    def write_tensors(self, file: str, tensors: Mapping[str, Any]) -> None:
        """Write nothing."""

    def rows(self, file: str) -> list[dict[str, Any]]:
        """Return nothing."""
        return []


# --- training ------------------------------------------------------------------------------------------------------


def spread(network: nn.Module, team: Team) -> tuple[nn.Module, nn.Module]:
    """Return (the network with batch norm over all processes, the same inside DistributedDataParallel).

    Torch's SyncBatchNorm is for GPUs only; on a CPU `GlobalBatchNorm` does the same. What either exchanges is kept out of
    torch.compile: compiled by torch 2.11, the sum over processes in a backward pass is lost without a word.
    """
    if team.device.type == "cuda":
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
        for module in network.modules():
            if isinstance(module, nn.SyncBatchNorm):
                module.forward = MethodType(torch.compiler.disable(nn.SyncBatchNorm.forward), module)
        return network, _parallel(network, [team.device.index])
    _exchange_norms(network, (nn.BatchNorm1d, nn.BatchNorm2d), GlobalBatchNorm)
    return network, _parallel(network, None)


def unspread(network: nn.Module) -> nn.Module:
    """Return the network, changed to batch norm over this process's samples alone: for one that each process trains on all data.

    Over all processes the same samples would count several times in the running variance.
    """
    _exchange_norms(network, (GlobalBatchNorm, nn.SyncBatchNorm), OwnBatchNorm)
    return network


def _exchange_norms(network: nn.Module, kinds: tuple[type, ...], other: type) -> None:
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, kinds):
                setattr(module, name, other(child))


def _parallel(network: nn.Module, devices: list[int | None] | None) -> nn.Module:
    """Gradients are summed as they are made; the running statistics are the same everywhere and need no copying."""
    wrapper = nn.parallel.DistributedDataParallel
    newer = "forward_sync_buffers" in inspect.signature(wrapper).parameters  # the newer name of the option, torch 2.12
    return wrapper(network, device_ids=devices, **{"forward_sync_buffers" if newer else "broadcast_buffers": False})


class _Total(torch.autograd.Function):
    """The sum over processes, whose gradient is the sum of their gradients."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        values = values.clone()
        dist.all_reduce(values)
        return values

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.clone()
        dist.all_reduce(gradient)
        return gradient


def _take_over(new: _BatchNorm, norm: _BatchNorm) -> None:
    new.weight, new.bias = norm.weight, norm.bias
    new.running_mean, new.running_var = norm.running_mean, norm.running_var
    new.num_batches_tracked = norm.num_batches_tracked
    new.training = norm.training


class OwnBatchNorm(_BatchNorm):
    """Batch norm over the samples given, of any shape (n, C, ...); takes over a batch norm's tensors."""

    def __init__(self, norm: _BatchNorm) -> None:
        super().__init__(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        _take_over(self, norm)

    def _check_input_dim(self, input: Tensor) -> None:
        """Any shape (n, C, ...) will do."""


class GlobalBatchNorm(_BatchNorm):
    """Batch norm over the samples of all processes, also when a share is empty; takes over a batch norm's tensors."""

    def __init__(self, norm: _BatchNorm) -> None:
        super().__init__(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        _take_over(self, norm)
        self.total = torch.compiler.disable(_Total.apply)

    def _check_input_dim(self, input: Tensor) -> None:
        """Any shape (n, C, ...) will do."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the normalised samples: in training by all processes' statistics, in eval by the running ones."""
        if not self.training:
            return F.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        axes = [axis for axis in range(input.ndim) if axis != 1]
        shape = (1, -1) + (1,) * (input.ndim - 2)
        wide = input.float() if input.dtype.itemsize < 4 else input
        own = wide.new_full((1,), input.numel() // input.shape[1])
        sums = self.total(torch.cat([wide.sum(axes), own]))
        count, mean = sums[-1].detach(), sums[:-1] / sums[-1].detach()
        residual = wide - mean.view(shape)
        variance = self.total(residual.square().sum(axes)) / count
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
            self.running_var.lerp_((variance * count / (count - 1)).to(self.running_var.dtype), share)
        out = residual * torch.rsqrt(variance + self.eps).view(shape)
        if self.weight is not None:
            out = out * self.weight.view(shape) + self.bias.view(shape)
        return out.to(input.dtype)


# --- measuring -----------------------------------------------------------------------------------------------------


def collect_together(network: nn.Module, plan: Plan, data: Split, *, device: torch.device, loss: Loss | None = None) -> Stored:
    """`empirical.store.collect` on a split shared out without padding; every process gets the features of all samples."""
    here = team()
    if here.size == 1:
        return collect(network, plan, data, device=device, loss=loss)
    first, last = here.share(len(data))
    part, failure = None, ""
    try:
        part = collect(network, plan, data.subset(slice(first, last)), device=device, loss=loss)
    except RunError as error:  # of one share only, perhaps: all must hear of it
        failure = str(error)
    if int(here.total(torch.tensor([part is None], dtype=torch.int64, device=here.device))):
        raise RunError(failure or "the features of another process's share are not finite: the network has diverged")
    assert part is not None
    size = len(data)
    predicted = here.joined(part.predicted, size)
    weighted = torch.tensor([part.loss * (last - first)], dtype=torch.float64, device=here.device)
    return Stored(
        {name: here.joined(features, size) for name, features in part.features.items()},
        data.labels,
        predicted,
        float(here.total(weighted)) / size,
        int((predicted != data.labels).sum()) / size,
    )
