"""The run folder: written whole or not at all, resumed, verified, and opened again on any machine.

Layout: RUNS/<system>/<name>-<hash>/ holds config.json and either the data of a sweep or one seed-K/ folder per training.
The hash is SHA-256 of the setting, so that the same request finds the same folder.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from ufm import files, identity
from ufm.errors import RequestError, RunError
from ufm.files import RunWarning, atomic_write
from ufm.identity import DIGITS, FORMAT, setting_hash
from ufm.seeds import check_seed

__all__ = ["FORMAT", "Run", "RunWarning", "atomic_write", "find_runs", "seed_folders", "setting_hash"]

UNSEALED = {"manifest.json", "done", "log.txt"}
_CODE = ("version", "commit", "dirty")  # a resume under another code version is a warning, and both are recorded


class Run:
    """One run folder, or one seed of it. `Run.create` writes (one writer at a time), `Run.open` reads."""

    def __init__(self, path: Path, document: Mapping[str, Any], seed: int | None, shard: tuple[int, int] | None) -> None:
        """Use `Run.create` or `Run.open`."""
        self.path, self.seed, self.shard = path, seed, shard
        self.setting_path = path if seed is None else path.parent
        self.system, self.name, self.hash = document["system"], document["name"], document["hash"]
        self.config: dict[str, Any] = document["setting"]
        self.environment: dict[str, Any] = {}
        self.watchers: list[Callable[[str, list[Mapping[str, Any]]], None]] = []  # told of rows once they are on disk
        self._lock: files.Lock | None = None
        self._manifest: dict[str, dict[str, Any]] | None = None
        self._started = False
        self._holds_whole = False

    # --- opening -------------------------------------------------------------------------------------------------

    @classmethod
    def create(
        cls,
        root: str | Path,
        system: str,
        name: str,
        config: Mapping[str, Any],
        *,
        seed: int | None = None,
        shard: tuple[int, int] | None = None,
        environment: Mapping[str, Any] | None = None,
    ) -> Run:
        """Open `root/system/name-<hash>` (with `seed`: its seed-K folder) for writing, made if it is not there.

        Args:
            root: the folder of all runs.
            system, name: plain names, [A-Za-z0-9][A-Za-z0-9._-]{0,99}.
            config: the resolved setting; what is in it identifies the run.
            seed: 0 <= seed < 2**32, for one folder per seed.
            shard: (I, N) with 0 <= I < N, for several writers of one sweep, each with its own files.
            environment: what `provenance.environment` returned; asked for when None.

        Raises:
            RequestError: a wrong name, seed, shard or config, or a root that cannot be written; nothing is created.
            RunError: another process writes it, or its config.json does not match its hash.
        """
        document = identity.document_of(system, name, config)
        if seed is not None:
            seed = check_seed(seed)
        _check_shard(shard)
        setting_path = Path(root) / system / f"{name}-{document['hash'][:DIGITS]}"
        path = setting_path if seed is None else setting_path / f"seed-{seed}"
        try:
            _check_writable(Path(root), path)
        except OSError as error:  # a name that is too long for the file system, for example
            raise _not_writable(path, error) from None
        if (setting_path / "config.json").exists():
            identity.check_same(identity.read_document(setting_path), document, setting_path)
        if environment is None:
            from ufm.provenance import environment as ask

            environment = ask()
        environment = files.load_json(files.dump_json(environment), "environment")  # refused before anything is made
        run = cls(path, document, seed, shard)
        run.environment = environment
        try:
            path.mkdir(parents=True, exist_ok=True)
            run._lock = files.Lock(path / run._own(".lock", ""))
        except OSError as error:
            raise _not_writable(path, error) from None
        try:
            run._prepare(document)
        except BaseException:
            run.close()
            raise
        return run

    def _prepare(self, document: Mapping[str, Any]) -> None:
        """Everything under the lock: config and environment if new, torn tails cut, left-over temporaries removed."""
        files.remove_stale_temporaries(self.path)
        if not (self.setting_path / "config.json").exists():
            atomic_write(self.setting_path / "config.json", files.dump_json(document, indent=1) + b"\n")
        if (self.path / self._own("env", ".json")).exists():
            self._earlier_environment()
        else:
            self._write_environment()
        for path in sorted(self.path.glob("*.jsonl")):
            if not path.is_symlink() and self._mine(path.name):
                self._repair(path)

    def _repair(self, path: Path) -> None:
        """Cut a line that a kill left torn; what the manifest vouches for is damaged, not torn, and stays as evidence."""
        size = path.stat().st_size
        if files.last_newline(path, size) == size:
            return
        sealed = self._sealed().get(path.name)
        if sealed is not None:
            identity.check_sealed(path, files.read_bytes(path), sealed)
        elif self.done:
            raise RunError(f"{path} is damaged (a torn line in a run that is done); restore it from a copy or delete the run")
        files.cut_torn_tail(path)

    @classmethod
    def open(cls, path: str | Path) -> Run:
        """Open a run folder (or its seed-K folder) for reading, wherever it was copied to.

        Raises:
            RequestError: there is no run at `path`.
            RunError: its config.json is damaged or does not match its hash; the differing keys are named.
        """
        path = Path(path)
        seed = _seed_of(path)
        setting_path = path if seed is None else path.parent
        if not (setting_path / "config.json").is_file():
            raise RequestError(f"{path} is no run folder (it has no config.json); name a folder such as runs/single/NAME-HASH")
        run = cls(path, identity.read_document(setting_path), seed, None)
        recorded = [path / "env.json", *sorted(path.glob("env-*-of-*.json"))]
        for env in recorded:
            if env.is_file():
                run.environment = run.read_json(env.name)
                break
        return run

    # --- reading -------------------------------------------------------------------------------------------------

    @property
    def done(self) -> bool:
        """Whether the run was finished."""
        return (self.path / "done").is_file()

    def read_json(self, file: str) -> Any:
        """Return the JSON document in `file`; RunError when it is damaged."""
        return files.load_json(self._read(file), self.path / file)

    def lines(self, file: str) -> list[bytes]:
        """Return the whole lines of a file ([] when it is not there); a torn last line is left out with a warning."""
        path = self.path / files.check_name(file, "file")
        if not path.exists() and not path.is_symlink() and file not in self._sealed():
            return []
        whole, newline, torn = self._read(file).rpartition(b"\n")
        if torn:
            warnings.warn(
                f"{path}: left out a last line that was not written to its end ({len(torn)} bytes)", RunWarning, stacklevel=2
            )
        return whole.split(b"\n") if newline else []

    def rows(self, file: str, *, skip: str = "") -> list[dict[str, Any]]:
        """Return the rows of a JSON-lines file ([] when it is not there); a torn last line is left out with a warning.

        `skip`: a record of numbers that the caller does not need; "gram" is half of a row and half of the time.
        """
        path, lines = self.path / file, self.lines(file)
        if skip:
            lines = [files.without(line, skip) for line in lines]
        with files.uncollected():
            rows = [files.load_json(line, f"{path}, line {number},") for number, line in enumerate(lines, 1)]
        for number, row in enumerate(rows, 1):
            if not isinstance(row, dict):
                raise RunError(f"{path}, line {number}, is not a row of named values; restore the file from a copy")
        return rows

    def read_tensors(self, file: str) -> dict[str, Any]:
        """Return the numpy arrays of a safetensors file by name; RunError when it is damaged."""
        import safetensors.numpy

        data = self._read(file)
        try:
            return dict(safetensors.numpy.load(data))
        except Exception as error:  # the library raises its own types, KeyError and ValueError for damaged headers
            raise RunError(
                f"{self.path / file} is not a readable safetensors file ({type(error).__name__}); restore it from a copy"
            ) from None

    def _read(self, file: str) -> bytes:
        """Read a file and check it against the manifest, if it is listed there."""
        path = self.path / files.check_name(file, "file")
        sealed = self._sealed().get(file)
        return files.read_bytes(path) if sealed is None or file in UNSEALED else identity.read_sealed(path, sealed)

    def _sealed(self) -> dict[str, dict[str, Any]]:
        if self._manifest is None:
            self._manifest = identity.read_manifest(self.path)
            if not self._manifest and self.done:
                raise RunError(
                    f"{self.path / 'manifest.json'} is missing though the run is done; restore it from a copy, "
                    "or remove 'done' and run the command again"
                )
        return self._manifest

    def verify(self) -> None:
        """Check every file of a finished run against its manifest; RunError naming the first bad one."""
        for message in self.damage().values():
            raise RunError(message)

    def damage(self) -> dict[str, str]:
        """Return file -> what is wrong with it, of a finished run against its manifest; {} when all is as it was."""
        self._manifest = None
        try:
            manifest = self._sealed()
            if self.done and files.read_bytes(self.path / "done") != _mark_of(files.read_bytes(self.path / "manifest.json")):
                raise RunError(
                    f"{self.path / 'done'} does not match manifest.json; restore both from a copy, "
                    "or remove both and run the command again"
                )
        except RunError as error:
            return {"manifest.json": str(error)}
        found = {}
        for file, sealed in sorted(manifest.items()):
            try:
                identity.read_sealed(self.path / file, sealed, done=self.done)
            except (RunError, OSError) as error:
                found[file] = str(error)
        return found

    # --- writing -------------------------------------------------------------------------------------------------

    def append(self, file: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append rows as whole JSON lines, flushed to disk before this returns. NaN is refused: store null and a reason."""
        rows = list(rows)
        data = files.join_lines(rows)
        if data:
            files.append(self._begin(file), data)
        for watcher in self.watchers:
            watcher(file, rows)

    def truncate(self, file: str, keep_lines: int) -> None:
        """Cut a JSON-lines file back to its first `keep_lines` lines, as a resume from a checkpoint does."""
        path = self._begin(file)
        data = files.read_bytes(path) if path.exists() or keep_lines else b""
        lines = data.splitlines(keepends=True)
        if len(lines) < keep_lines or (keep_lines and not lines[keep_lines - 1].endswith(b"\n")):
            raise RunError(
                f"{path} has {data.count(bytes([10]))} whole lines of the {keep_lines} expected; restore it from a copy"
            )
        self._unseal(file)
        if len(lines) > keep_lines:
            files.cut(path, sum(map(len, lines[:keep_lines])))

    def write_json(self, file: str, value: Any) -> None:
        """Write `value` as strict JSON, atomically."""
        data = files.dump_json(value, indent=1) + b"\n"
        self._replace(file, data)

    def write_tensors(self, file: str, tensors: Mapping[str, Any]) -> None:
        """Write named arrays (numpy, or CPU tensors) as safetensors, atomically."""
        import numpy as np
        import safetensors.numpy

        arrays = {name: np.ascontiguousarray(np.asarray(value)) for name, value in tensors.items()}
        self._replace(file, safetensors.numpy.save(arrays))

    def write_bytes(self, file: str, data: bytes) -> None:
        """Write raw bytes, atomically."""
        self._replace(file, data)

    def log(self, message: str) -> None:
        """Add one line to log.txt."""
        files.append(self._begin("log.txt"), (" ".join(message.split()) + "\n").encode("utf-8", "replace"))

    def finish(self, result: Mapping[str, Any]) -> None:
        """Write result.json, the manifest and, last, `done`.

        Of a sharded sweep each shard leaves its own result; whoever comes last joins them and writes `done`.
        """
        result = files.json_ready(result)
        self.write_json(self._own("result", ".json"), result)
        if self.shard is None:
            return self._seal()
        number = self.shard[1]
        with self._whole_run():
            parts = [self.path / f"result-{i}-of-{number}.json" for i in range(number)]
            if not all(part.is_file() for part in parts):
                return
            self._manifest = None  # another shard may have sealed since
            joined = [self.read_json(part.name) for part in parts]
            if len({part.get("request") for part in joined}) == 1:  # else some belong to an earlier, smaller request
                self.write_json("result.json", {"status": _worst(joined), "shards": joined})
                self._seal()

    def _seal(self) -> None:
        listed = {
            path.name: identity.seal_of(files.read_bytes(path))
            for path in sorted(self.path.iterdir())
            if path.is_file() and not path.is_symlink() and path.name[0] != "." and path.name not in UNSEALED
        }
        if self.seed is not None:
            listed["../config.json"] = identity.seal_of(files.read_bytes(self.setting_path / "config.json"))
        data = files.dump_json({"run_format": FORMAT, "files": listed}, indent=1) + b"\n"
        atomic_write(self.path / "manifest.json", data)
        atomic_write(self.path / "done", _mark_of(data))
        self._manifest, self._started = None, False

    @contextlib.contextmanager
    def _whole_run(self) -> Iterator[None]:
        """Hold the run's own lock for what shards share, the manifest and `done`; who writes the whole run holds it already."""
        if self.shard is None or self._holds_whole:
            yield
            return
        lock = files.Lock(self.path / ".lock", wait=True)
        self._holds_whole = True
        try:
            yield
        finally:
            self._holds_whole = False
            lock.release()

    def close(self) -> None:
        """Free the writer's lock."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def __enter__(self) -> Run:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _own(self, stem: str, suffix: str) -> str:
        """Return the name of this writer's own file: `env.json`, or `env-I-of-N.json` of a shard."""
        part = "" if self.shard is None else f"-{self.shard[0]}-of-{self.shard[1]}"
        return f"{stem}{part}{suffix}"

    def _mine(self, file: str) -> bool:
        shard = re.search(r"-(\d+)-of-(\d+)\.", file)
        return (self.shard is None) if shard is None else self.shard == (int(shard[1]), int(shard[2]))

    def _begin(self, file: str) -> Path:
        """Before the first change: the run is not done any more, and the code that changes it is recorded."""
        path = self.path / files.check_name(file, "file")
        if self._lock is None:
            raise RunError(f"{self.path} was opened for reading; use Run.create to write")
        if not self._started:
            with self._whole_run():
                if self.done:
                    os.unlink(self.path / "done")
                    files.sync_folder(self.path)
            self._write_environment()
            self._started = True
        return path

    def _replace(self, file: str, data: bytes) -> None:
        path = self._begin(file)
        self._unseal(file)
        atomic_write(path, data)

    def _unseal(self, file: str) -> None:
        """Take a file that is about to be replaced out of the manifest; appended files keep their sealed beginning."""
        if file not in self._sealed():
            return
        with self._whole_run():
            kept = {name: value for name, value in identity.read_manifest(self.path).items() if name != file}
            atomic_write(self.path / "manifest.json", files.dump_json({"run_format": FORMAT, "files": kept}, indent=1) + b"\n")
            self._manifest = kept

    def _earlier_environment(self) -> None:
        """Keep what an earlier session recorded; another code version is a warning."""
        file = self._own("env", ".json")
        old = self.read_json(file)
        if not isinstance(old, dict):
            raise RunError(f"{self.path / file} is not a record of an environment; restore it from a copy")
        earlier = old.pop("earlier", [])
        if any(old.get(key) != self.environment.get(key) for key in _CODE):
            warnings.warn(
                f"{self.path.name}: begun by version {old.get('version')} commit {old.get('commit')}, "
                f"now {self.environment.get('version')} commit {self.environment.get('commit')}; both are recorded",
                RunWarning,
                stacklevel=4,
            )
            earlier = [*earlier, old]
        if earlier:
            self.environment["earlier"] = earlier

    def _write_environment(self) -> None:
        file = self._own("env", ".json")
        data = files.dump_json(self.environment, indent=1) + b"\n"
        path = self.path / file
        if not path.exists() or files.read_bytes(path) != data:
            self._unseal(file)
            atomic_write(path, data)


# --- checks ------------------------------------------------------------------------------------------------------


def _check_shard(shard: tuple[int, int] | None) -> None:
    if shard is None:
        return
    index, number = shard
    if not 0 <= index < number:
        raise RequestError(f"shard {index}/{number} does not exist; use I/N with 0 <= I < N, for example 0/{max(number, 1)}")


def _check_writable(root: Path, path: Path) -> None:
    """Raise RequestError if `path` cannot be made or written, or leads out of `root` by a link; creates nothing."""
    existing = path
    while not existing.exists():
        if existing.is_symlink():
            raise RequestError(f"{existing} is a link to nothing; remove it or name another --out")
        existing = existing.parent
    if not existing.is_dir():
        raise RequestError(f"{existing} is a file where a folder is needed; remove it or name another --out")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise RequestError(f"{existing} is not writable; check its permissions or name another --out")
    if root.exists() and not path.resolve().is_relative_to(root.resolve()):
        raise RequestError(f"{path} leads out of {root} by a link; remove the link or name another --out")


def _not_writable(place: Path, error: OSError) -> Exception:
    path = str(place) if len(str(place)) < 200 else f"...{str(place)[-190:]}"
    if error.errno in (errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EFBIG, errno.EMFILE, errno.ENFILE):
        return RunError(f"{path} cannot be written ({error.strerror}); free some space or name another --out")
    return RequestError(f"{path} cannot be written ({error.strerror or error}); name another --out")


def _mark_of(manifest: bytes) -> bytes:
    """Return the content of `done`."""
    return f"{files.digest(manifest)}\n".encode()


def _worst(results: Sequence[Any]) -> Any:
    """Return the status of a whole from those of its shards: the first that is not that of the rest."""
    statuses = [result.get("status") for result in results if isinstance(result, dict)]
    bad = [status for status in statuses if status not in ("done", "converged")]
    return bad[0] if bad else (statuses[0] if statuses else None)


def _seed_of(path: Path) -> int | None:
    match = re.fullmatch(r"seed-(\d{1,10})", path.name)
    return int(match[1]) if match and not (path / "config.json").exists() else None


# --- finding -----------------------------------------------------------------------------------------------------


def find_runs(paths: str | Path | Iterable[str | Path]) -> list[Path]:
    """Return every folder with a config.json at or below `paths`, sorted; RequestError for a path that does not exist.

    A seed-K folder stands for the setting it belongs to. Links below a path are not followed.
    """
    found: set[Path] = set()
    for given in [paths] if isinstance(paths, (str, Path)) else paths:
        path = Path(given)
        if not path.is_dir():
            raise RequestError(f"{path} is no folder; name a run folder or the folder of all runs")
        if _seed_of(path) is not None and (path.parent / "config.json").is_file():
            found.add(path.parent)
            continue
        found.update(identity.listed_settings(path))
        for folder, inner, names in os.walk(path):
            if "config.json" in names:
                found.add(Path(folder))
                inner.clear()  # nothing below a setting is another setting
            inner[:] = [name for name in inner if not name.startswith(".")]
    return sorted(found)


def seed_folders(setting: str | Path) -> list[Path]:
    """Return the seed-K folders of a setting, by K."""
    folders = [p for p in Path(setting).iterdir() if p.is_dir() and re.fullmatch(r"seed-\d{1,10}", p.name)]
    return sorted(folders, key=lambda p: int(p.name[5:]))
