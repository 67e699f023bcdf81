"""The figure of permutations and margins: what it marks, what theory's line is, and what it cannot draw."""

import numpy as np
import pytest
from alignment_tables import alignments
from figure_tables import table_for

from compare import figures
from compare.figures.alignment import first_fit, order_statistics
from compare.figures.series import Measured
from compare.papers import Quantity
from compare.quantities import per_seed
from compare.style import Style
from ufm.errors import RequestError

STYLE = Style.of("neurips")


def test_theorys_line_is_the_mean_of_sorted_normal_draws():
    draws = np.sort(np.random.default_rng(0).standard_normal((20_000, 10)), axis=1).mean(0)
    assert np.abs(order_statistics(10) - draws).max() < 0.03
    assert order_statistics(3)[2] == pytest.approx(3 / (2 * np.sqrt(np.pi)), abs=0.03)  # of three draws: exactly 3/(2 sqrt pi)


def test_a_strip_shows_the_permutations_in_order_about_the_mean_and_the_polygon_leaves_theorys_line():
    drawing = figures.draw("alignment", table_for("alignment"), STYLE)
    curves = {}
    for panel, curve, x, value, *_ in drawing.rows:
        if panel == "permutations":
            curves.setdefault(curve, []).append((x, value))
    top = next(ax for ax in drawing.figure.axes if ax.get_label() == "permutations")
    order = [text.get_text().split("\n")[0] for text in top.get_xticklabels()]
    away = {}
    for number, name in enumerate(order):
        means, theory = (np.array(curves[f"{key} {number}"])[:, 1] for key in ("permutations", "expected"))
        assert (np.diff(means) >= 0).all() and abs(means.mean()) < 1e-12 and len(curves[f"starts permutations {number}"]) == 20
        away[name] = np.ptp(means) / np.ptp(theory)
    assert away["Polygon"] > 2.5 > 1.9 > away["Simplex"]
    assert any("F of one-way" in note and "Polygon" in note for note in drawing.notes)


def test_the_fit_is_the_first_measured_epoch_without_a_train_error_in_the_figure_and_in_claims():
    table = table_for("alignment")
    name = next(name for name, cell in table.cells.items() if cell.config["vertices"] == "learned")
    found = first_fit(Measured.of(table).where(cell=name))
    assert found == dict.fromkeys(range(3), 8.0)  # .9 / 9 < .15 < .9 / 5
    value = Quantity("margin_mean", layer="network", epoch="fitted")
    assert per_seed(table.of_cell(name), value, None) == pytest.approx(dict.fromkeys(range(3), 0.8 - 0.8 / 9))
    assert str(value).endswith("first epoch of train error 0)")


def test_seeds_that_never_fit_have_no_value_there(tmp_path):
    table = alignments(tmp_path, kinds=("learned",))
    early = table.where(epoch=[0, 1, 2])
    assert per_seed(early, Quantity("margin_mean", layer="network", epoch="fitted"), None) == {}


def test_what_cannot_be_drawn_is_one_line(tmp_path):
    with pytest.raises(RequestError, match="hold no permutations"):
        figures.draw("alignment", table_for("trajectory"), STYLE)
    with pytest.raises(RequestError, match="one permutation each"):
        figures.draw("alignment", alignments(tmp_path, kinds=("learned",)), STYLE)
