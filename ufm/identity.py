"""What a run folder is checked against: the hash of its setting (config.json) and of its files (manifest.json)."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ufm import files
from ufm.errors import RequestError, RunError

FORMAT = 1  # of the run folder; every released format opens for ever
DIGITS = 12  # of the hash in a folder's name
_HASHED = re.compile(rf"(.+)-([0-9a-f]{{{DIGITS}}})")


def setting_hash(config: Mapping[str, Any]) -> str:
    """Return the SHA-256 (64 hex digits) of `config` as strict JSON with sorted keys."""
    return files.digest(files.dump_json(config, sort=True))


def document_of(system: str, name: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of a new config.json; RequestError for a wrong name or a setting that is no strict JSON."""
    files.check_name(system, "system")
    files.check_name(name, "run name")
    if not isinstance(config, Mapping):
        raise RequestError(f"a run's config is a mapping of names to values, not {type(config).__name__}")
    setting = files.load_json(files.dump_json(config), "config")
    marks = {key: setting_hash({key: value})[:8] for key, value in setting.items()}
    return {
        "run_format": FORMAT,
        "system": system,
        "name": name,
        "hash": setting_hash(setting),
        "setting": setting,
        "marks": marks,
    }


def read_document(setting_path: Path) -> dict[str, Any]:
    """Read config.json and check it against its own hash, its keys' marks and the folder's name."""
    path = setting_path / "config.json"
    document = files.load_json(files.read_bytes(path), path)
    kinds = {"run_format": int, "system": str, "name": str, "hash": str, "setting": dict, "marks": dict}
    for key, kind in kinds.items():
        if not isinstance(document, dict) or type(document.get(key)) is not kind:
            raise RunError(f"{path} lacks a proper {key!r}; restore it from a copy")
    if document["run_format"] > FORMAT:
        raise RunError(f"{path} has run format {document['run_format']}, this version reads up to {FORMAT}; install a newer ufm")
    setting, marks = document["setting"], document["marks"]
    named = _HASHED.fullmatch(setting_path.resolve().name)
    found = setting_hash(setting)
    differing = sorted(k for k in {*setting, *marks} if marks.get(k) != _mark(setting, k))
    if found != document["hash"] or differing or (named and named[2] != found[:DIGITS]):
        where = ", ".join(differing) if differing else "the hash itself"
        raise RunError(f"{path} does not match its hash (differing: {where}); restore it from a copy or name a new run")
    return document


def listed_settings(path: Path) -> list[Path]:
    """Return the run folders that a grid's folder (`sweep.json` beside no config.json) lists, as far as they exist; else []."""
    if not (path / "sweep.json").is_file() or (path / "config.json").exists():
        return []
    try:
        wanted = {setting_hash(s)[:DIGITS] for s in files.load_json(files.read_bytes(path / "sweep.json"), path)["settings"]}
    except (KeyError, TypeError):
        raise RunError(f"{path / 'sweep.json'} is damaged; name the run folders beside it") from None
    beside = ((p, _HASHED.fullmatch(p.name)) for p in sorted(path.resolve().parent.iterdir()))
    return [p for p, named in beside if named and named[2] in wanted and (p / "config.json").is_file()]


def _mark(setting: Mapping[str, Any], key: str) -> str | None:
    return setting_hash({key: setting[key]})[:8] if key in setting else None


def check_same(found: Mapping[str, Any], wanted: Mapping[str, Any], path: Path) -> None:
    """Raise RunError if an existing config.json is not that of the wanted setting."""
    for key in ("system", "name", "hash"):
        if found[key] != wanted[key]:
            raise RunError(f"{path / 'config.json'} holds another {key} ({found[key]!r}); restore it from a copy")


def seal_of(data: bytes) -> dict[str, Any]:
    """Return the manifest entry of a file with this content."""
    return {"sha256": files.digest(data), "bytes": len(data)}


def read_manifest(path: Path) -> dict[str, dict[str, Any]]:
    """Return the entries of the manifest in `path` by file name, {} when there is none; RunError when it is damaged."""
    manifest = path / "manifest.json"
    if not manifest.exists():
        return {}
    document = files.load_json(files.read_bytes(manifest), manifest)
    listed = document.get("files") if isinstance(document, dict) else None
    if not isinstance(listed, dict):
        raise RunError(f"{manifest} is not a manifest; restore it from a copy")
    for name, sealed in listed.items():
        plain = name == "../config.json" or files.NAME.fullmatch(name)
        if not plain or not isinstance(sealed, dict) or not isinstance(sealed.get("bytes"), int) or sealed["bytes"] < 0:
            raise RunError(f"{manifest} is not a manifest (entry {name[:80]!r}); restore it from a copy")
    return listed


def read_sealed(path: Path, sealed: Mapping[str, Any], *, done: bool = False) -> bytes:
    """Return the bytes of a file that the manifest lists; RunError when it is missing or not what it was."""
    if not os.path.lexists(path):
        raise RunError(f"{path} is missing though the run was finished; restore it from a copy or delete the run")
    data = files.read_bytes(path)
    check_sealed(path, data, sealed, done=done)
    return data


def check_sealed(path: Path, data: bytes, sealed: Mapping[str, Any], *, done: bool = False) -> None:
    """A finished file is what it was; until the run is done again a file of lines may grow, its beginning not changed."""
    size = sealed["bytes"]
    grown = path.suffix == ".jsonl" and len(data) > size and not done
    if files.digest(data[:size] if grown else data) != sealed.get("sha256"):
        raise RunError(f"{path} is damaged (its SHA-256 is not the manifest's); restore it from a copy or delete the run")
