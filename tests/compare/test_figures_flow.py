"""The figures of theory sweeps: what they show of flows and of end points, and what they refuse."""

import math
from unittest import mock

import numpy as np
import pytest
from figure_tables import collisions
from sweep_tables import ends, flows, plane, run

import compare
from compare import figures
from compare.figures import cells
from compare.figures.phase import Count, _plane, _tick
from compare.style import Style
from ufm.errors import RequestError
from ufm.sweep import read_cells


@pytest.fixture(scope="module")
def flow_table(tmp_path_factory):
    return flows(tmp_path_factory.mktemp("flows"))


@pytest.fixture(scope="module")
def end_table(tmp_path_factory):
    return ends(tmp_path_factory.mktemp("ends"))


@pytest.fixture(scope="module")
def plane_table(tmp_path_factory):
    return plane(tmp_path_factory.mktemp("plane"))


def curve(drawing, panel, name):
    rows = [row for row in drawing.rows if row[0] == panel and row[1] == name]
    return np.array([row[2] for row in rows], float), np.array([row[3] for row in rows], float)


def test_modes_lie_on_the_closed_form(flow_table):
    drawing = figures.draw("flow", flow_table, Style.of("neurips"))
    for k in (1, 2):
        t, found = curve(drawing, "law", f"mode {k}")
        _, theory = curve(drawing, "law", f"closed form {k}")
        assert len(t) == 20 and t[0] > 0
        np.testing.assert_allclose(found, theory, atol=1e-6)
        n, total, u0 = 4.0, 12.0, found[0]
        own = math.sqrt(n) / (1 + (math.sqrt(n) / u0 - 1) * np.exp(-2 * math.sqrt(n) * (t - t[0]) / total))
        np.testing.assert_allclose(found, own, atol=1e-5)  # the logistic, from its formula


@pytest.mark.parametrize("width", ["neurips", "icml"])
def test_a_central_path_stands_beside_its_closed_form(tmp_path, width):
    options = {"classes": 3, "dim": 6, "init": "central", "init_scale": 1.0, "t_end": 200.0, "points": 21}
    run(tmp_path, "flow", range(2), {**options, "trajectory": True})
    run(tmp_path, "flow", range(2), {**options, "renormalised": True})  # without its path: not drawn
    drawing = figures.draw("flow", compare.load(tmp_path), Style.of(width))
    assert collisions(drawing.figure) == []
    assert {ax.get_label() for ax in drawing.figure.axes} == {"law", "nc1"}
    modes = {}
    for k in (1, 2):
        t, modes[k] = curve(drawing, "law", f"mode {k}")
        np.testing.assert_allclose(modes[k], curve(drawing, "law", f"closed form {k}")[1], rtol=1e-6)
        clock = 3 * np.log(modes[k]) + modes[k] ** 2 + modes[k] ** 4 / 12  # the law: it runs at 1/N
        np.testing.assert_allclose(np.diff(clock), np.diff(t) / 30, rtol=1e-3)
    assert {name for panel, name, *_ in drawing.rows if panel == "nc1"} == {"collapse Central path"}


def test_collapse_is_exact_on_the_subspace_and_as_loose_as_the_start_elsewhere(flow_table):
    drawing = figures.draw("flow", flow_table, Style.of("neurips"))
    names = {row[1] for row in drawing.rows if row[0] == "nc1"}
    assert names == {"collapse Subspace, scale 0.1", "collapse Random, scale 0.1", "collapse Random, scale 0.03"}
    assert {row[-1] for row in drawing.rows if row[1] == "collapse Subspace, scale 0.1"} == {"zero or below the floor"}
    _, loose = curve(drawing, "nc1", "collapse Random, scale 0.1")
    _, tight = curve(drawing, "nc1", "collapse Random, scale 0.03")
    assert tight[-1] < loose[-1] / 4
    assert any("stays as loose as the start" in note for note in drawing.notes)


def test_shares_are_counts_of_starts(end_table):
    drawing = figures.draw("phase", end_table, Style.of("neurips"))
    rows = [row for cell in {c.path for c in end_table.cells.values()} for row in read_cells(cell)]
    for depth in (2, 3, 4):
        x, share = curve(drawing, "below", f"below L={depth}")
        assert len(x) == 3
        for value, at in zip(share, (0.7, 1.0, 1.4), strict=True):
            own = [r for r in rows if r["parameters"]["depth"] == depth and r["parameters"]["init_scale"] == at]
            assert len(own) == 4
            assert value == np.mean([r.get("over_dnc", 9.0) < 1 - 1e-4 for r in own])
    assert "36 random starts, every one counted" in drawing.notes[0]


def test_small_ticks_are_short():
    assert [_tick(v) for v in (0.00316228, 1e-3, 1e-4, 0.7, 0.0316228)] == ["3.2e-3", "1e-3", "1e-4", "0.7", "0.0316"]


def test_width_and_initial_scale_make_a_map_and_two_or_a_depth_make_curves():
    scales = [0.5, 0.7, 1.0]
    assert _plane({"dim": [3, 4, 5], "init_scale": scales}) == (["dim", "init_scale"], "")
    assert _plane({"dim": [3, 4], "init_scale": scales}) == ([], "")
    assert _plane({"depth": [2, 3, 4], "init_scale": scales}) == ([], "")


def test_the_interval_of_a_share_is_clopper_and_pearson():
    low, high = Count(20, 20).interval()
    assert high == 1.0 and low == pytest.approx(0.025 ** (1 / 20), rel=1e-9)


@pytest.mark.parametrize("width", ["neurips", "icml", "75"])
def test_two_options_make_a_heat_map_with_the_line_of_theory(plane_table, width):
    drawing = figures.draw("phase", plane_table, Style.of(width))
    assert collisions(drawing.figure) == []
    shares = [row for row in drawing.rows if row[1].startswith("dim = ")]
    assert len(shares) == 15 and {row[6] for row in shares} == {3}
    # Far beyond the line DNC does not exist: those cells are marked.
    marked = {row[2] for row in shares if row[-1] == "no DNC"}
    assert marked == {0.1}
    # DNC and zero have equal loss at g = (n P)^(1/4) K = g_crit = (2/3)^(1/2) / 3, with P = lambda_h lambda_w^3.
    edge = (((2 / 3) ** 0.5 / 3 / 3) ** 4 / 50 / 4e-3) ** (1 / 3)
    place = np.interp(math.log10(edge), [-3, -2.5, -2, -1.5, -1], range(5))
    x, _ = curve(drawing, "phase", "zero")
    assert len(x) == 6 and x == pytest.approx(np.full(6, place), abs=1e-9)


@pytest.mark.parametrize("width", ["neurips", "icml", "75"])
def test_a_third_option_makes_one_map_each(plane_table, width):
    """The same sweep at two depths, the second with every start below deep neural collapse."""
    rows = [dict(row) for row in cells.sweep_rows(plane_table, "phase", "deep", "")]
    deeper = [{**row, "parameters": {**row["parameters"], "depth": 4}, "over_dnc": 0.5} for row in rows]
    with mock.patch("compare.figures.phase.sweep_rows", lambda *_: rows + deeper):
        drawing = figures.draw("phase", plane_table, Style.of(width))
    assert collisions(drawing.figure) == []
    for depth, share in ((3, None), (4, 1.0)):
        here = [row for row in drawing.rows if row[0] == f"phase depth = {depth}" and row[1].startswith("dim = ")]
        assert len(here) == 15 and (share is None or {row[3] for row in here} == {share})
    alone = figures.draw("phase", plane_table, Style.of(width))
    assert [row[3] for row in alone.rows] == [row[3] for row in drawing.rows if row[0] == "phase depth = 3"]


def test_a_deep_sweep_has_its_predicted_curve_and_no_empty_panel(tmp_path):
    options = {"activation": "linear", "classes": 3, "dim": 4, "depth": 2, "lambda_w": "1e-3:1e-2:3log"}
    folder = run(tmp_path, "deep", [0], options)
    drawing = figures.draw("sweep", compare.load(tmp_path), Style.of("neurips"))
    assert [ax.get_label() for ax in drawing.figure.axes] == ["loss"]
    _, predicted = curve(drawing, "loss", "predicted loss")
    own = sorted((row["parameters"]["lambda_w"], row["predicted"]) for row in read_cells(folder))
    np.testing.assert_allclose(predicted, [loss for _, loss in own], rtol=1e-12)
    assert not any("No closed form" in note or "duality" in note for note in drawing.notes)
    with pytest.raises(RequestError, match="theory sweep of 3 cells; the figure layers draws a training"):
        figures.draw("layers", compare.load(tmp_path), Style.of("neurips"))


def test_what_cannot_be_drawn_is_one_line(flow_table, end_table, tmp_path):
    run(tmp_path / "a", "flow", [0], {"t_end": 5.0, "points": 5})
    for name, table, said in (
        ("flow", end_table, "draws cells of a theory sweep, of `ufm simulate flow"),
        ("phase", flow_table, "draws cells of a theory sweep, of `ufm simulate deep"),
        ("flow", compare.load(tmp_path / "a"), "keep no path"),
    ):
        with pytest.raises(RequestError, match=said) as caught:
            figures.draw(name, table, Style.of("neurips"))
        assert "\n" not in str(caught.value)
