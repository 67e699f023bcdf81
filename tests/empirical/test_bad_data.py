"""Bad data of every family: refused in one line, with the remedy, before anything is trained or written."""

import numpy as np
import pytest
from command_line import Shell

FAMILIES = ("packaged", "generated", "folder")  # the public files: test_public_data.py


@pytest.fixture
def empirical(tmp_path, capsys, monkeypatch):
    def load():
        from empirical.cli import main

        return main

    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return Shell("empirical", load, tmp_path / "here", capsys)


def arrays():
    """Two classes and a test part, all good: inputs (8, 5) float32, labels (8,)."""
    draw = np.random.default_rng(0)
    return {p: [draw.standard_normal((8, 5)).astype(np.float32), np.arange(8) % 2] for p in ("train", "test")}


def spoil(parts, damage):
    """Damage one thing; return what the refusal must say."""
    inputs, labels = parts["train"]
    if damage == "nan":
        inputs[3, 2] = np.nan
        return "train: 1 samples hold non-finite values (first: sample 3); repair or remove them"
    if damage == "shape":
        parts["test"][0] = parts["test"][0][:, :4]
        return "give both the same shape"
    if damage == "range":
        labels[5] = -1
        return "train label -1 of sample 5 is out of range; use 0..1"
    if damage == "empty":
        labels[labels == 0] = 1
        return "class 0 has no train sample; leave the class out or add samples of it"
    parts["test"][0] = parts["test"][0][:0]
    parts["test"][1] = parts["test"][1][:0]
    return "test: 0 inputs and labels of shape (0,); give one label per sample"


@pytest.mark.parametrize("damage", ["nan", "shape", "range", "empty", "no test"])
@pytest.mark.parametrize("family", FAMILIES)
def test_bad_data_of_every_family(empirical, tmp_path, monkeypatch, family, damage):
    parts = arrays()
    words = spoil(parts, damage)
    if family == "folder":
        own = tmp_path / "own"
        own.mkdir()
        for part, (inputs, labels) in parts.items():
            np.savez(own / f"{part}.npz", inputs=inputs, labels=labels)
        name = f"folder:{own}"
    else:  # the arrays as they would leave the family's own file
        from empirical.data.source import Source

        name = {"packaged": "digits", "generated": "gaussian"}[family]
        target = {"packaged": "packaged._stratified", "generated": "generated._around"}[family]
        source = Source(*parts["train"], *parts["test"], classes=2, licence="")
        monkeypatch.setattr(f"empirical.data.{target}", lambda *_: source)
    answer = empirical("run", "collapse", f"--dataset={name}", "--steps=2", "--batch-size=4", "--device=cpu")
    assert (answer.code, answer.out) == (2, "")
    assert answer.err.startswith(f"error: {name}") and words in answer.err and answer.err.count("\n") == 1
    assert list(empirical.folder.iterdir()) == []


def test_pixels_of_the_digits_package_are_looked_at(empirical, monkeypatch):
    import sklearn.datasets

    bunch = sklearn.datasets.load_digits()
    bunch.images[7, 0, 0] = np.inf
    monkeypatch.setattr(sklearn.datasets, "load_digits", lambda: bunch)
    answer = empirical("run", "collapse", "--dataset=digits", "--steps=2", "--device=cpu")
    assert answer.code == 2 and "1 samples hold non-finite values" in answer.err and answer.err.count("\n") == 1


@pytest.mark.parametrize("dataset", ["gaussian", "mnist1d"])
def test_a_generator_that_overflows_is_one_line(empirical, dataset):
    answer = empirical("run", "collapse", f"--dataset={dataset}", "--noise=1e300", "--steps=2", "--device=cpu")
    assert answer.code == 2 and "non-finite values" in answer.err and answer.err.count("\n") == 1


@pytest.mark.parametrize("count", [7, 0])
def test_a_picture_that_is_none_is_one_line(empirical, tmp_path, count):
    for part in ("train", "test"):
        for name in ("a", "b"):
            (tmp_path / "own" / part / name).mkdir(parents=True)
            (tmp_path / "own" / part / name / "0.png").write_bytes(b"\x89PNG\r\n\x1a\n"[:count])
    answer = empirical("run", "collapse", f"--dataset=folder:{tmp_path / 'own'}", "--steps=2", "--device=cpu")
    assert answer.code == 2 and "0.png: not a readable image; repair or remove it" in answer.err
    assert answer.err.count("\n") == 1 and list(empirical.folder.iterdir()) == []
