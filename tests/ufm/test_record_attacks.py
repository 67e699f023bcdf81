"""The hostile files of tests/attacks that concern run folders and requests: each is one line, and nothing happens."""

import shutil
from pathlib import Path

import pytest

from ufm.errors import RequestError, RunError
from ufm.record import Run
from ufm.sweep import read_cells

ATTACKS = Path(__file__).resolve().parents[1] / "attacks"


def attacks(pattern):
    found = sorted(ATTACKS.glob(pattern))
    assert len(found) >= 5, f"the files {pattern} are missing"
    return pytest.mark.parametrize("attack", found, ids=lambda p: p.name)


@pytest.fixture
def run(tmp_path):
    with Run.create(tmp_path / "runs", "single", "x", {"classes": 10}, environment={}) as made:
        made.append("cells.jsonl", [{"cell": "a", "status": "converged"}])
    return made.path


def one_line(caught):
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


@attacks("config-*.json")
def test_hostile_configs(run, ufm, attack):
    shutil.copy(attack, run / "config.json")
    for reader in (Run.open, read_cells):
        with pytest.raises(RunError) as caught:
            reader(run)
        one_line(caught)
    before = {p.name: p.read_bytes() for p in run.iterdir()}
    with pytest.raises(RunError):
        Run.create(run.parents[1], "single", "x", {"classes": 10}, environment={})
    assert {p.name: p.read_bytes() for p in run.iterdir()} == before
    answer = ufm("cite", "runs")
    assert answer.code == 1 and answer.out == "" and answer.err.count("\n") == 1 and answer.err.strip().isprintable()


@attacks("cells-*.jsonl")
def test_hostile_cells(run, ufm, attack):
    shutil.copy(attack, run / "cells.jsonl")
    with pytest.raises(RunError) as caught:
        read_cells(run)
    one_line(caught)
    answer = ufm("cite", "runs")
    assert answer.code == 1 and answer.err.count("\n") == 1 and answer.err.strip().isprintable()


@attacks("tensors-*.safetensors")
def test_hostile_tensors(run, attack):
    shutil.copy(attack, run / "tensors.safetensors")
    with pytest.raises(RunError, match="not a readable safetensors file") as caught:
        Run.open(run).read_tensors("tensors.safetensors")
    one_line(caught)


@attacks("options-*.toml")
def test_hostile_options(ufm, attack):
    assert ufm.refuses("simulate", "single", "--config", attack).isprintable()
    assert ufm.refuses("predict", "single", "--config", attack).isprintable()


@attacks("targets-*")
def test_hostile_targets(ufm, attack):
    assert ufm.refuses("simulate", "single", "--classes", "3", "--targets", attack).isprintable()


@pytest.mark.parametrize(
    "name", ["../x", "/tmp/x", "..", "a/../b", "a\\b", "con\x1b", "x" * 200, "-rf", "~", "$HOME", "a;b", "a b"]
)
def test_hostile_names(tmp_path, run, name):
    for arguments in ((name, "x"), ("single", name)):
        with pytest.raises(RequestError):
            Run.create(tmp_path / "out", *arguments, {}, environment={})
    opened = Run.open(run)
    for read in (opened.rows, opened.read_json, opened.read_tensors):
        with pytest.raises(RequestError):
            read(name)
    assert not (tmp_path / "out").exists()
