"""What theory says beside what was measured, as sections of the report: the test panel, and the calibrated optimum."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from compare import calibrate, pair, points
from compare.page import escape, html_table, plural_seeds
from compare.pictures import MOST_CELLS
from compare.rows import Cell, Table
from ufm.console import format_number

EXACT = 1e-6  # relative: what float32 features leave of a theorem, as in compare/papers/general.toml


def test_panel(table: Table) -> str:
    """What theory says of the last state's test features, beside what was measured, setting by setting."""
    parts = []
    for name, part in table.by_cell(_trainings(table)[:MOST_CELLS]).items():
        rows = _test_rows(part, table.cells[name])
        if rows:
            columns = [("What theory says of NC1_test", "t"), ("Value", "n"), ("Interval", "n"), ("Under the assumption", "t")]
            parts.append(f"<h3>{escape(name)}</h3>\n{html_table(columns, rows)}")
    if not parts:
        return ""
    intro = (
        "The unconstrained-features model predicts the train panels and says nothing of test features. What can be said of "
        "them follows from the test error; values are means over seeds at the last epoch, NC1 about the train means "
        "(Tr(S_W S_B^+)/K)."
    )
    held = "\n".join(f"<p>{escape(line)}</p>" for line in held_everywhere(table))
    return f"<h2>The test panel: bounds and lines</h2>\n<p>{escape(intro)}</p>\n{held}\n" + "\n".join(parts)


def held_everywhere(table: Table) -> list[str]:
    """Return what became of the identity and of the floor at every measured point: each seed, state and layer.

    strong = weak + between + cross always; NC1_test >= err_B/2 where the train means have rank K-1, that is where
    between = 2 err. Both are theorems, so that a point outside is a fault of the measuring.
    """
    terms = ("nc1_pinv_weak", "nc1_pinv_between", "nc1_pinv_cross")
    joined = table.where(split="test", centres="train").points("nc1_pinv_strong", *terms, "ncc_error", "ncc_error_between")
    strong, parts = joined["nc1_pinv_strong"], np.stack([joined[name] for name in terms])
    size = np.fmax(np.abs(parts).max(0, initial=0.0), np.abs(strong))
    residual = np.abs(strong - parts.sum(0)) / np.where(size > 0, size, 1.0)
    known = np.isfinite(residual)
    if not known.any():
        return []
    bad = int((residual[known] > EXACT).sum())
    lines = [
        f"NC1_test = weak + between + cross at {_all_or(int(known.sum()), bad)} measured points, every layer and state counted: "
        f"largest relative residual {format_number(residual[known].max())}."
    ]
    error, floor = joined["ncc_error"], joined["ncc_error_between"] / 2
    with np.errstate(invalid="ignore"):
        full = known & (floor > 0) & np.isclose(joined["nc1_pinv_between"], 2 * error, rtol=1e-4, atol=1e-9)
    if full.any():
        share = strong[full] / floor[full]
        below = int((share < 1 - EXACT).sum())
        lines.append(
            f"NC1_test >= err_B/2 at {_all_or(int(full.sum()), below)} of them with an error and train means of rank K-1: "
            f"at least {format_number(share.min())} times the floor."
        )
    return lines


def _all_or(number: int, bad: int) -> str:
    return f"all {number}" if not bad else f"{number - bad} of {number}"


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
        rows.append((escape(line.name), format_number(line.value), span, escape(line.assumption)))
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
    return [("error predicted from the test moments", format_number(gaussian), bounds, escape(rest))]


def _trainings(table: Table) -> list[str]:
    return [name for name in table.cells if "#" not in name]


def calibration(table: Table) -> str:
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
    return f"<h2>At the network's own regularisation</h2>\n<p>{escape(intro)}</p>\n" + "\n".join(parts)


def _calibrated_cell(name: str, made: Sequence[calibrate.Calibration]) -> str:
    found = [one for one in made if one.applies and one.values]
    refused = [one.reason for one in made if not one.applies and one.reason != calibrate.NOTHING_KEPT]
    notes = [f"No prediction for {plural_seeds(refused.count(reason))}: {reason}." for reason in dict.fromkeys(refused)]
    if not found:
        return f"<h3>{escape(name)}</h3>\n<p>{escape(' '.join(notes))}</p>" if notes else ""
    rows = []
    for quantity in calibrate.QUANTITIES:
        pairs = [one.values[quantity] for one in found]
        predicted, measured = (sum(column) / len(pairs) for column in zip(*pairs, strict=True))
        ratio = format_number(measured / predicted) if predicted else "\u2013"
        rows.append((escape(quantity), format_number(predicted), format_number(measured), ratio))
    for key in found[0].distances:
        away = sum(one.distances[key] for one in found) / len(found)
        rows.append((escape(f"{key}: relative distance"), "0", format_number(away), "\u2013"))
    columns = [("Quantity", "t"), ("Predicted", "n"), ("Measured", "n"), ("Measured / predicted", "n")]
    price = format_number(sum(one.c for one in found) / len(found))
    caveats = [f"Not met: {text}." for text in dict.fromkeys(c for one in found for c in one.caveats)]
    lead = f"Predicted: {found[0].describes}; c = {price}, means over {plural_seeds(len(found))}."
    small = " ".join([lead, *notes, *caveats])
    told = f'<p>{escape(calibrate.explain(found))}</p>\n<p class="small">{escape(small)}</p>'
    return f"<h3>{escape(name)}</h3>\n{html_table(columns, rows)}\n{told}"
