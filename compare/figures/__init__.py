"""The figures: one file each with `draw(table, style) -> Drawing`. This table imports neither matplotlib nor torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ufm.tables import Entry, load

if TYPE_CHECKING:
    from compare.figures.drawing import Drawing
    from compare.style import Style

FIGURES = {
    "trajectory": Entry(
        "compare.figures.trajectory:draw",
        "NC1 and the error over training: train, test about its own and about the train means, with the theory lines",
        "one setting; the lines floor and 2 err need K affinely independent train means",
        "hui2022",
    ),
    "nc": Entry(
        "compare.figures.nc:draw",
        "NC1 to NC4 over training on train and on test, with their value at the optimum",
        "one setting; the optimum is a simplex ETF (balanced classes, d >= K - 1)",
        "papyan2020",
    ),
    "layers": Entry(
        "compare.figures.layers:draw",
        "the cascade: NC1 and the nearest-class-mean error against depth, train and test, with the log-linear fit",
        "one setting measured at two or more layers; trainings with --head deep: rank, cosines, norm balance beside DNC and SRG",
        "hesu2023",
    ),
    "hero": Entry(
        "compare.figures.hero:draw",
        "test error against test NC1 for all runs, epochs and layers, with the floor, the line 2 err and the Gaussian-ETF curve",
        "any settings; the lines need K affinely independent train means",
        "hui2022",
    ),
    "sweep": Entry(
        "compare.figures.sweep:draw",
        "a theory sweep: loss, logit gap, norms and angles on their predicted curves, certificate, thresholds",
        "cells of `ufm simulate` that differ in one or two options",
        "zhu2021",
    ),
    "samples": Entry(
        "compare.figures.samples:draw",
        "NC1 and the error at the end of training against the number of train samples per class",
        "trainings that differ in train_per_class alone",
        "hui2022",
    ),
    "transfer": Entry(
        "compare.figures.transfer:draw",
        "accuracy of probes of the fine labels over coarse training, with NC1, directional CDNV and effective rank",
        "one or two settings of `empirical run transfer`",
        "hui2022",
    ),
    "alignment": Entry(
        "compare.figures.alignment:draw",
        "test accuracy by permutation of the classes over fixed vertices, and margins through the terminal phase",
        "one to four settings of `empirical run alignment`; frames drawn uniformly",
        "gao2023",
    ),
    "shortcut": Entry(
        "compare.figures.shortcut:draw",
        "accuracy by group of samples over training, NC1 by label and by a spurious attribute, train and test",
        "one or two settings of `empirical run shortcut`",
        "wang2024",
    ),
    "nesy": Entry(
        "compare.figures.nesy:draw",
        "accuracy on digits of which only sums are labelled, and NC1 by the unseen digits, from scratch and pretrained",
        "runs of `empirical run nesy`: up to three numbers of operands, one setting of each start",
        "daniele2024",
    ),
    "gram": Entry(
        "compare.figures.gram:draw",
        "cosines between class means as heat maps (predicted, train, test); Gram matrices of a theory sweep beside theory's",
        "one setting; predicted is the optimum at the network's own regularisation, else a simplex ETF",
        "papyan2020",
    ),
    "calibration": Entry(
        "compare.figures.calibration:draw",
        "logits and Gram matrices at the network's own regularisation, predicted and measured, with their relative distances",
        "one setting with weight decay; the two penalties balance as at an optimum of the model",
        "derived",
    ),
    "confusion": Entry(
        "compare.figures.confusion:draw",
        "which class test points are taken for, by the classifier and by the nearest train mean",
        "one setting",
        "hui2022",
    ),
    "spectrum": Entry(
        "compare.figures.spectrum:draw",
        "singular values of class means and classifier against a simplex ETF's, and the spread within classes",
        "one setting; flat for balanced classes and d >= K - 1; trainings with --head deep: every layer beside DNC and SRG",
        "zhu2021",
    ),
    "geometry": Entry(
        "compare.figures.geometry:draw",
        "the three most confused classes in the plane of their means: train and test spread, test points, nearest-mean borders",
        "one setting with three or more classes; one seed",
        "hui2022",
    ),
    "flow": Entry(
        "compare.figures.flow:draw",
        "gradient flow over time: modes beside their closed form, collapse, margin",
        "runs of `ufm simulate flow --trajectory`",
        "mixon2020",
    ),
    "starvation": Entry(
        "compare.figures.starvation:draw",
        "how a model answers to a strong and a weak feature, and what the strong one takes, under each penalty",
        "a sweep of `ufm simulate starvation` over a number, such as --s1",
        "pezeshki2020",
    ),
    "phase": Entry(
        "compare.figures.phase:draw",
        "where random starts of a deep model end, over what was swept; where overfitting is benign, over signal and dimension",
        "runs of `ufm simulate deep` with several seeds, or of `ufm simulate benign`",
        "sukenik2024",
    ),
}


def draw(name: str, table: Mapping[str, Any], style: Style) -> Drawing:
    """Draw the figure `name` of a table's rows; RequestError for an unknown name or a table that lacks what it needs."""
    return load(FIGURES, name, "figure")(table, style)


def save(drawing: Drawing, path: str | Path, *, style: Style, provenance: Mapping[str, Any]) -> list[Path]:
    """Write F.{pdf,svg,png,pgf}, the numbers as F.csv and where they come from as F.json; see `compare.figures.drawing.save`."""
    from compare.figures import drawing as drawings

    return drawings.save(drawing, path, style=style, provenance=provenance)
