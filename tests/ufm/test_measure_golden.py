"""Every golden value, from float64 and from float32 input."""

import json
import math
import warnings
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from make_features import NAMES, make

from ufm.measure import ClassMoments, arrays, collapse

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "measures_public.json").read_text())
TOLERANCE = {"float64": dict(rtol=1e-9, atol=1e-15), "float32": dict(rtol=1e-4, atol=1e-8)}
# Two golden values say nothing of the measure, and are left out:
EXCEPT = {
    # Sigma_T has condition 1e12 there, so the d x d solve behind the golden value is noise of 1e-6 (it is negative, VCI is not);
    # test_measure_algebra checks VCI at such collapse against rational arithmetic.
    ("collapsed", "float64", "vci"),
    ("collapsed", "float32", "vci"),
    # Exact for the float64 weight. Rounding 2 * ETF to float32 moves its Gram by 2e-8: test_rounded_weight proves it.
    ("collapsed", "float32", "nc2_etf_weights"),
}
PAIRS = [(name, dtype) for name in GOLDEN for dtype in TOLERANCE]


def measured(name, dtype, as_array=np.asarray, stream=0):
    data = {key: value.astype(dtype) if value.dtype.kind == "f" else value for key, value in make(name, stream).items()}
    data = {key: as_array(value) for key, value in data.items()}
    classifier = dict(weight=data["weight"], bias=data["bias"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the set with a missing class says so
        train = ClassMoments.of(data["features"], data["labels"], classes=10)
        own = collapse(data["features"], data["labels"], **classifier)
        test = collapse(data["test_features"], data["test_labels"], **classifier, reference=train)
    values = dict(own)
    values |= {f"test_{key}": value for key, value in test.items() if test.centres[key] == "train"}
    values["test_nc1_pinv_self"] = test["nc1_pinv"]
    return values


@pytest.mark.parametrize(("name", "dtype"), PAIRS)
def test_every_value(name, dtype):
    values = measured(name, dtype)
    wrong = {}
    for key, wanted in GOLDEN[name].items():
        if (name, dtype, key) not in EXCEPT and not np.isclose(values[key], wanted, **TOLERANCE[dtype]):
            wrong[key] = (values[key], wanted)
    assert not wrong


def test_rounded_weight():
    """In rational arithmetic the rounded weight of the collapsed set is 2e-8 from the ETF: no float32 input can give 7e-16."""
    weight = [[Fraction(float(value)) for value in row] for row in make("collapsed")["weight"].astype(np.float32)]
    gram = [[sum(a * b for a, b in zip(u, v, strict=True)) for v in weight] for u in weight]
    size = Fraction(math.sqrt(sum(g * g for row in gram for g in row)))  # relative error 1e-16, far below what is shown
    target = [[(Fraction(i == j) - Fraction(1, 10)) / 3 for j in range(10)] for i in range(10)]
    squares = sum((gram[i][j] / size - target[i][j]) ** 2 for i in range(10) for j in range(10))
    exact = math.sqrt(squares)
    assert 1.9e-8 < exact < 2.2e-8
    assert measured("collapsed", "float32")["nc2_etf_weights"] == pytest.approx(exact, rel=1e-6)


@pytest.mark.parametrize("name", GOLDEN)
def test_the_ways_of_an_accelerator(name, monkeypatch):
    """The same code as on CUDA, run here: one-hot sums, float64 products of float32 features, large blocks."""
    monkeypatch.setattr(arrays, "on_cpu", lambda tensor: False)
    for dtype in TOLERANCE:
        values = measured(name, dtype)
        for key, wanted in GOLDEN[name].items():
            if (name, dtype, key) not in EXCEPT:
                assert values[key] == pytest.approx(wanted, rel=TOLERANCE[dtype]["rtol"], abs=TOLERANCE[dtype]["atol"]), key


@pytest.mark.parametrize("name", NAMES)
def test_float32_arithmetic_on_the_rounded_input(name):
    """What float32 input changes is its own rounding: measured in float64 after rounding, the values are the same to 1e-5."""
    narrow = measured(name, "float32", stream=1)
    wide = measured(name, "float32", lambda value: value.astype(np.float64) if value.dtype.kind == "f" else value, stream=1)
    for key in narrow:
        assert narrow[key] == pytest.approx(wide[key], rel=1e-5, abs=2e-8, nan_ok=True), key


def test_torch_gives_the_same():
    for dtype in TOLERANCE:
        plain, torched = measured("imbalanced", dtype), measured("imbalanced", dtype, torch.from_numpy)
        assert plain.keys() == torched.keys()
        assert all(plain[key] == torched[key] for key in plain)
