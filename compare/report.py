"""One self-contained HTML page: verdicts first, then figures, theory of the test panel, methods, provenance, what is not shown.

No script, no network: the content security policy forbids both, and every text from a run is escaped where it goes.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from compare import report_conventions, report_theory
from compare.judging import Judged, named_cell
from compare.outcome import AGREES, DEVIATES, NOT_RUN, UNDECIDED, Verdict, estimated, expected, summary
from compare.page import POLICY, STYLE, escape, html_table, sentence, signs
from compare.pictures import Picture
from compare.rows import Table
from ufm.console import format_number, plain, safe_text
from ufm.errors import RequestError
from ufm.files import atomic_write

MOST_DETAILS = 60  # claims explained one by one; of more, only those that do not agree
MARKS = {AGREES: "\u2713", DEVIATES: "\u2717", UNDECIDED: "?", NOT_RUN: "\u2013"}  # a word and a sign, never a colour alone


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
        f"<h1>{escape(heading)}</h1>",
        f'<p class="lead">{escape(_lead(judged, verdicts))}</p>',
        *(f'<p class="small">{escape(one.paper.note)}</p>' for one in judged if one.paper.note),
        *(_verdict_section(one) for one in judged),
        _figures(pictures, {v.cell: named_cell(v) for v in verdicts}),
        report_theory.test_panel(table),
        report_theory.calibration(table),
        report_conventions.section(table),
        _methods(judged),
        _references(judged, verdicts),
        _provenance(source or {}),
        _left_out(table, verdicts, not_shown),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(POLICY)}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(heading)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(filter(None, body))
        + "\n</main>\n</body>\n</html>\n"
    )


def _lead(judged: Sequence[Judged], verdicts: Sequence[Verdict]) -> str:
    if not verdicts:
        return "No claim was judged: these runs belong to no known paper and hold no test features about train means."
    counts = summary(verdicts)
    names = ", ".join(one.title for one in judged)
    return f"{len(verdicts)} claims of {names}: {counts}."


# --- verdicts ----------------------------------------------------------------------------------------------------


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
        where = f'<br><span class="small">{escape(named_cell(v))}</span>' if several and v.cell else ""
        measured = f'{escape(_measured(v))}<br><span class="small">{estimated(v.claim)}</span>'
        shown = [measured, escape(_interval(v)), signs(expected(v.claim)), str(len(v.seeds))]
        rows.append([signs(v.claim.text) + where, _mark(v.verdict), *shown, _control_mark(v)])
    detailed = (
        one.verdicts if len(one.verdicts) <= MOST_DETAILS else [v for v in one.verdicts if v.verdict != AGREES][:MOST_DETAILS]
    )
    more = "" if detailed is one.verdicts else f'\n<p class="small">Details of {len(detailed)} of {len(one.verdicts)} claims.</p>'
    return (
        f"<h2>Verdicts: {escape(one.title)}</h2>\n{html_table(columns, rows)}\n"
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
    lines = [f"<h3>{escape(v.claim.name)}: {escape(v.verdict)}</h3>", f"<p>{signs(sentence(v.reason))}</p>"]
    if v.control is not None:
        lines.append(
            f"<p>Control, {escape(v.claim.control_text)}: {escape(v.control.verdict)}; {signs(sentence(v.control.reason))}</p>"
        )
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
    lines.append(f'<p class="small">{escape(" ".join(facts))}</p>')
    return "\n".join(lines)


# --- figures and the test panel ----------------------------------------------------------------------------------


def _figures(pictures: Sequence[Picture], called: Mapping[str, str]) -> str:
    if not pictures:
        return ""
    several = len({p.cell for p in pictures}) > 1
    parts = ["<h2>Figures</h2>"]
    for number, picture in enumerate(pictures, 1):
        # An image cannot run anything, and its ids cannot clash with those of the next figure.
        data = base64.b64encode(picture.svg).decode("ascii")
        where = f" Run {called.get(picture.cell, picture.cell)}." if several and picture.cell else ""
        caption = f"Figure {number}. {sentence(picture.caption[:1].upper() + picture.caption[1:])}{where}"
        more = " ".join(sentence(note) for note in picture.notes)
        details = f"<details><summary>How to read it</summary><p>{escape(more)}</p></details>" if more else ""
        alt = f"{picture.figure} of {picture.cell or 'all runs'}"
        parts.append(
            f'<figure><img alt="{escape(alt)}" src="data:image/svg+xml;base64,{data}">'
            f"<figcaption>{escape(caption)}{details}</figcaption></figure>"
        )
    return "\n".join(parts)


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
    return f"<h2>Methods</h2>\n<p>{escape(METHODS)}</p>\n<p>{escape(' '.join([*settings, ORDER]))}</p>"


def _references(judged: Sequence[Judged], verdicts: Sequence[Verdict]) -> str:
    from ufm.references import REFERENCES

    keys = dict.fromkeys([*(one.paper.reference for one in judged), *(v.claim.reference for v in verdicts)])
    items = []
    for key in keys:
        if key in REFERENCES:
            entry = REFERENCES[key]
            where = ". ".join(filter(None, (entry.get("venue"), f"arXiv {entry['eprint']}" if entry.get("eprint") else None)))
            items.append(
                f"<li>[{escape(key)}] {escape(entry['author'])} ({escape(entry['year'])}). "
                f"{escape(entry['title'])}. {escape(where)}</li>"
            )
    derived = (
        "<li>[derived] Derived and checked numerically in this package; see ufm/theory/separation.py.</li>"
        if "derived" in keys
        else ""
    )
    return f"<h2>References</h2>\n<ul>\n{chr(10).join(items)}\n{derived}\n</ul>" if items or derived else ""


def _provenance(source: Mapping[str, Any]) -> str:
    from compare.figures.drawing import clean

    text = json.dumps(clean(plain(source)), indent=1, sort_keys=True, ensure_ascii=False)
    escaped = "\n".join(escape(line) for line in text.splitlines())
    return f"<h2>Provenance</h2>\n<pre>{escaped}</pre>"


def _left_out(table: Table, verdicts: Sequence[Verdict], not_shown: Sequence[str]) -> str:
    items = [f"claim {v.claim.name}: not run; {v.reason}" for v in verdicts if v.verdict == NOT_RUN]
    items += [f"{x.cell}{'' if x.seed < 0 else f', seed {x.seed}'}: left out; {x.reason}" for x in table.excluded]
    items += [*not_shown, *table.warnings]
    listed = "\n".join(f"<li>{escape(item)}</li>" for item in items) or "<li>Nothing was left out.</li>"
    return f"<h2>Not shown</h2>\n<ul>\n{listed}\n</ul>"
