"""Thousands of random requests in one process: each ends in an estimate or in one line, and none leaves anything behind."""

import dataclasses

import numpy as np
import pytest
from command_line import Shell

from ufm.commands.shared import Chosen, Working, load_system
from ufm.systems import SYSTEMS

VALUES = [
    "", " ", ",", ";", ":", "::", "0", "1", "-1", "-0.0", "2", "3", "1e-3", "1e-300", "1e300", "1e400", "-1e400",
    "nan", "inf", "-inf", "NaN", "0x10", "1_000", "１", "٣", "1e", "e1", "--", "-", "1,2", "1,1", "1,2,3", "1;2",
    "1,2;3,4", "1:2", "0:5", "5:0", "1:5:9", "1e-5:1e-1:4log", "0:1:3log", "1:1:3", "1:2:1", "1:2:-3", "1:2:1e9",
    "1:2:99999999999", "0:99999999999", "nan:1:3", "1:inf:3", "9" * 400, "1" + "0" * 5000, "ce", "mse", "focal",
    "none", "free", "ridge", "auto", "gd", "relu", "linear", "cpu", "cuda:77", "true", "True", "None", "null",
    "../../etc/passwd", "/dev/null", "/dev/zero", "/proc/self/mem", ".", "/", "~", "a\0b", "a\nb", "\x1b[31m",
    "\u202e", "\ud800", "%s%n", "{0}", "${HOME}", "$(id)", "`id`", "'; drop", "=1+1", "0/2", "1/2", "2/2", "-1/2",
    "0/0", "1/99999999999", "tcp://127.0.0.1:1", "lambda-w,lambda-h", "x" * 3000,
]  # fmt: skip


@pytest.fixture
def ufm(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def load():
        from ufm.cli import main

        return main

    return Shell("ufm", load, tmp_path, capsys)


def requests(number, seed):
    """Yield random command lines: the right options with wrong values, and sometimes options that do not exist."""
    rng = np.random.default_rng(seed)
    names = list(SYSTEMS)
    for _ in range(number):
        name = names[int(rng.integers(len(names)))]
        specs = (load_system(name).spec, Chosen, Working)
        fields = [f for spec in specs for f in dataclasses.fields(spec)]
        words = ["simulate", name, "--dry-run"]
        for index in rng.choice(len(fields), size=int(rng.integers(1, 4)), replace=False):
            field = fields[index]
            flag = "--" + field.name.replace("_", "-")
            if rng.random() < 0.02:
                flag += "x"
            words.append(flag)
            if field.metadata["kind"] != "flag":
                words.append(VALUES[int(rng.integers(len(VALUES)))])
        yield words


def attack(ufm, number, seed):
    codes = []
    for words in requests(number, seed):
        answer = ufm(*words)
        codes.append(answer.code)
        assert answer.code in (0, 2), (words, answer)
        assert "internal error" not in answer.err and "Traceback" not in answer.err, (words, answer)
        if answer.code == 2:
            assert answer.out == "" and answer.err.count("\n") == 1 and len(answer.err) < 900, (words, answer)
        assert ufm.created == [], words
    assert codes.count(2) > number // 2 and 0 in codes


def test_random_requests(ufm):
    attack(ufm, 400, 0)


@pytest.mark.torture
def test_five_thousand_random_requests(ufm):
    attack(ufm, 5000, 1)
