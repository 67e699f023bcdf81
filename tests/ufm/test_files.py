"""Strict JSON read fast: what is refused, and what is left out."""

import gc
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ufm import files
from ufm.errors import RunError

DIGITS = st.text("0123456789", min_size=1, max_size=400)
SIGNED = st.sampled_from(["", "+", "-"])


@given(
    whole=DIGITS, part=DIGITS, letter=st.sampled_from("eE"), sign=SIGNED, exponent=st.text("0123456789", min_size=1, max_size=4)
)
def test_a_number_is_refused_exactly_when_it_is_infinite(whole, part, letter, sign, exponent):
    text = f"{whole.lstrip('0') or '0'}.{part}{letter}{sign}{exponent}"
    if math.isinf(float(text)):
        with pytest.raises(RunError, match="not a finite number"):
            files.load_json(f'{{"a": [{text}]}}'.encode(), "here")
    else:
        assert files.load_json(f'{{"a": [{text}]}}'.encode(), "here") == {"a": [float(text)]}


@pytest.mark.parametrize(
    "text", ["1e309", "-1e309", "1E+400", "1e0309", "9" * 310 + ".0", "1" + "0" * 250 + "e60", "1" + "0" * 290 + ".5E20"]
)
def test_infinite_numbers_that_only_look_long(text):
    assert math.isinf(float(text))
    with pytest.raises(RunError, match="not a finite number"):
        files.load_json(text.encode(), "here")


@pytest.mark.parametrize(
    "text", ["NaN", "Infinity", "-Infinity", '{"a": 1, "a": 2}', '{"b": {"a": 1, "a": 1}}', "[" * 10**5, "\ufeff1", "1 2", ""]
)
def test_what_is_not_strict_json_is_refused(text):
    with pytest.raises(RunError, match="not valid JSON"):
        files.load_json(text.encode(), "here")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
GRAM = st.fixed_dictionaries({}, optional={n: st.lists(st.floats(-1e300, 1e300), max_size=4) for n in ("weights", "means")})


@given(row=st.dictionaries(st.text(max_size=8).filter(lambda name: name != "gram"), JSON, min_size=1, max_size=4), gram=GRAM)
def test_a_record_of_numbers_is_left_out_and_nothing_else(row, gram):
    line = files.dump_json({**row, "gram": gram, "chunk": 1})
    left = json.loads(files.without(line, "gram"))
    row.pop("chunk", None)
    assert {**left, **row} == {**row, "chunk": 1} and "gram" not in left


@pytest.mark.parametrize(
    "value", [',"gram":{"weights":[1]}', '"gram":{', "gram", {"deep": [',"gram":{}']}, [',"gram":{"a":[1]}}']]
)
def test_a_text_that_looks_like_the_record_stays(value):
    line = files.dump_json({"a": value, "chunk": 2})
    assert files.without(line, "gram") == line


def test_a_record_of_another_kind_stays():
    for gram in ({"weights": "text"}, {"weights": {"a": [1.0]}}, [1.0], 3):
        line = files.dump_json({"a": 1, "gram": gram})
        assert files.without(line, "gram") == line


def test_the_collector_runs_again_after_a_failure():
    with pytest.raises(ZeroDivisionError), files.uncollected():
        assert not gc.isenabled()
        _ = 1 / 0
    assert gc.isenabled()
    gc.disable()
    try:
        with files.uncollected():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
