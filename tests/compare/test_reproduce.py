import json
import shutil

import pytest

from compare import papers
from compare.reproduce import make_plan, reproduce
from compare.verdict import NOT_RUN, UNDECIDED
from ufm.errors import RequestError, RunError

CLAIMS = """
version = 3
name = "small"
title = "Small"
figures = ["trajectory", "layers"]

[scales.demo]
summary = "three Gaussian classes"
seeds = [0, 1]
[scales.demo.cells.collapse]
study = "collapse"
[scales.demo.cells.collapse.options]
dataset = "gaussian"
classes = 3
input_dim = 6
train_per_class = 8
test_per_class = 20
width = 6
depth = 1
steps = 6
batch_size = 12
[scales.demo.cells.moved]
study = "teleport"

[[claims]]
name = "identity"
text = "the identity"
kind = "identity"
cell = "collapse"
seeds_needed = 1
value = { measure = "nc1_pinv_strong", split = "test", centres = "train", epoch = "all" }
terms = [
  { measure = "nc1_pinv_weak", split = "test", centres = "train", epoch = "all" },
  { measure = "nc1_pinv_between", split = "test", centres = "train", epoch = "all" },
  { measure = "nc1_pinv_cross", split = "test", centres = "train", epoch = "all" },
]
tolerance = 1e-6
control = { terms = ["nc1_pinv_weak"] }
control_text = "weak alone"

[[claims]]
name = "gap"
text = "a gap"
kind = "ratio"
cell = "collapse"
value = { measure = "nc1_pinv", split = "test" }
over = { measure = "nc1_pinv", split = "train" }
control = { epoch = 0 }

[[claims]]
name = "moved"
text = "elsewhere"
kind = "ratio"
cell = "moved"
value = { measure = "nc1_pinv" }
control = { epoch = 0 }
"""


@pytest.fixture(scope="module")
def claims(tmp_path_factory):
    path = tmp_path_factory.mktemp("claims") / "small.toml"
    path.write_text(CLAIMS)
    return str(path)


@pytest.fixture(scope="module")
def done(claims, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs")
    return out, reproduce(claims, out=out, workers=1, device="cpu")


def test_from_nothing_to_verdicts_figures_and_a_report(done):
    out, made = done
    assert made.trained == 2
    verdicts = {v.claim.name: v for v in made.judged.verdicts}
    assert verdicts["identity"].verdict == "agrees" and verdicts["identity"].seeds == (0, 1)
    assert verdicts["gap"].verdict == UNDECIDED and "2 seeds" in verdicts["gap"].reason
    assert verdicts["moved"].verdict == NOT_RUN
    assert made.not_run == {"moved": "the study 'teleport' does not exist in this version"}
    folder = out / "reports" / "small-demo"
    assert made.report == folder / "report.html" and made.report.stat().st_size > 5000
    assert {"trajectory.pdf", "trajectory.csv", "verdicts.json"} <= {p.name for p in folder.iterdir()}
    record = json.loads((folder / "verdicts.json").read_text())
    assert record["version"] == 3 and [c["claim"] for c in record["claims"]] == ["identity", "gap", "moved"]
    assert any("figure layers" in line for line in made.not_shown)
    assert "teleport" in made.report.read_text()


def test_the_second_time_nothing_is_computed_and_the_page_is_the_same(claims, done, monkeypatch):
    out, made = done
    page = made.report.read_bytes()

    def never(*values, **named):
        raise AssertionError("trained again")

    monkeypatch.setattr("empirical.runner.run_jobs", never)
    again = reproduce(claims, out=out, workers=1, device="cpu")
    assert again.trained == 0 and again.report.read_bytes() == page


def test_after_deleting_a_seed_just_that_one_is_computed(claims, done, tmp_path):
    out, _ = done
    copy = tmp_path / "runs"
    shutil.copytree(out, copy)
    setting = next((copy / "collapse").glob("*/seed-0")).parent
    before = (setting / "seed-1" / "metrics.jsonl").read_bytes()
    kept = (setting / "seed-1" / "done").stat().st_mtime_ns
    first = (setting / "seed-0" / "metrics.jsonl").read_bytes()
    shutil.rmtree(setting / "seed-0")
    made = reproduce(claims, out=copy, workers=1, device="cpu")
    assert made.trained == 1
    assert (setting / "seed-1" / "metrics.jsonl").read_bytes() == before
    assert (setting / "seed-1" / "done").stat().st_mtime_ns == kept
    assert (setting / "seed-0" / "metrics.jsonl").read_bytes() == first


def test_other_seeds_are_trained_but_only_registered_ones_are_judged(claims, done, tmp_path):
    out, _ = done
    copy = tmp_path / "runs"
    shutil.copytree(out, copy)
    made = reproduce(claims, out=copy, seeds=[1, 7], workers=1, device="cpu")
    assert made.trained == 1 and set(made.table["seed"]) == {0, 1, 7}
    assert made.judged.verdicts[0].seeds == (0, 1)


def test_a_failed_training_is_a_run_error_when_none_is_left(claims, tmp_path, monkeypatch):
    from empirical.runner import Outcome

    def fail(jobs, **named):
        return [Outcome(str(job.path), job.seed, "failed: no space left", 1) for job in jobs]

    monkeypatch.setattr("empirical.runner.run_jobs", fail)
    with pytest.raises(RunError, match="every training failed; the first: no space left"):
        reproduce(claims, out=tmp_path, workers=1, device="cpu")


@pytest.mark.parametrize(
    "named, message",
    [
        ({"scale": "huge"}, "no scale 'huge'"),
        ({"seeds": [-1]}, "seed -1"),
        ({"device": "tpu"}, "--device 'tpu'"),
        ({"width": "nature"}, "unknown width"),
    ],
)
def test_a_wrong_request_writes_nothing(claims, tmp_path, named, message):
    with pytest.raises(RequestError, match=message):
        reproduce(claims, out=tmp_path / "runs", workers=1, **named)
    assert not (tmp_path / "runs").exists()


def test_a_plan_trains_nothing(tmp_path):
    scale = papers.paper("hui2022").scales["demo"]
    plan = make_plan(scale, tmp_path, scale.seeds, "cpu")
    assert len(plan.missing) == len(plan.jobs) == len(scale.seeds) * len(plan.folders)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", [name for name in papers.PAPERS if papers.paper(name).scales])
def test_without_a_scale_a_paper_runs_its_smallest_and_says_which(name, tmp_path, monkeypatch, capsys):
    def stop(scale, *values):
        raise RunError(f"asked for {scale.name}")

    monkeypatch.setattr("compare.reproduce.make_plan", stop)
    known = [scale for scale in ("demo", "laptop", "gpu") if scale in papers.paper(name).scales]
    with pytest.raises(RunError, match=f"asked for {known[0]}$"):
        reproduce(name, out=tmp_path)
    assert capsys.readouterr().err == f"{name}: scale {known[0]}, the smallest it has\n"
    for scale in known:
        with pytest.raises(RunError, match=f"asked for {scale}$"):
            reproduce(name, scale, out=tmp_path)
