import numpy as np
import pytest
from synthetic_runs import hui_setting, write_training

from compare.load import load
from compare.pair import class_counts, lines_at, not_an_etf, train_predictions
from compare.rows import Cell, Codes
from ufm.theory import separation


def test_train_measures_are_predicted_to_vanish_and_test_gets_the_floor(tmp_path):
    write_training(tmp_path)
    table = load(tmp_path)
    assert set(table.where(measure="nc1_pinv", split="train")["predicted"]) == {0.0}
    assert set(table.where(measure="nc2_etf_weights", split="train")["reference"]) == {"zhu2021"}
    points = table.points("nc1_pinv_strong", "ncc_error_between", "nc1_pinv_between")
    strong = table.where(measure="nc1_pinv_strong")
    order = {(s, e): v for s, e, v in zip(points["seed"], points["epoch"], points["ncc_error_between"], strict=True)}
    wanted = [order[s, e] / 2 for s, e in zip(strong["seed"], strong["epoch"], strict=True)]
    assert strong["predicted"].tolist() == wanted
    assert all(text.startswith("lower bound") for text in strong["assumption"])
    between = table.where(measure="nc1_pinv_between")
    assert between["predicted"] == pytest.approx(between["value"])
    own = table.where(measure="nc1_pinv", split="test")
    assert np.isnan(own["predicted"]).all() and "says nothing" in own["assumption"][0]
    assert set(table.where(measure="samples")["assumption"]) == {""}


@pytest.mark.parametrize(
    "changes, word",
    [({"imbalance": 10.0}, "imbalanced"), ({"label_noise": 0.2}, "labels"), ({"loss": "mse", "bias": False}, "orthogonal")],
)
def test_outside_the_assumptions_there_is_no_etf_prediction(tmp_path, changes, word):
    write_training(tmp_path, seeds=[0], setting=hui_setting(**changes))
    write_training(tmp_path, seeds=[0])
    table = load(tmp_path)
    by_cell = {name: table.where(cell=name, measure="nc2_etf_weights") for name in table.cells}
    for name, part in by_cell.items():
        if not_an_etf(table.cells[name].config):
            assert np.isnan(part["predicted"]).all() and word in part["assumption"][0]
        else:
            assert (part["predicted"] == 0).all()
    assert set(table.where(measure="nc1_pinv", split="train")["predicted"]) == {0.0}


@pytest.mark.parametrize(
    "config, counts, word",
    [
        ({"imbalance": 1.0}, [13861, 4659], "imbalanced"),  # SVHN as it comes
        ({"model": "mlp", "width": 8, "depth": 4}, [100] * 10, "8 features: a simplex ETF of 10 classes needs 9"),
        ({"layers": {"hidden": 64, "penultimate": 2}}, [30] * 4, "2 features"),
        ({"model": "mlp", "width": 9, "depth": 4}, [100] * 10, ""),
        ({"model": "convnet", "width": 4, "depth": 3}, [6742, 5421], ""),  # MNIST's; the width is of the first block
        ({"model": "mlp", "width": 8, "depth": 4}, [], ""),
        ({"head": "polygon", "width": 64}, [100] * 10, "fixed at a polygon"),
    ],
)
def test_what_the_run_says_of_its_classes_counts(config, counts, word):
    found = not_an_etf(config, counts)
    assert word in found and bool(word) == bool(found)


def test_class_counts_come_from_the_result_else_from_the_setting(tmp_path):
    counts = {"train_counts": [90, 30, 30]}
    folder = write_training(tmp_path, seeds=[0], setting=hui_setting(**counts))
    table = load(folder)
    assert class_counts(table.cells[folder.name]) == (90, 30, 30)
    part = table.where(measure="nc2_etf_weights")
    assert np.isnan(part["predicted"]).all() and "imbalanced" in part["assumption"][0]
    cell = Cell("c", "collapse", "", counts, results={0: {"data": {"counts": [5, 5]}}})
    assert class_counts(cell) == (5, 5)


def test_the_bias_of_squared_error_does_not_vanish():
    assert train_predictions({"loss": "ce"})["bias_collapse"].value == 0
    assert "bias_collapse" not in train_predictions({"loss": "mse"})


def test_lines_of_one_state():
    lines = {line.name: line for line in lines_at(0.02, 0.018, classes=10, samples=797)}
    assert lines["floor err_B/2"].value == 0.009 and lines["2 err"].value == 0.04
    assert lines["2 err"].low < 0.04 < lines["2 err"].high
    assert float(separation.gaussian_etf_error(lines["Gaussian"].value, 10)) == pytest.approx(0.02, rel=1e-6)
    assert lines["own means"].value > 0.04
    assert [line.name for line in lines_at(0.0, 0.0, classes=10)] == ["floor err_B/2", "2 err"]


def test_codes_round_trip():
    assert Codes.of(["b", "a", "b"]).take(np.array([2, 1])).decode().tolist() == ["b", "a"]
