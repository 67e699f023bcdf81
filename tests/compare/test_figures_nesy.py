"""The figure nesy: epochs counted from the exact sum on, one column for each number of operands, and what it refuses."""

import numpy as np
import pytest
from figure_tables import nesy, table_for
from scipy import stats

from compare import figures
from compare.style import Style
from ufm.errors import RequestError

STYLE = Style.of("neurips")


def line(drawing, panel, key):
    [ax] = [ax for ax in drawing.figure.axes if ax.get_label() == panel]
    [found] = [one for one in ax.lines if one.get_gid() == f"curve:{key}"]
    return found.get_data()


def test_epochs_are_counted_from_where_the_exact_sum_begins():
    drawing = figures.draw("nesy", table_for("nesy"), STYLE)
    for panel in ("digits_2", "digits_10"):
        for key in ("scratch", "finetune", "frozen"):
            assert list(line(drawing, panel, key)[0]) == list(range(7))
    assert list(line(drawing, "nc1_10", "scratch")[0]) == list(range(7))
    assert list(line(drawing, "nc1_10", "finetune")[0]) == list(range(-4, 7))


def test_a_point_is_the_mean_over_seeds_with_its_interval_and_the_test_samples():
    table = table_for("nesy")
    drawing = figures.draw("nesy", table, STYLE)
    rows = {(r[0], r[1], r[2]): r[3:6] for r in drawing.rows}
    chosen = (table["cell"] == "sums-10-finetune") & (table["measure"] == "digit_accuracy") & (table["epoch"] == 7)
    logs = np.log(table["value"][chosen].astype(float))
    mean, _, high = rows["digits_10", "finetune", 3.0]
    assert mean == pytest.approx(np.exp(logs.mean()))
    exact = stats.binomtest(round(mean * 797), 797).proportion_ci(0.95)
    spread = stats.t.ppf(0.975, 2) * logs.std(ddof=1) / np.sqrt(3)
    assert np.log(high / mean) == pytest.approx(np.hypot(spread, np.log(exact.high / mean)), rel=0.05)


def test_what_it_cannot_draw_is_refused():
    with pytest.raises(RequestError, match="no accuracy on unseen digits"):
        figures.draw("nesy", table_for("transfer"), STYLE)
    with pytest.raises(RequestError, match="4 numbers of operands; the figure nesy draws at most 3"):
        figures.draw("nesy", nesy((2, 3, 4, 5)), STYLE)
    twice = nesy((2, 10))
    twice.cells["sums-10-scratch"].config["operands"] = 2
    with pytest.raises(RequestError, match="two settings of scratch with 2 operands"):
        figures.draw("nesy", twice, STYLE)
