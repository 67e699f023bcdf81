"""What single figures must show, against values worked out by hand or by other means."""

from pathlib import Path

import numpy as np
import pytest
from figure_tables import Loaded, change, collisions, make, run_folder, sweep, table_for
from scipy import stats

from compare import figures
from compare.figures.geometry import borders, most_confused, plane_of
from compare.figures.settings import swept
from compare.rows import Cell
from compare.style import Style
from ufm.errors import RequestError

STYLE = Style.of("neurips")


def line(drawing, panel, key):
    """Return the (x, y) of a plotted curve."""
    ax = next(ax for ax in drawing.figure.axes if ax.get_label() == panel)
    return next(line for line in ax.lines if line.get_gid() == f"curve:{key}").get_xydata().T


def test_the_trajectory_draws_the_floor_at_half_and_weak_collapse_at_twice_the_error():
    table = table_for("trajectory")
    drawing = figures.draw("trajectory", table, STYLE)
    for key, measure, factor in (("two_err", "ncc_error", 2.0), ("floor", "ncc_error_between", 0.5)):
        rows = (
            (table["measure"] == measure)
            & (table["split"] == "test")
            & (table["layer"] == "penultimate")
            & (table["epoch"] == 375)
        )
        x, y = line(drawing, "nc1", key)
        assert y[x == 375] == pytest.approx(factor * np.exp(np.log(table["value"][rows].astype(float)).mean()))


def test_the_trajectory_shows_the_optimum_at_the_place_for_zero():
    ax = figures.draw("trajectory", table_for("trajectory"), STYLE).figure.axes[0]
    optimum = next(line for line in ax.lines if line.get_gid() == "curve:zero")
    zero = next(label for label in ax.get_yticklabels() if label.get_text() == "0")
    assert set(optimum.get_ydata()) == {zero.get_position()[1]}


def test_theory_is_not_drawn_where_it_does_not_apply():
    table = table_for("nc")
    table = change(table, table["measure"] == "nc1_pinv", predicted=0.0)  # NC2 to NC4 stay without a prediction
    drawing = figures.draw("nc", table, STYLE)
    drawn = {ax.get_label() for ax in drawing.figure.axes if any(line.get_gid() == "curve:zero" for line in ax.lines)}
    assert drawn == {"nc1"} and any("NC2, NC3, NC4" in note for note in drawing.notes)


def test_the_cascade_law_on_test_is_the_train_fit_plus_twice_the_error():
    drawing = figures.draw("layers", table_for("layers"), STYLE)
    (x, train), (_, test) = line(drawing, "nc1_train", "law: D0 rho^l"), line(drawing, "nc1_test", "law: D0 rho^l + 2 err")
    assert np.ptp(np.diff(np.log(train)) / np.diff(x)) < 1e-9
    errors = line(drawing, "error_test", "ncc_error:train:epoch 375")[1]
    np.testing.assert_allclose(test - train, 2 * errors[-1])


def test_the_heros_lines_are_where_theory_puts_them():
    table = change(table_for("hero"), [])
    table.cells = {
        "digits-0a1b2c": Cell(
            "digits-0a1b2c", "collapse", "", {}, {}, (0,), {0: {"data": {"counts": [9] * 3, "test": 797, "classes": 3}}}
        )
    }
    drawing = figures.draw("hero", table, STYLE)
    for key, factor in (("floor", 2.0), ("two_err", 0.5)):
        x, y = line(drawing, "hero", key)
        np.testing.assert_allclose(y[np.isfinite(y)], factor * x[np.isfinite(y)])
    draw = np.random.default_rng(0)  # the Gaussian curve against simulated points about an ETF of three classes
    x, y = line(drawing, "hero", "gaussian_etf")
    i = np.nanargmin(np.abs(y - 0.2))
    corners = np.sqrt(3 / 2) * (np.eye(3) - 1 / 3)  # unit vectors; Sigma_B = I/2 on its span, so NC1 = (2/3) 2 s^2 for noise s
    points = corners[0] + np.sqrt(x[i] * 3 / 4) * draw.standard_normal((200_000, 3))
    wrong = ((points[:, None] - corners) ** 2).sum(2).argmin(1) != 0
    assert wrong.mean() == pytest.approx(y[i], abs=0.004)


def test_no_network_lies_beyond_the_floor():
    table = table_for("hero")
    test = (table["centres"] == "train") & (table["split"] == "test")

    def pick(measure):
        return table["value"][test & (table["measure"] == measure)]

    assert (pick("ncc_error_between") / 2 <= pick("nc1_pinv_strong")).all()  # or the made-up table shows what cannot be


def test_a_sweep_knows_what_was_swept():
    over = swept(sweep())
    assert over.name == "lambda_w" and set(over.groups.values()) == {"loss=ce", "loss=mse"}
    assert sorted(set(over.values.values())) == [1e-4, 1e-3, 1e-2, 1e-1]


def test_settings_whose_labels_are_cut_alike_stay_apart_and_options_that_walk_together_are_one():
    same = {"a_very_long_option": "a value of some length", "another": "and one more of them"}
    settings = [
        {"dim": d, "lambda_w": lam, "lambda_h": lam, **same, "z": z} for d in (4, 8, 16) for lam, z in ((0.1, 1), (0.1, 2))
    ]
    settings[0] |= {"a_very_long_option": "another value of some length"}  # so that it is part of every label
    cells = {f"c{i}": Cell(f"c{i}", "single", "", one) for i, one in enumerate(settings)}
    columns = {"measure": ["loss"] * 6, "value": [1.0] * 6, "cell": list(cells), "split": ["theory"] * 6}
    groups = swept(Loaded(columns, cells)).groups
    assert groups["c2"] == groups["c4"] != groups["c3"] == groups["c5"] and len({groups[c] for c in ("c0", "c1", "c2")}) == 3
    pairs = [{"dim": d, "lambda_w": lam, "lambda_h": lam} for d in (4, 8, 16) for lam in (0.1, 0.2)]
    table = Loaded(columns, {f"c{i}": Cell(f"c{i}", "single", "", one) for i, one in enumerate(pairs)})
    assert set(swept(table).groups.values()) == {"lambda_w=lambda_h=0.1", "lambda_w=lambda_h=0.2"}


def test_a_flat_panel_is_not_magnified_into_its_rounding():
    from compare.figures.series import Curve
    from compare.figures.sweep import LinearAxis

    values = 96.4 + 1e-13 * np.arange(3.0)
    fields = {f: np.zeros(3, bool) for f in Curve.__dataclass_fields__} | {"value": values, "low": values, "high": values}
    axis = LinearAxis.over([Curve(**fields)])
    assert axis.low < 92 and axis.high > 101


@pytest.mark.parametrize(
    "cells, reason",
    [
        ({"a": {"lr": 0.1}}, "two or more settings"),
        ({"a": {"lr": 0.1}, "b": {"lr": 0.1}}, "no numeric option"),
        ({"a": {"loss": "ce"}, "b": {"loss": "mse"}}, "no numeric option"),
        ({str(i): {"lr": i, "loss": str(i)} for i in range(20)}, "name fewer runs"),  # text is not thinned
    ],
)
def test_what_is_no_sweep_is_refused(cells, reason):
    columns = {
        "measure": ["loss"] * len(cells),
        "value": [1.0] * len(cells),
        "cell": list(cells),
        "split": ["theory"] * len(cells),
    }
    table = Loaded(columns, {name: Cell(name, "single", "", config) for name, config in cells.items()})
    with pytest.raises(RequestError, match=reason):
        figures.draw("sweep", table, STYLE)


def test_the_sweeps_prediction_is_drawn_and_the_distance_said():
    drawing = figures.draw("sweep", sweep(), STYLE)
    x, y = line(drawing, "loss", "predicted loss loss=ce")
    np.testing.assert_allclose(y, x**0.4)
    assert any("1e-12" in note for note in drawing.notes)


def theory_run(root, seeds=(0,), **grid):
    """Return the loaded table of a real sweep of `single`: written by the sweep itself, read by `compare.load`."""
    from compare.load import load
    from ufm import sweep as sweeps
    from ufm.spec import cells, resolve
    from ufm.systems import SYSTEMS
    from ufm.tables import load as entry

    system = entry(SYSTEMS, "single", "system")
    values = resolve(system.spec, {"classes": "4", "dim": "5", "per_class": "10", **grid})
    request = sweeps.plan(system, values, cells(values), list(seeds))
    return load(sweeps.execute(request, root=root, environment={}).path)


def test_a_sweep_draws_gap_norms_angles_and_the_threshold(tmp_path):
    drawing = figures.draw("sweep", theory_run(tmp_path, lambda_w="1e-3:1e2:7log", lambda_h="1e-2"), STYLE)
    assert [ax.get_label() for ax in drawing.figure.axes] == ["loss", "logit_gap", "norms", "angles", "gap", "geometry"]
    x, gap = line(drawing, "logit_gap", "predicted logit_gap")
    s = np.sqrt(10 * x * 1e-2)  # of balanced cross-entropy: a = log(1/s - K + 1) until K s = 1
    live = 4 * s < 1
    np.testing.assert_allclose(gap[live], np.log(1 / s[live] - 3), rtol=1e-12)
    np.testing.assert_allclose(line(drawing, "logit_gap", "logit_gap")[1][live], gap[live], rtol=1e-8)
    np.testing.assert_allclose(line(drawing, "angles", "angle_means")[1], np.degrees(np.arccos(-1 / 3)), rtol=1e-8)
    weights, means = (line(drawing, "norms", name)[1][live] for name in ("weight_norm", "feature_norm"))
    np.testing.assert_allclose(weights**2 * x[live], means**2 * 1e-2, rtol=1e-8)  # both shares of the penalty are equal
    (row,) = [r for r in drawing.rows if r[-1] == "threshold"]
    assert row[1] == "zero solution" and row[2] == pytest.approx(1 / (16 * 10 * 1e-2), rel=1e-9)  # K^2 n lambda_w lambda_h = 1
    assert all(any(str(item.get_gid()).startswith("threshold:") for item in ax.lines) for ax in drawing.figure.axes)


def test_groups_of_a_sweep_share_the_panels(tmp_path):
    table = theory_run(tmp_path, lambda_w="1e-3,1e-2,1e-1", loss="ce,mse", imbalance="1,5")
    for width in ("neurips", "icml"):
        drawing = figures.draw("sweep", table, Style.of(width))
        assert len(drawing.figure.axes) == 6 and collisions(drawing.figure) == []
    assert any("4 groups" in note for note in drawing.notes)


def test_where_a_number_passes_one():
    from compare.figures.sweep import crossings

    x = np.geomspace(1, 100, 5)
    assert crossings(x, (x / 20) ** 1.5) == pytest.approx([20.0])
    assert crossings(x, 0.1 * x / x) == [] and crossings(np.array([-1.0, 1.0]), np.array([0.5, 2.0])) == [0.0]
    assert crossings(np.array([1.0, 2.0, 4.0]), np.array([0.5, 1.0, 2.0])) == [pytest.approx(2.0)]


@pytest.mark.parametrize("width", ["neurips", "icml"])
def test_grams_of_a_sweep_stand_beside_their_prediction(tmp_path, width):
    drawing = figures.draw("gram", theory_run(tmp_path, lambda_w="1e-3:1e-1:4log", imbalance="5"), Style.of(width))
    rows = {(r[0], r[1], r[2]): r[3] for r in drawing.rows}
    for side in ("weights", "means"):
        for i in range(4):
            for j in range(4):
                at = f"class {i}", float(j)
                assert rows[f"{side} found 0", *at] == pytest.approx(rows[f"{side} predicted 0", *at], abs=1e-7)
    assert rows["weights found 0", "class 0", 0.0] == pytest.approx(1)
    assert rows["means found 0", "class 3", 3.0] == pytest.approx(1)
    assert len({row[0] for row in drawing.rows}) == (12 if width == "neurips" else 4)
    assert collisions(drawing.figure) == []


@pytest.mark.parametrize("width", ["neurips", "icml"])
def test_seeds_of_one_setting_stand_in_rows_of_their_own(tmp_path, width):
    table = theory_run(tmp_path, features="nonnegative", dim="4", counts="9,5,4,1", seeds=(0, 1, 2))
    drawing = figures.draw("gram", table, Style.of(width))
    shown = 3 if width == "neurips" else 1  # a narrow column has place for one
    assert {row[0].split()[-1] for row in drawing.rows} == {str(i) for i in range(shown)}
    assert {ax.get_label() for ax in drawing.figure.axes} - {"colours"} == {row[0] for row in drawing.rows}


def test_no_closed_form_is_said_and_old_rows_are_refused(tmp_path):
    import json

    table = theory_run(tmp_path, counts="9,5,4,2", bias="free")
    drawing = figures.draw("gram", table, STYLE)
    assert any("none: no closed form" in note for note in drawing.notes)
    assert {row[0] for row in drawing.rows} == {"weights found 0", "means found 0"}
    old = tmp_path / "old" / "run"
    old.mkdir(parents=True)
    source = next(iter(table.cells.values())).path
    (old / "config.json").write_text((Path(source) / "config.json").read_text())
    row = json.loads((Path(source) / "cells.jsonl").read_text())
    del row["gram"], row["prediction"]["values"]
    (old / "cells.jsonl").write_text(json.dumps(row) + "\n")
    from compare.load import load

    with pytest.raises(RequestError, match="keep no Gram"):
        figures.draw("gram", load(old), STYLE)


def test_samples_refuses_two_swept_options():
    table = table_for("samples")
    cells = {
        name: Cell(name, c.system, "", {**c.config, "loss": f"l{i % 2}"}, {}, c.seeds, c.results)
        for i, (name, c) in enumerate(table.cells.items())
    }
    with pytest.raises(RequestError, match="more than train_per_class"):
        figures.draw("samples", Loaded(table, cells), STYLE)


def test_samples_draws_the_law_of_interpolation():
    table = table_for("samples")
    extra = {"dataset": "interpolation", "classes": 4, "input_dim": 4000, "noise": 0.3, "signal": 3.0}
    cells = {name: Cell(name, c.system, "", {**c.config, **extra}, {}, c.seeds, c.results) for name, c in table.cells.items()}
    x, y = line(figures.draw("samples", Loaded(table, cells), STYLE), "nc1", "interpolation")
    n, d, ratio = x, 4000, (0.3 / 3.0) ** 2
    np.testing.assert_allclose(y, 3 * ratio * (1 + d * ratio / n) * d / (d - 4 * n))  # theory-test-collapse, item 8


def test_borders_are_equally_far_from_two_corners_and_farther_from_the_third():
    corners = np.array([[0.0, 1.0], [-0.9, -0.4], [0.8, -0.6]])
    for border, (i, j, k) in zip(borders(corners), ((0, 1, 2), (0, 2, 1), (1, 2, 0)), strict=True):
        for share in (0.1, 0.5, 1.0):
            distance = np.linalg.norm(corners - (border[0] + share * (border[1] - border[0])), axis=1)
            assert distance[i] == pytest.approx(distance[j]) and distance[k] > distance[i]


def test_the_plane_of_three_means_keeps_their_distances():
    means = np.random.default_rng(1).standard_normal((5, 4))
    plane = plane_of(means, (3, 0, 4))
    flat = np.array([plane.of(means[k]) for k in (3, 0, 4)])
    for i, a in enumerate((3, 0, 4)):
        for j, b in enumerate((3, 0, 4)):
            assert plane.unit * np.linalg.norm(flat[i] - flat[j]) == pytest.approx(np.linalg.norm(means[a] - means[b]))
    assert flat[0, 0] == pytest.approx(0, abs=1e-12) and flat[0, 1] > 0 and flat[1, 0] < 0


def test_the_most_confused_classes_are_chosen():
    assert most_confused(np.array([[9, 0, 0, 1], [0, 9, 3, 0], [2, 2, 9, 0], [0, 0, 0, 9]])) == (1, 2, 0)


def test_gram_and_confusion_hold_hand_computed_values(tmp_path):
    table = run_folder(tmp_path, seeds=1)
    from figure_tables import arrays

    found = arrays(0)
    means = found["penultimate/train/means"] - found["penultimate/train/means"].mean(0)
    expected = means[0] @ means[1] / np.linalg.norm(means[0]) / np.linalg.norm(means[1])
    rows = {(r[0], r[1], r[2]): r[3] for r in figures.draw("gram", table, STYLE).rows}
    assert rows["train", "class 0", 1.0] == pytest.approx(expected) and rows["theory", "class 0", 1.0] == -0.25
    rows = {(r[0], r[1], r[2]): r[3] for r in figures.draw("confusion", table, STYLE).rows}
    assert rows["nearest", "class 2", 3.0] == pytest.approx(found["test/confusion"][2, 3] / 40)


def test_the_spectrum_of_an_etf_is_flat_with_one_zero(tmp_path):
    drawing = figures.draw("spectrum", run_folder(tmp_path, seeds=1), STYLE)
    y = line(drawing, "between", "simplex ETF")[1]
    np.testing.assert_allclose(y[:4], np.linalg.svd(np.eye(5) - 0.2)[1][:4] * np.sqrt(5 / 4))
    assert np.isnan(y[4])  # drawn at the place for zero
    assert np.nanmax(np.abs(line(drawing, "between", "train means")[1][:4] / y[:4] - 1)) < 0.05


def test_left_out_runs_are_said():
    from compare.rows import Excluded

    table = make(seeds=1)
    table.excluded = (Excluded("digits", 3, "diverged: the loss became non-finite at step 7"),)
    for name in ("trajectory", "nc", "layers", "hero"):
        assert any("digits seed 3 (diverged" in note for note in figures.draw(name, table, STYLE).notes)


def test_settings_of_a_cloud_are_named_by_what_differs_and_never_merged():
    table = make(seeds=1, layers=("penultimate",), epochs=(0, 5), cells=("x" * 40 + "1", "x" * 40 + "2"))
    legend = lambda t: [text.get_text() for text in figures.draw("hero", t, STYLE).figure.legends[0].get_texts()]  # noqa: E731
    assert len([text for text in legend(table) if "xxx" in text]) == 2
    table.cells = {
        name: Cell(name, "collapse", "", {"weight_decay": wd})
        for name, wd in zip(dict.fromkeys(table["cell"]), (5e-4, 2e-3), strict=True)
    }
    assert {"weight decay 0.0005", "weight decay 0.002"} <= set(legend(table))
    table.cells = {
        name: Cell(name, "collapse", "", {"weight_decay": 5e-4, "width": w, "layers": str(w), "train_per_class": n, "coarse": c})
        for name, w, n, c in zip(dict.fromkeys(table["cell"]), (64, 128), (None, 10), (None, [5, 5]), strict=True)
    }
    assert {"width 64", "width 128"} & set(legend(table)), legend(table)  # one option is enough, and not how it was measured


def test_samples_fits_the_exponent_that_was_planted():
    table = table_for("samples")
    strong = table["measure"] == "nc1_pinv_strong"
    size = np.array([float(str(cell)[1:]) for cell in table["cell"]])
    noise = np.exp(0.01 * np.random.default_rng(5).standard_normal(len(size)))
    planted = Loaded({**table, "value": np.where(strong, 0.7 * size**-0.6 * noise, table["value"])}, table.cells)
    drawing = figures.draw("samples", planted, STYLE)
    x, y = line(drawing, "nc1", "fit")
    assert np.polyfit(np.log(x), np.log(y), 1)[0] == pytest.approx(-0.6, abs=0.01)
    legend = [text.get_text() for text in drawing.figure.legends[0].get_texts()]
    [label] = [text for text in legend if text.startswith("Fit, test")]
    alpha, half = (float(v) for v in label.split("{")[1].split("}")[0].split(r"\pm"))
    assert alpha == pytest.approx(-0.6, abs=0.02) and 0 <= half < 0.02


def test_transfer_holds_the_whitened_probe_to_what_it_read_first_and_says_what_is_lost():
    drawing = figures.draw("transfer", table_for("transfer"), STYLE)
    probe = {r[2]: r[3] for r in drawing.rows if r[:2] == ("probes_2", "probe_whiten")}
    x, y = line(drawing, "probes_2", "conserved")
    assert list(x) == [1, 100] and set(y) == {probe[1.0]}
    [note] = [note for note in drawing.notes if "conserves" in note]
    lost = float(note.split("lost beyond")[-2].split(",")[-1])
    assert lost == pytest.approx(probe[1.0] - probe[100.0], rel=0.01)


def test_shortcut_puts_the_plain_training_first_and_joins_each_groups_own_sample():
    table = table_for("shortcut")
    drawing = figures.draw("shortcut", table, STYLE)
    titles = {ax.get_label(): ax.get_title(loc="left") for ax in drawing.figure.axes}
    assert titles["answers_1"] == "(a) Without primes" and titles["features_2"] == "(d) With primes"
    rows = {(r[0], r[1], r[2]): r[3:6] for r in drawing.rows}
    for panel, cell in (("answers_1", "coloured-none"), ("answers_2", "coloured-etf")):
        for key, measure, size in (
            ("test_conflicting", "accuracy_conflicting", 900),
            ("test_aligned", "accuracy_aligned", 100),
            ("followed", "attribute_followed", 900),
        ):
            chosen = (table["cell"] == cell) & (table["measure"] == measure) & (table["split"] == "test") & (table["epoch"] == 8)
            logs = np.log(table["value"][chosen].astype(float))
            mean, _, high = rows[panel, key, 8.0]
            assert mean == pytest.approx(np.exp(logs.mean()))
            exact = stats.binomtest(round(mean * size), size).proportion_ci(0.95)
            spread = stats.t.ppf(0.975, 2) * logs.std(ddof=1) / np.sqrt(3)
            assert np.log(high / mean) == pytest.approx(np.hypot(spread, np.log(exact.high / mean)), rel=0.05)
    assert any("called by colour" in note for note in drawing.notes)
    with pytest.raises(RequestError, match="no accuracy by group"):
        figures.draw("shortcut", table_for("transfer"), STYLE)


def test_the_heros_forbidden_region_is_in_the_legend():
    [handle] = [
        h for h in figures.draw("hero", table_for("hero"), STYLE).figure.legends[0].legend_handles if not hasattr(h, "get_xdata")
    ]
    assert handle.get_label().startswith("Forbidden") and handle.get_facecolor()[:3] == pytest.approx((237 / 255,) * 3)


@pytest.mark.parametrize(
    "seeds, legend, note", [(1, "95 % interval, test sample", "of one seed; the bands"), (3, "3 seeds", "means over 3")]
)
def test_transfer_says_whose_interval_it_draws_and_its_notes_are_plain_text(seeds, legend, note):
    table = table_for("transfer")
    keep = table["seed"] < seeds
    chosen = Loaded({name: column[keep] for name, column in table.items()}, table.cells)
    drawing = figures.draw("transfer", chosen, STYLE)
    labels = [text.get_text() for text in drawing.figure.legends[0].get_texts()]
    [band] = [label for label in labels if "interval" in label]
    assert band.endswith(legend) and note in drawing.notes[0]
    assert not any("$" in one or "\\" in one for one in drawing.notes)


def test_the_probes_of_transfer_differ_without_colour_and_their_markers_do_not_hide_one_another():
    from compare.figures.transfer import _PROBES

    looks = [look for _, look in _PROBES.values()]
    assert len({look.marker for look in looks}) == len({str(look.dashes) for look in looks}) == len(looks)
    ax = figures.draw("transfer", table_for("transfer"), STYLE).figure.axes[0]
    points = [line for line in ax.lines if str(line.get_gid()).startswith("points:")]
    at = sorted(float(line.get_transform().transform((1.0, 0.5))[0]) for line in points)
    assert len(points) == 3 and np.diff(at) == pytest.approx(np.full(2, 2.2 * ax.figure.dpi / 72))
