"""`folder:PATH` as users have it: images of 16 bits, hidden folders, odd arrays, damaged files, sizes that no machine has."""

import warnings

import numpy as np
import pytest
import torch

from empirical import data
from empirical.data.source import Request
from empirical.npz import read_npz
from ufm.errors import RequestError

INPUTS = np.random.default_rng(0).standard_normal((8, 5)).astype(np.float32)
LABELS = np.arange(8) % 2


def arrays(root, *, train=(INPUTS, LABELS), test=(INPUTS, LABELS), save=np.savez):
    for part, (inputs, labels) in (("train", train), ("test", test)):
        save(root / f"{part}.npz", inputs=inputs, labels=labels)
    return f"folder:{root}"


def images(root, pixels, names=("cat", "dog")):
    """Write pixels (2, K, H, W[, 3]) as train/NAME/0.png and test/NAME/0.png."""
    from PIL import Image

    for p, part in enumerate(("train", "test")):
        for k, name in enumerate(names):
            (root / part / name).mkdir(parents=True)
            Image.fromarray(pixels[p, k]).save(root / part / name / "0.png")
    return f"folder:{root}"


def refusal(name, request=None):
    """Return the one line that loading `name` is refused with; a warning would fail the test."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(RequestError) as caught:
            data.load(name, seed=0, request=request)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- arrays ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (np.where(LABELS == 0, np.nan, 1.0), "train labels are float64; give integers 0..K-1"),
        (np.array(["a", "b"] * 4), "'labels' has dtype <U1, not real numbers"),
        (LABELS.astype("datetime64[s]"), "'labels' has dtype datetime64[s], not real numbers"),
        (LABELS.astype(bool), "train labels are bool; give integers"),
        (np.int64(3), "train labels have shape (); give one label per sample"),
        (np.where(LABELS == 0, 0, 2**62), "make 4611686018427387905 classes, but there are 8 train samples"),
        (np.where(LABELS == 0, 0, 10**9), "make 1000000001 classes, but there are 8 train samples"),
        (np.where(LABELS == 0, 0, 2**64 - 1).astype(np.uint64), "train label -1 of sample 1 is out of range"),
    ],
)
def test_odd_labels_are_one_line(tmp_path, labels, words):
    if labels.dtype == np.uint64:
        labels[-1] = 1  # two classes are there
    assert words in refusal(arrays(tmp_path, train=(INPUTS, labels)))


@pytest.mark.parametrize("kind", [np.uint64, np.uint8, np.int16, ">i4"])
def test_every_integer_type_is_a_label(tmp_path, kind):
    train, _, info = data.load(arrays(tmp_path, train=(INPUTS, LABELS.astype(kind))), seed=0)
    assert info["counts"] == [4, 4] and train.labels.dtype == torch.int64 and train.labels.tolist() == LABELS.tolist()


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        (INPUTS[:, :0], "train samples have shape (0,), so they hold no number"),
        (np.zeros((8, 1, 0, 4), np.uint8), "train samples have shape (1, 0, 4), so they hold no number"),
        (np.full((8, 5), "a"), "'inputs' has dtype <U1, not real numbers"),
        (INPUTS + 1j, "'inputs' has dtype complex64, not real numbers"),
        (INPUTS.astype(np.float64) * 1e300, "8 samples hold non-finite values"),
    ],
)
def test_odd_inputs_are_one_line(tmp_path, inputs, words):
    assert words in refusal(arrays(tmp_path, train=(inputs, LABELS), test=(inputs, LABELS)))


def test_bytes_and_numbers_are_not_mixed(tmp_path):
    """Bytes are divided by 255 and numbers are not: one network would see two scales."""
    mixed = arrays(tmp_path, train=((INPUTS * 40 + 128).astype(np.uint8), LABELS))
    assert "train inputs are uint8 and test inputs float32; give both the same type" in refusal(mixed)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_damaged_file_is_refused_or_read_back_whole(tmp_path, save):
    name = arrays(tmp_path, save=save)
    good, draw = (tmp_path / "train.npz").read_bytes(), np.random.default_rng(1)
    refused = 0
    for trial in range(300):
        bad = bytearray(good)
        for place in draw.integers(0, len(good), draw.integers(1, 4)):
            bad[place] = draw.integers(256)
        (tmp_path / "train.npz").write_bytes(bad[: draw.integers(len(good))] if trial % 5 == 0 else bad)
        try:
            train, _, _ = data.load(name, seed=0)
        except RequestError as error:
            refused += 1
            assert "\n" not in str(error)
        else:
            assert np.array_equal(train.inputs, INPUTS) and train.labels.tolist() == LABELS.tolist()
    assert refused > 200


def test_an_unpacked_size_is_looked_at_first(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", inputs=np.zeros((1000, 1000)))

    def refuse(size):
        assert size >= 8_000_000
        raise RequestError("too much")

    with pytest.raises(RequestError, match="too much"):
        read_npz(tmp_path / "a.npz", refuse)


# --- images ------------------------------------------------------------------------------------------------------


def test_greyscale_of_16_bits_keeps_its_values(tmp_path):
    deep = np.random.default_rng(0).integers(0, 2**16, size=(2, 2, 6, 5), dtype=np.uint16)
    train, test, info = data.load(images(tmp_path, deep), seed=0)
    assert train.inputs.dtype == torch.float32 and info["shape"] == [1, 6, 5]
    for split, values in ((train, deep[0]), (test, deep[1])):
        assert np.allclose(split.inputs[:, 0], values / 65535.0, rtol=1e-6)
    scaled = deep[0] / 65535.0
    assert np.allclose(info["normalisation"]["mean"], scaled.mean(), rtol=1e-6)


def test_16_bits_among_8_are_one_line(tmp_path):
    from PIL import Image

    name = images(tmp_path, np.zeros((2, 2, 6, 5), np.uint8))
    Image.fromarray(np.full((6, 5), 40_000, np.uint16)).save(tmp_path / "train" / "dog" / "1.png")
    assert "dog/1.png: image of shape (6, 5, 1) and 16 bits, the first one has (6, 5, 1) and 8" in refusal(name)


def test_hidden_folders_are_no_classes_and_that_is_said(tmp_path, capsys):
    pixels = np.random.default_rng(0).integers(0, 256, size=(2, 2, 4, 4), dtype=np.uint8)
    name = images(tmp_path, pixels)
    for part in ("train", "test"):
        (tmp_path / part / ".ipynb_checkpoints").mkdir()
    _, _, info = data.load(name, seed=0)
    data.load(name, seed=1)
    assert info["classes"] == 2
    err = capsys.readouterr().err
    for part in ("train", "test"):
        assert err.count(f"{tmp_path / part / '.ipynb_checkpoints'} is a hidden folder and taken for no class") == 1


def test_classes_that_do_not_fit_are_named(tmp_path):
    name = images(tmp_path, np.zeros((2, 2, 4, 4), np.uint8))
    (tmp_path / "test" / "fox").mkdir()
    assert f"{tmp_path / 'test' / 'fox'}: train has no class of that name" in refusal(name)
    (tmp_path / "test" / "fox").rmdir()
    (tmp_path / "train" / "dog" / "0.png").unlink()
    assert f"{tmp_path / 'train' / 'dog'}: no image; known endings" in refusal(name)


def test_a_damaged_picture_is_refused_or_read(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, size=(2, 2, 8, 8), dtype=np.uint8)
    name = images(tmp_path, pixels)
    file, draw = tmp_path / "train" / "cat" / "0.png", np.random.default_rng(2)
    good, refused = file.read_bytes(), 0
    for trial in range(400):
        bad = bytearray(good)
        for place in draw.integers(0, len(good), draw.integers(1, 4)):
            bad[place] = draw.integers(256)
        file.write_bytes(bad[: draw.integers(len(good))] if trial % 5 == 0 else bad)
        try:
            data.load(name, seed=0)
        except RequestError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 300


@pytest.mark.parametrize("path", ["~nobody-of-this-name/x", "x" * 5000, "\0"])
def test_a_path_that_cannot_be_is_one_line(path):
    assert refusal(f"folder:{path}").startswith("data set folder:")


# --- sizes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("gaussian", {"classes": 10_000, "input_dim": 10**6}),
        ("gaussian", {"test_per_class": 10**12}),
        ("interpolation", {"classes": 10_000, "input_dim": 10**6}),
        ("mnist1d", {"test_per_class": 10**9}),
    ],
)
def test_what_does_not_fit_is_refused_before_it_is_drawn(monkeypatch, name, sizes):
    def never(*_):
        raise AssertionError("something was drawn")

    monkeypatch.setattr("empirical.data.generated.stream", never)
    assert "GiB are free; use smaller sizes" in refusal(name, Request(**sizes))


def test_a_folder_that_does_not_fit_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("empirical.store.free_memory", lambda device: 100)
    assert "GiB are free; use smaller sizes" in refusal(arrays(tmp_path))
    (tmp_path / "more").mkdir()
    assert "GiB are free" in refusal(images(tmp_path / "more", np.zeros((2, 2, 8, 8), np.uint8)))
