"""What is predicted of every layer of a head, against the formulas of the papers and against a plain forward pass."""

import math

import numpy as np
import pytest

import ufm
from ufm.problem import Problem
from ufm.references import REFERENCES
from ufm.theory import deep, deep_relu, layers

RELU = Problem(classes=10, dim=30, counts=50, loss="mse", lambda_w=0.004, lambda_h=0.004, depth=4, activation="relu")
UNEVEN = RELU.replace(lambda_w=(0.002, 0.003, 0.004, 0.005), lambda_h=5e-5)


def off_diagonal(matrix):
    return matrix[~np.eye(len(matrix), dtype=bool)]


def test_deep_neural_collapse_is_orthogonal_in_every_layer():
    head = ufm.layer_predictions(RELU, "dnc")
    assert [x.name for x in head.layers] == ["H_1", "H_2", "H_3", "H_4"]
    for x in head.layers:
        assert (x.rank, x.rank_centred, x.nc1) == (10, 9, 0.0)
        np.testing.assert_allclose(off_diagonal(x.cosines), 0, atol=1e-15)
        np.testing.assert_allclose(off_diagonal(x.cosines_centred), -1 / 9, rtol=1e-12)
        np.testing.assert_allclose(x.singular_values, x.singular_values[0], rtol=1e-12)
        assert x.effective_rank == pytest.approx(10, rel=1e-12)
    assert head.effective_rank == pytest.approx(10, rel=1e-9)


@pytest.mark.parametrize("m", [5, 6, 7])
def test_strongly_regular_graph_layers(m):
    classes = m * (m - 1) // 2
    head = ufm.layer_predictions(RELU.replace(classes=classes), "srg")
    assert [x.rank for x in head.layers] == [m, m, m, classes]
    middle, last = head.layers[1], head.layers[3]
    shared = (np.abs(deep_relu.incidence(m)[:, :, None] + deep_relu.incidence(m)[:, None, :]) == 2).sum(0)
    np.testing.assert_allclose(middle.cosines[shared == 1], 0.5, rtol=1e-12)
    np.testing.assert_allclose(middle.cosines[shared == 0], 0, atol=1e-12)
    profile = middle.singular_values[:m] / middle.singular_values[0] * math.sqrt(2 * (m - 1))
    np.testing.assert_allclose(profile, [math.sqrt(2 * (m - 1))] + [math.sqrt(m - 2)] * (m - 1), rtol=1e-12)
    pairs = math.comb(m - 2, 2)
    np.testing.assert_allclose(last.cosines[shared == 1], math.comb(m - 3, 2) / pairs, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(last.cosines[shared == 0], math.comb(m - 4, 2) / pairs, rtol=1e-12, atol=1e-15)


CASES = [
    (RELU, "dnc"),
    (RELU, "srg"),
    (UNEVEN, "srg"),
    (UNEVEN, "dnc"),
    (Problem(4, 6, (40, 30, 20, 10), loss="mse", lambda_w=(0.004, 0.006), lambda_h=0.005, depth=2), "gof"),
    (Problem(4, 6, 10, loss="mse", bias="free", lambda_w=(0.004, 0.006), lambda_h=0.005, depth=2), "etf"),
    (Problem(6, 6, 10, lambda_w=(0.004, 0.006), lambda_h=0.001, depth=2), "pairs"),
    (Problem(6, 6, 10, lambda_w=(0.004, 0.006), lambda_h=0.001, depth=2), "circle"),
    (Problem(6, 6, 10, lambda_w=(0.004, 0.006), lambda_h=0.001, depth=2), "dnc"),
]


@pytest.mark.parametrize(("problem", "structure"), CASES)
def test_balance_and_loss_of_the_weights_behind_the_layers(problem, structure):
    found, head = deep.structures(problem)[structure], ufm.layer_predictions(problem, structure)
    counts, energies = problem.count_vector[:, None], []
    for lam, weight in zip(problem.layer_lambdas, found.weights, strict=True):
        energies.append(lam * (weight**2).sum())
    energies.append(problem.lambda_h * (counts * found.means**2).sum())
    np.testing.assert_allclose(energies, head.energy, rtol=1e-9)
    z = head.output + found.bias
    if problem.loss == "mse":
        slope = z - np.eye(problem.classes)
        fit = 0.5 * (slope**2).sum(1)
    else:
        p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
        slope, fit = p - np.eye(problem.classes), -np.log(np.diag(p))
    share = counts / counts.sum()
    assert -(share * slope * head.output).sum() == pytest.approx(head.energy, rel=1e-8)  # -<Z, dfit/dZ>
    assert (share[:, 0] * fit).sum() + 0.5 * sum(energies) == pytest.approx(head.loss, rel=1e-12)
    assert head.weight_norms == pytest.approx([np.linalg.norm(w) for w in found.weights])


def test_above_the_threshold_only_shapes_are_left():
    head = ufm.layer_predictions(RELU.replace(lambda_w=0.4, lambda_h=0.4), "srg")
    assert not head.exists and "shapes only" in head.reason
    assert head.loss is head.energy is head.logit_gap is None
    same = ufm.layer_predictions(RELU, "srg")
    for x, y in zip(head.layers, same.layers, strict=True):
        np.testing.assert_allclose(x.cosines, y.cosines, atol=1e-12)


CE = Problem(6, 6, 10, lambda_w=(0.004, 0.006), lambda_h=0.001, depth=2)


@pytest.mark.parametrize(
    ("problem", "structure"),
    [(RELU, "dnc"), (RELU, "srg"), (RELU, "srg_flipped"), (UNEVEN, "srg"), (CE, "dnc"), (CE, "pairs"), (CE, "circle")],
)
def test_threshold_is_where_the_zero_solution_takes_over(problem, structure):
    head = ufm.layer_predictions(problem, structure)
    for factor, there in ((1 - 1e-9, True), (1 + 1e-9, False)):
        scaled = layers.scaled(problem, head.threshold * factor)
        found = deep.structures(scaled).get(structure)
        assert (found is not None and not found.zero) is there


EVERY = [
    *(RELU.replace(classes=k, depth=depth, dim=k + 3) for k in (2, 3, 6, 10, 15) for depth in (2, 3, 4, 5)),
    UNEVEN,
    CE,
    CE.replace(classes=10, dim=12),
    Problem(4, 3, (40, 30, 20, 10), loss="mse", lambda_w=(0.004, 0.006), lambda_h=0.005, depth=2),
    Problem(4, 6, (40, 30, 20, 10), loss="mse", bias="free", lambda_w=(0.004, 0.006), lambda_h=0.005, depth=2),
]


@pytest.mark.parametrize("problem", EVERY)
def test_the_weights_of_every_structure_attain_its_loss(problem):
    """The objective written out in numpy at the explicit weights, every structure of `ufm.structures`."""
    share = problem.count_vector / problem.total
    for q in ufm.structures(problem).values():
        state = q.means
        for i, weight in enumerate(q.weights):
            state = (np.maximum(state, 0) if i and problem.activation == "relu" else state) @ weight.T
        z = state + q.bias
        np.testing.assert_allclose(z, q.logits, atol=1e-12)
        if problem.loss == "mse":
            fit = 0.5 * share @ ((z - np.eye(problem.classes)) ** 2).sum(1)
        else:
            fit = share @ (np.log(np.exp(z).sum(1)) - np.diag(z))
        penalty = sum(lam * (w**2).sum() for lam, w in zip(problem.layer_lambdas, q.weights, strict=True))
        penalty += problem.lambda_h * (problem.count_vector[:, None] * q.means**2).sum()
        assert fit + 0.5 * penalty == pytest.approx(q.loss, rel=1e-12), q.name


@pytest.mark.parametrize("m", [4, 5, 6, 7])
@pytest.mark.parametrize("depth", [3, 4, 5])
def test_the_flipped_graph_solution_is_never_lower(m, depth):
    classes = m * (m - 1) // 2
    known = ufm.structures(RELU.replace(classes=classes, dim=classes, depth=depth, lambda_w=0.001, lambda_h=0.001))
    flipped, srg = known["srg_flipped"], known["srg"]
    assert flipped.loss == pytest.approx(srg.loss, rel=1e-13) if m == 4 else flipped.loss > srg.loss * 1.001
    head = ufm.layer_predictions(RELU.replace(classes=classes, dim=classes, depth=depth), "srg_flipped")
    assert [x.rank for x in head.layers] == [m] * (depth - 1) + [classes]
    np.testing.assert_allclose(off_diagonal(head.layers[-1].cosines), 0, atol=1e-12)


def test_the_jump_at_the_threshold():
    head = ufm.layer_predictions(RELU, "dnc")
    just_below = layers.scaled(RELU, head.threshold * (1 - 1e-12))
    below = ufm.layer_predictions(just_below, "dnc")
    assert below.logit_gap[0] == pytest.approx(head.statements["jump"].value, rel=1e-5)
    assert head.statements["jump"].value == 0.75


def test_every_statement_has_a_known_reference_and_a_status():
    for row in ufm.layer_predictions(RELU).statements.values():
        assert row.reference == "" or row.reference in REFERENCES
        assert row.status and row.text


@pytest.mark.parametrize("problem, structure", [(RELU.replace(loss="ce"), None), (RELU, "pairs")])
def test_unknown_requests_are_one_line(problem, structure):
    with pytest.raises(ValueError, match="known"):
        ufm.layer_predictions(problem, structure)
