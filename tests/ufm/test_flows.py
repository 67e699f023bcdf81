"""Flows: the exact laws, conserved quantities, reductions against the full problem, and bad requests."""

import dataclasses

import numpy as np
import pytest
from scipy.integrate import solve_ivp

from ufm.central_path import central_path
from ufm.flows import flow, flow_many, start
from ufm.problem import Problem
from ufm.solution import Status

FREE_MSE = Problem(classes=4, dim=16, counts=10, loss="mse", lambda_w=0.0, lambda_h=0.0, bias="free")


def test_subspace_law():
    path = flow(FREE_MSE, init="subspace", init_scale=0.05, t_end=150, rtol=1e-10)
    assert path.law == "mixon2020"
    np.testing.assert_allclose(path.modes, path.predicted, atol=3e-9)
    limit = path.W[-1] @ path.W[-1].T
    np.testing.assert_allclose(limit, np.sqrt(10) * (np.eye(4) - 0.25), atol=0.01)


def test_random_start_keeps_a_residue_of_its_scale():
    """Tr S_W / Tr S_B ~ c eps^2 with c near 45.5 here: slope 2 on a log-log plot (Mixon, Parshall & Pi 2020)."""
    scales = np.array([0.1, 0.03, 0.01])
    paths = flow_many([FREE_MSE] * 3, init_scale=scales, t_end=1000, points=20, rtol=1e-7)
    ends = np.array([p.measures["nc1_ratio"][-1] for p in paths])
    assert all(p.loss[-1] < 1e-6 for p in paths)
    assert np.polyfit(np.log(scales), np.log(ends), 1)[0] == pytest.approx(2, abs=0.05)
    assert ends[-1] / scales[-1] ** 2 == pytest.approx(12 * 0.9 * np.sqrt(10) * 4 / 3, rel=0.15)


def test_imbalanced_modes_and_a_dead_class():
    problem = Problem(classes=3, dim=6, counts=(9, 4, 2), loss="mse", lambda_w=0.12, lambda_h=0.12)
    path = flow(problem, init="aligned", init_scale=0.1, t_end=200, rtol=1e-10)
    np.testing.assert_allclose(path.modes, path.predicted, atol=1e-8)
    assert path.modes[-1, 2] < 1e-6 < path.modes[-1, 0]


def test_half_rise_times_from_a_generic_small_start():
    """t_half sqrt(n_k) is the same for all classes to 7 %, although the start is random; t_half n_k is not."""
    counts = np.array([80, 40, 20, 10])
    problem = Problem(classes=4, dim=8, counts=tuple(counts), loss="mse", lambda_w=0.0, lambda_h=0.0)
    paths = flow_many([problem] * 3, init_scale=1e-4, t_end=800, points=1000, run_seeds=[0, 1, 2], rtol=1e-7)
    labels = np.repeat(range(4), counts)
    for path in paths:
        z = path.W @ path.H.transpose(0, 2, 1)
        own = np.stack([z[:, k][:, labels == k].mean(1) for k in range(4)], 1)
        half = np.array([np.interp(0.5, own[:, k], path.t) for k in range(4)])
        for power, least in ((0.5, True), (1.0, False)):
            scaled = half * counts**power
            assert bool(np.abs(scaled / scaled.mean() - 1).max() < 0.07) is least


def test_cross_entropy_ray_and_constant_margin():
    problem = Problem(classes=4, dim=8, counts=5, loss="ce", lambda_w=0.0, lambda_h=0.0)
    path = flow(problem, init="aligned", init_scale=0.5, t_end=1e5, rtol=1e-10)
    np.testing.assert_allclose(path.modes, path.predicted, rtol=3e-8)
    assert np.ptp(path.measures["margin"]) < 1e-12
    # Direct: the margin of the ray is 1/((K-1) sqrt(n)) when |W| and |H| are balanced.
    assert path.measures["margin"][0] == pytest.approx(1 / (3 * np.sqrt(5)), rel=1e-10)


def test_margin_rises_from_a_random_start():
    problem = Problem(classes=3, dim=6, counts=4, loss="ce", lambda_w=0.0, lambda_h=0.0)
    margins = flow(problem, init="random", init_scale=0.3, t_end=1e4).measures["margin"]
    late = margins[margins > 0]
    assert (np.diff(late[len(late) // 2 :]) > 0).all()
    assert late[-1] < 1 / (2 * np.sqrt(4))


@pytest.mark.parametrize("loss", ["mse", "ce"])
@pytest.mark.parametrize("lam", [0.0, 2e-3])
def test_reductions_agree_with_the_full_problem(loss, lam):
    problem = Problem(classes=3, dim=30, counts=(5, 3, 4), loss=loss, lambda_w=lam, lambda_h=lam, bias="free")
    for method in ("flow", "gd", "momentum"):
        few = flow(problem, t_end=40, method=method, lr=0.2, rtol=1e-12, points=11)
        full = flow(problem, t_end=40, method=method, lr=0.2, rtol=1e-12, points=11, reduce=False)
        np.testing.assert_allclose(few.W, full.W, atol=1e-10)
        np.testing.assert_allclose(few.H, full.H, atol=1e-10)


def test_conserved_quantity():
    """W'W - HH' is constant without penalty and decays as e^(-2 lambda t) under equal penalties."""
    for lam in (0.0, 0.01):
        problem = Problem(classes=4, dim=10, counts=6, loss="ce", lambda_w=lam, lambda_h=lam)
        path = flow(problem, init_scale=0.5, t_end=300, rtol=1e-10)
        assert path.measures["imbalance_drift"].max() < 1e-8


def test_off_row_space_part_decays_at_lambda_h():
    """W starts of low rank and the loss only pulls H towards its row space; what is outside decays as e^(-lambda_h t)."""
    problem = Problem(classes=2, dim=6, counts=3, loss="mse", lambda_w=0.05, lambda_h=0.05, bias="none")
    w, h, _ = start(problem, "random", 0.5, 0)
    total = 6

    def rhs(t, x):  # W fixed: the statement is about a fixed row space
        features = x.reshape(6, total)
        return -(w.T @ (w @ features - np.eye(2)[:, np.repeat([0, 1], 3)]) / total + 0.05 * features).ravel()

    out = solve_ivp(rhs, (0, 40), h.ravel(), method="DOP853", rtol=1e-11, atol=1e-13).y[:, -1].reshape(6, total)
    outside = np.eye(6) - np.linalg.pinv(w) @ w
    np.testing.assert_allclose(outside @ out, np.exp(-0.05 * 40) * outside @ h, rtol=1e-8)


def test_loss_is_the_objective_by_hand():
    problem = Problem(classes=3, dim=4, counts=2, loss="ce", lambda_w=0.1, lambda_h=0.2, bias="free")
    path = flow(problem, t_end=1.0, points=3, seed=4)
    w, h, b = path.W[-1], path.H[-1], path.b[-1]
    z = h @ w.T + b
    by_hand = 0.0
    for i, y in enumerate([0, 0, 1, 1, 2, 2]):
        by_hand += (np.log(np.exp(z[i]).sum()) - z[i, y]) / 6
    by_hand += 0.05 * (w**2).sum() + 0.1 * (h**2).sum()
    assert path.loss[-1] == pytest.approx(by_hand, rel=1e-12)


@pytest.mark.parametrize("renormalised", [False, True])
def test_central_path(renormalised):
    path = central_path(4, 10, 8, t_end=1e4, renormalised=renormalised, rtol=1e-10)
    np.testing.assert_allclose(path.singular_values, path.predicted, rtol=4e-8)
    # The law: the clock is linear in t/N, here to ten times the error at which it was first verified.
    np.testing.assert_allclose(path.clock, path.clock[0] + path.t[:, None] / 40, rtol=4e-8, atol=4e-8)
    rate = np.diff(path.clock, axis=0) / np.diff(path.t)[:, None] * 40
    np.testing.assert_allclose(rate, 1, atol=1e-6)
    assert path.covariance_drift.max() < 1e-8
    # Modes equalise: the simplex.
    assert np.ptp(path.singular_values[-1]) / path.singular_values[-1].mean() < 0.01


@pytest.mark.parametrize("renormalised", [False, True])
def test_a_long_central_path_stays_on_its_manifold(renormalised):
    """At t = 1e5 a rounding error of Sigma_W would have grown by many orders, were nothing to hold it."""
    path = central_path(4, 10, 16, signal=0.1, t_end=1e5, renormalised=renormalised, rtol=1e-8)
    assert path.finished and not path.drifted
    assert path.covariance_drift.max() < 1e-12
    np.testing.assert_allclose(path.singular_values, path.predicted, rtol=1e-5)


def test_a_path_that_left_its_manifold_is_no_success():
    path = central_path(3, 5, 4, t_end=10, points=5)
    off = dataclasses.replace(path, covariance_drift=path.covariance_drift + np.array([0, 0, 0, 0, 1e-3]))
    assert off.drifted and not path.drifted
    assert not Status.DRIFTED.ok


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"init": "rand"}, "did you mean 'random'"),
        ({"init": "subspace"}, "needs loss mse"),
        ({"init": "aligned"}, "needs dim"),
        ({"method": "adam"}, "not known"),
        ({"t_end": float("nan")}, "t_end"),
        ({"init_scale": 0.0}, "init_scale"),
        ({"points": 1}, "points"),
    ],
)
def test_wrong_requests(changes, message):
    problem = Problem(classes=3, dim=2, counts=(3, 2, 2), loss="ce", lambda_w=0.0, lambda_h=0.0)
    with pytest.raises(ValueError, match=message):
        flow(problem, **changes)
    with pytest.raises(ValueError, match="dim 40"):
        central_path(4, 10, 40)
