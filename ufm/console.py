"""What the three commands share: one-line errors with the right exit status, strict JSON on stdout, tables, safe text."""

from __future__ import annotations

import errno
import json
import math
import os
import signal
import sys
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NoReturn

import click

from ufm.errors import RequestError, RunError
from ufm.interrupt import Interrupted


def say(message: str) -> None:
    """Print a message for a person: to stderr, so that stdout stays data."""
    click.echo(safe_text(message), err=True)


def safe_text(text: Any) -> str:
    """Return one line of text without control characters, so that a name cannot drive the terminal."""
    return "".join(c if c == "\t" or not unicodedata.category(c).startswith("C") else "?" for c in str(text))


def plain(value: Any) -> Any:
    """Return a JSON-ready copy: arrays and tensors to lists, non-finite numbers to None."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def print_json(document: Any) -> None:
    """Print one strict JSON document on stdout."""
    click.echo(json.dumps(plain(document), allow_nan=False))


def format_number(value: Any) -> str:
    """Return a short readable form: 4 significant digits, '-' for what does not exist."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "-"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return safe_text(value)
    return str(value) if isinstance(value, int) else f"{value:.4g}"


def print_table(rows: Sequence[Mapping[str, Any]], columns: Iterable[str]) -> None:
    """Print rows as aligned columns on stdout; numbers to the right."""
    columns = list(columns)
    text = [[format_number(row.get(c)) for c in columns] for row in rows]
    widths = [max([len(c), *(len(line[i]) for line in text)]) for i, c in enumerate(columns)]
    right = [all(isinstance(row.get(c), (int, float, type(None))) for row in rows) for c in columns]
    for line in [columns, *text]:
        cells = (part.rjust(w) if r else part.ljust(w) for part, w, r in zip(line, widths, right, strict=True))
        click.echo("  ".join(cells).rstrip())


def run(load: Callable[[], click.Command], name: str, argv: Sequence[str] | None = None) -> NoReturn:
    """Run a command and exit with the contract's status: 0, 1 (failed), 2 (wrong request), 130 / 143 (signals)."""
    code = 1
    try:
        signal.signal(signal.SIGTERM, _terminate)
        result = load().main(args=argv, prog_name=name, standalone_mode=False)
        code = result if isinstance(result, int) and not isinstance(result, bool) else 0
        sys.stdout.flush()
    except (KeyboardInterrupt, click.exceptions.Abort):
        code = 128 + signal.SIGINT
    except Interrupted as stopped:
        if stopped.resume:
            say(f"stopped; everything finished is saved. To go on: {stopped.resume}")
        code = 128 + stopped.signum
    except click.exceptions.Exit as leave:
        code = leave.exit_code
    except Exception as error:
        if os.environ.get("UFM_TRACEBACK"):
            raise
        code, message = explain(error)
        say(f"error: {message}")
    _leave(code)


def _terminate(signum: int, frame: Any) -> NoReturn:
    raise Interrupted(signum)


def explain(error: Exception) -> tuple[int, str]:
    """Return (exit status, one line) for anything that went wrong."""
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        click.echo(error.format_message())
        return 2, "no command given; name one of the commands above"
    if isinstance(error, click.UsageError):
        command = error.ctx.command_path if error.ctx else ""
        return 2, f"{_one_line(error.format_message())} (see '{command} --help')"
    if isinstance(error, RequestError):
        return 2, _one_line(error)
    if isinstance(error, RunError):
        return 1, _one_line(error)
    if isinstance(error, OSError):
        where = f" {error.filename}" if error.filename else ""
        remedy = {errno.ENOSPC: "free some space", errno.EACCES: "check the permissions", errno.EROFS: "name another --out"}
        hint = remedy.get(error.errno or 0, "check the path")
        status = 2 if error.errno in (errno.EACCES, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EPERM) else 1
        return status, _one_line(f"{error.strerror or error}{where}; {hint}")
    if isinstance(error, MemoryError):
        return 1, "out of memory; use smaller sizes or fewer --workers"
    if isinstance(error, ModuleNotFoundError):
        return 1, f"the package {error.name!r} is not installed; pip install 'ufm[all]' brings every optional part"
    return 1, _one_line(f"internal error, please report it: {type(error).__name__}: {error} (UFM_TRACEBACK=1 shows where)")


def _one_line(message: object) -> str:
    return " ".join(str(message).split())


def _leave(code: int) -> NoReturn:
    try:
        sys.stdout.flush()
    except OSError:  # the reader of a pipe went away; that is not our failure
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)
