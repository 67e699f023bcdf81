"""Minority collapse of deep linear heads (Dang et al. 2023): thresholds and singular values to 1e-7, from the solver.

P* = n_c^L (L-1)^(L-1) / (N^(L+1) L^(2L)) is where class c dies. The solver knows nothing of it.
"""

import numpy as np
import pytest
import torch
from scipy.optimize import brentq, minimize_scalar

import ufm
from ufm.problem import Problem
from ufm.solve_deep import solve_deep
from ufm.solvers import deep

COUNTS = (40, 30, 20, 10)


def problem_at(lam, depth, bias="none"):
    return Problem(4, 6, COUNTS, loss="mse", lambda_w=(lam,) * depth if depth > 1 else lam, lambda_h=lam, depth=depth, bias=bias)


def formula(count, depth):
    """Return the weight decay, the same everywhere, at which a class of `count` samples dies."""
    inner = (depth - 1) ** (depth - 1) if depth > 1 else 1
    return (count**depth * inner / (100 ** (depth + 1) * depth ** (2 * depth))) ** (1 / (depth + 1))


def scalar_threshold(count, depth):
    """Return the same from the scalar problem of one mode, minimised numerically: where its minimum meets its value at 0."""

    def margin(log_lambda):
        def loss(x):
            fit = count / 200 * (1 - x) ** 2
            return fit + 0.5 * (depth + 1) * np.exp(log_lambda) * (count * x * x) ** (1 / (depth + 1)) - count / 200

        # At depth 1 the minimum leaves zero continuously: what is asked is the sign of the slope there.
        if depth == 1:
            return loss(1e-9) / 1e-9
        return minimize_scalar(loss, bounds=(0.3, 1.0), method="bounded", options={"xatol": 1e-12}).fun

    return np.exp(brentq(margin, np.log(1e-4), np.log(0.3), xtol=1e-14))


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("count", [10, 20, 40])
def test_threshold_of_the_scalar_problem(depth, count):
    assert scalar_threshold(count, depth) == pytest.approx(formula(count, depth), rel=1e-7)


def lowest_on_branch(lam, depth, alive):
    """Return the loss that L-BFGS reaches from a noisy diagonal start with the given classes alive, over all parameters."""
    problem = problem_at(lam, depth)
    batch = deep.Batch([problem])
    x = torch.zeros((1, sum(batch.shape.sizes)), dtype=torch.float64)
    weights, features, _ = batch.views(x)
    size = (np.sqrt(COUNTS) * 0.8) ** (1 / (depth + 1))
    for part in (*weights, features):
        part[0, range(4), range(4)] = torch.tensor(size * np.isin(range(4), alive))
    x[:, :-4] += 1e-3 * torch.tensor(np.random.default_rng(0).standard_normal(x[:, :-4].shape))
    loss, residual, _ = deep.lbfgs(batch, x, 1e-10, 4000)
    values = torch.linalg.svdvals(weights[-1][0])
    assert residual.item() < 1e-9 and int((values > 1e-3).sum()) == len(alive)
    return loss.item()


@pytest.mark.parametrize("depth", [2, 3])
def test_threshold_of_the_full_model_is_where_the_two_minima_cross(depth):
    """First-order jump of the third class: the loss with it alive against the loss with it dead, all weights free."""

    def difference(lam):
        return lowest_on_branch(lam, depth, (0, 1, 2)) - lowest_on_branch(lam, depth, (0, 1))

    expected = formula(20, depth)
    low, high = 0.985 * expected, 1.01 * expected
    assert difference(low) < 0 < difference(high)
    assert brentq(difference, low, high, xtol=1e-12) == pytest.approx(expected, rel=1e-7)


def test_threshold_at_depth_one_is_where_the_singular_value_vanishes():
    """x = 1 - N lambda / sqrt(n) is linear in lambda: two solves on the way down and a straight line to zero."""
    expected, values = formula(20, 1), []
    rates = expected * np.array([0.97, 0.99])
    for lam in rates:
        s = solve_deep([problem_at(lam, 1)])[0]
        z = (s.logits - s.b).numpy().T * np.sqrt(COUNTS)
        values.append(np.linalg.svd(z, compute_uv=False)[2])
    crossing = rates[0] + values[0] * (rates[1] - rates[0]) / (values[0] - values[1])
    assert crossing == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize(("depth", "bias"), [(1, "none"), (1, "free"), (2, "none"), (2, "free"), (3, "none")])
def test_singular_values_from_random_starts(depth, bias):
    for lam in (0.005, 0.9 * formula(20, depth)):
        problem = problem_at(lam, depth, bias)
        found = min(solve_deep([problem] * 12, run_seeds=range(12), init_scale=1.5, tol=1e-11), key=lambda s: s.loss)
        expected = ufm.structures(problem)["gof"] if depth > 1 else ufm.predict(problem)
        z = (found.logits - found.b).numpy().T * np.sqrt(COUNTS)
        np.testing.assert_allclose(np.linalg.svd(z, compute_uv=False), expected.singular_values[:4], atol=1e-7)
        assert found.loss == pytest.approx(expected.loss, rel=1e-9)
