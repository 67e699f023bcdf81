"""The torchmetrics adapter against the measures of all features at once."""

import pytest

torchmetrics = pytest.importorskip("torchmetrics", reason="torchmetrics (extra 'metrics') is not installed")

import numpy as np  # noqa: E402
import torch  # noqa: E402
from make_features import make  # noqa: E402

import empirical  # noqa: E402
from ufm.measure import collapse  # noqa: E402

GATHERED = ("nc1_pinv", "nc1_pinv_sample", "nc1_trace", "cdnv", "vci", "nc2_etf_means", "rank_effective")


@pytest.fixture
def features():
    made = make("imbalanced")
    return torch.from_numpy(made["features"]), torch.from_numpy(made["labels"])


def test_batches_give_the_measures_of_the_whole(features):
    x, y = features
    metric = empirical.NeuralCollapse(classes=10, dim=32)
    for rows in torch.randperm(len(x), generator=torch.Generator().manual_seed(0)).split(37):
        metric.update(x[rows], y[rows])
    found, want = metric.compute(), collapse(x, y)
    for name in GATHERED:
        assert found[name].item() == pytest.approx(want[name], rel=1e-9), name
    assert not {"ncc_error", "nc4_disagreement"} & set(found)
    metric.reset()
    metric.update(x, y)
    assert metric.compute()["nc1_pinv"].item() == pytest.approx(want["nc1_pinv"], rel=1e-9)


def test_two_processes_are_one(features):
    x, y = features
    parts = [empirical.NeuralCollapse(classes=10, dim=32) for _ in range(2)]
    parts[0].update(x[:200], y[:200])
    parts[1].update(x[200:], y[200:])

    def gather(state, group):
        """What torch.distributed would bring to the first process."""
        (name,) = (n for n in ("counts", "means", "traces", "scatter", "eps") if getattr(parts[0], n) is state)
        return [state, getattr(parts[1], name)]

    parts[0].dist_sync_fn, parts[0].distributed_available_fn = gather, lambda: True
    want = collapse(x, y)
    found = parts[0].compute()
    for name in GATHERED:
        assert found[name].item() == pytest.approx(want[name], rel=1e-9), name
    assert np.array_equal(parts[0].counts.numpy(), np.bincount(y[:200], minlength=10))  # its own again


def test_only_the_named_measures(features):
    metric = empirical.NeuralCollapse(classes=10, dim=32, names=["nc1_pinv"])
    metric.update(*features)
    assert list(metric.compute()) == ["nc1_pinv"]
