import ast
import itertools
import math
from dataclasses import dataclass, fields

import click
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from ufm.errors import RequestError
from ufm.spec import MAX_CELLS, build, cells, click_options, option, parameter, read_grid, read_toml, resolve, setting_of


@dataclass(frozen=True)
class Some:
    rate: float = option(0.5, "rate", low=0, high=1, grid=True)
    strictly: float = option(1.0, "positive", low=0, strict=True, grid=True)
    count: int = option(3, "count", low=1, grid=True)
    kind: str = option("a", "kind", choices=("a", "b", "ccc"), grid=True)
    counts: tuple = option(None, "counts", kind="ints", low=1, grid=True)
    numbers: tuple = option((1.0, 2.0), "numbers", grid=True)
    maybe: float = option(None, "maybe", kind="float", grid=True)
    flag: bool = option(False, "flag")
    where: str = option(None, "where", kind="path", setting=False)
    file: str = option(None, "file", kind="file")


@dataclass(frozen=True)
class Capped:
    seed: int = option(0, "seed", low=0, high=2**32 - 1)


FIELD = {f.name: f for f in fields(Some)}


def grid(name, text):
    return read_grid(FIELD[name], text)


@pytest.mark.parametrize(
    "name, text, values",
    [
        ("rate", "0.25", [0.25]),
        ("rate", "1e-4,1e-3", [1e-4, 1e-3]),
        ("rate", "0:1:5", [0.0, 0.25, 0.5, 0.75, 1.0]),
        ("rate", "1e-4:1:5log", [1e-4, 1e-3, 1e-2, 1e-1, 1.0]),
        ("rate", "0.1,0.2:0.4:3", [0.1, 0.2, 0.3, 0.4]),
        ("count", "1:5", [1, 2, 3, 4]),
        ("count", "1:9:3", [1, 5, 9]),
        ("count", " 2 , 7 ", [2, 7]),
        ("count", "1e3", [1000]),
        ("kind", "a,ccc", ["a", "ccc"]),
        ("counts", "5,5,1;7,7,7", [(5, 5, 1), (7, 7, 7)]),
        ("numbers", "1,2.5", [(1.0, 2.5)]),
        ("rate", [0.1, 0.2], [0.1, 0.2]),
        ("counts", [5, 6], [(5, 6)]),
        ("counts", [[5, 6], [7, 8]], [(5, 6), (7, 8)]),
        ("rate", 1, [1.0]),
        ("rate", "-0.0", [0.0]),
    ],
)
def test_grids(name, text, values):
    found = grid(name, text)
    assert found == values and list(map(type, found)) == list(map(type, values))


def test_minus_zero_is_zero():
    assert math.copysign(1, grid("rate", "-0")[0]) == 1


@given(st.floats(1e-12, 1e6), st.floats(1e-12, 1e6), st.integers(2, 40))
def test_ends_of_a_range_are_the_numbers_typed(start, stop, number):
    if start == stop:
        return
    for suffix in ("", "log"):
        found = read_grid(dataclass_field(), f"{start!r}:{stop!r}:{number}{suffix}")
        assert found[0] == start and found[-1] == stop and len(found) == number
        low, high = sorted((start, stop))
        assert all(low * (1 - 1e-12) <= v <= high * (1 + 1e-12) for v in found)


def dataclass_field():
    @dataclass(frozen=True)
    class One:
        x: float = option(1.0, "x", grid=True)

    return fields(One)[0]


@pytest.mark.parametrize(
    "name, text",
    [
        ("rate", "nan"),
        ("rate", "inf"),
        ("rate", "-inf"),
        ("rate", "1.5"),
        ("rate", "-1e-9"),
        ("rate", ""),
        ("rate", "0.1,"),
        ("rate", ",0.1"),
        ("rate", "0.1,,0.2"),
        ("rate", "a"),
        ("rate", "0x10"),
        ("rate", "0:1:1"),
        ("rate", "0:1:2:3"),
        ("rate", "0:1:5log"),
        ("rate", "0:nan:5"),
        ("rate", "0:1:1e9"),
        ("rate", "0:1:-5"),
        ("rate", "0:1:99999999999"),
        ("rate", "0.1,0.1"),
        ("rate", "0.1;0.2"),
        ("rate", True),
        ("rate", object),
        ("rate", {}),
        ("rate", [[0.1]]),
        ("rate", []),
        ("rate", [0.1, 0.1]),
        ("strictly", "0"),
        ("count", "1.5"),
        ("count", "0"),
        ("count", "1e400"),
        ("count", "5:5"),
        ("count", "5:1"),
        ("count", "0:3"),
        ("count", "2:5:3"),
        ("count", "1:99999999999"),
        ("kind", "c"),
        ("kind", ""),
        ("kind", 3),
        ("counts", "5,0"),
        ("counts", "5,1.5"),
        ("counts", "5;"),
        ("counts", "5,5;5,5"),
        ("counts", 5),
        ("numbers", "1,nan"),
        ("maybe", "x" * 5000),
    ],
)
def test_wrong_values_are_one_short_line(name, text):
    with pytest.raises(RequestError) as caught:
        grid(name, text)
    message = str(caught.value)
    assert message.startswith("--") and "\n" not in message and len(message) < 300


def test_a_refusal_names_the_limit_exactly():
    with pytest.raises(RequestError, match="names 99999999999 values; at most"):
        grid("rate", "0:1:99999999999")
    with pytest.raises(RequestError, match=f"<= {2**32 - 1}, "):
        resolve(Capped, {"seed": 2**32})


def test_layers_win_in_order_and_unknown_keys_are_errors():
    values = resolve(Some, {"rate": 0.1, "count": "1,2"}, {"rate": "0.2", "count": None})
    assert values["rate"] == [0.2] and values["count"] == [1, 2] and values["kind"] == ["a"] and values["counts"] == [None]
    with pytest.raises(RequestError, match="unknown key 'rats'; did you mean 'rate'"):
        resolve(Some, {"rats": 1})


@given(st.lists(st.integers(1, 4), min_size=1, max_size=5))
def test_cells_are_the_product(lengths):
    values = {f"n{i}": [f"{i}{j}" for j in range(n)] for i, n in enumerate(lengths)}
    found = cells(values)
    expected = [dict(zip(values, combination, strict=True)) for combination in itertools.product(*values.values())]
    assert list(found) == expected and len(found) == math.prod(lengths)
    assert found[-1] == expected[-1] and found[:3] == expected[:3]
    with pytest.raises(IndexError):
        found[len(found)]


def test_zip_walks_together():
    found = cells({"a": [1, 2], "b": [3, 4], "c": [5, 6]}, ["a", "--c"])
    assert list(found) == [{"a": a, "b": b, "c": c} for a, c in ((1, 5), (2, 6)) for b in (3, 4)]
    with pytest.raises(RequestError, match="different lengths"):
        cells({"a": [1, 2], "b": [3]}, ["a", "b"])
    with pytest.raises(RequestError, match="did you mean"):
        cells({"rate": [1, 2], "b": [3]}, ["rat"])


def test_a_huge_grid_is_refused_and_a_large_one_takes_no_memory():
    axis = {"a": range(1000), "b": range(1000)}
    assert len(cells(axis)) == MAX_CELLS and cells(axis)[123_456] == {"a": 123, "b": 456}
    with pytest.raises(RequestError, match=f"at most {MAX_CELLS}"):
        cells({**axis, "c": range(2)})


def test_setting_is_what_changes_the_numbers(tmp_path):
    values = resolve(Some, {"rate": "0.1,0.2", "where": "/somewhere", "counts": "1,2"})
    setting = setting_of(Some, values)
    assert setting["rate"] == "grid" and setting["counts"] == [1, 2] and "where" not in setting
    assert build(Some, cells(values)[1]).rate == 0.2


def test_a_file_is_its_content(tmp_path):
    import hashlib

    path = tmp_path / "x.csv"
    path.write_bytes(b"1,2\n")
    value = resolve(Some, {"file": str(path)})["file"][0]
    assert parameter(value) == "sha256:" + hashlib.sha256(b"1,2\n").hexdigest() and value.path == str(path)
    for wrong in (tmp_path, tmp_path / "no", "a\0b"):
        with pytest.raises(RequestError, match=r"is no file|has a null character"):
            resolve(Some, {"file": str(wrong)})


@pytest.mark.parametrize(
    "content, message",
    [
        (b"rate = ", "not valid TOML"),
        (b"rate = 1\nrate = 2", "not valid TOML"),
        (b"\xff\xfe", "not UTF-8"),
        (b"x = " + b"[" * 100_000, "not valid TOML|nested too deeply"),
        (b"#" * (2**20 + 1), "more than"),
    ],
)
def test_hostile_toml_is_one_line(tmp_path, content, message):
    path = tmp_path / "x.toml"
    path.write_bytes(content)
    with pytest.raises(RequestError, match=message) as caught:
        read_toml(path)
    assert "\n" not in str(caught.value)


def test_missing_toml(tmp_path):
    for path in (tmp_path / "no.toml", tmp_path):
        with pytest.raises(RequestError, match="no such file"):
            read_toml(path)


def test_toml_types(tmp_path):
    (tmp_path / "x.toml").write_text('rate = [0.1, 0.2]\ncount = "1:4"\ncounts = [5, 5]\nflag = true\nkind = "b"\n')
    values = resolve(Some, read_toml(tmp_path / "x.toml"))
    assert values["rate"] == [0.1, 0.2] and values["count"] == [1, 2, 3] and values["counts"] == [(5, 5)]
    assert values["flag"] == [True]
    for wrong in (
        "flag = 1",
        "flag = 'yes'",
        "rate = true",
        "kind = 3",
        "rate = 1979-05-27",
        "rate = {a = 1}",
        "kind = ['a', 3]",
    ):
        (tmp_path / "x.toml").write_text(wrong)
        with pytest.raises(RequestError):
            resolve(Some, read_toml(tmp_path / "x.toml"))


def test_one_declaration_makes_the_flags():
    @click.command()
    @click_options(Some)
    def command(**flags):
        click.echo(repr({k: v for k, v in flags.items() if v is not None}))

    run = CliRunner().invoke(command, ["--rate", "1:2:3", "--counts", "1,2;3,4", "--no-flag"])
    assert ast.literal_eval(run.output) == {"rate": "1:2:3", "counts": "1,2;3,4", "flag": False}
    page = CliRunner().invoke(command, ["--help"]).output
    assert all(f"--{name}" in page for name in FIELD) and "a|b|ccc" in page and "[default: 0.5]" in page
    assert CliRunner().invoke(command, []).output == "{}\n"


@pytest.mark.parametrize("text", ["1e300", "9" * 400, "90071992547409935"])
def test_an_integer_beyond_two_to_the_53_is_refused(text):
    with pytest.raises(RequestError, match="--count"):
        resolve(Some, {"count": text})
