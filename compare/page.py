"""The parts every page is made of: its style and content security policy, escaping, tables, sentences."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from typing import Any

from ufm.console import safe_text

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
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
details summary { cursor: pointer; color: #444; } details p { margin: .2rem 0; }
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


def escape(text: Any) -> str:
    """Escape for HTML text and quoted attributes, without control characters."""
    return html.escape(safe_text(text), quote=True)


def signs(text: Any) -> str:
    """Escape, with the signs of mathematics for their stand-ins on a terminal."""
    return escape(str(text).replace("+-", "\u00b1").replace(">=", "\u2265").replace("<=", "\u2264").replace(" x ", " \u00d7 "))


def html_table(columns: Sequence[tuple[str, str]], rows: Iterable[Sequence[str]]) -> str:
    """Return a table; columns are (heading, class), cells are HTML already escaped."""
    head = "".join(f'<th scope="col" class="{c}">{escape(name)}</th>' for name, c in columns)
    body = "\n".join(
        "<tr>"
        + "".join(
            f'<td class="{c}" data-l="{escape(name)}"><span>{cell}</span></td>'
            for cell, (name, c) in zip(row, columns, strict=True)
        )
        + "</tr>"
        for row in rows
    )
    return f'<div class="scroll"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table></div>'


def sentence(text: str) -> str:
    """Return the text with a capital and a full stop."""
    first = text.partition(" ")[0]
    start = text[:1].upper() if first.isalpha() else text[:1]  # a measure's name keeps its spelling
    return start + text[1:] + ("" if text.endswith(".") else ".")


def plural_seeds(seeds: int) -> str:
    """Return '5 seeds' or '1 seed'."""
    return f"{seeds} seed" + ("s" if seeds != 1 else "")
