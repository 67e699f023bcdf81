"""One self-contained HTML page: verdicts first, then figures, theory of the test panel, methods, provenance, what is not shown.

No script, no network: the content security policy forbids both, and every text from a run is escaped where it goes.
"""

from __future__ import annotations

import base64
import html
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from compare import calibrate, pair, points
from compare.judging import Judged
from compare.pictures import MOST_CELLS, Picture
from compare.rows import Cell, Table
from compare.verdict import AGREES, DEVIATES, NOT_RUN, UNDECIDED, Verdict, expected, summary
from ufm.console import format_number, plain, safe_text
from ufm.errors import RequestError
from ufm.files import atomic_write

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
MOST_DETAILS = 60  # claims explained one by one; of more, only those that do not agree
MARKS = {AGREES: "\u2713", DEVIATES: "\u2717", UNDECIDED: "?", NOT_RUN: "\u2013"}  # a word and a sign, never a colour alone
STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 60rem; background: #fff; color: #1a1a1a;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .3rem; }
h2 { font-size: 1.2rem; margin: 2.4rem 0 .6rem; padding-top: .5rem; border-top: 1px solid #ccc; }
h3 { font-size: 1rem; margin: 1.4rem 0 .3rem; }
p { margin: .4rem 0; max-width: 44rem; }
.lead { font-size: 1.05rem; } .small { font-size: .85rem; color: #444; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
th, td { text-align: left; vertical-align: top; padding: .4rem .7rem .4rem 0; border-bottom: 1px solid #ddd; }
th { font-weight: 600; border-bottom: 2px solid #1a1a1a; white-space: nowrap; }
td.n, th.n { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
td.t { min-width: 13rem; }
.v { font-weight: 700; white-space: nowrap; }
.agrees { color: #14532d; } .deviates { color: #9b1c1c; } .undecided { color: #6b4e00; } .not-run { color: #555; }
figure { margin: 1.2rem 0; } figure img { width: 100%; max-width: 44rem; height: auto; display: block; }
figcaption { font-size: .9rem; color: #333; max-width: 44rem; }
code, pre { font: .82rem/1.45 ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: #f6f6f6; padding: .7rem; margin: .4rem 0; }
ul { padding-left: 1.2rem; margin: .4rem 0; } li { margin: .25rem 0; overflow-wrap: anywhere; }
@media (max-width: 42rem) { figure { overflow-x: auto; } figure img { width: 38rem; max-width: none; }
  thead { display: none; } tr { display: block; padding: .5rem 0; border-bottom: 1px solid #bbb; }
  td, td.n, td.t { display: flex; gap: .6rem; text-align: left; white-space: normal; border: 0; padding: .1rem 0; min-width: 0; }
  td::before { content: attr(data-l); flex: 0 0 7.5rem; color: #555; font-size: .82rem; }
  td:first-child { display: block; font-weight: 600; } td:first-child::before { content: none; } }
@media print { body { max-width: none; padding: 0; font-size: 10.5pt; } .scroll { overflow: visible; }
  tr, figure { break-inside: avoid; } h2, h3 { break-after: avoid; } a { color: inherit; } }
"""


def write(
    path: Path,
    table: Table,
    judged: Sequence[Judged],
    pictures: Sequence[Picture],
    *,
    not_shown: Sequence[str] = (),
    source: Mapping[str, Any] | None = None,
    title: str | None = None,
) -> Path:
    """Write the page to `path` (.html); RequestError for another suffix."""
    if Path(path).suffix.lower() not in (".html", ".htm"):
        raise RequestError(f"cannot write a report to {safe_text(Path(path).name)!r}; end the name in .html")
    page = render(table, judged, pictures, not_shown=not_shown, source=source, title=title)
    atomic_write(path, page.encode())
    return Path(path)


def render(
    table: Table,
    judged: Sequence[Judged],
    pictures: Sequence[Picture],
    *,
    not_shown: Sequence[str] = (),
    source: Mapping[str, Any] | None = None,
    title: str | None = None,
) -> str:
    """Return the page as text; the same for the same input."""
    heading = title or (judged[0].paper.title if len(judged) == 1 else "Theory and measurement")
    verdicts = [v for one in judged for v in one.verdicts]
    body = [
        f"<h1>{_e(heading)}</h1>",
        f'<p class="lead">{_e(_lead(judged, verdicts))}</p>',
        *(f'<p class="small">{_e(one.paper.note)}</p>' for one in judged if one.paper.note),
        *(_verdict_section(one) for one in judged),
        _figures(pictures),
        _test_theory(table),
        _calibration(table),
        _methods(judged),
        _references(judged, verdicts),
        _provenance(source or {}),
        _left_out(table, verdicts, not_shown),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_e(POLICY)}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_e(heading)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(filter(None, body))
        + "\n</main>\n</body>\n</html>\n"
    )


def _e(text: Any) -> str:
    """Escape for HTML text and quoted attributes, without control characters."""
    return html.escape(safe_text(text), quote=True)


def _m(text: Any) -> str:
    """Escape, with the signs of mathematics for their stand-ins on a terminal."""
    return _e(str(text).replace("+-", "\u00b1").replace(">=", "\u2265").replace("<=", "\u2264").replace(" x ", " \u00d7 "))


def _lead(judged: Sequence[Judged], verdicts: Sequence[Verdict]) -> str:
    if not verdicts:
        return "No claim was judged: these runs belong to no known paper and hold no test features about train means."
    counts = summary(verdicts)
    names = ", ".join(one.title for one in judged)
    return f"{len(verdicts)} claims of {names}: {counts}."


# --- verdicts ----------------------------------------------------------------------------------------------------


def _table(columns: Sequence[tuple[str, str]], rows: Iterable[Sequence[str]]) -> str:
    """Return a table; columns are (heading, class), cells are HTML already escaped."""
    head = "".join(f'<th scope="col" class="{c}">{_e(name)}</th>' for name, c in columns)
    body = "\n".join(
        "<tr>"
        + "".join(
            f'<td class="{c}" data-l="{_e(name)}"><span>{cell}</span></td>' for cell, (name, c) in zip(row, columns, strict=True)
        )
        + "</tr>"
        for row in rows
    )
    return f'<div class="scroll"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table></div>'


def _mark(verdict: str) -> str:
    return f'<span class="v {verdict.replace(" ", "-")}">{MARKS[verdict]} {verdict}</span>'


def _control_mark(v: Verdict) -> str:
    """A control that deviates is what is wanted: say so, or a reader takes the red cross for bad news."""
    if v.control is None:
        return ""
    kind, text = (AGREES, "fails, as it must") if v.control.verdict == DEVIATES else (DEVIATES, "does not fail")
    return f'<span class="v {kind}">{MARKS[kind]} {text}</span>'


def _verdict_section(one: Judged) -> str:
    columns = [
        ("Claim", "t"),
        ("Verdict", ""),
        ("Measured", "n"),
        ("90 % interval", "n"),
        ("Demanded", ""),
        ("Seeds", "n"),
        ("Control", ""),
    ]
    several = len({v.cell for v in one.verdicts if v.cell}) > 1
    rows = []
    for v in one.verdicts:
        where = f'<br><span class="small">{_e(v.cell)}</span>' if several and v.cell else ""
        shown = [_e(_measured(v)), _e(_interval(v)), _m(expected(v.claim)), str(len(v.seeds))]
        rows.append([_m(v.claim.text) + where, _mark(v.verdict), *shown, _control_mark(v)])
    detailed = (
        one.verdicts if len(one.verdicts) <= MOST_DETAILS else [v for v in one.verdicts if v.verdict != AGREES][:MOST_DETAILS]
    )
    more = "" if detailed is one.verdicts else f'\n<p class="small">Details of {len(detailed)} of {len(one.verdicts)} claims.</p>'
    return (
        f"<h2>Verdicts: {_e(one.title)}</h2>\n{_table(columns, rows)}\n"
        '<p class="small">A control is the same claim where it must fail; a claim agrees only if its control deviates. '
        "For a bound or an identity the columns give the worst point and the range over all measured points.</p>\n"
        + "\n".join(_verdict_details(v) for v in detailed)
        + more
    )


def _measured(v: Verdict) -> str:
    return format_number(v.estimate) if math.isfinite(v.estimate) else "\u2013"


def _interval(v: Verdict) -> str:
    if not (math.isfinite(v.low) and math.isfinite(v.high)):
        return "\u2013"
    return f"{format_number(v.low)} to {format_number(v.high)}"


def _verdict_details(v: Verdict) -> str:
    lines = [f"<h3>{_e(v.claim.name)}: {_e(v.verdict)}</h3>", f"<p>{_m(_sentence(v.reason))}</p>"]
    if v.control is not None:
        lines.append(f"<p>Control, {_e(v.claim.control_text)}: {_e(v.control.verdict)}; {_m(_sentence(v.control.reason))}</p>")
    facts = []
    if v.claim.assumption:
        facts.append(f"Assumption: {v.claim.assumption}.")
    if math.isfinite(v.p):
        holm = f", {format_number(v.p_holm)} after Holm's correction" if math.isfinite(v.p_holm) else ""
        facts.append(f"p = {format_number(v.p)}{holm}.")
    if v.values:
        each = ", ".join(f"{s}: {format_number(x)}" for s, x in zip(v.seeds, v.values, strict=True))
        facts.append(f"By seed: {each}.")
    if v.claim.reference:
        facts.append(f"Source: {v.claim.reference}.")
    lines.append(f'<p class="small">{_e(" ".join(facts))}</p>')
    return "\n".join(lines)


def _sentence(text: str) -> str:
    first = text.partition(" ")[0]
    start = text[:1].upper() if first.isalpha() else text[:1]  # a measure's name keeps its spelling
    return start + text[1:] + ("" if text.endswith(".") else ".")


# --- figures and the test panel ----------------------------------------------------------------------------------


def _figures(pictures: Sequence[Picture]) -> str:
    if not pictures:
        return ""
    several = len({p.cell for p in pictures}) > 1
    parts = ["<h2>Figures</h2>"]
    for number, picture in enumerate(pictures, 1):
        # An image cannot run anything, and its ids cannot clash with those of the next figure.
        data = base64.b64encode(picture.svg).decode("ascii")
        where = f" Run {picture.cell}." if several and picture.cell else ""
        notes = " ".join(_sentence(note) for note in picture.notes)
        caption = f"Figure {number}. {_sentence(picture.caption[:1].upper() + picture.caption[1:])}{where} {notes}"
        alt = f"{picture.figure} of {picture.cell or 'all runs'}"
        parts.append(
            f'<figure><img alt="{_e(alt)}" src="data:image/svg+xml;base64,{data}"><figcaption>{_e(caption)}</figcaption></figure>'
        )
    return "\n".join(parts)


def _test_theory(table: Table) -> str:
    """What theory says of the last state's test features, beside what was measured, setting by setting."""
    parts = []
    for name, part in table.by_cell(_trainings(table)[:MOST_CELLS]).items():
        rows = _test_rows(part, table.cells[name])
        if rows:
            columns = [("What theory says of NC1_test", "t"), ("Value", "n"), ("Interval", "n"), ("Under the assumption", "t")]
            parts.append(f"<h3>{_e(name)}</h3>\n{_table(columns, rows)}")
    if not parts:
        return ""
    intro = (
        "The unconstrained-features model predicts the train panels and says nothing of test features. What can be said of "
        "them follows from the test error; values are means over seeds at the last epoch, NC1 about the train means "
        "(Tr(S_W S_B^+)/K)."
    )
    return f"<h2>The test panel: bounds and lines</h2>\n<p>{_e(intro)}</p>\n" + "\n".join(parts)


def _test_rows(part: Table, cell: Cell) -> list[tuple[str, str, str, str]]:
    joined = (
        part.where(split="test", layer="penultimate", centres="train")
        .last()
        .points("nc1_pinv_strong", "ncc_error", "ncc_error_between")
    )
    strong, error, between = (joined[m] for m in ("nc1_pinv_strong", "ncc_error", "ncc_error_between"))
    keep = [i for i in range(len(strong)) if all(map(math.isfinite, (strong[i], error[i], between[i])))]
    if not keep:
        return []
    mean = [float(sum(column[i] for i in keep)) / len(keep) for column in (strong, error, between)]
    samples, classes = points.sample_size(cell, cell.seeds), points.classes_of(cell, cell.seeds)
    rows = [
        (
            "<b>measured NC1_test</b>",
            format_number(mean[0]),
            "\u2013",
            f"{len(keep)} seeds; NC1_test / (2 err) = {_quotient(mean)}",
        )
    ]
    for line in pair.lines_at(mean[1], mean[2], classes, samples or None):
        span = f"{format_number(line.low)} to {format_number(line.high)}" if math.isfinite(line.low) else "\u2013"
        rows.append((_e(line.name), format_number(line.value), span, _e(line.assumption)))
    return rows + _moment_rows(cell)


def _quotient(mean: Sequence[float]) -> str:
    return format_number(mean[0] / (2 * mean[1])) if mean[1] > 0 else "not defined (no error)"


def _moment_rows(cell: Cell) -> list[tuple[str, str, str, str]]:
    """The error that the moments of the test features predict; its gap to the measured one is non-Gaussianity."""
    found = [one for seed in cell.seeds if (one := points.moment_error(cell, seed)) is not None]
    if not found:
        return []
    gaussian, union, cantelli, measured = (
        sum(column) / len(found) for column in zip(*((p.gaussian, p.union, p.cantelli, m) for p, m in found), strict=True)
    )
    bounds = f"union bound {format_number(union)}, Cantelli {format_number(cantelli)}"
    note = f"Gaussian test features with the measured class means and covariances, {len(found)} seeds"
    rest = f"{note}; measured error {format_number(measured)}; what is missing is non-Gaussianity"
    return [("error predicted from the test moments", format_number(gaussian), bounds, _e(rest))]


def _trainings(table: Table) -> list[str]:
    return [name for name in table.cells if "#" not in name]


def _calibration(table: Table) -> str:
    """What the unconstrained-features model predicts at the network's own regularisation, beside what was measured."""
    names = _trainings(table)[:MOST_CELLS]
    parts = [part for name in names if (part := _calibrated_cell(name, calibrate.calibrations(table, name)))]
    if not parts:
        return ""
    intro = (
        "A network decays its weights, not its features. At an optimum of the unconstrained-features model the two penalties "
        "balance, so the measured norms of classifier and features give the features' decay, and with it the predicted "
        "logits, loss, norms and Grams. Nothing is fitted. The logit gap is the own logit minus the mean of the others, the "
        "margin the own minus the largest other, both of the class means."
    )
    return f"<h2>At the network's own regularisation</h2>\n<p>{_e(intro)}</p>\n" + "\n".join(parts)


def _calibrated_cell(name: str, made: Sequence[calibrate.Calibration]) -> str:
    found = [one for one in made if one.applies and one.values]
    refused = [one.reason for one in made if not one.applies and one.reason != calibrate.NOTHING_KEPT]
    notes = [f"No prediction for {_plural(refused.count(reason))}: {reason}." for reason in dict.fromkeys(refused)]
    if not found:
        return f"<h3>{_e(name)}</h3>\n<p>{_e(' '.join(notes))}</p>" if notes else ""
    rows = []
    for quantity in calibrate.QUANTITIES:
        pairs = [one.values[quantity] for one in found]
        predicted, measured = (sum(column) / len(pairs) for column in zip(*pairs, strict=True))
        ratio = format_number(measured / predicted) if predicted else "\u2013"
        rows.append((_e(quantity), format_number(predicted), format_number(measured), ratio))
    for key in found[0].distances:
        away = sum(one.distances[key] for one in found) / len(found)
        rows.append((_e(f"{key}: relative distance"), "0", format_number(away), "\u2013"))
    columns = [("Quantity", "t"), ("Predicted", "n"), ("Measured", "n"), ("Measured / predicted", "n")]
    price = format_number(sum(one.c for one in found) / len(found))
    caveats = [f"Not met: {text}." for text in dict.fromkeys(c for one in found for c in one.caveats)]
    lead = f"Predicted: {found[0].describes}; c = {price}, means over {_plural(len(found))}."
    small = " ".join([lead, *notes, *caveats])
    return (
        f'<h3>{_e(name)}</h3>\n{_table(columns, rows)}\n<p>{_e(calibrate.explain(found))}</p>\n<p class="small">{_e(small)}</p>'
    )


def _plural(seeds: int) -> str:
    return f"{seeds} seed" + ("s" if seeds != 1 else "")


# --- methods, references, provenance, what is missing ---------------------------------------------------------------


METHODS = (
    "Each claim, its tolerance and its seeds were written in a file before any run. An equivalence claim is decided by two "
    "one-sided tests at the 5 % level over seeds (Student's t, of the logarithm for positive skewed quantities; the interval "
    "shown is the 90 % one), a ratio by one one-sided test. Where a run kept its single test points, the bootstrap error over "
    "them is added in full to the variance over seeds, because seeds may share a test sample. A bound or an identity is "
    "checked at every measured point. The p-values of one table are adjusted by Holm's method. A tolerance above a third of "
    "the 1 % quantile of its null (the untrained network) decides nothing. Fewer than five seeds decide nothing, save for a "
    "bound or an identity that is a theorem."
)
ORDER = "Every statement is about the end of a finite training: samples fixed first, time second."


def _methods(judged: Sequence[Judged]) -> str:
    settings = []
    for one in judged:
        scale = one.paper.scales.get(one.scale or "")
        if scale is not None and scale.summary:
            settings.append(f"{one.paper.name}, scale {one.scale}: {scale.summary}.")
    return f"<h2>Methods</h2>\n<p>{_e(METHODS)}</p>\n<p>{_e(' '.join([*settings, ORDER]))}</p>"


def _references(judged: Sequence[Judged], verdicts: Sequence[Verdict]) -> str:
    from ufm.references import REFERENCES

    keys = dict.fromkeys([*(one.paper.reference for one in judged), *(v.claim.reference for v in verdicts)])
    items = []
    for key in keys:
        if key in REFERENCES:
            entry = REFERENCES[key]
            where = ". ".join(filter(None, (entry.get("venue"), f"arXiv {entry['eprint']}" if entry.get("eprint") else None)))
            items.append(f"<li>[{_e(key)}] {_e(entry['author'])} ({_e(entry['year'])}). {_e(entry['title'])}. {_e(where)}</li>")
    derived = (
        "<li>[derived] Derived and checked numerically in this package; see ufm/theory/separation.py.</li>"
        if "derived" in keys
        else ""
    )
    return f"<h2>References</h2>\n<ul>\n{chr(10).join(items)}\n{derived}\n</ul>" if items or derived else ""


def _provenance(source: Mapping[str, Any]) -> str:
    from compare.figures.drawing import clean

    text = json.dumps(clean(plain(source)), indent=1, sort_keys=True, ensure_ascii=False)
    escaped = "\n".join(_e(line) for line in text.splitlines())
    return f"<h2>Provenance</h2>\n<pre>{escaped}</pre>"


def _left_out(table: Table, verdicts: Sequence[Verdict], not_shown: Sequence[str]) -> str:
    items = [f"claim {v.claim.name}: not run; {v.reason}" for v in verdicts if v.verdict == NOT_RUN]
    items += [f"{x.cell}{'' if x.seed < 0 else f', seed {x.seed}'}: left out; {x.reason}" for x in table.excluded]
    items += [*not_shown, *table.warnings]
    listed = "\n".join(f"<li>{_e(item)}</li>" for item in items) or "<li>Nothing was left out.</li>"
    return f"<h2>Not shown</h2>\n<ul>\n{listed}\n</ul>"
