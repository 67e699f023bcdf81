"""A drawn figure with the numbers in it, and the way to disk: the same bytes whenever the same numbers are drawn."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compare.style import Style
from ufm.console import plain, safe_text
from ufm.errors import RequestError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = (".pdf", ".svg", ".png", ".pgf")


@dataclass(frozen=True)
class Drawing:
    """A figure whose layout is final, the plotted numbers as rows under `columns`, and sentences for the caption."""

    figure: Figure
    columns: tuple[str, ...]
    rows: list[tuple[Any, ...]]
    notes: tuple[str, ...] = ()


def save(drawing: Drawing, path: str | Path, *, style: Style, provenance: Mapping[str, Any]) -> list[Path]:
    """Write the figure, F.csv with the plotted numbers, and F.json with the notes and the provenance; return their paths.

    The format is the suffix's: .pdf, .svg, .png or .pgf (the last is written without LaTeX). Nothing in the files depends on
    the time, the user or the folder: absolute paths in `provenance` are cut to their last part.
    RequestError for another suffix.
    """
    from ufm.record import atomic_write

    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        raise RequestError(f"cannot write a figure to {safe_text(path.name)!r}; end the name in {', '.join(FORMATS)}")
    origin = clean(provenance)
    picture = render(drawing, path.suffix.lower(), style, origin)
    sidecar = json.dumps({"notes": list(drawing.notes), "provenance": origin}, indent=1, sort_keys=True, allow_nan=False)
    written = []
    for target, content in [
        (path, picture),
        (path.with_suffix(".csv"), csv_text(drawing).encode()),
        (path.with_suffix(".json"), (sidecar + "\n").encode()),
    ]:
        atomic_write(target, content)
        written.append(target)
    return written


def render(drawing: Drawing, suffix: str, style: Style, origin: Mapping[str, Any]) -> bytes:
    """Return the figure's file as bytes, with its origin in the metadata and no date."""
    line = json.dumps(origin, sort_keys=True, allow_nan=False)
    if suffix == ".pgf":
        from compare.figures.pgf import to_pgf

        return to_pgf(drawing.figure, style, line).encode()
    metadata = {
        ".png": {"Software": "ufm", "Description": line},
        ".svg": {"Creator": "ufm", "Description": line, "Date": None},
        ".pdf": {"Creator": "ufm", "Subject": line, "CreationDate": None},
    }[suffix]
    stream = io.BytesIO()
    with style.applied():
        drawing.figure.savefig(stream, format=suffix[1:], metadata=metadata)
    return stream.getvalue()


def csv_text(drawing: Drawing) -> str:
    """Return the numbers as CSV: full precision, an empty field for what does not exist, no cell that a sheet would run."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(drawing.columns)
    writer.writerows([_cell(value) for value in row] for row in drawing.rows)
    return stream.getvalue()


def _cell(value: Any) -> Any:
    value = plain(value)
    if value is None:
        return ""
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else ""
    if isinstance(value, int):
        return value
    text = safe_text(value)
    return "'" + text if text[:1] in "=+-@\t" and text[:1] else text


_ABSOLUTE = re.compile(r"(?<![\w.~-])(?:~|[A-Za-z]:)?[/\\](?:[^\s\"'=:,;/\\]+[/\\])*([^\s\"'=:,;/\\]*)")


def clean(value: Any) -> Any:
    """Return a JSON-ready copy in which every absolute path is its last part alone."""
    value = plain(value)
    if isinstance(value, Mapping):
        return {
            str(key): clean(item)
            for key, item in value.items()
            if str(key).lower() not in ("user", "username", "cwd", "hostname")
        }
    if isinstance(value, list):
        return [clean(item) for item in value]
    if isinstance(value, str):
        return _ABSOLUTE.sub(r"\1", safe_text(value))
    return value if isinstance(value, (int, float, bool, type(None))) else _ABSOLUTE.sub(r"\1", safe_text(value))
