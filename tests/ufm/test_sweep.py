import json
import signal
import sys
import types
import warnings

import numpy as np
import pytest
import toy_system as toy

from ufm import engine, machine, spec, sweep
from ufm.errors import RequestError, RunError
from ufm.interrupt import Interrupted
from ufm.record import Run, RunWarning

ENV = {"version": "1", "commit": "a", "dirty": False}


def plan(seeds=(0,), shard=None, workers=1, zipped=(), **values):
    resolved = spec.resolve(toy.Toy, values)
    return sweep.plan(toy.SYSTEM, resolved, spec.cells(resolved, zipped), seeds, shard=shard, workers=workers)


def execute(root, request, **more):
    return sweep.execute(request, root=root, environment=ENV, **more)


def cells_of(outcome):
    return (outcome.path / "cells.jsonl").read_bytes()


def test_a_sweep_records_every_cell_in_grid_order(tmp_path):
    outcome = execute(tmp_path, plan(seeds=(3, 5), x="1,2,4", k="0:2"))
    assert outcome.computed == 12 and outcome.statuses == {"converged": 12} and outcome.failed == 0
    order = [(row["parameters"]["x"], row["parameters"]["k"], row["seed"]) for row in outcome.rows]
    assert order == [(x, k, seed) for x in (1.0, 2.0, 4.0) for k in (0, 1) for seed in (3, 5)]
    for row in outcome.rows:
        x, k = row["parameters"]["x"], row["parameters"]["k"]
        assert row["loss"] == x**2 / 3 + k + row["seed"] * 1e-3 and row["device"] == "cpu"
    run = Run.open(outcome.path)
    run.verify()
    assert run.done and run.config["x"] == "grid" and run.config["mode"] == "ok" and run.config["definition"] == 1
    assert run.read_json("result.json")["statuses"] == {"converged": 12}
    assert sweep.read_cells(outcome.path) == outcome.rows


def test_the_same_request_computes_nothing_again(tmp_path):
    first = execute(tmp_path, plan(x="1:5:9"))
    before = {p.name: p.read_bytes() for p in first.path.iterdir()}
    again = execute(tmp_path, plan(x="1:5:9"))
    assert again.computed == 0 and again.rows == first.rows
    assert {p.name: p.read_bytes() for p in first.path.iterdir()} == before


def test_an_extended_grid_computes_what_is_missing_in_the_same_folder(tmp_path):
    first = execute(tmp_path, plan(x="1,2,3"))
    second = execute(tmp_path, plan(seeds=(0, 1), x="1,2,3,4"))
    assert second.path == first.path and second.computed == 8 - 3
    assert {(row["parameters"]["x"], row["seed"]) for row in sweep.read_cells(first.path)} == {
        (float(x), s) for x in (1, 2, 3, 4) for s in (0, 1)
    }
    Run.open(first.path).verify()


def test_what_does_not_change_the_numbers_does_not_change_the_folder(tmp_path):
    one = execute(tmp_path, plan(x="1,2"))
    (tmp_path / "marks").mkdir()
    two = execute(tmp_path, plan(x="1,2", marks=str(tmp_path / "marks")))
    other = execute(tmp_path, plan(x="1,2", weight=0.02))
    assert one.path == two.path != other.path


def test_one_worker_and_two_write_the_same_bytes(tmp_path):
    request = plan(seeds=(0, 1), x="1:9:40", k="0:3", weight=0.1)
    assert len(request.chunks) > 5
    one = execute(tmp_path / "one", request)
    two = execute(tmp_path / "two", request, workers=2)
    assert cells_of(one) == cells_of(two)
    for name in ("config.json", "result.json", "manifest.json", "done"):
        assert (one.path / name).read_bytes() == (two.path / name).read_bytes()


def test_shards_together_are_the_whole(tmp_path):
    values = {"seeds": (0, 1), "x": "1:9:7", "k": "0:3"}
    whole = execute(tmp_path / "whole", plan(**values))
    parts = [execute(tmp_path / "parts", plan(shard=(i, 4), **values)) for i in (2, 0, 3)]
    assert not Run.open(parts[0].path).done
    parts.append(execute(tmp_path / "parts", plan(shard=(1, 4), **values)))
    assert Run.open(parts[0].path).done and sum(part.computed for part in parts) == 42
    for i, part in zip((2, 0, 3, 1), parts, strict=True):
        assert [row["cell"] for row in part.rows] == [row["cell"] for row in whole.rows[i::4]]

    def plain(rows):
        return {row["cell"]: {k: v for k, v in row.items() if k != "chunk"} for row in rows}

    assert plain(sweep.read_cells(parts[0].path)) == plain(whole.rows)
    Run.open(parts[0].path).verify()
    # The whole request now finds everything there.
    assert execute(tmp_path / "parts", plan(**values)).computed == 0


def test_chunks_are_fixed_by_the_cells_own_cost(monkeypatch):
    assert plan(x="1:5:9", weight=5).chunks == [[i] for i in range(9)]
    assert [len(c) for c in plan(x="1:5:9", weight=0.9).chunks] == [2, 2, 2, 2, 1]
    assert [len(c) for c in plan(seeds=range(300), x="1,2", weight=1e-9).chunks] == [256, 256, 88]
    assert [len(c) for c in plan(x="1:5:9", size=2**25).chunks] == [2, 2, 2, 2, 1]
    assert plan(x="1:5:9", shard=(2, 4)).chunks == [[2, 6]]


def test_an_absurd_size_is_refused_with_the_estimate(monkeypatch):
    with pytest.raises(RequestError, match=r"needs about 1e\+06 PB and this machine has"):
        plan(x="1,2", size=1e21)
    monkeypatch.setattr(machine, "memory_limit", lambda: 1000.0)
    with pytest.raises(RequestError, match="use fewer --workers"):
        plan(size=400, workers=3)
    assert plan(size=400, workers=2).memory == 400


def test_a_wrong_cell_is_refused_before_anything_is_made():
    with pytest.raises(RequestError, match="unlucky"):
        plan(x="1,2,13")


def test_a_torn_chunk_is_computed_again_to_the_same_bytes(tmp_path):
    request = plan(seeds=(0, 1), x="1:9:10", weight=0.5)
    right = cells_of(execute(tmp_path / "whole", request))
    lines = right.splitlines(keepends=True)
    rng = np.random.default_rng(0)
    for number, size in enumerate([0, 1, len(lines[0]), *rng.integers(len(right), size=12), len(right) - 1]):
        root = tmp_path / str(number)
        with Run.create(root, "toy", request.name, request.config, environment=ENV) as run:
            (run.path / "cells.jsonl").write_bytes(right[:size])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RunWarning)
            outcome = execute(root, request)
        whole_chunks = right[:size].count(b"\n") // 4 * 4
        assert cells_of(outcome) == right and outcome.computed == 20 - whole_chunks


def test_a_signal_stops_at_the_end_of_the_chunk_and_the_rest_goes_on_later(tmp_path):
    marks = tmp_path / "marks"
    marks.mkdir()
    values = {"x": "1:6:6", "mode": "term", "deaths": 1, "weight": 5, "marks": str(marks)}
    (marks / "3.0-1-0-0").touch()  # that cell's accident has happened
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted) as caught:
        execute(tmp_path, plan(**values), resume="ufm again")
    assert caught.value.signum == signal.SIGTERM and caught.value.resume == "ufm again"
    assert signal.getsignal(signal.SIGTERM) == before
    path = next((tmp_path / "toy").iterdir())
    assert len(sweep.read_cells(path)) == 1 and not Run.open(path).done
    for mark in marks.iterdir():
        mark.unlink()
    for x in range(1, 7):
        (marks / f"{x}.0-1-0-0").touch()
    outcome = execute(tmp_path, plan(**values))
    assert outcome.computed == 5 and Run.open(path).done


def test_a_signal_in_the_last_chunk_lets_it_finish(tmp_path):
    outcome = execute(tmp_path, plan(x="1", mode="term"))
    assert outcome.computed == 1 and Run.open(outcome.path).done


def test_a_chunk_that_takes_too_long_after_a_signal_is_broken_off(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "GRACE", 0.05)
    with pytest.raises(Interrupted):
        execute(tmp_path, plan(x="1", mode="sleep"))
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_a_bad_cell_is_a_row_and_the_others_go_on(tmp_path):
    (tmp_path / "marks").mkdir()
    (tmp_path / "marks" / "2.0-1-0-0").touch()
    values = {"x": "1,2,3", "mode": "raise", "marks": str(tmp_path / "marks"), "deaths": 1}
    (tmp_path / "marks" / "3.0-1-0-0").touch()
    outcome = execute(tmp_path, plan(**values))
    # The chunk is computed cell by cell after the error, and cell 1 does not fail a second time.
    assert outcome.failed == 0
    outcome = execute(tmp_path, plan(x="1,2", mode="raise"))
    assert outcome.failed == 2 and outcome.statuses == {engine.ERROR: 2}
    assert outcome.rows[0]["reason"] == "ValueError: x = 1.0 is bad"
    outcome = execute(tmp_path, plan(mode="memory"))
    assert outcome.statuses == {engine.MEMORY: 1} and "smaller sizes" in outcome.rows[0]["reason"]


def test_failed_cells_are_tried_again_and_diverged_ones_are_not(tmp_path):
    (tmp_path / "marks").mkdir()
    values = {"x": "1,2", "mode": "raise", "marks": str(tmp_path / "marks"), "deaths": 2}
    first = execute(tmp_path, plan(**values))
    assert first.failed == 2
    second = execute(tmp_path, plan(**values))
    assert second.failed == 0 and second.computed == 2
    assert [row["status"] for row in sweep.read_cells(first.path)] == ["converged"] * 2
    assert execute(tmp_path, plan(mode="diverge")).failed == 1
    assert execute(tmp_path, plan(mode="diverge")).computed == 0


def test_what_a_shard_computed_is_not_hidden_by_an_earlier_failure(tmp_path):
    (tmp_path / "marks").mkdir()
    values = {"x": "1,2", "mode": "raise", "marks": str(tmp_path / "marks"), "deaths": 2}
    first = execute(tmp_path, plan(**values))
    for i in (0, 1):
        assert execute(tmp_path, plan(shard=(i, 2), **values)).failed == 0
    assert [row["status"] for row in sweep.read_cells(first.path)] == ["converged"] * 2
    assert execute(tmp_path, plan(**values)).computed == 0


def test_numbers_that_do_not_exist_are_null(tmp_path):
    outcome = execute(tmp_path, plan(mode="nan,diverge"))
    assert [row["loss"] for row in outcome.rows] == [None, None]
    assert "NaN" not in (outcome.path / "cells.jsonl").read_text()


def test_a_cell_that_kills_its_worker_is_tried_three_times_and_the_rest_goes_on(tmp_path):
    marks = tmp_path / "marks"
    marks.mkdir()
    for x in (1.0, 2.0, 4.0, 5.0):
        for n in range(5):
            (marks / f"{x}-1-0-{n}").touch()
    request = plan(x="1:5:5", mode="kill", marks=str(marks), deaths=5, weight=1.5)
    outcome = execute(tmp_path, request, workers=2)
    assert [row["status"] == "converged" for row in outcome.rows] == [True, True, False, True, True]
    assert outcome.rows[2]["status"] == engine.LOST and len(list(marks.glob("3.0-*"))) == 3
    assert len({row["cell"] for row in sweep.read_cells(outcome.path)}) == 5


def test_a_worker_that_dies_once_costs_nothing(tmp_path):
    marks = tmp_path / "marks"
    marks.mkdir()
    for x in (1.0, 2.0, 4.0):
        (marks / f"{x}-1-0-0").touch()
    request = plan(x="1:4:4", mode="kill", marks=str(marks), deaths=1, weight=1.5)
    outcome = execute(tmp_path, request, workers=2)
    assert outcome.statuses == {"converged": 4} and outcome.computed == 4


def test_a_cluster_that_does_not_answer_is_refused_before_anything_is_made(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(RequestError, match=r"pip install 'ufm\[cluster\]'"):
        execute(tmp_path / "runs", plan(x="1,2"), cluster="tcp://127.0.0.1:9")

    class Client:
        def __init__(self, address, timeout):
            raise OSError(f"Timed out trying to connect to {address}")

    monkeypatch.setitem(sys.modules, "distributed", types.SimpleNamespace(Client=Client))
    with pytest.raises(RequestError, match="no dask scheduler answers"):
        execute(tmp_path / "runs", plan(x="1,2"), cluster="tcp://127.0.0.1:9")
    assert not (tmp_path / "runs").exists()


def test_a_cluster_writes_the_same_bytes(tmp_path):
    distributed = pytest.importorskip("distributed", reason="the extra 'cluster' is not installed")
    request = plan(x="1:9:40", weight=0.5)
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        far = execute(tmp_path / "far", request, cluster=cluster.scheduler_address)
    assert cells_of(far) == cells_of(execute(tmp_path / "near", request))


def test_two_sweeps_of_one_run_do_not_mix(tmp_path):
    request = plan(x="1,2")
    with (
        Run.create(tmp_path, "toy", request.name, request.config, environment=ENV),
        pytest.raises(RunError, match="being written"),
    ):
        execute(tmp_path, request)


def test_damaged_cells_are_refused(tmp_path):
    outcome = execute(tmp_path, plan(x="1,2"))
    file = outcome.path / "cells.jsonl"
    good = file.read_bytes()
    file.write_bytes(good.replace(b"converged", b"Converged"))
    with pytest.raises(RunError, match="damaged"):
        sweep.read_cells(outcome.path)
    for vouching in ("manifest.json", "done"):
        (outcome.path / vouching).unlink()
    for bad in (b'{"seed": 0}\n', b'{"cell": 3, "status": "x"}\n', b'{"cell": "a"}\n'):
        file.write_bytes(bad)
        with pytest.raises(RunError, match="no name or no status"):
            sweep.read_cells(outcome.path)


def test_a_file_option_is_identified_by_its_content_and_kept(tmp_path):
    from ufm.systems.single import SYSTEM

    def request(path):
        values = spec.resolve(SYSTEM.spec, {"targets": str(path), "classes": 2, "dim": 3})
        return sweep.plan(SYSTEM, values, spec.cells(values), [0])

    (tmp_path / "a.json").write_text("[[1, 0], [0, 1], [0.5, 0.5]]")
    (tmp_path / "b.json").write_text("[[1, 0], [0, 1], [0.5, 0.5]]")
    (tmp_path / "c.json").write_text("[[1, 0], [0, 1], [0.4, 0.6]]")
    assert request(tmp_path / "a.json").config == request(tmp_path / "b.json").config != request(tmp_path / "c.json").config
    outcome = execute(tmp_path / "runs", request(tmp_path / "a.json"))
    assert (outcome.path / "targets.json").read_bytes() == (tmp_path / "a.json").read_bytes()
    assert str(tmp_path) not in (outcome.path / "config.json").read_text() + cells_of(outcome).decode()


def test_rows_are_read_without_their_grams_unless_asked_for(tmp_path):
    from ufm.systems.single import SYSTEM

    values = spec.resolve(SYSTEM.spec, {"classes": "3,4", "dim": 5, "loss": "ce,mse"})
    outcome = execute(tmp_path, sweep.plan(SYSTEM, values, spec.cells(values), [0]))
    assert all({"weights", "means"} == set(row["gram"]) for row in outcome.rows)
    assert sweep.read_cells(outcome.path, grams=True) == outcome.rows
    assert sweep.read_cells(outcome.path) == [{k: v for k, v in row.items() if k != "gram"} for row in outcome.rows]
    again = execute(tmp_path, sweep.plan(SYSTEM, values, spec.cells(values), [0]))
    assert again.computed == 0 and again.rows == outcome.rows


@pytest.mark.torture
def test_a_hundred_thousand_cells(tmp_path):
    request = plan(seeds=range(5), x="1:100:1000", k="0:20")
    outcome = execute(tmp_path, request)
    assert outcome.computed == 100_000 and len(sweep.read_cells(outcome.path)) == 100_000


@pytest.mark.torture
def test_a_hundred_thousand_rows_of_full_size_are_read_back(tmp_path):
    """The rows of ten real cells under ten thousand seeds each: 430 MB, of which the Grams are more than half."""
    import compare
    from ufm.systems.single import SYSTEM

    values = spec.resolve(SYSTEM.spec, {"lambda_w": "1e-6:1e-2:5log", "loss": "ce,mse"})
    small = execute(tmp_path / "small", sweep.plan(SYSTEM, values, spec.cells(values), [0]))
    lines = [json.loads(line) for line in cells_of(small).splitlines()]
    with Run.create(tmp_path / "large", "single", "large", Run.open(small.path).config, environment=ENV) as run:
        for first in range(0, 10_000, 500):
            seeds = range(first, first + 500)
            rows = [{**line, "cell": f"{seed}-{line['cell']}", "seed": seed} for seed in seeds for line in lines]
            run.append("cells.jsonl", rows)
        run.finish({"status": "done"})
    rows = sweep.read_cells(run.path)
    assert len(rows) == 100_000 and [row["loss"] for row in rows[-10:]] == [row["loss"] for row in lines]
    table = compare.load(run.path)
    losses = table.where(measure="loss")
    assert len(table.cells) == losses.rows == 100_000 and not table.excluded
    assert sorted(set(losses["value"])) == sorted(row["loss"] for row in lines)


@pytest.mark.torture
def test_a_tenth_of_the_workers_killed(tmp_path):
    marks = tmp_path / "marks"
    marks.mkdir()
    request = plan(seeds=range(10), x="1:100:1000", mode="kill", marks=str(marks), deaths=1, weight=0.01)
    deadly = {(int(i) // 10, int(i) % 10) for i in np.random.default_rng(0).choice(10_000, size=4, replace=False)}
    for index, x in enumerate(spec.resolve(toy.Toy, {"x": "1:100:1000"})["x"]):
        for seed in range(10):
            if (index, seed) not in deadly:
                (marks / f"{x}-1-{seed}-0").touch()
    outcome = execute(tmp_path, request, workers=32)
    assert outcome.statuses == {"converged": 10_000}
    keys = [json.loads(line)["cell"] for line in cells_of(outcome).splitlines()]
    assert len(keys) == len(set(keys)) == 10_000
