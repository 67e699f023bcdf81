"""What the comparison needs beyond numbers: means, Grams, projected covariances, spectra, and every test point's own share.

Everything is taken in the span of the train class means (at most K-1 dimensions), so that nothing of size d x d is kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from empirical.features import Plan, classifier_weight, plan_layers
from empirical.store import Batches, Stored, collect, first_inputs, full_float32, network_of
from ufm.measure.algebra import pinv_factor

ROWS = 4096  # float64 rows at a time
PER_CLASS_LIMIT = 2**24  # numbers in the class covariances; above it only the pooled one is kept
POINTS = 2000  # test points whose place among the class means is kept
POINT_LIMIT = 2**20  # numbers in these places, so fewer points for many classes
PRODUCT_LIMIT = 2**26  # numbers in K covariances of size d x d, for the products of traces


def measure_tensors(
    model: nn.Module,
    train: Batches,
    test: Batches,
    *,
    layers: str | Sequence[str] | Plan = "last",
    classifier: str | None = None,
    device: torch.device | str | None = None,
    batch_size: int = 1000,
) -> dict[str, np.ndarray]:
    """Return the arrays of `seed-K/tensors.safetensors` (keys in docs/design.md); arguments as in `measure_network`."""
    model, where = network_of(model, device)
    plan = layers if isinstance(layers, Plan) else plan_layers(model, first_inputs(model, train, where), layers, classifier)
    stored = [collect(model, plan, data, device=where, batch_size=batch_size) for data in (train, test)]
    return tensors_of(stored[0], stored[1], plan, *classifier_weight(model, plan))


def tensors_of(train: Stored, test: Stored, plan: Plan, weight: Tensor | None, bias: Tensor | None) -> dict[str, np.ndarray]:
    """Return the same arrays from stored features."""
    guesses = {"train": train.predicted, "test": test.predicted}
    arrays = head_arrays((train.labels, test.labels), guesses, weight, bias, plan.outputs)
    for name in plan.names:
        found = layer_tensors(
            (train.features[name], train.labels), (test.features[name], test.labels), plan.outputs, products=name == "penultimate"
        )
        arrays.update({f"{name}/{key}": value for key, value in found.items()})
    return arrays


def head_arrays(
    labels: tuple[Tensor, Tensor], guesses: Mapping[str, Tensor], weight: Tensor | None, bias: Tensor | None, classes: int
) -> dict[str, np.ndarray]:
    """Return what belongs to the classifier: weight, its spectrum, bias, both confusion matrices, the test decisions."""
    arrays = {"test/labels": labels[1].cpu().numpy()}
    for split, y in zip(("train", "test"), labels, strict=True):
        if split in guesses:
            arrays[f"{split}/confusion"] = confusion(y, guesses[split], classes)
    if "test" in guesses:
        arrays["test/predicted"] = guesses["test"].cpu().numpy()
    if weight is not None:
        arrays["weight"] = _numpy(weight)
        arrays["weight/spectrum"] = np.linalg.svd(_numpy(weight), compute_uv=False)
    if bias is not None:
        arrays["bias"] = _numpy(bias)
    return arrays


def layer_tensors(
    train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], classes: int, *, products: bool = False
) -> dict[str, np.ndarray]:
    """Return one layer's arrays; absent classes are nan. `products`: also the last two, which only the last layer needs.

    basis (r, d)                 orthonormal rows, the span of the centred train class means
    SPLIT/counts, means, gram    n_k; mu_k (K, d); (K, K) Gram of the means about their own mean
    SPLIT/spectrum               singular values of the centred class means
    SPLIT/traces (K,)            Tr Sigma_k, over all d dimensions
    SPLIT/within (r, r)          pooled within-class covariance in the basis, about the split's own means
    SPLIT/within_class (K, r, r) the same class by class
    test/strong, test/weak (N,)  |h - mu|_B^2 / K about the train mean of the true class, of the nearest class: their means
                                 are nc1_pinv_strong and nc1_pinv_weak
    test/nearest (N,)            the class of the nearest train mean; test/ncc_correct (N,) uint8
    train/trace_products (K, K)  Tr(Sigma_i Sigma_j)
    test/places (P, r), test/places_of (P,)  basis @ h of evenly spaced test points, float32, and which points they are
    """
    with full_float32():
        means = {split: class_means(*pair, classes) for split, pair in (("train", train), ("test", test))}
        present = np.isfinite(means["train"]).all(1)
        centred = means["train"][present] - means["train"][present].mean(0)
        factor, rank = pinv_factor(centred / np.sqrt(present.sum()))
        basis = factor / np.linalg.norm(factor, axis=1, keepdims=True) if rank else np.zeros((0, centred.shape[1]))
        arrays: dict[str, np.ndarray] = {"basis": basis}
        for split, pair in (("train", train), ("test", test)):
            arrays.update({f"{split}/{key}": value for key, value in _split_arrays(*pair, means[split], basis).items()})
        arrays.update({f"test/{key}": value for key, value in _points(*test, means["train"], factor).items()})
        if products and classes * train[0].shape[1] ** 2 <= PRODUCT_LIMIT:
            arrays["train/trace_products"] = trace_products(*train, means["train"])
        if products and len(basis):
            arrays["test/places"], arrays["test/places_of"] = places(test[0], basis)
    return arrays


def class_means(features: Tensor, labels: Tensor, classes: int) -> np.ndarray:
    """Return the class means (K, d) in float64, nan for an absent class, summed about the sample mean."""
    wide = torch.float32 if features.device.type == "mps" else torch.float64
    shift = features.mean(0, dtype=wide)
    sums = torch.zeros(classes, features.shape[1], dtype=wide, device=features.device)
    for rows, y in _blocks(features, labels):
        one_hot = torch.nn.functional.one_hot(y, classes).to(wide)  # a product, not atomics: the same bits on every run
        sums += one_hot.T @ (rows.to(wide) - shift)
    counts = torch.bincount(labels, minlength=classes).to(wide)[:, None]
    means = torch.where(counts > 0, sums / counts.clamp(min=1) + shift, torch.nan)
    return means.cpu().numpy().astype(np.float64)


def confusion(labels: Tensor, predicted: Tensor, classes: int) -> np.ndarray:
    """Return counts (K, K): row = true class, column = argmax of the logits."""
    return torch.bincount(labels * classes + predicted, minlength=classes**2).view(classes, classes).cpu().numpy()


def trace_products(features: Tensor, labels: Tensor, means: np.ndarray) -> np.ndarray:
    """Return Tr(Sigma_i Sigma_j), (K, K), of the class covariances: what the variance of a few-shot margin needs."""
    covariances = []
    for k, mean in enumerate(means):
        rows = _numpy(features[labels == k]) - mean
        covariances.append((rows.T @ rows / max(len(rows), 1)).ravel())
    flat = np.stack(covariances)
    flat[~np.isfinite(means).all(1)] = np.nan
    return flat @ flat.T


def places(features: Tensor, basis: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (P, r) coordinates in the basis of at most `POINTS` evenly spaced rows, float32, and the rows' numbers (P,)."""
    number = max(1, min(POINTS, len(features), POINT_LIMIT // len(basis)))
    rows = np.unique(np.linspace(0, len(features) - 1, number).round().astype(np.int64))
    chosen = features[torch.from_numpy(rows).to(features.device)]
    return (_numpy(chosen) @ basis.T).astype(np.float32), rows


def _split_arrays(features: Tensor, labels: Tensor, means: np.ndarray, basis: np.ndarray) -> dict[str, np.ndarray]:
    classes, rank = len(means), len(basis)
    each = classes * rank**2 <= PER_CLASS_LIMIT
    count = torch.bincount(labels, minlength=classes).cpu().numpy()
    squares, pooled = np.zeros(classes), np.zeros((rank, rank))
    by_class = np.zeros((classes, rank, rank)) if each else None
    for rows, y in _blocks(features, labels):
        residual, own = _numpy(rows), y.cpu().numpy()
        residual = residual - means[own]
        squares += np.bincount(own, np.einsum("nd,nd->n", residual, residual), minlength=classes)
        inside = residual @ basis.T
        pooled += inside.T @ inside
        for k in np.unique(own) if by_class is not None else ():
            mine = inside[own == k]
            by_class[k] += mine.T @ mine
    size = np.where(count > 0, count, np.nan)
    present = count > 0
    centred = means - means[present].mean(0)
    arrays = {
        "counts": count,
        "means": means,
        "gram": centred @ centred.T,
        "spectrum": np.linalg.svd(centred[present], compute_uv=False),
        "traces": squares / size,
        "within": pooled / count.sum(),
    }
    if by_class is not None:
        arrays["within_class"] = by_class / size[:, None, None]
    return arrays


def _points(features: Tensor, labels: Tensor, means: np.ndarray, factor: np.ndarray) -> dict[str, np.ndarray]:
    """Each test point's share of NC1 about the train means, and its nearest mean."""
    present = np.isfinite(means).all(1)
    kept, centre = means[present], means[present].mean(0)
    strong, weak, nearest = [], [], []
    for rows, y in _blocks(features, labels):
        h = _numpy(rows) - centre
        # |h - mu|^2 without |h|^2, which is the same for every class
        score = ((kept - centre) ** 2).sum(1) - 2 * h @ (kept - centre).T
        guess = np.flatnonzero(present)[score.argmin(1)]
        for share, about in ((strong, y.cpu().numpy()), (weak, guess)):
            share.append((((h - (means[about] - centre)) @ factor.T) ** 2).sum(1) / present.sum())
        nearest.append(guess)
    guess = np.concatenate(nearest)
    return {
        "strong": np.concatenate(strong),
        "weak": np.concatenate(weak),
        "nearest": guess,
        "ncc_correct": (guess == labels.cpu().numpy()).astype(np.uint8),
    }


def _blocks(features: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    for start in range(0, len(features), ROWS):
        yield features[start : start + ROWS], labels[start : start + ROWS]


def _numpy(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().to(torch.float64).numpy()
