"""The figure starvation: what is found lies on theory, an elasticity may be negative, and other runs are refused."""

import numpy as np
import pytest
from figure_tables import table_for
from sweep_tables import run

import compare
from compare import figures
from compare.style import Style
from ufm.errors import RequestError


def test_found_and_theory_of_every_panel_agree():
    table = table_for("starvation")
    drawing = figures.draw("starvation", table, Style.of("neurips"))
    place = {name: drawing.columns.index(name) for name in ("curve", "x", "value")}
    curves = {}
    for row in drawing.rows:
        curves.setdefault(row[place["curve"]], []).append(float(row[place["value"]]))
    found = {name: values for name, values in curves.items() if not name.startswith("predicted")}
    assert len(found) == 6 and all(len(values) == 4 for values in found.values())
    for name, values in found.items():
        assert values == pytest.approx(curves[f"predicted {name}"], rel=1e-6, abs=1e-8), name


def test_the_mean_of_an_elasticity_over_seeds_is_arithmetic(tmp_path):
    run(tmp_path, "starvation", range(3), {"samples": 4, "mixing": "random", "s1": "3,6"})
    table = compare.load(tmp_path)
    drawing = figures.draw("starvation", table, Style.of("icml"))
    column = {name: i for i, name in enumerate(drawing.columns)}
    drawn = {float(r[column["x"]]): float(r[column["value"]]) for r in drawing.rows if r[column["curve"]] == "elasticity"}
    for s1, mean in drawn.items():
        cells = {name for name, cell in table.cells.items() if cell.config["s1"] == s1}
        values = [
            v for v, c, m in zip(table["value"], table["cell"], table["measure"], strict=True) if c in cells and m == "elasticity"
        ]
        assert len(values) == 3 and mean == pytest.approx(np.mean(values), rel=1e-9)


def test_trainings_of_the_study_are_sent_to_the_figure_that_draws_them():
    trained = table_for("trajectory")
    measures = trained["measure"].copy()
    measures[measures == "error"] = "gradient_share"
    table = type(trained)({**trained, "measure": measures}, trained.cells, trained.excluded)
    with pytest.raises(RequestError, match="compare plot trajectory"):
        figures.draw("starvation", table, Style.of("neurips"))
    with pytest.raises(RequestError) as caught:
        figures.draw("starvation", trained, Style.of("neurips"))
    assert "trajectory" not in str(caught.value)


def test_other_runs_are_refused(tmp_path):
    for name in ("sweep", "flow", "trajectory"):
        with pytest.raises(RequestError, match="ufm simulate starvation"):
            figures.draw("starvation", table_for(name), Style.of("neurips"))
    run(tmp_path, "starvation", [0], {"s1": 3.0})
    with pytest.raises(RequestError, match="two or more settings"):
        figures.draw("starvation", compare.load(tmp_path), Style.of("neurips"))
