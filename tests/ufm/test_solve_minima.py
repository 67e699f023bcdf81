"""Local minima: where a search from random starts would end in one, and what is done about it."""

import numpy as np
import pytest
import torch

import ufm
from ufm.reduce import random_start, reduce
from ufm.solve import Run, objective_of
from ufm.solvers import SOLVERS
from ufm.tables import load


@pytest.mark.parametrize("bias", ["none", "free"])
def test_focal_minima_above_zero_give_way_to_zero(bias):
    """A little above the threshold the loss has minima that cost more than no features: f(0) = (1 - 1/K)^gamma log K."""
    K, lam = 100, 0.011985
    problem = ufm.Problem(K, K, 1, loss="focal", focal_gamma=3, lambda_w=lam, lambda_h=lam, bias=bias)
    for solution in ufm.solve_many([problem] * 2, seeds=[0, 1]):
        assert solution.loss <= (1 - 1 / K) ** 3 * np.log(K) * (1 + 1e-12)
        assert solution.status.ok


def test_focal_below_its_threshold_ends_below_zero():
    """The other side: zero is a saddle, and the features that lower the loss are found."""
    problem = ufm.Problem(4, 6, 5, loss="focal", focal_gamma=3, lambda_w=0.01, lambda_h=0.001)
    solution = ufm.solve(problem)
    assert solution.status is ufm.Status.CONVERGED
    assert solution.loss < 0.5 * (1 - 1 / 4) ** 3 * np.log(4)


@pytest.mark.parametrize("fields", [{}, {"bias": "free", "counts": (9, 5, 2)}, {"dim": 1}, {"features": "nonnegative"}])
def test_focal_without_focus_is_cross_entropy(fields):
    fields = {"classes": 3, "dim": 5, "counts": 4, "lambda_w": 0.01, "lambda_h": 0.01, **fields}
    focal, ce = ufm.solve_many([ufm.Problem(**fields, loss="focal", focal_gamma=0.0), ufm.Problem(**fields, loss="ce")])
    assert focal.loss == pytest.approx(ce.loss, rel=1e-12)
    assert focal.status is ce.status
    assert focal.certificate.valid and focal.certificate.gap == pytest.approx(ce.certificate.gap, abs=1e-13)


def test_focal_without_focus_among_others_keeps_its_own_certificate():
    fields = {"classes": 3, "dim": 5, "counts": (4, 3, 2), "lambda_w": 0.01, "lambda_h": 0.01, "loss": "focal"}
    zero, two = ufm.solve_many([ufm.Problem(**fields, focal_gamma=gamma) for gamma in (0.0, 2.0)])
    assert zero.certificate.gap <= 1e-9 and zero.certificate.valid
    assert not two.certificate.valid


def test_an_end_above_a_saddle_at_zero_is_left_for_what_lies_below_it():
    """Far out the penalty alone is above f(0); below the threshold zero is no end either."""
    problem = ufm.Problem(4, 4, 5, loss="focal", focal_gamma=3, lambda_w=0.01, lambda_h=0.001)
    reduced = reduce([problem])
    objective, run = objective_of(problem, reduced), Run("lbfgs", load(SOLVERS, "lbfgs", "method")(), 1000, 1e-10, "cpu")
    start = random_start([problem], [0], reduced, 1.0)
    end = {"status": torch.tensor([0]), "residual": torch.zeros(1, dtype=torch.float64), "iterations": torch.tensor([5])}
    x = run.compare_with_zero(objective, 100 * objective.start(start), end, start)
    assert float(objective.value(x)) == pytest.approx(ufm.solve(problem).loss, rel=1e-9)
    assert float(objective.relative(x, objective.gradient(x))) <= 1e-10
