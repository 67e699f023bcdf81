"""Moments: any chunking, order and merge gives the same; nothing is lost to an offset."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ufm.errors import RequestError
from ufm.measure import ClassMoments, collapse, from_moments
from ufm.measure.blocks import _bag_sums, _one_hot_sums, class_sums


def sample(seed, samples=60, classes=4, dim=5, offset=0.0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, samples)
    return rng.standard_normal((classes, dim))[labels] + 0.3 * rng.standard_normal((samples, dim)) + offset, labels


def assert_same(first, second, rtol=1e-12, atol=1e-13):
    assert np.array_equal(first.counts, second.counts)
    for name in ("means", "traces", "scatter"):
        one, two = getattr(first, name), getattr(second, name)
        assert np.allclose(one, two, rtol=rtol, atol=atol), (name, np.abs(one - two).max())


def test_definitions_are_numpys():
    x, y = sample(0)
    moments = ClassMoments.of(x, y, scatter=True)
    for k in range(4):
        assert moments.counts[k] == (y == k).sum()
        assert np.allclose(moments.means[k], x[y == k].mean(0), rtol=1e-14)
        assert moments.traces[k] == pytest.approx(np.trace(np.cov(x[y == k].T, ddof=0)), rel=1e-13)
    pooled = sum((y == k).sum() * np.cov(x[y == k].T, ddof=0) for k in range(4))
    assert np.allclose(moments.scatter, pooled, rtol=1e-12, atol=1e-13)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.lists(st.integers(1, 59), max_size=6), st.booleans())
def test_any_chunks_in_any_order(seed, cuts, offset):
    x, y = sample(seed, offset=100.0 * offset)
    whole = ClassMoments.of(x, y, classes=4, scatter=True)
    order = np.random.default_rng(seed).permutation(60)
    parts = [part for part in np.split(order, sorted(set(cuts))) if len(part)]
    streamed = ClassMoments.empty(4, 5, scatter=True)
    for part in parts:
        streamed.update(x[part], y[part])
    assert_same(whole, streamed)
    pieces = [ClassMoments.of(x[part], y[part], classes=4, scatter=True) for part in parts]
    while len(pieces) > 1:  # as a tree, the way workers are joined
        pieces = [a.merge(b) for a, b in zip(pieces[::2], pieces[1::2], strict=False)] + ([pieces[-1]] if len(pieces) % 2 else [])
    assert_same(whole, pieces[0])


def test_update_returns_self_and_merge_changes_nothing():
    x, y = sample(1)
    first, second = ClassMoments.of(x[:30], y[:30], classes=4), ClassMoments.of(x[30:], y[30:], classes=4)
    before = first.means.copy()
    joined = first.merge(second)
    assert np.array_equal(first.means, before)
    assert first.update(x[30:], y[30:]) is first
    assert np.allclose(first.means, joined.means, rtol=1e-14)


def test_merged_moments_give_every_measure():
    x, y = sample(2, samples=200, dim=12)
    halves = [ClassMoments.of(x[i::2], y[i::2], classes=4, scatter=True) for i in range(2)]
    whole, merged = (from_moments(m) for m in (ClassMoments.of(x, y, scatter=True), halves[0].merge(halves[1])))
    for name, value in whole.items():
        assert merged[name] == pytest.approx(value, rel=1e-10, nan_ok=True)


@pytest.mark.parametrize("offset", [0.0, 1e3, 1e6])
def test_an_offset_costs_no_digits(offset):
    """In float32 E[h^2] - mu^2 at offset 1e6 is wrong by the size of the offset squared."""
    x, y = sample(3, samples=2000, offset=offset)
    x = x.astype(np.float32)
    narrow, wide = ClassMoments.of(x, y), ClassMoments.of(x.astype(np.float64), y)
    assert np.allclose(narrow.traces, wide.traces, rtol=1e-6)
    assert np.allclose(narrow.means - offset, wide.means - offset, rtol=1e-5, atol=1e-7)
    assert narrow.eps == np.finfo(np.float32).eps


def test_large_blocks_and_small_ones():
    rng = np.random.default_rng(4)
    labels = rng.integers(0, 3, 9000)
    x = rng.standard_normal((9000, 70)) + labels[:, None]
    whole = ClassMoments.of(x, labels)
    parts = ClassMoments.empty(3, 70)
    for start in range(0, 9000, 37):
        parts.update(x[start : start + 37], labels[start : start + 37])
    assert np.allclose(whole.means, parts.means, rtol=1e-12, atol=1e-13)
    assert np.allclose(whole.traces, parts.traces, rtol=1e-12)


def test_class_sums_two_ways():
    """The product with one-hot labels (accelerators) and the runs of one class (CPU) are the same sums, empty classes too."""
    rng = np.random.default_rng(7)
    labels = torch.from_numpy(rng.choice([0, 2, 3], 20000, p=[0.01, 0.6, 0.39]))
    for dtype, rtol in ((torch.float64, 1e-13), (torch.float32, 1e-5)):
        values = torch.from_numpy(rng.standard_normal((20000, 3)) + 2).to(dtype)
        wanted = np.array([values.double().numpy()[labels.numpy() == k].sum(0) for k in range(5)])
        for way in (_bag_sums, _one_hot_sums, class_sums):
            assert np.allclose(way(values, labels, 5).numpy(), wanted, rtol=rtol)
            assert torch.equal(way(values, labels, 5), way(values, labels, 5))


def test_not_contiguous_and_read_only():
    x, y = sample(5)
    wanted = ClassMoments.of(x, y)
    frozen = x.copy()
    frozen.flags.writeable = False
    for same in (
        np.asfortranarray(x),
        np.repeat(x, 2, axis=0)[::2],
        frozen,
        torch.from_numpy(x).T.contiguous().T,
        x[:, ::-1][:, ::-1],
    ):
        assert np.allclose(ClassMoments.of(same, y).means, wanted.means, rtol=1e-14)
    graph = torch.from_numpy(x).requires_grad_()
    assert np.array_equal(ClassMoments.of(graph, y).means, wanted.means)


def test_bad_requests():
    x, y = sample(6)
    moments = ClassMoments.of(x, y)
    cases = [
        (lambda: ClassMoments.empty(1, 5), "classes is 1"),
        (lambda: ClassMoments.empty(3, 0), "dim is 0"),
        (lambda: ClassMoments.empty(3, 5000, scatter=True), "d must be <= 4096"),
        (lambda: ClassMoments.empty(4, 5).update(x, y + 1), "label 4 is out of range"),
        (lambda: moments.merge(ClassMoments.empty(5, 5)), "do not merge"),
        (lambda: moments.merge(ClassMoments.of(x, y, scatter=True)), "with and without scatter"),
        (lambda: ClassMoments.of(np.full((2, 2), np.nan), [0, 1]), "features[0, 0] is nan"),
        (lambda: ClassMoments.of(np.full((9, 2), 3e38, dtype=np.float32), [0] * 9), "overflow"),
    ]
    for call, words in cases:
        with pytest.raises(RequestError) as caught:
            call()
        assert words in str(caught.value)


@pytest.mark.parametrize(("size", "dtype"), [(1e300, np.float64), (1e160, np.float64), (1e30, np.float32)])
def test_features_whose_powers_overflow_are_refused_or_right(size, dtype):
    rng = np.random.default_rng(0)
    features, labels = rng.normal(size=(40, 3)), np.arange(40) % 4
    expected = collapse(features, labels)["nc1_pinv"]
    try:
        value = collapse((features * size).astype(dtype), labels)["nc1_pinv"]
    except RequestError as error:
        assert "overflow" in str(error) and "\n" not in str(error)
    else:
        assert value == pytest.approx(expected, rel=1e-4) and size < 1e75
