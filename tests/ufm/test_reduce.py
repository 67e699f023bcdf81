"""The reductions and the way back."""

import numpy as np
import pytest
import torch

import ufm
from ufm.loop import objective_of
from ufm.reduce import balance, internal_dim, padded, random_start, reduce


def test_padding_rounds_up_by_at_most_half():
    for size in range(1, 300):
        (rounded,) = padded((size,))
        assert size <= rounded <= 1.5 * size and padded((rounded,)) == (rounded,)


@pytest.mark.parametrize(
    "fields, expected",
    [
        ({"dim": 50}, 4),
        ({"dim": 3}, 3),
        ({"dim": 50, "constraint": "sphere"}, 5),
        ({"dim": 4, "features": "nonnegative"}, 8),
        ({"dim": 3, "features": "nonnegative"}, 3),
        ({"dim": 20, "features": "nonnegative"}, 20),
        ({"dim": 9, "loss": "mse", "targets": ((1.0, 0, 0, 0), (0, 1.0, 0, 0)), "counts": 3}, 2),
    ],
)
def test_the_dimension_that_is_solved_in(fields, expected):
    assert internal_dim(ufm.Problem(**({"classes": 4, "counts": 5} | fields))) == expected


def test_balanced_coordinates_keep_the_objective():
    """f of the reduced batch equals f of (W, H, b) by the definition, penalties included."""
    problem = ufm.Problem(3, 3, (5, 2, 1), lambda_w=0.3, lambda_h=0.02, bias="ridge", lambda_b=0.7, class_weights=(1.0, 2.0, 3.0))
    reduced = reduce([problem])
    objective = objective_of(problem, reduced)
    x = objective.start(random_start([problem], [0], reduced, 1.0))
    x[:, -3:] = torch.tensor([[0.1, -0.4, 0.2]], dtype=x.dtype)
    u, v, b = (part[0] for part in objective.factors(x))
    scale, rows = balance(problem)
    W, H = scale * u, torch.as_tensor(rows)[:, None] * v
    z, counts = H @ W.T + b, torch.as_tensor(problem.count_vector)
    loss = torch.nn.functional.cross_entropy(z, torch.arange(3), reduction="none") * torch.tensor([1.0, 2.0, 3.0])
    penalty = 0.15 * W.square().sum() + 0.01 * (counts[:, None] * H.square()).sum() + 0.35 * b.square().sum()
    assert float(objective.value(x)) == pytest.approx(float((loss * counts).sum() / 8 + penalty), rel=1e-13)


@pytest.mark.parametrize("constraint", ["ridge", "sphere", "ball"])
@pytest.mark.parametrize("bias", ["none", "ridge"])
def test_gradients_lines_and_products_are_derivatives(constraint, bias):
    fields = {"constraint": constraint, "bias": bias, "lambda_b": 0.3 if bias == "ridge" else 0.0, "temperature": 0.7}
    problem = ufm.Problem(3, 2, (5, 2, 1), lambda_w=0.3, lambda_h=0.02, logit_scale=(1.0, 0.5, 2.0), **fields)
    objective = objective_of(problem, reduce([problem]))
    rng = np.random.default_rng(0)
    size = objective.start(random_start([problem], [0], objective.reduced, 1.0)).shape
    x, d = (torch.as_tensor(rng.normal(size=size)) for _ in range(2))

    def f(a):
        value = objective.value(x + a * d)
        return value.log() if getattr(objective, "log", False) else value

    numeric = float((f(1e-5) - f(-1e-5)) / 2e-5)
    assert float((objective.gradient(x) * d).sum()) == pytest.approx(numeric, rel=1e-6)
    line = objective.line(x, d)
    for a in (0.0, 0.3, 2.0):
        numeric = float((f(a + 1e-5) - f(a - 1e-5)) / 2e-5)
        assert float(line.slope(torch.tensor([a], dtype=x.dtype))) == pytest.approx(numeric, rel=1e-5, abs=1e-9)
    change = (objective.gradient(x + 1e-5 * d) - objective.gradient(x - 1e-5 * d)) / 2e-5
    assert torch.allclose(objective.hessian(x)(d), change, rtol=1e-5, atol=1e-7)


def test_a_start_does_not_depend_on_the_batch():
    small, large = ufm.Problem(3, 2, 4), ufm.Problem(6, 5, 4)
    alone, both = reduce([small]), reduce([small, large])
    one, two = random_start([small], [7], alone, 0.5), random_start([small, large], [7, 7], both, 0.5)
    parts = two[0].view(12, 5)
    assert torch.equal(one[0].view(6, 2), torch.cat([parts[:3, :2], parts[6:9, :2]]))
    assert float(parts[:, 2:].abs().sum()) == 0 and float(parts[3:6].abs().sum()) == 0
