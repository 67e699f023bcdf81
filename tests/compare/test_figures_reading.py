"""What a reader meets first: names, zeros, order of the legend, and figures of very many cells."""

import dataclasses

import numpy as np
import pytest
from figure_tables import Loaded, collisions, make

from compare import figures
from compare.figures.axes import Legend, LogAxis, draw_curve, panels, tick_labels
from compare.figures.nc import FITTED
from compare.figures.series import Curve, Measured
from compare.figures.settings import spoken, swept, telling
from compare.figures.sweep import PARTS, worst
from compare.rows import Cell, Excluded
from compare.style import LOOKS, Style
from ufm.errors import RequestError

STYLE = Style.of("neurips")


def curve(x, value, censored=None):
    x, value = np.asarray(x, float), np.asarray(value, float)
    nothing = np.full(len(x), np.nan)
    none = np.zeros(len(x), bool)
    return Curve("c", x, value, nothing, nothing, np.ones(len(x), int), none if censored is None else np.asarray(censored))


@pytest.mark.parametrize(
    "label, said",
    [
        ("lambda_w=lambda_h=0.001", r"$\lambda_W=\lambda_H=$0.001"),
        ("imbalance=10, loss=ce", "$R=$10, ce"),
        ("lambda_w=1e-06", r"$\lambda_W=$$10^{-6}$"),
        ("weight_decay=0.002, train_per_class=None", "weight decay 0.002, all samples"),
        ("K=10, L=3", "$K=$10, $L=$3"),
        ("zero solution (imbalance=1; imbalance=5)", "zero solution ($R=$1; $R=$5)"),
        ("digits-mlp-ddc4e599ea95", "digits-mlp-ddc4e599ea95"),
    ],
)
def test_options_are_said_with_their_symbols(label, said):
    assert spoken(label) == said


def test_settings_are_told_apart_by_few_options_and_not_by_how_they_were_measured():
    options = [(10, 10, None, "a"), (10, 30, None, "b"), (3, 3, None, "c"), (3, 30, None, "d"), (4, 6, [4, 1], "e")]
    settings = {str(i): dict(zip(("classes", "dim", "counts", "layers"), o, strict=True)) for i, o in enumerate(options)}
    assert telling(settings, ["classes", "dim", "counts", "layers"]) == ["classes", "dim"]


def test_decades_are_powers_on_every_vertical_axis():
    assert tick_labels([0.01, 0.1, 1.0], powers=True) == ["$10^{-2}$", "$10^{-1}$", "$10^{0}$"]
    assert tick_labels([0.2, 0.5, 1.0], powers=True) == ["0.2", "0.5", "1"] and tick_labels([1.0, 10.0]) == ["1", "10"]


def test_a_curve_goes_down_to_its_zeros_and_up_again():
    one = curve([1, 2, 3, 4, 5], [1.0, 0.1, 0.0, 0.0, 0.2], [False, False, True, True, False])
    with STYLE.applied():
        _, grid = panels(STYLE, 1, 1, 2.0)
        axis = LogAxis.over([one])
        axis.apply(grid[0, 0])
        draw_curve(grid[0, 0], one, LOOKS["train"], axis, Legend(), "Train")
    [joined] = [line for line in grid[0, 0].lines if line.get_gid() == "decoration" and len(line.get_xdata()) > 1]
    x, y = (np.asarray(column).reshape(-1, 3) for column in joined.get_data())
    assert x[:, :2].tolist() == [[2, 3], [3, 4], [4, 5]]
    assert y[:, :2].tolist() == [[0.1, axis.zero], [axis.zero, axis.zero], [axis.zero, 0.2]]


def test_the_legend_names_what_was_measured_before_theory():
    legend = Legend()
    for label, look in (("Train", "train"), ("Theory: 0", "optimum"), ("Test", "test"), ("Theory: 2 err", "theory")):
        legend.line(label, LOOKS[look])
    legend.band("95 % interval")
    assert [one.get_label() for one in legend.handles()] == ["Train", "Test", "Theory: 0", "Theory: 2 err", "95 % interval"]


def test_test_and_train_layers_have_hues_of_their_own():
    drawing = figures.draw("layers", make(), STYLE)
    hue = {}
    for ax in drawing.figure.axes[:2]:
        hue[ax.get_label()] = {line.get_color() for line in ax.lines if "epoch" in str(line.get_gid())}
    assert hue["nc1_train"] and not hue["nc1_train"] & hue["nc1_test"]
    assert {"Train", "Test"} <= {text.get_text() for text in drawing.figure.legends[0].get_texts()}


def test_the_terminal_phase_begins_where_the_train_error_has_come_to_stay_low():
    table = make(seeds=1, epochs=(0, 1, 2, 4, 8))
    late = {0: 0.9, 1: 0.0, 2: 0.2, 4: FITTED, 8: 0.0}  # the dip at epoch 1 does not count
    chosen = (table["measure"] == "error") & (table["split"] == "train")
    value = np.where(chosen, [late[int(e)] for e in table["epoch"]], table["value"])
    drawing = figures.draw("nc", Loaded({**table, "value": value}, table.cells), STYLE)
    for ax in drawing.figure.axes:
        assert [line.get_xdata()[0] for line in ax.lines if line.get_gid() == "decoration" and len(line.get_xdata()) == 2][
            :1
        ] == [4]
    assert any("Train error" in text.get_text() for text in drawing.figure.legends[0].get_texts())
    assert not collisions(drawing.figure)
    never = np.where(chosen, 0.5, table["value"])
    again = figures.draw("nc", Loaded({**table, "value": never}, table.cells), STYLE)
    assert not any("Train error" in text.get_text() for text in again.figure.legends[0].get_texts())


def test_a_sweep_of_very_many_curves_is_thinned_in_its_numbers_and_says_so():
    cells, rows = {}, {"measure": [], "value": [], "cell": [], "split": []}
    for i, (lam, r, loss) in enumerate(
        (a, b, c) for a in (1e-3, 2e-3, 4e-3, 8e-3) for b in (1, 2, 4, 8) for c in ("ce", "mse", "f")
    ):
        name = f"sweep#{i}"
        cells[name] = Cell(name, "single", "", {"lambda_w": lam, "imbalance": r, "loss": loss})
        for column, value in zip(rows, ("loss", lam * r, name, "theory"), strict=True):
            rows[column].append(value)
    over = swept(Loaded(rows, cells))
    assert over.name == "lambda_w" and len(set(over.groups.values())) == 6 and len(over.values) == 24
    assert over.left == "6 of 12 curves are drawn: imbalance = 1, 8 (of 4 values)."
    drawing = figures.draw("sweep", Loaded(rows, cells), STYLE)
    assert over.left in drawing.notes and not collisions(drawing.figure)
    drawn = sorted(row[3] for row in drawing.rows if row[1] == "loss imbalance=8, loss=ce")
    np.testing.assert_allclose(drawn, [0.008, 0.016, 0.032, 0.064])


def test_dense_rounding_errors_are_drawn_as_the_largest_of_each_part():
    x = np.geomspace(1e-6, 1e-2, 400)
    value = 1e-12 * (1 + np.random.default_rng(0).random(400))
    value[137] = 7e-10
    found = worst(curve(x, value))
    assert len(found.x) == PARTS and found.value.max() == 7e-10 and set(found.value) <= set(value)
    parts = np.array_split(value, PARTS)
    assert found.value.min() == pytest.approx(min(part.max() for part in parts), rel=0.05)
    short = curve(x[:10], value[:10])
    assert worst(short) is short


@pytest.mark.parametrize(
    "reason, steps, said",
    [
        ("stopped at the step limit", 20, "run `ufm simulate deep` again with more --steps, or without --steps"),
        ("stopped at the step limit", None, "run `ufm simulate deep` again with more --steps"),
        ("diverged: the loss became non-finite", None, "run `ufm simulate deep` again"),
    ],
)
def test_a_sweep_without_a_converged_cell_names_the_remedy_that_helps(reason, steps, said):
    cells = {f"s#{i}": Cell(f"s#{i}", "deep", "", {"steps": steps, "init_scale": i}, seeds=()) for i in range(2)}
    table = Loaded({"measure": [], "value": []}, cells)
    table.excluded = tuple(Excluded(name, 0, reason) for name in cells)
    for figure in ("sweep", "phase", "layers"):
        with pytest.raises(RequestError) as caught:
            figures.draw(figure, table, STYLE)
        text = str(caught.value)
        assert text.endswith(said) and "empirical" not in text and "none of the 2 cells" in text and "\n" not in text


def test_trainings_that_are_all_left_out_are_to_be_run_again():
    table = Loaded({"measure": [], "value": []}, {})
    table.excluded = (Excluded("digits", 3, "unfinished: no done marker"),)
    with pytest.raises(RequestError, match="all are left out, the first for: unfinished"):
        Measured.of(table)
    with pytest.raises(RequestError, match="no measured value; run `empirical run collapse`"):
        Measured.of(Loaded({"measure": [], "value": []}, {}))


def test_a_cloud_of_thousands_shows_the_ends_of_its_trainings():
    table = make(seeds=5, cells=("a", "b"), epochs=tuple(range(30)))
    drawing = figures.draw("hero", table, STYLE)
    sizes = {str(line.get_gid()).split(":")[0]: line.get_markersize() for line in drawing.figure.axes[0].lines}
    many = sum(len(line.get_xdata()) for line in drawing.figure.axes[0].lines if str(line.get_gid()) in ("curve:a", "curve:b"))
    assert many > 800 and sizes["last"] > 2 * min(
        line.get_markersize() for line in drawing.figure.axes[0].lines if str(line.get_gid()) in ("curve:a", "curve:b")
    )
    ends = [line for line in drawing.figure.axes[0].lines if str(line.get_gid()).startswith("last:")]
    assert len({line.get_markerfacecolor() for line in ends}) == 2  # each in its own colour
    assert dataclasses.is_dataclass(drawing)
