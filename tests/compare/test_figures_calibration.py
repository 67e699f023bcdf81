"""The optimum at a network's own regularisation in figures: matrices beside the measured ones; loss, NC2 and NC3 as lines."""

import dataclasses

import numpy as np
import pytest
from figure_tables import collisions, run_folder
from synthetic_runs import write_training
from test_figures_predicted import network

import compare
from compare import figures
from compare.figures.calibrated import calibrated
from compare.figures.drawing import csv_text
from compare.last_layer import geometry, optimum, parts
from compare.style import WIDTHS, Style
from ufm.errors import RequestError
from ufm.problem import Problem

BASE = {"classes": 4, "dim": 16, "counts": 20, "lambda_w": 2e-3, "lambda_h": 1e-4}
STYLE = Style.of("neurips")
CASES = [
    {"loss": "ce", "bias": "none"},
    {"loss": "ce", "counts": (30, 20, 10, 5)},
    {"loss": "mse", "bias": "none"},
    {"loss": "mse", "bias": "ridge", "lambda_b": 2e-3, "features": "nonnegative"},
    {"loss": "mse", "bias": "none", "counts": (30, 20, 10, 5)},
]


def matrix(drawing, name, K):
    values = {(r[1], r[2]): r[3] for r in drawing.rows if r[0] == name}
    return np.array([[values[f"class {i}", float(j)] for j in range(K)] for i in range(K)])


@pytest.mark.parametrize("changes", CASES)
def test_nc2_and_nc3_of_a_prediction_are_what_the_measures_say_of_the_solvers_optimum(changes):
    import ufm

    problem = Problem(**{**BASE, "dim": 8, **changes})
    found = ufm.solve(problem, seed=0)
    labels = np.repeat(np.arange(4), problem.count_vector.astype(int))
    measured = ufm.measure.collapse(found.H.numpy()[labels], labels, weight=found.W.numpy(), bias=found.b.numpy())
    for name, value in geometry(optimum(problem)).items():
        assert measured[name] == pytest.approx(value, abs=1e-8), name


def test_the_parts_of_a_distance_are_orthogonal_and_say_what_was_planted():
    eye, ones = np.eye(5), np.ones((5, 5)) / 5
    wanted = 2 * eye
    assert dataclasses.astuple(parts(1.3 * wanted, wanted)) == pytest.approx((1, 0, 0))
    # 11^T/K has the part <11^T/K, I>/|I|^2 = 1/K of its square along I.
    assert dataclasses.astuple(parts(wanted + 0.4 * ones, wanted)) == pytest.approx((1 / 5, 4 / 5, 0))
    uneven = np.diag([1.0, -1.0, 0, 0, 0])
    assert dataclasses.astuple(parts(wanted + uneven, wanted)) == pytest.approx((0, 0, 1))
    both = parts(1.5 * wanted + uneven, wanted)  # squares: 5 of the scale, 2 of the classes
    assert dataclasses.astuple(both) == pytest.approx((5 / 7, 0, 2 / 7))
    told = parts(wanted + uneven + 0.1 * eye, wanted + uneven)
    assert np.isnan(told.alike) and told.scale + told.classes == pytest.approx(1)
    assert all(map(np.isnan, dataclasses.astuple(parts(wanted, wanted))))


@pytest.mark.parametrize("changes", CASES)
def test_a_network_on_the_optimum_has_the_same_maps_and_no_distance(tmp_path, changes):
    problem = Problem(**{**BASE, **changes})
    if optimum(problem).name == "solved":
        pytest.skip("the helper needs a closed form")
    table, q = network(problem, tmp_path)
    drawing = figures.draw("calibration", table, STYLE)
    for name, gram in (("W W^T", q.gram_w), ("M M^T", q.gram_h)):
        predicted, measured = (matrix(drawing, f"{name} {kind}", 4) for kind in ("predicted", "measured"))
        np.testing.assert_allclose(predicted, np.asarray(gram) / np.abs(gram).max(), atol=1e-9)
        np.testing.assert_allclose(measured, predicted, atol=1e-5)
    titles = [ax.get_title(loc="left") for ax in drawing.figure.axes]
    away = [float(text.partition("Distance ")[2]) for text in titles if "Distance" in text]
    assert len(away) == 3 and max(away) < 1e-5


def test_a_planted_common_mean_is_found_and_said(tmp_path):
    table, _ = network(Problem(**BASE, loss="ce", bias="none"), tmp_path)
    folder = next(iter(table.cells.values())).path
    from ufm.record import Run

    arrays = Run.open(f"{folder}/seed-0").read_tensors("tensors.safetensors")
    means = arrays["penultimate/train/means"]
    arrays["penultimate/train/means"] = means + 0.7 * np.linalg.norm(means[0]) / 4  # all 16 coordinates: the common part
    other = write_training(tmp_path / "shifted", seeds=[0], setting=next(iter(table.cells.values())).config, tensors=arrays)
    drawing = figures.draw("calibration", compare.load(other), STYLE)
    [note] = [note for note in drawing.notes if note.startswith("M M^T")]
    assert float(note.split("; of the square")[0].split()[-1]) > 0.5 and "0% differences" not in note.split("common factor")[0]
    share = float(note.split("common factor, ")[1].split("%")[0])
    assert share > 50  # nearly all of it is common to all classes


@pytest.mark.parametrize("width", [*WIDTHS, "75", "180"])
def test_a_loss_line_fits_at_every_width(tmp_path, width):
    table = with_loss(tmp_path)
    for name in ("trajectory", "nc"):
        assert collisions(figures.draw(name, table, Style.of(width)).figure) == []


def with_loss(root, **setting):
    """A run of two seeds with arrays, and a train loss at each of two epochs."""
    config = {"loss": "mse", "weight_decay": 1e-3, "norm": "none", "bias": True, **setting}
    run_folder(root, config=config)
    table = compare.load(root)
    seeds, number = [0, 1, 0, 1], 4
    return table.extended(
        {"cell": [next(iter(table.cells))] * number, "seed": seeds, "epoch": [0, 0, 3, 3], "step": [0, 0, 9, 9],
         "split": ["train"] * number, "layer": ["network"] * number, "measure": ["loss"] * number, "centres": ["self"] * number,
         "value": [0.5, 0.6, 0.02, 0.03]}
    )  # fmt: skip


def test_the_predicted_loss_is_a_line_in_the_trajectory_in_the_trainings_own_units(tmp_path):
    from compare.calibrate import calibrate

    one = figures.draw("trajectory", with_loss(tmp_path / "sum"), STYLE)
    table = with_loss(tmp_path / "sum")
    cell = next(iter(table.cells))
    each = [calibrate(table.of_cell(cell), table.cells[cell], seed).values["train loss"][0] for seed in (0, 1)]
    [line] = {r[3] for r in one.rows if r[:2] == ("loss", "own_decay")}
    assert line == pytest.approx(float(np.exp(np.mean(np.log(each)))))
    # The mean over K = 5 classes is 2/K of half the sum, with 2/K of the decay for the same optimum.
    mean = figures.draw("trajectory", with_loss(tmp_path / "mean", loss="mse-mean", weight_decay=1e-3 * 2 / 5), STYLE)
    [other] = {r[3] for r in mean.rows if r[:2] == ("loss", "own_decay")}
    assert other == pytest.approx(line * 2 / 5)
    assert any("Own decay" in note for note in one.notes)


def test_without_a_prediction_the_trajectory_has_two_panels(tmp_path):
    drawing = figures.draw("trajectory", with_loss(tmp_path, weight_decay=0.0), STYLE)
    assert len(drawing.figure.axes) == 2 and "own_decay" not in csv_text(drawing)


def test_nc_draws_the_predicted_structure_where_it_is_no_simplex_etf(tmp_path):
    problem = Problem(**{**BASE, "loss": "mse", "bias": "none", "counts": (30, 20, 10, 5)})
    table, q = network(problem, tmp_path)
    drawing = figures.draw("nc", table, STYLE)
    lines = {r[1]: r[3] for r in drawing.rows if r[1].startswith("theory:")}
    wanted = {name: value for name, value in geometry(q).items() if name != "nc3_papyan"}  # which these rows lack
    assert lines == {f"theory:{name}": pytest.approx(value, rel=1e-5) for name, value in wanted.items()}
    assert lines["theory:nc2_etf_weights"] > 0.1 and not any(r[:2] == ("nc2", "theory") for r in drawing.rows)
    assert any(r[:2] == ("nc1", "theory") and r[3] == 0 for r in drawing.rows)  # scatter vanishes there as well


def test_no_calibration_is_one_line_with_the_reason(tmp_path):
    with pytest.raises(RequestError, match="no prediction at the network's own regularisation: no weight decay"):
        figures.draw("calibration", run_folder(tmp_path, config={"loss": "ce"}), STYLE)
    table = run_folder(tmp_path / "b", config={"loss": "ce", "weight_decay": 1e-3, "optimizer": "adamw"})
    with pytest.raises(RequestError, match="AdamW"):
        figures.draw("calibration", table, STYLE)
    assert calibrated(table, next(iter(table.cells))) is None
