import math

import numpy as np
import pytest
from scipy import stats

from ufm.errors import RequestError
from ufm.theory import separation


def simplex(K):
    """Means of a simplex ETF in R^K: rows e_k - 1/K."""
    return np.eye(K) - 1 / K


def pinv_nc1(features, labels, means):
    """Tr(Sigma_W Sigma_B^+)/K about the given means, by scipy-free dense algebra."""
    centred = means - means.mean(0)
    between = np.linalg.pinv(centred.T @ centred / len(means))
    residual = features - means[labels]
    return float(np.mean(np.einsum("id,de,ie->i", residual, between, residual))) / len(means)


def nearest(features, means):
    return np.argmin(((features[:, None] - means[None]) ** 2).sum(-1), axis=1)


def test_weak_collapse_line_holds_whatever_the_confusion():
    rng = np.random.default_rng(0)
    K = 5
    means = rng.standard_normal((K, 7))  # affinely independent, far from an ETF
    labels = rng.integers(0, K, 500)
    sits = np.where(rng.random(500) < 0.3, rng.integers(0, K, 500), labels)
    measured = pinv_nc1(means[sits], labels, means)
    assert measured == pytest.approx(float(separation.weak_collapse(np.mean(sits != labels))), rel=1e-10)


def test_weak_collapse_about_own_means_with_symmetric_confusion():
    K, confused = 4, 6  # of 60 per class, 2 to each other class: err .1 exactly
    labels = np.repeat(np.arange(K), 60)
    sits = labels.copy()
    for k in range(K):
        others = [j for j in range(K) if j != k]
        sits[k * 60 : k * 60 + confused] = np.repeat(others, confused // 3)
    features = simplex(K)[sits]
    own = np.array([features[labels == k].mean(0) for k in range(K)])
    assert float(separation.weak_collapse_own_means(0.1, K)) == pytest.approx(pinv_nc1(features, labels, own), rel=1e-10)
    assert math.isinf(float(separation.weak_collapse_own_means(0.75, 4)))


def test_floor_holds_for_heavy_tails_and_is_attained_half_way_between_two_means():
    rng = np.random.default_rng(1)
    K = 6
    means = simplex(K)
    for scale in (0.05, 0.2, 1.0):
        labels = rng.integers(0, K, 2000)
        features = means[labels] + scale * rng.standard_t(2, (2000, K))
        error = np.mean(nearest(features, means) != labels)
        assert pinv_nc1(features, labels, means) >= float(separation.floor(error))
    labels = np.arange(K)
    halfway = 0.5 * means + 0.5 * np.roll(means, 1, axis=0)
    assert pinv_nc1(halfway, labels, means) == pytest.approx(float(separation.floor(1.0)), rel=1e-10)


@pytest.mark.parametrize("nc1", [0.1, 1.0, 0.01, 0.002])
def test_gaussian_curve_of_two_classes_is_one_normal_tail(nc1):
    assert float(separation.gaussian_etf_error(nc1, 2)) == pytest.approx(stats.norm.sf(math.sqrt(1 / (2 * nc1))), rel=1e-10)


@pytest.mark.parametrize("K, nc1", [(3, 0.5), (10, 1.0), (10, 0.5)])
def test_gaussian_curve_against_monte_carlo(K, nc1):
    rng = np.random.default_rng(2)
    labels = rng.integers(0, K, 100_000)
    sigma = math.sqrt(nc1 / (K - 1))  # NC1 = sigma^2 (K-1) on this frame
    features = simplex(K)[labels] + sigma * rng.standard_normal((100_000, K))
    wrong = np.mean(np.argmax(features, axis=1) != labels)
    wanted = float(separation.gaussian_etf_error(nc1, K))
    assert wrong == pytest.approx(wanted, abs=4 * math.sqrt(wanted / 100_000))


def test_gaussian_curve_at_its_ends_and_backwards():
    curve = separation.gaussian_etf_error(np.array([0.0, 1e9, np.nan]), 10)
    assert curve[0] == 0 and curve[1] == pytest.approx(0.9, abs=1e-3) and np.isnan(curve[2])
    assert separation.gaussian_etf_error(0.3, 10) == pytest.approx(separation.gaussian_etf_error(np.array([0.3]), 10)[0])
    for error in (1e-12, 0.01, 0.5):
        assert float(separation.gaussian_etf_error(separation.gaussian_etf_nc1(error, 10), 10)) == pytest.approx(error, rel=1e-6)


def test_moment_error_reduces_to_the_gaussian_curve_and_to_monte_carlo():
    K, nc1 = 4, 0.5
    means = simplex(K)
    isotropic = separation.moment_error(means, means, np.eye(K) * nc1 / (K - 1))
    assert isotropic.gaussian == pytest.approx(float(separation.gaussian_etf_error(nc1, K)), abs=5e-5)
    ten = separation.moment_error(simplex(10), simplex(10), np.eye(10) * 2.0 / 9)  # nine dimensions: the points are limited
    assert ten.gaussian == pytest.approx(float(separation.gaussian_etf_error(2.0, 10)), abs=2e-5) and ten.gaussian > 0.1
    rng = np.random.default_rng(3)
    train, test = rng.standard_normal((K, 6)), None
    test = train + 0.3 * rng.standard_normal((K, 6))
    roots = rng.standard_normal((K, 6, 6)) * 0.4
    covariances = roots @ roots.transpose(0, 2, 1)
    made = separation.moment_error(train, test, covariances)
    wrong = []
    for j in range(K):
        sample = test[j] + rng.standard_normal((40_000, 6)) @ roots[j].T
        wrong.append(np.mean(nearest(sample, train) != j))
    assert made.by_class == pytest.approx(wrong, abs=0.01)
    assert max(wrong) > 0.1  # the case is not trivial
    assert made.gaussian <= made.union <= 1 and made.gaussian <= made.cantelli


def test_moment_error_of_decided_margins():
    means = simplex(3)
    assert separation.moment_error(means, means, np.zeros((3, 3))).gaussian == 0
    swapped = means[[1, 2, 0]]
    assert separation.moment_error(means, swapped, np.zeros((3, 3))).gaussian == 1


def test_few_shot_error_against_monte_carlo_and_its_bounds_in_order():
    rng = np.random.default_rng(4)
    d, m = 40, 3  # many directions: the margin is near Gaussian, as the formula takes it to be
    difference = np.full(d, 0.25)
    a, b = np.diag(rng.uniform(0.05, 0.2, d)), np.diag(rng.uniform(0.05, 0.3, d))
    n = 50_000
    x = rng.standard_normal((n, d)) @ np.sqrt(a) + difference
    mean_a = difference + rng.standard_normal((n, d)) @ np.sqrt(a / m)
    mean_b = rng.standard_normal((n, d)) @ np.sqrt(b / m)
    margin = 0.5 * (((x - mean_b) ** 2).sum(1) - ((x - mean_a) ** 2).sum(1))
    made = separation.few_shot_error(difference, a, b, m)
    assert -stats.norm.ppf(made.gaussian) == pytest.approx(margin.mean() / margin.std(), rel=0.01)
    assert made.gaussian == pytest.approx(np.mean(margin < 0), rel=0.1)
    assert made.gaussian > 0.02
    assert np.mean(margin < 0) <= made.cantelli
    assert made.cantelli == pytest.approx(margin.var() / (margin.var() + margin.mean() ** 2), rel=0.03)
    limit = separation.few_shot_error(difference, a, a, 10**9)
    assert limit.cantelli == pytest.approx(limit.directional, rel=1e-6) and limit.directional <= limit.cdnv


def simulate_interpolation(rng, n, d, K, sigma):
    labels = np.repeat(np.arange(K), n)
    x = sigma * rng.standard_normal((K * n, d))
    x[np.arange(K * n), labels] += 1
    means = simplex(K)
    linear = np.linalg.lstsq(x, means[labels], rcond=None)[0]
    assert np.abs(x @ linear - means[labels]).max() < 1e-8  # train NC1 is exactly zero
    test = rng.integers(0, K, 3000)
    points = sigma * rng.standard_normal((3000, d))
    points[np.arange(3000), test] += 1
    features = points @ linear
    own = np.array([features[test == k].mean(0) for k in range(K)])
    return pinv_nc1(features, test, own), pinv_nc1(features, test, means)


@pytest.mark.parametrize(
    "n, d, K, sigma, tolerance", [(20, 1600, 4, 0.05, 0.05), (40, 800, 4, 0.1, 0.06), (25, 400, 4, 0.1, 0.1)]
)
def test_interpolation_collapses_train_and_not_test(n, d, K, sigma, tolerance):
    rng = np.random.default_rng(5)
    own, train = np.mean([simulate_interpolation(rng, n, d, K, sigma) for _ in range(3)], axis=0)
    made = separation.interpolation(n, d, K, sigma)
    assert made.valid
    assert made.own_means == pytest.approx(own, rel=tolerance)
    assert made.train_means == pytest.approx(train, rel=tolerance)


def test_interpolation_says_where_it_does_not_hold():
    assert math.isnan(separation.interpolation(100, 400, 4, 0.1).own_means)
    assert not separation.interpolation(90, 400, 4, 0.1).valid
    assert separation.interpolation(99, 400, 4, 0.1).own_means > 50 * separation.interpolation(10, 400, 4, 0.1).own_means / 10


def test_cascade_is_recovered_and_saturates_at_twice_the_error():
    layers = np.arange(6)
    train = 3.0 * 0.3**layers
    made = separation.fit_cascade(train, train + 0.04, 0.02)
    assert (made.start, made.rho, made.pearson) == pytest.approx((3.0, 0.3, -1.0))
    assert made.test == pytest.approx(train + 0.04) and made.test_ratio == pytest.approx(1.0)
    assert separation.fit_cascade(train, 2 * (train + 0.04), 0.02).test_ratio == pytest.approx(2.0)


def test_line_interval_is_the_exact_binomial_one():
    low, high = separation.weak_collapse_interval(10, 797)
    assert low == pytest.approx(2 * stats.beta.ppf(0.025, 10, 788)) and high == pytest.approx(2 * stats.beta.ppf(0.975, 11, 787))
    assert separation.weak_collapse_interval(0, 100)[0] == 0


@pytest.mark.parametrize(
    "call",
    [
        lambda: separation.floor(3.0),
        lambda: separation.gaussian_etf_error(-1.0, 3),
        lambda: separation.gaussian_etf_error(0.1, 1),
        lambda: separation.gaussian_etf_nc1(0.95, 10),
        lambda: separation.weak_collapse_interval(5, 3),
        lambda: separation.interpolation(0, 10, 3, 0.1),
        lambda: separation.fit_cascade([1.0], [1.0], 0.0),
        lambda: separation.few_shot_error([1.0], np.eye(2), np.eye(2), 1),
        lambda: separation.moment_error(np.eye(2), np.eye(3), np.eye(2)),
    ],
)
def test_requests_out_of_range_are_refused(call):
    with pytest.raises(RequestError):
        call()


# --- few-shot bounds for any distribution ---


def _draws(kind, rng, shape):
    """Zero mean, unit variance: Gaussian, heavy-tailed, two-valued and very skew."""
    if kind == "gaussian":
        return rng.standard_normal(shape)
    if kind == "heavy":
        return rng.standard_t(3, shape) / np.sqrt(3)
    if kind == "two-valued":
        return rng.choice([-1.0, 1.0], shape)
    return rng.choice([-1 / 3, 3.0], shape, p=[0.9, 0.1])


@pytest.mark.parametrize("kind", ["gaussian", "heavy", "two-valued", "skew"])
@pytest.mark.parametrize("shots", [1, 5])
def test_few_shot_bounds_hold_for_any_distribution(kind, shots):
    rng, N, dim = np.random.default_rng(3), 20_000, 4
    d = np.array([2.0, 0.5, 0.0, 0.0])
    root_a, root_b = np.diag([0.5, 0.3, 0.8, 0.2]), np.diag([0.4, 0.6, 0.1, 0.7])
    errors = []
    for own, other, way in ((root_a, root_b, d), (root_b, root_a, -d)):
        e = _draws(kind, rng, (N, dim)) @ own
        u = _draws(kind, rng, (N, shots, dim)).mean(1) @ own
        v = _draws(kind, rng, (N, shots, dim)).mean(1) @ other
        wrong = ((e - u) ** 2).sum(1) >= ((e + way - v) ** 2).sum(1)
        errors.append(wrong.mean())
        assert wrong.mean() <= separation.few_shot_directional_bound(way, own**2, other**2, shots)
    V = (np.trace(root_a**2) + np.trace(root_b**2)) / (2 * d @ d)
    assert 0 < np.mean(errors) <= separation.few_shot_cdnv_bound(V, shots) == min(1.0, 4 * V * (1 + 1 / shots))


def test_few_shot_bounds_by_hand_and_in_the_limit_of_many_shots():
    assert float(separation.few_shot_cdnv_bound(0.05, 4)) == pytest.approx(0.25)
    assert separation.few_shot_cdnv_bound([0.05, 3.0], 1).tolist() == [pytest.approx(0.4), 1.0]
    # One dimension, no scatter of b, endless shots: Cantelli at t -> |d|^2/2 gives 4 D/(1 + 4 D), D = s^2/d^2.
    found = separation.few_shot_directional_bound([2.0], [[0.25]], [[0.0]], 10**12)
    assert found == pytest.approx(0.25 / 1.25, rel=0.02)
    # Scatter across d costs nothing there, while the CDNV counts it.
    wide = np.diag([0.25, 100.0])
    assert separation.few_shot_directional_bound([2.0, 0.0], wide, wide, 10**12) == pytest.approx(found, rel=1e-3)
    assert separation.few_shot_directional_bound([0.0], [[1.0]], [[1.0]], 1) == 1.0


@pytest.mark.parametrize(
    "call",
    [
        lambda: separation.few_shot_cdnv_bound(-0.1, 1),
        lambda: separation.few_shot_cdnv_bound(0.1, 0),
        lambda: separation.few_shot_directional_bound([1.0], np.eye(2), np.eye(2), 1),
        lambda: separation.few_shot_directional_bound([1.0], np.eye(1), np.eye(1), 1.5),
    ],
)
def test_wrong_few_shot_requests(call):
    with pytest.raises(RequestError):
        call()
