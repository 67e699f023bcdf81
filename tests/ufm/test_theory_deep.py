"""Deep structures: golden values, explicit weights, and independent optimisations of the full problem."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from ufm.prediction import DERIVED, EVIDENCE
from ufm.problem import Problem
from ufm.theory import deep, deep_linear, deep_relu, deep_scalar

ROWS = json.loads((Path(__file__).parents[1] / "golden" / "deep_public.json").read_text())


def rows(model):
    return [pytest.param(r["params"], r["predicted"], id=r["id"]) for r in ROWS if r["model"] == model]


@pytest.mark.parametrize(("params", "expected"), rows("deep_linear_mse"))
def test_linear_mse_golden(params, expected):
    problem = Problem(
        classes=len(params["counts"]),
        dim=params["width"],
        counts=params["counts"],
        loss="mse",
        lambda_w=params["lam_W"],
        lambda_h=params["lam_H"],
        bias="free" if params["bias"] else "none",
        depth=params["L"],
    )
    found = deep_linear.predict_mse(problem)
    assert found.loss == pytest.approx(expected["loss"], rel=1e-10)  # the file prints 12 digits
    np.testing.assert_allclose(found.singular_values, expected["logit_singular_values_sqrt_n_weighted"], atol=1e-10)
    np.testing.assert_allclose(np.sort(found.details["shrink"])[::-1], np.sort(expected["shrink_x"])[::-1], atol=1e-10)
    assert found.details["rank"] == expected["rank"]
    if expected["bias"]:
        np.testing.assert_allclose(found.bias, expected["bias"], rtol=1e-12)


@pytest.mark.parametrize(("params", "expected"), rows("deep_linear_ce"))
def test_linear_ce_golden(params, expected):
    price = params["lam_H"] * params["lam_W"] ** params["L"]
    found = deep_linear.ce_structures(params["K"], params["L"], params["n"], price)
    scale, loss = found[expected["structure"]]
    assert loss == pytest.approx(expected["loss"], rel=1e-10)
    # The file's scales come from comparing values, good to the square root of that; L = 1 has a closed form (below).
    assert scale == pytest.approx(expected["scale"], rel=1e-7)
    for name, loss in expected["other_structures"].items():
        assert found[name][1] == pytest.approx(loss, rel=1e-10)


def test_linear_ce_scale_at_depth_one_is_the_closed_form():
    classes, n, lam = 6, 5, 1 / 1024
    scale = deep_linear.ce_structures(classes, 1, n, lam * lam)["dnc"][0]
    assert scale == pytest.approx(math.log(1 / (lam * math.sqrt(n)) - classes + 1), rel=1e-13)


@pytest.mark.parametrize(("params", "expected"), rows("relu_dufm_mse"))
def test_relu_golden_and_explicit_weights(params, expected):
    make = {"dnc": deep_relu.dnc, "srg": deep_relu.srg}[expected["structure"]]
    lambdas = tuple(params["lam_W"])
    found = make(params["K"], params["L"], 20, params["n"], lambdas, params["lam_H"])
    assert found.loss == pytest.approx(expected["loss"], rel=1e-10)
    attained = deep_relu.regularised_loss(found.weights, found.means, lambdas, params["lam_H"], params["n"])
    assert attained == pytest.approx(found.loss, rel=1e-12)
    balanced = [lam * np.sum(w**2) for lam, w in zip(lambdas, found.weights, strict=True)]
    np.testing.assert_allclose(balanced, params["lam_H"] * params["n"] * np.sum(found.means**2), rtol=1e-12)
    digits = 1e-9
    if "output_scale" in expected:
        assert found.details["output_scale"] == pytest.approx(expected["output_scale"], rel=1e-10)
    else:  # the file's scale comes from comparing values: half the digits (its own layers are balanced to 5e-9 only)
        digits = 1e-8
        np.testing.assert_allclose(found.details["output_eigenvalues"], expected["output_eigenvalues"], rtol=1e-6)
        assert found.details["feature_scale"] == pytest.approx(expected["feature_scale_c"], rel=1e-6)
    states = [found.means, *deep_relu.forward(found.weights, found.means)]
    for layer, state in zip(expected["layers"], states, strict=False):
        post = state if "rank" in layer else np.maximum(state, 0)
        rank = np.linalg.matrix_rank(post, tol=1e-9)
        assert rank == layer.get("rank", layer.get("rank_post"))
        norms = np.linalg.norm(post, axis=0)
        np.testing.assert_allclose(norms, layer.get("mean_norm", layer.get("mean_norm_post")), rtol=digits)


@pytest.mark.parametrize(("params", "expected"), rows("threshold"))
def test_threshold_golden(params, expected):
    depth, classes, n = params["L"], params["K"], params["n"]
    price = (deep_scalar.critical(depth) / classes) ** (depth + 1) / n
    assert price == pytest.approx(expected["product_threshold"], rel=1e-10)
    assert (depth - 1) / depth == pytest.approx(expected["jump_output_scale"], rel=1e-10)
    assert deep_scalar.minimise(deep_scalar.critical(depth) * (1 + 1e-9), depth).x == 0
    assert deep_scalar.minimise(deep_scalar.critical(depth) * (1 - 1e-9), depth).x == pytest.approx((depth - 1) / depth, rel=1e-6)


@pytest.mark.parametrize(("params", "expected"), rows("structure_constant"))
def test_structure_constants_golden(params, expected):
    for (m, depth), ratio in zip(params["cells"], expected["C_srg_over_C_dnc"], strict=True):
        classes = m * (m - 1) // 2
        assert deep_relu.srg_constants(m).cost(m, depth) / classes ** (depth + 1) == pytest.approx(ratio, rel=1e-10)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 8), st.floats(0.0, 1.5))
def test_scalar_problem_against_brute_force(depth, g):
    found = deep_scalar.minimise(g, depth)
    grid = np.concatenate([[0.0], np.geomspace(1e-9, 1.2, 20001)])
    brute = (0.5 * (grid - 1) ** 2 + 0.5 * (depth + 1) * g * grid ** (2 / (depth + 1))).min()
    assert found.value <= brute + 1e-12
    assert brute - found.value < 1e-6
    if found.local_x is None:
        assert g >= deep_scalar.spinodal(depth) * (1 - 1e-12)


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 6), st.floats(0.02, 0.9))
def test_effective_rank_inverts_the_loss(depth, fraction):
    g = fraction * deep_scalar.critical(depth)
    classes, n = 7, 20
    price = (g / classes) ** (depth + 1) / n
    loss = deep_scalar.minimise(g, depth).value
    assert deep_scalar.effective_rank(loss, depth, n, price) == pytest.approx(classes, rel=1e-8)


@pytest.mark.parametrize("bias", ["none", "free"])
@pytest.mark.parametrize("counts", [(8, 8, 8), (20, 9, 4)])
def test_linear_mse_is_what_an_optimiser_finds(bias, counts):
    """scipy on the full problem (every sample its own feature), best of a few starts."""
    depth, dim, lam = 2, 4, 4e-3
    problem = Problem(
        classes=3, dim=dim, counts=counts, loss="mse", lambda_w=(lam, 2 * lam), lambda_h=lam, bias=bias, depth=depth
    )
    expected = deep_linear.predict_mse(problem)
    labels = np.repeat(np.arange(3), counts)
    targets, total = np.eye(3)[:, labels], sum(counts)
    sizes = [dim * dim, 3 * dim, dim * total, 3]

    def value_and_gradient(x):
        w1, w2, h, b = np.split(x, np.cumsum(sizes)[:-1])
        w1, w2, h = w1.reshape(dim, dim), w2.reshape(3, dim), h.reshape(dim, total)
        residual = (w2 @ w1 @ h + (b[:, None] if bias == "free" else 0) - targets) / total
        value = 0.5 * total * (residual**2).sum() + 0.5 * lam * ((w1**2).sum() + 2 * (w2**2).sum() + (h**2).sum())
        parts = [w2.T @ residual @ h.T + lam * w1, residual @ (w1 @ h).T + 2 * lam * w2, (w2 @ w1).T @ residual + lam * h]
        parts.append(residual.sum(1) * (bias == "free"))
        return value, np.concatenate([p.ravel() for p in parts])

    rng = np.random.default_rng(0)
    starts = [rng.standard_normal(sum(sizes)) * 0.5 for _ in range(4)]
    options = {"maxiter": 4000, "ftol": 1e-16, "gtol": 1e-10}
    best = min(
        (minimize(value_and_gradient, x, jac=True, method="L-BFGS-B", options=options) for x in starts), key=lambda r: r.fun
    )
    assert best.fun == pytest.approx(expected.loss, rel=1e-7)
    w2 = np.split(best.x, np.cumsum(sizes)[:-1])[1].reshape(3, dim)
    np.testing.assert_allclose(w2 @ w2.T, expected.gram_w, atol=2e-4 * np.abs(expected.gram_w).max())


def test_srg_is_stationary_in_the_last_layer_and_balanced():
    """At a stationary point lambda_l |W_l|^2 is the same for every layer of a bias-free head (norm balance)."""
    lambdas, lambda_h, n = (0.004, 0.003, 0.004, 0.005), 0.002, 50
    found = deep_relu.srg(10, 4, 12, n, lambdas, lambda_h)
    energies = [lam * (w**2).sum() for lam, w in zip(lambdas, found.weights, strict=True)] + [
        n * lambda_h * (found.means**2).sum()
    ]
    assert math.isclose(min(energies), max(energies), rel_tol=1e-8)


@pytest.mark.parametrize("make", [deep_relu.srg, deep_relu.dnc])
def test_structures_refuse_what_they_are_not_for(make):
    with pytest.raises(ValueError, match="needs"):
        make(10, 3, 4, 50, (0.004,) * 3, 0.004)


def relu(classes, dim, depth, lam):
    return Problem(classes, dim, 50, loss="mse", lambda_w=lam, lambda_h=lam, depth=depth, activation="relu")


@pytest.mark.parametrize(("classes", "dim", "depth"), [(2, 1, 3), (4, 2, 3), (10, 9, 3)])
def test_narrow_relu_layers_have_no_prediction(classes, dim, depth):
    """Below K neurons the optimum is unknown: zero is listed with its loss, and a point below it is at hand."""
    problem = relu(classes, dim, depth, 1e-3)
    assert list(deep.structures(problem)) == ["zero"] and not deep.structures(problem)["zero"].zero
    found = deep.predict(problem)
    assert not found.applies and f"width {dim} < {classes}" in found.reason
    # One neuron per layer, balanced, which fires for the first class alone and gives it the output 0.9.
    size = (50 * 0.9**2) ** (0.5 / (depth + 1))
    weights = tuple(np.zeros((dim if layer < depth - 1 else classes, dim)) for layer in range(depth))
    means = np.zeros((dim, classes))
    for w in weights:
        w[0, 0] = size
    means[0, 0] = size / math.sqrt(50)
    loss = deep_relu.regularised_loss(weights, means, problem.layer_lambdas, 1e-3, 50.0)
    assert loss == pytest.approx(0.5 * (0.01 + classes - 1) / classes + 0.5e-3 * (depth + 1) * size**2) and loss < 0.495


@pytest.mark.parametrize(("classes", "depth"), [(3, 4), (4, 5)])
def test_above_the_threshold_of_collapse_zero_is_lowest_known_and_not_optimal(classes, depth):
    g = deep_scalar.critical(depth) / classes
    lam = 1.003 * g / 50 ** (1 / (depth + 1))
    problem = relu(classes, 30, depth, lam)
    assert list(deep.structures(problem)) == ["zero"]
    found = deep.predict(problem)
    assert found.name == "zero" and found.loss == 0.5
    assert found.status == EVIDENCE and not found.zero and deep.LOWEST_KNOWN in found.assumptions


def test_where_zero_is_proven_optimal():
    """Two ReLU classes, linear layers with MSE, one layer; deep linear cross-entropy is evidence."""
    heavy = relu(2, 5, 3, 0.3)
    for problem in (heavy, heavy.replace(activation="linear", classes=4, counts=50), heavy.replace(depth=1, lambda_w=0.5)):
        found = deep.predict(problem)
        assert found.name == "zero" and found.zero and found.status == DERIVED
    linear = heavy.replace(activation="linear", loss="ce")
    found = deep.predict(linear)
    assert found.name == "zero" and not found.zero and found.status == EVIDENCE
    assert deep.predict(relu(2, 5, 3, 0.004)).status == DERIVED and deep.predict(relu(3, 5, 3, 0.004)).status == EVIDENCE
