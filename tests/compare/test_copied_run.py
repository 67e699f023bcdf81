"""Somebody who only has a run folder copied from another machine can draw and judge it."""

import json
import shutil

import pytest

from compare.calibrate import calibrations
from compare.derived import with_derived
from compare.figures import draw, save
from compare.judging import judge_runs
from compare.load import load
from compare.origin import origin
from compare.pictures import draw_all
from compare.report import render
from compare.style import Style
from compare.table import numbers
from compare.verdict import AGREES

OPTIONS = {
    "dataset": "gaussian", "classes": 4, "input_dim": 8, "train_per_class": 12, "test_per_class": 30, "width": 8, "depth": 2,
    "steps": 12, "batch_size": 16, "layers": "all", "weight_decay": 1e-3,
}  # fmt: skip


@pytest.fixture(scope="module")
def copied(tmp_path_factory):
    """Two seeds really trained and a theory sweep, moved elsewhere with nothing left of where they came from."""
    from sweep_tables import run

    from empirical.runner import Job, run_jobs
    from empirical.studies import study
    from ufm.spec import build, cells, resolve

    root = tmp_path_factory.mktemp("theirs")
    chosen = study("collapse")
    experiment = build(chosen.spec, cells(resolve(chosen.spec, OPTIONS))[0]).resolved()
    jobs = [Job("collapse", experiment, seed, str(root / "runs"), "cpu") for seed in (0, 1)]
    assert not any(o.exit for o in run_jobs(jobs, workers=1, resume="again"))
    run(root / "runs", "single", (0,), {"classes": 3, "dim": 4, "per_class": 5, "lambda_w": "1e-3,1e-2"})
    mine = tmp_path_factory.mktemp("mine")
    training, sweep = jobs[0].setting_path, next((root / "runs" / "single").iterdir())
    for folder in (training, sweep):
        shutil.copytree(folder, mine / folder.name)
    shutil.rmtree(root)
    (mine / training.name / "seed-0" / "env.json").unlink()  # somebody may have left it out, for the paths in its argv
    return mine / training.name, mine / sweep.name


def test_the_copy_names_no_place_of_the_machine_it_came_from(copied):
    for folder in copied:
        for path in folder.rglob("*"):
            if path.suffix in (".json", ".jsonl", ".txt") and path.name not in ("env.json", "log.txt"):
                assert "theirs" not in path.read_text(), path.name


def test_it_is_judged_drawn_tabulated_and_reported(copied, tmp_path):
    training, _ = copied
    table = load(training)
    assert not table.excluded and table.cells[training.name].seeds == (0, 1)
    [judged] = judge_runs(table)
    assert judged.paper.name == "general" and {v.verdict for v in judged.verdicts} == {AGREES}
    assert any(row["measure"] == "ncc_error_moments" for row in numbers(with_derived(table)))
    assert len(calibrations(table, training.name)) == 2
    figures = ["trajectory", "nc", "layers", "hero", "gram", "confusion", "spectrum", "geometry", "calibration"]
    pictures, missing = draw_all(table, figures, {}, folder=tmp_path, suffix=".png")
    assert {p.figure for p in pictures} == set(figures) and not missing
    page = render(table, [judged], pictures, source=origin(table))
    assert page.count("<img ") == len(figures) and str(training.parent) not in page


def test_a_copied_sweep_is_drawn_with_its_theory(copied, tmp_path):
    _, sweep = copied
    table, style = load(sweep), Style.of("icml")
    for name in ("sweep", "gram"):
        assert save(draw(name, table, style), tmp_path / f"{name}.pdf", style=style, provenance=origin(table))


def test_one_seed_alone_is_enough(copied, tmp_path):
    training, _ = copied
    alone = tmp_path / "whatever they called it"
    shutil.copytree(training / "seed-1", alone / "seed-1")
    shutil.copy(training / "config.json", alone)
    table = load(alone)
    assert table.cells[alone.name].seeds == (1,) and {v.verdict for v in judge_runs(table)[0].verdicts} == {AGREES}


def test_a_byte_changed_on_the_way_is_noticed(copied, tmp_path):
    training, _ = copied
    shutil.copytree(training, tmp_path / training.name)
    metrics = tmp_path / training.name / "seed-0" / "metrics.jsonl"
    data = bytearray(metrics.read_bytes())
    data[len(data) // 2] ^= 1
    metrics.write_bytes(bytes(data))
    table = load(tmp_path)
    assert [x.seed for x in table.excluded] == [0] and "SHA-256" in table.excluded[0].reason
    config = json.loads((tmp_path / training.name / "config.json").read_text())
    assert table.cells[training.name].config == config["setting"]
