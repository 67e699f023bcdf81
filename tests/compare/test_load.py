import json
import shutil

import numpy as np
import pytest
from synthetic_runs import ENVIRONMENT, hui_setting, rows_of_seed, write_training

from compare.load import REACHED, load
from compare.rows import COLUMNS, table_of
from compare.table import numbers
from ufm.errors import RequestError, RunError
from ufm.record import Run, find_runs
from ufm.solution import Status


def test_every_row_of_every_seed_is_there_with_its_value(tmp_path):
    folder = write_training(tmp_path)
    table = load(tmp_path)
    assert tuple(table) == COLUMNS
    assert table.rows == sum(len(rows_of_seed(seed)) for seed in range(5))
    wanted = [r["value"] for r in rows_of_seed(3) if r["metric"] == "nc1_pinv_strong" and r["epoch"] == 10]
    found = table.where(cell=folder.name, seed=3, epoch=10, measure="nc1_pinv_strong", centres="train", split="test")
    assert found["value"].tolist() == wanted
    assert table.levels("split") == ["test", "train"]
    assert table.cells[folder.name].config["dataset"] == "digits"
    assert table.cells[folder.name].environment["commit"] == ENVIRONMENT["commit"]
    assert set(table["paper"]) == {"hui2022"}


def test_a_copied_folder_and_a_single_seed_load(tmp_path):
    folder = write_training(tmp_path / "runs")
    copy = tmp_path / "elsewhere" / folder.name
    shutil.copytree(folder, copy)
    assert load(copy).rows == load(folder).rows
    one = load(copy / "seed-2")
    assert set(one["seed"]) == {2}
    assert load([folder, tmp_path / "runs", folder / "seed-1"]).rows == load(folder).rows  # the same run is read once
    both = load([folder, copy])
    assert len(both.cells) == 2 and both.rows == 2 * load(folder).rows


def test_a_grid_s_own_folder_stands_for_the_runs_it_lists(tmp_path):
    folder = write_training(tmp_path / "collapse")
    other = folder.parent / "sweep-0123456789ab"
    other.mkdir()
    setting = json.loads((folder / "config.json").read_text())["setting"]
    (other / "sweep.json").write_text(json.dumps({"format": 1, "settings": [setting], "seeds": [0]}))
    assert load(other).rows == load(folder).rows == load([other, folder, tmp_path]).rows > 0
    assert find_runs(other) == [folder.resolve()]
    (other / "sweep.json").write_text("[]")
    with pytest.raises(RunError, match="damaged"):
        load(other)


def test_unfinished_and_corrupt_seeds_are_listed_never_dropped_in_silence(tmp_path):
    folder = write_training(tmp_path, seeds=range(6))
    (folder / "seed-0" / "done").unlink()
    metrics = folder / "seed-1" / "metrics.jsonl"
    metrics.write_bytes(metrics.read_bytes().replace(b'"train"', b'"tram!"', 1))
    (folder / "seed-2" / "metrics.jsonl").unlink()
    (folder / "seed-3" / "manifest.json").write_text("{")
    table = load(tmp_path)
    assert table.cells[folder.name].seeds == (4, 5)
    reasons = {x.seed: x.reason for x in table.excluded}
    assert set(reasons) == {0, 1, 2, 3}
    assert "unfinished" in reasons[0] and "SHA-256" in reasons[1] and "missing" in reasons[2] and "manifest" in reasons[3]
    assert not any(str(tmp_path) in reason for reason in reasons.values())
    assert set(table["seed"]) == {4, 5}


def test_a_corrupt_line_is_named_and_a_torn_one_is_left_out_with_a_warning(tmp_path):
    folder = write_training(tmp_path, seeds=range(3))
    for seed in range(3):
        (folder / f"seed-{seed}" / "manifest.json").unlink()
    corrupt = folder / "seed-0" / "metrics.jsonl"
    lines = corrupt.read_bytes().split(b"\n")
    corrupt.write_bytes(b"\n".join([*lines[:4], b'{"seed": 0, "value": NaN}', *lines[5:]]))
    torn = folder / "seed-1" / "metrics.jsonl"
    torn.write_bytes(torn.read_bytes()[:-9])
    table = load(tmp_path)
    assert [(x.seed, x.reason) for x in table.excluded] == [(0, "metrics.jsonl is corrupt at line 5")]
    assert len(table.warnings) == 1 and "torn" in table.warnings[0]
    assert (table["seed"] == 1).sum() == (table["seed"] == 2).sum() - 1


def test_a_diverged_seed_and_a_changed_config_are_excluded_with_the_reason(tmp_path):
    folder = write_training(tmp_path, seeds=[1])
    with Run.create(tmp_path, "collapse", "digits", hui_setting(), seed=0, environment=ENVIRONMENT) as run:
        run.append("metrics.jsonl", rows_of_seed(0))
        run.finish({"status": "diverged: the loss became non-finite at step 12"})
    other = write_training(tmp_path, seeds=[0], setting=hui_setting(lr=0.2))
    document = json.loads((other / "config.json").read_text())
    document["setting"]["lr"] = 0.3
    (other / "config.json").write_text(json.dumps(document))
    table = load(tmp_path)
    reasons = {(x.cell, x.seed): x.reason for x in table.excluded}
    assert "step 12" in reasons[(folder.name, 0)] and "lr" in reasons[(other.name, -1)]


def test_a_missing_value_is_nan_with_its_reason(tmp_path):
    rows = [
        {"seed": 0, "epoch": 0, "step": 0, "split": "train", "layer": "penultimate", "centres": "self",
         "metric": "nc3_zhu", "value": None, "reason": "a class is absent"}
    ]  # fmt: skip
    write_training(tmp_path, seeds=[0], rows=rows)
    table = load(tmp_path)
    assert np.isnan(table["value"]).all() and table["reason"].tolist() == ["a class is absent"]


def test_a_theory_sweep_loads_with_its_prediction_and_leaves_out_what_did_not_converge(tmp_path):
    with Run.create(tmp_path, "single", "sweep", {"classes": 4}, environment=ENVIRONMENT) as run:
        for index, status in enumerate(["converged", "stopped at the step limit", "the zero solution is optimal here"]):
            run.append(
                "cells.jsonl",
                [{"cell": index, "seed": 0, "status": status, "loss": 0.5, "parameters": {"lambda_w": 10.0**-index},
                  "prediction": {"loss": 0.5}, "measures": {"nc1_pinv": 0.0, "nested": {"nc3_zhu": 1e-9}}}],
            )  # fmt: skip
        run.finish({"status": "converged"})
        name = run.path.name
    table = load(tmp_path)
    assert {key for key, cell in table.cells.items() if cell.seeds} == {f"{name}#0", f"{name}#2"}
    assert table.where(cell=f"{name}#0", measure="loss")["predicted"].tolist() == [0.5]
    assert table.cells[f"{name}#2"].config["lambda_w"] == 0.01
    assert [x.reason for x in table.excluded] == ["stopped at the step limit"]
    assert table.where(measure="nc3_zhu").rows == 2


def test_wrong_paths_are_one_line_requests(tmp_path):
    with pytest.raises(RequestError, match="no such folder"):
        load(tmp_path / "absent")
    with pytest.raises(RequestError, match="no run below it"):
        load(tmp_path)


def test_where_selects_by_value_collection_and_function():
    table = table_of(
        {
            "measure": ["a", "b", "a", "c"],
            "value": [1.0, 2.0, 3.0, 4.0],
            "seed": [0, 0, 1, 1],
            "epoch": [1, 2, 2, 1],
            "cell": list("xxxy"),
        }
    )
    assert table.where(measure="a")["value"].tolist() == [1, 3]
    assert table.where(measure=["a", "c"], seed=1)["value"].tolist() == [3, 4]
    assert table.where(value=lambda v: v > 1.5, cell="x")["value"].tolist() == [2, 3]
    assert table.last()["value"].tolist() == [2, 3, 4]
    with pytest.raises(RequestError, match="did you mean 'measure'"):
        table.where(mesure="a")


def test_points_joins_measures_of_one_state():
    table = table_of(
        {"measure": ["a", "b", "a", "b", "a"], "value": [1.0, 2.0, 3.0, 4.0, 5.0], "seed": [0, 0, 1, 1, 2], "cell": ["x"] * 5}
    )
    points = table.points("a", "b")
    order = np.argsort(points["seed"])
    assert points["a"][order].tolist() == [1, 3, 5]
    assert points["b"][order][:2].tolist() == [2, 4] and np.isnan(points["b"][order][2])


def test_to_pandas_has_the_same_columns(tmp_path):
    pandas = pytest.importorskip("pandas")
    write_training(tmp_path, seeds=[0])
    frame = load(tmp_path).to_pandas()
    assert isinstance(frame, pandas.DataFrame) and tuple(frame.columns) == COLUMNS


STRANGE = [
    '{"metric": "a", "value": 1, "split": ["train"]}',
    '{"metric": 3, "value": 1}',
    '{"metric": "a", "value": 1, "seed": 1e400}',
    '{"metric": "a", "value": 1, "step": 100000000000000000000000}',
    '{"metric": "a", "value": {"x": 1}}',
    '{"metric": "a"}',
    "[1, 2]",
    '{"metric": "a", "value": 1}, {"metric": "b", "value": 2}',
    "[" * 5000,
    "\x00",
]


@pytest.mark.parametrize("line", STRANGE)
def test_a_strange_line_excludes_its_seed_and_nothing_else(tmp_path, line):
    folder = write_training(tmp_path, seeds=[0, 1])
    (folder / "seed-0" / "manifest.json").unlink()
    with open(folder / "seed-0" / "metrics.jsonl", "a") as file:
        file.write(line + "\n")
    table = load(tmp_path)
    assert [x.seed for x in table.excluded] == [0] and "metrics.jsonl" in table.excluded[0].reason
    assert set(table["seed"]) == {1}


@pytest.mark.parametrize(
    "change", [{"parameters": [1]}, {"seed": "x"}, {"flags": 3}, {"prediction": 7}, {"measures": [1]}, {"loss": "a"}]
)
def test_a_strange_cell_never_stops_the_others(tmp_path, change):
    good = {"cell": "a", "seed": 0, "status": "converged", "loss": 0.5, "parameters": {}}
    with Run.create(tmp_path, "single", "sweep", {"classes": 4}, environment=ENVIRONMENT) as run:
        run.append("cells.jsonl", [good, {**good, "cell": "b", **change}])
        run.finish({"status": "converged"})
    table = load(tmp_path)
    assert any(name.endswith("#a") for name in table.cells)
    assert any(name.endswith("#b") for name in [*table.cells, *(x.cell for x in table.excluded)])


def test_of_a_cell_computed_twice_the_later_row_counts(tmp_path):
    rows = [
        {"cell": "a", "seed": 0, "status": "failed: the worker was lost", "parameters": {}},
        {"cell": "a", "seed": 0, "status": "converged", "loss": 0.5, "parameters": {},
         "measures": {"nc1_pinv": 0.0, "nc2_etf_means": 1e-9},
         "prediction": {"name": "etf", "applies": True, "loss": 0.5}, "flags": {"nc1_pinv": "degenerate"}},
    ]  # fmt: skip
    with Run.create(tmp_path, "single", "sweep", {"classes": 4}, environment=ENVIRONMENT) as run:
        run.append("cells.jsonl", rows)
        run.finish({"status": "converged"})
    table = load(tmp_path)
    assert not table.excluded and set(table["predicted"]) == {0.5, 0.0}
    assert table.where(measure="nc1_pinv")["flag"].tolist() == ["degenerate"]


def test_a_link_to_a_folder_above_ends(tmp_path):
    write_training(tmp_path, seeds=[0])
    (tmp_path / "collapse" / "loop").symlink_to(tmp_path, target_is_directory=True)
    assert len(load(tmp_path).cells) == 1


def test_two_states_in_the_last_epoch_are_one_seed(tmp_path):
    """A budget in steps may end inside an epoch that was measured already: the interval must not count its seeds twice."""
    for seed in range(3):
        rows = rows_of_seed(seed)
        later = [{**row, "step": row["step"] + 4} for row in rows if row["epoch"] == 100]
        folder = write_training(tmp_path, seeds=[seed], rows=[*rows, *later])
    table = load(folder)
    last = table.where(measure="nc1_pinv", split="train").last()
    assert last["seed"].tolist() == [0, 1, 2] and set(last["step"]) == {804}
    assert {row["seeds"] for row in numbers(table)} == {3}


GOOD = {
    "cell": "a", "seed": 0, "status": "converged", "loss": 0.5, "parameters": {}, "measures": {"nc1_pinv": 0.0},
    "prediction": {"loss": 0.5},
}  # fmt: skip
LOST = {"cell": "a", "seed": 0, "status": "failed: the worker was lost", "parameters": {}}


@pytest.mark.parametrize("first, second", [(LOST, GOOD), (GOOD, LOST)])
def test_a_failed_cell_that_another_shard_computed_is_not_left_out(tmp_path, first, second):
    from ufm.sweep import read_cells

    for shard, row in enumerate((first, second)):
        with Run.create(tmp_path, "single", "sweep", {"classes": 4}, shard=(shard, 2), environment=ENVIRONMENT) as run:
            run.append(f"cells-{shard}-of-2.jsonl", [row])
    table = load(tmp_path)
    assert not table.excluded and table.where(measure="loss")["value"].tolist() == [0.5]
    assert [row["status"] for row in read_cells(run.path)] == ["converged"]  # the claims read the same row


def test_a_cell_that_failed_in_every_shard_is_left_out_once(tmp_path):
    for shard in range(2):
        with Run.create(tmp_path, "single", "sweep", {"classes": 4}, shard=(shard, 2), environment=ENVIRONMENT) as run:
            run.append(f"cells-{shard}-of-2.jsonl", [LOST])
    assert [x.reason for x in load(tmp_path).excluded] == [LOST["status"]]


def test_a_row_may_call_its_measure_metric_or_measure(tmp_path):
    rows = rows_of_seed(0)
    renamed = [{("measure" if key == "metric" else key): value for key, value in row.items()} for row in rows]
    write_training(tmp_path / "a", seeds=[0], rows=rows)
    write_training(tmp_path / "b", seeds=[0], rows=renamed)
    one, other = load(tmp_path / "a"), load(tmp_path / "b")
    for name in COLUMNS:
        np.testing.assert_array_equal(one[name], other[name])


def test_every_end_that_may_be_compared_is_read_and_no_other():
    for status in Status:
        assert status.value.startswith(REACHED) is status.ok
