"""Softmax codes found by the solver from random starts: margins and angles of the known codes, without being told them."""

import math

import numpy as np
import pytest

import ufm
from ufm.geometry import one_vs_rest_margins


def found(K, d, temperature, seed=0):
    solution = ufm.solve(ufm.Problem(K, d, 1, constraint="sphere", temperature=temperature), seed=seed)
    assert solution.status.ok
    return solution.W.numpy()


@pytest.mark.parametrize(
    ("K", "d", "seed", "margin"),
    [
        (5, 2, 0, 1 - math.cos(2 * math.pi / 5)),
        (7, 2, 0, 1 - math.cos(2 * math.pi / 7)),
        (6, 3, 0, 1.0),
        (12, 3, 0, 1 - 1 / math.sqrt(5)),
        (8, 4, 0, 1.0),
        (24, 4, 1, 0.5),  # two starts in five end at the 24-cell; the others at margins up to .477
    ],
)
def test_symmetric_codes_are_found(K, d, seed, margin):
    weight = found(K, d, 0.02 if K == 24 else 0.01, seed)
    np.testing.assert_allclose(one_vs_rest_margins(weight), margin, atol=1e-6)
    cosines = weight @ weight.T - 9 * np.eye(K)
    assert cosines.max() == pytest.approx(1 - margin, abs=1e-6)


@pytest.mark.parametrize(
    ("K", "cosine"),
    [
        (7, 1 - 4 / math.sqrt(3) * math.cos(math.radians(70))),
        (8, (math.sqrt(8) - 1) / 7),
        (9, 1 / 3),
        (10, 0.4043943252162505),
        (11, 1 / math.sqrt(5)),
    ],
)
def test_tammes_angles_are_the_limit_of_cold_spheres(K, cosine):
    """The largest cosine approaches its limit linearly in the temperature: two of them give it to second order."""
    largest = [float((w @ w.T - 9 * np.eye(K)).max()) for w in (found(K, 3, tau) for tau in (8e-4, 4e-4))]
    assert 2 * largest[1] - largest[0] == pytest.approx(cosine, abs=1e-6)


@pytest.mark.parametrize(("K", "d"), [(5, 3), pytest.param(7, 4, marks=pytest.mark.torture)])
def test_where_a_continuum_of_codes_is_optimal_one_of_them_is_found(K, d):
    """For d + 2 <= K < 2d no code is the only one: margin 1 and 90 degrees are what all of them share (Rankin)."""
    weight = found(K, d, 1e-4)
    assert one_vs_rest_margins(weight).min() == pytest.approx(1.0, abs=1e-6)
    assert (weight @ weight.T - 9 * np.eye(K)).max() == pytest.approx(0.0, abs=1e-6)


def test_a_cold_loss_below_the_smallest_number_still_has_a_geometry():
    """At temperature 1e-5 the loss is exp(-69000); what is minimised is its logarithm."""
    weight = found(5, 2, 1e-5)
    np.testing.assert_allclose(one_vs_rest_margins(weight), 1 - math.cos(2 * math.pi / 5), atol=1e-9)
