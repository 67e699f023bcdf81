"""The exact paths against scipy's DOP853 on the full gradient flow."""

import math

import numpy as np
import pytest
from scipy.integrate import solve_ivp

from ufm.theory import dynamics

TIMES = np.linspace(0, 60, 13)


def integrate(right_hand_side, start, times, rtol=1e-12):
    return solve_ivp(right_hand_side, (0, times[-1]), start, method="DOP853", t_eval=times, rtol=rtol, atol=1e-14).y


def test_subspace_law_on_the_full_flow():
    """W and all N columns of H are integrated; only the start lies on the subspace."""
    K, n, d = 3, 4, 3
    total, u0 = K * n, 0.05
    centred = np.eye(K) - 1 / K
    w0 = math.sqrt(u0) * centred[:, :d]  # W W' has eigenvalue u0 on the centred subspace
    targets = np.repeat(np.eye(K), n, axis=1)
    h0 = np.repeat(w0.T, n, axis=1) / math.sqrt(n)

    def flow(t, x):
        w, h, b = x[: K * d].reshape(K, d), x[K * d : K * d + d * total].reshape(d, total), x[-K:]
        residual = (w @ h + b[:, None] - targets) / total
        return -np.concatenate([(residual @ h.T).ravel(), (w.T @ residual).ravel(), residual.sum(1)])

    path = integrate(flow, np.concatenate([w0.ravel(), h0.ravel(), np.full(K, 1 / K)]), TIMES)
    u = np.array([np.linalg.norm(path[: K * d, i].reshape(K, d), 2) ** 2 for i in range(len(TIMES))])
    np.testing.assert_allclose(u, dynamics.subspace_mode(TIMES, u0, n, total), rtol=3e-9)


@pytest.mark.parametrize("penalty", [0.0, 0.02, 0.12])
def test_modes_with_imbalance_on_the_full_flow(penalty):
    counts = np.array([9, 4, 2])
    total, K = counts.sum(), 3
    limits = dynamics.mode_limits(counts, penalty)
    labels = np.repeat(np.arange(K), counts)
    targets = np.eye(K)[:, labels]
    start = 0.01
    w0 = math.sqrt(start) * np.eye(K)
    h0 = math.sqrt(start) * targets / np.sqrt(counts)[:, None]

    def flow(t, x):
        w, h = x[:9].reshape(3, 3), x[9:].reshape(3, total)
        residual = (w @ h - targets) / total
        return -np.concatenate([(residual @ h.T + penalty * w).ravel(), (w.T @ residual + penalty * h).ravel()])

    path = integrate(flow, np.concatenate([w0.ravel(), h0.ravel()]), TIMES)
    for k, limit in enumerate(limits):
        a = path[4 * k] ** 2  # W stays diagonal; the product mode is W_kk^2 from a balanced start
        np.testing.assert_allclose(a, dynamics.logistic(TIMES, start, limit, total), rtol=1e-8, atol=1e-12)
    if penalty == 0.12:
        assert (limits < 0).any()  # a dead class is among those checked


def test_half_rise_time():
    t = dynamics.half_rise_time(0.01, 3.0, 15)
    assert dynamics.logistic(np.array([t]), 0.01, 3.0, 15)[0] == pytest.approx(1.5, rel=1e-12)


@pytest.mark.parametrize("renormalised", [False, True])
def test_central_path_against_its_ode(renormalised):
    K, total, w0, times = 4, 40, np.array([0.3, 1.0, 2.5]), np.linspace(0, 4000, 9)

    def flow(t, w):
        return w / (total * (K + w**2)) if renormalised else K * w / (total * (K + w**2) ** 2)

    path = integrate(flow, w0, times).T
    np.testing.assert_allclose(path, dynamics.central_path(times, w0, K, total, renormalised), rtol=1e-9)
    clock = dynamics.central_path_clock(path, K, renormalised)
    np.testing.assert_allclose(np.diff(clock, axis=0), np.diff(times)[:, None] / total * np.ones(3), rtol=1e-8)


def test_simplex_ray_on_the_full_cross_entropy_flow():
    K, n, a0 = 4, 5, 0.5
    total, times = K * n, np.geomspace(1, 2000, 8)
    centred = np.eye(K) - 1 / K
    labels = np.repeat(np.arange(K), n)
    # Balanced factors: W = s centred, H columns s' centred with s s' = a and the flow's conserved |W|^2 = |H|^2.
    s = math.sqrt(a0 * math.sqrt(n))
    w0, h0 = s * centred, (a0 / s) * centred[:, labels]

    def flow(t, x):
        w, h = x[: K * K].reshape(K, K), x[K * K :].reshape(K, total)
        z = w @ h
        p = np.exp(z - z.max(0))
        residual = (p / p.sum(0) - np.eye(K)[:, labels]) / total
        return -np.concatenate([(residual @ h.T).ravel(), (w.T @ residual).ravel()])

    path = integrate(flow, np.concatenate([w0.ravel(), h0.ravel()]), np.concatenate([[0], times]))[:, 1:]
    gaps = []
    for i in range(len(times)):
        z = path[: K * K, i].reshape(K, K) @ path[K * K :, i].reshape(K, total)
        gaps.append(z[0, 0] - z[1, 0])
    np.testing.assert_allclose(gaps, dynamics.ray(times, a0, K, n), rtol=3e-8)


def test_perturbation_filter_against_the_minimiser():
    rng = np.random.default_rng(3)
    w, y, h0, lam, beta = rng.standard_normal((3, 5)), rng.standard_normal((3, 4)), rng.standard_normal((5, 4)), 0.3, 0.7
    _, singular, right = np.linalg.svd(w)

    def minimiser(anchor):
        return np.linalg.solve(w.T @ w + (lam + beta) * np.eye(5), w.T @ y + beta * anchor)

    moved = right @ (minimiser(h0 + 1.0) - minimiser(h0))
    shift = right @ np.ones((5, 4))
    factors = dynamics.perturbation_filter(singular, lam, beta)
    np.testing.assert_allclose(moved[:3], factors[:3, None] * shift[:3], atol=3e-14)
    np.testing.assert_allclose(moved[3:], factors[-1] * shift[3:], atol=3e-14)


def test_bad_starts_are_refused_in_one_line():
    for call in (
        lambda: dynamics.logistic(TIMES, 0.0, 1.0, 3),
        lambda: dynamics.ray(TIMES, -1.0, 4, 5),
        lambda: dynamics.central_path(TIMES, [0.0], 4, 40),
        lambda: dynamics.half_rise_time(2.0, 1.0, 10),
    ):
        with pytest.raises(ValueError, match=r"positive|rise"):
            call()
