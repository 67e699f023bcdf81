"""Files that survive kills and full disks: atomic writes, whole appended lines, strict JSON, one writer by flock.

Every write in this package goes through here. Reading never unpickles and never follows a link out of a run folder.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import gc
import hashlib
import json
import os
import re
import secrets
import socket
import stat
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ufm.errors import RequestError, RunError

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None  # type: ignore[assignment]

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
UNSUPPORTED = (errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOLCK, errno.EINVAL)
NOFOLLOW = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)


class RunWarning(UserWarning):
    """Something was repaired or left out; the command line prints it as one line."""


def check_name(name: str, what: str = "name") -> str:
    """Return `name` if it is one plain file name ([A-Za-z0-9][A-Za-z0-9._-]{0,99}), else raise RequestError."""
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise RequestError(
            f"{what} {str(name)[:120]!r} is not a plain name; use 1 to 100 letters, digits, '.', '_', '-', letter or digit first"
        )
    return name


# --- strict JSON -------------------------------------------------------------------------------------------------


def json_ready(value: Any) -> Any:
    """Return `value` with numpy scalars and arrays, tuples and mappings as plain JSON types; numbers are unchanged."""
    if isinstance(value, (str, bool, int, float)) or value is None:
        # A subclass (numpy.float64, a str enum) must not leak into the text.
        return value if type(value) in (str, bool, int, float, type(None)) else _base(value)
    if isinstance(value, Mapping):
        return {str(k): json_ready(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_ready(v) for v in value]
    if hasattr(value, "tolist"):
        return value.tolist()
    raise RequestError(f"a value of type {type(value).__name__} cannot be stored as JSON; convert it to a number, text or list")


def _base(value: Any) -> Any:
    for kind in (str, int, float):
        if isinstance(value, kind):
            return kind.__str__(value) if kind is str else kind(value)
    return value


def dump_json(value: Any, *, indent: int | None = None, sort: bool = False) -> bytes:
    """Return strict JSON as ASCII bytes with full-precision numbers; RequestError for NaN, infinities, foreign types."""
    try:
        separators = (",", ": ") if indent else (",", ":")
        text = json.dumps(json_ready(value), allow_nan=False, indent=indent, separators=separators, sort_keys=sort)
        return text.encode("ascii")
    except ValueError as error:
        if isinstance(error, RequestError):
            raise
        raise RequestError(
            f"not storable as strict JSON ({error}); store a missing value as null with a reason beside it"
        ) from None


def _finite(text: str) -> float:
    number = float(text)
    if number - number != 0:  # 1e999 would come back as infinity
        raise ValueError(f"{text[:20]} is not a finite number")
    return number


def _constant(text: str) -> float:
    raise ValueError(f"{text} is not strict JSON")


def _no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a key occurs twice")
    return made


_STRICT = json.JSONDecoder(parse_constant=_constant, object_pairs_hook=_no_twins).decode
_CAREFUL = json.JSONDecoder(parse_constant=_constant, parse_float=_finite, object_pairs_hook=_no_twins).decode
_SHAPE = bytes.maketrans(b"123456789E", b"000000000e")
_LONG = b"0" * 200


def load_json(data: bytes, where: object) -> Any:
    """Parse strict JSON; RunError naming `where` when it is not (NaN, twice the same key, too deep, not UTF-8)."""
    try:
        # Only 200 digits or an exponent of three can be infinite; to ask every number takes as long as to parse it.
        shape = data.translate(_SHAPE, b"+")
        return (_CAREFUL if b"0e000" in shape or _LONG in shape else _STRICT)(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)[:160]
        raise RunError(f"{where} is not valid JSON ({reason}); restore it from a copy or remove it") from None


def without(line: bytes, record: str) -> bytes:
    """Return a JSON line without the record of that name, if it holds nothing but lists of numbers; else the line as it is."""
    return _record_of_numbers(record).sub(b"", line, 1)


@functools.lru_cache
def _record_of_numbers(name: str) -> re.Pattern[bytes]:
    # A quotation mark inside a text is written \", so that this can only be a key.
    return re.compile(rb',"%s":\{(?:"\w+":\[[-+0-9eE.,]*\],?)*\}' % name.encode())


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Pause the garbage collector while much is read: parsed rows hold no cycles, and to look for them doubles the time."""
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if running:
            gc.enable()


# --- writing -----------------------------------------------------------------------------------------------------


def _host() -> str:
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Let an OSError name the file that was to be written: a failed write names none, and a temporary name says nothing."""
    try:
        yield
    except OSError as error:
        error.filename, error.filename2 = os.fspath(path), None
        raise


def atomic_write(path: Path | str, data: bytes) -> None:
    """Write `path` so that a reader, a kill or a full disk finds the old content or the new, never a mixture.

    A temporary name in the same folder, flush to disk, rename, flush of the folder. Raises OSError; the old file stays.
    """
    path = Path(path)
    with _naming(path):
        _write_and_rename(path, data)


def _write_and_rename(path: Path, data: bytes) -> None:
    temporary = path.parent / f".{path.name}.{_host()}-{os.getpid()}-{secrets.token_hex(4)}.tmp"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | NOFOLLOW, 0o666)
    try:
        try:
            write_all(descriptor, data)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    sync_folder(path.parent)


def write_all(descriptor: int, data: bytes) -> None:
    """Write all of `data`: os.write may stop early."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries, without which a renamed file may be gone after a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in UNSUPPORTED:  # some file systems cannot flush a folder
            raise
    finally:
        os.close(descriptor)


def append(path: Path, data: bytes) -> None:
    """Append `data` and flush it; on a failure (no space) the file is cut back to what it was."""
    with _naming(path):
        _append(path, data)


def _append(path: Path, data: bytes) -> None:
    created = not path.exists()
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | NOFOLLOW, 0o666)
    try:
        size = os.fstat(descriptor).st_size
        try:
            write_all(descriptor, data)
            os.fsync(descriptor)
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(descriptor, size)
            raise
    finally:
        os.close(descriptor)
    if created:
        sync_folder(path.parent)


def cut(path: Path, size: int) -> None:
    """Cut `path` back to `size` bytes and flush it."""
    with _naming(path):
        descriptor = os.open(path, os.O_WRONLY | NOFOLLOW)
        try:
            os.ftruncate(descriptor, size)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def cut_torn_tail(path: Path) -> int:
    """Cut a file of lines back to its last newline, with a warning; return the number of bytes cut (0: it was whole)."""
    size = path.stat().st_size
    keep = last_newline(path, size)
    if keep < size:
        cut(path, keep)
        warnings.warn(
            f"{path.name}: cut {size - keep} bytes of a last line that was not written to its end", RunWarning, stacklevel=2
        )
    return size - keep


def last_newline(path: Path, size: int) -> int:
    """Return the length of `path` up to and including its last newline."""
    with open(path, "rb") as file:
        end = size
        while end > 0:
            start = max(0, end - 65536)
            file.seek(start)
            found = file.read(end - start).rfind(b"\n")
            if found >= 0:
                return start + found + 1
            end = start
    return 0


def remove_stale_temporaries(folder: Path) -> None:
    """Remove what killed writers of this machine left; files of living processes and of other machines stay."""
    pattern = re.compile(rf"\..+\.{_host()}-(\d+)-[0-9a-f]{{8}}\.tmp")
    for path in folder.iterdir():
        match = pattern.fullmatch(path.name)
        if match and not _alive(int(match[1])):
            with contextlib.suppress(OSError):
                os.unlink(path)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


# --- reading -----------------------------------------------------------------------------------------------------


def read_bytes(path: Path) -> bytes:
    """Return the bytes of a regular file that is no link; RunError when it is missing or anything else."""
    try:
        descriptor = os.open(path, os.O_RDONLY | NOFOLLOW | getattr(os, "O_NONBLOCK", 0))
    except FileNotFoundError:
        raise RunError(f"{path} is missing; run the command again or restore the file from a copy") from None
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EMLINK):
            raise RunError(f"{path} is a symbolic link; replace it by the file itself") from None
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise RunError(f"{path} is not a regular file; replace it by the file itself")
    with open(descriptor, "rb") as file:
        return file.read()


def digest(data: bytes) -> str:
    """Return the SHA-256 of `data` in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def join_lines(rows: Iterable[Mapping[str, Any]]) -> bytes:
    """Return rows as JSON lines, each ending in a newline."""
    return b"".join(dump_json(row) + b"\n" for row in rows)


# --- one writer --------------------------------------------------------------------------------------------------

_said: set[str] = set()


class Lock:
    """An exclusive flock on `path` that the kernel frees when the process ends; the file itself is never deleted."""

    def __init__(self, path: Path, *, wait: bool = False) -> None:
        """Take the lock; RunError naming the holder if it is taken and `wait` is false."""
        self.path = path
        self._held = False
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | NOFOLLOW, 0o666)
        try:
            self._take(wait)
        except BaseException:
            self.release()
            raise

    def _take(self, wait: bool) -> None:
        if fcntl is None:
            return _no_flock()
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            holder = os.pread(self._descriptor, 200, 0).decode("utf-8", "replace").strip()
            raise RunError(
                f"{self.path.parent} is being written by {holder or 'another process'}; wait for it or stop it"
            ) from None
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise
            return _no_flock()
        self._held = True
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)

    def release(self) -> None:
        """Free the lock; again is harmless."""
        if self._descriptor >= 0:
            with contextlib.suppress(OSError):
                if self._held:
                    os.ftruncate(self._descriptor, 0)  # a copied run folder should not carry a machine's name
                    # A process forked meanwhile has a copy of the descriptor until it execs: closing ours would not free it.
                    fcntl.flock(self._descriptor, fcntl.LOCK_UN)
            os.close(self._descriptor)
            self._descriptor = -1


def _no_flock() -> None:
    if "flock" not in _said:
        _said.add("flock")
        warnings.warn(
            "this file system has no flock: start only one process per run; files stay whole by renames",
            RunWarning,
            stacklevel=4,
        )
