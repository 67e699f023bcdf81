"""How a figure looks in a paper: the width of its column, the size of its letters, its colours, lines and markers.

Free of matplotlib until a figure is drawn, so that `compare plot --help` stays quick.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ufm.console import safe_text
from ufm.errors import RequestError
from ufm.tables import suggest

# Text widths of the style files in inches; ICML is one column of its two.
WIDTHS = {"neurips": 5.5, "icml": 3.25, "iclr": 5.5, "jmlr": 6.0, "tmlr": 6.5}
# Letters next to a caption of 9 or 10 pt: one size smaller for labels, never under 7 pt.
SIZES = {"neurips": (8.0, 7.0), "icml": (7.5, 7.0), "iclr": (8.0, 7.0), "jmlr": (9.0, 8.0), "tmlr": (8.5, 7.5)}
NARROWEST, WIDEST = 75.0, 500.0  # mm: below, two labels no longer fit beside each other; above, it is a poster
WIDE = 4.2  # inches: from here on panels stand side by side
MM_PER_INCH = 25.4
LONGEST_LABEL = 28  # characters of a user's own text in a legend or a tick label


@dataclass(frozen=True)
class Look:
    """One curve's colour, dash pattern and marker."""

    color: str
    dashes: Any = "-"  # a matplotlib line style
    marker: str = ""
    width: float = 1.2


# Train is solid and dark, test is dotted, theory is black and dashed. The colours keep apart for the common kinds of colour
# blindness, and in grey by lightness (CIE L*: train 21, strong 46, own means 68, weak 58) together with the markers.
_DOTS = (0, (1.0, 1.1))
LOOKS = {
    "train": Look("#0b2a6f", "-", "o"),
    "test": Look("#c8400a", _DOTS, "s", 1.5),
    "test_self": Look("#e8a000", _DOTS, "^", 1.5),
    "test_weak": Look("#2f9bd0", _DOTS, "v", 1.5),
    "error": Look("#7a4b94", _DOTS, "D", 1.5),
    "ncc_error": Look("#1f9e89", _DOTS, "P", 1.5),
    "weights": Look("#6b6b6b", (0, (5, 1, 1, 1)), "D"),
    "optimum": Look("#000000", (0, (3.2, 2.0)), "", 1.0),
    "theory": Look("#000000", (0, (7.0, 2.0)), "", 1.0),
    "floor": Look("#000000", (0, (5.0, 1.8, 1.2, 1.8)), "", 1.0),
    "gaussian": Look("#000000", (0, (2.0, 1.2)), "", 1.0),
}
# For curves told apart by a group (settings, layers): lightness falls from one to the next, and so does the marker change.
GROUP_COLORS = ("#0b2a6f", "#c8400a", "#1f9e89", "#e8a000", "#8fc3e8", "#7a4b94", "#9a9a9a", "#3d3d3d")
GROUP_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "h")
GROUPS = len(GROUP_COLORS)


@dataclass(frozen=True)
class Style:
    """The size of a figure and of its letters.

    `width` in inches, `label` and `tick` in points. Made by `Style.of("neurips")` or `Style.of("84")` (millimetres).
    """

    name: str
    width: float
    label: float = 8.0
    tick: float = 7.0

    @classmethod
    def of(cls, width: str | float = "neurips") -> Style:
        """Return the style of a venue's name or of a width in mm; RequestError for anything else."""
        if isinstance(width, str) and width.lower() in WIDTHS:
            name = width.lower()
            return cls(name, WIDTHS[name], *SIZES[name])
        try:
            millimetres = float(width)
        except (TypeError, ValueError):
            hint = suggest(safe_text(width)[:60], WIDTHS)
            raise RequestError(f"unknown width {safe_text(width)[:60]!r}; {hint}, or a number of millimetres") from None
        if not (math.isfinite(millimetres) and NARROWEST <= millimetres <= WIDEST):
            raise RequestError(
                f"width {safe_text(width)[:60]} mm is out of range; between {NARROWEST:g} and {WIDEST:g} mm fit a page"
            )
        label, tick = SIZES["neurips"] if millimetres / MM_PER_INCH >= WIDE else SIZES["icml"]
        return cls(f"{millimetres:g} mm", millimetres / MM_PER_INCH, label, tick)

    @property
    def wide(self) -> bool:
        """Whether two panels fit side by side."""
        return self.width >= WIDE

    def rc(self) -> dict[str, Any]:
        """Return the matplotlib settings; every one that changes a byte of the file is here, not in a user's matplotlibrc."""
        return {
            "font.family": ["STIXGeneral", "DejaVu Sans"],  # Times-like, shipped with matplotlib; the second fills its gaps
            "mathtext.fontset": "stix",
            "font.size": self.label,
            "axes.labelsize": self.label,
            "axes.titlesize": self.label,
            "legend.fontsize": self.tick,
            "xtick.labelsize": self.tick,
            "ytick.labelsize": self.tick,
            "axes.linewidth": 0.6,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.axisbelow": True,
            "axes.labelpad": 4.0,
            "axes.titlepad": 4.0,
            "axes.unicode_minus": True,
            "grid.color": "#dddddd",
            "grid.linewidth": 0.4,
            "xtick.major.width": 0.6,
            "ytick.major.width": 0.6,
            "xtick.minor.width": 0.4,
            "ytick.minor.width": 0.4,
            "xtick.major.size": 2.8,
            "ytick.major.size": 2.8,
            "xtick.minor.size": 1.6,
            "ytick.minor.size": 1.6,
            "xtick.major.pad": 2.0,
            "ytick.major.pad": 2.0,
            "lines.markersize": 4.0,
            "lines.markeredgewidth": 0.4,
            "lines.scale_dashes": True,
            "patch.linewidth": 0.0,
            "legend.frameon": False,
            "legend.handlelength": 2.4,
            "legend.columnspacing": 1.1,
            "legend.labelspacing": 0.35,
            "legend.borderaxespad": 0.2,
            "figure.dpi": 100,
            "savefig.dpi": 300,
            "savefig.facecolor": "white",
            "figure.facecolor": "white",
            "pdf.fonttype": 42,
            "ps.fonttype": 42,
            "pdf.compression": 6,
            "svg.fonttype": "path",
            "svg.hashsalt": "ufm",
            "svg.id": None,
            "path.simplify": False,
            "pgf.rcfonts": False,  # else the folder of the fonts on this machine is written into the file
            "text.usetex": False,
        }

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Draw under this style alone: matplotlib's defaults first, whatever a user's matplotlibrc says."""
        import matplotlib.style

        with matplotlib.style.context(["default", _known(self.rc())]):
            yield


def _known(settings: dict[str, Any]) -> dict[str, Any]:
    """Leave out what an older matplotlib does not know (svg.id came in 3.10)."""
    import matplotlib

    return {key: value for key, value in settings.items() if key in matplotlib.rcParams}


def group_look(index: int, *, dashes: Any = "-") -> Look:
    """Return the look of the `index`-th group; they repeat after GROUPS."""
    return Look(GROUP_COLORS[index % GROUPS], dashes, GROUP_MARKERS[index % GROUPS])


# From the first to the last shade: the hues of train and of test, and none.
_SHADES = {
    "train": ((0.74, 0.83, 0.94), (0.06, 0.28, 0.62)),
    "test": ((0.98, 0.80, 0.66), (0.68, 0.20, 0.00)),
    "": ((0.80, 0.80, 0.80), (0.25, 0.25, 0.25)),
}


def shades(count: int, split: str = "train") -> list[str]:
    """Return `count` colours from light to dark, for a quantity that grows (epochs): one hue, so grey keeps the order."""
    light, dark = _SHADES[split]
    steps = [1.0] if count == 1 else [i / (count - 1) for i in range(count)]
    return ["#" + "".join(f"{round(255 * (a + (b - a) * s)):02x}" for a, b in zip(light, dark, strict=True)) for s in steps]


def escape(text: Any, longest: int = LONGEST_LABEL) -> str:
    r"""Return a user's text as a label: no control characters, no mathematics, no missing glyphs, at most `longest` characters.

    A dollar sign is the only character that matplotlib reads (`\` and `_` mean something only between two of them).
    """
    line = " ".join(safe_text(text).split())
    if len(line) > longest:
        line = line[: longest - 1].rstrip() + "…"
    known = _glyphs()
    return "".join(c if ord(c) in known else "?" for c in line).replace("$", r"\$")


@functools.cache
def _glyphs() -> frozenset[int]:
    """Return the code points that the figure's two fonts can draw."""
    from matplotlib import font_manager

    found: set[int] = set()
    for family in ("STIXGeneral", "DejaVu Sans"):
        found |= set(font_manager.get_font(font_manager.findfont(family)).get_charmap())
    return frozenset(found)


def check_label(text: str) -> str:
    """Return `text` if matplotlib can set it, else a RequestError: to be asked before a long run, not after."""
    from matplotlib.mathtext import MathTextParser

    try:
        MathTextParser("path").parse(text)
    except (ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[-1]
        raise RequestError(f"the label {safe_text(text)[:60]!r} cannot be set ({reason}); write \\$ for a dollar sign") from None
    return text
