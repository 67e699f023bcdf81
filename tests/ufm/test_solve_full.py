"""Every loss, bias, count and kind of features against a from-scratch SciPy search over all N samples."""

import itertools

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax

import ufm

K, D = 3, 4
LAMBDAS = {"lambda_w": 0.02, "lambda_h": 0.01}


def full_objective(problem):
    """f and its gradient over (W, all N features, b), straight from the definition, in NumPy."""
    counts = problem.count_vector.astype(int)
    labels, N = np.repeat(np.arange(K), counts), counts.sum()
    Y = np.eye(K)[labels]
    if problem.loss == "smoothing":
        Y = (1 - problem.smoothing) * Y + problem.smoothing / K
    weights = np.ones(N) if problem.class_weights is None else np.asarray(problem.class_weights)[labels]
    scale = np.ones(K) if problem.logit_scale is None else np.asarray(problem.logit_scale)
    offset = np.zeros(K) if problem.logit_offset is None else np.asarray(problem.logit_offset)

    def f(x):
        W, H, b = np.split(x, [K * D, K * D + N * D])
        W, H = W.reshape(K, D), H.reshape(N, D)
        b = b if problem.bias != "none" else np.zeros(K)
        Z = (H @ W.T + b) * scale + offset
        P = softmax(Z, axis=1)
        if problem.loss == "mse":
            values, R = 0.5 * ((Z - Y) ** 2).sum(1), Z - Y
        elif problem.loss == "focal":
            p = (P * Y).sum(1)
            gamma = problem.focal_gamma
            values = -((1 - p) ** gamma) * np.log(p)
            R = ((1 - p) ** gamma - gamma * (1 - p) ** (gamma - 1) * p * np.log(p))[:, None] * (P - Y)
        else:
            values, R = -(Y * log_softmax(Z, axis=1)).sum(1), P - Y
        R = R * weights[:, None] / N * scale
        lw, lh, lb = problem.layer_lambdas[0], problem.lambda_h, problem.lambda_b
        value = values @ weights / N + 0.5 * (lw * (W**2).sum() + lh * (H**2).sum() + lb * (b**2).sum())
        gb = R.sum(0) + lb * b if problem.bias != "none" else np.zeros(K)
        return value, np.concatenate([(R.T @ H + lw * W).ravel(), (R @ W + lh * H).ravel(), gb])

    return f, N


def full_search(problem, starts=2):
    """The lowest value over random starts of L-BFGS-B on the full problem."""
    f, N = full_objective(problem)
    size, rng, best = K * D + N * D + K, np.random.default_rng(0), np.inf
    bounds = None
    if problem.features == "nonnegative":
        bounds = [(None, None)] * (K * D) + [(0, None)] * (N * D) + [(None, None)] * K
        starts += 4
    for _ in range(starts):
        x = rng.normal(size=size)
        x = np.abs(x) if bounds else x
        options = {"maxiter": 3000, "maxfun": 6000, "ftol": 1e-15, "gtol": 1e-9}
        best = min(best, minimize(f, x, jac=True, method="L-BFGS-B", bounds=bounds, options=options).fun)
    return best


CASES = list(
    itertools.product(
        ("ce", "mse", "smoothing", "focal"), ("none", "free", "ridge"), ((2, 2, 2), (4, 2, 1)), ("free", "nonnegative")
    )
)


@pytest.mark.parametrize("loss, bias, counts, features", CASES)
def test_the_reduced_optimum_is_that_of_all_samples(loss, bias, counts, features):
    fields = {"loss": loss, "bias": bias, "lambda_b": 0.05 if bias == "ridge" else 0.0, "features": features, **LAMBDAS}
    problem = ufm.Problem(K, D, counts, **fields)
    solution = ufm.solve(problem, seed=1)
    full = full_search(problem)
    assert solution.status.ok
    assert solution.loss == pytest.approx(full, rel=1e-7)
    assert solution.loss <= full + 1e-12
    f, N = full_objective(problem)
    H = np.repeat(solution.H.numpy(), counts, axis=0)
    value, gradient = f(np.concatenate([solution.W.numpy().ravel(), H.ravel(), solution.b.numpy()]))
    assert value == pytest.approx(solution.loss, rel=1e-13)
    if features == "free":  # the end point is stationary for all samples, not only for the means
        assert np.abs(gradient).max() < 1e-10
    else:
        inner = gradient[K * D : K * D + N * D].reshape(N, D)
        assert np.abs(inner[H > 0]).max(initial=0) < 1e-10 and inner.min() > -1e-10 and H.min() >= 0
    if loss != "focal":
        assert -1e-13 <= solution.certificate.gap <= (1e-9 if features == "free" else 0.1)


@pytest.mark.parametrize(
    "fields",
    [
        {"logit_offset": (0.3, -0.2, 1.0)},
        {"logit_scale": (1.0, 0.5, 2.0)},
        {"logit_scale": (1.0, 0.5, 2.0), "logit_offset": (0.3, -0.2, 1.0), "bias": "free"},
        {"class_weights": (1.0, 3.0, 0.5)},
        {"class_weights": (1.0, 3.0, 0.5), "loss": "mse", "bias": "free"},
        {"class_weights": (1.0, 3.0, 0.5), "loss": "smoothing", "bias": "ridge", "lambda_b": 0.1},
        {"logit_scale": (1.0, 0.5, 2.0), "loss": "mse"},
    ],
)
def test_adjusted_losses_too(fields):
    problem = ufm.Problem(K, D, (4, 2, 1), **LAMBDAS, **fields)
    solution = ufm.solve(problem, seed=1)
    assert solution.status.ok
    assert solution.loss == pytest.approx(full_search(problem), rel=1e-7)
    assert -1e-13 <= solution.certificate.gap <= 1e-9
