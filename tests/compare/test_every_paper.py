"""Every paper of `compare reproduce`: from nothing to verdicts, nothing computed the second time, one run after its deletion.

Theory sweeps run at their smallest scale, except those that take minutes; trainings with a stub of their cost (two steps, a
narrow network, two seeds), so that what is tested of them is what is run and what is not.
"""

import dataclasses
import shutil
from pathlib import Path

import pytest
from test_every_claim import wrong

from compare import reproduce as module
from compare.papers import PAPERS, paper
from compare.sweeps import Field, seeds_of, sheet
from compare.verdict import AGREES, DEVIATES, judge_claim

SLOW = {"sukenik2024"}  # a minute: its sweeps shrink as the trainings do
STUB = {"width": 12, "depth": 2, "layers": "last", "batch_size": 256}
SMALLEST = {name: next(s for s in ("demo", "laptop") if s in paper(name).scales) for name in PAPERS if paper(name).scales}


def stubbed(name):
    """Return the paper with its smallest scale only, and the trainings of that made cheap."""
    one, size = paper(name), SMALLEST[name]
    scale = one.scales[size]
    cells = {key: _cheap(name, cell) for key, cell in scale.cells.items()}
    trained = any("study" in cell for cell in cells.values())
    seeds = scale.seeds[:2] if trained else scale.seeds
    return dataclasses.replace(one, scales={size: dataclasses.replace(scale, cells=cells, seeds=seeds)}, figures=())


def _cheap(name, cell):
    if "system" in cell:
        short = {"steps": 40} if name in SLOW else {}
        return {**cell, **({"seeds": "0:5"} if name in SLOW else {}), "options": {**cell["options"], **short}}
    options = {key: value for key, value in cell["options"].items() if key not in ("epochs", "measure_at", "probe", "probe_at")}
    if cell["study"] == "transfer":
        return {**cell, "options": {**options, "epochs": 1, "probe": "ncc", "probe_at": "1", "width": 8, "depth": 2}}
    if cell["study"] == "alignment":
        few = {key: min(options[key], 2) for key in ("permutations", "starts")}
        return {**cell, "options": {**options, **few, "width": 12, "depth": 1, "steps": 2}}
    if cell["study"] == "nesy":
        short = {"pretrain_epochs": 1} if "pretrain_epochs" in options else {}
        return {**cell, "options": {**options, **short, "repeats": 1, "plain_width": 8, "width": 8, "depth": 1, "steps": 2}}
    small = {**STUB, "layers": options.get("layers", "last"), "depth": min(options.get("depth", 2), 6)}
    return {**cell, "options": {**options, **small, "steps": 2}}


@pytest.fixture(scope="module", params=list(SMALLEST))
def made(request, tmp_path_factory):
    """One paper, reproduced once; figures and pages are tested elsewhere."""
    name, out = request.param, tmp_path_factory.mktemp(request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "paper", lambda asked: stubbed(asked))
        patch.setattr(module, "draw_all", lambda *values, **named: ([], []))
        patch.setattr(module.report, "write", lambda path, *values, **named: path.write_text("page"))

        def again():
            return module.reproduce(name, SMALLEST[name], out=out, workers=1, device="cpu")

        yield name, out, again(), again


def test_a_paper_is_computed_once_and_what_is_deleted_again(made):
    name, out, first, again = made
    scale = stubbed(name).scales[SMALLEST[name]]
    trainings = {key for key, cell in scale.cells.items() if "study" in cell}
    assert first.not_run == {} and first.trained == len(trainings) * len(scale.seeds)
    assert first.computed > 0 or trainings
    second = again()
    assert (second.trained, second.computed) == (0, 0)
    assert str([v.row() for v in second.judged.verdicts]) == str([v.row() for v in first.judged.verdicts])  # nan is itself
    _one_seed_again(out, again) if trainings else _one_sweep_again(out, again)
    assert (again().trained, again().computed) == (0, 0)


def _one_seed_again(out, again):
    folder = sorted(path.parent for path in out.rglob("seed-*/metrics.jsonl"))[-1]
    kept = {path: path.read_bytes() for path in out.rglob("metrics.jsonl")}
    shutil.rmtree(folder)
    made = again()
    assert (made.trained, made.computed) == (1, 0)
    assert {path: path.read_bytes() for path in out.rglob("metrics.jsonl")} == kept


def _one_sweep_again(out, again):
    sheets = {path: path.read_bytes() for path in out.rglob("cells.jsonl")}
    chosen = min(sheets, key=lambda path: len(sheets[path]))
    lines = sheets[chosen].count(b"\n")
    shutil.rmtree(chosen.parent)
    made = again()
    assert (made.trained, made.computed) == (0, lines)
    after = {path: path.read_bytes() for path in out.rglob("cells.jsonl")}
    assert all(after[path] == data for path, data in sheets.items() if path != chosen)


def test_each_claim_on_a_sweep_has_a_control_that_deviates_and_is_turned_by_a_wrong_prediction(made):
    name, _, first, _ = made
    scale = paper(name).scales[SMALLEST[name]]
    claims = [c for c in paper(name).claims if isinstance(c.value, Field) and SMALLEST[name] in c.scales]
    if not claims or name in SLOW:
        pytest.skip("no claim on a theory sweep, or its sweep is stubbed here")
    folders = sorted({Path(cell.path) for cell in first.table.cells.values() if "#" in cell.name})
    sheets = {
        key: sheet(cell, key, folders, seeds_of(cell, scale.seeds)) for key, cell in scale.cells.items() if "system" in cell
    }
    for claim in claims:
        made_of = judge_claim(sheets[claim.cell], claim, cell=claim.cell, others=sheets)
        assert made_of.verdict == (DEVIATES if claim.contradicted else AGREES), (claim.name, made_of.reason)
        assert made_of.control.verdict == DEVIATES, (claim.name, made_of.control.reason)
        if not claim.contradicted:
            planted = judge_claim(sheets[claim.cell], wrong(claim), cell=claim.cell, others=sheets)
            assert planted.verdict == DEVIATES, (claim.name, planted.reason)
