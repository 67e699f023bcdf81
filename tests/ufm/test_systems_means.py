"""The batched geometry of class means against `ufm.measure.collapse`, cell by cell."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ufm import geometry
from ufm.measure import collapse
from ufm.systems import single_run
from ufm.systems.means import SCATTER, mean_angle, measure_means, regular, scalars


def slow(weight, means, bias, gram):
    return collapse(
        means, np.arange(len(means)), weight=weight, bias=bias, predicted_gram=gram, classes=len(means), names=single_run.MEASURED
    )


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 9), st.integers(1, 12), st.integers(0, 2**31), st.sampled_from([1e-6, 1.0, 1e5]), st.booleans())
def test_a_batch_gives_what_each_cell_gives(K, d, seed, scale, centred):
    rng = np.random.default_rng(seed)
    weight, means, bias = rng.normal(size=(3, K, d)), scale * rng.normal(size=(3, K, d)), rng.normal(size=(3, K))
    target = np.eye(K) - 1 / K if centred else np.diag(rng.uniform(1, 2, K))
    keep = np.flatnonzero(regular(weight, means))
    found = measure_means(weight[keep], means[keep], bias[keep], [target] * len(keep))
    for i, cell in zip(keep, found, strict=True):
        expected = slow(weight[i], means[i], bias[i], target)
        assert set(cell) == set(expected) == set(single_run.MEASURED)
        for name, value in expected.items():
            assert cell[name] == pytest.approx(value, rel=1e-9, abs=1e-12), name
        assert {name for name in cell if name in expected.flags} == set(SCATTER)


def test_near_the_simplex_no_digit_is_lost():
    rng = np.random.default_rng(0)
    means = np.stack([geometry.simplex_etf(6, 9) + size * rng.normal(size=(6, 9)) for size in (1e-12, 1e-9, 1e-6)])
    weight = 3 * means + 1e-8 * rng.normal(size=means.shape)
    found = measure_means(weight, means, np.zeros((3, 6)), [None] * 3)
    for i, cell in enumerate(found):
        expected = slow(weight[i], means[i], np.zeros(6), None)
        for name in ("nc2_etf_means", "nc2_equiangular_means", "nc3_cosine", "nc3_papyan", "nc2_equinorm_means"):
            assert cell[name] == pytest.approx(expected[name], rel=1e-3, abs=1e-15), name


def test_degenerate_cells_are_left_to_the_measures_themselves():
    ordinary = np.random.default_rng(1).normal(size=(4, 5))
    equal, dead, offset = ordinary.copy(), ordinary.copy(), ordinary + 1e15
    equal[1], dead[2] = equal[0], 0.0
    bad = np.where(np.eye(4, 5) > 0, np.nan, ordinary)
    means = np.stack([ordinary, equal, ordinary, offset, bad, np.zeros((4, 5))])
    weight = np.stack([ordinary, ordinary, dead, ordinary, ordinary, ordinary])
    assert regular(weight, means).tolist() == [True, False, False, False, False, False]


def test_angles_of_known_frames():
    for rows, angle in (
        (geometry.simplex_etf(5), np.degrees(np.arccos(-0.25))),
        (np.eye(4), 90.0),
        (geometry.polygon(3), 120.0),
        (np.array([[1.0, 0], [2.0, 0], [-1.0, 0]]), 120.0),  # 0, 180 and 180
    ):
        assert mean_angle(rows @ rows.T) == pytest.approx(angle, rel=1e-12)
    assert np.isnan(mean_angle(np.diag([1.0, 0.0])))


def test_scalars_by_hand():
    found = scalars(np.array([[3.0, 1.0], [0.0, 4.0]]), np.diag([1.0, 3.0]), np.diag([2.0, 5.0]), np.array([2.0, 1.0]), True)
    assert found == {"logit_gap": 3.0, "weight_norm": 2.0, "feature_norm": 3.0, "angle_weights": 90.0, "angle_means": 90.0}
    soft = scalars(np.ones((3, 2)), np.eye(2), None, np.ones(3), False)
    assert soft["weight_norm"] == pytest.approx(2**0.5) and np.isnan([soft["logit_gap"], soft["feature_norm"]]).all()
