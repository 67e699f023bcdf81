"""Seeded feature sets on which every measure has a known value (see measures_public.json).

    python make_features.py                # prints the fingerprint of each set
    from make_features import make, NAMES  # make(name, stream=0) -> dict of float64 arrays

One PCG64 stream per set and no LAPACK call in the generator, so the numbers do not depend on the BLAS build.
"""

import numpy as np

NAMES = [
    "balanced",
    "imbalanced",
    "collapsed",
    "exact",
    "near_etf",
    "offset",
    "ill_conditioned",
    "few_dims",
    "one_sample",
    "missing",
    "confused",
]
CLASSES = 10


def cosine_basis(dim):
    """(dim, dim) orthonormal DCT-II rows, in closed form."""
    i, j = np.arange(dim)[:, None], np.arange(dim)[None, :]
    basis = np.sqrt(2.0 / dim) * np.cos(np.pi * (j + 0.5) * i / dim)
    basis[0] /= np.sqrt(2.0)
    return basis


def simplex_etf(classes, dim):
    """(classes, dim) unit rows with pairwise cosine -1/(classes-1); needs dim >= classes."""
    centred = np.eye(classes) - 1.0 / classes
    return np.sqrt(classes / (classes - 1.0)) * centred @ cosine_basis(dim)[:classes]


def make(name, stream=0):
    """features (N,d), labels (N,), weight (K,d), bias (K,), test_features, test_labels; float64, int64."""
    rng = np.random.Generator(np.random.PCG64(20240529 + NAMES.index(name) + 1000 * stream))
    dim = 6 if name == "few_dims" else 32
    counts, noise, offset, scale = np.full(CLASSES, 50), 0.5, 0.0, np.ones(dim)
    means = rng.standard_normal((CLASSES, dim))
    if name == "imbalanced":
        counts = np.array([200, 150, 100, 80, 60, 40, 30, 20, 10, 5])
    elif name == "collapsed":
        means, noise = simplex_etf(CLASSES, dim), 1e-6
    elif name == "exact":
        means, noise = simplex_etf(CLASSES, dim), 0.0
    elif name == "near_etf":
        means, noise = simplex_etf(CLASSES, dim) + 0.02 * means, 0.1
    elif name == "offset":
        noise, offset = 0.1, 1e3
    elif name == "ill_conditioned":
        noise, offset, scale = 0.1, 1e3, 10.0 ** np.linspace(-2, 2, dim)
    elif name == "confused":
        noise = 1.4
    elif name == "one_sample":
        counts = counts.copy()
        counts[3] = 1
    elif name == "missing":
        counts = counts.copy()
        counts[7] = 0
    labels = np.repeat(np.arange(CLASSES), counts)
    features = (means[labels] + noise * rng.standard_normal((len(labels), dim)) + offset) * scale
    order = rng.permutation(len(labels))
    features, labels = features[order], labels[order]
    test_labels = np.repeat(np.arange(CLASSES), 20)
    test_noise = max(noise, 1e-3) * 1.5 * rng.standard_normal((len(test_labels), dim))
    test_features = (means[test_labels] + test_noise + offset) * scale
    if name in ("collapsed", "exact", "near_etf"):
        weight, bias = 2.0 * means, np.zeros(CLASSES)
    else:
        weight = 0.7 * (means - means.mean(0)) / scale + 0.1 * rng.standard_normal((CLASSES, dim)) / scale
        bias = 0.1 * rng.standard_normal(CLASSES) - weight @ (offset * scale * np.ones(dim))
    return dict(features=features, labels=labels, weight=weight, bias=bias, test_features=test_features, test_labels=test_labels)


if __name__ == "__main__":
    for name in NAMES:
        x = make(name)["features"]
        print(f"{name:16s} {x.shape} sum {x.sum():.12g} sumsq {(x * x).sum():.12g} first {x.flat[0]:.15g}")
