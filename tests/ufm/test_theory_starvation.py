"""Gradient starvation: the dual against the primal solved by others, closed forms, and the sign of what is starved."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq, minimize
from scipy.special import expit, lambertw
from sklearn.linear_model import LogisticRegression

from ufm.theory import starvation as theory


def features(U, strengths, seed, dim=None):
    """Phi and y with Y Phi = U S V^T, labels and directions drawn here."""
    draw = np.random.default_rng(seed)
    y = draw.permutation(np.where(np.arange(len(U)) % 2, 1.0, -1.0))
    V = np.linalg.qr(draw.standard_normal((dim or len(U), len(U))))[0]
    return y[:, None] * ((U * strengths) @ V.T), y


def scipys_minimum(value, size):
    """Newton with scipy's own line search from zero, then again from there: margins to about 1e-9."""
    found = minimize(value, np.zeros(size), jac=True, method="BFGS", options={"gtol": 1e-12, "maxiter": 5000})
    return minimize(value, found.x, jac=True, method="BFGS", options={"gtol": 1e-13, "maxiter": 5000}).x


@pytest.mark.parametrize("x", [1e-9, 1e-3, 0.3, 1.0, 7.0, 1e3, 1e8])
def test_the_response_is_the_root_and_below_lamberts(x):
    c = float(theory.response(x))
    assert c == pytest.approx(brentq(lambda c: c * (1 + np.exp(c)) - x, 0, 50, xtol=1e-300, rtol=1e-14), rel=1e-12)
    assert c < lambertw(x).real
    assert x < 1e3 or c == pytest.approx(lambertw(x).real, rel=2 * c / x)


def test_the_response_at_the_ends():
    assert theory.response(0.0) == 0 and np.all(np.diff(theory.response(np.geomspace(1e-300, 1e300, 200))) > 0)


@pytest.mark.parametrize(
    "samples, coupling, kind", [(2, 0.5, "shared"), (2, -0.9, "shared"), (6, 0.4, "shared"), (9, 0.8, "random")]
)
def test_mixings_are_orthogonal_and_mix_as_told(samples, coupling, kind):
    U = theory.mixing(samples, coupling, kind=kind, seed=3)
    assert np.abs(U.T @ U - np.eye(samples)).max() < 1e-12
    if kind == "shared":
        assert U[0, 0] == pytest.approx(np.sqrt(1 - coupling**2)) and np.linalg.norm(U[1:, 0]) == pytest.approx(abs(coupling))
        assert np.ptp(U[1:, 0]) < 1e-15 and np.sign(U[1, 0]) == np.sign(coupling)
    assert np.allclose(theory.mixing(samples, 0.0, kind=kind, seed=3), np.eye(samples))


@pytest.mark.parametrize(
    "samples, coupling, kind, weight", [(2, 0.5, "shared", 0.005), (7, 0.3, "shared", 1e-3), (12, 0.9, "random", 0.05)]
)
def test_the_dual_is_scikit_learns_logistic_regression(samples, coupling, kind, weight):
    """C = 1/(n lambda) without an intercept; |z| from the singular vectors of Y Phi, whose signs are free."""
    U = theory.mixing(samples, coupling, kind=kind, seed=1)
    strengths = np.concatenate([[5.0], 2.0 * 0.8 ** np.arange(samples - 1)])
    Phi, y = features(U, strengths, 4, samples + 3)
    fitted = LogisticRegression(C=1 / (samples * weight), fit_intercept=False, tol=1e-12, max_iter=10_000).fit(Phi, y)
    left = np.linalg.svd(y[:, None] * Phi, full_matrices=False)[0]
    known = theory.ridge(U, strengths, weight)
    margins = y * (Phi @ fitted.coef_[0])
    assert np.abs(left.T @ margins) == pytest.approx(np.abs(known.responses), rel=2e-5, abs=2e-5)
    assert expit(-margins) == pytest.approx(known.dual, rel=1e-4)
    loss = np.logaddexp(0, -margins).mean() + weight / 2 * (fitted.coef_[0] @ fitted.coef_[0])
    assert known.loss == pytest.approx(loss, rel=1e-8) and known.loss <= loss * (1 + 1e-12)


@pytest.mark.parametrize("weight", [0.002, 0.1, 3.0])
def test_spectral_decoupling_is_scipys_minimum_whatever_the_strengths(weight):
    found = []
    for strengths in (np.array([6.0, 2.0, 1.5]), np.array([1.5, 3.0, 0.7])):
        U = theory.mixing(3, 0.6, kind="random", seed=2)
        Phi, y = features(U, strengths, 0)

        def value(theta, Phi=Phi, y=y):
            u = y * (Phi @ theta)
            slope = (Phi.T @ (y * (weight * u - expit(-u)))) / 3
            return np.mean(np.logaddexp(0, -u) + weight / 2 * u**2), slope

        found.append(U.T @ (y * (Phi @ scipys_minimum(value, 3))))
    known = theory.decoupling(U, weight)
    assert found[0] == pytest.approx(found[1], abs=1e-7)
    assert known.responses == pytest.approx(found[0], abs=1e-7) and not known.sensitivity.any()
    assert known.responses == pytest.approx(known.margins[0] * U.sum(0), rel=1e-12)


def test_features_without_coupling_know_nothing_of_each_other():
    """z (1 + e^z) = s^2/(n lambda): with n = 2 and lambda = 1/8, s^2 = (1 + e^2)/2 gives z = 2, s^2 = (1 + e)/4 gives z = 1."""
    strengths = np.sqrt([(1 + np.exp(2)) / 2, (1 + np.exp(1)) / 4])
    known = theory.ridge(np.eye(2), strengths, 1 / 8)
    assert known.responses == pytest.approx([2.0, 1.0], rel=1e-12)
    assert theory.uncoupled(strengths, 1 / 8) == pytest.approx([2.0, 1.0], rel=1e-12)
    assert abs(known.sensitivity[1]) < 1e-15 and known.sensitivity[0] > 0


@pytest.mark.parametrize("samples, kind", [(2, "shared"), (5, "shared"), (5, "random")])
def test_implicit_differentiation_is_the_difference_of_two_minima(samples, kind):
    weight, coupling = 0.01, 0.45
    strengths = np.concatenate([[3.0], 1.7 * 0.85 ** np.arange(samples - 1)])
    U = theory.mixing(samples, coupling, kind=kind, seed=8)

    def minimum(first):
        S = np.concatenate([[first], strengths[1:]])

        def value(w):  # over w = V^T theta, which is all of theta that the loss sees
            u = U @ (S * w)
            slope = -S * (U.T @ expit(-u)) / samples + weight * w
            return np.logaddexp(0, -u).mean() + weight / 2 * (w @ w), slope

        return S * scipys_minimum(value, samples)

    known, step = theory.ridge(U, strengths, weight), 1e-2
    numeric = (minimum(np.sqrt(9 + step)) - minimum(np.sqrt(9 - step))) / (2 * step)
    assert known.responses == pytest.approx(minimum(3.0), abs=1e-6)
    assert known.sensitivity == pytest.approx(numeric, abs=2e-5)
    assert known.elasticities(3.0) == pytest.approx(9 * numeric / known.responses, abs=2e-3)


sizes = st.floats(-1.0, 3.0).map(np.exp)


@settings(max_examples=120, deadline=None)
@given(sizes, sizes, st.floats(0.02, 0.98), st.booleans(), st.floats(-4, 0).map(lambda p: 10**p))
def test_two_features_starve_each_other_where_the_stronger_one_serves_both_samples(s1, s2, size, negative, weight):
    coupling = -size if negative else size
    if abs(size - np.sqrt(0.5)) < 1e-2 or abs(np.log(s1 / s2)) < 1e-2:
        return
    known = theory.ridge(theory.mixing(2, coupling), np.array([s1, s2]), weight)
    expected = theory.direction((s1, s2), coupling)
    assert expected == -np.sign(coupling * (s1 - s2))
    slope = known.elasticities(s1)[1]
    if abs(slope) > 1e-12:
        assert np.sign(slope) == expected
    # the other way round the same holds: relabelling the features turns the sign of the coupling
    other = theory.ridge(theory.mixing(2, -coupling), np.array([s2, s1]), weight)
    assert np.abs(other.responses[::-1]) == pytest.approx(np.abs(known.responses), rel=1e-6, abs=1e-12)


def test_nothing_moves_at_45_degrees_without_coupling_and_at_equal_strengths():
    for coupling in (0.0, 1.0, np.sqrt(0.5), -np.sqrt(0.5)):
        assert theory.direction((4.0, 2.0), coupling) == 0
    assert theory.direction((2.0, 2.0), 0.5) == 0
    even = theory.ridge(theory.mixing(2, np.sqrt(0.5)), np.array([4.0, 2.0]), 0.01)
    assert np.ptp(even.margins) < 1e-12 and np.isnan(even.elasticities(4.0)[1])
    same = theory.ridge(theory.mixing(2, 0.5), np.array([2.0, 2.0]), 0.01)
    assert abs(same.sensitivity[1]) < 1e-12


@pytest.mark.parametrize("weight", [1e-3, 0.05, 1.0])
def test_the_derivative_at_weak_coupling(weight):
    for coupling, tolerance in ((1e-2, 0.15), (1e-3, 0.02), (1e-4, 2e-3)):
        exact = theory.ridge(theory.mixing(2, coupling), np.array([4.0, 2.0]), weight).sensitivity[1]
        assert theory.weak_coupling((4.0, 2.0), weight, coupling) == pytest.approx(exact, rel=tolerance)


def test_a_strong_feature_of_all_samples_starves_all_others_and_mixed_ones_half():
    strengths = np.concatenate([[8.0], 2.0 * 0.95 ** np.arange(19)])
    for coupling in (0.1, 0.5, 0.9):
        slopes = theory.ridge(theory.mixing(20, coupling), strengths, 1e-3).elasticities(8.0)
        assert (slopes[1:] < -0.01).all()
    drawn = [
        theory.ridge(theory.mixing(20, 0.5, kind="random", seed=s), strengths, 1e-3).elasticities(8.0)[1:] for s in range(20)
    ]
    assert 0.4 < np.mean(np.array(drawn) < 0) < 0.6


@pytest.mark.parametrize("weight", [1e-10, 1e-4, 1.0, 1e6])
def test_the_dual_closes_at_any_weight(weight):
    for kind, seed in (("shared", 0), ("random", 1)):
        U, strengths = theory.mixing(8, 0.6, kind=kind, seed=seed), np.geomspace(50, 0.3, 8)
        known = theory.ridge(U, strengths, weight)
        w = (U.T @ known.margins) / strengths
        primal = np.logaddexp(0, -known.margins).mean() + weight / 2 * (w @ w)
        assert primal == pytest.approx(known.loss, rel=1e-9)
        assert known.dual == pytest.approx(expit(-known.margins), rel=1e-6)
