"""Unit vectors of one dimension: the optimum of signs against every assignment of them, straight from the definition."""

import itertools

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import log_softmax, logsumexp

import ufm
from ufm.errors import RequestError


def loss_of(problem, w, h, b):
    """Data loss of signs w (K,), h (K,) and bias b (K,)."""
    K, n = problem.classes, problem.count_vector
    z = (np.multiply.outer(h, w) + b) / problem.temperature
    z = z * (problem.logit_scale or np.ones(K)) + (problem.logit_offset or np.zeros(K))
    own = np.eye(K)
    if problem.loss == "smoothing":
        own = (1 - problem.smoothing) * own + problem.smoothing / K
    if problem.loss == "mse":
        values = 0.5 * ((z - own) ** 2).sum(1)
    elif problem.loss == "focal":
        log_p = np.diag(log_softmax(z, axis=1))
        values = -((1 - np.exp(log_p)) ** problem.focal_gamma) * log_p
    else:
        values = -(own * log_softmax(z, axis=1)).sum(1)
    values = values * (problem.class_weights or np.ones(K))
    return values @ n / n.sum() + problem.lambda_b / 2 * b @ b


def search(problem):
    """The lowest loss over all signs; with a bias, the best one for each by BFGS."""
    K = problem.classes
    sides = [1] if problem.features == "nonnegative" else [1, -1]
    best = np.inf
    for w in itertools.product([1, -1], repeat=K):
        for h in itertools.product(sides, repeat=K):
            if problem.bias == "none":
                best = min(best, loss_of(problem, np.array(w), np.array(h), np.zeros(K)))
            else:
                found = minimize(lambda b, w=w, h=h: loss_of(problem, np.array(w), np.array(h), b), np.zeros(K))
                best = min(best, found.fun)
    return best


PLAIN = [
    {"classes": 2, "temperature": 0.2},
    {"classes": 4},
    {"classes": 4, "temperature": 0.2},
    {"classes": 5, "counts": (50, 1, 1, 1, 20), "temperature": 0.5},
    {"classes": 5, "loss": "mse"},
    {"classes": 4, "loss": "smoothing", "smoothing": 0.6, "temperature": 0.2},
    {"classes": 4, "loss": "focal", "temperature": 0.4, "counts": (4, 3, 2, 1)},
    {"classes": 4, "features": "nonnegative", "counts": (1, 2, 3, 4)},
    {"classes": 4, "features": "nonnegative", "loss": "smoothing", "smoothing": 0.9, "counts": (1, 2, 3, 4)},
    {"classes": 4, "logit_scale": (1.0, 2.0, 0.5, 1.5), "temperature": 0.5},
    {"classes": 4, "logit_offset": (1.0, -2.0, 0.5, 0.0), "class_weights": (1.0, 2.0, 3.0, 0.5)},
    {"classes": 3, "bias": "ridge", "lambda_b": 0.05, "counts": (9, 3, 1), "temperature": 0.5},
    {"classes": 2, "bias": "free", "counts": (9, 3), "temperature": 0.5, "loss": "smoothing"},
]


@pytest.mark.parametrize("fields", PLAIN, ids=str)
def test_signs_are_the_best_of_all(fields):
    problem = ufm.Problem(dim=1, constraint="sphere", **{"counts": 5, **fields})
    solution = ufm.solve(problem)
    assert solution.status is ufm.Status.CONVERGED and solution.method == "signs"
    assert solution.loss == pytest.approx(search(problem), rel=1e-8)
    for rows in (solution.W, solution.H):
        np.testing.assert_array_equal(np.abs(rows.numpy()), 1.0)


def test_two_classes_are_the_closed_form_from_every_seed():
    problem = ufm.Problem(2, 1, 5, constraint="sphere", temperature=0.2)
    expected = ufm.predict(problem).loss
    assert expected == pytest.approx(np.log1p(np.exp(-10)), rel=1e-12)
    for solution in ufm.solve_many([problem] * 3, seeds=[0, 1, 2]):
        assert solution.loss == pytest.approx(expected, rel=1e-12)


def test_a_hundred_classes_split_in_halves():
    """p classes a side at tau: log(p + (K - p) e^(-2/tau)), lowest at K/2."""
    solution = ufm.solve(ufm.Problem(100, 1, 5, constraint="sphere", temperature=0.2))
    assert solution.loss == pytest.approx(np.log(50 + 50 * np.exp(-10)), rel=1e-12)


def test_too_many_signs_end_in_a_local_search_that_says_so():
    scale = tuple(1 + 0.1 * np.sin(np.arange(16)))
    solution = ufm.solve(ufm.Problem(16, 1, 5, constraint="sphere", temperature=0.5, logit_scale=scale))
    assert solution.status is ufm.Status.STALLED
    assert np.log(8) < solution.loss < np.log(9)


def contrast(problem, h):
    """The supervised contrastive loss of signs h (N,)."""
    labels = np.repeat(np.arange(problem.classes), problem.count_vector.astype(int))
    z = np.multiply.outer(h, h) / problem.temperature
    np.fill_diagonal(z, -np.inf)
    log_p = z - logsumexp(z, axis=1, keepdims=True)
    same = (labels[:, None] == labels) & ~np.eye(len(h), dtype=bool)
    return np.mean([-log_p[i, same[i]].mean() for i in range(len(h))])


@pytest.mark.parametrize(
    "counts, temperature", [((3, 3), 1.0), ((3, 3), 0.1), ((4, 2, 3), 0.5), ((2, 5, 2), 3.0), ((2, 2, 2, 3), 0.2)]
)
def test_contrastive_signs_are_the_best_of_all(counts, temperature):
    problem = ufm.Problem(len(counts), 1, counts, loss="supcon", constraint="sphere", temperature=temperature)
    best = min(contrast(problem, np.array(h)) for h in itertools.product([1.0, -1.0], repeat=sum(counts)))
    solution = ufm.solve(problem)
    assert solution.loss == pytest.approx(best, rel=1e-12)
    assert solution.status is ufm.Status.CONVERGED


def test_contrastive_signs_reach_the_prediction():
    problem = ufm.Problem(2, 1, 20, loss="supcon", constraint="sphere", temperature=0.5)
    assert ufm.solve(problem).loss == pytest.approx(ufm.predict(problem).loss, rel=1e-12)


def test_methods_that_follow_gradients_are_refused():
    with pytest.raises(RequestError, match="signs"):
        ufm.solve(ufm.Problem(2, 1, 5, constraint="sphere"), method="lbfgs")
    with pytest.raises(RequestError, match="dim=1"):
        ufm.solve(ufm.Problem(2, 2, 5, constraint="sphere"), method="signs")
