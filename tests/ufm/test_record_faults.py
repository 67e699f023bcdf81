"""Every file operation of a small sweep and a small training, killed or failing, and what is found and done afterwards."""

import shutil
import warnings

import numpy as np
import pytest
from faults import FaultyOs, Killed

from ufm import files, record
from ufm.errors import RequestError, RunError
from ufm.record import Run, RunWarning

ENV = {"version": "1", "commit": "a", "dirty": False}
ROWS = [[{"i": 3 * c + j, "v": 1 / (3 * c + j + 1)} for j in range(3)] for c in range(3)]
KILLS = ("before", "after", "torn")
FAILURES = ("ENOSPC", "EIO", "EACCES")


def work(root):
    """Do what is missing of a sweep of nine rows, then of the tensors, and finish: safe to call again after any fault."""
    with Run.create(root, "single", "name", {"x": 1}, environment=ENV) as run:
        if run.done:
            return run.path
        there = len(run.rows("cells.jsonl")) // 3
        run.truncate("cells.jsonl", 3 * there)  # a chunk is whole or computed again
        for chunk in ROWS[there:]:
            run.append("cells.jsonl", chunk)
        run.write_tensors("tensors.safetensors", {"W": np.arange(4.0)})
        run.write_json("summary.json", {"rows": 9})
        run.finish({"status": "done"})
        return run.path


def content(path):
    return {p.name: p.read_bytes() for p in path.iterdir() if not p.name.startswith(".")}


def operations(tmp_path, monkeypatch):
    counting = FaultyOs()
    patch(monkeypatch, counting)
    path = work(tmp_path / "whole")
    return counting.count, content(path)


def patch(monkeypatch, proxy):
    monkeypatch.setattr(files, "os", proxy)
    monkeypatch.setattr(record, "os", proxy)


def readable(root):
    """Whatever the fault: what is on disk opens, and its rows are a beginning of the right ones."""
    for path in record.find_runs(root):
        run = Run.open(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RunWarning)
            rows = run.rows("cells.jsonl")
        assert rows == [row for chunk in ROWS for row in chunk][: len(rows)]
        run.verify()


def fault_at(root, monkeypatch, number, fault):
    proxy = FaultyOs(number, fault)
    patch(monkeypatch, proxy)
    try:
        work(root)
        happened = False
    except (Killed, OSError, RunError, RequestError):
        happened = True
    proxy.bury()
    monkeypatch.undo()
    return happened


def enumerate_faults(tmp_path, monkeypatch, faults):
    number, right = operations(tmp_path, monkeypatch)
    assert number > 50
    for fault in faults:
        for at in range(number):
            root = tmp_path / f"{fault}-{at}"
            happened = fault_at(root, monkeypatch, at, fault)
            if root.exists():
                readable(root)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RunWarning)  # the torn tail that is cut
                path = work(root)
            assert content(path) == right, (fault, at, happened)
            shutil.rmtree(root)


@pytest.mark.parametrize("fault", ["before", "torn", "ENOSPC"])
def test_every_operation(tmp_path, monkeypatch, fault):
    enumerate_faults(tmp_path, monkeypatch, [fault])


@pytest.mark.torture
@pytest.mark.parametrize("fault", [*KILLS, *FAILURES])
def test_every_operation_and_every_fault(tmp_path, monkeypatch, fault):
    enumerate_faults(tmp_path, monkeypatch, [fault])


def test_two_faults_in_a_row(tmp_path, monkeypatch):
    number, right = operations(tmp_path, monkeypatch)
    rng = np.random.default_rng(0)
    for trial in range(15):
        root = tmp_path / str(trial)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RunWarning)
            for _ in range(2):
                fault_at(root, monkeypatch, int(rng.integers(number)), str(rng.choice(KILLS)))
            assert content(work(root)) == right


def test_atomic_write_leaves_the_old_file_on_every_failure(tmp_path, monkeypatch):
    path = tmp_path / "x.json"
    for fault in FAILURES:
        for at in range(7):
            path.write_bytes(b"old")
            patch(monkeypatch, FaultyOs(at, fault))
            with pytest.raises(OSError):
                files.atomic_write(path, b"new!")
                raise OSError  # the write may have succeeded when `at` is beyond its last operation
            monkeypatch.undo()
            assert path.read_bytes() in (b"old", b"new!")
            assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_a_failed_append_leaves_no_half_line(tmp_path, monkeypatch):
    with Run.create(tmp_path, "single", "name", {"x": 1}, environment=ENV) as run:
        run.append("cells.jsonl", ROWS[0])
        before = (run.path / "cells.jsonl").read_bytes()
        patch(monkeypatch, FaultyOs(1, "ENOSPC"))  # operation 0 opens, operation 1 writes
        with pytest.raises(OSError, match="No space left"):
            run.append("cells.jsonl", ROWS[1])
        monkeypatch.undo()
        assert (run.path / "cells.jsonl").read_bytes() == before
        run.append("cells.jsonl", ROWS[1])
        assert run.rows("cells.jsonl") == [*ROWS[0], *ROWS[1]]


# --- damage to a finished run --------------------------------------------------------------------------------------


def damaged_files(root):
    """Return the files of a finished run and of a finished seed; each must be guarded."""
    sweep = work(root)
    with Run.create(root, "collapse", "name", {"y": 2}, seed=1, environment=ENV) as run:
        run.append("metrics.jsonl", ROWS[0])
        run.finish({"status": "done"})
    listed = [(sweep, p) for p in sorted(sweep.iterdir()) if not p.name.startswith(".")]
    listed += [(run.path, p) for p in sorted(run.path.iterdir()) if not p.name.startswith(".")]
    return [*listed, (run.path, run.path.parent / "config.json")]


def noticed(path):
    try:
        Run.open(path).verify()
    except (RunError, RequestError):
        return True
    return False


def flip_bits(root, number):
    rng = np.random.default_rng(1)
    places = damaged_files(root)
    for trial in range(number):
        run, path = places[trial % len(places)]
        original = path.read_bytes()
        data = bytearray(original)
        bit = int(rng.integers(8 * len(data)))
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        assert noticed(run), (path.name, bit)
        path.write_bytes(original)
        assert not noticed(run)


def truncate(root, number):
    rng = np.random.default_rng(2)
    places = damaged_files(root)
    for trial in range(number):
        run, path = places[trial % len(places)]
        original = path.read_bytes()
        path.write_bytes(original[: int(rng.integers(len(original)))])
        assert noticed(run), path.name
        path.write_bytes(original)


def test_flipped_bits_are_noticed(tmp_path):
    flip_bits(tmp_path, 150)


def test_truncations_are_noticed(tmp_path):
    truncate(tmp_path, 60)


@pytest.mark.torture
def test_a_thousand_flipped_bits_are_noticed(tmp_path):
    flip_bits(tmp_path, 1000)


@pytest.mark.torture
def test_two_hundred_truncations_are_noticed(tmp_path):
    truncate(tmp_path, 200)


def test_a_missing_file_is_noticed(tmp_path):
    for run, path in damaged_files(tmp_path):
        if path.name == "done":
            continue  # without it the run is simply not done
        original = path.read_bytes()
        path.unlink()
        assert noticed(run), path.name
        path.write_bytes(original)


@pytest.mark.parametrize("keep", [-1, -20, 30])
def test_a_truncated_file_of_a_finished_run_stays_as_evidence(tmp_path, keep):
    path = work(tmp_path)
    sheet = path / "cells.jsonl"
    sheet.write_bytes(sheet.read_bytes()[:keep])
    before = {p.name: p.read_bytes() for p in path.iterdir()}
    with pytest.raises(RunError, match=r"cells\.jsonl is damaged"):
        work(tmp_path)
        Run.open(path).rows("cells.jsonl")
    assert {p.name: p.read_bytes() for p in path.iterdir()} == before


def test_a_torn_line_behind_what_is_sealed_is_cut_and_the_rest_kept(tmp_path):
    path = work(tmp_path)
    sheet = path / "cells.jsonl"
    whole = sheet.read_bytes()
    (path / "done").unlink()  # a resumed run is not done while it is written
    sheet.write_bytes(whole + b'{"i": 9, "v"')
    with pytest.warns(RunWarning, match="cut 12 bytes"), Run.create(tmp_path, "single", "name", {"x": 1}, environment=ENV):
        assert sheet.read_bytes() == whole


def test_a_failed_write_names_its_file(tmp_path, monkeypatch):
    for number, fault in ((0, "EACCES"), (1, "ENOSPC"), (2, "EIO"), (3, "EIO")):
        path = tmp_path / f"x{number}"
        for write in (files.atomic_write, files.append):
            patch(monkeypatch, FaultyOs(min(number, 2) if write is files.append else number, fault))
            with pytest.raises(OSError) as caught:
                write(path, b"new\n")
            monkeypatch.undo()
            assert caught.value.filename == str(path)
