"""Tables that lack something, or hold something they should not: every figure draws what is there or says one line."""

import numpy as np
import pytest
from figure_tables import change, collisions, keep, make, run_folder, table_for, without

from compare import figures
from compare.figures.drawing import csv_text
from compare.style import Style
from ufm.errors import RequestError

NAMES = ["trajectory", "nc", "layers", "hero"]
OTHERS = [name for name in figures.FIGURES if name not in NAMES]
TABLE = table_for("trajectory")


DAMAGES = {
    "one seed": lambda t: keep(t, t["seed"] == 0),
    "one epoch": lambda t: keep(t, t["epoch"] == 375),
    "untrained alone": lambda t: keep(t, t["epoch"] == 0),
    "no test": lambda t: keep(t, t["split"] == "train"),
    "no train": lambda t: keep(t, t["split"] == "test"),
    "no error": lambda t: keep(t, np.array(["error" not in m for m in t["measure"]])),
    "no nc1": lambda t: keep(t, np.array(["nc1" not in m for m in t["measure"]])),
    "one layer": lambda t: keep(t, np.isin(t["layer"], ["penultimate", "network"])),
    "all NaN": lambda t: change(t, np.ones(len(t["value"]), bool), value=np.nan),
    "NaN here and there": lambda t: change(t, np.arange(len(t["value"])) % 3 == 0, value=np.nan),
    "all zero": lambda t: change(t, np.ones(len(t["value"]), bool), value=0.0),
    "negative": lambda t: change(t, t["epoch"] > 3, value=-1.0),
    "infinite": lambda t: change(t, t["epoch"] == 5, value=np.inf),
    "huge": lambda t: change(t, t["epoch"] == 5, value=1e300),
    "tiny": lambda t: change(t, t["epoch"] == 5, value=1e-300),
    "all diverged": lambda t: change(t, t["epoch"] > 8, value=np.nan),
    "one diverged": lambda t: change(t, (t["epoch"] > 8) & (t["seed"] == 1), value=np.nan),
    "below the floor": lambda t: change(t, t["epoch"] > 40, flag="below_floor"),
    "hostile layers": lambda t: change(t, t["layer"] == "hidden1", layer="$\\frac{\n\x1b[2J" + "x" * 300),
    "empty": lambda t: keep(t, np.zeros(len(t["value"]), bool)),
    "two settings": lambda t: make(seeds=1, epochs=(0, 1), cells=("a$_\\", "b\n")),
    "no epochs": lambda t: change(t, np.ones(len(t["value"]), bool), epoch=-1, step=-1),
    "no value column": lambda t: without(t, "value"),
    "text for a number": lambda t: (
        change(without(t, "value"), [], **{}) | {"value": np.array(["x"] * len(t["value"]), dtype=object)}
    ),
    "few columns": lambda t: without(t, *(set(t) - {"measure", "value"})),
}
REFUSED = {"empty", "two settings", "no value column", "text for a number", "few columns", "no epochs", "all NaN"}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", NAMES)
def test_any_table_gives_a_figure_or_one_line(name, damage):
    style = Style.of("icml")
    try:
        drawing = figures.draw(name, DAMAGES[damage](table_for(name)), style)
    except RequestError as error:
        assert "\n" not in str(error) and "\x1b" not in str(error) and len(str(error)) < 300
        assert damage in REFUSED | ALSO_REFUSED.get(name, set())
        return
    assert damage not in REFUSED - DRAWN.get(name, set())
    assert collisions(drawing.figure) == []
    assert "inf" not in csv_text(drawing).replace("inference", "")


# What one figure needs beyond the others, and what it can draw although others cannot.
ALSO_REFUSED = {"layers": {"one layer", "no nc1"}, "hero": {"no test", "no error", "no nc1", "all zero"}}
DRAWN = {"hero": {"two settings", "no epochs"}}


@pytest.mark.parametrize(
    "damage", ["one seed", "NaN here and there", "all NaN", "all zero", "huge", "empty", "no value column", "few columns"]
)
@pytest.mark.parametrize("name", OTHERS)
def test_the_other_figures_too(name, damage):
    try:
        drawing = figures.draw(name, DAMAGES[damage](table_for(name)), Style.of("icml"))
    except RequestError as error:
        assert "\n" not in str(error) and len(str(error)) < 300
        return
    assert damage not in ("empty", "no value column", "few columns")
    assert collisions(drawing.figure) == [] and "inf" not in csv_text(drawing)


@pytest.mark.parametrize("name", OTHERS)
def test_a_table_without_its_run_folder_is_refused_in_one_line(name):
    with pytest.raises(RequestError, match=r"two or more settings|run folder's arrays|cells of a theory sweep|the rows hold no"):
        figures.draw(name, TABLE, Style.of("icml"))


@pytest.mark.parametrize("name", ["gram", "confusion", "spectrum", "geometry", "calibration"])
def test_arrays_that_are_damaged_or_gone_are_refused_in_one_line(name, tmp_path):
    table = run_folder(tmp_path, seeds=1)
    for path in tmp_path.rglob("tensors.safetensors"):
        path.write_bytes(b"\x00" * 40)
    with pytest.raises(RequestError, match="keeps no"):
        figures.draw(name, table, Style.of("icml"))
    for path in tmp_path.rglob("tensors.safetensors"):
        path.unlink()
    with pytest.raises(RequestError, match="keeps no"):
        figures.draw(name, table, Style.of("icml"))


@pytest.mark.parametrize("name", ["gram", "spectrum", "confusion", "geometry"])
def test_a_seed_without_its_arrays_is_named(name, tmp_path):
    table = run_folder(tmp_path, seeds=3)
    [damaged] = tmp_path.rglob("seed-1/tensors.safetensors")
    damaged.write_bytes(b"x" + damaged.read_bytes()[1:])
    notes = " ".join(figures.draw(name, table, Style.of("icml")).notes)
    assert "2 seeds (left out: seed 1" in notes


def test_a_run_that_diverged_is_a_marked_gap():
    drawing = figures.draw("trajectory", DAMAGES["all diverged"](TABLE), Style.of("neurips"))
    ax = drawing.figure.axes[0]
    line = next(line for line in ax.lines if line.get_gid() == "curve:train")
    x, y = line.get_xydata().T
    assert np.isfinite(y[x <= 8]).all() and not np.isfinite(y[x > 8]).any()
    crosses = [line for line in ax.lines if line.get_gid() == "end:train"]
    assert len(crosses) == 5 and all(cross.get_xdata() == [8] for cross in crosses)
    assert any("diverged" in text.get_text() for text in drawing.figure.legends[0].get_texts())
    assert any("end before the last epoch" in note for note in drawing.notes)


def test_zeros_and_values_below_the_floor_are_marks_at_the_axis_bottom():
    drawing = figures.draw("trajectory", DAMAGES["below the floor"](TABLE), Style.of("neurips"))
    ax = drawing.figure.axes[0]
    marks = next(line for line in ax.lines if line.get_gid() == "zero:train")
    assert list(marks.get_xdata()) == [75, 140, 260, 375]
    zero = [label.get_position()[1] for label in ax.get_yticklabels() if label.get_text() == "0"]
    assert set(marks.get_ydata()) == set(zero) and zero[0] > ax.get_ylim()[0]
    smallest = min(np.nanmin(line.get_ydata()) for line in ax.lines if str(line.get_gid()).startswith("curve:t"))
    assert zero[0] < smallest


def test_the_untrained_network_is_drawn():
    drawing = figures.draw("trajectory", TABLE, Style.of("neurips"))
    for ax in drawing.figure.axes:
        assert ax.get_xlim()[0] < 0 and "untrained" in ax.get_xlabel()
        assert "0" in [label.get_text() for label in ax.get_xticklabels()]
