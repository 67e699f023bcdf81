"""Softmax codes and unit-norm models: margins, Tammes angles, finite-temperature losses, the limit of small temperature."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize, nnls

import ufm
from ufm.prediction import DERIVED, EVIDENCE, STATED
from ufm.theory import codes

KNOWN = [(5, 2), (7, 2), (12, 2), (6, 3), (8, 4), (12, 3), (24, 4), (10, 5)]


def margins(rows):
    """One-vs-rest margins by scipy's non-negative least squares: the nearest point of the hull of the differences."""
    found = []
    for k in range(len(rows)):
        V = (rows[k] - np.delete(rows, k, axis=0)).T
        x, _ = nnls(np.vstack([V, np.ones(V.shape[1])]), np.append(np.zeros(len(V)), 1.0))
        found.append(np.linalg.norm(V @ x / x.sum()))
    return np.array(found)


def points(gram, dim):
    values, vectors = np.linalg.eigh(gram)
    return vectors[:, -dim:] * np.sqrt(np.maximum(values[-dim:], 0))


@pytest.mark.parametrize(("K", "d"), KNOWN)
def test_codes_are_unit_vectors_of_equal_margin(K, d):
    name, gram = codes.code_gram(K, d)
    np.testing.assert_allclose(np.diag(gram), 1, atol=1e-14)
    np.testing.assert_allclose(np.sort(gram, axis=1), np.tile(np.sort(gram[0]), (K, 1)), atol=1e-14)
    rows = points(gram, d)
    np.testing.assert_allclose(rows @ rows.T, gram, atol=1e-12)  # rank d
    assert gram[~np.eye(K, dtype=bool)].max() < 1 - 1e-6  # distinct points
    margin, _ = codes.softmax_margin(K, d)
    np.testing.assert_allclose(margins(rows), margin, atol=1e-12)
    assert np.linalg.eigvalsh(gram).sum() == pytest.approx(K)
    assert name


@pytest.mark.parametrize(("K", "d"), KNOWN)
def test_geometry_agrees(K, d):
    geometry = pytest.importorskip("ufm.geometry")
    rows = points(codes.code_gram(K, d)[1], d)
    np.testing.assert_allclose(geometry.one_vs_rest_margins(rows), codes.softmax_margin(K, d)[0], atol=1e-10)


@pytest.mark.parametrize(
    ("K", "d", "margin", "status"),
    [
        *[(2, 1, 2.0, DERIVED), (4, 3, 4 / 3, DERIVED), (10, 64, 10 / 9, DERIVED), (5, 1, 0.0, DERIVED)],
        *[
            (5, 3, 1.0, STATED),
            (7, 4, 1.0, STATED),
            (9, 5, 1.0, STATED),
            (12, 3, 0.5527864045000421, EVIDENCE),
            (24, 4, 0.5, EVIDENCE),
        ],
        *[(7, 3, 0.78986, EVIDENCE), (8, 3, 0.73880, EVIDENCE), (9, 3, 2 / 3, EVIDENCE), (10, 3, 0.59561, EVIDENCE)],
    ],
)
def test_margins(K, d, margin, status):
    found = codes.softmax_margin(K, d)
    assert found[0] == pytest.approx(margin, abs=5e-6) and found[1] == status


def test_unknown_margins():
    assert codes.softmax_margin(13, 3) is None and codes.softmax_margin(11, 5) is None and codes.code_gram(11, 5) is None
    assert codes.code_gram(4, 3) is None and codes.code_gram(5, 1) is None and codes.tammes_angle(15) is None


ANGLES = {
    4: 109.471221,
    5: 90,
    6: 90,
    7: 77.869542,
    8: 74.858492,
    9: 70.528779,
    10: 66.146822,
    11: 63.434949,
    12: 63.434949,
    24: 43.690767,
}


@pytest.mark.parametrize("K", ANGLES)
def test_tammes_angles(K):
    assert codes.tammes_angle(K) == pytest.approx(ANGLES[K], abs=6e-7)


@pytest.mark.parametrize("K", [5, 7, 8, 9, 10])
def test_tammes_by_search(K):
    """A smoothed max-min search from several starts reaches the tabulated angle and never exceeds it."""

    def energy(x, sharpness):
        Y = x.reshape(K, 3)
        norm = np.linalg.norm(Y, axis=1, keepdims=True)
        U = Y / norm
        G = U @ U.T - 9 * np.eye(K)
        top = G.max()
        E = np.exp(sharpness * (G - top))
        g = 2 * E / E.sum() @ U
        return top + math.log(E.sum()) / sharpness, ((g - (g * U).sum(1, keepdims=True) * U) / norm).ravel()

    largest = -1.0
    for seed in range(6):
        x = np.random.default_rng(seed).normal(size=3 * K)
        for sharpness in (10, 100, 1000, 10000):
            x = minimize(energy, x, (sharpness,), jac=True, method="L-BFGS-B", options={"maxiter": 400}).x
        U = x.reshape(K, 3) / np.linalg.norm(x.reshape(K, 3), axis=1, keepdims=True)
        largest = max(largest, math.degrees(math.acos((U @ U.T - 9 * np.eye(K)).max())))
    assert largest <= codes.tammes_angle(K) + 1e-6
    assert largest == pytest.approx(codes.tammes_angle(K), abs=0.1)


@given(seed=st.integers(0, 10**6), K=st.integers(4, 12), d=st.integers(2, 4))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_no_random_code_beats_the_margin(seed, K, d):
    rows = np.random.default_rng(seed).normal(size=(K, d))
    known = codes.softmax_margin(K, d)
    if known is not None:
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        assert margins(rows).min() <= known[0] + 1e-9


def sphere(K, d, tau, **fields):
    return ufm.Problem(K, d, 7, constraint="sphere", temperature=tau, **fields)


@pytest.mark.parametrize(
    ("K", "d", "tau", "value"),
    [
        (4, 3, 0.5, lambda t: math.log(1 + 3 * math.exp(-4 / (3 * t)))),
        (3, 9, 0.2, lambda t: math.log(1 + 2 * math.exp(-3 / (2 * t)))),
        (6, 3, 0.3, lambda t: math.log(1 + math.exp(-2 / t) + 4 * math.exp(-1 / t))),
        (8, 4, 0.3, lambda t: math.log(1 + math.exp(-2 / t) + 6 * math.exp(-1 / t))),
        (5, 2, 1.0, lambda t: math.log(sum(math.exp((math.cos(2 * math.pi * j / 5) - 1) / t) for j in range(5)))),
    ],
)
def test_finite_temperature_values(K, d, tau, value):
    found = ufm.predict(sphere(K, d, tau))
    assert found.loss == pytest.approx(value(tau), rel=1e-13)
    assert found.status == (DERIVED if d + 1 >= K else EVIDENCE)
    np.testing.assert_allclose(found.logits, found.gram_w, atol=1e-14)  # W = H, and W h has no temperature in it


@pytest.mark.parametrize(("K", "d"), [(4, 3), (7, 2), (6, 3), (12, 3)])
def test_small_temperature_limit(K, d):
    """-tau log(loss) -> margin, with the correction tau log(number of nearest rivals)."""
    margin = codes.softmax_margin(K, d)[0]
    for tau in (0.02, 0.01, 0.002):
        found = ufm.predict(sphere(K, d, tau))
        assert abs(-tau * math.log(found.loss) - margin) <= tau * math.log(K)
    assert found.loss > 0 and found.details["margin"] == pytest.approx(margin)


def test_simplex_on_the_sphere():
    found = ufm.predict(sphere(5, 4, 1.0))
    np.testing.assert_allclose(found.gram_w, np.where(np.eye(5, dtype=bool), 1, -1 / 4), atol=1e-14)
    ball = ufm.predict(ufm.Problem(5, 4, 7, constraint="ball", energy_w=4.0, energy_h=0.25))
    assert ball.loss == pytest.approx(found.loss, rel=1e-14)  # sqrt(E_W E_H) plays 1/tau
    assert np.trace(ball.gram_w) / 5 == pytest.approx(4.0) and np.trace(ball.gram_h) / 5 == pytest.approx(0.25)


def test_smoothed_labels_stop_at_their_gap():
    gap = math.log(4 * 0.8 / 0.2 + 1)
    edge = 4 / 3 / gap  # temperature at which the simplex has that gap
    below, above = (ufm.predict(sphere(4, 5, edge * f, loss="smoothing", smoothing=0.2)) for f in (0.98, 1.02))
    assert above.unique and above.name == "etf" and above.thresholds["gap"] < 1
    assert not below.unique and below.logits is None and below.thresholds["gap"] > 1
    assert below.loss < above.loss == pytest.approx(below.loss, rel=1e-2)
    assert not ufm.predict(sphere(4, 3, edge * 0.98, loss="smoothing", smoothing=0.2)).applies


@pytest.mark.parametrize(("K", "d", "margin"), [(5, 3, 1.0), (9, 3, 2 / 3), (7, 4, 1.0), (24, 4, 0.5)])
def test_codes_without_closed_loss_say_their_margin(K, d, margin):
    found = ufm.predict(sphere(K, d, 0.1))
    assert not found.applies and f"{margin:.6g}" in found.reason
    assert found.details["margin"] == pytest.approx(margin)


def test_a_bias_or_another_loss_has_no_known_code():
    for fields in ({"bias": "free"}, {"loss": "focal"}):
        assert not ufm.predict(sphere(6, 3, 0.4, **fields)).applies
    assert not ufm.predict(ufm.Problem(5, 2, 5, lambda_w=1e-2, lambda_h=1e-3, bias="free")).applies


def test_the_24_cell_is_beaten_at_moderate_temperature():
    """Why its loss is not predicted: a search at temperature 0.2 ends below the 24-cell."""
    K, d, tau = 24, 4, 0.2
    cell = ufm.structures(sphere(K, d, tau))["code"]

    def objective(x):
        U = x.reshape(2 * K, d)
        norm = np.linalg.norm(U, axis=1, keepdims=True)
        W, H = np.split(U / norm, 2)
        z = H @ W.T / tau
        log_p = z - np.logaddexp.reduce(z, axis=1)[:, None]
        G = (np.exp(log_p) - np.eye(K)) / K / tau
        g = np.concatenate([G.T @ H, G @ W])
        unit = np.concatenate([W, H])
        return -np.diag(log_p).mean(), ((g - (g * unit).sum(1, keepdims=True) * unit) / norm).ravel()

    start = np.random.default_rng(100).normal(size=2 * K * d)
    found = minimize(objective, start, jac=True, method="L-BFGS-B", options={"maxiter": 1500, "ftol": 1e-15})
    assert cell.details["code"] == "24-cell" and found.fun < cell.loss * (1 - 5e-6)


def test_rank_limited_zero_is_a_theorem():
    for d in (1, 2, 3):
        found = ufm.predict(ufm.Problem(5, d, 9, lambda_w=1.0, lambda_h=1.0, bias="free"))
        assert found.zero and found.status == DERIVED and found.loss == pytest.approx(math.log(5))
    for d in (1, 3):
        refused = ufm.predict(ufm.Problem(5, d, 9, lambda_w=1e-3, lambda_h=1e-3))
        assert not refused.applies and "K-1" in refused.reason


@pytest.mark.parametrize(("K", "d"), [(5, 2), (7, 2), (6, 3), (8, 4)])
def test_rank_limited_pattern_is_a_critical_point(K, d):
    """W = M at the predicted scale: the gradient in the factors vanishes, and the bound of full rank lies below."""
    p = ufm.Problem(K, d, 10, lambda_w=1e-3, lambda_h=1e-3)
    found = ufm.predict(p)
    assert found.status == EVIDENCE
    W = points(found.gram_w, d)
    M = found.logits @ np.linalg.pinv(W).T
    np.testing.assert_allclose(M @ W.T, found.logits, atol=1e-10)
    prob = np.exp(found.logits - np.logaddexp.reduce(found.logits, axis=1)[:, None])
    G = (prob - np.eye(K)) / K
    np.testing.assert_allclose(G.T @ M + p.lambda_w * W, 0, atol=1e-12)
    np.testing.assert_allclose(G @ W + p.lambda_h * 10 * M, 0, atol=1e-12)
    assert ufm.predict(p.replace(dim=K - 1)).loss < found.loss
