"""What the three commands share: one-line errors with the right exit status, strict JSON on stdout, tables, safe text."""

from __future__ import annotations

import errno
import json
import math
import os
import re
import select
import shutil
import signal
import sys
import time
import unicodedata
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import click

from ufm.errors import RequestError, RunError
from ufm.interrupt import Interrupted
from ufm.tables import Entry, load, suggest

_REMEDIES = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space or ask for more quota",
    errno.EFBIG: "raise the limit on the size of a file (`ulimit -f`)",
    errno.EACCES: "check the permissions",
    errno.EROFS: "name another --out",
    errno.EIO: "check the disk",
}
_MARKED = re.compile(r"-|-?[0-9.]+(e[-+][0-9]+)?[ *]")  # a number with a mark behind it


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


def print_table(rows: Sequence[Mapping[str, Any]], columns: Iterable[str], spare: Iterable[str] = ()) -> None:
    """Print rows as aligned columns on stdout; numbers to the right.

    `spare`: columns that a terminal which is too narrow does without, the widest first; a line below says which.
    """
    columns, spare, left_out = list(columns), set(spare), []
    text = {c: [format_number(row.get(c)) for row in rows] for c in columns}
    widths = {c: max([len(c), *map(len, text[c])]) for c in columns}
    room = shutil.get_terminal_size().columns if sys.stdout.isatty() else math.inf
    while sum(widths[c] + 2 for c in columns) - 2 > room and spare & set(columns):
        left_out.append(max(spare & set(columns), key=lambda c: (widths[c], c)))
        columns.remove(left_out[-1])
    right = {c: all(_is_number(row.get(c)) for row in rows) for c in columns}
    for i in range(-1, len(rows)):
        cells = ((text[c][i] if i >= 0 else c, widths[c], right[c]) for c in columns)
        click.echo("  ".join(part.rjust(w) if r else part.ljust(w) for part, w, r in cells).rstrip())
    if left_out:
        click.echo(f"(not shown for want of room: {', '.join(left_out)}; --json has everything)")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, type(None))) or (isinstance(value, str) and bool(_MARKED.fullmatch(value)))


class Progress:
    """A count on stderr for work over two seconds: a bar on a terminal, else a line now and then."""

    def __init__(self, total: int, unit: str, every: float = 10.0) -> None:
        """`every`: seconds between two lines where stderr is no terminal."""
        self.total, self.unit, self.done, self._every = total, unit, 0, every
        self._start = time.monotonic()
        self._next = self._start + 2.0
        self._bar: Any = None

    def advance(self, number: int = 1) -> None:
        """Count `number` more."""
        self.done += number
        if self._bar is not None:
            self._bar.update(number)
            return
        now = time.monotonic()
        if now < self._next or self.done >= self.total:
            return
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=self.total, initial=self.done, unit=self.unit, file=sys.stderr, leave=False)
            return
        self._next = now + self._every
        left = (now - self._start) / self.done * (self.total - self.done) if self.done else math.inf
        say(f"{self.done} of {self.total} {self.unit}s, about {left:.0f} s left")


@contextmanager
def progress(total: int, unit: str) -> Iterator[Progress]:
    """Yield a Progress; its bar is closed at the end, however that comes."""
    shown = Progress(total, unit)
    try:
        yield shown
    finally:
        if shown._bar is not None:
            shown._bar.close()


def reach(row: Mapping[str, Any], path: str) -> Any:
    """Return row["a"]["b"] for "a.b", None where there is nothing."""
    value: Any = row
    for part in path.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def examples(*pairs: tuple[str, str]) -> str:
    """Return the end of a help page: working commands and how long they take."""
    width = max(len(command) for command, _ in pairs)
    lines = [f"  {command.ljust(width)}  # {time_needed}" for command, time_needed in pairs]
    return "\b\nExamples:\n" + "\n".join(lines)


class Commands(click.Group):
    """A group whose commands are a table of entries, imported on use; an unknown name gets a suggestion."""

    def __init__(
        self,
        name: str,
        table: Mapping[str, Entry],
        *,
        help: str,
        epilog: str = "",
        what: str = "command",
        make: Callable[[str], click.Command] | None = None,
    ) -> None:
        """`table`: name -> Entry of a click.Command, or of a function that returns one given nothing; or `make` does, by name."""
        super().__init__(name=name, help=help, epilog=epilog)
        self.table, self.what, self.make = table, what, make

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Show the help where no command is named, as a wrong request: click 8.1 would call it a success."""
        if not args and not ctx.resilient_parsing:
            click.echo(ctx.get_help())
            ctx.fail(f"no {self.what} given; name one of those above")
        return super().parse_args(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the table in its order."""
        return list(self.table)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """Return the command, imported now; None for an unknown one."""
        if name not in self.table:
            return None
        if self.make is not None:
            return self.make(name)
        found = load(self.table, name, self.what)
        return found if isinstance(found, click.Command) else found()

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """Answer an unknown name with a suggestion."""
        if args and args[0] not in self.table and not args[0].startswith("-"):
            ctx.fail(f"unknown {self.what} {safe_text(args[0])[:60]!r}; {suggest(args[0], self.table)}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the table without importing any of it."""
        with formatter.section(f"{self.what.capitalize()}s"):
            formatter.write_dl([(name, entry.summary) for name, entry in self.table.items()])


def run(get: Callable[[], click.Command], name: str, argv: Sequence[str] | None = None) -> NoReturn:
    """Run a command and exit with the contract's status: 0, 1 (failed), 2 (wrong request), 130 / 143 (signals)."""
    code = 1
    try:
        _open_standard_streams()
        signal.signal(signal.SIGTERM, _terminate)
        warnings.showwarning = _show_warning
        result = get().main(args=argv, prog_name=name, standalone_mode=False)
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
    except SystemExit as leave:  # click's answer to a broken pipe; a reader who has seen enough is not our failure
        code = 0 if _reader_left() else leave.code if isinstance(leave.code, int) else 1
    except Exception as error:
        if os.environ.get("UFM_TRACEBACK"):
            raise
        code, message = explain(error)
        say(f"error: {message}")
    _leave(code)


def _show_warning(message: Any, category: type[Warning], *where: Any, **more: Any) -> None:
    """One line instead of Python's file, line number and source text."""
    say(f"warning: {_one_line(message)}")


def _terminate(signum: int, frame: Any) -> NoReturn:
    raise Interrupted(signum)


def explain(error: Exception) -> tuple[int, str]:
    """Return (exit status, one line) for anything that went wrong."""
    if isinstance(error, click.UsageError):
        command = error.ctx.command_path if error.ctx else ""
        return 2, f"{_one_line(error.format_message()).rstrip('.')} (see '{command} --help')"
    if isinstance(error, RequestError):
        return 2, _one_line(error)
    if isinstance(error, RunError):
        return 1, _one_line(error)
    if isinstance(error, OSError):
        where = f" {error.filename}" if error.filename else " on standard output" if _of_stdout(error) else ""
        hint = _REMEDIES.get(error.errno or 0, "check the path" if error.filename else "check the disk and the file system")
        status = (
            2 if error.errno in (errno.EACCES, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EPERM, errno.ENAMETOOLONG) else 1
        )
        return status, _one_line(f"{error.strerror or error}{where}; {hint}")
    if isinstance(error, MemoryError):
        return 1, "out of memory; use smaller sizes or fewer --workers"
    if isinstance(error, ModuleNotFoundError):
        return 1, f"the package {error.name!r} is not installed; pip install 'ufm[all]' brings every optional part"
    return 1, _one_line(f"internal error, please report it: {type(error).__name__}: {error} (UFM_TRACEBACK=1 shows where)")


def _of_stdout(error: OSError) -> bool:
    """Whether what failed was printing: every other write names its file."""
    where = error.__traceback__
    while where is not None and where.tb_next is not None:
        where = where.tb_next
    return where is not None and where.tb_frame.f_code in (click.echo.__code__, run.__code__)


def _reader_left() -> bool:
    """Whether stdout is a pipe that nobody reads any more."""
    try:
        asked = select.poll()
        asked.register(sys.stdout.fileno(), select.POLLOUT)
        return any(events & select.POLLERR for _, events in asked.poll(0))
    except (OSError, ValueError, AttributeError):  # no descriptor, or a system without poll
        return False


def _open_standard_streams() -> None:
    """Open what was closed (`>&-`) on the null device: else the next file opened would be written by whatever prints."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115


def _one_line(message: object) -> str:
    """One line, and no word of it longer than a path can be: a value of a megabyte is not repeated."""
    return re.sub(r"\S{300,}", lambda word: f"{word[0][:200]}...{word[0][-60:]}", " ".join(str(message).split()))[:1500]


def _leave(code: int) -> NoReturn:
    try:
        sys.stdout.flush()
    except OSError:  # the reader of a pipe went away; that is not our failure
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)
