"""Papers whose cells are theory sweeps: fields of rows, laws and shares, and a small paper from nothing to verdicts."""

import json
import math

import numpy as np
import pytest

from compare import papers
from compare.papers import PAPERS, paper, read_paper
from compare.reproduce import make_plan, reproduce
from compare.sweeps import Field, Sheet, fits, seeds_of, sheet
from compare.verdict import AGREES, DEVIATES, UNDECIDED, judge_claim
from ufm.errors import RequestError
from ufm.seeds import check_seed

THEORY = [n for n in PAPERS if any("system" in c for s in paper(n).scales.values() for c in s.cells.values())]


def row(seed=0, status="converged", **values):
    return {"seed": seed, "status": status, "parameters": values.pop("parameters", {}), **values}


# --- fields ----------------------------------------------------------------------------------------------------------


def test_a_field_reads_paths_lists_and_other_fields():
    one = row(loss=0.3, end={"nc1": 4.0}, path={"margin": [1.0, 3.0, 2.5]}, structures={"dnc": 0.5}, structure="srg")
    assert Field("end.nc1", factor=0.5).of_row(one) == 2.0
    assert Field("path.margin", take="least_step").of_row(one) == -0.5
    assert Field("path.margin", take="last").of_row(one) == 2.5
    assert Field("loss", divide="structures.dnc").of_row(one) == 0.6
    assert Field("loss", minus="structures.dnc").of_row(one) == pytest.approx(-0.2)
    assert Field("structure", equals="srg").of_row(one) == 1.0
    assert Field("loss", below=0.3).of_row(one) == 0.0
    for nothing in (
        Field("gone"),
        Field("gone", below=1.0),
        Field("gone", equals="srg"),
        Field("path.margin"),
        Field("loss", divide="gone"),
        Field("structure"),
    ):
        assert math.isnan(nothing.of_row(one))


def test_points_of_a_sheet_by_cell_seed_slope_best_and_lowest():
    rows = [
        row(seed, loss=loss, value=3 * scale**2, parameters={"scale": scale})
        for seed, loss in ((0, 2.0), (1, 1.0))
        for scale in (0.1, 1.0, 10.0)
    ]
    one = Sheet("s", rows)
    assert len(one.series(Field("value"))) == 6
    assert list(one.series(Field("value", where={"scale": [0.1, 1.0]})).values()) == pytest.approx([0.03, 3, 0.03, 3])
    slopes = one.series(Field("value", per="slope", against="scale"))
    assert slopes == {(0, 0): pytest.approx(2.0), (1, 0): pytest.approx(2.0)}
    assert one.series(Field("value", per="seed", where={"scale": 1.0})) == {(0, 0): 3.0, (1, 0): 3.0}
    assert one.series(Field("value", per="best")) == {(0, 0): pytest.approx(0.03)}
    assert one.series(Field("value", per="lowest")) == {(1, 3): pytest.approx(0.03)}


@pytest.mark.parametrize("wrong", [{"take": "median"}, {"per": "batch"}, {"per": "slope"}, {"against": "lr"}])
def test_a_wrong_field_is_refused(wrong):
    with pytest.raises(RequestError):
        Field("loss", **wrong)


# --- laws and shares ---------------------------------------------------------------------------------------------------


def claim(kind, value, **named):
    record = {"name": "c", "text": "t", "kind": kind, "value": value, "control": {"cell": "bad"}, **named}
    return papers._claim("mine.toml", record)


GOOD = Sheet("good", [row(s, x=1.0 + 1e-9 * s, hit="yes") for s in range(60)])
BAD = Sheet("bad", [row(s, x=2.0, hit="no") for s in range(60)])


def judged(one, sheet=GOOD):
    return judge_claim(sheet, one, cell="good", others={"good": GOOD, "bad": BAD})


def test_a_law_holds_at_every_point_or_deviates():
    assert judged(claim("law", {"field": "x"}, predicted=1.0, tolerance=1e-7)).verdict == AGREES
    assert judged(claim("law", {"field": "x"}, predicted=1.0, tolerance=1e-8)).verdict == DEVIATES
    one_off = Sheet("good", [*GOOD.rows, row(99, x=1.1)])
    made = judged(claim("law", {"field": "x"}, predicted=1.0, tolerance=1e-3), one_off)
    assert made.verdict == DEVIATES and "seed 99" in made.reason and made.estimate == pytest.approx(0.1)


def test_a_start_without_a_value_is_not_passed_over():
    broken = Sheet("good", [*GOOD.rows, row(99, status="diverged: the loss became non-finite", x=None)])
    made = judged(claim("law", {"field": "x"}, predicted=1.0, tolerance=1e-3), broken)
    assert made.verdict == UNDECIDED and "1 of 61 starts have no x (first: seed 99)" in made.reason
    rare = Sheet("good", [row(s, hit=None) for s in range(20)] + [row(s + 20, hit="yes") for s in range(40)])
    made = judged(claim("share", {"field": "hit", "equals": "yes"}, least=0.5), rare)
    assert made.estimate == pytest.approx(40 / 60)


def test_a_share_is_a_binomial_test():
    made = judged(claim("share", {"field": "hit", "equals": "yes"}, least=0.95))
    assert made.verdict == AGREES and made.p == pytest.approx(0.95**60) and made.control.verdict == DEVIATES
    few = Sheet("good", GOOD.rows[:40])
    made = judged(claim("share", {"field": "hit", "equals": "yes"}, least=0.95), few)
    assert made.verdict == UNDECIDED and made.p == pytest.approx(0.95**40)  # forty of forty do not show 95 %


def test_a_control_that_does_not_deviate_takes_the_verdict_away():
    one = claim("law", {"field": "x"}, predicted=1.0, tolerance=5.0)
    assert judged(one).verdict == UNDECIDED and "negative control" in judged(one).reason


def test_a_contradicted_claim_is_judged_and_expected_to_deviate():
    from compare.judging import Judged

    made = judged(claim("bound", {"field": "x"}, over=2.0, contradicted="garrod2024"))
    assert made.verdict == DEVIATES and "contradicted by garrod2024" in made.reason
    assert Judged(paper("dang2023"), None, [made]).agrees
    true = judged(claim("bound", {"field": "x"}, over=0.5, control={"cell": "bad", "factor": 0.1}, contradicted="garrod2024"))
    assert true.verdict == AGREES and not Judged(paper("dang2023"), None, [true]).agrees


# --- the shipped papers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", THEORY)
def test_every_sweep_is_a_valid_request_with_enough_registered_seeds(name, tmp_path):
    for size in paper(name).scales.values():
        plan = make_plan(size, tmp_path, size.seeds, "cpu")
        assert set(plan.sweeps) == {key for key, cell in size.cells.items() if "system" in cell}
        for key, one in plan.sweeps.items():
            seeds = seeds_of(size.cells[key], size.seeds)
            # A cell that is drawn and judged by no claim may have one seed.
            fewest = 5 if any(key in {c.cell, (c.control or {}).get("cell")} for c in paper(name).claims) else 1
            assert len(one.seeds) == len(seeds) >= fewest and all(check_seed(s) == s for s in seeds)
            setting = {**one.config, **{n: one.varied(0).get(n, v) for n, v in one.config.items()}}
            assert fits(size.cells[key], one.system.name, setting)
            judged = any(key == c.cell for c in paper(name).claims)  # a control's cell may be another paper's own
            assert papers.paper_of(one.system.name, one.config) == name or not judged
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", THEORY)
def test_every_claim_and_control_names_a_cell_of_each_of_its_scales(name):
    one = paper(name)
    for c in one.claims:
        for scale in c.scales:
            if scale in one.scales:
                cells = one.scales[scale].cells
                assert c.cell in cells and c.control.get("cell", c.cell) in cells, (c.name, scale)


SMALL = """
version = 1
name = "small"
title = "Small"
figures = ["flow"]
[scales.demo]
summary = "a small flow"
seeds = [0, 1, 2, 3, 4]
[scales.demo.cells.subspace]
system = "flow"
[scales.demo.cells.subspace.options]
classes = 3
dim = 4
per_class = 3
init = "subspace"
t_end = 40.0
points = 11
trajectory = true
[scales.demo.cells.random]
system = "flow"
seeds = "0:6"
[scales.demo.cells.random.options]
classes = 3
dim = 4
per_class = 3
init_scale = [0.05, 0.1]
t_end = 200.0
points = 11
[[claims]]
name = "law"
text = "the law"
kind = "law"
cell = "subspace"
value = { field = "law_error" }
tolerance = 1e-6
control = { cell = "random", field = "off_law.mixon2020" }
control_text = "random starts"
[[claims]]
name = "slope"
text = "the residue"
kind = "equivalence"
cell = "random"
value = { field = "end.nc1_ratio", per = "slope", against = "init_scale" }
predicted = 2.0
tolerance = 0.3
control = { field = "end.weight_norm" }
control_text = "the norm"
"""


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small")
    path = folder / "small.toml"
    path.write_text(SMALL)
    return path, folder / "runs", reproduce(str(path), out=folder / "runs", workers=1, device="cpu")


def test_a_paper_of_sweeps_from_nothing_to_a_report(done):
    _, _, made = done
    assert made.trained == 0 and made.computed == 5 + 12
    assert {v.claim.name: v.verdict for v in made.judged.verdicts} == {"law": AGREES, "slope": AGREES}
    slope = made.judged.verdicts[1]
    assert len(slope.seeds) == 6 and slope.estimate == pytest.approx(2.0, abs=0.3)
    assert {"flow.pdf", "flow.csv", "verdicts.json"} <= {p.name for p in made.folder.iterdir()}
    record = json.loads((made.folder / "verdicts.json").read_text())
    assert [c["control"] for c in record["claims"]] == [DEVIATES, DEVIATES]


def test_the_second_time_nothing_is_computed_and_the_verdicts_are_the_same(done):
    path, out, made = done
    again = reproduce(str(path), out=out, workers=1, device="cpu")
    assert again.computed == 0
    assert [v.row() for v in again.judged.verdicts] == [v.row() for v in made.judged.verdicts]


def test_a_sheet_holds_the_grid_and_the_registered_seeds_alone(done):
    path, out, _ = done
    cell = read_paper(path).scales["demo"].cells["random"]
    folders = sorted((out / "flow").iterdir())
    assert len(sheet(cell, "random", folders, [0]).rows) == 12
    narrower = {**cell, "seeds": "0:2", "options": {**cell["options"], "init_scale": [0.05]}}
    found = sheet(narrower, "random", folders, [0]).rows
    assert [(r["seed"], r["parameters"]["init_scale"]) for r in found] == [(0, 0.05), (1, 0.05)]
    assert len(sheet({**cell, "seeds": [1, 3]}, "random", folders, [0]).rows) == 4
    assert np.isfinite([r["end"]["nc1_ratio"] for r in sheet(cell, "random", folders, [0]).rows]).all()
