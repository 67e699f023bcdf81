"""One declaration of an option serves the command line, TOML and Python: a dataclass field with a range.

A *spec* is a frozen dataclass whose fields are made by `option(...)`. `click_options` turns it into flags, `resolve`
merges defaults < preset < TOML < flags, `cells` multiplies its grids out, `setting_of` keeps what identifies a run.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click

from ufm.errors import RequestError
from ufm.tables import suggest

MAX_CELLS = 1_000_000  # a larger grid is a typing error, not a request
MAX_INTEGER = 2**53  # from there on a number's text is not the number that was meant, and its powers leave float64
MAX_FILE = 2**28  # bytes of a file named by an option
MAX_TOML = 2**20


class FileValue(NamedTuple):
    """A file named by an option: what identifies a run is its content, not where it lies."""

    path: str
    sha256: str


def option(
    default: Any,
    help: str,
    *,
    kind: str | None = None,
    low: float = -math.inf,
    high: float = math.inf,
    strict: bool = False,
    choices: Sequence[str] | None = None,
    grid: bool = False,
    setting: bool = True,
) -> Any:
    """Declare one option as a dataclass field.

    Args:
        default: the value when nothing is said; None means "not given".
        help: one line for `--help`, with the unit and range where they are not evident.
        kind: "float", "int", "str", "flag", "floats", "ints", "path", or "file" (an existing file, read into a FileValue);
            inferred from `default` when None.
        low, high, strict: the allowed range; `strict` excludes `low` itself.
        choices: the allowed strings.
        grid: whether one flag may name several values ("1e-4,1e-3", "1:5:9", "1e-5:1e-1:20log", "0:5").
        setting: False for what does not change the numbers (paths, device, workers), which stays out of the run's hash.
    """
    if kind is None:
        kind = {bool: "flag", int: "int", float: "float", str: "str", tuple: "floats"}[type(default)]
    metadata = dict(help=help, kind=kind, low=low, high=high, strict=strict, choices=choices, grid=grid, setting=setting)
    return dataclasses.field(default=default, metadata=metadata)


def flag_name(name: str) -> str:
    """Return '--lambda-w' for 'lambda_w'."""
    return "--" + name.replace("_", "-")


# --- reading one value -------------------------------------------------------------------------------------------


def read_value(field: dataclasses.Field, value: Any) -> Any:
    """Check one non-grid value of `field`, from text or from TOML; raises RequestError."""
    meta, flag = field.metadata, flag_name(field.name)
    if value is None:
        return None
    kind = meta["kind"]
    if kind == "flag":
        if not isinstance(value, bool):
            raise RequestError(f"{flag} {value!r} is not true or false; write {field.name} = true")
        return value
    if kind in ("floats", "ints"):
        parts = value.split(",") if isinstance(value, str) else value
        if not isinstance(parts, Sequence) or not len(parts):
            raise RequestError(f"{flag} {_short(value)} is not a list of numbers; write for example 1,2,3")
        return tuple(_number(flag, part, kind[:-1], meta) for part in parts)
    if kind in ("float", "int"):
        return _number(flag, value, kind, meta)
    if not isinstance(value, (str, Path)):  # of a TOML file: a flag is text
        raise RequestError(f'{flag} {value!r} is not text; write {field.name} = "..."')
    return _text(flag, str(value), meta)


def _text(flag: str, text: str, meta: Mapping[str, Any]) -> Any:
    kind = meta["kind"]
    noun = {"path": "a path", "file": "an existing file"}.get(kind, "a value")
    if not text.strip():
        raise RequestError(f"{flag} {_short(text)} is empty; give {noun}, or drop {flag}")
    if "\0" in text:
        raise RequestError(f"{flag} {_short(text)} has a null character in it; give {noun} without")
    if kind == "file":
        return _file(flag, text)
    if meta["choices"] is not None and text not in meta["choices"]:
        raise RequestError(f"{flag} {_short(text)} is not known; {suggest(text, meta['choices'])}")
    return text


def _file(flag: str, text: str) -> FileValue:
    path = Path(text)
    try:
        if not path.is_file():
            raise RequestError(f"{flag} {text!r} is no file; name an existing file")
        if path.stat().st_size > MAX_FILE:
            raise RequestError(f"{flag} {text!r} has {path.stat().st_size:.3g} bytes; at most {MAX_FILE}: use a smaller file")
        return FileValue(text, hashlib.sha256(path.read_bytes()).hexdigest())
    except (OSError, ValueError) as error:
        if isinstance(error, RequestError):
            raise
        raise RequestError(f"{flag} {text!r} cannot be read ({error}); name a readable file") from None


def _bound(value: float) -> str:
    """Return a bound as text: a whole number with all its digits (2^32 - 1 is not 4.29497e+09)."""
    return str(int(value)) if float(value).is_integer() and abs(value) < 2**53 else f"{value:g}"


def _number(flag: str, value: Any, kind: str, meta: Mapping[str, Any]) -> float | int:
    """Return a finite number in range. click.FloatRange is not used because it lets nan through."""
    noun = "an integer" if kind == "int" else "a finite number"
    try:
        number: float | int = float(value)
    except (TypeError, ValueError, OverflowError):
        raise RequestError(f"{flag} {_short(value)} is not {noun}; write for example {flag} {_example(meta, kind)}") from None
    if isinstance(value, bool) or not math.isfinite(number) or (kind == "int" and number != int(number)):
        raise RequestError(f"{flag} {_short(value)} is not {noun}; write for example {flag} {_example(meta, kind)}")
    if kind == "int" and abs(number) > MAX_INTEGER:
        raise RequestError(f"{flag} {_short(value)} is too large; integers go up to 2^53")
    low, high = meta["low"], meta["high"]
    if number < low or number > high or (meta["strict"] and number == low):
        least = "" if low == -math.inf else f"{'>' if meta['strict'] else '>='} {_bound(low)}"
        most = "" if high == math.inf else f"<= {_bound(high)}"
        rule = " and ".join(filter(None, (least, most)))
        raise RequestError(f"{flag} {_short(value)} is out of range; it must be {rule}, for example {_example(meta, kind)}")
    return int(number) if kind == "int" else number + 0.0  # -0.0 becomes 0.0: one number, one run


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else repr(value)
    return repr(text) if len(text) <= 60 else repr(text[:57] + "...")


def _example(meta: Mapping[str, Any], kind: str) -> str:
    low = meta["low"] if meta["low"] > -math.inf else 0
    return str(int(low) + 1) if kind == "int" else f"{low + min(0.1, (meta['high'] - low) / 2):g}"


def read_grid(field: dataclasses.Field, value: Any) -> list[Any]:
    """Return the values a grid text stands for: a list, `a:b:n`, `a:b:nlog` or integers `a:b` (b excluded)."""
    flag, kind = flag_name(field.name), field.metadata["kind"]
    if isinstance(value, list):
        return _read_list(field, value) or _empty(flag)
    if not isinstance(value, str):
        return [read_value(field, value)]
    separator = ";" if kind in ("floats", "ints") else ","
    values: list[Any] = []
    for part in value.split(separator):
        text = part.strip()
        if not text:
            raise RequestError(f"{flag} {_short(value)} has an empty value; write for example {flag} 1{separator}2")
        if kind in ("float", "int") and ":" in text:
            values += [read_value(field, v) for v in _range(flag, text)]
        else:
            values.append(read_value(field, text))
    _no_twice(flag, values)
    return values or _empty(flag)


def _read_list(field: dataclasses.Field, value: list[Any]) -> list[Any]:
    """A TOML list is a grid; for an option that is itself a list, a list of lists is."""
    if field.metadata["kind"] in ("floats", "ints") and value and not any(isinstance(part, list) for part in value):
        return [read_value(field, value)]
    values = [read_value(field, part) for part in value]
    _no_twice(flag_name(field.name), values)
    return values


def _no_twice(flag: str, values: Sequence[Any]) -> None:
    if len(set(map(repr, values))) != len(values):
        raise RequestError(f"{flag} names a value twice; name each value once")


def _empty(flag: str) -> list[Any]:
    raise RequestError(f"{flag} is an empty grid; give at least one value")


def _range(flag: str, text: str) -> list[float | int]:
    parts = text.split(":")
    try:
        if len(parts) == 2:
            first, last = int(parts[0]), int(parts[1])
            if last - first > MAX_CELLS:
                raise RequestError(f"{flag} {text} names {last - first} values; at most {MAX_CELLS}")
            return list(range(first, last)) or _empty(flag)
        if len(parts) == 3:
            log = parts[2].endswith("log")
            start, stop, number = float(parts[0]), float(parts[1]), int(parts[2].removesuffix("log"))
            if number > MAX_CELLS:
                raise RequestError(f"{flag} {_short(text)} names {number} values; at most {MAX_CELLS}")
            if number < 2 or not (math.isfinite(start) and math.isfinite(stop)) or (log and min(start, stop) <= 0):
                raise ValueError
            return _spaced(start, stop, number, log)
    except ValueError as error:
        if isinstance(error, RequestError):
            raise
    raise RequestError(
        f"{flag} {_short(text)} is not a range; write 1:5:9 (9 linear), 1e-5:1e-1:20log (positive ends) or 0:5 (integers 0..4)"
    )


def _spaced(start: float, stop: float, number: int, log: bool) -> list[float]:
    """End points exact; inner points to 14 digits, so that 0.001 of a grid is the 0.001 somebody types later."""
    fractions = [i / (number - 1) for i in range(number)]
    if log:
        inner = [math.exp(math.log(start) + f * (math.log(stop) - math.log(start))) for f in fractions]
    else:
        inner = [start + f * (stop - start) for f in fractions]
    return [start, *(float(f"{v:.14g}") for v in inner[1:-1]), stop]


# --- a whole spec ------------------------------------------------------------------------------------------------


def click_options(spec: type) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return a decorator that adds one click option per field of `spec` (values stay text until `resolve`)."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for field in reversed(dataclasses.fields(spec)):
            meta = field.metadata
            if meta["kind"] == "flag":
                declaration = f"{flag_name(field.name)}/--no-{field.name.replace('_', '-')}"
                function = click.option(declaration, field.name, default=None, help=meta["help"])(function)
                continue
            shown = "" if field.default is None or field.default == () else f"  [default: {_shown(field.default)}]"
            metavar = "|".join(meta["choices"]) if meta["choices"] and len(meta["choices"]) <= 8 else _metavar(meta)
            completion = _complete(meta["choices"]) if meta["choices"] else None
            function = click.option(
                flag_name(field.name),
                field.name,
                default=None,
                metavar=metavar,
                help=meta["help"] + shown,
                shell_complete=completion,
            )(function)
        return function

    return decorate


def _shown(default: Any) -> str:
    return ",".join(map(str, default)) if isinstance(default, tuple) else str(default)


def _metavar(meta: Mapping[str, Any]) -> str:
    base = {"float": "NUM", "int": "INT", "floats": "NUM,..", "ints": "INT,..", "path": "PATH"}.get(meta["kind"], "TEXT")
    return f"{base}|GRID" if meta["grid"] else base


def _complete(choices: Sequence[str]) -> Callable[..., list[str]]:
    return lambda context, parameter, incomplete: [c for c in choices if c.startswith(incomplete)]


def read_toml(path: str | Path) -> dict[str, Any]:
    """Read a TOML file; RequestError (one line) when it is missing or malformed."""
    try:
        if not Path(path).is_file():
            raise RequestError(f"--config {path}: no such file; give a readable TOML file")
        if Path(path).stat().st_size > MAX_TOML:
            raise RequestError(f"--config {path}: more than {MAX_TOML} bytes; give a TOML file of options")
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise RequestError(f"--config {path}: not valid TOML ({error}); write lines such as lambda_w = 5e-4") from None
    except RecursionError:
        raise RequestError(f"--config {path}: nested too deeply; write lines such as lambda_w = 5e-4") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise RequestError(f"--config {path}: {reason}; give a readable TOML file") from None


def resolve(spec: type, *layers: Mapping[str, Any], source: str = "--config") -> dict[str, list[Any]]:
    """Merge layers (later ones win; None means not given) over the defaults: field name -> list of grid values.

    A field without `grid=True` gets a list of one. Unknown keys are errors with a suggestion.
    """
    fields = {f.name: f for f in dataclasses.fields(spec)}
    given: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            name = key.replace("-", "_")
            if name not in fields:
                raise RequestError(f"{source}: unknown key {key!r}; {suggest(name, fields)}")
            if value is not None:
                given[name] = value
    resolved = {}
    for name, field in fields.items():
        value = given.get(name, field.default)
        if field.metadata["grid"] and value is not None:
            resolved[name] = read_grid(field, value)
        else:
            resolved[name] = [read_value(field, value)]
    return resolved


class Cells(Sequence[dict[str, Any]]):
    """The cells of a grid, made on demand: a million cells take no memory until one is asked for."""

    def __init__(self, axes: Sequence[Sequence[Mapping[str, Any]]], names: Sequence[str]) -> None:
        """`axes` multiply, the last fastest; each is a list of partial cells."""
        self._axes, self._names = axes, names

    def __len__(self) -> int:
        return math.prod(map(len, self._axes))

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        rest = index + len(self) if index < 0 else index
        if not 0 <= rest < len(self):
            raise IndexError(index)
        merged: dict[str, Any] = {}
        for axis in reversed(self._axes):
            rest, position = divmod(rest, len(axis))
            merged.update(axis[position])
        return {name: merged[name] for name in self._names}


def cells(values: Mapping[str, Sequence[Any]], zipped: Iterable[str] = ()) -> Cells:
    """Multiply grids out, last name fastest; names in `zipped` walk together (equal lengths)."""
    together = [name.strip().removeprefix("--").replace("-", "_") for name in zipped]
    for name in together:
        if name not in values:
            raise RequestError(f"--zip {name}: no such option; {suggest(name, values)}")
    lengths = {name: len(values[name]) for name in together}
    if len(set(lengths.values())) > 1:
        raise RequestError(f"--zip: the options have different lengths {lengths}; give them the same number of values")
    axes: list[list[dict[str, Any]]] = []
    for name, column in values.items():
        if name not in together:
            axes.append([{name: value} for value in column])
        elif name == together[0]:
            axes.append([{n: values[n][i] for n in together} for i in range(len(column))])
    total = math.prod(map(len, axes))
    if total > MAX_CELLS:
        raise RequestError(f"the grid has {total} cells; at most {MAX_CELLS}: use fewer values")
    return Cells(axes, list(values))


def parameter(value: Any) -> Any:
    """Return what stands for `value` in a record: tuples as lists, a file by the hash of its content."""
    if isinstance(value, FileValue):
        return f"sha256:{value.sha256}"
    return list(value) if isinstance(value, tuple) else value


def setting_of(spec: type, values: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    """Return what identifies a run: every setting field, a grid of several values shown only by its name as "grid"."""
    return {
        f.name: (parameter(values[f.name][0]) if len(values[f.name]) == 1 else "grid")
        for f in dataclasses.fields(spec)
        if f.metadata["setting"]
    }


def build(spec: type, cell: Mapping[str, Any]) -> Any:
    """Return the spec instance of one cell."""
    return spec(**{f.name: cell[f.name] for f in dataclasses.fields(spec)})
