"""What a claim reads across the cells of a sweep: where a curve crosses a level, and how far settings lie apart."""

import dataclasses
import math

import numpy as np
import pytest

from compare.kinds import KINDS
from compare.papers import paper
from compare.sweeps import Field, Sheet, last_crossing
from ufm.errors import RequestError


def row(seed, value, **parameters):
    return {"seed": seed, "value": value, "place": parameters.get("x"), "parameters": {"system": "benign", **parameters}}


def test_a_crossing_lies_on_the_line_between_two_cells_and_the_last_one_counts():
    assert last_crossing({1.0: [0.5], 2.0: [0.1]}, 0.2) == pytest.approx(1.75)
    assert last_crossing({1.0: [0.1], 2.0: [0.5], 4.0: [0.1]}, 0.3) == pytest.approx(3.0)
    assert last_crossing({1.0: [0.6, 0.4], 3.0: [0.0, 0.2]}, 0.3) == pytest.approx(2.0)  # of means
    for never in ({1.0: [0.5], 2.0: [0.4]}, {1.0: [0.1]}, {1.0: [0.5], 2.0: [math.nan]}):
        assert math.isnan(last_crossing(never, 0.2))


def test_crossings_per_seed_and_their_slope():
    """Curves that cross 1 at d^(1/4) times a number of the seed."""
    places = (0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0)
    rows = [row(s, 2 - x / ((1 + 0.1 * s) * d**0.25), x=x, dim=d) for s in (0, 1) for d in (1, 16, 81) for x in places]
    slope = Field("value", per="crossing", along="place", level=1.0, against="dim")
    assert Sheet("c", rows).series(slope) == pytest.approx({(0, 0): 0.25, (1, 0): 0.25})
    one = Field("value", per="crossing", along="parameters.x", level=1.0, where={"dim": 16})
    assert Sheet("c", rows).series(one) == pytest.approx({(0, 0): 2.0, (1, 0): 2.2})
    assert "crossing of value = 1 along parameters.x (dim = 16)" in str(one)
    assert math.isnan(Sheet("c", rows).series(Field("value", per="crossing", along="place", level=-9.0))[0, 0])


def test_a_spread_is_of_means_over_seeds_and_is_nothing_of_one_setting():
    rows = [row(s, v + 0.1 * (-1) ** s, x=x, dim=5) for s in (3, 4) for x, v in ((1, 0.2), (2, 0.25), (3, 0.1))]
    assert Sheet("c", rows).series(Field("value", per="spread")) == pytest.approx({(3, 0): 0.15})
    assert Sheet("c", rows).series(Field("value", per="spread", where={"x": 1})) == {}
    lost = [*rows, row(3, None, x=4, dim=5)]
    assert math.isnan(next(iter(Sheet("c", lost).series(Field("value", per="spread")).values())))


def spread_claim(rows, tolerance):
    claim = next(c for c in paper("kou2023").claims if c.name == "collapse-one")
    value = Field("value", per="spread")
    return KINDS["law"](Sheet("c", rows), dataclasses.replace(claim, value=value, tolerance=tolerance), None)


def test_a_spread_is_judged_by_its_interval_over_seeds():
    """Normal scatter: the spread of two means of 40 has standard error sqrt(2/40) 0.1; its interval has that width."""
    noise = np.random.default_rng(3).normal(0, 0.1, (2, 40))
    rows = [row(s, gap + noise[i, s], x=i, dim=5) for i, gap in enumerate((0.2, 0.5)) for s in range(40)]
    found = spread_claim(rows, 0.5)
    assert found.verdict == "agrees" and found.seeds == tuple(range(40)) and found.points == 80
    assert found.low < found.estimate < found.high
    assert found.high - found.low == pytest.approx(2 * 1.645 * 0.1 * math.sqrt(2 / 40), rel=0.35)
    assert spread_claim(rows, found.estimate + 1e-3).verdict == "undecided"  # not a matter of the point alone
    assert spread_claim(rows, 0.1).verdict == "deviates" and "over 40 seeds" in found.reason
    assert spread_claim(rows, 0.5).high == found.high  # one stream
    assert spread_claim([r for r in rows if r["seed"] < 4], 0.5).verdict == "undecided"
    assert spread_claim([], 0.5).verdict == "not run"
    assert spread_claim([*rows, row(3, None, x=2, dim=5)], 0.5).verdict == "undecided"


@pytest.mark.parametrize(
    "wrong",
    [
        {"per": "crossing"},
        {"per": "crossing", "along": "place"},
        {"per": "cell", "along": "place", "level": 1.0},
        {"per": "cell", "level": 1.0},
        {"per": "spread", "against": "dim"},
        {"per": "slope"},
        {"per": "width"},
    ],
)
def test_a_wrong_field_is_refused(wrong):
    with pytest.raises(RequestError, match="per = "):
        Field("value", **wrong)
