"""The measuring pass against features computed by hand, and against scikit-learn and scipy."""

import random

import numpy as np
import pytest
import scipy.linalg
import torch
from sklearn.metrics import calinski_harabasz_score, confusion_matrix
from sklearn.neighbors import NearestCentroid
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import empirical
from empirical import store
from empirical.data.split import Split
from empirical.epoch import _matched, measure_network
from empirical.features import evaluating, plan_layers
from empirical.rows import Rows
from empirical.store import full_float32
from empirical.tensors import measure_tensors
from ufm.errors import RequestError, RunError

CLASSES = 4


class Net(nn.Module):
    """Convolution with batch norm, a hidden layer with a functional ReLU, a classifier."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6)
        self.hidden, self.head = nn.Linear(6, 8), nn.Linear(8, CLASSES)

    def forward(self, x):
        x = torch.relu(self.norm(self.conv(x))).mean((2, 3))
        return self.head(torch.relu(self.hidden(x)))


def by_hand(model, x):
    """The features that the network's own lines compute."""
    with evaluating(model):
        conv = torch.relu(model.norm(model.conv(x))).mean((2, 3))
        hidden = torch.relu(model.hidden(conv))
        return {"conv": conv.numpy(), "penultimate": hidden.numpy(), "logits": model.head(hidden).numpy()}


@pytest.fixture
def setup():
    torch.manual_seed(3)
    centres = torch.randn(CLASSES, 2, 5, 5, dtype=torch.float64)
    data = []
    for counts in ((40, 30, 25, 15), (12, 9, 9, 6)):
        y = torch.repeat_interleave(torch.arange(CLASSES), torch.tensor(counts))[torch.randperm(sum(counts))]
        data.append((centres[y] + 1.5 * torch.randn(len(y), 2, 5, 5, dtype=torch.float64), y))
    model = Net().double()
    with torch.no_grad():
        model.hidden.bias.fill_(1.0)  # no dead unit
        for _ in range(4):
            model.train()(data[0][0])
    return model, *data


def loader(pair, batch=16, shuffle=False, **more):
    return DataLoader(TensorDataset(*pair), batch_size=batch, shuffle=shuffle, **more)


def index(rows):
    return {(r["layer"], r["split"], r["centres"], r["metric"]): r["value"] for r in rows}


def pinv_form(x, y, means, centres):
    """Tr(Sigma_W Sigma_B^+)/K from d x d matrices and scipy's pseudo-inverse."""
    within = (x - means[y]).T @ (x - means[y]) / len(x)
    between = (centres - centres.mean(0)).T @ (centres - centres.mean(0)) / CLASSES
    return np.trace(within @ scipy.linalg.pinv(between, rtol=1e-10)) / CLASSES


def test_every_layer_against_scikit_learn_and_scipy(setup):
    model, train, test = setup
    rows = empirical.measure(model, loader(train), loader(test))
    found = index(rows)
    assert len(found) == len(rows)
    (x, y), (xt, yt) = ((by_hand(model, pair[0]), pair[1].numpy()) for pair in (train, test))
    assert {row["layer"] for row in rows} == {"input", "conv", "penultimate", "logits", "network"}
    for layer in ("conv", "penultimate", "logits"):
        h, ht = x[layer], xt[layer]
        means = np.stack([h[y == k].mean(0) for k in range(CLASSES)])
        own = np.stack([ht[yt == k].mean(0) for k in range(CLASSES)])
        close = {"rel": 1e-8, "abs": 1e-12}
        assert found[layer, "train", "self", "nc1_pinv"] == pytest.approx(pinv_form(h, y, means, means), **close)
        assert found[layer, "test", "self", "nc1_pinv"] == pytest.approx(pinv_form(ht, yt, own, own), **close)
        assert found[layer, "test", "train", "nc1_pinv_strong"] == pytest.approx(pinv_form(ht, yt, means, means), **close)
        nearest = NearestCentroid().fit(h, y)
        assert found[layer, "train", "self", "ncc_error"] == pytest.approx((nearest.predict(h) != y).mean(), abs=1e-12)
        assert found[layer, "test", "train", "ncc_error"] == pytest.approx((nearest.predict(ht) != yt).mean(), abs=1e-12)
        counts = np.bincount(y)
        weighted = (counts[:, None] * (means - h.mean(0)) ** 2).sum() / len(h)  # scikit-learn weights classes by size
        ratio = (len(h) - CLASSES) / ((CLASSES - 1) * calinski_harabasz_score(h, y))
        trace = ((means - means.mean(0)) ** 2).sum() / CLASSES
        assert found[layer, "train", "self", "nc1_trace"] == pytest.approx(ratio * weighted / trace, **close)
    logits = torch.from_numpy(xt["logits"])
    assert found["network", "test", "self", "error"] == pytest.approx((logits.argmax(1) != test[1]).double().mean().item())
    assert found["network", "test", "self", "loss"] == pytest.approx(
        nn.functional.cross_entropy(logits, test[1]).item(), rel=1e-10
    )


def test_strong_is_weak_plus_between_plus_cross_at_every_layer(setup):
    model, train, test = setup
    found, confused = index(measure_network(model, loader(train), loader(test), layers="all")), 0
    for layer in ("input", "conv", "penultimate", "logits"):
        strong, *parts = (found[layer, "test", "train", f"nc1_pinv_{n}"] for n in ("strong", "weak", "between", "cross"))
        assert strong == pytest.approx(sum(parts), rel=1e-10)
        confused += parts[1] > 0
        assert parts[1] == pytest.approx(2 * found[layer, "test", "train", "ncc_error"], rel=1e-9)  # rank K - 1
    assert confused >= 2  # else nothing was tested


def test_order_batches_and_kind_of_data_do_not_matter(setup):
    model, train, test = setup
    want = index(measure_network(model, [train], [test], layers="all"))
    splits = [Split(*pair, classes=CLASSES) for pair in (train, test)]
    others = [
        measure_network(model, loader(train, 7, shuffle=True), loader(test, 5, shuffle=True), layers="all"),
        measure_network(model, *splits, layers="all", batch_size=13),
        measure_network(model, *splits, layers=plan_layers(model, train[0][:2], "all")),
        measure_network(nn.DataParallel(model) if not torch.cuda.is_available() else model, [train], [test], layers="all"),
    ]
    for rows in others:
        assert index(rows) == pytest.approx(want, rel=1e-12, abs=1e-13)


def test_the_callers_autocast_and_inference_mode_do_not_matter(setup):
    model, train, test = setup
    model, pairs = model.float(), [(x.float(), y) for x, y in (train, test)]
    want = index(empirical.measure(model, pairs[:1], pairs[1:]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert index(empirical.measure(model, pairs[:1], pairs[1:])) == want
        assert torch.is_autocast_enabled("cpu")
    with torch.inference_mode():
        assert index(empirical.measure(model, pairs[:1], pairs[1:])) == want


def test_nothing_of_the_training_changes(setup):
    model, train, test = setup
    model.train()
    model.norm.eval()  # frozen by its owner
    shuffling = loader(train, shuffle=True, generator=torch.Generator().manual_seed(5))
    drawing = loader(test, shuffle=True)  # draws from torch's global generator
    states = {k: v.clone() for k, v in model.state_dict().items()}
    modes = [m.training for m in model.modules()]
    before = (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy(), shuffling.generator.get_state())
    empirical.measure(model, shuffling, drawing)
    with pytest.raises(RequestError):
        empirical.measure(model, shuffling, [{"x": 1}])
    with pytest.raises(RequestError):
        empirical.measure(model, shuffling, [(test[0], test[1] + 1)])
    assert torch.equal(before[0], torch.get_rng_state()) and before[1] == random.getstate()
    assert np.array_equal(before[2], np.random.get_state()[1]) and torch.equal(before[3], shuffling.generator.get_state())
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(states[k], v) for k, v in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_rows_of_a_layer_without_classifier_have_no_classifier_measures(setup):
    model, train, test = setup
    rows = measure_network(model, [train], [test], layers=["conv", "penultimate"])
    metrics = {layer: {r["metric"] for r in rows if r["layer"] == layer} for layer in ("conv", "penultimate")}
    assert {"nc3_papyan", "nc2_etf_weights", "bias_collapse", "nc4_disagreement"} <= metrics["penultimate"] - metrics["conv"]
    assert {"nc1_pinv", "cdnv", "vci", "nc2_etf_means", "rank_effective"} <= metrics["conv"] & metrics["penultimate"]


def test_the_classifier_measures_see_the_weight_and_bias(setup):
    model, train, test = setup
    found = index(measure_network(model, [train], [test]))
    h, weight, bias = by_hand(model, train[0]), model.head.weight.detach().numpy(), model.head.bias.detach().numpy()
    y = train[1].numpy()
    means = np.stack([h["penultimate"][y == k].mean(0) for k in range(CLASSES)])
    nearest = ((h["penultimate"][:, None] - means) ** 2).sum(2).argmin(1)
    assert found["penultimate", "train", "self", "nc4_disagreement"] == (nearest != h["logits"].argmax(1)).mean()
    centre = weight @ means.mean(0) + bias
    assert found["penultimate", "train", "self", "bias_collapse"] == pytest.approx(np.linalg.norm(centre), rel=1e-10)


def test_match_counts_subsamples_train_only(setup):
    model, train, test = setup
    x, y = _matched(*train, test[1], CLASSES, seed=0)
    assert torch.equal(torch.bincount(y), torch.bincount(test[1]))
    assert all(any(torch.equal(row, other) for other in train[0][train[1] == k]) for row, k in zip(x, y, strict=True))
    plain, same = (index(measure_network(model, [train], [test], match_counts=m)) for m in (False, True))
    differing = {key for key in plain if plain[key] != same[key]}
    assert ("penultimate", "train", "self", "nc1_pinv") in differing
    assert all(key[1] == "train" and key[0] == "penultimate" for key in differing)
    again = index(measure_network(model, [test], [train], match_counts=True))  # nothing to leave out
    assert again == index(measure_network(model, [test], [train]))


def test_arrays_for_the_comparison(setup):
    model, train, test = setup
    arrays = measure_tensors(model, [train], [test], layers="all")
    found = index(measure_network(model, [train], [test], layers="all"))
    h, ht = by_hand(model, train[0]), by_hand(model, test[0])
    y, yt = train[1].numpy(), test[1].numpy()
    guess = ht["logits"].argmax(1)
    assert np.array_equal(arrays["test/confusion"], confusion_matrix(yt, guess))
    assert np.array_equal(arrays["test/predicted"], guess) and np.array_equal(arrays["test/labels"], yt)
    np.testing.assert_array_equal(arrays["weight"], model.head.weight.detach().numpy())
    for layer in ("conv", "penultimate", "logits"):
        assert arrays[f"{layer}/test/strong"].mean() == pytest.approx(found[layer, "test", "train", "nc1_pinv_strong"], rel=1e-9)
        assert arrays[f"{layer}/test/weak"].mean() == pytest.approx(found[layer, "test", "train", "nc1_pinv_weak"], rel=1e-9)
        assert 1 - arrays[f"{layer}/test/ncc_correct"].mean() == pytest.approx(found[layer, "test", "train", "ncc_error"])
        means = np.stack([h[layer][y == k].mean(0) for k in range(CLASSES)])
        np.testing.assert_allclose(arrays[f"{layer}/train/means"], means, rtol=1e-10, atol=1e-12)
        centred = means - means.mean(0)
        np.testing.assert_allclose(arrays[f"{layer}/train/gram"], centred @ centred.T, rtol=1e-9, atol=1e-12)
        basis = arrays[f"{layer}/basis"]
        np.testing.assert_allclose(basis @ basis.T, np.eye(CLASSES - 1), atol=1e-10)
        np.testing.assert_allclose(centred @ basis.T @ basis, centred, atol=1e-10)
        for k in range(CLASSES):
            wide = np.cov(ht[layer][yt == k].T, bias=True)
            np.testing.assert_allclose(arrays[f"{layer}/test/within_class"][k], basis @ wide @ basis.T, rtol=1e-8, atol=1e-12)
            assert arrays[f"{layer}/test/traces"][k] == pytest.approx(np.trace(wide), rel=1e-9)
    covariances = [np.cov(h["penultimate"][y == k].T, bias=True) for k in range(CLASSES)]
    wanted = [[np.trace(a @ b) for b in covariances] for a in covariances]
    np.testing.assert_allclose(arrays["penultimate/train/trace_products"], wanted, rtol=1e-8, atol=1e-14)
    rows = arrays["penultimate/test/places_of"]
    places = ht["penultimate"][rows] @ arrays["penultimate/basis"].T
    np.testing.assert_allclose(arrays["penultimate/test/places"], places, rtol=1e-6, atol=1e-6)
    assert len(np.unique(rows)) == len(yt) and "conv/test/places" not in arrays


def test_the_places_of_a_large_test_set_are_evenly_spaced_and_bounded():
    from empirical.tensors import POINT_LIMIT, POINTS, places

    features = torch.arange(10_000, dtype=torch.float64)[:, None].repeat(1, 3)
    kept, rows = places(features, np.eye(3)[:1])
    assert len(rows) == POINTS and kept.dtype == np.float32 and np.array_equal(kept[:, 0], rows)
    assert rows[0] == 0 and rows[-1] == 9_999 and set(np.diff(rows)) <= {5, 6}
    assert len(places(features, np.ones((POINT_LIMIT // 100, 3)))[1]) == 100


def test_float32_and_bfloat16_networks(setup):
    model, train, test = setup
    want = index(measure_network(model, [train], [test]))["penultimate", "train", "self", "nc1_pinv"]
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.bfloat16, 0.1)):
        rows = measure_network(model.to(dtype), [train], [test])
        assert index(rows)["penultimate", "train", "self", "nc1_pinv"] == pytest.approx(want, rel=tolerance)


def test_a_network_that_views_its_maps(setup):
    """view(n, -1) refuses maps stored channels last, the layout that is tried first on a CPU."""

    class Viewing(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv2d(2, 3, 3), nn.Linear(27, CLASSES)

        def forward(self, x):
            x = torch.relu(self.conv(x))
            return self.head(x.view(x.size(0), -1))

    _, train, test = setup
    model = Viewing().double()
    rows = index(measure_network(model, loader(train, 30), loader(test), layers=["conv:flat", "penultimate"]))
    assert rows["conv:flat", "train", "self", "nc1_pinv"] == rows["penultimate", "train", "self", "nc1_pinv"]
    x, y = train[0], train[1].numpy()
    h = torch.relu(model.conv(x)).flatten(1).detach().numpy()
    means = np.stack([h[y == k].mean(0) for k in range(CLASSES)])
    assert rows["penultimate", "train", "self", "nc1_pinv"] == pytest.approx(pinv_form(h, y, means, means), rel=1e-8)


def test_the_table_shows_both_centres(setup):
    model, train, test = setup
    rows = empirical.measure(model, [train], [test], layers="last")
    line = next(x for x in rows.table() if x["measure"] == "ncc_error")
    assert line["test (train centres)"] == rows.value("ncc_error") == rows.value("ncc_error", centres="train")
    assert line["train"] == rows.value("ncc_error", split="train")
    assert line["test (own centres)"] == rows.value("ncc_error", centres="self")
    text = str(rows).splitlines()
    assert text[0].split()[:3] == ["layer", "measure", "train"] and len(text) == 1 + len(rows.table())
    with pytest.raises(KeyError, match="was not measured"):
        rows.value("nc1_pinv", layer="conv")


def test_wrong_data_is_one_line(setup):
    model, (x, y), test = setup
    good = [test]
    cases = [
        (iter([(x, y)]), good, "used up after one pass"),
        ([], good, "no batches"),
        ([{"x": x, "y": y}], good, "must be a pair"),
        ([(x.tolist(), y)], good, "must be one tensor"),
        ([(x, nn.functional.one_hot(y))], good, "not one-hot"),
        ([(x, y.double())], good, "integers"),
        ([(x, y[:-1])], good, "labels have shape"),
        ([(x, y + 2)], good, "label 5 is out of range"),
        ([(x, y - 1)], good, "label -1 is out of range"),
        (good, [], "no batches"),
        ([(x, torch.zeros_like(y))], good, "fewer than two classes"),
    ]
    for train, held, message in cases:
        with pytest.raises(RequestError, match=message) as caught:
            empirical.measure(model, train, held)
        assert "\n" not in str(caught.value)
    with pytest.raises(RequestError, match="classes is 7, but the network has 4 outputs"):
        empirical.measure(model, good, good, classes=7)
    with pytest.raises(RequestError, match="the network is on cpu, not on cuda"):
        empirical.measure(model, good, good, device="cuda")


def test_a_diverged_network_is_a_run_error(setup):
    model, train, test = setup
    with torch.no_grad():
        model.hidden.weight[0, 0] = torch.nan
    with pytest.raises(RunError, match="'penultimate' are not finite"):
        empirical.measure(model, [train], [test], layers="last")


def test_a_dead_layer_gives_reasons_not_an_error(setup):
    model, train, test = setup
    with torch.no_grad():
        model.hidden.bias.fill_(-1e6)
    rows = empirical.measure(model, [train], [test], layers="last")
    (row,) = (r for r in rows if r["metric"] == "nc1_pinv" and r["split"] == "train")
    assert row["value"] is None and "coincide" in row["reason"]
    arrays = measure_tensors(model, [train], [test])
    assert arrays["penultimate/basis"].shape == (0, 8)


def test_features_that_do_not_fit_are_refused_with_the_estimate(setup, monkeypatch):
    model, train, test = setup
    monkeypatch.setattr(store, "free_memory", lambda device: 900)
    with pytest.raises(RequestError, match="classes need about"):
        empirical.measure(model, loader(train), loader(test))
    monkeypatch.setattr(store, "free_memory", lambda device: 10_000)
    with pytest.raises(RequestError, match="layers x 110 samples take about"):
        empirical.measure(model, loader(train), loader(test))
    monkeypatch.setattr(store._Store, "__init__", small_store(store._Store.__init__))
    with pytest.raises(RequestError, match="GiB of features are held"):  # a list does not say how long it is
        empirical.measure(model, list(loader(train)), [test])


def small_store(begin):
    """A store that looks at the memory after 8000 bytes instead of a gibibyte."""

    def started(self, *arguments):
        begin(self, *arguments)
        self.look = 8000

    return started


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here")
def test_a_gpu_gives_the_same_measures(setup):
    model, train, test = setup
    want = index(empirical.measure(model, [train], [test]))
    assert index(empirical.measure(model.cuda(), [train], [test])) == pytest.approx(want, rel=1e-6, abs=1e-9)


@pytest.mark.skipif(not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="this torch has the old names only")
def test_a_caller_who_set_tf32_by_its_new_names_is_measured_in_full_float32(monkeypatch):
    """From torch 2.9 on the old names raise once a new one was used."""
    places = [torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.cudnn.rnn]
    before = [place.fp32_precision for place in places]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    try:
        for place in places:
            place.fp32_precision = "tf32"
        with full_float32():
            assert [place.fp32_precision for place in places] == ["ieee"] * 3
        assert [place.fp32_precision for place in places] == ["tf32"] * 3
    finally:
        for place, value in zip(places, before, strict=True):
            place.fp32_precision = value


def test_the_separation_law_is_over_the_hidden_layers():
    """A numpy line through log D of the hidden layers; the input and the logits stay out of it."""
    torch.manual_seed(0)
    network = nn.Sequential(*[nn.Sequential(nn.Linear(8, 8), nn.ReLU()) for _ in range(4)], nn.Linear(8, 3))
    x, y = torch.randn(60, 8), torch.arange(60) % 3
    rows = Rows(measure_network(network, [(x, y)], [(x, y)], layers="all"))
    hidden = [
        r["value"]
        for r in rows
        if r["metric"] == "nc1_pinv_sum" and r["split"] == "train" and r["layer"] not in ("input", "logits")
    ]
    slope = np.polyfit(range(4), np.log(hidden), 1)[0]
    assert rows.value("separation_rho", split="train", layer="network") == pytest.approx(np.exp(slope))
    correlation = np.corrcoef(range(4), np.log(hidden))[0, 1]
    assert rows.value("separation_pearson", split="train", layer="network") == pytest.approx(correlation)
    assert not any("separation" in r["metric"] for r in measure_network(network, [(x, y)], [(x, y)], layers="last"))
