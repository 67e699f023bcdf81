"""Edges of the parameter space: every solve ends converged, or with a status that says what happened; and many classes."""

import itertools
import sys

import numpy as np
import pytest
import torch

import ufm
from ufm.errors import RequestError
from ufm.loop import CERTIFIED, CONVERGED, STALLED, Attempts, iterate, objective_of
from ufm.reduce import random_start, reduce
from ufm.solve import method_for
from ufm.solvers.classwise import Blocks

SAYS = {  # ends that are no optimum, each with a sentence of its own
    ufm.Status.STALLED: "no further decrease",
    ufm.Status.STEP_LIMIT: "step limit",
}
SHAPES = {
    "plain": (4, 6, 5),
    "K2-d1-n1": (2, 1, 1),
    "d1": (5, 1, 4),
    "n1": (4, 4, 1),
    "1:1000": (3, 7, (1, 1, 1000)),
    "dead class": (4, 5, (1000, 1000, 30, 1)),
}
LOSSES = ("ce", "mse", "smoothing", "focal")
BIASES = ("none", "free", "ridge")


def problem_of(shape, loss, bias, lam):
    K, d, counts = SHAPES[shape]
    return ufm.Problem(
        K, d, counts, loss=loss, bias=bias, lambda_b=0.01 if bias == "ridge" else 0.0, lambda_w=lam, lambda_h=lam, focal_gamma=2.0
    )


def check(solution):
    """Return whether the end is an optimum; what is not says so, and no bound is violated."""
    proof, problem = solution.certificate, solution.problem
    assert np.isfinite(solution.loss) and solution.loss >= 0
    if proof.valid:
        assert proof.gap >= -1e-13
    enough = problem.dim >= problem.classes
    if solution.status.ok:
        if proof.valid and enough and problem.loss != "focal":
            assert proof.gap <= 1e-9
        predicted = ufm.predict(problem)
        if predicted.applies and predicted.status != "evidence":
            assert solution.loss == pytest.approx(predicted.loss, rel=1e-9, abs=1e-15)
        return True
    assert SAYS[solution.status] in solution.status.value
    assert not enough  # the convex problems all end at a proven optimum
    return False


@pytest.mark.parametrize("loss, bias", list(itertools.product(LOSSES, BIASES)))
@pytest.mark.parametrize("lam", [1e-8, 1e-6, 1.0, 10.0])
def test_extreme_penalties(loss, bias, lam):
    shapes = [s for s in SHAPES if lam > (0.1 if loss == "focal" else 1e-7) or s not in ("d1", "K2-d1-n1")]
    problems = [problem_of(s, loss, bias, lam) for s in shapes]
    ends = [check(s) for s in ufm.solve_many(problems)]
    assert all(end for end, p in zip(ends, problems, strict=True) if p.dim >= p.classes)


@pytest.mark.parametrize("loss", ["ce", "mse", "smoothing"])
def test_one_dimension_at_the_smallest_penalty_says_what_happened(loss):
    """At d = 1 < K - 1 the gap stays open, and 1e-8 is at the rounding error: a sentence, not a claim."""
    for solution in ufm.solve_many([problem_of(s, loss, "none", 1e-8) for s in ("d1", "K2-d1-n1")], steps=200):
        check(solution)


@pytest.mark.parametrize("loss, bias", list(itertools.product(("ce", "mse", "smoothing"), BIASES)))
def test_both_sides_of_every_threshold(loss, bias):
    """2 % around K sqrt(n lambda_w lambda_h) = 1 (1 - alpha for smoothing), and around n_B = (c N)^2 for a minority."""
    critical = 0.9 if loss == "smoothing" else 1.0
    problems = []
    for around in (0.98, 1.02):
        lam = around * critical / (5 * 10**0.5)
        fields = {"loss": loss, "bias": bias, "lambda_b": 0.1 if bias == "ridge" else 0.0}
        problems.append(ufm.Problem(5, 6, 10, lambda_w=lam, lambda_h=lam, **fields))
        minority = 2 / 88 / around**0.5
        problems.append(ufm.Problem(4, 5, (40, 40, 4, 4), lambda_w=minority, lambda_h=minority, **fields))
    solutions = ufm.solve_many(problems)
    assert all(check(s) for s in solutions)
    assert solutions[2].status is ufm.Status.ZERO or (loss == "mse" and bias == "ridge")
    assert solutions[0].status is not ufm.Status.ZERO


def test_a_closed_gap_is_a_way_to_have_converged():
    """At lambda 1e-8 the residual of MSE is its rounding error, 1e-9 of the penalty's pull: the certificate decides."""
    solution = ufm.solve(problem_of("plain", "mse", "none", 1e-8))
    assert solution.status is ufm.Status.CERTIFIED and solution.status.ok
    assert solution.status.value.startswith("converged")
    assert solution.certificate.gap <= 1e-12
    assert solution.loss == pytest.approx(ufm.predict(solution.problem).loss, rel=1e-12)
    assert solution.iterations < 3000


# --- many classes ------------------------------------------------------------------------------------------------

COUNTS = tuple(int(n) for n in np.geomspace(1, 1000, 160))
STEP = (50,) * 80 + (5,) * 80


@pytest.mark.parametrize(
    "fields",
    [
        {"counts": 10},
        {"counts": STEP},
        {"counts": COUNTS},
        {"counts": COUNTS, "bias": "free"},
        {"counts": STEP, "bias": "ridge", "lambda_b": 1e-3},
        {"counts": COUNTS, "loss": "mse"},
        {"counts": 10, "loss": "mse", "bias": "free", "lambda_w": 1e-4},
        {"counts": COUNTS, "loss": "smoothing"},
        {"counts": 10, "class_weights": tuple(np.linspace(0.1, 3, 160))},
        {"counts": STEP, "logit_scale": (1.0,) * 80 + (0.6,) * 80, "logit_offset": tuple(np.linspace(-1, 1, 160))},
    ],
)
def test_many_classes_are_solved_class_by_class(fields):
    problem = ufm.Problem(160, 200, **({"lambda_w": 1e-5, "lambda_h": 1e-5} | fields))
    assert method_for(problem, "auto") == "classwise"
    solution = ufm.solve(problem)
    assert solution.status.ok, solution.status
    assert -1e-13 <= solution.certificate.gap <= 1e-9 and solution.certificate.dual_norm == pytest.approx(1, abs=1e-7)
    predicted = ufm.predict(problem)
    if predicted.applies:
        assert solution.loss == pytest.approx(predicted.loss, rel=1e-9)
    assert solution.W.shape == (160, 200)


@pytest.mark.parametrize("around", [0.98, 1.02])
def test_many_classes_around_the_threshold(around):
    lam = around / (160 * 10**0.5)
    solution = ufm.solve(ufm.Problem(160, 160, 10, lambda_w=lam, lambda_h=lam))
    assert check(solution) and (solution.status is ufm.Status.ZERO) == (around > 1)


def test_class_by_class_agrees_with_the_other_solvers_and_between_seeds():
    problem = ufm.Problem(6, 8, (40, 20, 10, 5, 3, 1), lambda_w=1e-3, lambda_h=1e-3, bias="free")
    other = ufm.solve(problem, method="lbfgs")
    for seed in (0, 1):
        found = ufm.solve(problem, method="classwise", seed=seed)
        assert found.status.ok and found.loss == pytest.approx(other.loss, rel=1e-12)
        assert float((found.logits - other.logits).abs().max()) < 1e-6
    with pytest.raises(RequestError, match="d >= K"):
        ufm.solve(problem.replace(dim=3), method="classwise")


def test_blocks_invert_the_block_diagonal_hessian():
    """Where U and V are diagonal, W' = V and the logits do not mix (MSE), P is the inverse of the Hessian without the pull."""
    problem = ufm.Problem(4, 4, 3, loss="mse", lambda_w=0.2, lambda_h=0.2)
    objective = objective_of(problem, reduce([problem]))
    size = (0.7 * 3**0.5) ** 0.5
    x = torch.cat([size * torch.eye(4, dtype=torch.float64).reshape(-1)] * 2)[None]
    blocks = Blocks(objective, x, objective.logits(x))
    d = random_start([problem], [0], objective.reduced, 1.0)
    u, v, _ = objective.parts(d)
    # the Hessian of the data term alone plus the penalty, by hand: curvature 1/4 per class, scale 1/sqrt(3)
    moved = size * (u + v.mT) / 3 / 4
    pull = float(blocks.stiff.max())
    hessian = torch.cat([(pull * u + size * moved).flatten(1), (pull * v + size * moved.mT).flatten(1)], 1)
    assert torch.allclose(blocks(hessian), d, rtol=1e-12, atol=1e-13)


def test_batches_of_many_classes_are_the_single_solves():
    problems = [ufm.Problem(K, 9, c, lambda_w=1e-3, lambda_h=1e-3) for K, c in ((5, 9), (7, (9, 8, 7, 6, 5, 4, 3)), (6, 2))]
    for together, problem in zip(ufm.solve_many(problems, method="classwise"), problems, strict=True):
        same(together, ufm.solve(problem, method="classwise"))


def same(together, alone):
    assert together.status == alone.status
    assert together.loss == pytest.approx(alone.loss, rel=1e-9)
    assert together.certificate.gap == pytest.approx(alone.certificate.gap, abs=1e-9, nan_ok=True)
    for one, other in ((together.logits, alone.logits), (together.W @ together.W.T, alone.W @ alone.W.T)):
        assert float((one - other).abs().max()) <= 1e-9 * max(1.0, float(other.abs().max()))


@pytest.mark.parametrize("loss, bias", list(itertools.product(LOSSES, BIASES)))
def test_ragged_batches_are_the_single_solves(loss, bias):
    """K = 5, 6, 7 and 8 are padded to two sizes: an output that does not exist must not count."""
    rng = np.random.default_rng(0)
    fields = {"loss": loss, "bias": bias, "lambda_b": 0.05 if bias == "ridge" else 0.0, "focal_gamma": 1.0}
    problems = [
        ufm.Problem(K, K + 3, tuple(int(n) for n in rng.integers(1, 60, K)), lambda_w=3e-3, lambda_h=2e-3, **fields)
        for K in (5, 6, 7, 8)
    ]
    for together, problem in zip(ufm.solve_many(problems), problems, strict=True):
        same(together, ufm.solve(problem))


@pytest.mark.parametrize(
    "fields", [{"classes": 2, "dim": 1, "counts": 1, "loss": "mse"}, {"classes": 3, "dim": 1, "counts": 5, "loss": "ce"}]
)
def test_attempts_at_their_rounding_error_end_soon(monkeypatch, fields):
    """At lambda 1e-8 the relative gradient cannot reach 1e-10: 48 attempts used to crawl for 2000 iterations each."""
    walked = []

    def counted(*args, **options):
        end = iterate(*args, **options)
        walked.append(int(end["iterations"].sum()))
        return end

    monkeypatch.setattr(sys.modules["ufm.solve"], "iterate", counted)
    problem = ufm.Problem(**fields, lambda_w=1e-8, lambda_h=1e-8)
    first, second = ufm.solve(problem), ufm.solve(problem)
    # MSE at d = 1 fits one of two equal singular values: half of f(0) = 1/2, and c for the other to first order
    assert first.loss == second.loss and torch.equal(first.W, second.W)
    assert first.loss == pytest.approx({2: 0.25 + 1e-8, 3: 0.232081115311}[problem.classes], rel=1e-11)
    assert sum(walked) < 2 * 48 * 500


def test_attempts_leave_where_another_one_has_converged_or_is_proven():
    attempts = Attempts(torch.tensor([0, 1, 2, 0, 1, 2]), torch.float64)
    problem = ufm.Problem(2, 2, 1, lambda_w=0.1, lambda_h=0.1)
    objective = objective_of(problem, reduce([problem] * 6))
    x = torch.ones(6, objective.split_at[1], dtype=torch.float64)
    x[4] += 1e-3
    rows = torch.tensor([0, 1, 2])
    attempts.ended(objective.select(rows), x[rows], rows, torch.tensor([CONVERGED, CONVERGED, STALLED]))
    rest = torch.tensor([3, 4, 5])
    assert attempts.needless(objective.select(rest), x[rest], rest).tolist() == [True, False, False]
    attempts.ended(objective.select(rows[2:]), x[rows[2:]], rows[2:], torch.tensor([CERTIFIED]))
    assert attempts.needless(objective.select(rest), x[rest], rest).tolist() == [True, False, True]


@pytest.mark.parametrize("problem", [
    ufm.Problem(3, 3, 5, constraint="ball", features="nonnegative"),
    ufm.Problem(3, 6, (12, 7, 3), constraint="ball", features="nonnegative", energy_w=2.0, energy_h=0.5),
    ufm.Problem(5, 8, 4, loss="smoothing", constraint="ball", features="nonnegative", energy_w=3.0, energy_h=3.0),
], ids=["balanced", "imbalanced", "smoothing"])  # fmt: skip
def test_non_negative_features_in_a_ball_reach_the_prediction_within_both_budgets(problem):
    found, said = ufm.solve(problem, seed=3), ufm.predict(problem)
    assert said.applies and found.status.ok
    np.testing.assert_allclose(found.loss, said.loss, rtol=1e-9)
    assert found.H.min() >= 0
    assert float((found.W**2).sum()) / problem.classes <= problem.energy_w * (1 + 1e-9)
    assert float((found.H**2).sum()) / problem.classes <= problem.energy_h * (1 + 1e-9)  # the mean over classes
