"""The singular values of the class means at every layer of a trained head, beside the deep model's structures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

from compare.figures.axes import PLAIN, Legend, draw_curve, finish, panels, title
from compare.figures.drawing import Drawing
from compare.figures.heads import Theory, Trained, of_theory, over_seeds, theories, theory_notes, trained
from compare.figures.series import COLUMNS, Curve, excluded_note, seed_counts
from compare.points import arrays_of, seed_folder
from compare.style import LOOKS, Look, Style, group_look
from ufm.errors import RequestError

MOST_SETTINGS, MOST_LAYERS = 5, 6

Drawn = list[list[tuple[Curve, Look, str]]]  # by layer


def draw(table: Mapping[str, Any], style: Style) -> Drawing:
    """Draw one panel for each H_l of a deep head: the K singular values of its class means, over the largest.

    The means are post-activation and about the origin. Deep neural collapse is flat in every layer; the strongly regular graph
    solution has one value sqrt(2(m-1)), m-1 values sqrt(m-2) and zeros in H_2..H_{L-1}, and is of full rank in H_L.
    One setting: train and test; several: train, one curve each.

    Raises:
        RequestError: the run keeps no class means, more settings than are told apart, or heads of different depths.
    """
    found = trained(table, "spectrum", MOST_SETTINGS)
    numbers = [i for i, name in enumerate(found[0].features) if name][:MOST_LAYERS]
    measured = _measured(table, found, numbers)
    known, unknown = theories(found[0])
    lines: Drawn = [[_line(one, number) for one in known] for number in numbers]
    with style.applied():
        figure = _draw(style, measured, lines, [f"$H_{{{n + 1}}}$" for n in numbers])
    out = [
        row
        for number, here, theory in zip(numbers, measured, lines, strict=True)
        for one, _, _ in [*here, *theory]
        for row in one.rows(f"H_{number + 1}")
    ]
    return Drawing(figure, COLUMNS, out, _notes(found, known, unknown, numbers, measured) + excluded_note(table))


def _measured(table: Mapping[str, Any], found: Sequence[Trained], numbers: Sequence[int]) -> Drawn:
    cells = getattr(table, "cells", None) or {}
    measured: Drawn = [[] for _ in numbers]
    for index, one in enumerate(found):
        cell = cells.get(one.cell)
        kept = [arrays_of(seed_folder(cell, seed)) for seed in cell.seeds] if cell is not None else []
        looks = [("train", LOOKS["train"], "Train"), ("test", LOOKS["test"], "Test")]
        if len(found) > 1:
            looks = [("train", group_look(index), one.label)]
        for here, number in zip(measured, numbers, strict=True):
            for split, look, label in looks:
                means = [arrays[key] for arrays in kept if (key := f"{one.features[number]}/{split}/means") in arrays]
                curve = _profile(f"{label} H_{number + 1}", means)
                if curve:
                    here.append((curve, look, label))
    if not all(measured):
        raise RequestError("a run keeps no class means of the head's layers; train it again with --layers all")
    return measured


def _profile(key: str, means: Sequence[np.ndarray]) -> Curve:
    """Return singular values over the largest, mean over seeds."""
    finite = [m for m in means if np.isfinite(m).all() and np.any(m)]
    spectra = [np.linalg.svd(m, compute_uv=False)[: len(m)] for m in finite]
    return over_seeds(key, list(np.array([s / s[0] for s in spectra]).T))


def _line(one: Theory, number: int) -> tuple[Curve, Look, str]:
    values = one.head.layers[number].singular_values
    return of_theory(f"{one.label} H_{number + 1}", values / values[0]), one.look, one.label


def _draw(style: Style, measured: Drawn, lines: Drawn, names: Sequence[str]) -> Any:
    columns = min(len(names), 4 if style.wide else 2)
    rows = -(-len(names) // columns)
    height = (0.34 if style.wide else 0.48) * style.width
    figure, grid = panels(style, rows, columns, height, sharex=True, sharey=True)
    legend = Legend()
    for ax in grid.ravel()[len(names) :]:
        ax.remove()
    for index, (ax, name) in enumerate(zip(grid.ravel(), names, strict=False)):
        for curve, look, label in [*measured[index], *lines[index]]:
            draw_curve(ax, curve, look, PLAIN, legend, label)
        classes = max(len(c.x) for c, _, _ in measured[index])
        ax.set_xlim(0.5, classes + 0.5)
        ax.xaxis.set_major_locator(MaxNLocator(5, integer=True) if classes > 4 else FixedLocator(list(range(1, classes + 1))))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.set_ylim(-0.03, 1.06)
        title(ax, name.strip("$").replace("{", "").replace("}", ""), f"({'abcdef'[index]}) {name}")
    for ax in grid[:, 0]:
        ax.set_ylabel("Singular value / largest")
    every = [c for here in measured for c, _, _ in here]
    if any(np.isfinite(c.low).any() for c in every):
        legend.band(f"95 % interval, {seed_counts(every)}")
    finish(figure, style, legend, "Index of the singular value of the class means")
    return figure


def _notes(
    found: Sequence[Trained], known: Sequence[Theory], unknown: str, numbers: Sequence[int], measured: Drawn
) -> tuple[str, ...]:
    names = ", ".join(f"H_{i + 1} {found[0].features[i]}" for i in numbers)
    notes = [
        f"Feature layers of the head: {names}. Class means are post-activation and about the origin, at the last epoch.",
        f"Means over {seed_counts([c for here in measured for c, _, _ in here])} with 95 % Student-t intervals.",
    ]
    notes += theory_notes(known, unknown)
    if found[0].depth > MOST_LAYERS:
        notes.append(f"The first {MOST_LAYERS} of {found[0].depth} layers are shown.")
    return tuple(notes)
