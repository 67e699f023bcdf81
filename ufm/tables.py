"""One lookup for every table of names (losses, solvers, data sets, figures, ...), so that listing imports nothing heavy."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from ufm.errors import RequestError

NEAR = 0.65  # of two names: "hinge" is no misspelling of "smoothing" (0.57), "pth" is one of "path" (0.86)


class Entry(NamedTuple):
    """One line of a table: where the object lives, and what a reader of `list` needs to know of it."""

    target: str  # "package.module:object", imported on use
    summary: str
    assumptions: str = ""
    reference: str = ""  # a key of ufm.references.REFERENCES, or ""


def suggest(name: str, known: Iterable[str]) -> str:
    """Return 'did you mean ...? known: ...' for a name that is not in `known`."""
    known = sorted(map(str, known))
    near = difflib.get_close_matches(name, known, n=1, cutoff=NEAR) or [
        one for one in known if len(name) > 1 and one.startswith(name)
    ]
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"{hint}known: {', '.join(known)}"


def find(table: Mapping[str, Entry], name: str, what: str) -> Entry:
    """Return the table's entry for `name`; a RequestError with a suggestion when there is none."""
    if name not in table:
        raise RequestError(f"unknown {what} {name!r}; {suggest(name, table)}")
    return table[name]


def load(table: Mapping[str, Entry], name: str, what: str) -> Any:
    """Import and return the object that `name` stands for in `table`."""
    return resolve_target(find(table, name, what).target)


def resolve_target(target: str) -> Any:
    """Import and return what "module:object" names."""
    module, _, attribute = target.partition(":")
    return getattr(importlib.import_module(module), attribute)
