"""Transfer probes: how well other labels can be read off frozen features, each probe with its budget fixed in advance.

A probe is a function (train (x, y), test x, classes, generator) -> decisions on train and test. `raw` meets the features as
they are, with a fixed budget of gradient steps, so it fails where the signal has become small; `whiten` does not see the scale
of any direction, so it fails only where the signal is gone. Their difference is what collapse hides without destroying it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from empirical.data.split import Split
from empirical.distributed import unspread
from empirical.features import Plan, bare
from empirical.store import full_float32
from ufm.errors import RequestError
from ufm.seeds import stream
from ufm.tables import Entry, load

PROBES = {
    "raw": Entry("empirical.probe:raw", "softmax regression by SGD, lr .1, 50 epochs, batch 128, on the features as they are"),
    "std": Entry("empirical.probe:std", "the same on coordinates scaled to unit variance on train"),
    "whiten": Entry("empirical.probe:whiten", "the same on features whitened on train: blind to the scale of every direction"),
    "ncc": Entry("empirical.probe:ncc", "nearest class mean"),
    "knn": Entry("empirical.probe:knn", "5 nearest neighbours, ties to the nearest"),
    "ridge": Entry("empirical.probe:ridge", "least squares to one-hot labels, the penalty chosen by leave-one-out on train"),
}
RATE, EPOCHS, BATCH = 0.1, 50, 128  # of raw, std and whiten: fixed, so that probes of different networks compare
NEIGHBOURS = 5
PENALTIES = tuple(10.0 ** np.arange(-6, 3))  # of ridge, in units of the mean eigenvalue of the feature covariance times N
TUNE_RATE, TUNE_EPOCHS = 0.01, 10  # of finetune
ROWS = 2048

Decisions = tuple[Tensor, Tensor]


def probe_features(
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    *,
    classes: int,
    probes: Sequence[str] = tuple(PROBES),
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Return one row per probe and split: {"split", "metric": "probe_NAME", "value"}; the value is the accuracy, in [0, 1].

    Args:
        train, test: (features (N, d), labels (N,)), labels 0..classes-1, such as the fine classes behind coarse ones.
        classes: number of those labels.
        probes: names of PROBES.
        seed: of the order of samples; the stream is "probe".

    Raises: RequestError for an unknown probe or labels out of range.
    """
    for _, y in (train, test):
        if len(y) == 0 or int(y.min()) < 0 or int(y.max()) >= classes:
            raise RequestError(f"probe labels must be 0..{classes - 1} and not empty; pass the number of classes probed")
    rows = []
    for name in probes:
        probe: Callable[..., Decisions] = load(PROBES, name, "probe")
        with torch.no_grad(), full_float32():
            guesses = probe(train, test[0], classes, stream(seed, "probe"))
        for split, guess, (_, y) in zip(("train", "test"), guesses, (train, test), strict=True):
            rows.append({"split": split, "metric": f"probe_{name}", "value": float((guess == y).double().mean())})
    return rows


# --- the probes --------------------------------------------------------------------------------------------------


def raw(train: tuple[Tensor, Tensor], test: Tensor, classes: int, draw: np.random.Generator) -> Decisions:
    """Softmax regression from zero by SGD with a constant step, on the features as they are.

    A second moment with an eigenvalue above 4 / RATE (an offset is enough) makes that step unstable: the decisions are
    then often no better than chance, and which ones they are depends on the rounding of single numbers, in any precision.
    """
    (x, y), x_test = (train[0].float(), train[1]), test.float()
    weight = torch.zeros(classes, x.shape[1], device=x.device)
    bias = torch.zeros(classes, device=x.device)
    for _ in range(EPOCHS):
        order = torch.from_numpy(draw.permutation(len(x))).to(x.device)
        for rows in order.split(BATCH):
            h, target = x[rows], y[rows]
            residual = F.softmax(torch.addmm(bias, h, weight.T), dim=1)
            residual[torch.arange(len(rows), device=x.device), target] -= 1
            residual *= RATE / len(rows)
            weight.addmm_(residual.T, h, alpha=-1)
            bias -= residual.sum(0)
    return (x @ weight.T + bias).argmax(1), (x_test @ weight.T + bias).argmax(1)


def std(train: tuple[Tensor, Tensor], test: Tensor, classes: int, draw: np.random.Generator) -> Decisions:
    """`raw` on coordinates of mean 0 and deviation 1 on train; constant coordinates are left out."""
    x = train[0].double()
    centre, scale = x.mean(0), x.std(0, correction=0)
    # The deviation of a constant coordinate is the rounding of its mean, which may be above that of its values.
    live = (x.amax(0) > x.amin(0)) & (scale > _rounding(train[0]) * x.abs().amax(0))
    return raw((((x - centre) / scale)[:, live], train[1]), ((test.double() - centre) / scale)[:, live], classes, draw)


def whiten(train: tuple[Tensor, Tensor], test: Tensor, classes: int, draw: np.random.Generator) -> Decisions:
    """`raw` on features with the identity as train covariance; directions that are only rounding are left out."""
    x = train[0].double()
    centre = x.mean(0)
    values, vectors = _principal(x - centre)
    floor = (max(x.shape) * _rounding(train[0])) ** 2 * values[-1]
    live = values > floor
    to_white = vectors[:, live] / (values[live] / len(x)).sqrt()
    return raw(((x - centre) @ to_white, train[1]), (test.double() - centre) @ to_white, classes, draw)


def ncc(train: tuple[Tensor, Tensor], test: Tensor, classes: int, draw: np.random.Generator) -> Decisions:
    """Nearest class mean; a class without train samples is never chosen."""
    x, y = train[0].double(), train[1]
    centre = x.mean(0)  # a common offset would cost digits
    one_hot = F.one_hot(y, classes).double()
    counts = one_hot.sum(0)[:, None]
    means = one_hot.T @ (x - centre) / counts.clamp(min=1)
    penalty = (means**2).sum(1) + torch.where(counts[:, 0] > 0, 0.0, torch.inf)
    return tuple((penalty - 2 * (h - centre) @ means.T).argmin(1) for h in (x, test.double()))  # type: ignore[return-value]


def knn(train: tuple[Tensor, Tensor], test: Tensor, classes: int, draw: np.random.Generator) -> Decisions:
    """Majority of the 5 nearest train samples, ties to the nearest; on train each sample leaves itself out."""
    x, y = train[0].double(), train[1]
    centre = x.mean(0)
    x = x - centre
    return _vote(x, y, x, classes, leave_out=True), _vote(x, y, test.double() - centre, classes, leave_out=False)


def _vote(x: Tensor, y: Tensor, queries: Tensor, classes: int, leave_out: bool) -> Tensor:
    count = min(NEIGHBOURS, len(x) - leave_out)
    if count < 1:
        raise RequestError("knn needs two train samples; give more")
    guesses = []
    for start in range(0, len(queries), ROWS):
        apart = torch.cdist(queries[start : start + ROWS], x)
        if leave_out:
            rows = torch.arange(len(apart), device=x.device)
            apart[rows, start + rows] = torch.inf
        near = y[apart.topk(count, largest=False).indices]  # nearest first
        votes = F.one_hot(near, classes).sum(1).double()
        bonus = torch.zeros_like(votes)
        for place in reversed(range(count)):  # the nearest of a class writes last; less than one vote in all
            bonus.scatter_(1, near[:, place : place + 1], (count - place) / (count + 1))
        guesses.append((votes + bonus).argmax(1))
    return torch.cat(guesses)


def ridge(train: tuple[Tensor, Tensor], test: Tensor, classes: int, draw: np.random.Generator) -> Decisions:
    """Least squares to one-hot labels with a free intercept; the penalty minimises the exact leave-one-out error on train.

    With X = U S V^T centred, the hat matrix is 1/N + U S^2/(S^2 + a) U^T and a sample's leave-one-out residual is r_i/(1 - h_ii).
    """
    x, target = train[0].double(), F.one_hot(train[1], classes).double()
    centre, offset = x.mean(0), target.mean(0)
    values, vectors = _principal(x - centre)
    keep = values > values[-1] * 1e-12
    scores = (x - centre) @ vectors[:, keep]  # U S
    values, inner = values[keep], scores.T @ (target - offset)
    unit = float(values.sum()) / x.shape[1]
    best, chosen = np.inf, None
    for penalty in (p * unit for p in PENALTIES):
        coefficients = inner / (values + penalty)[:, None]
        leverage = 1 / len(x) + (scores**2 / (values + penalty)).sum(1)
        left_out = (target - offset - scores @ coefficients) / (1 - leverage)[:, None]
        error = float((left_out**2).mean())
        if error < best:
            best, chosen = error, coefficients
    if chosen is None:
        raise RequestError("ridge needs features that vary; these are all the same")
    weight = vectors[:, keep] @ chosen
    return tuple(((h - centre) @ weight + offset).argmax(1) for h in (x, test.double()))  # type: ignore[return-value]


def _principal(centred: Tensor) -> tuple[Tensor, Tensor]:
    """Return the ascending eigenvalues of X^T X and their vectors (columns); at most min(N, d) of them."""
    samples, dim = centred.shape
    if samples >= dim:
        return torch.linalg.eigh(centred.T @ centred)
    values, left = torch.linalg.eigh(centred @ centred.T)
    keep = values > values[-1] * 1e-13  # the centred Gram has a null direction, which no division survives
    return values[keep], centred.T @ left[:, keep] / values[keep].sqrt()


def _rounding(features: Tensor) -> float:
    return float(torch.finfo(features.dtype).eps) if features.is_floating_point() else 0.0


# --- the probe that trains everything ------------------------------------------------------------------------------


def finetune(network: nn.Module, plan: Plan, train: Split, test: Split, *, classes: int, seed: int = 0) -> list[dict[str, Any]]:
    """Train a copy of the whole network with a new classifier: SGD lr .01, momentum .9, 10 epochs, batch 128.

    Args:
        network: left as it is. plan: from `plan_layers`, which knows the classifier; it must be an nn.Linear.
        train, test: the data with the new labels, on the network's device.
        classes: number of the new labels. seed: of the order of samples.

    Returns: rows as of `probe_features`, metric "probe_finetune".
    """
    tuned = unspread(copy.deepcopy(bare(network)))
    old = tuned.get_submodule(plan.classifier) if plan.classifier else None
    if not isinstance(old, nn.Linear):
        raise RequestError("finetune replaces a linear classifier; this network has none: leave finetune out")
    card = [old.weight.device] if old.weight.is_cuda else []
    with torch.random.fork_rng(card):
        torch.manual_seed(seed)  # of dropout, if the network has it
        _replace(tuned, str(plan.classifier), old, classes)
        _tune(tuned, train, stream(seed, "finetune"))
    return [
        {"split": split, "metric": "probe_finetune", "value": _accuracy(tuned, data)}
        for split, data in (("train", train), ("test", test))
    ]


def _replace(network: nn.Module, path: str, old: nn.Linear, classes: int) -> None:
    """Put a classifier of zeros in the place of `old`."""
    parent, _, name = path.rpartition(".")
    head = nn.Linear(old.in_features, classes, device=old.weight.device, dtype=old.weight.dtype)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    setattr(network.get_submodule(parent), name, head)


def _tune(network: nn.Module, train: Split, draw: np.random.Generator) -> None:
    network.requires_grad_(True)
    optimiser = torch.optim.SGD(network.parameters(), lr=TUNE_RATE, momentum=0.9)
    network.train()
    for _ in range(TUNE_EPOCHS):
        for rows in torch.from_numpy(draw.permutation(len(train))).to(train.device).split(BATCH):
            if len(rows) == 1:  # batch norm has no variance of one sample
                continue
            x, y = train.batch(rows)
            optimiser.zero_grad(set_to_none=True)
            F.cross_entropy(network(x), y).backward()
            optimiser.step()


@torch.no_grad()
def _accuracy(network: nn.Module, data: Split) -> float:
    network.eval()
    right = 0
    for start in range(0, len(data), ROWS):
        x, y = data.batch(slice(start, start + ROWS))
        right += int((network(x).argmax(1) == y).sum())
    return right / len(data)
