"""Every file operation of a sweep killed or failing: what is there afterwards is right, and the next start ends the same."""

import contextlib
import shutil
import warnings

import pytest
import toy_system as toy
from faults import FaultyOs, Killed

from ufm import files, record, spec, sweep
from ufm.errors import RequestError, RunError
from ufm.record import Run, RunWarning, find_runs

ENV = {"version": "1", "commit": "a", "dirty": False}
FAULTS = ("before", "after", "torn", "ENOSPC", "EIO", "EACCES")


def request():
    values = spec.resolve(toy.Toy, {"x": "1:6:6", "k": "0:2", "weight": 0.5})
    return sweep.plan(toy.SYSTEM, values, spec.cells(values), [0])


def patch(monkeypatch, proxy):
    monkeypatch.setattr(files, "os", proxy)
    monkeypatch.setattr(record, "os", proxy)


def content(path):
    return {p.name: p.read_bytes() for p in path.iterdir() if not p.name.startswith(".")}


def whole_chunks(root):
    """The cells that must not be computed again: those of the chunks that are on disk to their last line."""
    (path,) = find_runs(root) if root.exists() and find_runs(root) else [None]
    sheet = path / "cells.jsonl" if path else None
    return sheet.read_bytes().count(b"\n") // 4 * 4 if sheet and sheet.exists() else 0


def enumerate_faults(tmp_path, monkeypatch, fault, every=1):
    plan = request()
    assert [len(chunk) for chunk in plan.chunks] == [4, 4, 4]
    counting = FaultyOs()
    patch(monkeypatch, counting)
    right = content(sweep.execute(plan, root=tmp_path / "whole", environment=ENV).path)
    monkeypatch.undo()
    assert counting.count > 40
    for at in range(0, counting.count, every):
        root = tmp_path / str(at)
        proxy = FaultyOs(at, fault)
        patch(monkeypatch, proxy)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RunWarning)  # the torn tail that is cut
            with contextlib.suppress(Killed, OSError, RunError, RequestError):
                sweep.execute(plan, root=root, environment=ENV)
            proxy.bury()
            monkeypatch.undo()
            kept = whole_chunks(root)
            for path in find_runs(root) if root.exists() else ():
                Run.open(path).verify()
            outcome = sweep.execute(plan, root=root, environment=ENV)
        assert outcome.computed == len(plan) - kept, (fault, at)
        assert content(outcome.path) == right, (fault, at)
        shutil.rmtree(root)


@pytest.mark.parametrize("fault", ["torn", "EIO"])
def test_every_fourth_operation_of_a_sweep(tmp_path, monkeypatch, fault):
    enumerate_faults(tmp_path, monkeypatch, fault, every=4)


@pytest.mark.torture
@pytest.mark.parametrize("fault", FAULTS)
def test_every_operation_of_a_sweep_and_every_fault(tmp_path, monkeypatch, fault):
    enumerate_faults(tmp_path, monkeypatch, fault)
