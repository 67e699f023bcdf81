"""Running a command inside the test process, exactly as the console script does."""

import json
import os
import signal
from typing import NamedTuple

import pytest

from ufm import console


class Answer(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def json(self):
        return json.loads(self.out, parse_constant=pytest.fail)


class Shell:
    """Runs a command in an empty folder; `created` lists what it left there."""

    def __init__(self, name, load, folder, capsys):
        self.name, self.load, self.folder, self.capsys = name, load, folder, capsys

    def __call__(self, *words):
        before = signal.getsignal(signal.SIGTERM)
        self.capsys.readouterr()
        try:
            with pytest.raises(SystemExit) as left:
                console.run(self.load, self.name, [str(word) for word in words])
        finally:
            signal.signal(signal.SIGTERM, before)
        out, err = self.capsys.readouterr()
        return Answer(int(left.value.code or 0), out, err)

    @property
    def created(self):
        return sorted(os.listdir(self.folder))

    def refuses(self, *words):
        """Run a wrong request: exit 2, one line on stderr, nothing on stdout, nothing created; return the line."""
        before = self.created
        answer = self(*words)
        lines = answer.err.splitlines()
        assert answer.code == 2, (words, answer)
        assert answer.out == "" and len(lines) == 1 and lines[0].startswith("error: "), (words, answer)
        assert "Traceback" not in answer.err and "internal error" not in answer.err and len(answer.err) < 700, (words, answer)
        assert self.created == before, (words, self.created)
        return lines[0]
