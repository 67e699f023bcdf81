"""Transfer probes against scikit-learn, and the two facts that make them worth having."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid
from torch import nn

from empirical import distributed, probe
from empirical.data.split import Split
from empirical.features import plan_layers
from empirical.probe import PROBES, finetune, probe_features
from ufm.errors import RequestError
from ufm.seeds import stream

CLASSES = 5


def clusters(samples, seed, dim=12, noise=1.0, offset=0.0):
    draw = np.random.default_rng(seed)
    centres = np.random.default_rng(0).standard_normal((CLASSES, dim))
    y = np.arange(samples) % CLASSES
    x = centres[y] + noise * draw.standard_normal((samples, dim)) + offset
    return torch.from_numpy(x), torch.from_numpy(y)


@pytest.fixture
def data():
    return clusters(300, 1), clusters(200, 2)


def decisions(name, data):
    train, test = data
    with torch.no_grad():
        return [g.numpy() for g in getattr(probe, name)(train, test[0], CLASSES, stream(0, "probe"))]


def accuracies(data, **options):
    return {(r["metric"], r["split"]): r["value"] for r in probe_features(*data, classes=CLASSES, **options)}


def test_nearest_means_and_neighbours(data):
    (x, y), (xt, _) = data
    centroid = NearestCentroid().fit(x.numpy(), y.numpy())
    found = decisions("ncc", data)
    assert np.array_equal(found[0], centroid.predict(x.numpy())) and np.array_equal(found[1], centroid.predict(xt.numpy()))
    near = KNeighborsClassifier(5).fit(x.numpy(), y.numpy())
    theirs = near.predict_proba(xt.numpy())
    ours = decisions("knn", data)[1]
    sole = (theirs == theirs.max(1, keepdims=True)).sum(1) == 1  # they break ties by the label, we by the distance
    assert 0.5 < sole.mean() < 1 and np.array_equal(ours[sole], theirs[sole].argmax(1))
    order = near.kneighbors(xt.numpy(), return_distance=False)
    for row in np.flatnonzero(~sole):
        best = np.flatnonzero(theirs[row] == theirs[row].max())
        assert ours[row] == next(y[i] for i in order[row] if y[i] in best)
    alone = KNeighborsClassifier(5).fit(x.numpy()[1:], y.numpy()[1:]).predict_proba(x.numpy()[:1])[0]
    assert alone[decisions("knn", data)[0][0]] == alone.max()  # the first sample did not vote for itself


@pytest.mark.parametrize("samples", [300, 40])
def test_ridge_is_scikit_learns(samples):
    train, test = clusters(samples, 1, dim=60, noise=2.0), clusters(200, 2, dim=60, noise=2.0)
    x, y = train[0].numpy(), train[1].numpy()
    unit = ((x - x.mean(0)) ** 2).sum() / x.shape[1]
    model = RidgeCV(alphas=[p * unit for p in probe.PENALTIES]).fit(x, np.eye(CLASSES)[y])
    for ours, h in zip(decisions("ridge", (train, test)), (x, test[0].numpy()), strict=True):
        assert np.array_equal(ours, model.predict(h).argmax(1))


def test_raw_is_plain_sgd_on_a_linear_layer(data):
    (x, y), (xt, yt) = data
    layer = nn.Linear(12, CLASSES)
    nn.init.zeros_(layer.weight), nn.init.zeros_(layer.bias)
    optimiser, draw = torch.optim.SGD(layer.parameters(), lr=0.1), stream(0, "probe")
    for _ in range(50):
        for rows in torch.from_numpy(draw.permutation(len(x))).split(128):
            optimiser.zero_grad()
            nn.functional.cross_entropy(layer(x[rows].float()), y[rows]).backward()
            optimiser.step()
    for ours, h in zip(decisions("raw", data), (x, xt), strict=True):
        assert np.array_equal(ours, layer(h.float()).argmax(1).numpy())
    fitted = LogisticRegression(C=np.inf, max_iter=2000).fit(x.numpy(), y.numpy())
    found = accuracies(data, probes=["raw"])["probe_raw", "test"]
    assert found == pytest.approx(fitted.score(xt.numpy(), yt.numpy()), abs=0.04)


def test_raw_dies_with_the_scale_of_the_signal_and_whitening_does_not(data):
    """A strong direction without information hides weak ones from a fixed budget, not from a whitened probe."""
    hidden = []
    for x, y in data:
        loud = torch.zeros(len(x), 1, dtype=x.dtype)
        loud[:, 0] = torch.from_numpy(np.random.default_rng(len(x)).standard_normal(len(x)))
        hidden.append((torch.cat([1e-4 * x, loud], dim=1), y))
    plain, weak = accuracies(data, probes=["raw", "whiten"]), accuracies(hidden, probes=["raw", "whiten", "std"])
    assert weak["probe_raw", "test"] < 0.65 < plain["probe_raw", "test"] - 0.1
    assert weak["probe_whiten", "test"] == pytest.approx(plain["probe_whiten", "test"], abs=0.05)
    assert weak["probe_std", "test"] == pytest.approx(plain["probe_whiten", "test"], abs=0.08)


def test_whitening_does_not_see_a_linear_map_or_an_offset(data):
    mixing = torch.from_numpy(np.random.default_rng(3).standard_normal((12, 12)))
    mapped = [(x @ mixing + 5, y) for x, y in data]
    want, found = accuracies(data, probes=["whiten"]), accuracies(mapped, probes=["whiten"])
    for key in want:
        assert found[key] == pytest.approx(want[key], abs=0.03)  # the axes differ by a rotation, which SGD from zero does not see
    flat = [(torch.cat([x, x[:, :3] + x[:, 3:6], torch.ones(len(x), 1)], dim=1), y) for x, y in data]  # rank 12 of 16
    for key, value in accuracies(flat, probes=["whiten", "std"]).items():
        if "whiten" in key[0]:
            assert value == pytest.approx(want[key], abs=0.03)


def test_the_same_seed_gives_the_same_rows(data):
    first, again, other = (accuracies(data, seed=s) for s in (0, 0, 1))
    assert first == again and {m for m, _ in first} == {f"probe_{n}" for n in PROBES}
    assert first["probe_ncc", "test"] == other["probe_ncc", "test"]


def test_finetune_learns_new_labels_and_leaves_the_network_alone(data):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(12, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 2))
    before = {k: v.clone() for k, v in network.state_dict().items()}
    splits = [Split(x.float(), y, CLASSES) for x, y in data]
    plan = plan_layers(network, splits[0].inputs[:2])
    state = torch.get_rng_state()
    rows = finetune(network, plan, *splits, classes=CLASSES)
    assert all(torch.equal(before[k], v) for k, v in network.state_dict().items()) and torch.equal(state, torch.get_rng_state())
    accuracy = {r["split"]: r["value"] for r in rows}
    assert accuracy["test"] > 0.65  # chance is .2
    assert rows == finetune(network, plan, *splits, classes=CLASSES)


def test_finetune_of_one_process_of_several_is_that_of_one_alone(data, monkeypatch):
    monkeypatch.setattr(distributed.dist, "all_reduce", lambda values: values.mul_(2))  # the other has the same samples
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(12, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 2))
    splits = [Split(x.float(), y, CLASSES) for x, y in data]
    plan = plan_layers(network, splits[0].inputs[:2])
    rows, means = [], []
    plain = probe._accuracy

    def seen(tuned, split):
        means.append(tuned[1].running_var.clone())
        return plain(tuned, split)

    monkeypatch.setattr(probe, "_accuracy", seen)
    for norm in (network[1], distributed.GlobalBatchNorm(network[1])):
        network[1] = norm
        rows.append(finetune(network, plan, *splits, classes=CLASSES))
    assert rows[0] == rows[1] and torch.equal(means[0], means[2])


def test_wrong_requests(data):
    with pytest.raises(RequestError, match="unknown probe 'white'; did you mean 'whiten'"):
        probe_features(*data, classes=CLASSES, probes=["white"])
    with pytest.raises(RequestError, match=r"0\.\.3"):
        probe_features(*data, classes=4)
