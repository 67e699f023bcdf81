"""The pieces beside `collapse`: VCI at extreme collapse, pairs, few shots, the orthant, ranks, layers, finite samples."""

import math
from fractions import Fraction

import numpy as np
import pytest
from scipy.integrate import trapezoid
from scipy.stats import linregress, multivariate_normal, norm

from ufm import measure
from ufm.errors import RequestError
from ufm.geometry import simplex_etf
from ufm.measure import ClassMoments, collapse
from ufm.measure.algebra import variability_index


def rational_inverse(matrix):
    size = len(matrix)
    rows = [[*map(Fraction, row), *(Fraction(i == j) for j in range(size))] for i, row in enumerate(matrix)]
    for i in range(size):
        pivot = next(r for r in range(i, size) if rows[r][i])
        rows[i], rows[pivot] = rows[pivot], rows[i]
        rows[i] = [value / rows[i][i] for value in rows[i]]
        for r in range(size):
            if r != i:
                rows[r] = [a - rows[r][i] * b for a, b in zip(rows[r], rows[i], strict=True)]
    return [row[size:] for row in rows]


@pytest.mark.parametrize("scale", [1e-1, 1e-3, 1e-6, 1e-9])
def test_vci_against_rational_arithmetic(scale):
    """The d x d solve in float64 is off by 1e-6 at scale 1e-6; the rational one is exact."""
    rng = np.random.default_rng(1)
    means, root = rng.standard_normal((4, 5)), scale * rng.standard_normal((9, 5))
    share = np.array([0.1, 0.2, 0.3, 0.4])
    rows = (means - share @ means) * np.sqrt(share)[:, None]
    within, exact = root.T @ root, [[Fraction(float(v)) for v in row] for row in rows]
    between = [[sum(r[i] * r[j] for r in exact) for j in range(5)] for i in range(5)]
    total = [[Fraction(float(within[i, j])) + between[i][j] for j in range(5)] for i in range(5)]
    inverse = rational_inverse(total)
    trace = sum(inverse[i][j] * between[j][i] for i in range(5) for j in range(5))
    assert variability_index(within, rows) == pytest.approx(float(1 - trace / 3), rel=1e-6)


def test_vci_with_directions_of_no_variance():
    rng = np.random.default_rng(2)
    rows = rng.standard_normal((3, 6))
    assert variability_index(np.zeros((6, 6)), rows) == 0.0
    flat = np.zeros((6, 6))
    flat[:2, :2] = np.array([[2.0, 0.5], [0.5, 1.0]])
    tiny = flat + 1e-10 * np.eye(6)  # the limit, by a solve that is still well conditioned enough
    wanted = 1 - np.trace(np.linalg.solve(tiny + rows.T @ rows, rows.T @ rows)) / 3
    assert variability_index(flat, rows) == pytest.approx(wanted, abs=1e-6)


def gaussians(seed, samples=4000, classes=3, dim=4):
    rng = np.random.default_rng(seed)
    means = 1.2 * rng.standard_normal((classes, dim))
    roots = 0.8 * rng.standard_normal((classes, dim, dim)) / np.sqrt(dim) + 0.4 * np.eye(dim)
    labels = np.repeat(np.arange(classes), samples // classes)
    noise = np.einsum("nd,nde->ne", rng.standard_normal((len(labels), dim)), roots[labels])
    return means, np.einsum("kde,kdf->kef", roots, roots), means[labels] + noise, labels


def test_cdnv_by_pairs():
    _, _, x, y = gaussians(0, samples=60)
    moments = ClassMoments.of(x, y)
    matrix = measure.cdnv_matrix(moments)
    assert np.isnan(np.diag(matrix)).all()
    assert np.allclose(matrix[np.triu_indices(3, 1)].mean(), collapse(x, y)["cdnv"], rtol=1e-13)
    directional = measure.directional_cdnv(x, y)
    for i in range(3):
        for j in range(3):
            if i != j:
                gap = x[y == i].mean(0) - x[y == j].mean(0)
                assert directional[i, j] == pytest.approx(np.var(x[y == i] @ gap) / (gap @ gap) ** 2, rel=1e-10)


def test_pair_margins_are_the_margins():
    _, _, x, y = gaussians(1, samples=90)
    _, _, test_x, test_y = gaussians(2, samples=90)
    found = measure.pair_margins(test_x, test_y, reference=ClassMoments.of(x, y), covariances=True)
    mu = [x[y == k].mean(0) for k in range(3)]
    for j in range(3):
        rows = test_x[test_y == j]
        margins = np.array([[(mu[j] - mu[i]) @ (h - (mu[i] + mu[j]) / 2) for i in range(3)] for h in rows])
        others = [i for i in range(3) if i != j]
        assert np.allclose(found.means[j, others], margins.mean(0)[others], rtol=1e-10)
        assert np.allclose(found.variances[j, others], margins.var(0)[others], rtol=1e-10)
        assert np.allclose(found.covariances[j], np.cov(margins.T, ddof=0), rtol=1e-9, atol=1e-10)
        wrong = ((margins[:, others] <= 0).any(1)).mean()
        cantelli = sum(
            v / (v + m * m) if m > 0 else 1 for m, v in zip(margins.mean(0)[others], margins.var(0)[others], strict=True)
        )
        assert wrong <= cantelli
    assert np.isnan(np.diag(found.means)).all()


def test_orthant_is_scipys_and_the_error_of_gaussian_samples():
    _, _, x, y = gaussians(3, samples=6000, classes=4)
    train = ClassMoments.of(x, y)
    margins = measure.pair_margins(x, y, reference=train, covariances=True)
    wanted = 0.0
    for j in range(4):
        others = [i for i in range(4) if i != j]
        spread = margins.covariances[j][np.ix_(others, others)]
        wanted += (1 - multivariate_normal(np.zeros(3), spread, seed=0).cdf(margins.means[j, others])) / 4
    assert measure.orthant_error(margins) == pytest.approx(wanted, abs=3e-4)
    error = collapse(x, y, names="ncc_error")["ncc_error"]
    assert measure.orthant_error(margins) == pytest.approx(error, abs=4 * math.sqrt(error / 6000))
    assert error <= margins.union_bound() + 4 * math.sqrt(error / 6000)
    assert margins.union_bound() <= margins.cantelli_bound()


def test_orthant_of_an_etf_is_the_one_dimensional_integral():
    """Isotropic noise on an ETF: err = 1 - int phi(z - A) Phi(z)^(K-1) dz, A = sqrt(K/(K-1))/sigma for unit means."""
    classes, sigma = 6, 0.5
    means = simplex_etf(classes, 8)
    gaps = means[:, None] - means[None]
    spread = np.full((classes, classes), np.nan)
    mean = np.full((classes, classes), np.nan)
    joint = sigma**2 * np.einsum("jid,jld->jil", gaps, gaps)
    off = ~np.eye(classes, dtype=bool)
    mean[off] = (gaps[off] ** 2).sum(1) / 2
    spread[off] = np.einsum("jii->ji", joint)[off]
    margins = measure.PairMargins(np.full(classes, 10), mean, spread, joint)
    z = np.linspace(-10, 16, 20001)
    shift = np.sqrt(classes / (classes - 1)) / sigma
    wanted = 1 - trapezoid(norm.pdf(z - shift) * norm.cdf(z) ** (classes - 1), z)
    assert measure.orthant_error(margins) == pytest.approx(wanted, abs=2e-4)


def test_few_shot_against_simulation():
    means, covariances, _, _ = gaussians(4)
    rng = np.random.default_rng(0)
    shots, trials = 20, 60000  # so many that the margin is near normal
    for a, b in ((0, 1), (2, 0)):
        supports = [rng.multivariate_normal(means[k], covariances[k] / shots, trials) for k in (a, b)]
        query = rng.multivariate_normal(means[a], covariances[a], trials)
        margin = (((query - supports[1]) ** 2).sum(1) - ((query - supports[0]) ** 2).sum(1)) / 2
        mean, variance = measure.few_shot_moments(means, covariances, shots)
        assert mean[a, b] == pytest.approx(margin.mean(), abs=5 * margin.std() / math.sqrt(trials))
        assert variance[a, b] == pytest.approx(margin.var(), rel=0.03)
        error = (margin < 0).mean()
        assert measure.few_shot_error(means, covariances, shots)[a, b] == pytest.approx(error, abs=0.02)
        assert error <= measure.few_shot_bound(means, covariances, shots)[a, b]
    assert np.isnan(np.diag(measure.few_shot_error(means, covariances, shots))).all()


def test_class_covariances():
    _, _, x, y = gaussians(5, samples=60)
    for k, spread in enumerate(measure.class_covariances(x, y)):
        assert np.allclose(spread, np.cov(x[y == k].T, ddof=0), rtol=1e-12)


def test_ranks():
    assert measure.rank_effective(np.ones(7)) == pytest.approx(7)
    assert measure.rank_effective(np.array([1.0, 0.0])) == 1
    assert measure.rank_stable(np.array([2.0, 1.0, 1.0])) == pytest.approx(1.5)
    assert measure.rank_numeric(np.array([1.0, 0.011, 0.009])) == 2
    assert math.isnan(measure.rank_stable(np.zeros(3)))
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((40, 6)) @ np.diag([1, 1, 0.3, 0.1, 0.005, 0]), np.arange(40) % 3
    values = measure.spectrum(x - x.mean(0))
    found = collapse(x, y)
    assert found["rank_effective"] == pytest.approx(measure.rank_effective(values[:5]), rel=1e-9)
    assert found["rank_stable"] == pytest.approx((values**2).sum() / values[0] ** 2, rel=1e-12)
    assert found["rank_numeric"] == (values > 1e-2 * values[0]).sum() == 4


def test_separation_is_scipys_regression():
    values = np.array([9.0, 3.5, 1.2, 0.5, 0.16])
    fit = linregress(np.arange(5), np.log(values))
    found = measure.separation(values)
    assert (found.rho, found.pearson_r) == (pytest.approx(math.exp(fit.slope)), pytest.approx(fit.rvalue))
    assert found.start == pytest.approx(math.exp(fit.intercept))
    assert measure.separation([8.0, 4.0, 2.0]) == (pytest.approx(0.5), pytest.approx(-1.0), pytest.approx(8.0))
    with pytest.raises(RequestError, match="two or more positive"):
        measure.separation([1.0, 0.0])


def test_balance_at_a_hand_solved_optimum():
    """W = H = sqrt(t) minimises (z - 1)^2/2 + l/2 (W^2 + H^2) at z = t = 1 - l: every number is l (1 - l)."""
    rate = 0.2
    root = [[math.sqrt(1 - rate)]]
    found = measure.balance([root, root], [rate, rate], logits=[[1 - rate]], gradient=[[-rate]])
    assert found.penalties == (pytest.approx(0.16), pytest.approx(0.16))
    assert found.pull == pytest.approx(0.16)
    assert found.spread < 1e-12
    assert measure.balance([[[1.0]], [[2.0]]], [1.0, 1.0]).spread == pytest.approx(0.6)
    with pytest.raises(RequestError, match="one lambda for each"):
        measure.balance([root], [0.1, 0.1])
    with pytest.raises(RequestError, match="together"):
        measure.balance([root], [0.1], logits=[[1.0]])


def test_match_counts():
    labels = np.random.default_rng(0).integers(0, 4, 500)
    wanted = np.array([30, 0, 1000, 7])
    kept = measure.match_counts(labels, wanted, seed=3)
    assert np.array_equal(kept, np.unique(kept))
    assert np.array_equal(np.bincount(labels[kept], minlength=4), np.minimum(wanted, np.bincount(labels)))
    assert np.array_equal(kept, measure.match_counts(labels, wanted, seed=3))
    assert not np.array_equal(kept, measure.match_counts(labels, wanted, seed=4))
    picked = np.zeros(500)
    for seed in range(200):
        picked[measure.match_counts(labels, wanted, seed=seed)] += 1
    of_class = picked[labels == 3]
    assert of_class.sum() == 1400
    assert of_class.max() < 6 * of_class.mean()  # no sample is preferred
    with pytest.raises(RequestError, match="counts must be"):
        measure.match_counts(labels, [0.5, 1, 1, 1])


def test_pure_noise_value_and_its_correction():
    """No signal: nc1_pinv is about (K-1) n_c/d. With signal the corrected value no longer depends on n_c."""
    rng = np.random.default_rng(0)
    classes, dim = 4, 2000
    noise = collapse(rng.standard_normal((40, dim)), np.repeat(np.arange(4), 10), names="nc1_pinv")["nc1_pinv"]
    assert noise == pytest.approx((classes - 1) * 10 / dim, rel=0.15)
    means, sigma = 8 * simplex_etf(classes, dim), 0.5
    truth = sigma**2 * (classes - 1) / (64 * classes / (classes - 1))
    for count in (8, 64):
        labels = np.repeat(np.arange(classes), count)
        plain, corrected = [], []
        for _ in range(320 // count):
            x = means[labels] + sigma * rng.standard_normal((len(labels), dim))
            plain.append(collapse(x, labels, names="nc1_pinv")["nc1_pinv"])
            corrected.append(plain[-1] * measure.isotropic_correction(ClassMoments.of(x, labels)))
        assert np.mean(corrected) == pytest.approx(truth, rel=0.06)
        assert count > 8 or np.mean(plain) < 0.6 * truth
    assert math.isnan(measure.isotropic_correction(ClassMoments.of(x[:5], [0, 1, 2, 3, 3])))
