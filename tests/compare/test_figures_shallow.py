"""The figure flow of two-layer networks: what it shows of modes, losses and distances, and what it refuses."""

import numpy as np
import pytest
from figure_tables import collisions
from sweep_tables import run

import compare
from compare import figures
from compare.figures.drawing import csv_text
from compare.style import Style
from ufm.errors import RequestError
from ufm.sweep import read_cells

SMALL = {"samples": 8, "dim": 6, "t_end": 6.0, "points": 21, "trajectory": True}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("shallow")
    folder = run(root, "shallow", range(3), {**SMALL, "width": [20, 80, 320]})
    return compare.load(root), read_cells(folder)


def curve(drawing, panel, name):
    rows = [row for row in drawing.rows if row[0] == panel and row[1] == name]
    return np.array([row[2] for row in rows], float), np.array([row[3] for row in rows], float)


@pytest.mark.parametrize("width", ["neurips", "icml", "75"])
def test_texts_keep_apart_at_every_width(made, width):
    drawing = figures.draw("flow", made[0], Style.of(width))
    assert collisions(drawing.figure) == []
    assert [ax.get_label() for ax in drawing.figure.axes] == ["modes", "loss", "far", "gap"]


def test_modes_are_the_widest_networks_and_the_law_a_power(made):
    drawing = figures.draw("flow", made[0], Style.of("neurips"))
    row = next(r for r in made[1] if r["parameters"]["width"] == 320 and r["seed"] == 0)
    for k, value in enumerate(row["path"]["eigenvalues"]):
        t, law = curve(drawing, "modes", f"law of mode {k + 1}")
        assert t == pytest.approx(row["path"]["t"][1:])
        steps = np.round(t / row["step_size"])
        np.testing.assert_allclose(law, (1 - row["step_size"] * value) ** steps, rtol=1e-9, atol=1e-14)
        assert np.abs(curve(drawing, "modes", f"mode {k + 1}")[1] - law).max() < 0.3


def test_the_distance_over_the_width_is_the_geometric_mean_of_the_rows(made):
    drawing = figures.draw("flow", made[0], Style.of("neurips"))
    x, y = curve(drawing, "gap", "gap Largest over all steps")
    for width, value in zip(x, y, strict=True):
        own = [r["measures"]["gap"] for r in made[1] if r["parameters"]["width"] == width]
        assert len(own) == 3 and value == pytest.approx(np.exp(np.mean(np.log(own))))
    at, slope = curve(drawing, "gap", "slope -1/2")
    assert np.diff(np.log(slope)) / np.diff(np.log(at)) == pytest.approx([-0.5, -0.5]) and slope[-1] == pytest.approx(y[-1])
    assert "at m = 320" in drawing.notes[-1] and csv_text(drawing).startswith("panel,curve,x")


def test_the_loss_ends_at_the_mean_of_the_rows_and_one_law_serves_all_widths(made):
    drawing = figures.draw("flow", made[0], Style.of("neurips"))
    names = {row[1] for row in drawing.rows if row[0] == "loss"}
    assert names == {"loss m=20", "loss m=80", "loss m=320", "law m=320"}
    for width in (20, 80, 320):
        rows = [r for r in made[1] if r["parameters"]["width"] == width]
        assert curve(drawing, "loss", f"loss m={width}")[1][-1] == pytest.approx(
            np.exp(np.mean(np.log([r["loss"] for r in rows])))
        )
        _, far = curve(drawing, "far", f"distance m={width}")
        assert far[-1] == pytest.approx(np.exp(np.mean(np.log([r["measures"]["gap"] for r in rows]))), rel=1e-6)
        assert (np.diff(far) > -1e-12).all()


def test_one_width_has_no_panel_over_widths_and_a_broken_run_is_told(tmp_path):
    run(tmp_path, "shallow", [0], {**SMALL, "width": 40, "step": [0.9, 60.0], "t_end": 2000.0})
    drawing = figures.draw("flow", compare.load(tmp_path), Style.of("neurips"))
    assert [ax.get_label() for ax in drawing.figure.axes] == ["modes", "loss", "far"]
    assert "1 of 2 networks diverged" in drawing.notes[-1] and collisions(drawing.figure) == []


def test_settings_are_told_apart_or_refused(tmp_path):
    for layers in ("hidden", "output"):
        run(tmp_path / "two", "shallow", range(2), {**SMALL, "width": [20, 40], "layers_trained": layers})
    drawing = figures.draw("flow", compare.load(tmp_path / "two"), Style.of("neurips"))
    assert {row[1] for row in drawing.rows if row[0] == "gap"} == {"gap hidden", "gap output", "slope -1/2"}
    for name, options, said in (
        ("none", {**SMALL, "trajectory": False}, "keep no path"),
        ("many", {**SMALL, "t_end": 1.0, "width": list(range(10, 40, 2))}, "name fewer runs"),
        ("twice", {**SMALL, "t_end": [1.0, 2.0]}, "name runs that differ in fewer options"),
    ):
        run(tmp_path / name, "shallow", [0], {"width": 20, **options})
        with pytest.raises(RequestError, match=said) as caught:
            figures.draw("flow", compare.load(tmp_path / name), Style.of("neurips"))
        assert "\n" not in str(caught.value)
