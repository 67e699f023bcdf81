"""Every family of predictions against a direct minimisation of the model over W, the class means and b.

The objective below is written from its definition, in the factors, with scipy's quasi-Newton and several starts: it shares
no formula with the predictions.
"""

import itertools

import numpy as np
import pytest
from scipy.optimize import minimize

import ufm

RNG = np.random.default_rng(7)
TIGHT = {"maxiter": 20000, "maxfun": 20000, "ftol": 1e-16, "gtol": 1e-11, "maxcor": 30}


def losses(p, z):
    """Row losses and their gradient in the logits."""
    q = np.eye(p.classes) if p.targets is None else np.array(p.targets)
    if p.loss == "mse":
        return ((z - q) ** 2).sum(1) / 2, z - q
    if p.loss == "smoothing":
        q = (1 - p.smoothing) * q + p.smoothing / p.classes * q.sum(1, keepdims=True)
    log_p = z - z.max(1, keepdims=True)
    log_p = log_p - np.log(np.exp(log_p).sum(1, keepdims=True))
    prob = np.exp(log_p)
    if p.loss == "focal":
        own, g = np.diag(log_p), p.focal_gamma
        pk = np.exp(own)
        slope = (1 - pk) ** g - g * (1 - pk) ** (g - 1) * pk * own
        return -((1 - pk) ** g) * own, slope[:, None] * (prob - q)
    return -(q * log_p).sum(1), q.sum(1, keepdims=True) * prob - q


def objective(p, x, shapes):
    (K, d), (T, _) = shapes
    U, V, b = x[: K * d].reshape(K, d), x[K * d : (K + T) * d].reshape(T, d), x[(K + T) * d :]
    n, N = p.count_vector, p.total
    W, H, tau = U, V**2 if p.features == "nonnegative" else V, 1.0
    if p.constraint == "sphere":
        norm_w, norm_h = np.linalg.norm(U, axis=1, keepdims=True), np.linalg.norm(V, axis=1, keepdims=True)
        W, H, tau = U / norm_w, V / norm_h, p.temperature
    if p.constraint == "ball":
        norm_w, norm_h = np.linalg.norm(U), np.linalg.norm(H)
        W, H = U / norm_w * np.sqrt(K * p.energy_w), H / norm_h * np.sqrt(K * p.energy_h)
    row, gz = losses(p, H @ W.T / tau + (b if len(b) else 0.0))
    weight = n / N * (1.0 if p.class_weights is None else np.array(p.class_weights))
    gz = gz * weight[:, None]
    gW, gH, gb = gz.T @ H / tau, gz @ W / tau, gz.sum(0)
    f = weight @ row
    if p.constraint == "ridge":
        f += p.lambda_w / 2 * (W**2).sum() + p.lambda_h / 2 * (n @ (H**2).sum(1)) + p.lambda_b / 2 * (b @ b)
        gW, gH, gb = gW + p.lambda_w * W, gH + p.lambda_h * n[:, None] * H, gb + p.lambda_b * (b if len(b) else 0.0)
    elif p.constraint == "sphere":
        gW = (gW - (gW * W).sum(1, keepdims=True) * W) / norm_w
        gH = (gH - (gH * H).sum(1, keepdims=True) * H) / norm_h
    else:
        gW = (gW - (gW * W).sum() / (W**2).sum() * W) * np.linalg.norm(W) / norm_w
        gH = (gH - (gH * H).sum() / (H**2).sum() * H) * np.linalg.norm(H) / norm_h
    if p.features == "nonnegative":
        gH = 2 * V * gH
    return f, np.concatenate([gW.ravel(), gH.ravel(), gb if len(b) else []])


def best(p, starts=4):
    K, T, d = p.classes, len(p.count_vector), p.dim
    values = []
    for seed in range(starts):
        rng = np.random.default_rng(seed)
        x = np.concatenate([rng.normal(size=(K + T) * d) * (0.6, 1.5)[seed % 2], np.zeros(K if p.bias != "none" else 0)])
        values.append(minimize(lambda x: objective(p, x, ((K, d), (T, d))), x, jac=True, method="L-BFGS-B", options=TIGHT))
    return min(values, key=lambda end: end.fun)


def factors(p, x):
    """W and the class means of a point of the search, as the constraint makes them."""
    K, T, d = p.classes, len(p.count_vector), p.dim
    W, H = x[: K * d].reshape(K, d), x[K * d : (K + T) * d].reshape(T, d)
    H = H**2 if p.features == "nonnegative" else H
    if p.constraint == "sphere":
        return W / np.linalg.norm(W, axis=1, keepdims=True), H / np.linalg.norm(H, axis=1, keepdims=True)
    if p.constraint == "ball":
        return W / np.linalg.norm(W) * np.sqrt(K * p.energy_w), H / np.linalg.norm(H) * np.sqrt(K * p.energy_h)
    return W, H


def multi_label(K, sizes):
    sets = [(S, n) for m, n in sizes.items() for S in itertools.combinations(range(K), m)]
    return {"targets": tuple(tuple(float(k in S) for k in range(K)) for S, _ in sets), "counts": tuple(n for _, n in sets)}


def permuted(K, rows):
    found = [(tuple(r), n) for row, n in rows for r in sorted(set(itertools.permutations(row)))]
    return {"targets": tuple(r for r, _ in found), "counts": tuple(n for _, n in found)}


SMALL = {"lambda_w": 0.02, "lambda_h": 0.004}
REGRESSION = {"targets": RNG.normal(size=(9, 3)) @ np.diag([2.0, 1.0, 0.2]), "counts": (1, 2, 1, 3, 1, 1, 2, 1, 1)}
CASES = {
    "ce": {"classes": 4, "dim": 3, "counts": 5, **SMALL},
    "ce-bias-ridge": {"classes": 4, "dim": 5, "counts": 5, "bias": "ridge", "lambda_b": 0.1, **SMALL},
    "ce-weighted": {"classes": 3, "dim": 3, "counts": 4, "class_weights": (2.5,) * 3, **SMALL},
    "ce-ball": {"classes": 4, "dim": 4, "counts": 5, "constraint": "ball", "energy_w": 1.5, "energy_h": 0.4},
    "smoothing": {"classes": 5, "dim": 4, "counts": 3, "loss": "smoothing", "smoothing": 0.25, **SMALL},
    "focal": {"classes": 4, "dim": 4, "counts": 6, "loss": "focal", "focal_gamma": 2.0, **SMALL},
    "focal-ball": {"classes": 4, "dim": 4, "counts": 6, "loss": "focal", "constraint": "ball", "energy_w": 2.0},
    "mse": {"classes": 4, "dim": 4, "counts": 6, "loss": "mse", **SMALL},
    "mse-free": {"classes": 4, "dim": 3, "counts": 6, "loss": "mse", "bias": "free", **SMALL},
    "mse-ridge": {"classes": 4, "dim": 5, "counts": 6, "loss": "mse", "bias": "ridge", "lambda_b": 0.7, **SMALL},
    "mse-weighted": {"classes": 3, "dim": 4, "counts": 6, "loss": "mse", "class_weights": (3.0,) * 3, **SMALL},
    "mse-ball": {"classes": 4, "dim": 4, "counts": 6, "loss": "mse", "constraint": "ball", "energy_w": 0.5, "energy_h": 0.6},
    "mse-ball-free": {
        **{"classes": 4, "dim": 4, "counts": 6, "loss": "mse", "bias": "free"},
        **{"constraint": "ball", "energy_w": 0.4, "energy_h": 0.5},
    },
    "gof": {"classes": 4, "dim": 5, "counts": (30, 11, 5, 1), "loss": "mse", "lambda_w": 0.03, "lambda_h": 0.02},
    "gof-weighted": {
        **{"classes": 4, "dim": 4, "counts": (12, 9, 5, 2), "loss": "mse"},
        **{"class_weights": (0.5, 1.0, 2.0, 4.0), **SMALL},
    },
    "gof-ball": {
        **{"classes": 4, "dim": 4, "counts": (20, 9, 5, 1), "loss": "mse"},
        **{"constraint": "ball", "energy_w": 0.3, "energy_h": 0.3},
    },
    "gof-relu": {"classes": 3, "dim": 6, "counts": (20, 9, 4), "loss": "mse", "features": "nonnegative", **SMALL},
    "mse-free-imbalanced": {"classes": 4, "dim": 4, "counts": (20, 9, 5, 2), "loss": "mse", "bias": "free", **SMALL},
    "mse-rank": {"classes": 5, "dim": 2, "counts": (20, 9, 5, 2, 2), "loss": "mse", "bias": "free", **SMALL},
    "mse-rank-balanced": {"classes": 5, "dim": 3, "counts": 6, "loss": "mse", **SMALL},
    "regression": {"classes": 3, "dim": 4, "loss": "mse", "bias": "free", **REGRESSION, **SMALL},
    "regression-rank": {"classes": 3, "dim": 1, "loss": "mse", **REGRESSION, **SMALL},
    "step": {"classes": 5, "dim": 5, "counts": (14, 14, 4, 4, 4), **SMALL},
    "step-collapsed": {"classes": 5, "dim": 5, "counts": (30, 30, 2, 2, 2), "lambda_w": 0.06, "lambda_h": 0.01},
    "step-one-large": {"classes": 4, "dim": 4, "counts": (25, 5, 5, 5), **SMALL},
    "step-one-small": {"classes": 4, "dim": 4, "counts": (12, 12, 12, 3), **SMALL},
    "step-no-between": {"classes": 6, "dim": 6, "counts": (50,) * 3 + (2,) * 3, "lambda_w": 0.0316, "lambda_h": 0.0316},
    "step-weighted": {"classes": 4, "dim": 4, "counts": (12, 12, 4, 4), "class_weights": (1.0, 1.0, 5.0, 5.0), **SMALL},
    "step-ball": {"classes": 4, "dim": 4, "counts": (12, 12, 4, 4), "constraint": "ball", "energy_h": 0.7},
    "relu-ce": {"classes": 3, "dim": 6, "counts": (12, 7, 3), "features": "nonnegative", **SMALL},
    "relu-ce-dead": {
        "classes": 3,
        "dim": 6,
        "counts": (30, 20, 1),
        "features": "nonnegative",
        "lambda_w": 0.02,
        "lambda_h": 0.02,
    },
    "relu-smoothing": {"classes": 3, "dim": 6, "counts": (12, 7, 3), "features": "nonnegative", "loss": "smoothing", **SMALL},
    "relu-focal": {"classes": 3, "dim": 6, "counts": (12, 7, 3), "features": "nonnegative", "loss": "focal", **SMALL},
    "relu-ce-bias": {"classes": 3, "dim": 6, "counts": 5, "features": "nonnegative", "bias": "free", **SMALL},
    "relu-ce-ball": {"classes": 3, "dim": 6, "counts": (12, 7, 3), "features": "nonnegative", "constraint": "ball"},
    "relu-mse-free": {"classes": 4, "dim": 8, "counts": 6, "features": "nonnegative", "loss": "mse", "bias": "free", **SMALL},
    "sphere": {"classes": 4, "dim": 3, "counts": 5, "constraint": "sphere", "temperature": 0.6},
    "sphere-bias": {"classes": 4, "dim": 4, "counts": 5, "constraint": "sphere", "temperature": 0.6, "bias": "free"},
    "sphere-smoothing": {"classes": 4, "dim": 4, "counts": 5, "constraint": "sphere", "loss": "smoothing", "smoothing": 0.2},
    "sphere-smoothing-tilted": {
        **{"classes": 4, "dim": 6, "counts": 5, "constraint": "sphere", "temperature": 0.2},
        **{"loss": "smoothing", "smoothing": 0.2},
    },
    "sphere-focal": {"classes": 4, "dim": 3, "counts": 5, "constraint": "sphere", "loss": "focal", "temperature": 0.5},
    "polygon": {"classes": 6, "dim": 2, "counts": 5, "constraint": "sphere", "temperature": 0.4},
    "cross-polytope": {"classes": 6, "dim": 3, "counts": 5, "constraint": "sphere", "temperature": 0.4},
    "rank-ce-polygon": {"classes": 5, "dim": 2, "counts": 5, **SMALL},
    "rank-ce-octahedron": {"classes": 6, "dim": 3, "counts": 5, **SMALL},
    "multi-label": {"classes": 4, "dim": 4, **multi_label(4, {1: 3, 2: 2}), **SMALL},
    "multi-label-bias": {"classes": 4, "dim": 4, "bias": "free", **multi_label(4, {1: 3, 3: 1}), **SMALL},
    "mixup": {"classes": 3, "dim": 3, **permuted(3, [((1, 0, 0), 4), ((0.6, 0.4, 0), 2), ((0.5, 0.5, 0), 1)]), **SMALL},
    "soft": {"classes": 3, "dim": 3, **permuted(3, [((0.7, 0.2, 0.1), 2), ((0.8, 0.1, 0.1), 3)]), **SMALL},
    "mixup-mse-ridge": {
        **{"classes": 3, "dim": 3, "loss": "mse", "bias": "ridge", "lambda_b": 0.4},
        **permuted(3, [((1, 0, 0), 4), ((0.6, 0.4, 0), 2)]),
        **SMALL,
    },
    "zero-imbalanced-bias": {"classes": 3, "dim": 3, "counts": (9, 4, 2), "bias": "free", "lambda_w": 0.4, "lambda_h": 0.4},
}


@pytest.mark.parametrize("name", CASES)
def test_against_direct_minimisation(name):
    p = ufm.Problem(**CASES[name])
    predicted = ufm.predict(p)
    assert predicted.applies, predicted.reason
    end = best(p)
    assert predicted.loss <= end.fun + 1e-10 * abs(end.fun)  # the search never goes below the prediction ...
    assert end.fun == pytest.approx(predicted.loss, rel=2e-8)  # ... and reaches it
    if predicted.unique:
        W, H = factors(p, end.x)
        order = np.sort if "code" in predicted.details else np.asarray  # codes are unique up to relabelling
        scale = max(1.0, np.abs(predicted.gram_w).max(), np.abs(predicted.gram_h).max())
        np.testing.assert_allclose(order(W @ W.T), order(predicted.gram_w), atol=2e-4 * scale)
        np.testing.assert_allclose(order(H @ H.T), order(predicted.gram_h), atol=2e-4 * scale)
        np.testing.assert_allclose(order(H @ W.T), order(predicted.logits - predicted.bias), atol=2e-4 * scale)
