"""NC measures of 50,000 x 512 float32 features at K = 10 and 100 against the ways in which they are usually computed.

    python benchmarks/measures.py [--json FILE] [--trials 5]

Process CPU time, one thread. The per-sample loop runs on a part of the samples and is scaled up; its row says so.
"""

from __future__ import annotations

from harness import Row, arguments, cpu_seconds, once, report  # isort: skip  (sets the thread counts)

import numpy as np
import scipy.linalg
import torch
from torch.nn.functional import one_hot

from ufm.measure import collapse
from ufm.measure.names import DEFAULT, NEEDS_SCATTER

N, DIM = 50_000, 512
LIGHT = DEFAULT - NEEDS_SCATTER
PART = 5  # the per-sample loop runs on one sample in so many
REACH = {"one-hot torch": 7, "per-class numpy": 40, "batched outer products": 500, "per-sample loop": 500}  # K = 10; else 4


def features(classes: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, classes, N)
    means = rng.standard_normal((classes, DIM), dtype=np.float32)
    rows = means[labels] + 0.5 * rng.standard_normal((N, DIM), dtype=np.float32)
    weight = means - means.mean(0) + 0.1 * rng.standard_normal((classes, DIM), dtype=np.float32)
    return tuple(torch.from_numpy(a) for a in (rows, labels, weight, np.zeros(classes, dtype=np.float32)))


def class_means_one_hot(x: torch.Tensor, y: torch.Tensor, classes: int) -> torch.Tensor:
    selector = one_hot(y, classes).to(x.dtype)
    return selector.T @ x / selector.sum(0)[:, None]


def packaged_nc1(x: torch.Tensor, y: torch.Tensor, classes: int) -> float:
    """One-hot class means, one d x d product, one d x d pseudo-inverse: the best of what is packaged."""
    means = class_means_one_hot(x, y, classes)
    residual = x - means[y]
    within = residual.T @ residual / len(x)
    centred = means - means.mean(0)
    between = centred.T @ centred / classes
    return float(torch.trace(within @ torch.linalg.pinv(between, hermitian=True, rtol=1e-5)) / classes)


def packaged_all(x: torch.Tensor, y: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> dict[str, float]:
    """The same with NC2, NC3, NC4, the nearest-mean error and CDNV."""
    classes = len(weight)
    found = {"nc1_pinv": packaged_nc1(x, y, classes)}
    means = class_means_one_hot(x, y, classes)
    centred = means - means.mean(0)
    target = (torch.eye(classes) - 1 / classes) / (classes - 1) ** 0.5
    for name, rows in (("means", centred), ("weights", weight)):
        norms = rows.norm(dim=1)
        found[f"nc2_equinorm_{name}"] = float(norms.std() / norms.mean())
        gram = rows @ rows.T
        cosine = gram / norms[:, None] / norms[None]
        off = ~torch.eye(classes, dtype=torch.bool)
        found[f"nc2_equiangular_{name}"] = float((cosine[off] + 1 / (classes - 1)).abs().mean())
        found[f"nc2_etf_{name}"] = float((gram / gram.norm() - target).norm())
    found["nc3_papyan"] = float(((weight / weight.norm() - centred / centred.norm()) ** 2).sum())
    nearest = torch.cdist(x, means).argmin(1)
    found["ncc_error"] = float((nearest != y).float().mean())
    found["nc4_disagreement"] = float(((x @ weight.T + bias).argmax(1) != nearest).float().mean())
    spread = torch.zeros(classes).index_add_(0, y, ((x - means[y]) ** 2).sum(1)) / torch.bincount(y, minlength=classes)
    apart = torch.cdist(means, means) ** 2
    i, j = torch.triu_indices(classes, classes, 1)
    found["cdnv"] = float(((spread[i] + spread[j]) / (2 * apart[i, j])).mean())
    return found


def per_class_nc1(x: np.ndarray, y: np.ndarray, classes: int) -> float:
    """A loop over classes with numpy's covariance, and scipy's pseudo-inverse of the d x d between-class covariance."""
    within = np.zeros((x.shape[1], x.shape[1]))
    means = []
    for k in range(classes):
        rows = x[y == k]
        means.append(rows.mean(0))
        within += np.cov(rows, rowvar=False, ddof=0) * len(rows) / len(x)
    centred = np.array(means) - np.mean(means, axis=0)
    return float(np.trace(within @ scipy.linalg.pinv(centred.T @ centred / classes, rtol=1e-5)) / classes)


def batch_outer_nc1(x: torch.Tensor, y: torch.Tensor, classes: int) -> float:
    """For each batch of 128 and each class, every sample's outer product at once and their sum, as in the first notebooks."""
    means = torch.stack([x[y == k].mean(0) for k in range(classes)])
    within = torch.zeros(x.shape[1], x.shape[1])
    for start in range(0, len(x), 128):
        batch, label = x[start : start + 128], y[start : start + 128]
        for k in range(classes):
            gap = batch[label == k] - means[k]
            within += torch.matmul(gap.unsqueeze(-1), gap.unsqueeze(1)).sum(0)
    return pseudo_inverse_form(within, means, len(x))


def pseudo_inverse_form(within: torch.Tensor, means: torch.Tensor, samples: int) -> float:
    centred = means - means.mean(0)
    between = (centred.T @ centred / len(means)).numpy()
    return float(np.trace(within.numpy() @ scipy.linalg.pinv(between, rtol=1e-5)) / samples / len(means))


def per_sample_nc1(x: torch.Tensor, y: torch.Tensor, classes: int) -> float:
    """A loop over samples with one outer product each, as in the most copied public code."""
    means = torch.stack([x[y == k].mean(0) for k in range(classes)])
    within = torch.zeros(x.shape[1], x.shape[1])
    for i in range(len(x)):
        gap = x[i] - means[y[i]]
        within += gap.unsqueeze(1) @ gap.unsqueeze(0)
    return pseudo_inverse_form(within, means, len(x))


def compare(classes: int, trials: int) -> list[Row]:
    x, y, weight, bias = features(classes)
    rows, labels = x.numpy(), y.numpy()
    wanted = collapse(x, y, weight=weight, bias=bias)
    for name, value in packaged_all(x, y, weight, bias).items():
        assert abs(value - wanted[name]) <= 1e-3 * abs(wanted[name]) + 1e-3, (name, value, wanted[name])
    assert abs(per_class_nc1(rows, labels, classes) / wanted["nc1_pinv"] - 1) < 1e-3
    one = cpu_seconds(lambda: collapse(x, y, names=["nc1_pinv"]), trials)
    light = cpu_seconds(lambda: collapse(x, y, weight=weight, bias=bias, names=LIGHT), trials)
    full = cpu_seconds(lambda: collapse(x, y, weight=weight, bias=bias), trials)
    packaged = cpu_seconds(lambda: packaged_nc1(x, y, classes), trials)
    packaged_every = cpu_seconds(lambda: packaged_all(x, y, weight, bias), trials)
    by_class = cpu_seconds(lambda: per_class_nc1(rows, labels, classes), trials)
    some, theirs = x[::PART].contiguous(), y[::PART]
    by_batch = PART * once(lambda: batch_outer_nc1(some, theirs, classes))[0]
    by_sample = PART * once(lambda: per_sample_nc1(some, theirs, classes))[0]
    scaled = f"the loop ran on 1 in {PART} samples, times {PART}"
    size = f"{N} x {DIM}, K = {classes}"
    alternatives = [("one-hot torch", packaged, ""), ("per-class numpy", by_class, "")]
    alternatives += [("batched outer products", by_batch, scaled), ("per-sample loop", by_sample, scaled)]
    reach = {name: goal if classes == 10 else 4 for name, goal in REACH.items()}
    found = [Row(f"nc1_pinv, {size}", one, name, cost, reach[name], note) for name, cost, note in alternatives]
    text = "ours gives every measure but VCI and the ranks; the alternative NC1-NC4, NCC and CDNV"
    found.append(Row(f"light measures, {size}", light, "one-hot torch", packaged_every, reach["one-hot torch"], text))
    text = "ours adds VCI and three ranks (a float64 d x d scatter and its eigenvalues), the alternative does not"
    found.append(Row(f"all measures, {size}", full, "one-hot torch", packaged_every, 1, text))
    return found


if __name__ == "__main__":
    options = arguments(__doc__.splitlines()[0])
    torch.set_num_threads(1)
    report([row for classes in (10, 100) for row in compare(classes, options.trials)], options)
