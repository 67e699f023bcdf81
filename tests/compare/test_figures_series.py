import numpy as np
import pytest
from matplotlib.figure import Figure
from scipy import stats

from compare.figures.axes import PLAIN, Legend, LinearAxis, LogAxis, decades, draw_curve, in_rows, tick_labels
from compare.figures.layers import chosen_epochs, fit_cascade, with_depth
from compare.figures.series import Curve, Measured, clause, curve, log_interval, rate_interval
from compare.style import LOOKS


def rows(values, seeds=None, epochs=None, flags=None):
    n = len(values)
    return Measured.of(
        {
            "measure": ["m"] * n,
            "value": values,
            "seed": seeds or list(range(n)),
            "epoch": epochs or [1] * n,
            "flag": flags or [""] * n,
        }
    )


def test_the_interval_of_a_log_mean_is_students():
    values = np.array([0.1, 0.2, 0.15, 0.3])
    mean, low, high = log_interval(values)
    expected = stats.t.interval(0.95, 3, np.log(values).mean(), stats.sem(np.log(values)))
    assert mean == pytest.approx(stats.gmean(values))
    np.testing.assert_allclose(np.log([low, high]), expected)


def test_no_interval_from_one_value_or_with_a_zero():
    assert log_interval(np.array([0.5]))[0] == 0.5 and np.isnan(log_interval(np.array([0.5]))[1])
    assert log_interval(np.array([0.5, 0.0]))[0] == 0 and np.isnan(log_interval(np.array([0.5, 0.0]))[2])


def test_an_error_rate_of_one_seed_has_the_exact_binomial_interval():
    exact = stats.binomtest(10, 797).proportion_ci(0.95, method="exact")
    np.testing.assert_allclose(rate_interval(np.array([10 / 797]), 797), (10 / 797, exact.low, exact.high))
    none = stats.binomtest(0, 797).proportion_ci(0.95, method="exact")
    np.testing.assert_allclose(rate_interval(np.array([0.0, 0.0]), 797), (0, 0, none.high))


def test_the_test_sample_widens_the_interval_over_seeds():
    values = np.array([0.01, 0.012, 0.014])
    _, low, high = rate_interval(values, np.nan)
    np.testing.assert_allclose((low, high), stats.t.interval(0.95, 2, values.mean(), stats.sem(values)))
    _, wider_low, wider_high = rate_interval(values, 797)
    assert wider_low < low and wider_high > high


def test_a_curve_counts_seeds_and_marks_the_last_point_of_one_that_ends():
    made = curve(rows([1.0, 1.0, 4.0, 9.0, np.nan], seeds=[0, 1, 0, 1, 1], epochs=[0, 0, 1, 1, 2]), "k")
    assert made.ends == ((1.0, 4.0), (1.0, 9.0)) and np.isnan(made.value[2])  # both seeds stop before the last row
    made = curve(rows([1.0, 1.0, 4.0, 4.0], seeds=[0, 1, 0, 1], epochs=[0, 0, 1, 5]), "k")
    assert list(made.seeds) == [2, 1, 1] and made.ends == ((1.0, 4.0),)


def test_a_zero_or_a_flag_censors_a_point():
    made = curve(rows([0.1, 0.0, 1e-16], seeds=[0, 0, 0], epochs=[0, 1, 2], flags=["", "", "below_floor"]), "k")
    assert list(made.censored) == [False, True, True]


def test_a_row_said_twice_counts_once():
    assert curve(rows([1.0, 2.0], seeds=[0, 0], epochs=[1, 1]), "k").value == [2.0]


def curve_of(values):
    values = np.array(values, float)
    nothing = np.full(len(values), np.nan)
    return Curve("k", np.arange(len(values)), values, nothing, nothing, np.ones(len(values), int), np.zeros(len(values), bool))


def test_the_log_axis_holds_every_value_and_keeps_zero_below():
    axis = LogAxis.over([curve_of([1e-4, 3.0])], zero=True)
    assert axis.bottom < axis.zero < axis.low < 1e-4 and axis.high > 3
    assert LogAxis.over([curve_of([1e-4, 3.0])]).zero is None


def test_ticks_are_powers_of_ten_or_1_2_5_and_few():
    assert decades(1e-3, 1e2)[0] == pytest.approx([1e-3, 1e-2, 1e-1, 1, 10, 100])
    assert decades(0.15, 0.9)[0] == pytest.approx([0.2, 0.5])
    assert len(decades(1e-30, 1e5)[0]) <= 6
    assert tick_labels([0.01, 1, 100]) == ["0.01", "1", "100"]
    assert tick_labels([0.002, 0.005, 0.01]) == ["0.002", "0.005", "0.01"]
    assert tick_labels([2e-5, 1e-5]) == ["$2\\cdot10^{-5}$", "$10^{-5}$"]
    assert tick_labels([1e-3, 1]) == ["$10^{-3}$", "$10^{0}$"]


@pytest.mark.parametrize("count", range(1, 14))
@pytest.mark.parametrize("columns", [1, 2, 3, 4])
def test_a_legend_reads_row_by_row(count, columns):
    columns = min(columns, count)
    order = in_rows(list(range(count)), columns)
    lines = -(-count // columns)
    lengths = [len(part) for part in np.array_split(np.arange(count), columns)]  # as matplotlib packs its columns
    packed = np.split(np.array(order), np.cumsum(lengths)[:-1])
    read = [column[row] for row in range(lines) for column in packed if row < len(column)]
    assert read == list(range(count))


def test_the_cascade_fit_finds_a_planted_law():
    depth = np.arange(5)
    table = {
        "measure": ["nc1_pinv"] * 10,
        "value": [2 * 0.5**l for l in depth] * 2,
        "seed": [0] * 5 + [1] * 5,
        "layer": list("abcde") * 2,
    }
    fit = fit_cascade(with_depth(Measured.of(table), list("abcde")))
    assert (fit.rho, fit.start, fit.pearson, fit.half) == pytest.approx((0.5, 2.0, -1.0, 0.0), abs=1e-12)


def test_the_spread_of_rho_is_over_seeds():
    factors = [0.4, 0.5, 0.6]
    table = {
        "measure": ["nc1_pinv"] * 9,
        "value": [f**l for f in factors for l in range(3)],
        "seed": [s for s in range(3) for _ in range(3)],
        "layer": list("abc") * 3,
    }
    fit = fit_cascade(with_depth(Measured.of(table), list("abc")))
    assert fit.half == pytest.approx(stats.t.ppf(0.975, 2) * stats.sem(factors))


def test_four_epochs_from_first_to_last():
    assert chosen_epochs([0, 1, 2, 5, 10, 20, 50, 100]) == [0, 5, 20, 100]
    assert chosen_epochs([3, 1]) == [1, 3]


@pytest.mark.parametrize(
    "text, shown",
    [
        ("unfinished: no `done` marker", "unfinished: no `done` marker"),
        (
            "unfinished: no `done` marker; `empirical resume` continues it from the last state that was kept on disk",
            "unfinished: no `done` marker ...",
        ),
        ("the training ended before its first measurement " + 10 * "because of that ", None),
        ("x" * 200, "x" * 77 + " ..."),
    ],
)
def test_a_reason_that_is_too_long_ends_with_a_clause(text, shown):
    found = clause(text)
    assert len(found) <= 81 and (shown is None or found == shown)
    if found != text and " " in text:
        kept = found.removesuffix(" ...")
        assert found.endswith(" ...") and text.startswith(kept) and text[len(kept)] in " ;:,.("


def test_an_interval_down_to_zero_is_a_mark_and_no_spike_of_the_band():
    figure = Figure()
    ax, legend = figure.subplots(), Legend()
    value = np.array([0.5, 0.2, 0.1])
    line = Curve("m", np.array([1.0, 2.0, 3.0]), value, np.array([0.4, 0.0, 0.08]), 2 * value, np.full(3, 5), np.zeros(3, bool))
    axis = LogAxis.over([line])
    draw_curve(ax, line, LOOKS["train"], axis, legend, "train")
    (band,) = [c for c in ax.collections if c.get_gid() == "band:m"]
    corners = np.concatenate([path.vertices for path in band.get_paths()])
    at_two = corners[corners[:, 0] == 2.0, 1]
    assert at_two.min() == 0.2 and at_two.max() == 0.4
    (mark,) = [found for found in ax.lines if found.get_gid() == "endless:m"]
    assert mark.get_xdata().tolist() == [2.0] and mark.get_ydata().tolist() == [axis.low]
    assert "interval reaches 0" in legend.marks
    for linear in (LinearAxis.over([line]), PLAIN):  # there zero is a place like any other
        ax.clear()
        draw_curve(ax, line, LOOKS["train"], linear, Legend(), "train")
        assert not [found for found in ax.lines if found.get_gid() == "endless:m"]
        (band,) = [c for c in ax.collections if c.get_gid() == "band:m"]
        assert min(path.vertices[:, 1].min() for path in band.get_paths()) == 0.0
