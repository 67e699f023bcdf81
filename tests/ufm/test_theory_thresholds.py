"""Regime changes: straddled 2 % either side, continuous across (or jumping where the theory says so), named correctly."""

import itertools
import math

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

import ufm
from ufm.errors import RequestError
from ufm.theory import imbalance
from ufm.theory.contrast import Contrast


def at_key(key, K, n, **fields):
    """A balanced problem with K sqrt(n lambda_w lambda_h) = key."""
    lam = key / (K * math.sqrt(n))
    return ufm.Problem(K, K, n, lambda_w=lam, lambda_h=lam, **fields)


def across(build, critical):
    below, above = ufm.predict(build(0.98 * critical)), ufm.predict(build(1.02 * critical))
    assert not below.zero and above.zero
    assert below.loss < above.loss
    for found, number in ((below, 0.98), (above, 1.02)):
        assert min(v for k, v in found.thresholds.items() if k != "mean mode") == pytest.approx(number, rel=1e-6)
    assert np.linalg.norm(below.gram_w) > 1e-6 and not above.gram_w.any()
    return below, above


@pytest.mark.parametrize(
    ("fields", "critical"),
    [
        ({}, 1.0),
        ({"loss": "smoothing", "smoothing": 0.3}, 0.7),
        ({"loss": "mse"}, 1.0),
        ({"loss": "mse", "bias": "free"}, 1.0),
        ({"loss": "mse", "bias": "free", "features": "nonnegative"}, math.sqrt(3 / 4)),
        ({"features": "nonnegative"}, math.sqrt(3 / 4)),
    ],
)
def test_zero_threshold(fields, critical):
    below, above = across(lambda key: at_key(key, 4, 6, **fields), critical)
    touch = ufm.predict(at_key(critical * (1 - 1e-7), 4, 6, **fields))
    assert touch.loss == pytest.approx(above.loss, rel=1e-9)  # continuous
    if not fields:
        assert np.linalg.norm(below.logits) == pytest.approx(math.log(4 / 0.98 - 3) * math.sqrt(3), rel=1e-12)
        assert np.linalg.norm(ufm.predict(at_key(0.98, 10, 6)).logits) == pytest.approx(0.6, abs=0.1)


def test_straddle_figures_of_cross_entropy():
    """log(1/s - K + 1) at Ks = .98 for K = 3."""
    found = ufm.predict(at_key(0.98, 3, 10))
    assert np.linalg.norm(found.logits) == pytest.approx(math.sqrt(2) * math.log(1 + 3 * (1 / 0.98 - 1)), rel=1e-12)


def test_mean_mode_of_the_ridge_bias():
    def found(lambda_b):
        return ufm.predict(at_key(0.2, 5, 8, loss="mse", bias="ridge", lambda_b=lambda_b))

    edge = 0.2 / (1 - 0.2)  # lambda_b <= Ks / (1 - Ks): exact ETF
    below, above = found(0.98 * edge), found(1.02 * edge)
    assert below.name == "etf" and below.details["beta"] == 0 and below.thresholds["mean mode"] > 1
    assert above.name == "etf+mean" and above.details["beta"] > 0 and above.thresholds["mean mode"] < 1
    assert found(edge * (1 + 1e-9)).loss == pytest.approx(found(edge * (1 - 1e-9)).loss, rel=1e-8)
    none, free = (ufm.predict(at_key(0.2, 5, 8, loss="mse", bias=b)).loss for b in ("none", "free"))
    assert found(1e9).loss == pytest.approx(none, rel=1e-8) and found(1e-9).loss == pytest.approx(free, rel=1e-8)
    assert free < below.loss < above.loss < none


@pytest.mark.parametrize("case", [(10, 1, 1.130), (10, 2, 1.224), (10, 3, 1.289), (10, 5, 1.346), (3, 5, 0.493)])
def test_focal_slope_at_zero(case):
    K, gamma, expected = case
    slope = float(Contrast("focal", K, gamma=gamma).slope(0.0)) * K / (K - 1)
    assert slope == pytest.approx(expected, abs=6e-4)


@pytest.mark.parametrize(
    ("gamma", "critical", "slope"), [(1, 1.049, 1.036), (2, 1.116, 1.071), (3, 1.175, 1.106), (5, 1.274, 1.172)]
)
def test_focal_first_order_jump(gamma, critical, slope):
    """K = 100: the optimum jumps from zero to a finite gap, above the continuous-onset value."""
    phi = Contrast("focal", 100, gamma=gamma)
    price, gap = phi.critical_price()
    assert price * 100 / 99 == pytest.approx(critical, abs=6e-4)
    assert float(phi.slope(0.0)) * 100 / 99 == pytest.approx(slope, abs=6e-4)
    assert gap > 1
    below, above = across(lambda key: at_key(key, 100, 5, loss="focal", focal_gamma=float(gamma)), price * 100 / 99)
    assert below.details["a"] > 1 and above.details["a"] == 0
    edge = ufm.predict(at_key(price * 100 / 99 * (1 - 1e-7), 100, 5, loss="focal", focal_gamma=float(gamma)))
    assert edge.details["a"] == pytest.approx(gap, rel=1e-3) and edge.loss == pytest.approx(above.loss, rel=1e-6)


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("key", [0.01, 0.3, 0.9, 1.05])
def test_focal_gap_is_the_global_minimum(gamma, key):
    K = 20
    s = key / K

    def value(a):
        p = 1 / (1 + (K - 1) * math.exp(-a))
        return -((1 - p) ** gamma) * math.log(p) + s * (K - 1) * a

    grid = np.linspace(0, 40, 8001)
    best = min(grid, key=value)
    found = minimize_scalar(value, bounds=(max(0, best - 0.01), best + 0.01), method="bounded", options={"xatol": 1e-12})
    predicted = ufm.predict(at_key(key, K, 7, loss="focal", focal_gamma=gamma))
    assert predicted.loss == pytest.approx(min(found.fun, value(0.0)), rel=1e-12)
    assert predicted.loss <= min(map(value, grid)) + 1e-14


def test_focal_status_names_the_range_of_the_bound():
    """The pairing bound needs s < 1/(K-1); beyond it focal loss is evidence only. Cross-entropy is proven throughout."""
    from ufm.prediction import DERIVED, EVIDENCE

    assert ufm.predict(at_key(0.3, 10, 6, loss="focal", focal_gamma=3.0)).status == DERIVED
    assert ufm.predict(at_key(1.15, 10, 6, loss="focal", focal_gamma=3.0)).status == EVIDENCE
    assert ufm.predict(at_key(1.3, 10, 6, loss="focal", focal_gamma=5.0)).status == EVIDENCE
    assert ufm.predict(at_key(0.6, 3, 6, loss="focal", focal_gamma=5.0)).status == DERIVED  # zero, supported by its tangent
    assert ufm.predict(at_key(1.3, 10, 6)).status == DERIVED


@pytest.mark.parametrize("loss", ["mse", "ce"])
def test_minority_collapse_number(loss):
    """n_B <= N^2 lambda_w lambda_h: the same number for the block differences (CE) and the dead classes (MSE)."""
    counts = (30,) * 3 + (5,) * 3
    for factor in (0.98, 1.02):
        lam = math.sqrt(factor) * math.sqrt(5) / sum(counts)
        found = ufm.predict(ufm.Problem(6, 6, counts, loss=loss, lambda_w=lam * 2, lambda_h=lam / 2))
        spread = np.abs(found.gram_w[3, 3] - found.gram_w[3, 4])
        assert (spread < 1e-12) == (factor > 1)
        assert found.details["dead_classes"] == ([3, 4, 5] if factor > 1 else [])
        name = "minority collapse" if loss == "ce" else "class 4"
        assert found.thresholds[name] == pytest.approx(math.sqrt(factor), rel=1e-12)


def test_block_losses_are_continuous():
    """Through all four regimes (zero, majority only, between, everything) as the penalty falls."""
    counts = (50,) * 3 + (2,) * 3
    N, names = sum(counts), []
    edges = [math.sqrt(50), 0.0, math.sqrt(2)]
    cn = np.linspace(1.2, 8.0, 69)
    between = [
        ufm.predict(ufm.Problem(6, 6, counts, lambda_w=x / N, lambda_h=x / N)).thresholds["between groups"] - 1 for x in cn
    ]
    i = int(np.flatnonzero(np.diff(np.sign(between)))[0])
    edges[1] = np.interp(0.0, between[i : i + 2], cn[i : i + 2])
    assert edges[2] < edges[1] < edges[0]
    for edge in (edges[0], edges[2]):
        low, high = (
            ufm.predict(ufm.Problem(6, 6, counts, lambda_w=x / N, lambda_h=x / N)) for x in (edge * 0.9999999, edge * 1.0000001)
        )
        assert low.loss == pytest.approx(high.loss, rel=1e-6)
        np.testing.assert_allclose(low.logits, high.logits, atol=1e-5)
    for x in (8.0, (edges[0] + edges[1]) / 2, (edges[1] + edges[2]) / 2, 1.0):
        found = ufm.predict(ufm.Problem(6, 6, counts, lambda_w=x / N, lambda_h=x / N))
        a, shift = found.details["a"], found.details["x"]
        names.append((found.zero, a[0] > 0, shift[0] > 0, a[1] > 0))
    assert names == [
        (True, False, False, False),
        (False, True, False, False),
        (False, True, True, False),
        (False, True, True, True),
    ]


@pytest.mark.parametrize(
    ("majority", "minority", "energy", "expected"),
    [(3, 3, 1, 2.36371114), (3, 7, 1, 4.13590837), (5, 5, 2, 7.75769568), (3, 7, 0.5, 1.47452441), (2, 2, 4, 2963.3716)],
)
def test_layer_peeled_collapse_ratio(majority, minority, energy, expected):
    assert imbalance.minority_collapse_ratio(majority, minority, energy) == pytest.approx(expected, rel=3e-9)


def test_layer_peeled_ball_straddles_its_ratio():
    ratio = imbalance.minority_collapse_ratio(3, 3, 1.0)
    for factor in (0.97, 1.03):
        counts = (round(1000 * ratio * factor),) * 3 + (1000,) * 3
        found = ufm.predict(ufm.Problem(6, 6, counts, constraint="ball"))
        spread = np.linalg.norm(found.gram_w[3] - found.gram_w[4])
        assert (spread < 1e-9) == (factor > 1) and found.details["minority_collapse"] == (factor > 1)
        assert found.details["minority_collapse_ratio"] == pytest.approx(ratio)
        assert np.trace(found.gram_w) / 6 == pytest.approx(1.0, rel=1e-12)  # both budgets are used up
        assert np.trace(found.gram_h) / 6 == pytest.approx(1.0, rel=1e-12)


@pytest.mark.parametrize("bad", [(0, 3, 1.0), (3, 1, 1.0), (3, 3, 0.0), (3, 3, math.nan), (3, 3, 500.0)])
def test_layer_peeled_collapse_ratio_refuses(bad):
    with pytest.raises(RequestError, match="energy"):
        imbalance.minority_collapse_ratio(*bad)


@pytest.mark.parametrize("features", ["free", "nonnegative"])
def test_dead_classes_are_named(features):
    counts = (60, 3, 30, 4)
    N, K = sum(counts), 4
    loss = "mse" if features == "free" else "ce"
    edge = 4.0 if features == "free" else 4.0 * (K - 1) / K  # N^2 lambda_w lambda_h at which a class of 4 dies
    for factor, dead in ((0.98, [1]), (1.02, [1, 3])):
        lam = math.sqrt(edge * factor) / N
        found = ufm.predict(ufm.Problem(4, 4, counts, loss=loss, features=features, lambda_w=lam, lambda_h=lam))
        assert found.details["dead_classes"] == dead
        assert sorted(k for k in range(4) if found.thresholds[f"class {k}"] >= 1) == dead
        assert not found.logits[dead].any() and not found.gram_h[dead].any()


def test_squared_error_direction_dies():
    Y = np.diag([3.0, 2.0, 1.0])
    for factor in (0.98, 1.02):
        lam = factor * 2.0 / 3
        found = ufm.predict(ufm.Problem(3, 3, 1, loss="mse", targets=Y, lambda_w=lam, lambda_h=lam))
        assert np.count_nonzero(found.singular_values) == (2 if factor < 1 else 1)
        assert found.thresholds["direction 1"] == pytest.approx(factor)


def test_large_and_tiny_penalties():
    """Nothing overflows over 60 decades, and the loss rises with the penalty."""
    values = []
    for power in range(-60, 10, 5):
        lam = 10.0**power
        found = ufm.predict(ufm.Problem(5, 5, (40, 40, 4, 4, 4), lambda_w=lam, lambda_h=lam))
        assert found.applies and np.isfinite(found.logits).all()
        values.append(found.loss)
    assert all(a <= b for a, b in itertools.pairwise(values)) and values[-1] == pytest.approx(math.log(5))
    for loss in ("ce", "focal", "smoothing", "mse"):
        for lam in (1e-150, 1e-60, 1e-8, 1e6):
            assert math.isfinite(ufm.predict(ufm.Problem(4, 4, 3, loss=loss, lambda_w=lam, lambda_h=lam)).loss)


def test_tiny_losses_keep_their_digits():
    """At lambda = 1e-14 the loss is 1e-11: two equal groups of the block form, soft targets and structures agree with the ETF."""
    lam = 1e-14
    p = ufm.Problem(4, 4, 50, lambda_w=lam, lambda_h=lam)
    expected = ufm.predict(p).loss
    assert 0 < expected < 1e-10
    blocks = imbalance.solve_blocks(*[imbalance.Group(2, 0.25, math.sqrt(50))] * 2, lam)
    z = imbalance._logits(np.array([True, True, False, False]), blocks)
    off = np.exp(z - np.diag(z)[:, None]) - np.eye(4)
    assert np.log1p(off.sum(1)).mean() + lam * blocks.nuclear == pytest.approx(expected, rel=1e-10)
    assert ufm.structures(p)["seli"].loss == pytest.approx(expected, rel=1e-10)
    soft = p.replace(targets=tuple(map(tuple, np.eye(4))), class_weights=None)
    from ufm.theory import symmetric

    assert symmetric.soft_targets(soft).loss == pytest.approx(expected, rel=1e-10)


def test_squared_error_between_the_frames():
    """Non-negative features with a free bias cost more than free features with it, less than non-negative ones without."""
    p = ufm.Problem(4, 8, 6, loss="mse", bias="free", features="nonnegative", lambda_w=0.01, lambda_h=0.001)
    found = ufm.predict(p).loss
    assert found == pytest.approx(0.0263528, abs=5e-8)
    assert ufm.predict(p.replace(features="free")).loss < found < ufm.predict(p.replace(bias="none")).loss
