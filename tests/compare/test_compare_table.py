import csv
import io
import json
import math

import numpy as np
import pytest
from scipy import stats
from synthetic_runs import write_training

from compare import table as tables
from compare.conventions import conventions
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
    rows = conventions(load(write_training(tmp_path)))
    assert {r["measure"] for r in rows} == {"nc1_pinv", "nc1_pinv_strong", "nc1_pinv_weak"}
    assert all(r["definition"] and r["used by"] for r in rows)
    with pytest.raises(RequestError, match="no NC1"):
        conventions(rows_for([0.1], "loss"))


def test_unknown_names_get_a_suggestion():
    with pytest.raises(RequestError, match="did you mean 'nc1_pinv'"):
        tables.numbers(rows_for([0.1]), measures=["nc1_pin"])
    with pytest.raises(RequestError, match="did you mean 'latex'"):
        tables.write([], ("a",), "latec")


def test_the_classifiers_input_and_the_last_epoch_are_shown_unless_others_are_asked_for(tmp_path):
    table = load(write_training(tmp_path, layers=("blocks.0", "penultimate")))
    shown = tables.numbers(tables.chosen_layers(table, None))
    assert {row["layer"] for row in shown} == {"penultimate", "network"} and {row["epoch"] for row in shown} == {100}
    assert {row["layer"] for row in tables.numbers(tables.chosen_layers(table, ["blocks.0"]))} == {"blocks.0"}
    every = tables.numbers(tables.chosen_layers(table, ["all"]), epochs="all")
    assert {row["layer"] for row in every} == {"blocks.0", "penultimate", "network"}
    assert sorted({row["epoch"] for row in every}) == [0, 1, 10, 100] and len(every) == 4 * (2 * 9 + 2)
    first = next(r for r in every if (r["epoch"], r["layer"], r["measure"]) == (0, "penultimate", "nc1_pinv_strong"))
    values = table.where(epoch=0, layer="penultimate", measure="nc1_pinv_strong")["value"]
    assert first["mean"] == pytest.approx(stats.gmean(values)) and first["seeds"] == 5


def test_a_run_without_the_usual_layer_is_shown_whole(tmp_path):
    table = load(write_training(tmp_path, layers=("mine",)))
    assert {row["layer"] for row in tables.numbers(tables.chosen_layers(table, None))} == {"mine", "network"}


def test_an_unknown_layer_or_epoch_is_a_request_that_says_what_there_is(tmp_path):
    table = load(write_training(tmp_path))
    with pytest.raises(RequestError, match="did you mean 'penultimate'"):
        tables.chosen_layers(table, ["penultimat"])
    with pytest.raises(RequestError, match="--epoch 7 was not measured; measured: 0, 1, 10, 100"):
        tables.numbers(table, epochs=[0, 7])


def test_seeds_that_end_at_different_epochs_have_no_common_one(tmp_path):
    write_training(tmp_path, seeds=[0], epochs=(0, 10))
    table = load(write_training(tmp_path, seeds=[1], epochs=(0, 12)))
    row = tables.numbers(table, measures=["nc1_pinv_strong"])[0]
    assert row["epoch"] is None and row["seeds"] == 2


@pytest.mark.parametrize("form", tables.FORMATS)
def test_the_command_chooses_the_same_rows_in_every_format(tmp_path, form):
    from click.testing import CliRunner

    from compare.commands.table import command

    folder = str(write_training(tmp_path, layers=("blocks.0", "penultimate")))
    made = CliRunner().invoke(command, [folder, "--format", form])
    whole = CliRunner().invoke(command, [folder, "--format", form, "--layer", "all", "--epoch", "0,100"])
    assert made.exit_code == whole.exit_code == 0
    assert made.stdout.count("nc1") * 4 == whole.stdout.count("nc1") > 0
    assert "blocks" not in made.stdout and "blocks" in whole.stdout


@pytest.mark.parametrize("given", ["x", "-1", "1e9", "", "1,,2"])
def test_an_epoch_that_is_no_number_is_refused(tmp_path, given):
    from compare.commands.table import command

    with pytest.raises(RequestError, match="--epoch"):
        command.callback((str(tmp_path),), "text", False, None, None, given, None, False)


def test_the_interval_of_a_test_error_joins_its_sample(tmp_path):
    folder = write_training(tmp_path, tensors={"test/labels": np.zeros(797, dtype=np.int64)})
    row, train = (
        next(r for r in tables.numbers(load(folder)) if (r["measure"], r["split"]) == wanted)
        for wanted in (("ncc_error", "test"), ("nc1_pinv", "train"))
    )
    # By hand: every seed's error is 0.01 of the same 797 images, so that all that is uncertain is which images they
    # are; t has four degrees of freedom, since five equal numbers do not show that the seeds' spread is 0.
    adjusted = (0.01 * 797 + 2) / 801
    half = stats.t.ppf(0.975, 4) * math.sqrt(adjusted * (1 - adjusted) / 801)
    assert row["mean"] == pytest.approx(0.01) and row["seeds"] == 5 and row["average"] == "arithmetic"
    assert row["high"] == pytest.approx(0.01 + half)
    assert 0 <= row["low"] < 0.01 and train["average"] == "geometric"


def test_a_test_error_of_any_epoch_has_its_sample_and_nc1_that_of_the_last(tmp_path):
    share = np.zeros(60)
    share[:2] = 0.9
    tensors = {"test/labels": np.zeros(60, dtype=np.int64), "penultimate/test/strong": share}
    plain, joined = (
        {
            (r["measure"], r["epoch"]): r
            for r in tables.numbers(load(folder), measures=["ncc_error", "nc1_pinv_strong"], epochs="all")
        }
        for folder in (write_training(tmp_path / "plain"), write_training(tmp_path / "kept", tensors=tensors))
    )

    def width(row):
        return row["high"] - row["low"]

    wider = {key for key in plain if width(joined[key]) > 1.01 * width(plain[key])}
    assert wider == {("nc1_pinv_strong", 100), *(("ncc_error", epoch) for epoch in (0, 1, 10, 100))}


@pytest.mark.parametrize("measure", ["ncc_error", "nc4_disagreement", "probe_raw"])
def test_a_share_has_an_arithmetic_mean_and_an_interval_between_0_and_1(measure):
    low = tables.numbers(rows_for([0.001, 0.0001, 0.004], measure))[0]
    high = tables.numbers(rows_for([0.999, 0.9999, 0.996], measure))[0]
    assert low["average"] == high["average"] == "arithmetic" and low["low"] == 0.0 and high["high"] == 1.0
    assert low["mean"] == pytest.approx(0.0017) and low["high"] > 0.0017
    assert math.isnan(tables.numbers(rows_for([0.001], measure))[0]["low"])
