"""What holds for every figure: the same bytes twice, the numbers beside, readable labels, a figure or one line for any table."""

import csv
import io
import json
import re

import numpy as np
import pytest
from figure_tables import collisions, drawn_texts, table_for

from compare import figures
from compare.figures.drawing import clean, csv_text, render
from compare.style import WIDTHS, Style
from ufm.errors import RequestError

ORIGIN = {"commit": "0123abc", "versions": {"numpy": "2.4"}, "config": "f00d", "seeds": [0, 1, 2, 3, 4]}
NAMES = list(figures.FIGURES)
MAPS = ("gram", "confusion", "calibration")
ALL_WIDTHS = [*WIDTHS, "75", "180"]


@pytest.fixture(scope="module")
def drawings():
    """Each figure at each width, drawn once."""
    made = {}

    def get(name, width="neurips"):
        if (name, width) not in made:
            made[name, width] = figures.draw(name, table_for(name), Style.of(width))
        return made[name, width]

    return get


@pytest.mark.parametrize("width", ALL_WIDTHS)
@pytest.mark.parametrize("name", NAMES)
def test_no_text_overlaps_or_leaves_the_figure(drawings, name, width):
    drawing = drawings(name, width)
    assert len(drawn_texts(drawing.figure)) > 5
    assert collisions(drawing.figure) == []
    assert drawing.figure.get_figwidth() == pytest.approx(Style.of(width).width)


@pytest.mark.parametrize("name", NAMES)
def test_drawn_twice_the_bytes_are_the_same(drawings, name):
    style = Style.of("icml")
    first, second = drawings(name, "icml"), figures.draw(name, table_for(name), style)
    for suffix in (".png", ".svg", ".pdf", ".pgf"):
        picture = render(first, suffix, style, ORIGIN)
        assert len(picture) > 2000 and picture == render(second, suffix, style, ORIGIN), suffix


@pytest.mark.parametrize("name", NAMES)
def test_a_users_matplotlibrc_changes_nothing(drawings, name):
    import matplotlib

    style = Style.of("neurips")
    plain = render(drawings(name), ".svg", style, ORIGIN)
    with matplotlib.rc_context(
        {"font.size": 20, "axes.grid": True, "lines.linewidth": 5, "savefig.dpi": 50, "axes.facecolor": "red"}
    ):
        assert render(figures.draw(name, table_for(name), style), ".svg", style, ORIGIN) == plain


@pytest.mark.parametrize("name", NAMES)
def test_fonts_are_type_42(drawings, name):
    pdf = render(drawings(name), ".pdf", Style.of("neurips"), ORIGIN)
    assert b"/Type3" not in pdf and b"/CIDFontType2" in pdf and b"CreationDate" not in pdf


@pytest.mark.parametrize(
    "suffix, marker", [(".png", b"0123abc"), (".svg", b"0123abc"), (".pdf", b"0123abc"), (".pgf", b"0123abc")]
)
def test_the_origin_is_in_the_metadata_and_no_date(drawings, suffix, marker):
    data = render(drawings("trajectory"), suffix, Style.of("neurips"), ORIGIN)
    assert marker in data and b"dc:date" not in data and b"CreationDate" not in data


def plotted(drawing):
    """Return {(panel, curve): (x, y)} read back from the artists."""
    found = {}
    for ax in drawing.figure.axes:
        for line in ax.lines:
            if str(line.get_gid()).startswith("curve:"):
                found[ax.get_label(), line.get_gid().removeprefix("curve:")] = np.array(line.get_xydata(), float)
        for mesh in ax.collections:
            if str(mesh.get_gid()).startswith("map:"):
                values = mesh.get_array().reshape(mesh._coordinates.shape[0] - 1, -1)
                for i, row in enumerate(np.ma.filled(values, np.nan)):
                    keep = np.arange(len(row)) != i
                    found[ax.get_label(), f"class {i}"] = np.stack([np.arange(len(row))[keep], row[keep]], axis=1)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_the_csv_holds_what_is_plotted(drawings, name):
    drawing = drawings(name)
    rows = list(csv.DictReader(io.StringIO(csv_text(drawing))))
    assert set(rows[0]) == set(drawing.columns)
    artists = plotted(drawing)
    points = {}
    for row in rows:
        if row["mark"] in ("", "zero or below the floor"):
            value = float("nan") if row["mark"] else float(row["value"] or "nan")
            points.setdefault((row["panel"], row["curve"]), []).append((float(row["x"]), value))
    assert {key for key in artists if key[1] != "zero"} == set(points)
    for key, pairs in points.items():
        np.testing.assert_array_equal(artists[key], np.array(pairs))


@pytest.mark.parametrize("name", [name for name in NAMES if name not in MAPS])
def test_every_curve_is_named_in_the_legend(drawings, name):
    drawing = drawings(name)
    legend = {text.get_text() for box in drawing.figure.legends for text in box.get_texts()}
    lines = [line for ax in drawing.figure.axes for line in ax.lines if str(line.get_gid()).startswith("curve:")]
    assert len(lines) >= 5
    assert {line.get_label() for line in lines} <= legend


@pytest.mark.parametrize("name", NAMES)
def test_axes_say_what_they_show(drawings, name):
    axes = drawings(name).figure.axes
    bottom = ("nc", "layers", "calibration")  # a label of the last row stands for all
    assert all(ax.get_xlabel() or ax.get_shared_x_axes().joined(ax, axes[-1]) or name in bottom for ax in axes)
    if name in ("trajectory", "nc", "layers", "samples", "hero"):
        assert any("NC1" in label for ax in axes for label in (ax.get_xlabel(), ax.get_ylabel()))
    if name in MAPS:
        assert axes[-1].get_xlabel()  # the colour bar says what a colour is


def test_save_writes_figure_numbers_and_origin(tmp_path):
    style = Style.of("84")
    drawing = figures.draw("trajectory", table_for("trajectory"), style)
    paths = figures.save(
        drawing, tmp_path / "f.svg", style=style, provenance={**ORIGIN, "argv": ["/home/ann/bin/compare", "--out", "/tmp/x/y"]}
    )
    assert [path.name for path in paths] == ["f.svg", "f.csv", "f.json"]
    document = json.loads(paths[2].read_text())
    assert document["provenance"]["commit"] == "0123abc" and document["notes"] == list(drawing.notes)
    assert not re.search("ann|/tmp", "".join(path.read_text() for path in paths))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f.csv", "f.json", "f.svg"]


@pytest.mark.parametrize("name", ["f.jpg", "f", "f.pdf.exe"])
def test_another_format_is_refused_and_nothing_is_written(tmp_path, name):
    style = Style.of("icml")
    with pytest.raises(RequestError, match="end the name in"):
        figures.save(figures.draw("trajectory", table_for("trajectory"), style), tmp_path / name, style=style, provenance={})
    assert not list(tmp_path.iterdir())


def test_an_unknown_figure_gets_a_suggestion():
    with pytest.raises(RequestError, match="did you mean 'trajectory'"):
        figures.draw("trajectry", {}, Style.of("icml"))


@pytest.mark.parametrize(
    "given, kept",
    [
        ("/home/ann/runs/a", "a"),
        ("--out=/home/ann/x", "--out=x"),
        ("C:\\Users\\ann\\run", "run"),
        ("~/runs/a", "a"),
        ("runs/a", "runs/a"),
        ("a 1/2 b", "a 1/2 b"),
        ({"user": "ann", "n": 1}, {"n": 1}),
        ([1.5, float("nan"), None, True], [1.5, None, None, True]),
    ],
)
def test_provenance_loses_paths_and_names(given, kept):
    assert clean(given) == kept


def test_csv_cells_are_no_formulas():
    from compare.figures.drawing import Drawing

    text = csv_text(Drawing(None, ("a", "b"), [("=1+1", 0.1), ("@x", float("nan")), ("plain", 3)]))
    assert text == "a,b\n'=1+1,0.1\n'@x,\nplain,3\n"


def test_pgf_escapes_what_latex_reads():
    from compare.figures.pgf import to_latex

    assert to_latex("50 % of a_b & \\x $\\rho$", True) == "50 \\% of a\\_b \\& \\textbackslash{}x $\\rho$"
    assert to_latex("a\\$b", False) == "a\\$b"
