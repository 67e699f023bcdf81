from types import SimpleNamespace

import pytest
from synthetic_runs import hui_setting, write_training

from compare.judging import best_scale, judge_runs, lines, named_cell
from compare.load import load
from compare.papers import paper
from ufm.errors import RequestError


def mild():
    return hui_setting(weight_decay=5e-4)


def test_the_scale_is_the_one_whose_registered_seeds_are_there(tmp_path):
    one = paper("hui2022")
    write_training(tmp_path / "demo")
    assert best_scale(load(tmp_path / "demo"), one) == "demo"
    write_training(tmp_path / "laptop", seeds=range(5, 10))
    write_training(tmp_path / "laptop", seeds=range(5, 10), setting=mild())
    table = load(tmp_path / "laptop")
    assert best_scale(table, one) == "laptop"
    verdicts = {v.claim.name: v.verdict for v in judge_runs(table)[0].verdicts}
    assert verdicts["mild-decay-gap"] == "agrees" and verdicts["transfer-falls"] == "not run"
    write_training(tmp_path / "none", seeds=[77])
    assert best_scale(load(tmp_path / "none"), one) is None


def test_what_belongs_to_no_paper_is_held_against_the_general_claims(tmp_path):
    write_training(tmp_path)
    own = write_training(tmp_path, seeds=[3], setting={"dataset": "own"}, name="own")
    judged = judge_runs(load(tmp_path))
    assert [one.paper.name for one in judged] == ["hui2022", "general"]
    assert {v.cell for v in judged[1].verdicts} == {own.name}


def test_named_claims_are_judged_on_any_training(tmp_path):
    folder = write_training(tmp_path, setting=hui_setting(dataset="mine"))
    judged = judge_runs(load(tmp_path), "hui2022")[0]
    assert judged.scale is None and {v.cell for v in judged.verdicts if v.seeds} == {folder.name}
    assert judged.record()["claims"][0]["verdict"] == "agrees"
    with pytest.raises(RequestError, match="unknown paper"):
        judge_runs(load(tmp_path), "hui2023")


def test_lines_say_reasons_controls_and_what_was_left_out(tmp_path):
    folder = write_training(tmp_path, seeds=range(6))
    (folder / "seed-5" / "done").unlink()
    table = load(tmp_path)
    said = lines(judge_runs(table), table)
    assert any(line.startswith("train-collapse: agrees; ") for line in said)
    assert any(line.startswith("  control (the untrained network): deviates") for line in said)
    assert said[-1].startswith(f"left out: {folder.name}, seed 5: unfinished")


@pytest.mark.parametrize(
    "own, run, said",
    [
        ("few", "digits-mlp-ddc4e599ea95", "few: digits-mlp-ddc4e599ea95"),
        ("*", "digits-mlp-ddc4e599ea95", "digits-mlp-ddc4e599ea95"),
        ("etf", "etf", "etf"),  # a theory sweep is judged under the paper's name
        ("few", "", ""),
    ],
)
def test_a_hashed_run_is_named_by_the_papers_cell(own, run, said):
    assert named_cell(SimpleNamespace(claim=SimpleNamespace(cell=own), cell=run)) == said
