"""Claims on shallow networks and on starved features: like is compared with like, and nothing computed is no agreement."""

import pytest

from compare.papers import paper


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
