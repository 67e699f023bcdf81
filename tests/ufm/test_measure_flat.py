"""Features that fill a flat of fewer dimensions than they have (a linear layer before them): VCI must not read their rounding."""

import numpy as np
import pytest
import scipy.linalg

from ufm.measure import collapse


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-9), (np.float32, 1e-5)])
def test_vci_of_features_in_a_flat(dtype, tolerance):
    draw = np.random.default_rng(0)
    y = np.repeat(np.arange(4), [40, 30, 25, 15])
    inner = draw.standard_normal((4, 6))[y] + 0.8 * draw.standard_normal((len(y), 6))
    means = np.stack([inner[y == k].mean(0) for k in range(4)])
    within = (inner - means[y]).T @ (inner - means[y]) / len(y)
    between = (means[y] - inner.mean(0)).T @ (means[y] - inner.mean(0)) / len(y)
    want = 1 - np.trace(scipy.linalg.solve(within + between, between)) / 3
    for seed in range(4):
        flat = inner @ np.random.default_rng(seed).standard_normal((6, 9)) + 1
        order = np.random.default_rng(seed).permutation(len(y))
        found = collapse(flat[order].astype(dtype), y[order])["vci"]
        assert found == pytest.approx(want, rel=tolerance)
