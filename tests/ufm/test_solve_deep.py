"""The deep solvers against golden optima, finite differences and the structures they should and should not find."""

import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from ufm.problem import Problem
from ufm.solution import Status
from ufm.solve_deep import classify, solve_deep
from ufm.solvers import deep
from ufm.theory import deep as theory
from ufm.theory import deep_relu

ROWS = json.loads((Path(__file__).parents[1] / "golden" / "deep_public.json").read_text())


@pytest.mark.parametrize("activation", ["linear", "relu"])
@pytest.mark.parametrize("loss", ["mse", "ce"])
@pytest.mark.parametrize("bias", ["none", "free", "ridge"])
def test_gradient_against_autograd_of_a_plain_forward(activation, loss, bias):
    settings = dict(lambda_b=0.3) if bias == "ridge" else {}
    problem = Problem(
        classes=3, dim=4, counts=(5, 2, 3), loss=loss, bias=bias, lambda_w=(0.1, 0.2, 0.3), lambda_h=0.05, depth=3,
        activation=activation, **settings,
    )  # fmt: skip
    batch = deep.Batch([problem, problem.replace(lambda_h=0.2)])
    x = torch.tensor(np.random.default_rng(0).standard_normal((2, sum(batch.shape.sizes))))
    if bias == "none":
        x[:, -3:] = 0  # as every start leaves it
    gradient = torch.empty_like(x)
    value = batch.value_and_gradient(x, gradient)
    for i, lambda_h in enumerate((0.05, 0.2)):
        free = x[i].clone().requires_grad_()
        w1, w2, w3, g, b = free.split(batch.shape.sizes)
        h = g.view(4, 3) / torch.tensor([5.0, 2.0, 3.0], dtype=torch.float64).sqrt()
        penalty = 0.1 * (w1**2).sum() + 0.2 * (w2**2).sum() + 0.3 * (w3**2).sum() + lambda_h * (g**2).sum()
        for w in (w1, w2):
            h = w.view(4, 4) @ h
            h = h.relu() if activation == "relu" else h
        z = (w3.view(3, 4) @ h + (b[:, None] if bias != "none" else 0)).T
        share = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)
        if loss == "mse":
            fit = (share * 0.5 * ((z - torch.eye(3, dtype=torch.float64)) ** 2).sum(1)).sum()
        else:
            fit = (share * torch.nn.functional.cross_entropy(z, torch.arange(3), reduction="none")).sum()
        total = fit + 0.5 * penalty + (0.15 * (b**2).sum() if bias == "ridge" else 0)
        expected = torch.autograd.grad(total, free)[0]
        assert value[i].item() == pytest.approx(total.item(), rel=1e-12)
        np.testing.assert_allclose(gradient[i], expected, atol=1e-13)


@pytest.mark.parametrize("row", [pytest.param(r, id=r["id"]) for r in ROWS if r["model"].startswith("deep_linear")])
def test_linear_from_random_starts_reaches_the_golden_value(row):
    params, expected = row["params"], row["predicted"]
    if "counts" in params:
        problem = Problem(
            classes=len(params["counts"]), dim=params["width"], counts=params["counts"], loss="mse", depth=params["L"],
            lambda_w=params["lam_W"], lambda_h=params["lam_H"], bias="free" if params["bias"] else "none",
        )  # fmt: skip
    else:
        problem = Problem(
            classes=params["K"], dim=params["K"], counts=params["n"], depth=params["L"],
            lambda_w=(params["lam_W"],) * params["L"], lambda_h=params["lam_H"],
        )  # fmt: skip
    found = solve_deep([problem] * 8, run_seeds=range(8))
    best = min(found, key=lambda s: s.loss)
    reachable = min(expected["loss"], *expected.get("other_structures", {"": math.inf}).values())
    assert best.loss == pytest.approx(reachable, rel=1e-9)
    assert best.status is Status.CONVERGED
    if "logit_singular_values_sqrt_n_weighted" in expected:
        z = (best.logits - best.b).T.numpy() * np.sqrt(problem.count_vector)
        values = np.linalg.svd(z, compute_uv=False)
        np.testing.assert_allclose(values, np.sort(expected["logit_singular_values_sqrt_n_weighted"])[::-1], atol=1e-7)


def relu_problem(classes, depth):
    return Problem(classes=classes, dim=30, counts=50, loss="mse", lambda_w=0.004, lambda_h=0.004, depth=depth, activation="relu")


def test_relu_low_rank_solutions_appear_with_many_classes_and_not_with_three():
    many = solve_deep([relu_problem(10, 4)] * 10, run_seeds=range(10), init_scale=1.4)
    dnc = deep_relu.dnc(10, 4, 30, 50, (0.004,) * 4, 0.004).loss
    srg = deep_relu.srg(10, 4, 30, 50, (0.004,) * 4, 0.004).loss
    assert sum(s.loss < dnc * (1 - 1e-4) for s in many) >= 9
    assert min(s.loss for s in many) == pytest.approx(srg, rel=1e-3)
    assert all(min(s.layer_ranks) < 10 for s in many if s.structure != "dnc")
    few = solve_deep([relu_problem(3, 3)] * 6, run_seeds=range(6))
    assert Counter(s.structure for s in few) == {"dnc": 6}  # the negative control
    assert all(s.layer_ranks == (3, 3, 3) for s in few)


@pytest.mark.parametrize("row", [pytest.param(r, id=r["id"]) for r in ROWS if "local_stability" in r.get("verified", {})])
def test_stability_of_explicit_solutions(row):
    """Rows marked stable come back after a perturbation; rows marked unstable end lower."""
    params, expected, stability = row["params"], row["predicted"], row["verified"]["local_stability"]
    make = {"dnc": deep_relu.dnc, "srg": deep_relu.srg}[expected["structure"]]
    lambdas = tuple(params["lam_W"])
    problem = Problem(
        classes=params["K"], dim=params["K"] + 5, counts=params["n"], loss="mse", lambda_w=lambdas, lambda_h=params["lam_H"],
        depth=params["L"], activation="relu",
    )  # fmt: skip
    solution = make(params["K"], params["L"], problem.dim, params["n"], lambdas, params["lam_H"])
    flat = [*(w.ravel() for w in solution.weights), (solution.means * math.sqrt(params["n"])).ravel(), np.zeros(params["K"])]
    exact = torch.tensor(np.concatenate(flat))
    batch = deep.Batch([problem] * 4)
    noise = np.random.default_rng(0).standard_normal((4, len(exact)))
    noise[:, -params["K"] :] = 0
    ends = deep.adam(batch, exact + 0.01 * torch.tensor(noise), stages=((0.003, 2500),))
    if stability["stable"]:
        assert ends.min().item() == pytest.approx(solution.loss, rel=1e-7)
    else:
        assert ends.min().item() < solution.loss * (1 - 1e-4)


def test_classification_is_right_on_each_kind():
    known = {"zero": 0.5, "dnc": 0.2, "srg": 0.18}
    assert classify(0.2, (10, 10), known, True, 1.0) == ("dnc", Status.CONVERGED)
    assert classify(0.18, (5, 10), known, True, 1.0)[0] == "srg"
    assert classify(0.17, (4, 10), known, True, 1.0)[0] == "below both"
    assert classify(0.19, (6, 10), known, True, 1.0)[0] == "other"
    assert classify(0.19, (6, 10), known, False, 1.0) == ("unconverged", Status.STEP_LIMIT)
    assert classify(0.5, (0, 0), known, True, 0.0) == ("zero", Status.AT_ZERO)
    assert classify(0.45, (0, 0), known, False, 0.0) == ("unconverged", Status.STEP_LIMIT)
    assert classify(math.nan, (0,), known, True, 1.0) == ("unconverged", Status.DIVERGED)


def test_zero_above_the_threshold():
    heavy = relu_problem(3, 3).replace(lambda_w=0.3, lambda_h=0.3)
    found = solve_deep([heavy] * 3, run_seeds=range(3))
    assert [s.structure for s in found] == ["zero"] * 3


def test_norm_balance_of_a_bias_free_end_point():
    problem = Problem(classes=4, dim=6, counts=9, loss="ce", lambda_w=(0.002, 0.004), lambda_h=0.001, depth=2)
    found = solve_deep([problem], run_seeds=[1])[0]
    energies = [lam * float((w**2).sum()) for lam, w in zip(problem.layer_lambdas, found.weights, strict=True)]
    energies.append(problem.lambda_h * 9 * float((found.H**2).sum()))
    assert max(energies) == pytest.approx(min(energies), rel=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": "focal"}, "not available"),
        ({"features": "nonnegative"}, "free features"),
        ({"lambda_h": 0.0}, "weight decay > 0"),
    ],
)
def test_refused_in_one_line(changes, message):
    with pytest.raises(ValueError, match=message):
        solve_deep([relu_problem(3, 3).replace(**changes)])


def test_a_run_cut_short_is_called_unconverged():
    """Norms balance long before the loss settles, so the loss is asked too: one more cool stage must not lower it."""
    found = solve_deep([relu_problem(3, 3)] * 4, run_seeds=range(4), steps=300)
    assert [s.structure for s in found] == ["unconverged"] * 4
    assert all(s.status is Status.STEP_LIMIT for s in found)


def test_zero_is_called_optimal_where_a_theorem_says_so_and_nowhere_else():
    below = relu_problem(10, 4)  # deep neural collapse lies at .175, zero at .5
    proven = relu_problem(2, 3).replace(lambda_w=0.3, lambda_h=0.3)
    unproven = relu_problem(3, 3).replace(lambda_w=0.3, lambda_h=0.3)
    for problem, status in ((below, Status.AT_ZERO), (proven, Status.ZERO), (unproven, Status.AT_ZERO)):
        found = solve_deep([problem] * 2, run_seeds=range(2), init_scale=0.5)
        assert [s.status for s in found] == [status] * 2 and status.ok
        assert all(s.structure == "zero" and set(s.layer_ranks) == {0} and s.balance is None for s in found)
        assert [s.loss for s in found] == pytest.approx([0.5] * 2, rel=1e-9)


ENTROPY = -sum(share * math.log(share) for share in (6 / 16, 4 / 16, 4 / 16, 2 / 16))


@pytest.mark.parametrize(
    ("changes", "loss"),
    [
        ({"loss": "ce"}, math.log(4)),
        ({"loss": "ce", "counts": (6, 4, 4, 2), "bias": "free"}, ENTROPY),
        ({"counts": (6, 4, 4, 2)}, 0.5),
        ({"bias": "free"}, 0.375),
        ({"activation": "linear", "bias": "ridge", "lambda_b": 1.0}, 0.5 - 0.125 / 2),
    ],
)
def test_an_end_at_zero_is_known_for_every_loss_bias_and_count(changes, loss):
    """log K or the entropy of the shares, (1 - sum of squared shares)/2, halved in its second term by lambda_b = 1."""
    problem = relu_problem(4, 3).replace(dim=6, counts=4, lambda_w=0.5, lambda_h=0.5).replace(**changes)
    found = solve_deep([problem])[0]
    assert found.structure == "zero" and found.status is Status.AT_ZERO
    assert found.loss == pytest.approx(loss, rel=1e-8)
    assert theory.structures(problem)["zero"].loss == pytest.approx(loss, rel=1e-12)
    assert not theory.predict(problem).applies


def test_a_point_below_zero_above_the_threshold_of_deep_neural_collapse():
    """K = 3, L = 4: the rank-2 point found at a small weight decay, followed to 1.003 of the threshold of collapse."""
    problem = relu_problem(3, 4)
    found = solve_deep([problem], run_seeds=[2], init_scale=0.7)[0]
    assert found.structure == "below known" and min(found.layer_ranks) == 2
    heavy = problem.replace(lambda_w=1.003 * 0.032067, lambda_h=1.003 * 0.032067)
    parts = [*found.weights, found.H.T * math.sqrt(50), torch.zeros(3, dtype=torch.float64)]
    x = torch.cat([p.reshape(-1) for p in parts])[None]
    lowest = deep.adam(deep.Batch([heavy]), x, ((0.003, 2500),)).item()
    assert list(theory.structures(heavy)) == ["zero"] and not theory.predict(heavy).zero
    assert lowest == pytest.approx(0.47736, abs=2e-5)
