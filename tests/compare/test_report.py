import json
import re
from html.parser import HTMLParser

import pytest
from synthetic_runs import hui_setting, rows_of_seed, write_training

from compare import report
from compare.judging import judge_runs
from compare.load import load
from compare.origin import origin
from compare.pictures import Picture, draw_all
from compare.rows import Excluded, table_of
from ufm.errors import RequestError

HOSTILE = '<script>alert(1)</script>"><img src=x onerror=alert(2)>\x1b[31m&'


class Page(HTMLParser):
    """What a browser would see: tags with attributes, text, and whether they nest."""

    VOID = ("meta", "img", "br")

    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self.open, self.policy = [], "", [], None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag == "meta" and dict(attributes).get("http-equiv") == "Content-Security-Policy":
            self.policy = dict(attributes)["content"]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def page_of(table, **changes):
    judged = judge_runs(table)
    values = {"not_shown": [], "source": origin(table), **changes}
    pictures = values.pop("pictures", [])
    return report.render(table, judged, pictures, **values)


def test_the_page_is_self_contained_runs_nothing_and_puts_verdicts_first(tmp_path):
    folder = write_training(tmp_path, layers=("blocks.0", "penultimate"))
    table = load(folder)
    pictures, missing = draw_all(table, ["trajectory"], {})
    page = Page(page_of(table, pictures=pictures, not_shown=missing))
    assert not page.open
    assert page.policy.startswith("default-src 'none'") and "script" not in page.policy
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "link", "iframe", "object", "embed", "form", "base", "svg"}
    for tag, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href"):
            assert name not in attributes or attributes[name].startswith("data:image/svg+xml;base64,"), tag
    assert [tag for tag, _ in page.tags].count("img") == 1
    assert page.text.index("Verdicts") < page.text.index("Figures") < page.text.index("Methods") < page.text.index("Provenance")
    assert "5 agree, 0 deviate, 0 undecided, 0 not run" in page.text
    assert "Hui" in page.text and "Only the abstract" in page.text
    assert str(tmp_path) not in page.text


def test_hostile_names_are_text(tmp_path):
    rows = [{**r, "layer": HOSTILE if r["layer"] == "network" else r["layer"]} for r in rows_of_seed(0)]
    write_training(tmp_path, seeds=[0], setting=hui_setting(dataset=HOSTILE), rows=rows)
    table = load(tmp_path)
    cell = next(iter(table.cells))
    spoiled = {HOSTILE: table.cells[cell]}
    hostile = type(table)(table.data, {**table.cells, **spoiled}, (Excluded(HOSTILE, 3, HOSTILE),), (HOSTILE,))
    picture = Picture("trajectory", HOSTILE, b"<svg/>", HOSTILE, (HOSTILE,))
    text = report.render(hostile, judge_runs(table), [picture], not_shown=[HOSTILE], source={HOSTILE: HOSTILE}, title=HOSTILE)
    page = Page(text)
    assert not {tag for tag, _ in page.tags} & {"script", "svg"}
    assert next(a for t, a in page.tags if t == "img")["alt"].count("<script>") == 1
    assert "\x1b" not in text and "<script" not in text
    assert sum(tag == "img" for tag, _ in page.tags) == 1


def test_what_is_left_out_is_said(tmp_path):
    folder = write_training(tmp_path, seeds=range(6))
    (folder / "seed-5" / "done").unlink()
    text = Page(page_of(load(folder), not_shown=["figure layers: one layer only"])).text
    assert "seed 5: left out; unfinished" in text and "figure layers: one layer only" in text
    assert "Nothing was left out" in Page(page_of(load(write_training(tmp_path / "b")))).text


def test_the_test_panel_shows_the_lines_of_theory(tmp_path):
    text = Page(page_of(load(write_training(tmp_path, error=0.02)))).text
    assert "floor err_B/2" in text and "0.01" in text and "2 err" in text and "says nothing of test features" in text


def test_a_report_of_runs_without_a_claim_says_so(tmp_path):
    rows = [r for r in rows_of_seed(0) if r["split"] == "train"]
    table = load(write_training(tmp_path, seeds=[0], setting={"dataset": "own"}, rows=rows))
    text = Page(page_of(table)).text
    assert "not run" in text and "was not measured" in text


def test_the_same_runs_give_the_same_page(tmp_path):
    table = load(write_training(tmp_path))
    assert page_of(table) == page_of(load(tmp_path))


def test_provenance_is_in_the_page_without_paths(tmp_path):
    table = load(write_training(tmp_path))
    text = page_of(table, source={"argv": ["compare", str(tmp_path / "runs")], "commit": "abc1234"})
    pre = re.search(r"<pre>(.*)</pre>", text, re.DOTALL)[1]
    assert "abc1234" in pre and str(tmp_path) not in pre


def test_figures_of_many_settings_stop_and_say_so(tmp_path):
    for k in range(8):
        write_training(tmp_path, seeds=[0], setting=hui_setting(lr=0.1 + k), epochs=(0, 1))
    pictures, missing = draw_all(load(tmp_path), [], {})
    assert not pictures and len(missing) == 2 and "at most 6" in missing[0]


def test_a_figure_that_cannot_be_drawn_is_listed_and_the_others_are_drawn(tmp_path):
    table = load(write_training(tmp_path))
    pictures, missing = draw_all(table, ["layers", "trajectory"], {}, folder=tmp_path)
    assert [p.figure for p in pictures] == ["trajectory"] and "figure layers" in missing[0]
    assert {f.suffix for f in pictures[0].files} == {".pdf", ".csv", ".json"}
    assert all(f.is_file() for f in pictures[0].files)


def test_origin_merges_what_is_equal_and_lists_what_differs(tmp_path):
    write_training(tmp_path)
    found = origin(load(tmp_path))
    assert found["environments"]["commit"] == "abc1234" and found["runs"][0]["seeds"] == [0, 1, 2, 3, 4]
    json.dumps(found, allow_nan=False)


def test_a_report_is_html(tmp_path):
    with pytest.raises(RequestError, match=r"end the name in \.html"):
        report.write(tmp_path / "r.pdf", load(write_training(tmp_path)), [], [])


def test_the_page_says_whether_identity_and_floor_hold_at_every_layer_and_state(tmp_path):
    """Four states, two layers; then one weak part is moved, and one error is put above twice its NC1."""
    rows = rows_of_seed(0, layers=("blocks.0", "penultimate"))
    table = load(write_training(tmp_path / "good", seeds=[0], rows=rows))
    text = Page(page_of(table)).text
    assert "NC1_test = weak + between + cross at all 8 measured points, every layer and state counted" in text
    points = table.where(layer=["blocks.0", "penultimate"]).points("nc1_pinv_strong", "ncc_error_between")
    smallest = (2 * points["nc1_pinv_strong"] / points["ncc_error_between"]).min()
    found = re.search(r"NC1_test >= err_B/2 at all 8 of them .*: at least ([\d.]+) times the floor", text)
    assert float(found[1]) == pytest.approx(smallest, rel=1e-3)
    weak = next(row for row in rows if row["metric"] == "nc1_pinv_weak" and row["layer"] == "blocks.0")
    weak["value"] *= 1.01
    floor = next(row for row in rows if row["metric"] == "ncc_error_between" and row["epoch"] == 100)
    strong = next(r for r in rows if r["metric"] == "nc1_pinv_strong" and r["epoch"] == 100 and r["layer"] == floor["layer"])
    floor["value"] = 2.1 * strong["value"]
    text = Page(page_of(load(write_training(tmp_path / "bad", seeds=[0], rows=rows)))).text
    assert "at 7 of 8 measured points" in text and "NC1_test >= err_B/2 at 7 of 8 of them" in text


def test_a_caption_is_one_line_and_the_rest_is_unfolded_by_the_reader():
    notes = ("For one setting; d >= K - 1", "Means of 5 seeds.", "theory: 0")
    page = report.render(table_of({"value": []}), [], [Picture("nc", "cell", b"<svg/>", "NC1 over training", notes)])
    (caption,) = re.findall(r"<figcaption>(.*?)</figcaption>", page, re.S)
    shown, details = caption.split("<details>")
    assert shown == "Figure 1. NC1 over training."
    assert re.findall(r"<summary>(.*?)</summary><p>(.*)</p></details>", details) == [
        ("How to read it", "For one setting; d &gt;= K - 1. Means of 5 seeds. theory: 0.")
    ]
    bare = report.render(table_of({"value": []}), [], [Picture("nc", "cell", b"<svg/>", "NC1 over training", ())])
    assert "<figcaption>Figure 1. NC1 over training.</figcaption>" in bare
