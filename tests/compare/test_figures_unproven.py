"""What is evidence only is drawn and written as such; a regime that ends in one group says whose it is."""

import numpy as np
import pytest

import compare
from compare.figures import gram_theory, sweep
from compare.style import Style
from ufm import spec
from ufm.prediction import EVIDENCE
from ufm.sweep import execute, plan
from ufm.systems.single import SYSTEM

ENV = {"version": "1", "commit": "a", "dirty": False}


def table_of(root, **options):
    values = spec.resolve(SYSTEM.spec, {"per_class": 10, **options})
    outcome = execute(plan(SYSTEM, values, spec.cells(values), [0]), root=root, environment=ENV)
    return compare.load(outcome.path)


@pytest.fixture(scope="module")
def plane(tmp_path_factory):
    return table_of(tmp_path_factory.mktemp("plane"), classes=5, dim="2,6", lambda_w="1e-3:1e-1:4log")


def lines_of(figure):
    return {line.get_gid(): line for ax in figure.axes for line in ax.lines if str(line.get_gid()).startswith("curve:predicted")}


def test_the_table_says_which_predictions_are_not_proven(plane):
    losses = plane.where(measure="loss")
    dims = np.array([plane.cells[name].config["dim"] for name in losses["cell"]])
    assert set(losses["assumption"][dims == 6]) == {"optimum of this problem"}
    assert set(losses["assumption"][dims == 2]) == {f"optimum of this problem: {EVIDENCE}"}
    assert np.isfinite(losses["predicted"]).all()


def test_an_unproven_curve_is_dotted_and_named(plane):
    drawing = sweep.draw(plane, Style.of("icml"))
    lines = lines_of(drawing.figure)
    shaky, proven = "curve:predicted, not proven, loss dim=2", "curve:predicted loss dim=6"
    assert {shaky, proven} <= set(lines) and "curve:predicted loss dim=2" not in lines
    assert lines[shaky].get_linestyle() == ":" or lines[shaky].is_dashed()
    assert lines[shaky]._unscaled_dash_pattern != lines[proven]._unscaled_dash_pattern
    legend = [text.get_text() for text in drawing.figure.legends[0].get_texts()]
    assert sweep.UNPROVEN in legend and sweep.PREDICTED in legend
    assert "Dotted predictions are evidence only (multistart), not proven." in drawing.notes
    assert any(row[1] == "predicted, not proven, loss dim=2" for row in drawing.rows)


def test_a_gram_of_a_code_is_drawn_as_the_classes_sit_and_marked(plane):
    drawing = gram_theory.draw(plane, Style.of("neurips"))
    grams = {}
    for name, label, column, value, *_ in drawing.rows:
        grams.setdefault(name, {})[label, column] = value
    number = next(i for i, note in enumerate(drawing.notes[1:]) if "code" in note)
    for side in ("weights", "means"):
        found, expected = grams[f"{side} found {number}"], grams[f"{side} predicted {number}"]
        assert max(abs(found[key] - expected[key]) for key in found) < 1e-6
    titles = {ax.get_label(): ax.get_title(loc="left") for ax in drawing.figure.axes}
    assert titles[f"weights predicted {number}"].endswith("predicted*") and titles[f"weights found {number}"].endswith("found")
    assert any(EVIDENCE in ax.get_xlabel() for ax in drawing.figure.axes)


def test_a_threshold_names_its_group(tmp_path):
    table = table_of(tmp_path, classes=4, dim=6, minority=2, imbalance="1,5", per_class=50, lambda_w="1e-3:10:9log")
    drawing = sweep.draw(table, Style.of("icml"))
    places = {row[1]: row[2] for row in drawing.rows if row[-1] == "threshold"}
    # By hand: K sqrt(n lambda_w lambda_h) = 1 balanced; n_B = N^2 lambda_w lambda_h with n_B = 10, N = 120.
    assert places["zero solution (imbalance=1)"] == pytest.approx(1 / (16 * 50 * 5e-4), rel=1e-9)
    assert places["minority collapse (imbalance=5)"] == pytest.approx(10 / (120**2 * 5e-4), rel=1e-9)
    styles = {
        line.get_gid(): line._unscaled_dash_pattern for line in drawing.figure.axes[0].lines if "threshold" in str(line.get_gid())
    }
    assert len(styles) == len(places) == len(set(map(str, styles.values())))
