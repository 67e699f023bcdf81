"""`sweep.json`: which settings and seeds a request asked for, so that `resume` knows what is still missing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ufm.errors import RequestError, RunError
from ufm.files import dump_json
from ufm.identity import DIGITS
from ufm.record import atomic_write, setting_hash

FORMAT = 1
FILE = "sweep.json"


def folder_name(setting: Any) -> str:
    """Return name-hash of an experiment's run folder."""
    return f"{setting.name}-{setting_hash(setting.setting())[:DIGITS]}"


def write_sweep(root: str, study: str, settings: Sequence[Any], seeds: Sequence[int]) -> Path:
    """Write the list of what was asked for; return the folder that `empirical resume` takes.

    Of one setting that is its own folder, and seeds asked for earlier stay in the list; of several settings it is a
    folder beside theirs, named by the hash of the list.
    """
    base = Path(root) / study
    if len(settings) == 1:
        target = base / folder_name(settings[0])
        asked = sorted({*seeds, *_seeds_before(target)})
    else:
        asked = list(seeds)
        digits = setting_hash({"settings": [s.setting() for s in settings], "seeds": asked})[:DIGITS]
        target = base / f"sweep-{digits}"
    document = {"format": FORMAT, "study": study, "settings": [s.setting() for s in settings], "seeds": asked}
    try:
        target.mkdir(parents=True, exist_ok=True)
        atomic_write(target / FILE, dump_json(document, indent=1) + b"\n")
    except OSError as error:
        raise RequestError(f"--out {root}: {error.strerror}; name a folder that can be written") from None
    return target


def _seeds_before(target: Path) -> list[int]:
    try:
        return read_sweep(target)["seeds"] if (target / FILE).exists() else []
    except RunError:
        return []  # about to be written anew


def read_sweep(target: Path) -> dict[str, Any]:
    """Return the document; RunError when it is damaged."""
    path = target / FILE
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["format"] > FORMAT:
            raise RunError(f"{path} has format {document['format']}, this version reads up to {FORMAT}; install a newer ufm")
        seeds, settings = document["seeds"], document["settings"]
        if not all(isinstance(s, int) for s in seeds) or not all(isinstance(s, dict) for s in settings):
            raise ValueError
    except (OSError, ValueError, KeyError, TypeError):
        raise RunError(f"{path} is damaged; delete it and give the command again") from None
    return document
