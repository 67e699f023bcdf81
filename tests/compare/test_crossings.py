"""What a claim reads across the cells of a sweep: where a curve crosses a level, and how far settings lie apart."""

import math

import pytest

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
