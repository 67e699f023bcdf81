"""Deep linear unconstrained-features models: optima for MSE (any counts), structures for cross-entropy.

MSE: every singular value of the target shrinks on its own (Dang et al. 2023). Cross-entropy: the simplex is not the
global optimum in general (Garrod & Keating 2024), so structures are listed with their losses and none is called optimal.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from ufm.prediction import DERIVED, Prediction, not_applicable
from ufm.problem import Problem
from ufm.theory import deep_scalar

ASSUMPTIONS_MSE = ("linear layers", "MSE with one-hot labels", "ridge on every weight and on the features", "bias none or free")


def product(problem: Problem) -> float:
    """Return P = lambda_h lambda_1 .. lambda_L."""
    return problem.lambda_h * math.prod(problem.layer_lambdas)


def target_matrix(problem: Problem) -> np.ndarray:
    """Return the (K, K) target: D^(1/2) without bias, (I - n 1'/N) D^(1/2) with a free one; row = output, column = class."""
    counts = problem.count_vector
    root = np.diag(np.sqrt(counts))
    if problem.bias == "none":
        return root
    return (np.eye(problem.classes) - np.outer(counts, np.ones(problem.classes)) / counts.sum()) @ root


def explicit_weights(problem: Problem, output: np.ndarray) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
    """Return (W_1 .. W_L, class means of H_1 (K, d)): the cheapest linear layers whose output is `output`.

    With output = Z diag(sqrt n) = sum_i s_i u_i v_i', mode i runs through one coordinate of every layer and pays
    lambda_l |W_l|^2 = (P s_i^2)^(1/(L+1)) in each, which is the minimum of the penalty at that product.

    Args:
        problem: linear layers; every weight decay > 0.
        output: (K, K), row = output, column = class, of rank <= d.
    """
    left, singular, right = np.linalg.svd(output)
    singular[singular <= 1e-14 * singular[0]] = 0.0
    kept = min(problem.classes, problem.dim)
    energy = (product(problem) * singular[:kept] ** 2) ** (1 / (problem.depth + 1))
    sizes = np.zeros(problem.dim)
    sizes[:kept] = np.sqrt(energy)
    weights = [np.diag(sizes / math.sqrt(lam)) for lam in problem.layer_lambdas[:-1]]
    last = np.zeros((problem.classes, problem.dim))
    last[:, :kept] = left[:, :kept] * sizes[:kept] / math.sqrt(problem.layer_lambdas[-1])
    means = np.zeros((problem.classes, problem.dim))
    means[:, :kept] = right[:kept].T * sizes[:kept] / math.sqrt(problem.lambda_h)
    return (*weights, last), means / np.sqrt(problem.count_vector)[:, None]


def predict_mse(problem: Problem) -> Prediction:
    """Predict the global optimum of the deep linear MSE model, any class counts, bias none or free, any width.

    Singular value s of the target becomes s x(g), g = N (P s^2)^(1/(L+1)) / s^2, with x from the scalar problem; a width
    d < K keeps the d modes with the largest gain.
    """
    if problem.loss != "mse" or problem.activation != "linear" or problem.bias == "ridge" or problem.targets is not None:
        return not_applicable(
            "the deep linear formula needs MSE, one-hot labels, linear layers and no or a free bias", "deep-linear"
        )
    depth, total, price = problem.depth, problem.count_vector.sum(), product(problem)
    left, singular, right = np.linalg.svd(target_matrix(problem))
    singular[singular < 1e-12 * singular[0]] = 0.0
    scales = [
        deep_scalar.minimise(total * (price * s * s) ** (1 / (depth + 1)) / (s * s), depth) if s > 0 else None for s in singular
    ]
    gains = np.array([0.0 if m is None else s * s / total * (0.5 - m.value) for s, m in zip(singular, scales, strict=True)])
    kept = set(np.argsort(-gains, kind="stable")[: problem.dim])
    shrink = np.array([m.x if m is not None and i in kept else 0.0 for i, m in enumerate(scales)])
    loss = float(0.5 * (singular**2).sum() / total - sum(gains[i] for i in kept))
    output = singular * shrink
    energy = (price * output**2) ** (1 / (depth + 1))  # lambda_l |W_l|^2 of each mode, the same in every layer
    roots = np.sqrt(problem.count_vector)
    logits_transposed = (left * output) @ right / roots
    bias = np.zeros(problem.classes) if problem.bias == "none" else problem.count_vector / total
    alive = int((shrink > 0).sum())
    gram_h = (right.T * (energy / problem.lambda_h if problem.lambda_h else 0)) @ right / np.outer(roots, roots)
    distinct = len({round(float(g), 12) for g in gains}) == 1 and problem.dim < (gains > 0).sum()
    penalised = min(*problem.layer_lambdas, problem.lambda_h) > 0
    weights, means = explicit_weights(problem, (left * output) @ right) if penalised else (None, None)
    return Prediction(
        name="zero" if alive == 0 else ("etf" if problem.bias == "free" else "of") if problem.balanced else "gof",
        loss=loss,
        logits=logits_transposed.T + bias,
        bias=bias,
        gram_w=(left * (energy / problem.layer_lambdas[-1])) @ left.T,
        gram_h=gram_h,
        singular_values=np.sort(output)[::-1],
        status=DERIVED,
        assumptions=ASSUMPTIONS_MSE,
        reference="dang2023",
        unique=not distinct,
        zero=alive == 0,
        thresholds=_class_thresholds(problem, price),
        details={"shrink": shrink.tolist(), "rank": alive, "product": price, "target_singular_values": singular.tolist()},
        weights=weights,
        means=means,
    )


def _class_thresholds(problem: Problem, price: float) -> dict[str, float]:
    """Class c is alive iff P N^(L+1) L^(2L) / (n_c^L (L-1)^(L-1)) < 1 (no bias): minority collapse, smallest class first."""
    if problem.bias != "none":
        return {}
    depth, total = problem.depth, problem.count_vector.sum()
    inner = 1.0 if depth == 1 else float((depth - 1) ** (depth - 1))
    return {
        f"class_{c}_dead": price * total ** (depth + 1) * depth ** (2 * depth) / (n**depth * inner)
        for c, n in enumerate(problem.count_vector)
    }


# --- cross-entropy -----------------------------------------------------------------------------------------------


def _structure_loss(
    cross_entropy: Callable[[complex], complex], singular: float, rank: int, depth: int, per_class: float, price: float
) -> tuple[float, float]:
    """Minimise CE(r) + (L+1)/2 P^(1/(L+1)) rank (sqrt(n) r singular)^(2/(L+1)) over the scale r >= 0, globally."""
    power = 2 / (depth + 1)
    weight = 0.5 * (depth + 1) * price ** (1 / (depth + 1)) * rank * (math.sqrt(per_class) * singular) ** power

    def loss(scale: complex) -> complex:
        return cross_entropy(scale) + weight * scale**power

    scale, value = deep_scalar.global_minimum(loss, np.geomspace(1e-6, 200.0, 4000).tolist())
    zero = float(cross_entropy(0.0).real)
    return (scale, value) if value < zero else (0.0, zero)


def _ce_families(classes: int) -> dict[str, tuple[Callable[[complex], complex], float, int]]:
    """Return structure -> (cross-entropy at a scale, its equal singular values at scale 1, how many there are)."""
    K = classes
    others = np.cos(2 * np.pi * np.arange(K) / K) - 1
    found: dict[str, tuple[Callable[[complex], complex], float, int]] = {
        "dnc": (lambda a: np.log1p((K - 1) * np.exp(-a)), 1.0, K - 1)
    }
    if K % 2 == 0:
        found["pairs"] = (lambda b: np.log1p(np.exp(-2 * b) + (K - 2) * np.exp(-b)), 2.0, K // 2)
    if K >= 3:
        found["circle"] = (lambda r: np.log(np.exp(np.multiply.outer(r, others)).sum(-1)), K / 2, 2)
    return found


def ce_structures(classes: int, depth: int, per_class: float, price: float) -> dict[str, tuple[float, float]]:
    """Return structure -> (scale, loss) of the balanced deep linear CE model: dnc, pairs (even K), circle, zero.

    dnc: Z = a (I - J/K); pairs: Z = b blockdiag [[1,-1],[-1,1]]; circle: Z_ij = r cos(2 pi (i-j)/K), rank 2.
    Garrod & Keating 2024. The lowest of these is the lowest *known here*, not a proven optimum.
    """
    found = {
        name: _structure_loss(entropy, singular, rank, depth, per_class, price)
        for name, (entropy, singular, rank) in _ce_families(classes).items()
    }
    return {**found, "zero": (0.0, math.log(classes))}


def ce_critical(structure: str, classes: int, depth: int) -> float:
    """Return (n P)^(1/(L+1)) at which a structure's loss meets log K: the largest (log K - CE(r)) / penalty(r) over r > 0."""
    entropy, singular, rank = _ce_families(classes)[structure]
    power = 2 / (depth + 1)
    unit = 0.5 * (depth + 1) * rank * singular**power

    def lost(scale: complex) -> complex:
        return (entropy(scale) - math.log(classes)) / (unit * scale**power)

    return -deep_scalar.global_minimum(lost, np.geomspace(1e-3, 200.0, 4000).tolist())[1]


def ce_logits(structure: str, classes: int, scale: float) -> np.ndarray:
    """Return the (K, K) logits of a CE structure at a scale."""
    K = classes
    if structure == "dnc":
        return scale * (np.eye(K) - 1 / K)
    if structure == "pairs":
        return scale * np.kron(np.eye(K // 2), np.array([[1.0, -1.0], [-1.0, 1.0]]))
    if structure == "circle":
        index = np.arange(K)
        return scale * np.cos(2 * np.pi * (index[:, None] - index[None, :]) / K)
    return np.zeros((K, K))
