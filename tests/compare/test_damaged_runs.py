"""Commands given runs that are damaged, or hold nothing: exit 1 with what to compute again, never the words of another case."""

import json
import os

import pytest
from synthetic_runs import ENVIRONMENT, write_training
from test_compare_cli import run  # noqa: F401

from compare.load import load
from ufm.record import Run

COMMANDS = {
    "plot sweep": ("plot", "sweep", "{run}", "-o", "x.svg"),
    "plot gram": ("plot", "gram", "{run}", "-o", "x.svg"),
    "table": ("table", "{run}"),
    "table json": ("table", "{run}", "--json"),
    "conventions": ("table", "{run}", "--conventions"),
    "report": ("report", "{run}", "-o", "x.html"),
    "calibrate": ("calibrate", "{run}"),
    "verdict": ("verdict", "{run}"),
    "verdict json": ("verdict", "{run}", "--json"),
}
ARGV = {
    **{name: ["ufm", "simulate", name, "--seeds", "0:2"] for name in ("single", "deep", "flow", "starvation", "benign")},
    **{name: ["empirical", "run", name, "--dataset", "digits"] for name in ("collapse", "transfer", "shortcut")},
}


def make(root, system):
    environment = {**ENVIRONMENT, "argv": ARGV[system]}
    if system in ("single", "deep", "flow", "starvation", "benign"):
        with Run.create(root, system, "sweep", {"classes": 4}, environment=environment) as made:
            made.append("cells.jsonl", [{"cell": "a", "seed": 0, "status": "converged", "loss": 0.5, "parameters": {}}])
            made.finish({"status": "done"})
        return made.path, made.path / "cells.jsonl"
    with Run.create(root, system, "net", {"dataset": "digits"}, seed=0, environment=environment) as made:
        row = {"epoch": 1, "step": 8, "split": "train", "layer": "penultimate", "centres": "self", "metric": "nc1_pinv"}
        made.append("metrics.jsonl", [{**row, "seed": 0, "value": 0.5}])
        made.finish({"status": "done"})
    return made.path.parent, made.path / "metrics.jsonl"


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("system", ARGV)
@pytest.mark.parametrize("where", ["rows", "config.json"])
def test_what_is_damaged_is_a_failure_with_the_command_that_mends_it(run, tmp_path, monkeypatch, system, where):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    folder, rows = make("runs", system)
    flip(tmp_path / (rows if where == "rows" else folder / where))
    place = folder if where != "rows" or rows.name == "cells.jsonl" else rows.parent
    for words in COMMANDS.values():
        code, out, err = run(*[word.format(run=folder) for word in words])
        last = err.splitlines()[-1]
        assert (code, out) == (1, "") and last.startswith("error: nothing is left to show: "), (words, code, err)
        assert f"delete {place} and run `{' '.join(ARGV[system])}` again" in last and last.count("restore it") == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["runs"]


def test_what_is_left_of_several_runs_is_shown(run, tmp_path):  # noqa: F811
    _, rows = make(tmp_path, "single")
    flip(rows)
    good = write_training(tmp_path, seeds=[0])
    code, out, err = run("table", tmp_path, "--json")
    assert code == 0 and {row["cell"] for row in json.loads(out)} == {good.name} and "left out: sweep-" in err


def test_a_sweep_that_was_stopped_at_once_is_named(run, tmp_path):  # noqa: F811
    folder, rows = make(tmp_path, "single")
    for name in ("done", "manifest.json"):
        (folder / name).unlink()
    rows.write_bytes(b"")
    assert [x.remedy for x in load(folder).excluded] == [""]
    code, _, err = run("table", folder)
    assert code == 0 and "run `ufm simulate single --seeds 0:2` again" in err


def test_a_newer_format_asks_for_a_newer_version(run, tmp_path):  # noqa: F811
    folder, _ = make(tmp_path, "single")
    document = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**document, "run_format": 999}))
    code, _, err = run("table", folder)
    assert code == 1 and err.splitlines()[-1].endswith("install a newer ufm")


@pytest.mark.parametrize("file", ["config.json", "env.json"])
@pytest.mark.parametrize("kind", ["pipe", "folder"])
def test_what_is_no_file_is_named_and_waited_for_by_nobody(run, tmp_path, monkeypatch, file, kind):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    folder, _ = make("runs", "single")
    (folder / file).unlink(missing_ok=True)
    (os.mkfifo if kind == "pipe" else os.mkdir)(folder / file)
    code, _, err = run("table", str(folder))
    assert code in (0, 1) and "Traceback" not in err and file in err, (code, err)


def test_a_finished_sweep_without_its_cells_is_damaged_not_unstarted(run, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    folder, rows = make("runs", "single")
    rows.unlink()
    code, out, err = run("plot", "sweep", str(folder), "-o", "x.svg")
    assert (code, out) == (1, "") and "its cells.jsonl is missing" in err and "not started" not in err and "delete" in err
