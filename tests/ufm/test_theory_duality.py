"""Weak duality as an independent check: for a convex loss a dual point built from the predicted logits must reach the loss.

D = sum_t w_t (-loss_t^*(u_t)) - |U^T w|^2 / (2 lambda_b) <= f* whenever |diag(w / columns) U|_2 <= c. The predictions use
closed forms and scalar roots, never this bound.
"""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ufm

LAMBDA = st.floats(-9.0, -1.0).map(math.exp)
SLOW = settings(max_examples=40, deadline=None, derandomize=True)


def target_rows(p):
    q = np.eye(p.classes) if p.targets is None else np.array(p.targets)
    alpha = p.smoothing if p.loss == "smoothing" else 0.0
    return (1 - alpha) * q + alpha / p.classes * q.sum(1, keepdims=True)


def entropy(p):
    return -np.sum(np.where(p > 0, p * np.log(np.where(p > 0, p, 1.0)), 0.0), axis=1)


def lower_bound(p, z):
    """The dual value at the gradients of the loss at logits z (T, K), shrunk into the dual ball."""
    q, n = target_rows(p), p.count_vector
    weight = n / n.sum() * (1.0 if p.class_weights is None else np.array(p.class_weights))
    m = q.sum(1, keepdims=True)
    scale = np.ones(p.classes) if p.logit_scale is None else np.array(p.logit_scale)
    offset = np.zeros(p.classes) if p.logit_offset is None else np.array(p.logit_offset)
    z = scale * z + offset
    if p.loss == "mse":
        u = z - q
    else:
        e = np.exp(z - z.max(1, keepdims=True))
        u = scale * (m * e / e.sum(1, keepdims=True) - q)
    if p.bias == "free":
        u = u - (weight @ u) / weight.sum()  # a feasible dual point needs U^T w = 0; exact at the optimum
    L = u * (weight / np.sqrt(n))[:, None]
    if p.features == "nonnegative":
        sigma = math.sqrt(max(np.linalg.eigvalsh(np.maximum(L @ L.T, 0.0))[-1], 0.0))
    else:
        sigma = np.linalg.norm(L, 2)
    u = u * min(1.0, p.penalty / sigma) if sigma > 0 else u
    if p.loss == "mse":
        conjugate = -(u**2).sum(1) / 2 - (u * q).sum(1)
    else:
        prob = np.maximum((q + u / scale) / m, 0.0)
        conjugate = m[:, 0] * entropy(prob) + (m * prob - q) @ offset
    ridge = np.sum((u.T @ weight) ** 2) / (2 * p.lambda_b) if p.bias == "ridge" else 0.0
    return float(weight @ conjugate - ridge)


def check(p, rel=1e-9):
    predicted = ufm.predict(p)
    assert predicted.applies, predicted.reason
    bound = lower_bound(p, predicted.logits)
    assert bound == pytest.approx(predicted.loss, rel=rel, abs=1e-12)
    assert bound <= predicted.loss + 1e-11  # never above the predicted minimum
    return predicted


def check_factors(p, predicted):
    """The Grams and the logits are those of one (W, H), and its objective is the predicted loss."""
    n = p.count_vector
    cost = p.lambda_w / 2 * np.trace(predicted.gram_w) + p.lambda_h / 2 * (n @ np.diag(predicted.gram_h))
    row = predicted.logits
    q = target_rows(p)
    entropies = q.sum(1) * np.logaddexp.reduce(row, axis=1) - (q * row).sum(1)
    data = ((row - q) ** 2).sum(1) / 2 if p.loss == "mse" else entropies
    weight = n / n.sum() * (1.0 if p.class_weights is None else np.array(p.class_weights))
    total = weight @ data + cost + p.lambda_b / 2 * (predicted.bias @ predicted.bias)
    assert total == pytest.approx(predicted.loss, rel=1e-9, abs=1e-12)
    z = row - predicted.bias
    block = np.block([[predicted.gram_w, z.T], [z, predicted.gram_h]])  # [W; H] [W; H]^T
    eigenvalues = np.linalg.eigvalsh(block)
    assert eigenvalues[0] >= -1e-9 * max(1.0, eigenvalues[-1])
    assert np.sum(eigenvalues > 1e-7 * max(1.0, eigenvalues[-1])) <= p.dim


@SLOW
@given(
    K=st.integers(2, 12),
    n=st.integers(1, 60),
    lw=LAMBDA,
    lh=LAMBDA,
    loss=st.sampled_from(["ce", "smoothing", "mse"]),
    bias=st.sampled_from(["none", "free", "ridge"]),
    lambda_b=LAMBDA,
    alpha=st.floats(0.01, 0.9),
)
def test_balanced(K, n, lw, lh, loss, bias, lambda_b, alpha):
    fields = {"bias": bias, "lambda_b": lambda_b if bias == "ridge" else 0.0, "smoothing": alpha}
    p = ufm.Problem(K, K, n, loss=loss, lambda_w=lw, lambda_h=lh, **fields)
    check_factors(p, check(p))


@SLOW
@given(
    counts=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    sizes=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    lw=LAMBDA,
    lh=LAMBDA,
)
def test_two_sizes(counts, sizes, lw, lh):
    sequence = (counts[0],) * sizes[0] + (counts[1],) * sizes[1]
    p = ufm.Problem(sum(sizes), sum(sizes), sequence, lambda_w=lw, lambda_h=lh)
    check_factors(p, check(p, rel=1e-8))


@SLOW
@given(
    counts=st.lists(st.integers(1, 80), min_size=2, max_size=7),
    lw=LAMBDA,
    lh=LAMBDA,
    case=st.sampled_from([("mse", "none", "free"), ("mse", "free", "free"), ("ce", "none", "nonnegative")]),
    weighted=st.booleans(),
)
def test_any_counts(counts, lw, lh, case, weighted):
    loss, bias, features = case
    weights = tuple(np.linspace(0.5, 2.0, len(counts))) if weighted and bias == "none" else None
    fields = {"loss": loss, "bias": bias, "features": features, "class_weights": weights}
    p = ufm.Problem(len(counts), len(counts), tuple(counts), lambda_w=lw, lambda_h=lh, **fields)
    check_factors(p, check(p, rel=1e-8))


@SLOW
@given(K=st.integers(2, 8), n=st.integers(1, 40), lw=LAMBDA, lh=LAMBDA, lb=st.none() | LAMBDA)
def test_nonnegative_squared_error(K, n, lw, lh, lb):
    bias = {"bias": "free"} if lb is None else {"bias": "ridge", "lambda_b": lb}
    p = ufm.Problem(K, K, n, loss="mse", features="nonnegative", lambda_w=lw, lambda_h=lh, **bias)
    check_factors(p, check(p))


def test_nonnegative_squared_error_between_a_free_bias_and_none():
    p = ufm.Problem(4, 4, 6, loss="mse", features="nonnegative", lambda_w=0.01, lambda_h=0.001, bias="ridge", lambda_b=1.0)
    free, none = (ufm.predict(p.replace(bias=bias, lambda_b=0.0)).loss for bias in ("free", "none"))
    assert free < ufm.predict(p).loss < none
    assert ufm.predict(p.replace(lambda_b=1e-9)).loss == pytest.approx(free, rel=1e-6)
    assert ufm.predict(p.replace(lambda_b=1e9)).loss == pytest.approx(none, rel=1e-6)


@SLOW
@given(
    K=st.integers(2, 5),
    sizes=st.lists(st.tuples(st.integers(1, 3), st.integers(1, 9)), min_size=1, max_size=2, unique_by=lambda t: t[0]),
    lw=LAMBDA,
    lh=LAMBDA,
)
def test_multi_label(K, sizes, lw, lh):
    sets = [(S, n) for m, n in sizes if m < K for S in itertools.combinations(range(K), m)]
    if not sets:
        return
    rows = tuple(tuple(float(k in S) for k in range(K)) for S, _ in sets)
    p = ufm.Problem(K, K, tuple(n for _, n in sets), targets=rows, lambda_w=lw, lambda_h=lh)
    check_factors(p, check(p, rel=1e-8))


@SLOW
@given(row=st.lists(st.floats(0.0, 1.0), min_size=2, max_size=4), extra=st.integers(0, 5), lw=LAMBDA, lh=LAMBDA)
def test_soft_targets(row, extra, lw, lh):
    row = np.round(row, 3)
    if row.sum() == 0:
        return
    row = np.round(row / row.sum(), 6)
    rows = [(r, 2) for r in sorted(set(itertools.permutations(row.tolist())))]
    rows += [(tuple(r), extra) for r in np.eye(len(row)).tolist()] if extra else []
    p = ufm.Problem(len(row), len(row), tuple(n for _, n in rows), targets=tuple(r for r, _ in rows), lambda_w=lw, lambda_h=lh)
    check(p, rel=1e-7)


@SLOW
@given(
    seed=st.integers(0, 99),
    T=st.integers(1, 12),
    K=st.integers(1, 4),
    bias=st.sampled_from(["none", "free"]),
    lw=LAMBDA,
    lh=LAMBDA,
)
def test_regression(seed, T, K, bias, lw, lh):
    rng = np.random.default_rng(seed)
    targets, counts = rng.normal(size=(T, K)), tuple(rng.integers(1, 5, size=T).tolist())
    p = ufm.Problem(K, K, counts, loss="mse", bias=bias, targets=targets, lambda_w=lw, lambda_h=lh)
    check_factors(p, check(p))


@SLOW
@given(
    counts=st.lists(st.integers(1, 80), min_size=2, max_size=6),
    bias=st.sampled_from(["none", "free", "ridge"]),
    features=st.sampled_from(["free", "nonnegative"]),
    loss=st.sampled_from(["ce", "smoothing"]),
    adjusted=st.sampled_from(["", "scale", "offset", "both"]),
)
def test_zero_solution(counts, bias, features, loss, adjusted):
    """With a huge penalty the zero solution with its best bias is certified, offsets and scales included."""
    K = len(counts)
    fields = {"bias": bias, "lambda_b": 0.03 if bias == "ridge" else 0.0, "features": features, "loss": loss}
    fields["logit_scale"] = tuple(np.linspace(0.5, 1.5, K)) if adjusted in ("scale", "both") else None
    fields["logit_offset"] = tuple(np.linspace(-1.0, 2.0, K)) if adjusted in ("offset", "both") else None
    p = ufm.Problem(K, 1, tuple(counts), lambda_w=4.0, lambda_h=4.0, **fields)
    predicted = check(p)
    assert predicted.zero and predicted.name == "zero"
