"""The figure phase of `ufm simulate benign`: its numbers, its lines, its places, what it refuses."""

import numpy as np
import pytest
from figure_tables import collisions
from sweep_tables import run

import compare
from compare import figures
from compare.style import Style
from ufm.errors import RequestError
from ufm.sweep import read_cells

RELU = {"samples": 20, "flip": 0.1, "init_scale": 1e-3, "steps": 60, "test_points": 100}


@pytest.fixture(scope="module")
def mapped(tmp_path_factory):
    root = tmp_path_factory.mktemp("map")
    folder = run(root, "benign", range(3), {**RELU, "dim": "200:800:5", "signal": "0:8:9"})
    return compare.load(root), read_cells(folder)


@pytest.fixture(scope="module")
def power(tmp_path_factory):
    root = tmp_path_factory.mktemp("power")
    run(root, "benign", range(2), {"q": 3, "orthogonal": True, "variable": "0.1,1,3,20", "dim": "100,400", "init_scale": 0.02})
    return compare.load(root)


@pytest.mark.parametrize("width", ["neurips", "icml"])
def test_the_map_holds_means_over_seeds_and_no_text_hides_another(mapped, width):
    table, rows = mapped
    drawing = figures.draw("phase", table, Style.of(width))
    assert collisions(drawing.figure) == []
    cells = {(r[1], r[2]): r[3] for r in drawing.rows if r[0] == "map" and r[1].startswith("dim")}
    assert len(cells) == 45
    for d, s in ((200, 0.0), (500, 3.0), (800, 8.0)):
        here = [r["measures"]["test_error"] for r in rows if r["parameters"]["dim"] == d and r["signal"] == s]
        assert len(here) == 3 and cells[f"dim = {d}", s] == pytest.approx(np.mean(here), rel=1e-12)


def test_lines_are_where_theory_and_measurement_put_them(mapped):
    table, rows = mapped
    drawing = figures.draw("phase", table, Style.of("neurips"))
    theory = {r[3]: r[2] for r in drawing.rows if r[:2] == ("map", "theory")}
    assert theory == pytest.approx({d: (d / 20) ** 0.25 for d in (200, 350, 500, 650, 800)})
    contour = {r[3]: r[2] for r in drawing.rows if r[:2] == ("map", "contour")}
    for d, at in contour.items():  # test error .1 + .8/4 on the line between the neighbouring signals
        low, high = np.floor(at), np.ceil(at)
        errors = [np.mean([r["measures"]["test_error"] for r in rows if r["parameters"]["dim"] == d and r["signal"] == s])
                  for s in (low, high)]  # fmt: skip
        assert errors[0] + (at - low) * (errors[1] - errors[0]) == pytest.approx(0.3, abs=1e-9)
    law = [(r[2], r[3]) for r in drawing.rows if r[:2] == ("variable", "law")]
    assert len(law) > 10 and all(at >= 0.2499 for at, _ in law) and law[-1][1] == pytest.approx(0.1, abs=1e-3)
    labels = {line.get_gid() for ax in drawing.figure.axes for line in ax.lines}
    assert {"curve:theory", "curve:contour", "curve:law", "curve:flip"} <= labels
    assert "constant is not in the theorem" in " ".join(drawing.notes)


@pytest.mark.parametrize("width", ["neurips", "icml"])
def test_over_a_variable_alone_there_is_one_panel_with_the_border(power, width):
    drawing = figures.draw("phase", power, Style.of(width))
    assert collisions(drawing.figure) == [] and {row[0] for row in drawing.rows} == {"variable"}
    assert {row[1] for row in drawing.rows} == {"d=100", "d=400"}
    assert any(line.get_gid() == "curve:border" for ax in drawing.figure.axes for line in ax.lines)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"flip": "0,0.1", "signal": "1,2"}, "differ in flip"),
        ({"dim": "50,100"}, "no strength of the signal"),
        ({"q": 2.0, "signal": "1,2"}, "no variable"),
    ],
)
def test_what_cannot_be_drawn_is_said(tmp_path, options, words):
    run(tmp_path, "benign", [0], {"steps": 2, "test_points": 10, **options})
    with pytest.raises(RequestError, match=words):
        figures.draw("phase", compare.load(tmp_path), Style.of("neurips"))
