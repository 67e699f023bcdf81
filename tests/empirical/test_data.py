"""Data sets: what is in them, how they are split, and what is refused."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from empirical import data
from empirical.data.prepare import digest
from empirical.data.source import Request, Source, check
from empirical.data.split import Split
from ufm.errors import RequestError

OFFLINE = ["digits", "mnist5k", "photos", "mnist1d", "gaussian", "interpolation", "moons", "coloured-digits", "coloured-mnist5k"]


@pytest.mark.parametrize("name", OFFLINE)
def test_every_offline_set_loads_finite_and_the_same_again(name):
    request = Request(input_dim=64) if name == "interpolation" else None
    train, test, info = data.load(name, seed=3, request=request)
    assert train.labels.dtype == torch.int64 and test.classes == train.classes == info["classes"]
    assert sorted(set(train.labels.tolist())) == list(range(train.classes))
    assert torch.isfinite(train.batch(slice(0, 50))[0]).all()
    assert train.inputs.shape[1:] == test.inputs.shape[1:] == torch.Size(info["shape"])
    assert info["digest"] == data.load(name, seed=3, request=request)[2]["digest"]
    assert info["digest"] != data.load(name, seed=4, request=request)[2]["digest"]


def test_digits_are_scikit_learns_split_100_per_class():
    train, test, info = data.load("digits", seed=0)
    assert info["counts"] == [100] * 10 and len(train) == 1000 and len(test) == 797
    ours = np.concatenate([train.inputs.numpy(), test.inputs.numpy()]).reshape(1797, 64) * 16
    labels = np.concatenate([train.labels.numpy(), test.labels.numpy()])
    bunch = load_digits()
    key = np.lexsort(np.c_[ours, labels].T)
    theirs = np.lexsort(np.c_[bunch.data, bunch.target].T)
    assert np.array_equal(ours[key], bunch.data[theirs]) and np.array_equal(labels[key], bunch.target[theirs])


def test_mnist5k_is_shuffled_and_balanced():
    train, test, info = data.load("mnist5k", seed=0)
    assert info["counts"] == [400] * 10 and np.bincount(test.labels).tolist() == [100] * 10
    assert (torch.diff(train.labels) < 0).any() and len(set(train.labels[:100].tolist())) == 10
    assert train.inputs.dtype == torch.uint8 and int(train.inputs.max()) == 255


def test_prepared_inputs_have_mean_zero_and_deviation_one():
    train, _, _ = data.load("mnist5k", seed=0)
    prepared = train.batch(slice(None))[0].double()
    assert abs(prepared.mean().item()) < 1e-5 and abs(prepared.std().item() - 1) < 1e-4
    assert torch.equal(train.baked().batch(slice(0, 9))[0], train.batch(slice(0, 9))[0])


def test_subsampling_keeps_the_counts_asked_for():
    train, test, info = data.load("digits", seed=0, per_class=40, imbalance=4, minority=3)
    assert info["counts"] == [40] * 7 + [10] * 3 and len(test) == 797
    whole, _, _ = data.load("digits", seed=0)
    rows = {row.tobytes() for row in whole.inputs.numpy()}
    assert all(row.tobytes() in rows for row in train.inputs.numpy())


def test_a_long_tail_falls_by_one_factor_a_class():
    _, test, info = data.load("mnist5k", seed=0, imbalance=100, imbalance_shape="long-tail")
    expected = [round(400 * 100 ** (-k / 9)) for k in range(10)]  # 400, 240, ..., 7, 4
    assert info["counts"] == expected and expected[0] == 400 and expected[-1] == 4 and len(test) == 1000
    _, _, info = data.load("digits", seed=0, per_class=4, imbalance=50, imbalance_shape="long-tail")
    assert info["counts"][0] == 4 and info["counts"][-1] == 1  # never none


def test_label_noise_changes_the_share_asked_for_and_no_test_label():
    clean, clean_test, _ = data.load("digits", seed=0)
    noisy, noisy_test, _ = data.load("digits", seed=0, label_noise=0.3)
    assert int((clean.labels != noisy.labels).sum()) == 300
    assert torch.equal(clean_test.labels, noisy_test.labels) and torch.equal(clean.inputs, noisy.inputs)


def test_coarse_labels_group_consecutive_classes_and_keep_the_fine_ones():
    train, test, info = data.load("digits", seed=0, coarse=(4, 6))
    assert train.classes == 2 and info["counts"] == [400, 600]
    for part in (train, test):
        assert torch.equal(part.labels, (part.fine >= 4).long())


def test_gaussian_classes_are_as_far_apart_as_the_bayes_rule_says():
    """K = 2: the optimal linear rule errs with Phi(-|mu_0 - mu_1| / 2 sigma); 1e5 test samples give it to 3 s.d."""
    from scipy.stats import norm

    request = Request(classes=2, input_dim=3, signal=2.0, noise=1.0, test_per_class=50_000)
    train, test, _ = data.load("gaussian", seed=1, per_class=20_000, request=request)
    means = [train.inputs[train.labels == k].double().mean(0) for k in (0, 1)]
    distance = (means[0] - means[1]).norm().item()
    direction = means[1] - means[0]
    guess = ((test.inputs.double() - (means[0] + means[1]) / 2) @ direction > 0).long()
    error = (guess != test.labels).double().mean().item()
    expected = norm.cdf(-distance / 2)
    assert abs(error - expected) < 3 * np.sqrt(expected * (1 - expected) / 100_000) + 1e-3


def test_interpolation_data_give_the_predicted_test_nc1():
    """Min-norm interpolation of centred one-hot targets; test NC1 with its own means, theory of test collapse item 8."""
    K, n, d, s, sigma = 4, 40, 1600, 4.0, 0.2
    request = Request(classes=K, input_dim=d, signal=s, noise=sigma, test_per_class=400)
    train, test, _ = data.load("interpolation", seed=0, per_class=n, request=request)
    X, T = train.inputs.double().numpy(), (np.eye(K) - 1 / K)[train.labels]
    features = test.inputs.double().numpy() @ (X.T @ np.linalg.solve(X @ X.T, T))
    labels = test.labels.numpy()
    means = np.stack([features[labels == k].mean(0) for k in range(K)])
    within = np.cov((features - means[labels]).T, bias=True)
    between = np.cov(means.T, bias=True)
    nc1 = np.trace(within @ np.linalg.pinv(between, rcond=1e-8)) / K
    N = K * n
    predicted = (K - 1) * (sigma**2 / s**2) * (1 + d * sigma**2 / (n * s**2)) * d / (d - N)
    assert nc1 == pytest.approx(predicted, rel=0.1)


def test_mnist1d_is_learnable_but_not_linearly():
    train, test, _ = data.load("mnist1d", seed=0)
    linear = LogisticRegression(max_iter=200).fit(train.inputs, train.labels).score(test.inputs, test.labels)
    assert train.inputs.shape == (4000, 40) and linear < 0.4


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"name": "digit"}, "did you mean 'digits'"),
        ({"name": "digits:x"}, "folder:PATH"),
        ({"name": "folder:/nowhere"}, "no such folder"),
        ({"name": "digits", "per_class": 101}, "100 train samples, 101 asked for"),
        ({"name": "digits", "imbalance": 10}, "--minority"),
        ({"name": "digits", "minority": 10, "imbalance": 2}, "--minority 1..9"),
        ({"name": "digits", "imbalance": 10, "minority": 2, "imbalance_shape": "long-tail"}, "leave --minority out"),
        ({"name": "digits", "imbalance_shape": "long-tail"}, "--imbalance > 1"),
        ({"name": "digits", "imbalance_shape": "steep"}, "use step or long-tail"),
        ({"name": "digits", "label_noise": 1.5}, r"\[0, 1\]"),
        ({"name": "digits", "coarse": (5, 4)}, "sum to 10"),
        ({"name": "digits", "request": Request(classes=3)}, "--classes 3: data set digits has no such size"),
        ({"name": "mnist1d", "request": Request(input_dim=9)}, "--input-dim 9"),
        ({"name": "folder:/nowhere", "request": Request(test_per_class=9)}, "--test-per-class 9"),
        ({"name": "gaussian", "request": Request(classes=1)}, "at least 2"),
        ({"name": "interpolation", "request": Request(classes=20, input_dim=10)}, "--input-dim 20"),
    ],
)
def test_wrong_requests_are_one_line(arguments, words):
    with pytest.raises(RequestError, match=words) as caught:
        data.load(seed=0, **arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_missing_public_data_name_the_way_to_get_them(name, tmp_path, monkeypatch):
    monkeypatch.setenv("UFM_DATA", str(tmp_path))
    with pytest.raises(RequestError, match=rf"empirical data fetch {name}|ufm\[vision\]"):
        data.load(name, seed=0)
    assert not list(tmp_path.iterdir())


def source(**changed):
    inputs = np.zeros((4, 3), dtype=np.float32)
    parts = {"train_inputs": inputs, "train_labels": np.array([0, 1, 0, 1])}
    parts |= {"test_inputs": inputs, "test_labels": np.array([0, 1, 0, 1]), "classes": 2, "licence": ""}
    return Source(**(parts | changed))


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"train_labels": np.array([0, 1, 0, 2])}, "label 2 of sample 3 is out of range"),
        ({"train_labels": np.array([0, 0, 0, 0])}, "class 1 has no train sample"),
        ({"train_labels": np.array([0, 1, 0])}, "one label per sample"),
        ({"test_labels": np.array([0.0, 1.0, 0.0, 1.0])}, "integers"),
        ({"train_inputs": np.full((4, 3), np.nan, dtype=np.float32)}, "4 samples hold non-finite values"),
        ({"train_inputs": np.zeros((4, 3))}, "uint8 or float32"),
        ({"test_inputs": np.zeros((4, 2), dtype=np.float32)}, "same shape"),
        ({"classes": 1}, "at least 2 classes"),
    ],
)
def test_bad_data_are_refused_in_one_line(changed, words):
    with pytest.raises(RequestError, match=words):
        check("mine", source(**changed))
    check("mine", source())


def test_own_arrays_from_a_folder(tmp_path):
    rng = np.random.default_rng(0)
    for part in ("train", "test"):
        np.savez(tmp_path / f"{part}.npz", inputs=rng.normal(size=(6, 5)), labels=np.arange(6) % 3)
    train, _, info = data.load(f"folder:{tmp_path}", seed=0)
    assert train.classes == 3 and info["shape"] == [5] and train.inputs.dtype == torch.float32
    (tmp_path / "test.npz").write_bytes(b"PK not a zip file")
    with pytest.raises(RequestError, match=r"not a readable \.npz"):
        data.load(f"folder:{tmp_path}", seed=0)


def test_own_images_from_a_folder(tmp_path):
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, size=(2, 2, 4, 5, 3), dtype=np.uint8)
    for p, part in enumerate(("train", "test")):
        for k, name in enumerate(("cat", "dog")):
            (tmp_path / part / name).mkdir(parents=True)
            Image.fromarray(pixels[p, k]).save(tmp_path / part / name / "0.png")
    train, _, _ = data.load(f"folder:{tmp_path}", seed=0)
    assert train.inputs.shape == (2, 3, 4, 5) and np.array_equal(train.inputs[1], pixels[0, 1].transpose(2, 0, 1))
    Image.fromarray(pixels[0, 0, :3]).save(tmp_path / "test" / "cat" / "1.png")
    with pytest.raises(RequestError, match="give all one size"):
        data.load(f"folder:{tmp_path}", seed=0)


def test_digest_sees_one_changed_number_and_a_changed_shape():
    base = np.arange(6.0)
    assert digest(base) != digest(base.reshape(2, 3)) and digest(base) != digest(base + np.array([0, 0, 0, 0, 0, 1e-9]))


def test_split_moves_subsets_and_keeps_the_fine_labels():
    split = Split(torch.arange(8, dtype=torch.uint8).view(4, 2), torch.tensor([0, 1, 0, 1]), 2, fine=torch.arange(4))
    part = split.subset(torch.tensor([3, 1])).to("cpu")
    assert part.fine.tolist() == [3, 1] and part.labels.tolist() == [1, 1] and len(part) == 2
    assert torch.equal(part.batch(slice(None))[0], torch.tensor([[6.0, 7.0], [2.0, 3.0]]) / 255)


def test_public_sets_become_channels_first_images(monkeypatch):
    """The layouts of torchvision's objects: MNIST (N, H, W) tensors with `targets`, SVHN (N, 3, H, W) with `labels`."""
    rng = np.random.default_rng(0)
    grey, first = (rng.integers(0, 256, size=s, dtype=np.uint8) for s in ((20, 28, 28), (20, 3, 32, 32)))
    targets = list(range(10)) * 2
    datasets = SimpleNamespace(
        MNIST=lambda root, train, download: SimpleNamespace(data=torch.from_numpy(grey), targets=torch.tensor(targets)),
        SVHN=lambda root, split, download: SimpleNamespace(data=first, labels=np.array(targets)),
    )
    monkeypatch.setitem(sys.modules, "torchvision", SimpleNamespace(datasets=datasets))
    expected = {"mnist": grey[:, None], "svhn": first}
    for name, images in expected.items():
        train, test, info = data.load(name, seed=0)
        assert np.array_equal(train.inputs, images) and train.labels.tolist() == targets and len(test) == 20
        scaled = images / 255
        assert np.allclose(info["normalisation"]["mean"], scaled.mean(axis=(0, 2, 3)))
        prepared = train.batch(slice(None))[0].numpy()
        assert np.allclose(prepared.std(axis=(0, 2, 3)), 1, atol=1e-5)


def test_a_torchvision_for_another_torch_is_one_line(monkeypatch):
    broken = type(sys)("torchvision")
    broken.__getattr__ = lambda name: (_ for _ in ()).throw(RuntimeError("operator torchvision::nms does not exist"))
    monkeypatch.setitem(sys.modules, "torchvision", broken)
    with pytest.raises(RequestError, match="build for your torch"):
        data.load("svhn", seed=0)
