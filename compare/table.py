"""Numbers as a table: mean and interval over seeds, beside the prediction; text, LaTeX, CSV, Markdown, JSON.

What is chosen (the last epoch of the classifier's input unless asked otherwise) is the same in every format.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from compare import points, statistics
from compare.papers import Quantity
from compare.rows import Table
from ufm.console import format_number, plain, safe_text
from ufm.errors import RequestError
from ufm.tables import suggest

FORMATS = ("text", "latex", "csv", "markdown", "json")
GROUP = ("cell", "split", "layer", "centres", "measure")
_MEAN = ("mean", "low", "high", "seeds")
COLUMNS = ("cell", "epoch", *GROUP[1:], *_MEAN, "average", "predicted", "assumption")
MOST_CELLS = 200  # trainings whose single test points are read for one table
SHOWN = ("penultimate", "network")  # layers that are shown unless others are asked for


def chosen_layers(table: Table, layers: Sequence[str] | None) -> Table:
    """Return the rows of some layers ("all": every one); None: the classifier's input and what belongs to the whole network.

    Runs without a layer of that name keep all they have. RequestError for a layer that no run has.
    """
    known = table.levels("layer") if table.rows else []
    if layers is None:
        return table.where(layer=SHOWN) if SHOWN[0] in known else table
    for name in layers:
        if name != "all" and name not in known:
            raise RequestError(f"--layer {safe_text(name)!r} is not in these runs; {suggest(name, ['all', *known])}")
    return table if "all" in layers else table.where(layer=list(layers))


def chosen_epochs(table: Table, epochs: str | Sequence[int]) -> Table:
    """Return the rows of each seed's "last" epoch, of "all" epochs, or of the given ones; RequestError where there are none."""
    if epochs == "last":
        return table.last()
    if epochs == "all":
        return table
    found = table.where(epoch=list(epochs))
    missing = [epoch for epoch in epochs if not (table.data["epoch"] == epoch).any()]
    if missing:
        there = sorted({int(e) for e in table.data["epoch"] if e >= 0})
        some = ", ".join(map(str, there[:12])) + (", ..." if len(there) > 12 else "")
        raise RequestError(f"--epoch {missing[0]} was not measured; measured: {some or 'none'}")
    return found


def numbers(
    table: Table, *, measures: Sequence[str] | None = None, level: float = 0.95, epochs: str | Sequence[int] = "last"
) -> list[dict[str, Any]]:
    """Return one row per (cell, split, layer, centres, measure): mean over seeds with a Student-t interval.

    On test the interval joins the sampling error of the test points where it is known, as verdicts do (`mean_over_seeds`): for
    shares (errors, disagreements, accuracies), and for test NC1 about the train means of each seed's last epoch.
    Positive quantities other than shares get the geometric mean and the interval of the log; the column `average` says which
    mean it is. A share's interval is cut at 0 and 1. A positive prediction is averaged as its measurement is, so that an exact
    identity stays exact.

    Args:
        epochs: "last" (of each seed; `epoch` is then None where they differ), "all", or numbers: one row for each.
    """
    known = table.levels("measure") if table.rows else []
    for name in measures or ():
        if name not in known:
            raise RequestError(f"measure {name!r} is not in these runs; {suggest(name, known)}")
    some = chosen_epochs(table, epochs)
    if measures:
        some = some.where(measure=list(measures))
    groups = some.groups(*GROUP) if epochs == "last" else some.groups(*GROUP, "epoch")
    columns = {name: some[name] for name in (*GROUP, "seed", "epoch", "value", "predicted", "assumption")}
    errors = _sample_errors(table, columns)
    order = np.argsort(groups, kind="stable")
    starts = np.flatnonzero(np.diff(groups[order], prepend=-1))
    rows = []
    for indices in np.split(order, starts[1:]) if len(order) else []:
        row: dict[str, Any] = {name: columns[name][indices[0]] for name in GROUP}
        at = {int(e) for e in columns["epoch"][indices]}
        row["epoch"] = at.pop() if len(at) == 1 and at != {-1} else None
        row |= _summary(columns["value"][indices], row["measure"], level, errors[indices])
        row["predicted"] = _expected(columns["predicted"][indices], columns["value"][indices], row["average"])
        row["assumption"] = columns["assumption"][indices[0]]
        rows.append(row)
    return sorted(rows, key=lambda r: (r["cell"], r["layer"], r["measure"], r["split"], r["centres"], r["epoch"] or 0))


def _sample_errors(table: Table, columns: dict[str, np.ndarray]) -> np.ndarray:
    """Return (rows,) the standard error of each value over the points of its test sample, 0 where it is not known."""
    errors = np.zeros(len(columns["value"]))
    ends: dict[tuple[str, int], int] = {}
    if len(table.cells) <= MOST_CELLS:  # only the last epoch's single points are kept
        last = table.last()
        ends = dict(zip(zip(last["cell"], last["seed"].tolist(), strict=True), last["epoch"].tolist(), strict=True))
    for i in np.flatnonzero((columns["split"] == "test") & np.isfinite(columns["value"])):
        measure, cell, seed = columns["measure"][i], columns["cell"][i], int(columns["seed"][i])
        at_end = measure in points.SHARES and ends.get((cell, seed)) == columns["epoch"][i]
        if at_end or points.is_count(measure):
            of = Quantity(measure, "test", columns["layer"][i], columns["centres"][i])
            errors[i] = points.sample_error(table.cells.get(cell), seed, of, float(columns["value"][i]))
    return errors


def _summary(values: np.ndarray, measure: str, level: float, errors: np.ndarray) -> dict[str, Any]:
    there = np.isfinite(values)
    finite, errors = values[there], errors[there]
    if not len(finite):
        return {"mean": math.nan, "low": math.nan, "high": math.nan, "seeds": 0, "average": ""}
    share = points.is_count(measure) or "error" in measure
    log = bool(np.all(finite > 0)) and not share
    mean = statistics.mean_over_seeds(finite.tolist(), log=log, test_errors=errors.tolist())
    low, high = mean.interval(level) if len(finite) > 1 else (math.nan, math.nan)
    if share:  # a bound on an error (by Cantelli, by the union) may itself lie above 1
        low, high = max(low, 0.0), min(high, max(1.0, float(finite.max())))
    return {
        "mean": mean.estimate,
        "low": low,
        "high": high,
        "seeds": len(finite),
        "average": "geometric" if log else "arithmetic",
    }


def _expected(predicted: np.ndarray, values: np.ndarray, average: str) -> float:
    """Return the mean prediction over the seeds whose value counts, of the same kind as the mean of the values."""
    predicted = predicted[np.isfinite(values)]
    if not len(predicted) or not np.isfinite(predicted).all():
        return math.nan
    log = average == "geometric" and bool(np.all(predicted > 0))
    return statistics.mean_over_seeds(predicted.tolist(), log=log).estimate


# --- writing -----------------------------------------------------------------------------------------------------


def write(rows: Sequence[dict[str, Any]], columns: Sequence[str], form: str) -> str:
    """Return the rows as text in one of `FORMATS`; names from a user are escaped for the format."""
    if form not in FORMATS:
        raise RequestError(f"unknown format {form!r}; {suggest(form, FORMATS)}")
    return _WRITERS[form](rows, columns)


def _text(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> str:
    body = [[format_number(row.get(c)) for c in columns] for row in rows]
    widths = [max(len(c), *(len(line[i]) for line in body)) if body else len(c) for i, c in enumerate(columns)]
    right = [all(isinstance(row.get(c), (int, float, type(None))) for row in rows) for c in columns]
    lines = (
        "  ".join(part.rjust(w) if r else part.ljust(w) for part, w, r in zip(line, widths, right, strict=True)).rstrip()
        for line in [list(columns), *body]
    )
    return "\n".join(lines) + "\n"


def _csv(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_csv_cell(row.get(c)) for c in columns] for row in rows)
    return stream.getvalue()


def _csv_cell(value: Any) -> Any:
    """Full precision; nothing that a spreadsheet would run as a formula."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    if isinstance(value, (int, float)):
        return repr(value)
    text = safe_text(value)
    return "'" + text if text.lstrip()[:1] in ("=", "+", "-", "@") and text.lstrip() else text


def _markdown(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> str:
    def line(parts: Sequence[str]) -> str:
        return "| " + " | ".join(parts) + " |"

    body = [line([_markdown_cell(format_number(row.get(c))) for c in columns]) for row in rows]
    return "\n".join([line(list(columns)), line(["---"] * len(columns)), *body]) + "\n"


def _markdown_cell(text: str) -> str:
    for character in "\\`*_{}[]<>#|":
        text = text.replace(character, "\\" + character)
    return text


_LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
}  # fmt: skip


def latex_text(text: Any) -> str:
    """Return text that LaTeX prints as it is."""
    return "".join(_LATEX.get(c, c) for c in safe_text(text))


def _latex_cell(value: Any) -> str:
    if isinstance(value, float) and math.isfinite(value):
        mantissa, e, exponent = f"{value:.3g}".partition("e")
        return f"${mantissa} \\times 10^{{{int(exponent)}}}$" if e else f"${mantissa}$"
    return "--" if value is None or isinstance(value, float) else latex_text(value)


def _latex(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> str:
    right = ["r" if all(isinstance(row.get(c), (int, float, type(None))) for row in rows) else "l" for c in columns]
    lines = [r"\begin{tabular}{" + "".join(right) + "}", r"\hline", " & ".join(map(latex_text, columns)) + r" \\", r"\hline"]
    lines += [" & ".join(_latex_cell(row.get(c)) for c in columns) + r" \\" for row in rows]
    return "\n".join([*lines, r"\hline", r"\end{tabular}"]) + "\n"


def _json(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> str:
    return json.dumps(plain([{c: row.get(c) for c in columns} for row in rows]), allow_nan=False) + "\n"


_WRITERS = {"text": _text, "latex": _latex, "csv": _csv, "markdown": _markdown, "json": _json}
