"""The solver of many classes, asked for at any size and penalty: closed forms written out here, and SciPy."""

import numpy as np
import pytest
from scipy.optimize import minimize

import ufm


@pytest.mark.parametrize("bias", ["none", "free"])
@pytest.mark.parametrize("lam", [1e-8, 1e-6, 1e-4])
@pytest.mark.parametrize("K", [2, 4, 10])
def test_squared_errors_of_few_classes_reach_the_closed_form(K, lam, bias):
    """Ks - Ks^2/2 of K directions, K - 1 with a free bias, each 1/K of the loss, Ks = K sqrt(n) lambda."""
    solution = ufm.solve(ufm.Problem(K, K + 2, 10, loss="mse", bias=bias, lambda_w=lam, lambda_h=lam), method="classwise")
    size = K * 10**0.5 * lam
    expected = (1 if bias == "none" else (K - 1) / K) * (size - size**2 / 2)
    assert solution.loss == pytest.approx(expected, rel=1e-10)
    assert solution.status.ok and solution.iterations < 1000
    assert solution.method in ("classwise", "classwise, newton")


def test_squared_errors_of_unequal_classes_at_a_tiny_penalty():
    """With a free bias: the singular values s of (1 - w 1') diag(sqrt n), each giving c s - N c^2/2."""
    counts, lam = np.array([50] * 80 + [5] * 80), 1e-8
    problem = ufm.Problem(160, 160, tuple(counts), loss="mse", bias="free", lambda_w=lam, lambda_h=lam)
    size = np.linalg.svd((np.eye(160) - (counts / counts.sum())[:, None]) * np.sqrt(counts), compute_uv=False)
    size = size[size > 1e-9]
    solution = ufm.solve(problem)
    assert len(size) == 159
    assert solution.loss == pytest.approx((lam * size - counts.sum() * lam**2 / 2).sum(), rel=1e-10)
    assert solution.status is ufm.Status.CONVERGED
    assert float(solution.b.sum()) == pytest.approx(1.0, abs=1e-6)


def test_what_newton_finished_says_so():
    solution = ufm.solve(ufm.Problem(4, 6, 10, loss="mse", bias="free", lambda_w=1e-8, lambda_h=1e-8), method="classwise")
    assert solution.method == "classwise, newton" and solution.iterations > 150
    short = ufm.solve(ufm.Problem(4, 6, 10, loss="mse", lambda_w=1e-8, lambda_h=1e-8), method="classwise", steps=20)
    assert short.method == "classwise" and short.iterations == 20 and short.status is ufm.Status.STEP_LIMIT


@pytest.mark.parametrize(
    "fields",
    [
        {"loss": "mse", "bias": "ridge", "lambda_b": 0.02},
        {"loss": "mse", "bias": "free", "logit_offset": (0.5, -0.5, 0.0, 0.2)},
        {"loss": "mse", "bias": "free", "class_weights": (1.0, 2.0, 0.5, 1.0)},
        {"loss": "ce", "bias": "free", "logit_scale": (1.0, 2.0, 0.5, 1.0)},
        {"loss": "mse", "bias": "free", "logit_scale": (1.0, 2.0, 0.5, 1.0)},
        {"loss": "smoothing", "bias": "free"},
    ],
    ids=str,
)
def test_adjusted_logits_with_a_bias_against_scipy(fields):
    """The class-mean problem written out; SciPy's best of three starts is no lower."""
    K, d, n, lam = 4, 5, np.array([9, 4, 3, 1]), 0.004
    problem = ufm.Problem(K, d, tuple(n), lambda_w=lam, lambda_h=lam, **fields)
    own = np.eye(K) if problem.loss != "smoothing" else 0.9 * np.eye(K) + 0.1 / K
    scale, offset, weight = (
        np.array(value or (default,) * K)
        for value, default in ((problem.logit_scale, 1.0), (problem.logit_offset, 0.0), (problem.class_weights, 1.0))
    )

    def f(x):
        W, H, b = x[: K * d].reshape(K, d), x[K * d : 2 * K * d].reshape(K, d), x[2 * K * d :]
        z = scale * (H @ W.T + b) + offset
        squares, entropies = 0.5 * ((z - own) ** 2).sum(1), np.logaddexp.reduce(z, axis=1) - (own * z).sum(1)
        losses = squares if problem.loss == "mse" else entropies
        penalty = lam / 2 * ((W**2).sum() + (n[:, None] * H**2).sum()) + problem.lambda_b / 2 * (b**2).sum()
        return losses @ (weight * n) / n.sum() + penalty

    ends = [
        minimize(f, np.random.default_rng(seed).normal(size=2 * K * d + K), method="L-BFGS-B", options={"maxfun": 200000})
        for seed in range(3)
    ]
    solution = ufm.solve(problem, method="classwise")
    assert solution.loss == pytest.approx(f(np.concatenate([t.numpy().ravel() for t in (solution.W, solution.H, solution.b)])))
    assert solution.loss == pytest.approx(min(end.fun for end in ends), abs=2e-7)
    assert solution.loss <= min(end.fun for end in ends) + 1e-12
    assert solution.status.ok and solution.certificate.gap < 1e-9
