"""Rows that follow from a training's kept arrays: the calibrated prediction, and the test error that the moments predict.

They are made where they are asked for (`compare table`), not whenever runs are read: ten thousand runs have as many arrays.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from compare import points
from compare.calibrate import QUANTITIES, Calibration, calibrations, loss_scale
from compare.rows import Codes, Table

# measure names of the calibrated quantities, in the order of QUANTITIES
NAMES = dict(
    zip(
        QUANTITIES,
        ("logit_gap", "logit_margin", "loss", "objective", "weight_norm", "feature_norm", "mean_share", "within_share"),
        strict=True,
    )
)
DISTANCES = {
    "logits": "logits_distance",
    "W W^T": "gram_w_distance",
    "M M^T": "gram_h_distance",
    "W W^T, shape": "gram_w_shape_distance",
    "M M^T, shape": "gram_h_shape_distance",
}
FEW_SHOT = "any distribution with these class moments: 4 V (1 + 1/m), V the CDNV of the fine classes, m shots"
MANY_SHOT = "any distribution with these class moments: 4 D/(1 + 4 D), D the directional CDNV, as the shots grow"
MOMENTS = "Gaussian test features with the measured class means and covariances"
MOST_CELLS = 200  # trainings whose arrays are read for one table


def with_derived(table: Table) -> Table:
    """Return the table with the derived rows of its trainings, and with the predictions that follow from them filled in."""
    names = [name for name, cell in table.cells.items() if "#" not in name and cell.seeds][:MOST_CELLS]
    for name in names:
        table = _with_calibration(table, name, calibrations(table, name))
        table = _with_moments(table, name)
    return _with_few_shot(table, names)


def _with_few_shot(table: Table, names: Sequence[str]) -> Table:
    """The bounds by CDNV and, for many shots, by its directional form beside the few-shot error of the fine classes."""
    some = table.where(cell=list(names), measure=["fine_cdnv", "fine_cdnv_directional"])
    some = some.take(some.data["value"] >= 0)
    if not some.rows:
        return table
    from empirical.transfer import SHOTS
    from ufm.theory.separation import few_shot_cdnv_bound

    value, whole = some.data["value"], some.mask(measure="fine_cdnv")
    # 4 D/(1 + 4 D) is concave: of the mean of D over ordered pairs it bounds the mean over pairs.
    bound = np.where(whole, few_shot_cdnv_bound(value, SHOTS), 4 * value / (1 + 4 * value))
    kept = ("paper", "cell", "seed", "epoch", "step", "split", "layer", "centres")
    columns: dict[str, Any] = {key: some[key].tolist() for key in kept}
    columns |= {"value": bound.tolist(), "reference": ["derived"] * some.rows}
    columns["measure"] = ["fine_few_shot_bound_cdnv" if one else "fine_many_shot_bound" for one in whole]
    columns["assumption"] = [f"{FEW_SHOT} = {SHOTS}" if one else MANY_SHOT for one in whole]
    return table.extended(columns)


def _with_calibration(table: Table, name: str, made: Sequence[Calibration]) -> Table:
    rows: list[dict[str, Any]] = []
    for one in made:
        if not one.applies or one.values is None or one.optimality is None:
            continue
        note = assumption(one)
        reference = one.prediction.reference if one.prediction else ""
        same = {"cell": name, "seed": one.seed, "assumption": note, "reference": reference}
        for quantity, (predicted, measured) in one.values.items():
            if quantity == "train loss":
                # The row is in the training's own normalisation of the loss.
                own = predicted / loss_scale(table.cells[name].config, one.problem.classes if one.problem else 0)
                table = _fill(table, {"measure": "loss", "split": "train", "layer": "network"}, name, one.seed, own, note)
            else:
                rows.append({**same, "measure": NAMES[quantity], "value": measured, "predicted": predicted})
        for measure, value in one.geometry.items():
            where = {"measure": measure, "split": "train", "layer": "penultimate", "centres": "self"}
            table = _fill(table, where, name, one.seed, value, note)
        for key, distance in one.distances.items():
            rows.append({**same, "measure": DISTANCES[key], "value": distance, "predicted": 0.0})
        rows.append({**same, "measure": "certificate_gap", "value": one.optimality.gap, "predicted": 0.0})
    return _added(table, name, rows, "train", "self")


def assumption(one: Calibration) -> str:
    """Return the sentence of the column `assumption`."""
    text = f"UFM optimum at the lambda_h of the balance: {one.describes}"
    return "; ".join([text, *one.caveats])


def _with_moments(table: Table, name: str) -> Table:
    """The error predicted from the moments beside `ncc_error`, and the two bounds as rows of their own."""
    cell, rows = table.cells[name], []
    for seed in cell.seeds:
        found = points.moment_error(cell, seed)
        if found is None:
            continue
        predicted, _ = found
        where = {"measure": "ncc_error", "split": "test", "layer": "penultimate", "centres": "train"}
        table = _fill(table, where, name, seed, predicted.gaussian, MOMENTS)
        same = {"cell": name, "seed": seed, "reference": "derived"}
        for measure, value, note in (
            ("ncc_error_moments", predicted.gaussian, MOMENTS),
            ("ncc_error_union", predicted.union, f"{MOMENTS}; sum over pairs, an upper bound"),
            ("ncc_error_cantelli", predicted.cantelli, "any features with these moments, an upper bound"),
        ):
            rows.append({**same, "measure": measure, "value": value, "assumption": note})
    return _added(table, name, rows, "test", "train")


def _fill(table: Table, where: dict[str, Any], name: str, seed: int, value: float, note: str) -> Table:
    """Write a prediction into the rows of one seed's last epoch."""
    mine = np.flatnonzero(table.mask(cell=name, seed=seed, **where))
    if not len(mine):
        return table
    for key in ("epoch", "step"):
        mine = mine[table.data[key][mine] == table.data[key][mine].max()]
    predicted, notes = table.data["predicted"].copy(), table.data["assumption"]
    levels = {text: i for i, text in enumerate(notes.levels)}
    codes = notes.codes.copy()
    predicted[mine], codes[mine] = value, levels.setdefault(note, len(levels))
    return table.with_columns(predicted=predicted, assumption=Codes(codes, tuple(levels)))


def _added(table: Table, name: str, rows: list[dict[str, Any]], split: str, centres: str) -> Table:
    if not rows:
        return table
    own = table.mask(cell=name)
    papers = table.where(cell=name).levels("paper")
    columns: dict[str, list[Any]] = {key: [row.get(key, math.nan) for row in rows] for key in ("value", "predicted")}
    columns |= {key: [row.get(key, "") for row in rows] for key in ("cell", "measure", "assumption", "reference")}
    columns["seed"] = [row["seed"] for row in rows]
    for key in ("epoch", "step"):  # of the seed's last state, whose arrays these are
        last = {seed: int(table.data[key][own & (table.data["seed"] == seed)].max()) for seed in {r["seed"] for r in rows}}
        columns[key] = [last[row["seed"]] for row in rows]
    for key, text in {"paper": papers[0] if papers else "", "split": split, "layer": "penultimate", "centres": centres}.items():
        columns[key] = [text] * len(rows)
    return table.extended(columns)
