"""Layer-peeled balls: both budgets used up to the digit, the multiplier of the dual, and no crash in 500 random corners."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ufm

ENERGY = st.floats(-3.0, 4.0).map(lambda x: 10**x)


@settings(max_examples=120, deadline=None, derandomize=True)
@given(
    sizes=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    counts=st.tuples(st.integers(1, 5000), st.integers(1, 5000)),
    energy_w=ENERGY,
    energy_h=ENERGY,
    features=st.sampled_from(["free", "nonnegative"]),
)
def test_cross_entropy_uses_both_budgets(sizes, counts, energy_w, energy_h, features):
    K = sum(sizes)
    sequence = (counts[0],) * sizes[0] + (counts[1],) * sizes[1]
    p = ufm.Problem(K, K, sequence, constraint="ball", energy_w=energy_w, energy_h=energy_h, features=features)
    found = ufm.predict(p)
    if not found.applies:  # only where the softmax underflows
        assert energy_w * energy_h > 1e3 and "budget" in found.reason
        return
    assert np.trace(found.gram_w) / K == pytest.approx(energy_w, rel=1e-8)
    assert np.trace(found.gram_h) / K == pytest.approx(energy_h, rel=1e-8)
    assert 0 <= found.loss <= math.log(K) * (1 + 1e-12)


def test_equal_groups_are_continuous_with_the_simplex():
    """n_A -> n_B: the block solution tends to the balanced one."""
    ball = {"constraint": "ball", "energy_w": 1.3}
    balanced = ufm.predict(ufm.Problem(4, 4, 10**6, **ball))
    near = ufm.predict(ufm.Problem(4, 4, (10**6, 10**6, 10**6 + 1, 10**6 + 1), **ball))
    assert near.loss == pytest.approx(balanced.loss, rel=1e-9)
    np.testing.assert_allclose(near.logits, balanced.logits, atol=1e-5)
    ridge = {"lambda_w": 1e-5, "lambda_h": 1e-6}
    balanced = ufm.predict(ufm.Problem(4, 4, 1000, **ridge))
    near = ufm.predict(ufm.Problem(4, 4, (1000, 1000, 1001, 1001), **ridge))
    assert near.loss == pytest.approx(balanced.loss, rel=3e-3)
    np.testing.assert_allclose(near.logits, balanced.logits, atol=1e-2)


@pytest.mark.parametrize("features", ["free", "nonnegative"])
def test_a_budget_beyond_float64_is_refused(features):
    found = ufm.predict(ufm.Problem(4, 4, (9, 9, 4, 4), constraint="ball", energy_w=1e7, features=features))
    assert not found.applies and "budget" in found.reason


def test_a_collapse_ratio_beyond_float64_is_left_out():
    found = ufm.predict(ufm.Problem(3, 3, (9, 4, 4), constraint="ball", energy_w=1e4))
    assert found.applies and found.details["minority_collapse_ratio"] is None


def test_the_block_multiplier_is_the_slope_of_the_loss():
    """d loss / d budget = -multiplier (envelope theorem), by central differences."""
    p = ufm.Problem(5, 5, (40, 40, 6, 6, 6), constraint="ball", energy_w=1.5)
    step = 1e-5

    def at(radius):
        return ufm.predict(p.replace(energy_w=(radius / 5) ** 2))

    radius = 5 * math.sqrt(1.5)
    slope = (at(radius + step).loss - at(radius - step).loss) / (2 * step)
    assert -slope == pytest.approx(at(radius).details["multiplier"], rel=1e-7)


@pytest.mark.parametrize("energy", [0.02, 0.3, 0.9, 3.0])
def test_squared_error_fills_like_water(energy):
    counts = (30, 12, 5, 1)
    p = ufm.Problem(4, 4, counts, loss="mse", constraint="ball", energy_w=energy, energy_h=energy)
    found = ufm.predict(p)
    z, share = np.diag(found.logits), np.array(counts) / 48
    assert z.sum() == pytest.approx(min(4 * energy, 4.0))
    slopes = share * (1 - z)  # equal on the live classes, no larger on the dead
    live = z > 0
    np.testing.assert_allclose(slopes[live], found.details["multiplier"], atol=1e-12)
    assert np.all(slopes[~live] <= found.details["multiplier"] + 1e-12)
    assert found.unique == (energy <= 1)


def test_onset_of_a_mode_to_rounding():
    """A bracket that shrinks to rounding where a group's differences vanish."""
    energies = {"energy_w": 2.8568951498587896, "energy_h": 0.0022158064819381334}
    found = ufm.predict(ufm.Problem(8, 8, (7,) * 5 + (14,) * 3, constraint="ball", **energies))
    assert np.trace(found.gram_w) / 8 == pytest.approx(energies["energy_w"], rel=1e-9)
