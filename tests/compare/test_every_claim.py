"""Every claim of every paper can fail: on numbers made for it it agrees, its control deviates, a wrong prediction turns it.

Claims on trainings are asked of made-up rows: the claim's own quantities where it holds, its control's where it fails. Claims on
theory sweeps are asked of their sweeps, really run, at the demo scale (`test_every_paper.py`).
"""

import dataclasses

import pytest

from compare import points
from compare.papers import PAPERS, Quantity, paper
from compare.rows import Cell, table_of
from compare.sweeps import Field
from compare.verdict import AGREES, DEVIATES, judge_claim

CASES = [(name, claim) for name in PAPERS for claim in paper(name).claims if isinstance(claim.value, Quantity)]
SEEDS, LAST = range(5), 100_000  # later than any epoch that a claim names
FIT = 50_000  # of train error 0, for claims that speak of it
JITTER = (0.0, 0.01, -0.01, 0.005, -0.005)


def wrong(claim):
    """Return the claim with a prediction that the same numbers contradict."""
    if claim.kind == "equivalence":
        return dataclasses.replace(claim, predicted=claim.predicted + 50 * claim.tolerance + (1.0 if claim.log else 0.0))
    if claim.kind == "ratio":
        return dataclasses.replace(claim, least=claim.least * 1e4, least_each=claim.least_each * 1e4)
    if claim.kind == "bound":
        over = abs(claim.over) + 1e9 if isinstance(claim.over, float) else dataclasses.replace(claim.over, factor=1e9)
        return dataclasses.replace(claim, over=over)
    if claim.kind == "identity":
        first, *rest = claim.terms
        return dataclasses.replace(claim, terms=(dataclasses.replace(first, factor=first.factor * 1.01), *rest))
    if claim.kind == "share":
        return dataclasses.replace(claim, value=dataclasses.replace(claim.value, equals="nothing of the kind", below=None))
    if isinstance(claim.over, Field):
        return dataclasses.replace(claim, over=dataclasses.replace(claim.over, factor=claim.over.factor * 1.5 + 0.1))
    return dataclasses.replace(claim, predicted=claim.predicted + 50 * claim.tolerance)


class Numbers:
    """Values of quantities in cells; the first value that is set for a place stands."""

    def __init__(self):
        self.values = {}

    def place(self, cell, quantity):
        epoch = {"last": LAST, "all": LAST, "mean": LAST, "fitted": FIT}.get(quantity.epoch, quantity.epoch)
        return (quantity.cell or cell, quantity.measure, quantity.split, quantity.layer, quantity.centres, epoch)

    def put(self, cell, quantity, value):
        """Set what the claim reads there (its factor taken into account); return what it now reads."""
        return self.values.setdefault(self.place(cell, quantity), value / quantity.factor) * quantity.factor

    def known(self, cell, quantity):
        return self.place(cell, quantity) in self.values

    def tables(self, spread):
        """Return cell -> rows of five seeds, which differ by at most `spread` times a per cent."""
        made = {}
        for cell in dict.fromkeys(place[0] for place in self.values):
            lines = [(*place, seed, value) for place, value in self.values.items() if place[0] == cell for seed in SEEDS]
            if any(line[5] == FIT for line in lines):
                lines += [
                    (cell, "error", "train", "network", "self", epoch, seed, 0.0) for epoch in (FIT, LAST) for seed in SEEDS
                ]
            names = ("cell", "measure", "split", "layer", "centres", "epoch", "seed", "value")
            columns = dict(zip(names, map(list, zip(*lines, strict=True)), strict=True))
            columns["value"] = [
                v * (1 + spread * JITTER[seed]) for v, seed in zip(columns["value"], columns["seed"], strict=True)
            ]
            made[cell] = table_of(columns, {cell: Cell(cell, "collapse", "", {}, {}, tuple(SEEDS))})
        return made


def numbers_for(claim):
    """Return values with which the claim holds and its control does not."""
    made, own, control = Numbers(), claim.cell, claim.controlled()
    there = claim.control.get("cell", own)
    if claim.kind == "equivalence":
        made.put(own, claim.value, claim.predicted + (claim.tolerance / 20 if claim.log or not claim.predicted else 0.0))
        if claim.null and "random" not in claim.null:
            made.put(claim.null.get("cell", own), claim.value.changed(claim.null), claim.predicted + 1000 * claim.tolerance)
        made.put(there, control.value, control.predicted + 100 * claim.tolerance)
    elif claim.kind in ("ratio", "bound"):
        _compared(made, claim, control, own, there)
    else:
        total = sum(made.put(own, term, 1.0 + 0.1 * i) for i, term in enumerate(claim.terms))
        made.put(own, claim.value, total)
        if there != own or control.value != claim.value:
            for term in control.terms:
                made.put(there, term, 1.0)
            made.put(there, control.value, 3.0 * len(control.terms))
    return made


def _compared(made, claim, control, own, there):
    least, bad = (claim.least, control.least) if claim.kind == "ratio" else (1.0, 1.0)

    def under(one, cell):
        return one.over if isinstance(one.over, float) else made.put(cell, one.over, 1.0)

    bottom = under(claim, own)
    same = made.place(own, claim.value) == made.place(there, control.value)
    if same and isinstance(claim.over, Quantity) and made.known(there, control.over):
        # The same two numbers with another factor or another least: between the two demands lies a value that meets one.
        demanded = under(control, there) * bad
        assert demanded > 1.5 * least * bottom, "the control asks for less than the claim"
        made.put(own, claim.value, (demanded * max(least, claim.least_each) * bottom) ** 0.5)
        return
    made.put(own, claim.value, 3 * max(least, claim.least_each) * bottom)
    if same:
        reached = made.put(own, claim.value, 0.0)
        if isinstance(control.over, Quantity):
            made.put(there, control.over, 1e3 * reached)
        return
    made.put(there, control.value, min(1.0, bad) * under(control, there) * 1e-3)


@pytest.fixture(autouse=True)
def _shape(monkeypatch):
    monkeypatch.setattr(points, "classifier_shape", lambda cell: (10, 512))  # for nulls of random means


@pytest.mark.parametrize("name, claim", CASES, ids=[f"{name}-{claim.name}" for name, claim in CASES])
def test_a_claim_on_trainings_agrees_its_control_deviates_and_a_wrong_prediction_turns_it(name, claim):
    tables = numbers_for(claim).tables(spread=0 if claim.kind == "identity" else 1)
    made = judge_claim(tables[claim.cell], claim, cell=claim.cell, others=tables)
    assert made.verdict == AGREES, made.reason
    assert made.control.verdict == DEVIATES, made.control.reason
    planted = judge_claim(tables[claim.cell], wrong(claim), cell=claim.cell, others=tables)
    assert planted.verdict == DEVIATES, planted.reason


def reads(claim, cell):
    """Return what the claim compares, each with the cell it is read from; factors change no question."""

    def place(quantity):
        if not isinstance(quantity, Quantity):
            return quantity
        return dataclasses.replace(quantity, cell=quantity.cell or cell, factor=1.0)

    return place(claim.value), place(claim.over), tuple(map(place, claim.terms))


def idle(claim):
    """Return why the control of a claim could find nothing whatever was measured; "" if it could."""
    control, there = claim.controlled(), claim.control.get("cell", claim.cell)
    value, over, terms = reads(control, there)
    if claim.kind in ("ratio", "bound") and value == over:
        return "holds a quantity against itself"
    numbers = [
        (c.predicted, c.tolerance, c.least, c.least_each, c.value.factor, getattr(c.over, "factor", 0)) for c in (claim, control)
    ]
    if (value, over, terms) == reads(claim, claim.cell) and numbers[0] == numbers[1]:
        return "leaves the claim as it is"
    return ""


@pytest.mark.parametrize("name, claim", CASES, ids=[f"{name}-{claim.name}" for name, claim in CASES])
def test_a_control_asks_something_of_numbers(name, claim):
    assert not idle(claim)


def test_a_control_that_asks_nothing_is_found():
    rises = next(c for c in paper("gao2023").claims if c.name == "test-accuracy-rises")
    pays = next(c for c in paper("gao2023").claims if c.name == "terminal-phase-pays")
    floor = next(c for c in paper("gao2023").claims if c.name == "least-margin-rises")
    for claim, control in [
        (rises, {"epoch": "fitted"}),
        (rises, {"epoch": "last"}),
        (pays, {"cell": "stopped"}),
        (pays, {"over_cell": "learned"}),
        (pays, {"epoch": "last"}),
        (floor, {"split": "train"}),
    ]:
        assert idle(dataclasses.replace(claim, control=control)), control


def test_every_claim_is_asked():
    asked = {(name, claim.name) for name, claim in CASES}
    sweeps = {(name, c.name) for name in PAPERS for c in paper(name).claims if isinstance(c.value, Field)}
    assert asked | sweeps == {(name, c.name) for name in PAPERS for c in paper(name).claims} and not asked & sweeps
