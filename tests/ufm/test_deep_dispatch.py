"""`ufm.solve`, `predict`, `structures` and `flow` find the deep theory and the flows by themselves."""

import subprocess
import sys

import numpy as np
import pytest

import ufm
from ufm.errors import RequestError

DEEP = ufm.Problem(classes=3, dim=4, counts=8, loss="mse", lambda_w=0.01, lambda_h=0.01, depth=2)
FLAT = ufm.Problem(classes=3, dim=4, counts=8, loss="mse", lambda_w=0.01, lambda_h=0.01)


def test_a_deep_linear_problem_is_solved_predicted_and_named():
    found = ufm.solve(DEEP, seed=1)
    assert found.status.ok and found.seed == 1 and len(found.weights) == 2
    predicted = ufm.predict(DEEP)
    assert predicted.applies and found.loss == pytest.approx(predicted.loss, rel=1e-9)
    known = ufm.structures(DEEP)
    assert found.structure in known and "zero" in known and known[found.structure].loss == pytest.approx(predicted.loss)


def test_the_objective_of_a_deep_solution_is_the_one_of_the_definition():
    s = ufm.solve(DEEP.replace(bias="free"), seed=2)
    w1, w2, h, b = (t.numpy() for t in (*s.weights, s.H, s.b))
    z = h @ w1.T @ w2.T + b
    np.testing.assert_allclose(z, s.logits, atol=1e-13)
    fit = 0.5 * ((z - np.eye(3)) ** 2).sum() / 3
    penalty = 0.005 * ((w1**2).sum() + (w2**2).sum()) + 0.005 * 8 * (h**2).sum()
    assert s.loss == pytest.approx(fit + penalty, rel=1e-12)


def test_depths_may_be_mixed_and_come_back_in_order():
    problems = [FLAT, DEEP, FLAT.replace(lambda_h=0.02), DEEP.replace(bias="free"), DEEP.replace(bias="ridge", lambda_b=0.1)]
    found = ufm.solve_many(problems, seeds=[0, 1, 2, 3, 4])
    assert [s.problem for s in found] == problems and [s.seed for s in found] == [0, 1, 2, 3, 4]
    for problem, solution in zip(problems[:4], found, strict=False):
        assert solution.loss == pytest.approx(ufm.predict(problem).loss, rel=1e-9)


@pytest.mark.parametrize("named, said", [({"lr": 0.1}, "lr is not used"), ({"method": "newton"}, "not available with depth")])
def test_what_a_deep_solver_cannot_do_is_one_line(named, said):
    with pytest.raises(RequestError, match=said) as caught:
        ufm.solve(DEEP, **named)
    assert "\n" not in str(caught.value)


def test_the_flow_of_the_package_is_the_function_and_agrees_with_its_law():
    path = ufm.flow(FLAT.replace(bias="free", lambda_w=0.0, lambda_h=0.0), init="subspace", t_end=50.0, points=11, seed=0)
    assert path.law == "mixon2020" and path.W.shape == (11, 3, 4) and path.H.shape == (11, 24, 4)
    np.testing.assert_allclose(path.modes, path.predicted, atol=1e-6)


@pytest.mark.parametrize(
    "order",
    [
        "import ufm.flows; import ufm",
        "import ufm; ufm.flow; import ufm.flows, ufm.systems.flow",
        "from ufm.systems import flow as system; import ufm",
        "from ufm.flows import flow; import ufm",
        "import ufm.solvers, ufm.solve, ufm.predict; import ufm",
    ],
)
def test_names_of_functions_survive_any_order_of_imports(order):
    code = f"{order}\nassert callable(ufm.flow) and callable(ufm.solve) and callable(ufm.predict)\nprint(ufm.flow.__module__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["ufm.flows"]
