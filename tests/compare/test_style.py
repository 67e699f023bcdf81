import subprocess
import sys
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compare.style import GROUP_COLORS, LOOKS, NARROWEST, WIDTHS, Style, check_label, escape, group_look, shades
from ufm.errors import RequestError


@pytest.mark.parametrize(
    "name, inches", [("neurips", 5.5), ("icml", 3.25), ("iclr", 5.5), ("jmlr", 6.0), ("tmlr", 6.5), ("NeurIPS", 5.5)]
)
def test_a_venue_gives_its_width(name, inches):
    assert Style.of(name).width == inches


def test_millimetres_are_converted():
    assert Style.of("127").width == pytest.approx(5.0)
    assert Style.of(84).width == pytest.approx(84 / 25.4)


@pytest.mark.parametrize("width", ["nips", "", "nan", "inf", "0", "-84", "74.9", "1e9", "\x1b[31m", None])
def test_a_wrong_width_is_one_line(width):
    with pytest.raises(RequestError) as caught:
        Style.of(width)
    assert "\n" not in str(caught.value) and "\x1b" not in str(caught.value)


@pytest.mark.parametrize("width", [*WIDTHS, "75", "84", "200"])
def test_letters_can_be_read(width):
    style = Style.of(width)
    assert 7 <= style.tick <= style.label <= 9


def lightness(color):
    """CIE L* of '#rrggbb', by the definition."""
    linear = [
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (int(color[i : i + 2], 16) / 255 for i in (1, 3, 5))
    ]
    y = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return 116 * y ** (1 / 3) - 16 if y > (6 / 29) ** 3 else y * 903.3


def test_curves_differ_in_grey_by_lightness_or_by_marker():
    looks = list(LOOKS.values())
    for i, one in enumerate(looks):
        for other in looks[i + 1 :]:
            apart = abs(lightness(one.color) - lightness(other.color)) >= 8
            assert apart or one.marker != other.marker or one.dashes != other.dashes


def test_train_is_solid_and_dark_test_dotted_theory_black_and_dashed():
    assert LOOKS["train"].dashes == "-" and lightness(LOOKS["train"].color) < 25
    assert all(LOOKS[name].dashes[1][0] < 1.5 for name in LOOKS if name.startswith("test"))
    assert all(LOOKS[n].color == "#000000" and LOOKS[n].dashes != "-" for n in ("optimum", "theory", "floor", "gaussian"))
    assert all(lightness(look.color) < 75 for look in LOOKS.values())  # seen on white


def test_shades_darken():
    values = [lightness(color) for color in shades(4)]
    assert values == sorted(values, reverse=True) and min(a - b for a, b in pairwise(values)) > 8


def test_groups_repeat_only_after_all_colours():
    looks = {(group_look(i).color, group_look(i).marker) for i in range(len(GROUP_COLORS))}
    assert len(looks) == len(GROUP_COLORS)


@pytest.mark.parametrize(
    "text",
    ["$x_\\frac", "a$b$c", "\\", "$", "_", "a\nb", "\x1b[2J", "x" * 200, "", "日本語 ρ", "\ud800", "$\\undefined{$", "{", "^"],
)
def test_hostile_labels_are_set(text):
    label = escape(text)
    assert "\n" not in label and "\x1b" not in label and len(label.replace("\\$", "$")) <= 28
    assert check_label(label) == label


@settings(max_examples=25)
@given(st.text(max_size=40))
def test_any_text_can_be_set_alone_and_beside_mathematics(text):
    check_label(escape(text))
    check_label(f"{escape(text)} $\\rho^2$")


def test_a_dollar_stays_a_dollar():
    assert escape("5$ or 6$") == "5\\$ or 6\\$"


def test_a_bad_label_is_refused_before_use():
    with pytest.raises(RequestError, match="cannot be set"):
        check_label("$\\nosuchcommand{x}$")


def test_the_narrowest_width_is_allowed():
    assert not Style.of(NARROWEST).wide


def test_style_and_table_of_figures_need_no_matplotlib():
    heavy = "{'torch', 'matplotlib', 'scipy'} & set(sys.modules)"
    code = f"import sys, compare.style, compare.figures; compare.style.Style.of('icml'); assert not {heavy}"
    subprocess.run([sys.executable, "-c", code], check=True)
