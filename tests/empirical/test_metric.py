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
        assert state is parts[0].moments
        return [state, parts[1].moments]

    parts[0].dist_sync_fn, parts[0].distributed_available_fn = gather, lambda: True
    want = collapse(x, y)
    found = parts[0].compute()
    for name in GATHERED:
        assert found[name].item() == pytest.approx(want[name], rel=1e-9), name
    assert np.array_equal(parts[0].moments[:10].numpy(), np.bincount(y[:200], minlength=10))  # its own again


def test_the_features_precision_sets_the_digits(features):
    """The stored float32 values are measured in float64 as the reference: what is lost is lost in the batches' products."""
    x, y = features[0].float(), features[1]
    metric = empirical.NeuralCollapse(classes=10, dim=32)
    for rows in torch.arange(len(x)).split(37):
        metric.update(x[rows], y[rows])
    want = collapse(x.double(), y)
    found = metric.compute()
    for name in GATHERED:
        assert found[name].item() == pytest.approx(want[name], rel=1e-6), name


@pytest.mark.parametrize("as_dict", [False, True])
def test_states_merge(features, as_dict):
    x, y = features
    one, other = (empirical.NeuralCollapse(classes=10, dim=32) for _ in range(2))
    one.update(x[:100], y[:100])
    other.update(x[100:300], y[100:300])
    one.merge_state({"moments": other.moments} if as_dict else other)
    one.update(x[300:], y[300:])
    want = collapse(x, y)
    for name in GATHERED:
        assert one.compute()[name].item() == pytest.approx(want[name], rel=1e-9), name


def test_a_forward_pass_gives_the_batch_and_keeps_the_whole(features):
    x, y = features
    metric = empirical.NeuralCollapse(classes=10, dim=32)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(1))
    for rows in order.tensor_split(3):
        batch, alone = metric(x[rows], y[rows]), collapse(x[rows], y[rows], classes=10)
        assert batch["nc1_trace"].item() == pytest.approx(alone["nc1_trace"], rel=1e-9)
    want = collapse(x, y)
    for name in GATHERED:
        assert metric.compute()[name].item() == pytest.approx(want[name], rel=1e-9), name


def test_it_is_pickled_saved_and_put_into_a_collection(features):
    """What trainers do with metrics: copy them to workers, keep them in checkpoints, hold several in one."""
    import copy

    metric = empirical.NeuralCollapse(classes=10, dim=32, names=["vci"])
    metric.update(*features)
    metric.persistent(True)
    again = empirical.NeuralCollapse(classes=10, dim=32, names=["vci"])
    again.persistent(True)
    again.load_state_dict(metric.state_dict())
    want = metric.compute()["vci"].item()
    metric_copy = copy.deepcopy(metric)
    both = torchmetrics.MetricCollection({"a": metric_copy})
    assert again.moments.equal(metric.moments)
    assert both.compute()["vci"].item() == want


def test_only_the_named_measures(features):
    metric = empirical.NeuralCollapse(classes=10, dim=32, names=["nc1_pinv"])
    metric.update(*features)
    assert list(metric.compute()) == ["nc1_pinv"]
