"""Local minima: where a search from random starts would end in one, and what is done about it."""

import numpy as np
import pytest
import torch

import ufm
from ufm.loop import objective_of, prover
from ufm.reduce import random_start, reduce
from ufm.solve import Run
from ufm.solvers import SOLVERS
from ufm.solvers.revive import revive
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


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("below", [0.98, 0.9])
def test_non_negative_minorities_below_their_threshold_are_revived(seed, below):
    """n_B = K N^2 lambda^2/(K - 1) is the threshold of a minority: below it, minima with some classes dead cost more."""
    K, counts = 8, (60,) * 4 + (5,) * 4
    lam = below * (5 * (K - 1) / K) ** 0.5 / sum(counts)
    problem = ufm.Problem(K, 2 * K, counts, features="nonnegative", lambda_w=lam, lambda_h=lam)
    solution = ufm.solve(problem, seed=seed)
    assert solution.loss == pytest.approx(ufm.predict(problem).loss, rel=1e-9)
    assert solution.status.ok and solution.certificate.gap <= 1e-9
    assert solution.H.norm(dim=1).min() > 0.1
    assert "open" not in solution.certificate.reason


def test_revival_leaves_a_minimum_where_a_class_is_dead():
    """All of class 2 at zero is stationary: what `revive` gives must be lower, and the optimum."""
    problem = ufm.Problem(3, 6, 5, features="nonnegative", lambda_w=0.02, lambda_h=0.02)
    objective, solver = objective_of(problem, reduce([problem])), load(SOLVERS, "projected", "method")()
    x = objective.start(random_start([problem], [0], reduce([problem]), 1.0))
    objective.parts(x)[1][:, 2] = 0.0
    objective.parts(x)[0][:, :, 3:] = 0.0
    objective.parts(x)[1][:, :, 3:] = 0.0
    prove, high = prover(problem), float(objective.value(x))
    end = {"status": torch.tensor([0]), "residual": torch.zeros(1, dtype=torch.float64), "iterations": torch.tensor([5])}
    found = revive(objective, x, end, solver, 2000, 1e-10, prove)
    assert float(objective.value(found)) < high
    assert float(objective.value(found)) == pytest.approx(ufm.predict(problem).loss, rel=1e-9)
    assert bool(prove(objective, found))


def test_a_gap_that_stays_open_is_spoken_of():
    """Two dimensions for five classes: no bound is tight there."""
    solution = ufm.solve(ufm.Problem(5, 2, 5, features="nonnegative", lambda_w=0.005, lambda_h=0.005))
    assert solution.certificate.gap > 1e-6
    assert "the gap is open" in solution.certificate.reason


@pytest.mark.parametrize("K, counts", [(2, (28, 58)), (5, 24), (3, (38, 11, 11))], ids=str)
@pytest.mark.parametrize("loss", ["ce", "focal", "smoothing"])
def test_non_negative_features_above_the_last_threshold_end_at_zero(K, counts, loss):
    """No class is alive from n = K N^2 lambda^2/(K - 1) on, the focal loss a little later: what is left is the loss at zero."""
    n = np.broadcast_to(np.asarray(counts, dtype=float), (K,))
    lam = (1.5 if loss == "focal" else 1.02) * (n.max() * (K - 1) / K) ** 0.5 / n.sum()
    problem = ufm.Problem(K, K + 3, counts, loss=loss, features="nonnegative", lambda_w=2 * lam, lambda_h=lam / 2, focal_gamma=2)
    solution = ufm.solve(problem)
    assert solution.loss == pytest.approx(np.log(K) * ((1 - 1 / K) ** 2 if loss == "focal" else 1), rel=1e-13)
    proven = solution.certificate.valid and solution.certificate.gap <= 1e-12
    assert solution.status is (ufm.Status.ZERO if proven else ufm.Status.AT_ZERO) and (proven or loss == "focal")
    assert not solution.H.any() and not solution.W.any()
    assert loss == "focal" or abs(solution.certificate.gap) < 1e-13


@pytest.mark.parametrize("seed", range(3))
def test_focal_minorities_below_their_threshold_are_revived(seed):
    """Where the loss is not convex a class may be better alive though its death is a minimum; the sum over classes is known."""
    problem = ufm.Problem(
        *(5, 11, (49, 49, 49, 3, 3)),
        **{"loss": "focal", "focal_gamma": 1.0, "features": "nonnegative"},
        **{"lambda_w": 0.007325045069331638, "lambda_h": 0.01691877490884376},
    )
    solution = ufm.solve(problem, seed=seed)
    assert solution.loss == pytest.approx(ufm.predict(problem).loss, rel=1e-10)
    assert solution.H.norm(dim=1).min() > 0.1


@pytest.mark.parametrize(
    "fields, proven",
    [
        ({"classes": 10, "dim": 9, "counts": 10, "focal_gamma": 3.0, "lambda_w": 0.2, "lambda_h": 0.01}, False),
        ({"classes": 10, "dim": 4, "counts": 1, "focal_gamma": 1.0, "lambda_w": 0.114, "lambda_h": 0.114}, False),
        ({"classes": 2, "dim": 3, "counts": 1, "focal_gamma": 0.0, "lambda_w": 0.51, "lambda_h": 0.51}, True),
    ],
)
def test_focal_zero_is_called_optimal_only_where_it_is_proven(fields, proven):
    solution = ufm.solve(ufm.Problem(loss="focal", **fields))
    assert float(solution.W.norm()) == float(solution.H.norm()) == 0
    assert solution.status is (ufm.Status.ZERO if proven else ufm.Status.AT_ZERO)
    assert solution.certificate.valid is proven
