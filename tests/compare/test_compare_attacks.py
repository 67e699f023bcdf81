"""The hostile files of tests/attacks read by `compare`: what harms is left out with a sentence, and no page runs it."""

import csv
import io
import re
import shutil
from pathlib import Path

import pytest
from synthetic_runs import ENVIRONMENT, hui_setting, rows_of_seed, write_training
from test_report import Page

from compare import figures, report
from compare import table as tables
from compare.figures.drawing import render
from compare.judging import judge_runs
from compare.load import load
from compare.origin import origin
from compare.pictures import Picture
from compare.style import Style
from ufm.record import Run

ATTACKS = Path(__file__).resolve().parents[1] / "attacks"
NAMES = (ATTACKS / "names.txt").read_text().splitlines()
TAGS = {
    *(
        "html",
        "head",
        "meta",
        "title",
        "style",
        "body",
        "main",
        "h1",
        "h2",
        "h3",
        "p",
        "b",
        "br",
        "div",
        "span",
        "pre",
        "ul",
        "li",
    ),
    *("table", "thead", "tbody", "tr", "th", "td", "figure", "img", "figcaption", "details", "summary"),
}


def harmless(text):
    """Assert that a browser given the page runs nothing and asks for nothing."""
    page = Page(text)
    assert {tag for tag, _ in page.tags} <= TAGS
    assert page.policy == report.POLICY and "'unsafe-inline'" not in page.policy.replace("style-src 'unsafe-inline'", "")
    assert [tag for tag, _ in page.tags].count("style") == 1
    for _, attributes in page.tags:
        assert not any(name.startswith("on") or name in ("href", "action", "srcdoc", "style") for name in attributes)
        assert attributes.get("src", "data:").startswith("data:")
        assert attributes.get("http-equiv") in (None, "Content-Security-Policy")
    style = text[text.index("<style>") : text.index("</style>")]
    assert "@import" not in style and "url(" not in style


def page_of(table):
    return report.render(table, judge_runs(table), [], source=origin(table))


@pytest.mark.parametrize("path", sorted(ATTACKS.glob("config-*.json")), ids=lambda p: p.name)
def test_a_hostile_config_is_left_out_and_the_others_are_reported(tmp_path, path):
    good = write_training(tmp_path, seeds=[0])
    bad = write_training(tmp_path, seeds=[0], setting=hui_setting(lr=0.2))
    shutil.copy(path, bad / "config.json")
    table = load(tmp_path)
    assert list(table.cells) == [good.name] and [x.cell for x in table.excluded] == [bad.name]
    assert len(table.excluded[0].reason.splitlines()) == 1
    harmless(page_of(table))


@pytest.mark.parametrize("path", sorted(ATTACKS.glob("cells-*.jsonl")), ids=lambda p: p.name)
def test_hostile_cells_never_reach_the_table(tmp_path, path):
    with Run.create(tmp_path, "single", "sweep", {"classes": 4}, environment=ENVIRONMENT) as run:
        run.append("cells.jsonl", [{"cell": "a", "seed": 0, "status": "converged", "loss": 0.5, "parameters": {}}])
    shutil.copy(path, run.path / "cells.jsonl")
    table = load(tmp_path)
    assert table.rows == 0 and (table.excluded or set(table.cells) <= {f"{run.path.name}#{x}" for x in ("a", "b", "7")})


@pytest.mark.parametrize("path", sorted(ATTACKS.glob("tensors-*.safetensors")), ids=lambda p: p.name)
def test_hostile_arrays_are_no_arrays(tmp_path, path):
    folder = write_training(tmp_path, seeds=[0])
    shutil.copy(path, folder / "seed-0" / "tensors.safetensors")
    table = load(tmp_path)
    text = page_of(table)
    harmless(text)
    assert "own regularisation" not in text


@pytest.mark.parametrize("name", NAMES)
def test_a_hostile_name_is_text_wherever_it_goes(tmp_path, name):
    rows = [{**r, "layer": name if r["layer"] == "network" else r["layer"]} for r in rows_of_seed(0)]
    folder = write_training(tmp_path / "runs", seeds=[0], setting=hui_setting(dataset=name), rows=rows)
    elsewhere = tmp_path / "copy" / name.replace("/", "_")[:80]
    shutil.copytree(folder, elsewhere)
    table = load(tmp_path / "copy")
    assert list(table.cells) == [elsewhere.name]
    picture = Picture("trajectory", name, b"<svg/>", name, (name,))
    harmless(report.render(table, judge_runs(table), [picture], not_shown=[name], source={name: name}, title=name))
    numbers = tables.numbers(tables.chosen_layers(table, ["all"]))
    for cell in csv.reader(io.StringIO(tables.write(numbers, tables.COLUMNS, "csv"))):
        assert not any(re.match(r"\s*[=+@]", part) for part in cell)
    latex = tables.write(numbers, tables.COLUMNS, "latex")
    assert r"\input" not in latex and r"\def" not in latex
    assert "<" not in re.sub(r"\\<", "", tables.write(numbers, tables.COLUMNS, "markdown"))
    drawn = figures.draw("hero", table, Style.of("icml"))
    svg = render(drawn, ".svg", Style.of("icml"), {})
    assert b"<script" not in svg and b"onload" not in re.sub(rb"<!--.*?-->", b"", svg, flags=re.DOTALL)
