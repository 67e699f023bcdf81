"""Claims on shallow networks and on starved features: like is compared with like, and nothing computed is no agreement."""

import pytest

from compare.papers import PAPERS, paper
from compare.sweeps import Field, Sheet
from compare.verdict import AGREES, DEVIATES, UNDECIDED, judge_claim


def claim_of(name, claim):
    return next(one for one in paper(name).claims if one.name == claim)


@pytest.mark.parametrize("scale", ["demo", "laptop"])
def test_the_wide_control_differs_from_the_narrow_network_in_its_width_alone(scale):
    claim, cells = claim_of("razborov2022", "narrow-no-kernel"), paper("razborov2022").scales[scale].cells
    narrow, wide = cells[claim.cell]["options"], cells[claim.control["cell"]]["options"]
    # Training moves no kernel at time 0, which is what the claim reads.
    assert {k: v for k, v in narrow.items() if k not in ("width", "t_end")} == {
        k: v for k, v in wide.items() if k not in ("width", "t_end")
    }
    assert wide["width"] > 1000 * narrow["width"] and wide["t_end"] == 0


NUMBERED = [
    (name, one)
    for name in PAPERS
    for one in paper(name).claims
    if one.kind == "law" and isinstance(one.value, Field) and (one.value.below is not None or one.value.equals is not None)
]


@pytest.mark.parametrize(("name", "claim"), NUMBERED, ids=lambda value: getattr(value, "name", value))
def test_a_law_of_rows_that_have_no_number_is_undecided(name, claim):
    rows = [{"status": "failed", "seed": seed, "parameters": {}} for seed in range(5)]
    verdict = judge_claim(Sheet("s", rows), claim)
    assert verdict.verdict == UNDECIDED and "have no" in verdict.reason


@pytest.mark.parametrize(
    ("elasticities", "verdict"),
    [([0.4, 0.1], AGREES), ([0.4, -0.1], DEVIATES), ([-0.4, 0.1], DEVIATES), ([0.4, None], UNDECIDED)],
)
def test_feeding_is_asked_of_both_responses(elasticities, verdict):
    rows = [{"status": "converged", "seed": seed, "parameters": {}, "elasticities": elasticities} for seed in range(5)]
    falling = Sheet("coupled", [{**row, "elasticities": [0.4, -0.1]} for row in rows])
    claim = claim_of("pezeshki2020", "feeds")
    assert judge_claim(Sheet("s", rows), claim, others={"coupled": falling}).verdict == verdict
