"""Two-layer networks in the kernel regime: the Grams, the laws of the residual and the edges of the spectrum."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, linalg

from ufm.errors import RequestError
from ufm.prediction import DERIVED, EVIDENCE, STATED
from ufm.references import REFERENCES
from ufm.theory import shallow
from ufm.theory.shallow import Rates


def unit(n, d, seed=0):
    x = np.random.default_rng(seed).standard_normal((n, d))
    return x / np.linalg.norm(x, axis=1, keepdims=True)


# --- Grams ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("theta", [0.0, 1e-3, 0.7, math.pi / 2, 2.3, math.pi])
def test_arc_cosine_kernels_are_their_gaussian_integrals(theta):
    """In the plane of the two inputs w = (r cos p, r sin p): the angle is uniform and E r^2 = 2."""

    def both(p):
        return math.cos(p) > 0 and math.cos(p - theta) > 0

    edges = sorted({math.pi / 2, theta + math.pi / 2, theta - math.pi / 2, -math.pi / 2, -math.pi, math.pi})
    edges = [e for e in edges if -math.pi <= e <= math.pi]
    pairs = list(itertools.pairwise(edges))
    chance = sum((b - a) * both(0.5 * (a + b)) for a, b in pairs) / (2 * math.pi)
    mean = sum(integrate.quad(lambda p: math.cos(p) * math.cos(p - theta) * both(p), a, b)[0] for a, b in pairs) / math.pi
    assert shallow.order_0(np.array(theta)) == pytest.approx(chance, abs=1e-14)
    assert shallow.order_1(np.array(theta)) == pytest.approx(mean, abs=1e-13)


def test_the_gram_is_the_mean_of_many_neurons():
    rng = np.random.default_rng(1)
    x = rng.standard_normal((5, 3))
    z = rng.standard_normal((400_000, 3)) @ x.T
    active, after = (z > 0).astype(float), np.maximum(z, 0)
    hidden, output = x @ x.T * (active.T @ active) / len(z), after.T @ after / len(z)
    sizes = np.outer(*2 * [np.linalg.norm(x, axis=1)])
    for rates in (Rates(1, 1), Rates(1, 0), Rates(0, 1), Rates(1, 4)):
        away = shallow.gram(x, rates) - rates.hidden * hidden - rates.output * output
        # One draw has variance <= 5/4 of its size squared (E relu^4 = 3/2), a mean of 400 000 a deviation of 1.8e-3.
        assert np.abs(away / sizes).max() < 4 * 1.8e-3 * (rates.hidden + rates.output)
    assert np.abs((shallow.grams(x, Rates(1, 0))[1] - hidden) / sizes).max() > 0.05  # the wrong kernel is another one


@given(st.integers(0, 2**32 - 1), st.floats(0.1, 10.0), st.sampled_from(shallow.LAYERS))
@settings(max_examples=25, deadline=None)
def test_the_gram_is_homogeneous_and_knows_no_rotation(seed, scale, layers):
    x, rates = np.random.default_rng(seed).standard_normal((6, 4)), shallow.rates_of(layers)
    turned = x @ linalg.qr(np.random.default_rng(seed + 1).standard_normal((4, 4)))[0]
    np.testing.assert_allclose(shallow.gram(scale * turned, rates), scale**2 * shallow.gram(x, rates), rtol=1e-9, atol=1e-12)
    assert np.linalg.eigvalsh(shallow.gram(x, rates))[0] > -1e-12


def test_equal_inputs_have_a_zero_eigenvalue_and_near_ones_an_angle():
    x = unit(4, 6)
    assert abs(np.linalg.eigvalsh(shallow.gram(np.concatenate([x, x[:1]])))[0]) < 1e-15
    near = np.array([[1.0, 0.0], [math.cos(1e-9), math.sin(1e-9)]])
    assert shallow.angles(near)[0, 1] == pytest.approx(1e-9, rel=1e-6)
    assert shallow.angles(np.array([[1.0, 0.0], [-2.0, 0.0]]))[0, 1] == math.pi
    with pytest.raises(RequestError, match="an input is zero"):
        shallow.gram(np.zeros((2, 3)))


# --- the residual -------------------------------------------------------------------------------------------------------


def test_the_residual_is_a_matrix_exponential_and_a_matrix_power():
    kernel, start = shallow.gram(unit(8, 5)), np.random.default_rng(2).standard_normal(8)
    for t in (0.0, 0.3, 7.0):
        np.testing.assert_allclose(shallow.flow_residual(kernel, start, t), linalg.expm(-t * kernel) @ start, atol=1e-13)
    power = np.linalg.matrix_power(np.eye(8) - 0.1 * kernel, 37)
    np.testing.assert_allclose(shallow.descent_residual(kernel, start, 0.1, 37), power @ start, atol=1e-13)
    fine = shallow.descent_residual(kernel, start, 1e-5, 30_000)
    np.testing.assert_allclose(fine, shallow.flow_residual(kernel, start, 0.3), atol=1e-5)


# --- the edges of the spectrum --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dim", [3, 10, 500])
def test_harmonics_are_those_of_the_kernel(dim):
    """Their number by binomials; their coefficients give the kernel back."""
    b, sizes, rest = shallow.harmonics(dim, Rates(1, 1), 10**5)
    for j in range(2, len(b)):
        assert sizes[j] == pytest.approx(math.comb(j + dim - 1, j) - math.comb(j + dim - 3, j - 2), rel=1e-9)
    assert (b >= 0).all() and (b[3::2] == 0).all() and b.sum() + rest == pytest.approx(1.0)
    # E over the sphere of k(x.x')^2 is sum b_j^2 / N_j.
    weight = integrate.quad(lambda t: math.sin(t) ** (dim - 2), 0, math.pi, points=[math.pi / 2])[0]

    def squared(t):
        value = math.cos(t) * shallow.order_0(np.array(t)) + shallow.order_1(np.array(t))
        return float(value) ** 2 * math.sin(t) ** (dim - 2)

    mean = integrate.quad(squared, 0, math.pi, points=[math.pi / 2], limit=200)[0] / weight
    assert (b**2 / sizes).sum() == pytest.approx(mean, rel=1e-5)


def test_one_degree_alone_has_the_edges_of_marchenko_and_pastur():
    """The machinery on a kernel whose answer is known: c (1 - sqrt(n/N))^2 and c (1 + sqrt(n/N))^2, plus a constant."""
    b, ratio, norms = np.array([0.7]), np.array([0.3]), np.ones(1)

    def place(log):
        tau = 10.0**log
        return shallow._place(tau, shallow._transform(tau, b, ratio, 0.2), norms)

    assert shallow._highest(place, -8.0, 14.0)[1] == pytest.approx(0.2 + 0.7 * (1 - math.sqrt(0.3)) ** 2, rel=1e-6)
    found = shallow._upper(10**9, np.array([1e-12, 0.7]), np.array([1e9, 0.3]), 0.2, norms)
    assert found == pytest.approx(0.2 + 0.7 * (1 + math.sqrt(0.3)) ** 2, rel=1e-6)


def test_unlike_norms_are_a_population_of_their_own():
    """Two norms, one degree: the edges of a large random matrix D F F' D."""
    rng = np.random.default_rng(3)
    n, size, norms = 900, 3000, np.array([0.5, 1.5])
    scale = np.sqrt(np.repeat(norms, n // 2))
    found = np.linalg.eigvalsh(scale[:, None] * (lambda f: f @ f.T / size)(rng.standard_normal((n, size))) * scale)

    def place(log):
        tau = 10.0**log
        return shallow._place(tau, shallow._transform(tau, np.ones(1), np.array([n / size]), 0.0), norms)

    assert shallow._highest(place, -8.0, 14.0)[1] == pytest.approx(found[0], rel=0.05)
    assert shallow._upper(10**9, np.array([1e-12, 1.0]), np.array([1e9, n / size]), 0.0, norms) == pytest.approx(
        found[-1], rel=0.02
    )


@pytest.mark.parametrize("layers", shallow.LAYERS)
@pytest.mark.parametrize(("samples", "dim"), [(100, 20), (100, 50), (60, 200), (150, 30)])
def test_the_smallest_eigenvalue_of_random_inputs(layers, samples, dim):
    rates = shallow.rates_of(layers)
    found = [np.linalg.eigvalsh(shallow.gram(unit(samples, dim, seed), rates)) for seed in range(3)]
    predicted = shallow.edges(samples, dim, rates)
    assert np.mean([values[0] for values in found]) == pytest.approx(predicted.lowest, rel=0.06)
    assert np.mean([values[-1] for values in found]) == pytest.approx(predicted.highest, rel=0.15)
    if samples < dim:
        assert predicted.linear == pytest.approx(predicted.lowest, rel=0.05)
    else:
        assert predicted.linear > 1.25 * predicted.lowest


@pytest.mark.parametrize("layers", shallow.LAYERS)
@pytest.mark.parametrize(("samples", "dim"), [(20, 200_001), (40, 10**6)])
def test_with_far_more_dimensions_than_samples_inputs_are_orthogonal(samples, dim, layers):
    """The Gram is then k(0) everywhere and k(1) on the diagonal, to some sqrt(n/d)."""
    assert dim > shallow.ENOUGH * samples
    rates = shallow.rates_of(layers)
    apart, total = rates.output / (2 * math.pi), 0.5 * (rates.hidden + rates.output)
    found = shallow.edges(samples, dim, rates)
    assert found.lowest == pytest.approx(total - apart, rel=0.015)
    assert found.highest == pytest.approx(total + (samples - 1) * apart, rel=0.03) and not found.reason
    assert found.linear == pytest.approx(found.lowest, rel=1e-3)


def test_gaussian_inputs_have_a_lower_edge_than_the_sphere():
    found = []
    for seed in range(5):
        x = np.random.default_rng(seed).standard_normal((150, 50)) / math.sqrt(50)
        found.append(np.linalg.eigvalsh(shallow.gram(x))[0])
    gaussian = shallow.edges(150, 50, Rates(), "gaussian").lowest
    assert np.mean(found) == pytest.approx(gaussian, rel=0.1) and gaussian < 0.9 * shallow.edges(150, 50).lowest


@pytest.mark.parametrize(
    ("samples", "dim", "data"), [(19, 20, "sphere"), (40, 9, "sphere"), (401, 20, "sphere"), (40, 19, "gaussian")]
)
def test_where_the_formula_is_not_known_to_hold_it_says_why(samples, dim, data):
    found = shallow.edges(samples, dim, Rates(), data)
    assert found.reason and math.isnan(found.lowest) and math.isnan(found.highest)


def test_statements_say_how_far_they_are_proven():
    for one in shallow.STATEMENTS.values():
        assert one.status in (STATED, DERIVED, EVIDENCE) and (one.reference == "derived" or one.reference in REFERENCES)
    with pytest.raises(RequestError, match="use one of both, hidden, output"):
        shallow.rates_of("all")
    with pytest.raises(RequestError, match="use one of sphere, gaussian"):
        shallow.edges(20, 20, Rates(), "cube")
