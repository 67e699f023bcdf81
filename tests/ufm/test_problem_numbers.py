"""What counts as a number in a `Problem`: NumPy and torch scalars, arrays of whole floats; nothing else."""

import numpy as np
import pytest
import torch

import ufm
from ufm.errors import RequestError

PLAIN = ufm.Problem(3, 4, 5, lambda_w=0.25, lambda_h=0.5)


@pytest.mark.parametrize("kind", [torch.tensor, np.array, np.float64, np.float32, float])
def test_scalars_of_every_kind_are_the_same_problem(kind):
    problem = ufm.Problem(kind(3.0), kind(4.0), kind(5.0), lambda_w=kind(0.25), lambda_h=kind(0.5))
    assert problem == PLAIN
    assert [type(value) for value in (problem.classes, problem.dim, problem.counts)] == [int] * 3
    assert type(problem.lambda_w) is float and type(problem.lambda_h) is float


@pytest.mark.parametrize(
    "counts", [np.array([3.0, 2.0, 4.0]), torch.tensor([3.0, 2.0, 4.0]), [np.float64(3), 2.0, torch.tensor(4)]]
)
def test_whole_floats_are_counts(counts):
    problem = ufm.Problem(3, 4, counts)
    assert problem.counts == (3, 2, 4) and all(type(n) is int for n in problem.counts)


def test_zero_dimensional_weight_decays_of_layers():
    assert ufm.Problem(3, 4, 5, depth=2, lambda_w=torch.tensor([0.25, 0.5])).lambda_w == (0.25, 0.5)


@pytest.mark.parametrize("counts", [2.5, np.float64(2.5), np.nan, np.inf, 0.0, True, torch.tensor(True), [3.0, 2.5, 1.0], "3"])
def test_other_counts_are_refused(counts):
    with pytest.raises(RequestError, match="counts"):
        ufm.Problem(3, 4, counts)


@pytest.mark.parametrize("value", ["0.1", torch.tensor(-0.1), np.nan])
def test_other_weight_decays_are_refused(value):
    with pytest.raises(RequestError, match="lambda_w"):
        ufm.Problem(3, 4, 5, lambda_w=value)
