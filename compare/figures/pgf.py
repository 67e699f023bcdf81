r"""PGF for `\input` in a paper, written without LaTeX: text is measured by matplotlib's own fonts and set by the paper's.

matplotlib's own PGF canvas starts LaTeX to measure every label; here the layout is already final, so only its renderer is used.
"""

from __future__ import annotations

import io
import re
from typing import Any

from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.backends.backend_pgf import RendererPgf
from matplotlib.figure import Figure

from compare.style import Style

_SPECIAL = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "#": r"\#",
    "%": r"\%",
    "&": r"\&",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "$": r"\$",
    "…": r"\ldots{}",
    "–": "--",
}
_MATHEMATICS = re.compile(r"((?<!\\)\$.*?(?<!\\)\$)")


def to_pgf(figure: Figure, style: Style, origin: str) -> str:
    r"""Return the figure as one `pgfpicture`; needs `\usepackage{pgf}` in the paper and nothing to write it."""
    stream = io.StringIO()
    width, height = figure.get_size_inches()
    stream.write("%% Creator: ufm. Needs \\usepackage{pgf}; include with \\input{this file}.\n")
    stream.write(f"%% {origin}\n\\begingroup%\n\\makeatletter%\n\\begin{{pgfpicture}}%\n")
    stream.write(f"\\pgfpathrectangle{{\\pgfpointorigin}}{{\\pgfqpoint{{{width:f}in}}{{{height:f}in}}}}%\n")
    stream.write("\\pgfusepath{use as bounding box, clip}%\n")
    with style.applied():
        figure.draw(_Renderer(figure, stream))
    stream.write("\\end{pgfpicture}%\n\\makeatother%\n\\endgroup%\n")
    return stream.getvalue()


class _Renderer(RendererPgf):
    """matplotlib's PGF renderer with text measured by Agg and a user's text escaped for LaTeX."""

    def __init__(self, figure: Figure, stream: io.StringIO) -> None:
        super().__init__(figure, stream)
        self._measure = RendererAgg(1, 1, figure.dpi)

    def get_text_width_height_descent(self, s: str, prop: Any, ismath: Any) -> tuple[float, float, float]:
        return self._measure.get_text_width_height_descent(s, prop, ismath)

    def draw_text(
        self, gc: Any, x: float, y: float, s: str, prop: Any, angle: float, ismath: Any = False, mtext: Any = None
    ) -> None:
        super().draw_text(gc, x, y, to_latex(s, bool(ismath)), prop, angle, False, mtext)


def to_latex(text: str, mathematics: bool) -> str:
    """Return a label with everything outside its mathematics escaped for LaTeX."""
    parts = _MATHEMATICS.split(text) if mathematics else [text]
    return "".join(part if i % 2 else _escape(part) for i, part in enumerate(parts))


def _escape(text: str) -> str:
    return "".join(_SPECIAL.get(c, c) for c in text.replace(r"\$", "$"))
