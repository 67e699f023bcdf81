import csv
import io
import json
import math

import numpy as np
import pytest
from scipy import stats
from synthetic_runs import write_training

from compare import table as tables
from compare.load import load
from compare.rows import table_of
from ufm.errors import RequestError


def rows_for(values, measure="nc1_pinv"):
    number = len(values)
    return table_of(
        {"measure": [measure] * number, "value": values, "seed": range(number), "epoch": [3] * number, "cell": ["=c"] * number,
         "split": ["train"] * number, "layer": ["penultimate"] * number, "centres": ["self"] * number,
         "predicted": [0.0] * number}
    )  # fmt: skip


def test_mean_and_interval_are_geometric_for_a_positive_quantity():
    values = [0.01, 0.02, 0.04]
    row = tables.numbers(rows_for(values))[0]
    low, high = stats.t.interval(0.95, 2, loc=np.mean(np.log(values)), scale=stats.sem(np.log(values)))
    assert row["mean"] == pytest.approx(0.02) and (row["low"], row["high"]) == pytest.approx((math.exp(low), math.exp(high)))
    assert row["predicted"] == 0.0 and row["seeds"] == 3


def test_an_error_rate_has_an_arithmetic_mean():
    assert tables.numbers(rows_for([0.1, 0.2, 0.3], "ncc_error"))[0]["mean"] == pytest.approx(0.2)


def test_the_prediction_is_averaged_as_its_measurement_is():
    share = [0.01, 0.02, 0.04]
    table = dict(rows_for([2 * e for e in share], "nc1_pinv_between")) | {"predicted": np.array([2 * e for e in share])}
    row = tables.numbers(table_of(table))[0]  # an identity: equal in every seed, so equal in the mean
    assert row["average"] == "geometric" and row["predicted"] == pytest.approx(row["mean"], rel=1e-12) == pytest.approx(0.04)
    table = dict(rows_for([0.1, 0.0, 0.2])) | {"predicted": np.array([0.1, 0.3, 0.2])}
    row = tables.numbers(table_of(table))[0]
    assert row["average"] == "arithmetic" and row["predicted"] == pytest.approx(0.2)


def test_one_seed_has_no_interval_and_a_missing_value_no_mean():
    row = tables.numbers(rows_for([0.5]))[0]
    assert row["mean"] == pytest.approx(0.5) and math.isnan(row["low"])
    assert tables.numbers(rows_for([math.nan]))[0]["seeds"] == 0


@pytest.mark.parametrize("form", tables.FORMATS)
def test_every_format_holds_the_numbers(form):
    text = tables.write(tables.numbers(rows_for([0.01, 0.02, 0.04])), tables.COLUMNS, form)
    assert "0.02" in text and text.endswith("\n")


def test_csv_and_json_are_full_precision_and_safe():
    value = 0.1234567890123456
    rows = tables.numbers(rows_for([value], "ncc_error"))
    read = list(csv.DictReader(io.StringIO(tables.write(rows, tables.COLUMNS, "csv"))))
    assert float(read[0]["mean"]) == value and read[0]["cell"] == "'=c" and read[0]["low"] == ""
    assert json.loads(tables.write(rows, tables.COLUMNS, "json"))[0]["low"] is None


def test_latex_and_markdown_escape_names():
    row = {"cell": r"a_b & 50% \x {#$} ~^", "mean": 1.5e-7}
    latex = tables.write([row], ("cell", "mean"), "latex")
    assert r"a\_b \& 50\% \textbackslash{}x \{\#\$\} \textasciitilde{}\textasciicircum{}" in latex
    assert r"$1.5 \times 10^{-7}$" in latex
    assert r"a\|b" in tables.write([{"cell": "a|b"}], ("cell",), "markdown")


def test_conventions_say_what_each_nc1_is(tmp_path):
    rows = tables.conventions(load(write_training(tmp_path)))
    assert {r["measure"] for r in rows} == {"nc1_pinv", "nc1_pinv_strong", "nc1_pinv_weak"}
    assert all(r["definition"] and r["used by"] for r in rows)
    with pytest.raises(RequestError, match="no NC1"):
        tables.conventions(rows_for([0.1], "loss"))


def test_unknown_names_get_a_suggestion():
    with pytest.raises(RequestError, match="did you mean 'nc1_pinv'"):
        tables.numbers(rows_for([0.1]), measures=["nc1_pin"])
    with pytest.raises(RequestError, match="did you mean 'latex'"):
        tables.write([], ("a",), "latec")
