import getpass
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from ufm import provenance
from ufm.provenance import clean_argv, environment

ROOT = Path(__file__).resolve().parents[2]


def git(*words):
    return subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=False)


def test_what_is_recorded():
    import numpy
    import torch

    import ufm

    found = environment("cpu", seed=7)
    json.dumps(found, allow_nan=False)
    assert found["version"] == ufm.__version__ and found["seed"] == 7 and found["device"] == "cpu"
    assert found["libraries"]["torch"] == torch.__version__ and found["libraries"]["numpy"] == numpy.__version__
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["threads"] == torch.get_num_threads() and found["cuda"] == torch.version.cuda
    assert found["tf32"] is False and found["deterministic"] is False
    assert set(found) >= {"commit", "dirty", "blas", "processor", "machine", "system", "cores", "gpu", "argv"}


@pytest.mark.parametrize("allowed", [False, True])
def test_tf32_is_recorded_of_a_gpu_whichever_name_the_switch_has(monkeypatch, allowed):
    import torch

    from ufm.machine import tf32_switches

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    before = [(place, name, getattr(place, name)) for place, name, _ in tf32_switches()]
    try:
        for place, name, full in tf32_switches():
            setattr(place, name, full)
        if allowed:
            setattr(place, name, True if full is False else "tf32")
        assert environment("cuda:0")["tf32"] is allowed
        assert environment("cpu")["tf32"] is False
    finally:
        for place, name, value in before:
            setattr(place, name, value)


def test_the_commit_is_that_of_the_checkout():
    if not (ROOT / ".git").exists() or git("rev-parse", "HEAD").returncode:
        pytest.skip("this is no git checkout")
    provenance.source_state.cache_clear()
    before = git("rev-parse", "HEAD").stdout.strip()
    commit, dirty = provenance.source_state()
    after = git("rev-parse", "HEAD").stdout.strip()
    assert commit in (before, after) and dirty in (True, False)


def test_no_person_and_no_path_is_recorded():
    text = json.dumps(environment("cpu", argv=["/home/somebody/bin/ufm", "--out", "/home/somebody/runs"]))
    assert "somebody" not in text and str(ROOT) not in text and socket.gethostname() not in text.replace("vmlinuz", "")
    if len(getpass.getuser()) > 4:
        assert getpass.getuser() not in text


@pytest.mark.parametrize(
    "words, cleaned",
    [
        (["/usr/bin/ufm", "simulate", "single"], ["ufm", "simulate", "single"]),
        (["/x/ufm/__main__.py", "list"], ["ufm", "list"]),
        (["ufm", "--out", "/home/ann/runs/"], ["ufm", "--out", "runs"]),
        (["ufm", "--out=/home/ann/runs"], ["ufm", "--out=runs"]),
        (["ufm", "~/x.toml", "../ann/y", "C:\\Users\\ann\\z"], ["ufm", "x.toml", "y", "z"]),
        (["ufm", "/home/ann/a,/home/ann/b"], ["ufm", "a,b"]),
        (["ufm", "folder:/home/ann/pictures"], ["ufm", "folder:pictures"]),
        (["ufm", "--shard", "0/2", "--lambda-w", "1e-4:1e-1:3log"], ["ufm", "--shard", "0/2", "--lambda-w", "1e-4:1e-1:3log"]),
        (["ufm", "--counts", "5,5;6,6", "runs/a"], ["ufm", "--counts", "5,5;6,6", "runs/a"]),
    ],
)
def test_the_command_line_loses_its_folders(words, cleaned):
    assert clean_argv(words) == cleaned


def fake_git(folder, program):
    script = folder / "git"
    script.write_text(f"#!/bin/sh\n{program}\n")
    script.chmod(0o755)


@pytest.mark.parametrize("program", ["exit 1", "printf '\\377\\376'", "echo not-a-commit", "sleep 30", None])
def test_git_that_fails_is_unknown(tmp_path, monkeypatch, program):
    if program is not None:
        fake_git(tmp_path, program)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/bin" if program and program.startswith("sleep") else str(tmp_path))
    monkeypatch.setattr(provenance, "GIT_SECONDS", 0.2)
    provenance.source_state.cache_clear()
    assert provenance.source_state() == ("unknown", "unknown")
    monkeypatch.undo()
    provenance.source_state.cache_clear()


def test_git_is_asked_of_the_package_not_of_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
    provenance.source_state.cache_clear()
    if (ROOT / ".git").exists() and git("rev-parse", "HEAD").returncode == 0:
        assert provenance.source_state()[0] != "unknown"
    provenance.source_state.cache_clear()


def test_asking_does_not_load_torch():
    program = (
        "import sys; from ufm.provenance import environment; e = environment(); "
        "assert 'torch' not in sys.modules and e['tf32'] is None and e['libraries']['torch'], e"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
