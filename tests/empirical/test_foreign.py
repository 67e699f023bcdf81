"""Features files: what is read, and what is refused in one line."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from make_features import make
from safetensors.torch import save_file

from empirical import foreign
from empirical.foreign import measure_foreign, read_features, summary, with_ood
from ufm.errors import RequestError

ATTACKS = sorted((Path(__file__).parent.parent / "attacks").glob("features-*"))


def arrays(name="confused"):
    made = make(name)
    return {
        "train/features": made["features"],
        "train/labels": made["labels"],
        "test/features": made["test_features"],
        "test/labels": made["test_labels"],
        "weight": made["weight"],
        "bias": made["bias"],
    }


def write(path, given):
    if path.suffix == ".npz":
        np.savez(path, **given)
    else:
        save_file({k: torch.as_tensor(np.asarray(v)).contiguous() for k, v in given.items()}, path)
    return path


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_a_good_file_is_read_whole(tmp_path, suffix):
    given = arrays()
    given["train/features/block.1"] = given["train/features"][:, :3]
    given["test/features/block.1"] = given["test/features"][:, :3]
    given["ood/features"] = given["test/features"] + 9
    found = read_features(write(tmp_path / f"f{suffix}", given))
    assert list(found.layers) == ["block.1", "penultimate"] and found.classes == 10
    for key, tensor in (
        ("train/features", found.layers["penultimate"][0]),
        ("test/features", found.layers["penultimate"][1]),
        ("test/features/block.1", found.layers["block.1"][1]),
        ("train/labels", found.train_labels),
        ("test/labels", found.test_labels),
        ("weight", found.weight),
        ("bias", found.bias),
        ("ood/features", found.ood["penultimate"]),
    ):
        np.testing.assert_array_equal(tensor.numpy(), given[key])
    said = summary(found)
    assert said["layers"] == {"block.1": 3, "penultimate": 32} and sum(said["train_counts"]) == len(given["train/labels"])


def test_number_types_and_memory_orders(tmp_path):
    given = arrays()
    want = read_features(write(tmp_path / "f.npz", given))
    forms = {
        "fortran": {"train/features": np.asfortranarray(given["train/features"])},
        "big-endian": {
            "train/features": given["train/features"].astype(">f8"),
            "train/labels": given["train/labels"].astype(">i2"),
        },
        "unsigned": {
            "train/labels": given["train/labels"].astype(np.uint16),
            "test/labels": given["test/labels"].astype(np.uint8),
        },
        "long double": {"train/features": given["train/features"].astype(np.longdouble)},
    }
    for name, changed in forms.items():
        found = read_features(write(tmp_path / f"{name}.npz", {**given, **changed}))
        assert torch.equal(found.layers["penultimate"][0], want.layers["penultimate"][0]), name
        assert torch.equal(found.train_labels, want.train_labels), name
    half = {k: torch.as_tensor(v) for k, v in given.items()}
    half["train/features"] = half["train/features"].to(torch.bfloat16)
    save_file(half, tmp_path / "half.safetensors")
    assert read_features(tmp_path / "half.safetensors").layers["penultimate"][0].dtype == torch.float32


def test_rows_are_the_golden_values(tmp_path):
    import json

    golden = json.loads((Path(__file__).parent.parent / "golden" / "measures_public.json").read_text())
    for name in ("confused", "imbalanced", "few_dims"):
        rows, arrays_ = measure_foreign(read_features(write(tmp_path / f"{name}.npz", arrays(name))), "cpu")
        found = {(r["split"], r["centres"], r["metric"]): r["value"] for r in rows if r["layer"] == "penultimate"}
        for key, value in golden[name].items():
            place = ("train", "self", key)
            if key.startswith("test_"):
                key = key.removeprefix("test_")
                place = ("test", "self", "nc1_pinv") if key == "nc1_pinv_self" else ("test", "train", key)
            if place in found:
                assert found[place] == pytest.approx(value, rel=1e-9, abs=1e-15), (name, place)
        assert found["test", "train", "nc1_pinv_strong"] == pytest.approx(arrays_["penultimate/test/strong"].mean(), rel=1e-9)


def test_loss_and_error_of_the_classifier(tmp_path):
    given = arrays()
    rows, found = measure_foreign(read_features(write(tmp_path / "f.npz", given)), "cpu")
    logits = torch.from_numpy(given["test/features"] @ given["weight"].T + given["bias"])
    y = torch.from_numpy(given["test/labels"])
    values = {(r["split"], r["metric"]): r["value"] for r in rows if r["layer"] == "network"}
    assert values["test", "error"] == pytest.approx((logits.argmax(1) != y).double().mean().item(), abs=1e-12)
    assert values["test", "loss"] == pytest.approx(torch.nn.functional.cross_entropy(logits, y).item(), rel=1e-10)
    assert np.trace(found["test/confusion"]) == (logits.argmax(1) == y).sum()
    given.pop("weight"), given.pop("bias")
    rows, found = measure_foreign(read_features(write(tmp_path / "bare.npz", given)), "cpu")
    assert {r["layer"] for r in rows} == {"penultimate"} and "test/confusion" not in found


def test_nc5_against_its_formula(tmp_path):
    given = arrays()
    save_file({"ood/features": torch.from_numpy(given["test/features"][:30] * 2 + 1)}, tmp_path / "ood.safetensors")
    data = with_ood(read_features(write(tmp_path / "f.npz", given)), tmp_path / "ood.safetensors")
    rows, _ = measure_foreign(data, "cpu")
    (found,) = (r["value"] for r in rows if r["metric"] == "nc5" and r["split"] == "train")
    x, y = given["train/features"], given["train/labels"]
    means = np.stack([x[y == k].mean(0) for k in range(10)])
    away = (given["test/features"][:30] * 2 + 1).mean(0) - means.mean(0)
    centred = means - means.mean(0)
    assert found == pytest.approx(
        np.abs(centred @ away / np.linalg.norm(centred, axis=1) / np.linalg.norm(away)).mean(), rel=1e-9
    )


def test_a_class_without_samples_is_left_out_with_a_warning(tmp_path):
    data = read_features(write(tmp_path / "f.npz", arrays("missing")))
    with pytest.warns(UserWarning, match="class 7"):
        rows, _ = measure_foreign(data, "cpu")
    (value,) = (r["value"] for r in rows if (r["metric"], r["split"]) == ("nc1_pinv", "train"))
    assert value > 0


def changed(**changes):
    given = arrays()
    for key, value in changes.items():
        name = key.replace("__", "/")
        if value is None:
            given.pop(name)
        else:
            given[name] = value(given[name]) if callable(value) else value
    return given


def poison(x):
    x = x.copy()
    x[5, 2] = np.nan
    return x


WRONG = {
    "missing key": (changed(test__labels=None), "no test/labels"),
    "unknown key": (changed(wieght=np.zeros((10, 32))), "did you mean 'weight'"),
    "nan": (changed(train__features=poison), r"train/features\[5, 2\] is nan"),
    "infinite weight": (changed(weight=lambda w: w + np.inf), "weight.* must be finite"),
    "one dimension": (changed(train__features=lambda x: x[:, 0]), r"must be \(N, d\)"),
    "maps": (changed(train__features=lambda x: x.reshape(-1, 2, 4, 4)), r"must be \(N, d\)"),
    "no samples": (changed(train__features=lambda x: x[:0], train__labels=lambda y: y[:0]), "N, d >= 1"),
    "label count": (changed(train__labels=lambda y: y[1:]), "one per sample"),
    "float labels": (changed(train__labels=lambda y: y * 1.0), "labels are integers"),
    "one-hot labels": (changed(train__labels=lambda y: np.eye(10, dtype=int)[y]), "train/labels has shape"),
    "labels far apart": (
        {k: v for k, v in changed(train__labels=lambda y: y + 2**40).items() if k not in ("weight", "bias")},
        rf"f.npz: labels up to {2**40 + 9}: {2**40 + 10} classes need more memory than any machine has",
    ),
    "negative label": (changed(train__labels=lambda y: y - 1), "holds -1"),
    "label too large": (changed(test__labels=lambda y: y + 1), "holds 10"),
    "one class": (changed(train__labels=lambda y: 0 * y), "one class only"),
    "dimension": (changed(test__features=lambda x: x[:, 1:]), "32 on train, 31 on test"),
    "weight transposed": (changed(weight=lambda w: w.T.copy()), r"it must be \(K, 32\)"),
    "bias length": (changed(bias=lambda b: b[1:]), "one per row of weight"),
    "bias alone": (changed(weight=None), "bias without weight"),
    "half a layer": (changed(train__features__x=np.zeros((500, 3))), "both splits"),
    "other half": (changed(test__features__x=np.zeros((200, 3))), "both splits"),
    "layer length": (changed(train__features__x=np.zeros((3, 3)), test__features__x=np.zeros((200, 3))), "3 samples"),
    "ood layer": (changed(ood__features__x=np.zeros((5, 3))), "do not match"),
    "reserved": (changed(train__features__network=np.zeros((500, 3))), "taken"),
    "complex": (changed(train__features=lambda x: x + 1j), "real numbers"),
    "text": (changed(train__labels=lambda y: y.astype(str)), "real numbers"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_contents_are_one_line(tmp_path, name):
    given, message = WRONG[name]
    with np.errstate(all="ignore"), pytest.raises(RequestError, match=message) as caught:
        read_features(write(tmp_path / "f.npz", given))
    assert "\n" not in str(caught.value)


def test_wrong_options_and_places(tmp_path, monkeypatch):
    good = write(tmp_path / "f.npz", arrays())
    with pytest.raises(RequestError, match="--classes 12, but weight has 10 rows"):
        read_features(good, classes=12)
    with pytest.raises(RequestError, match="no such file"):
        read_features(tmp_path / "missing.npz")
    with pytest.raises(RequestError, match="no such file"):
        read_features(tmp_path)
    os.mkfifo(tmp_path / "pipe.npz")  # opening one would wait for ever
    with pytest.raises(RequestError, match="no such file"):
        read_features(tmp_path / "pipe.npz")
    (tmp_path / "f.pt").write_bytes(b"")
    with pytest.raises(RequestError, match=r"unknown format '\.pt'"):
        read_features(tmp_path / "f.pt")
    with pytest.raises(RequestError, match="no ood/features"):
        with_ood(read_features(good), good)
    monkeypatch.setattr(foreign, "free_memory", lambda device: 10_000)
    with pytest.raises(RequestError, match="of memory are free"):
        read_features(good)


@pytest.mark.parametrize("path", ATTACKS, ids=lambda path: path.name)
def test_hostile_files_are_refused_in_one_line(path):
    with pytest.raises(RequestError) as caught:
        read_features(path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_there_are_hostile_files():
    assert len(ATTACKS) >= 15


def test_every_truncation_and_many_flipped_bits_are_refused_or_harmless(tmp_path):
    """A flipped bit in a number cannot be noticed without a checksum; a zip has one, so every .npz read back is the same."""
    good = write(tmp_path / "f.npz", arrays("few_dims")).read_bytes()
    want = read_features(tmp_path / "f.npz")
    bad = tmp_path / "bad.npz"
    draw = np.random.default_rng(0)
    for cut in draw.integers(1, len(good) - 1, 40):
        bad.write_bytes(good[:cut])
        with pytest.raises(RequestError):
            read_features(bad)
    refused = 0
    for place in draw.integers(0, 8 * len(good), 120):
        data = bytearray(good)
        data[place // 8] ^= 1 << (place % 8)
        bad.write_bytes(data)
        try:
            found = read_features(bad)
        except RequestError:
            refused += 1
        else:
            assert torch.equal(found.layers["penultimate"][0], want.layers["penultimate"][0])
            assert torch.equal(found.train_labels, want.train_labels) and torch.equal(found.weight, want.weight)
    assert refused > 100
