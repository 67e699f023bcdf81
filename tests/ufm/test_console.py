import errno
import io
import json
import os
import subprocess
import sys
import time
import warnings

import click
import numpy as np
import pytest
from command_line import Shell

from ufm import console
from ufm.console import Commands, Progress, examples, format_number, plain, print_table, reach, safe_text
from ufm.errors import RequestError, RunError
from ufm.interrupt import Interrupted
from ufm.tables import Entry


def shell(function, tmp_path, capsys):
    return Shell("tool", lambda: click.command("tool")(function), tmp_path, capsys)


@pytest.mark.parametrize(
    "error, code, words",
    [
        (RequestError("x 3 is wrong;\nuse 4"), 2, "x 3 is wrong; use 4"),
        (RunError("it broke"), 1, "it broke"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/a/b"), 1, "No space left on device /a/b; free some space"),
        (OSError(errno.EACCES, os.strerror(errno.EACCES), "/a/b"), 2, "Permission denied /a/b; check the permissions"),
        (OSError(errno.EROFS, os.strerror(errno.EROFS), "/a/b"), 2, "Read-only file system /a/b; name another --out"),
        (OSError(errno.EIO, os.strerror(errno.EIO)), 1, "check the disk"),
        (MemoryError(), 1, "out of memory; use smaller sizes"),
        (ModuleNotFoundError("No module named 'mlxtend'", name="mlxtend"), 1, "'mlxtend' is not installed"),
        (ZeroDivisionError("division by zero"), 1, "internal error, please report it: ZeroDivisionError"),
        (click.UsageError("no such thing"), 2, "no such thing"),
        (click.exceptions.Abort(), 130, ""),
        (KeyboardInterrupt(), 130, ""),
        (Interrupted(15, "ufm again"), 143, "To go on: ufm again"),
        (Interrupted(2), 130, ""),
        (click.exceptions.Exit(3), 3, ""),
    ],
)
def test_every_end_has_its_status_and_at_most_one_line(tmp_path, capsys, error, code, words):
    def body():
        raise error

    answer = shell(body, tmp_path, capsys)()
    assert answer.code == code and answer.out == "" and words in answer.err
    assert answer.err.strip().count("\n") == 0 and bool(answer.err.strip()) == bool(words) and "Traceback" not in answer.err


def test_a_returned_number_is_the_status(tmp_path, capsys):
    assert shell(lambda: 1, tmp_path, capsys)().code == 1
    assert shell(lambda: None, tmp_path, capsys)().code == 0
    assert shell(lambda: True, tmp_path, capsys)().code == 0


def test_warnings_are_one_line_without_a_place(tmp_path, capsys):
    def body():
        warnings.simplefilter("always")
        warnings.warn("one\ntwo", UserWarning, stacklevel=1)

    with warnings.catch_warnings():
        answer = shell(body, tmp_path, capsys)()
    assert answer == (0, "", "warning: one two\n")


@pytest.mark.skipif(sys.platform == "win32", reason="pipes of POSIX systems")
def test_a_closed_pipe_is_no_error():
    program = (
        "import click; from ufm import console\n"
        "@click.command()\ndef c():\n    for i in range(100000): click.echo('x' * 100)\n"
        "console.run(lambda: c, 'c', [])"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.readline()
    process.stdout.close()
    err = process.stderr.read()
    process.stderr.close()
    process.wait(30)
    assert "Traceback" not in err and "Exception" not in err and process.returncode in (0, 1)


def test_safe_text_keeps_letters_and_drops_what_drives_a_terminal():
    assert safe_text("Kaiser-Größe λ 数") == "Kaiser-Größe λ 数"
    assert safe_text("\x1b[2Jx\r\ny\u202ez\x07\ud800") == "?[2Jx??y?z??"


def test_plain_is_json_ready():
    import torch

    value = {
        "a": np.float64(1.5),
        "b": [np.nan, float("inf"), 1],
        3: torch.tensor([1.0, float("nan")]),
        "c": (np.int64(2), None, True),
    }
    assert plain(value) == {"a": 1.5, "b": [None, None, 1], "3": [1.0, None], "c": [2, None, True]}
    json.dumps(plain(value), allow_nan=False)


def test_a_narrow_terminal_does_without_the_widest_columns(capsys, monkeypatch):
    rows = [{"cell": "a=1", "loss": 0.5, "a_long_name": 1.0, "name": 2.0, "status": "converged"}]
    spare = ("a_long_name", "name")
    print_table(rows, rows[0], spare=spare)
    whole = capsys.readouterr().out
    assert "a_long_name" in whole and "room" not in whole  # a file has any width
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    for width, left in ((80, ""), (35, "a_long_name"), (24, "a_long_name, name"), (5, "a_long_name, name")):
        monkeypatch.setenv("COLUMNS", str(width))
        print_table(rows, rows[0], spare=spare)
        out = capsys.readouterr().out
        assert out.splitlines()[2:] == ([f"(not shown for want of room: {left}; --json has everything)"] if left else [])
        assert width < 24 or max(map(len, out.splitlines()[:2])) <= width


def test_a_marked_number_stays_to_the_right(capsys):
    print_table([{"x": "0.5*"}, {"x": "1.25e-05 "}, {"x": None}], ["x"])
    assert capsys.readouterr().out.splitlines() == ["        x", "     0.5*", "1.25e-05", "        -"]


def test_numbers_and_tables(capsys):
    assert [format_number(v) for v in (None, float("nan"), 1.23456, 7, True, "a\x1b", 1e-12)] == [
        "-",
        "-",
        "1.235",
        "7",
        "True",
        "a?",
        "1e-12",
    ]
    print_table([{"name": "a", "value": 1.5}, {"name": "bb", "value": None}], ["name", "value"])
    assert capsys.readouterr().out == "name  value\na       1.5\nbb        -\n"
    print_table([], ["name"])
    assert capsys.readouterr().out == "name\n"


def test_reach():
    row = {"a": {"b": {"c": 3}}, "x": 1}
    assert reach(row, "a.b.c") == 3 and reach(row, "x") == 1
    assert reach(row, "a.z") is None and reach(row, "x.y") is None


def test_progress_is_silent_for_two_seconds_and_then_speaks_on_stderr(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    shown = Progress(100, "cell")
    now[0] = 1.9
    shown.advance(10)
    assert capsys.readouterr().err == ""
    now[0] = 4.0
    shown.advance(10)
    captured = capsys.readouterr()
    assert captured.err == "20 of 100 cells, about 16 s left\n" and captured.out == ""
    now[0] = 6.0
    shown.advance(10)
    assert capsys.readouterr().err == ""
    now[0] = 14.5
    shown.advance(10)
    assert capsys.readouterr().err.startswith("40 of 100")


def test_progress_on_a_terminal_is_a_bar(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    now = [0.0]
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    with console.progress(100, "cell") as shown:
        now[0] = 3.0
        shown.advance(10)
        shown.advance(10)
    assert "10/100" in terminal.getvalue()


# --- groups --------------------------------------------------------------------------------------------------------

GROUP = Commands(
    "tool",
    {"first": Entry("test_console:first", "the first"), "second": Entry("no.such.module:x", "the second")},
    help="A tool.",
    epilog=examples(("tool first", "1 s"), ("tool first --longer", "2 min")),
)


@click.command("first")
def first():
    click.echo("ran")


def test_a_group_lists_without_importing_and_runs_by_name(tmp_path, capsys):
    tool = Shell("tool", lambda: GROUP, tmp_path, capsys)
    page = tool("--help")
    assert page.code == 0 and "the second" in page.out and "  tool first           # 1 s" in page.out
    assert tool("first").out == "ran\n"
    assert "did you mean 'first'" in tool.refuses("frist")
    assert tool.refuses("--nothing")
    answer = tool()
    assert answer.code == 2 and answer.out.startswith("Usage: tool")
    assert tool("second").code == 1  # a package that is not there


PRINTER = """
import sys, click
from ufm import console

@click.command()
def main():
    for _ in range(2000):
        click.echo("a line that nobody reads " * 4)

console.run(lambda: main, "tool", [])
"""


def printing(**streams):
    return subprocess.run([sys.executable, "-c", PRINTER], timeout=60, **streams)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs POSIX pipes")
def test_a_reader_that_has_seen_enough_is_no_failure():
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = printing(stdout=writing, stderr=subprocess.PIPE)
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_behind_stdout_is_named():
    with open("/dev/full", "wb") as full:
        done = printing(stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 1
    assert done.stderr == b"error: No space left on device on standard output; free some space\n"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs POSIX descriptors")
def test_closed_streams_are_the_null_device(tmp_path):
    """Without that the first file that a command opens is what everything prints into."""
    script = tmp_path / "script.py"
    script.write_text(
        PRINTER.replace("    for _", f"    file = open({str(tmp_path / 'x')!r}, 'w')\n    assert file.fileno() > 2\n    for _")
    )
    done = subprocess.run(["sh", "-c", 'exec "$0" "$1" <&- >&- 2>&-', sys.executable, str(script)], timeout=60)
    assert done.returncode == 0 and (tmp_path / "x").read_bytes() == b""
