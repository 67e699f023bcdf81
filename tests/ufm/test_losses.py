"""Losses against PyTorch, direct formulas, finite differences and their own duality."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from ufm import Problem
from ufm.errors import RequestError
from ufm.losses import LOSSES
from ufm.losses.protocol import Targets
from ufm.reduce import loss_of

KINDS = ["ce", "mse", "smoothing", "focal", "soft", "multilabel"]


def targets_of(rows, gamma=2.0, diagonal=False):
    q = torch.as_tensor(np.asarray(rows, dtype=float).T[None].copy())
    hard = bool((q.sum(1) == q.amax(1)).all())
    mass = q.sum(1, keepdim=True)
    return Targets(q, mass, q.argmax(1, keepdim=True), diagonal, hard, torch.tensor([[gamma]], dtype=q.dtype))


def case(kind, K=4, seed=0):
    """A loss, its targets (T = K where labels are hard) and random logits (1, K, T)."""
    rng = np.random.default_rng(seed)
    name = {"soft": "ce", "multilabel": "ce"}.get(kind, kind)
    loss, problem = loss_of(name), Problem(K, 3, 5, loss=name)
    if kind == "soft":
        rows = rng.dirichlet(np.ones(K), 5)
    elif kind == "multilabel":
        rows = np.array([[1, 1, 0, 0], [0, 1, 1, 1], [0, 0, 0, 1.0]])[:, :K]
    else:
        rows = loss.rows(problem)
    targets = targets_of(rows, diagonal=kind not in ("soft", "multilabel"))
    return loss, targets, torch.as_tensor(2 * rng.normal(size=targets.rows.shape))


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_is_the_derivative_of_the_value(kind):
    loss, targets, z = case(kind)
    numeric = torch.zeros_like(z)
    for k in range(z.shape[1]):
        step = torch.zeros_like(z)
        step[:, k] = 1e-5
        numeric[:, k] = (loss.value(z + step, targets) - loss.value(z - step, targets)) / 2e-5
    assert torch.allclose(loss.gradient(z.clone(), targets), numeric, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_hessian_product_is_the_derivative_of_the_gradient(kind):
    loss, targets, z = case(kind)
    v = torch.as_tensor(np.random.default_rng(1).normal(size=z.shape))
    numeric = (loss.gradient(z + 1e-5 * v, targets) - loss.gradient(z - 1e-5 * v, targets)) / 2e-5
    assert torch.allclose(loss.hessian(z, targets)(v), numeric, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "focal"])
@pytest.mark.parametrize("theta", [0.0, 0.3, 1.0])
def test_dual_is_fenchels(kind, theta):
    """-loss*(u) <= loss(z) - u.z for every z, with equality where u is the gradient."""
    loss, targets, z = case(kind)
    u = theta * loss.gradient(z.clone(), targets)
    dual = loss.dual(u, targets)
    for seed in range(20):
        other = 3 * torch.as_tensor(np.random.default_rng(seed).normal(size=z.shape))
        assert bool((dual <= loss.value(other, targets) - (u * other).sum(1) + 1e-12).all())
    if theta == 1.0:
        assert torch.allclose(dual, loss.value(z, targets) - (u * z).sum(1), atol=1e-12)


def test_cross_entropies_are_pytorchs():
    for kind in ("ce", "soft", "smoothing"):
        loss, targets, z = case(kind)
        expected = F.cross_entropy(z[0].T, targets.rows[0].T, reduction="none")
        assert torch.allclose(loss.value(z, targets)[0], expected, atol=1e-13)
    _, _, z = case("ce")
    smooth = loss_of("smoothing")
    rows = smooth.rows(Problem(4, 3, 5, loss="smoothing", smoothing=0.3))
    expected = F.cross_entropy(z[0].T, torch.arange(4), reduction="none", label_smoothing=0.3)
    assert torch.allclose(smooth.value(z, targets_of(rows))[0], expected, atol=1e-13)


def test_squared_error_is_half_the_sum_over_outputs():
    loss, targets, z = case("mse")
    assert torch.allclose(loss.value(z, targets)[0], 0.5 * F.mse_loss(z[0].T, torch.eye(4).double(), reduction="none").sum(1))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 3.0])
def test_focal_by_its_definition(gamma):
    loss, _, z = case("focal")
    targets = targets_of(np.eye(4), gamma, diagonal=True)
    p = torch.softmax(z[0], 0).diagonal()
    assert torch.allclose(loss.value(z, targets)[0], -((1 - p) ** gamma) * p.log(), rtol=1e-12)


def test_multilabel_is_the_sum_over_labels():
    loss, targets, z = case("multilabel")
    log_p = torch.log_softmax(z[0], 0)
    assert torch.allclose(loss.value(z, targets)[0], -(targets.rows[0] * log_p).sum(0))


def test_contrastive_by_its_definition():
    problem = Problem(3, 4, (2, 3, 4), loss="supcon", constraint="sphere", temperature=0.5)
    features = F.normalize(torch.as_tensor(np.random.default_rng(0).normal(size=(9, 4))), dim=1)
    labels, total = [0, 0, 1, 1, 1, 2, 2, 2, 2], 0.0
    for i in range(9):
        others = [j for j in range(9) if j != i]
        log_sum = torch.logsumexp(torch.stack([features[i] @ features[j] / 0.5 for j in others]), 0)
        positives = [j for j in others if labels[j] == labels[i]]
        total += sum(float(log_sum - features[i] @ features[j] / 0.5) for j in positives) / len(positives) / 9
    loss = loss_of("supcon")
    z = (features @ features.T / 0.5 - 1e30 * torch.eye(9))[None]
    assert float(loss.value(z, targets_of(loss.rows(problem))).mean()) == pytest.approx(total, rel=1e-13)


@pytest.mark.parametrize("gap", [10.0, 40.0, 200.0, 600.0])
def test_residuals_keep_their_digits(gap):
    """At a gap of 40, p_k - 1 is 0 in float64; the residual must still be -sum of the others."""
    z = gap * torch.eye(3, dtype=torch.float64)[None]
    targets = targets_of(np.eye(3), diagonal=True)
    g = loss_of("ce").gradient(z.clone(), targets)[0]
    expected = np.exp(-gap) / (1 + 2 * np.exp(-gap))
    assert float(g[1, 0]) == pytest.approx(expected, rel=1e-13)
    assert float(g[0, 0]) == pytest.approx(-2 * expected, rel=1e-13)
    assert float(loss_of("ce").value(z, targets)[0, 0]) == pytest.approx(np.log1p(2 * np.exp(-gap)), rel=1e-13)


@given(st.integers(2, 6), st.floats(0, 700), st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_cross_entropy_is_finite_and_its_residual_sums_to_zero(K, size, seed):
    z = torch.as_tensor(size * np.random.default_rng(seed).normal(size=(1, K, K)))
    targets, loss = targets_of(np.eye(K), diagonal=True), loss_of("ce")
    g = loss.gradient(z.clone(), targets)
    assert bool(torch.isfinite(loss.value(z, targets)).all()) and bool(torch.isfinite(g).all())
    assert float(g.sum(1).abs().max()) < 1e-15
    assert float((loss.value(z, targets) - loss.value(z + 3.0, targets)).abs().max()) <= 1e-12 * (1 + size)


def test_class_weights_of_soft_targets_are_pytorchs():
    rows = np.random.default_rng(3).dirichlet(np.ones(3), 4)
    problem = Problem(3, 3, 1, loss="ce", targets=rows, class_weights=(1.0, 2.0, 0.5))
    loss, z = loss_of("ce"), torch.as_tensor(np.random.default_rng(4).normal(size=(1, 3, 4)))
    weights = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)
    expected = F.cross_entropy(z[0].T, torch.as_tensor(rows), weight=weights, reduction="none")
    assert torch.allclose(loss.value(z, targets_of(loss.rows(problem)))[0], expected, atol=1e-13)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"loss": "ce", "targets": ((0.5, -0.5),), "counts": 1}, "must be >= 0"),
        ({"loss": "focal", "targets": ((1.0, 0.0),), "counts": 1}, "hard labels only"),
        ({"loss": "mse", "targets": ((1.0, 0.0),), "counts": 1, "class_weights": (1.0, 2.0)}, "no meaning"),
        ({"loss": "supcon"}, "unit features"),
        ({"loss": "supcon", "constraint": "sphere", "counts": (1, 3)}, "no positive pair"),
        ({"loss": "supcon", "constraint": "sphere", "counts": 100000}, "at most 4000"),
        ({"loss": "ce", "classes": 1, "targets": ((1.0,),), "counts": 1}, "at least 2 outputs"),
    ],
)
def test_unsuitable_targets_are_refused_in_one_line(changes, words):
    problem = Problem(**{"classes": 2, "dim": 2, "counts": 5, **changes})
    with pytest.raises(RequestError, match=words) as error:
        loss_of(problem.loss).rows(problem)
    assert "\n" not in str(error.value)


def test_the_table_names_every_loss_of_a_problem():
    from ufm.problem import LOSSES as NAMES

    assert set(LOSSES) == set(NAMES)
    for name in LOSSES:
        assert loss_of(name).convex is (name != "focal")
