"""-temperature log(loss): against the loss where it is a number, and its limit where it is none."""

import numpy as np
import pytest

import ufm
from ufm.theory.rate import rate


@pytest.mark.parametrize("temperature", [1.0, 0.1, 0.03])
def test_rate_is_that_of_the_loss(temperature):
    problem = ufm.Problem(5, 2, 10, constraint="sphere", temperature=temperature)
    solution = ufm.solve(problem)
    found = rate(solution.logits.numpy(), problem.count_vector, temperature)
    assert found == pytest.approx(-temperature * np.log(solution.loss), rel=1e-12)


def test_rate_tends_to_the_margin_where_the_loss_is_no_number():
    """Regular pentagon: two neighbours at 1 - cos 72 degrees, so that log(loss) = log 2 - margin/temperature to rounding."""
    problem = ufm.Problem(5, 2, 10, constraint="sphere", temperature=1e-4)
    solution = ufm.solve(problem)
    margin = 1 - np.cos(2 * np.pi / 5)
    assert solution.loss == 0
    found = rate(solution.logits.numpy(), problem.count_vector, 1e-4)
    assert found == pytest.approx(margin - 1e-4 * np.log(2), rel=1e-6)
