"""Norm balance and stationarity of deep end points, recomputed from the weights alone."""

import math

import numpy as np
import pytest
import torch

from ufm.problem import Problem
from ufm.solution import Status
from ufm.solve_deep import solve_deep
from ufm.solvers import balance, deep, kinks
from ufm.theory import deep_relu

RELU = Problem(classes=3, dim=12, counts=50, loss="mse", lambda_w=0.004, lambda_h=0.004, depth=4, activation="relu")


def relative_balance(problem, solution):
    """Return every equality of a stationary point, as relative errors: layers, ray, neurons, W_1 against H_1."""
    weights, means = [w.numpy() for w in solution.weights], solution.H.numpy()
    lambdas, counts = problem.layer_lambdas, problem.count_vector[:, None]
    energies = [lam * (w**2).sum() for lam, w in zip(lambdas, weights, strict=True)]
    energies.append(problem.lambda_h * (counts * means**2).sum())
    z = solution.logits.numpy() - solution.b.numpy()
    if problem.loss == "mse":
        slope = solution.logits.numpy() - np.eye(problem.classes)
    else:
        slope = np.exp(z - z.max(1, keepdims=True))
        slope = slope / slope.sum(1, keepdims=True) - np.eye(problem.classes)
    ray = -(counts / counts.sum() * slope * z).sum()
    found = [max(energies) / min(energies) - 1, ray / energies[0] - 1]
    for lam, w, above, v in zip(lambdas, weights, lambdas[1:], weights[1:], strict=False):
        row, column = lam * (w**2).sum(1), above * (v**2).sum(0)
        alive = row > 1e-6 * row.max()
        found.append(np.abs(row[alive] / column[alive] - 1).max())
        assert column[~alive].max(initial=0) <= 1e-5 * column.max()
    first, free = lambdas[0] * weights[0].T @ weights[0], problem.lambda_h * means.T @ (counts * means)
    return np.abs([*found, np.linalg.norm(first - free) / np.linalg.norm(free)])


@pytest.mark.parametrize(
    ("changes", "scale", "seeds", "ends"),
    [
        ({"depth": 3}, 1.0, 3, {"dnc"}),
        ({}, 0.7, 4, {"dnc", "below known", "other", "below both"}),
        ({"classes": 10, "dim": 30}, 1.4, 8, None),
        ({"lambda_w": (0.002, 0.003, 0.004, 0.005), "lambda_h": 0.003}, 1.0, 3, None),
        ({"counts": (60, 40, 30), "depth": 3}, 1.0, 2, None),
        ({"loss": "ce", "depth": 2, "lambda_w": (0.002, 0.001), "lambda_h": 0.0005}, 1.0, 2, None),
    ],
)
def test_relu_end_points_are_balanced(changes, scale, seeds, ends):
    problem = RELU.replace(**changes)
    found = solve_deep([problem] * seeds, run_seeds=range(seeds), init_scale=scale)
    assert all(s.status.ok for s in found)
    for s in found:
        assert relative_balance(problem, s).max() < 1e-6
        assert max(s.balance.values()) < 1e-6
        assert ends is None or s.structure in ends
        # Rescaling balances any point, a random start too. What Adam had found before it says that theory holds.
        found_by_adam = s.balance_found
        assert found_by_adam["layers"] < 5e-3 and found_by_adam["ray"] < 2e-3 and found_by_adam["features"] < 5e-3
    stationary = [s.gradient_norm for s in found if s.status is Status.CONVERGED]
    assert stationary and max(stationary) <= 1e-5
    assert {s.status for s in found} <= {Status.CONVERGED, Status.PLATEAU}


def test_what_still_has_a_subgradient_is_on_a_plateau_and_not_converged():
    """Of the starts at K = 10, L = 4 some lie on kinks that nothing has told apart; random rescaled points are neither."""
    problem = RELU.replace(classes=10, dim=30)
    found = solve_deep([problem] * 8, run_seeds=range(8), init_scale=1.4)
    assert {s.status for s in found} == {Status.CONVERGED, Status.PLATEAU}
    assert all((s.gradient_norm <= 1e-5) == (s.status is Status.CONVERGED) for s in found)
    assert Status.PLATEAU.value.startswith("on a plateau") and Status.PLATEAU.ok
    batch = deep.Batch([problem])
    x = deep.start(batch, [0], 1.4)
    balance.rescale(batch, x)
    assert balance.measure(batch, x).layers.max() < 1e-6 < kinks.identify(batch, x)[1].residual.min()


@pytest.mark.parametrize(
    "changes",
    [{}, {"lambda_w": (0.002, 0.001, 0.004)}, {"loss": "ce", "lambda_w": (0.002, 0.004, 0.001)}, {"counts": (60, 40, 30)}],
)
def test_linear_end_points_are_balanced(changes):
    problem = RELU.replace(activation="linear", depth=3, **changes)
    found = solve_deep([problem] * 2, run_seeds=range(2))
    for s in found:
        assert s.status.ok and relative_balance(problem, s)[[0, 1, -1]].max() < 1e-6


def perturbed(problem, structure, noise):
    flat = [*(w.ravel() for w in structure.weights), (structure.means * math.sqrt(50)).ravel(), np.zeros(problem.classes)]
    draw = np.random.default_rng(0).standard_normal((2, sum(map(len, flat))))
    draw[:, -problem.classes :] = 0
    return torch.tensor(np.concatenate(flat) + noise * draw)


@pytest.mark.parametrize("lambdas, lambda_h", [((0.004,) * 4, 0.004), ((0.002, 0.003, 0.004, 0.005), 0.003)])
def test_the_strongly_regular_solution_is_found_again_to_all_digits(lambdas, lambda_h):
    problem = RELU.replace(classes=10, dim=14, lambda_w=lambdas, lambda_h=lambda_h)
    exact = deep_relu.srg(10, 4, 14, 50, lambdas, lambda_h)
    batch, x = deep.Batch([problem] * 2), perturbed(problem, exact, 0.01)
    before = deep.adam(batch, x, stages=((0.003, 2500),))
    raw = balance.measure(batch, x)
    residual = kinks.polish(batch, x)
    after, measured = batch.value(x), balance.measure(batch, x)
    assert (after <= before).all() and raw.neurons.max() > 1e-6
    np.testing.assert_allclose(after, exact.loss, rtol=5e-12)
    assert residual.max() < 1e-6
    for name in ("layers", "neurons", "features", "ray"):
        assert getattr(measured, name).max() < 1e-9


def test_no_small_step_descends_from_a_stationary_point():
    """One-sided slopes in random directions, many of them across kinks, are not negative."""
    problem = RELU.replace(depth=3, dim=6)
    batch = deep.Batch([problem] * 3)
    x = deep.start(batch, range(3), 1.0)
    deep.adam(batch, x)
    residual = kinks.polish(batch, x)
    assert residual.max() < 1e-6
    rng, value = np.random.default_rng(1), batch.value(x)
    for _ in range(200):
        direction = torch.tensor(rng.standard_normal(tuple(x.shape)))
        direction[:, -problem.classes :] = 0
        direction /= direction.norm(dim=1, keepdim=True)
        slope = (batch.value(x + 1e-6 * direction) - value) / 1e-6
        assert slope.min() > -1e-6


@pytest.mark.parametrize("activation", ["linear", "relu"])
def test_rescaling_keeps_the_direction_of_the_output_and_lowers_the_objective(activation):
    problem = RELU.replace(activation=activation, depth=3, lambda_w=(0.002, 0.01, 0.004), counts=(20, 30, 40))
    batch = deep.Batch([problem] * 3)
    x = deep.start(batch, range(3), 1.0)

    def output(point):
        *weights, g = (*batch.views(point)[0], batch.views(point)[1])
        state = g.numpy()
        for w in weights[:-1]:
            state = w.numpy() @ state
            state = np.maximum(state, 0) if activation == "relu" else state
        return weights[-1].numpy() @ state

    old, before = output(x), batch.value(x)
    balance.rescale(batch, x)
    new = output(x)
    assert (batch.value(x) < before).all()
    factors = np.linalg.norm(new, axis=(1, 2)) / np.linalg.norm(old, axis=(1, 2))
    np.testing.assert_allclose(new, old * factors[:, None, None], atol=1e-12 * np.abs(new).max())
    found = balance.measure(batch, x)
    assert max(found.layers.max(), found.neurons.max(), found.features.max()) < 1e-11


def test_a_run_cut_short_is_neither_polished_nor_called_converged():
    found = solve_deep([RELU.replace(depth=3)] * 2, run_seeds=range(2), steps=900)
    for s in found:
        assert not s.status.ok
        assert max(s.balance.values()) > 1e-6


def test_adam_walks_the_path_of_the_plain_optimiser():
    """torch.optim.Adam on the objective written out with autograd, 200 steps of one stage."""
    problem = RELU.replace(depth=3, dim=5, lambda_w=(0.01, 0.02, 0.03), counts=(5, 4, 3))
    batch = deep.Batch([problem])
    x = deep.start(batch, [3], 1.0)
    shapes = [(5, 5), (5, 5), (3, 5), (5, 3)]
    parts = x[0, :-3].split([a * b for a, b in shapes])
    plain = [p.reshape(s).clone().requires_grad_() for p, s in zip(parts, shapes, strict=True)]
    optimizer = torch.optim.Adam(plain, lr=0.02, eps=1e-12, foreach=False)
    counts = torch.tensor([5.0, 4.0, 3.0], dtype=torch.float64)
    for step in range(200):
        w1, w2, w3, g = plain
        z = w3 @ (w2 @ (w1 @ (g / counts.sqrt())).relu()).relu()
        fit = 0.5 * (counts * (z - torch.eye(3, dtype=torch.float64)) ** 2).sum() / 12
        penalty = 0.01 * (w1**2).sum() + 0.02 * (w2**2).sum() + 0.03 * (w3**2).sum() + 0.004 * (g**2).sum()
        optimizer.zero_grad()
        (fit + 0.5 * penalty).backward()
        optimizer.param_groups[0]["lr"] = 0.02 * 0.5 * (1 + math.cos(math.pi * step / 200))
        optimizer.step()
    deep.adam(batch, x, ((0.02, 200),))
    np.testing.assert_allclose(x[0, :-3], torch.cat([p.detach().ravel() for p in plain]), atol=1e-10)
