"""A sweep killed at random moments and resumed: nothing lost, nothing computed twice but what was under way, the same bytes."""

import json
import subprocess
import warnings

import numpy as np
import pytest
from sweep_process import Session, name_of, plan_of

from ufm import sweep
from ufm.record import Run, RunWarning

TOY = {"system": "toy_system:SYSTEM", "values": {"x": "20:49:30", "k": "0:4", "mode": "pause", "weight": 0.4}}
GRID = {
    "system": "ufm.systems.single:SYSTEM",
    "values": {
        "classes": 10,
        "dim": 64,
        "per_class": 100,
        "lambda_w": "1e-6:1e-1:1250log",
        "imbalance": "1,10",
        "minority": 5,
        "loss": "ce,mse,smoothing,focal",
    },
}


def cells_file(root):
    found = list(root.glob("*/*/cells.jsonl"))
    return found[0] if found else root / "none"


def whole_lines(file):
    data = file.read_bytes() if file.exists() else b""
    return data[: data.rfind(b"\n") + 1]


def kill_and_resume(tmp_path, request, pauses, workers):
    """Kill one session after each pause, counted from its first cell; the last one ends. Return the names of all cells."""
    plan = plan_of(request)
    names = [[name_of(plan.task(i)) for i in chunk] for chunk in plan.chunks]
    assert Session({**request, "root": str(tmp_path / "whole")}, tmp_path / "log-whole").end()["computed"] == len(plan)
    right = cells_file(tmp_path / "whole").read_bytes()
    assert right.count(b"\n") == len(plan)
    killed, root = 0, tmp_path / "killed"
    for number, (pause, who) in enumerate(zip([*pauses, None], workers, strict=True)):
        before = whole_lines(cells_file(root))
        session = Session({**request, "root": str(root), "workers": who}, tmp_path / "log-killed")
        if pause is None:
            session.end()
        else:
            session.wait_for_work()
            try:
                session.process.wait(pause)
            except subprocess.TimeoutExpired:  # still at work, as it should be
                killed += session.kill()
        after = whole_lines(cells_file(root))
        assert after.startswith(before) and right.startswith(after), f"session {number} changed what was there"
        check_session(names, before.count(b"\n"), after.count(b"\n"), session.begun, who)
    assert cells_file(root).read_bytes() == right
    run = Run.open(cells_file(root).parent)
    run.verify()
    assert run.done and killed == len(pauses)
    return right


def check_session(names, before, after, begun, workers):
    """What was on disk as whole chunks was not begun again; what was begun and is not on disk is what was under way."""
    ends = np.cumsum([len(chunk) for chunk in names])
    had = int(ends[ends <= before].max(initial=0))
    has = int(ends[ends <= after].max(initial=0))
    flat = [name for chunk in names for name in chunk]
    assert len(begun) == len(set(begun)) and not set(begun) & set(flat[:had])
    assert set(flat[had:has]) <= set(begun)
    under_way = set(begun) - set(flat[:has])
    if workers == 1:  # of several workers one may be ahead of the chunk that is to be written next
        following = next((chunk for chunk, end in zip(names, ends, strict=True) if end > has), [])
        assert under_way <= set(following)


def test_kills_at_random_moments_change_nothing(tmp_path):
    pauses = np.random.default_rng(3).uniform(0.0, 0.5, size=4).tolist()
    kill_and_resume(tmp_path, TOY, pauses, [1, 1, 2, 1, 2])


def test_a_killed_shard_is_started_again(tmp_path):
    request = {**TOY, "root": str(tmp_path / "runs")}
    shards_with_kills(tmp_path, request, 4, {1: 0.15}, len(plan_of(request)))


def shards_with_kills(tmp_path, request, number, kills, cells):
    """Start every shard at once, kill some after a pause and start those again: each cell is recorded once."""
    sessions = {}
    try:
        for i in range(number):
            sessions[i] = Session({**request, "shard": [i, number]}, tmp_path / f"log-{i}")
        for i, pause in kills.items():
            sessions[i].wait_for_work()
            with pytest.raises(subprocess.TimeoutExpired):
                sessions[i].process.wait(pause)
            assert sessions[i].kill()
            sessions[i] = Session({**request, "shard": [i, number]}, tmp_path / f"log-{i}")
        for session in sessions.values():
            session.end()
    finally:
        for session in sessions.values():
            session.kill()
    (path,) = (tmp_path / "runs").glob("*/*")
    keys = [json.loads(line)["cell"] for file in path.glob("cells-*.jsonl") for line in file.read_bytes().splitlines()]
    assert len(keys) == len(set(keys)) == cells == len(sweep.read_cells(path))
    run = Run.open(path)
    run.verify()
    assert run.done and [part["status"] for part in run.read_json("result.json")["shards"]] == ["done"] * number
    begun = [name for i in range(number) for name in (tmp_path / f"log-{i}").read_text().split()]
    longest = max(map(len, plan_of({**request, "shard": [0, number]}).chunks))
    assert len(set(begun)) == cells and len(begun) - cells <= longest * len(kills)


# --- in full -------------------------------------------------------------------------------------------------------


@pytest.mark.torture
def test_ten_thousand_certified_cells_survive_five_kills(tmp_path):
    """K = 10, d = 64, n = 100: 1250 lambda_w x 2 imbalances x 4 losses; every convex cell is certified."""
    pauses = np.random.default_rng(4).uniform(0.1, 3.0, size=5).tolist()
    kill_and_resume(tmp_path, GRID, pauses, [1, 2, 1, 2, 1, 2])
    rows = sweep.read_cells(cells_file(tmp_path / "killed").parent)
    assert len(rows) == 10_000 and {row["status"] for row in rows} == {"converged"}
    convex = [row for row in rows if row["parameters"]["loss"] != "focal"]
    assert len(convex) == 7_500 and all(row["certificate"]["valid"] for row in convex)
    assert all(row["certificate"]["gap"] >= -1e-13 for row in convex)
    for row in convex:  # at a threshold itself convergence is sublinear
        near = any(abs(value - 1) < 0.02 for value in row["prediction"]["thresholds"].values())
        assert row["certificate"]["gap"] <= (1e-7 if near else 1e-9), (row["parameters"], row["certificate"])


@pytest.mark.torture
@pytest.mark.parametrize("part", range(12))
def test_six_hundred_kills(tmp_path, part):
    rng = np.random.default_rng([5, part])
    for trial in range(5):
        pauses = rng.uniform(0.0, 0.4, size=10).tolist()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RunWarning)
            folder = tmp_path / str(trial)
            folder.mkdir()
            values = {**TOY["values"], "k": "0:8", "weight": float(rng.choice([0.1, 0.4, 1.5, 5.0]))}
            kill_and_resume(folder, {**TOY, "values": values}, pauses, [*rng.choice([1, 1, 1, 2], size=10).tolist(), 1])


@pytest.mark.torture
def test_thirty_two_processes_on_ten_thousand_cells_with_a_tenth_of_them_killed(tmp_path):
    request = {**TOY, "root": str(tmp_path / "runs"), "values": {**TOY["values"], "x": "20:1019:1000", "k": "0:10"}}
    rng = np.random.default_rng(6)
    kills = {int(i): float(rng.uniform(0.0, 0.5)) for i in rng.choice(32, size=4, replace=False)}
    shards_with_kills(tmp_path, request, 32, kills, 10_000)
