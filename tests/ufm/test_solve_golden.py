"""The solver finds every golden row from random starts: value, Grams, status and certificate."""

import numpy as np
import pytest
from test_predict_golden import BUILD, CERTIFIED, CLOSED, ROWS, gram

import ufm

NOT_UNIQUE = ("rankce", "sph", "scl", "reg")
FOUND = [i for i in (*CLOSED, *CERTIFIED) if "limit" not in ROWS[i]["variant"]]


@pytest.mark.parametrize("name", FOUND)
@pytest.mark.parametrize("seed", [0, 7])
def test_the_optimum_is_found_from_a_random_start(name, seed):
    row = ROWS[name]
    problem = BUILD[row["variant"]](row["params"])
    solution = ufm.solve(problem, seed=seed)
    expected = row["predicted"]
    assert solution.status.ok, solution.status
    assert solution.loss == pytest.approx(expected["value"], rel=1e-9, abs=1e-13)
    if row["verified"].get("zero_solution"):
        assert solution.status is ufm.Status.ZERO and float(solution.W.norm()) == float(solution.H.norm()) == 0
    if "W_gram" in expected and not any(word in name for word in NOT_UNIQUE):
        pairs = (("W_gram", solution.W), ("M_gram", solution.H))
        for key, factor in ((k, F) for k, F in pairs if expected[k] != "see formula"):
            wanted = gram(expected[key])
            assert np.abs((factor @ factor.T).numpy() - wanted).max() <= 1e-7 * max(np.abs(wanted).max(), 1e-300), key
    if "bias" in expected and problem.bias != "none":
        wanted = np.array(expected["bias"])
        wanted = wanted - wanted.mean() if problem.bias == "free" and problem.loss == "ce" else wanted
        assert np.abs(solution.b.numpy() - wanted).max() <= 1e-7


@pytest.mark.parametrize("name", [i for i in FOUND if not any(word in i for word in ("rankce", "sph-2", "sph-3", "sph-4"))])
def test_the_certificate_closes(name):
    row = ROWS[name]
    problem = BUILD[row["variant"]](row["params"])
    solution = ufm.solve(problem, seed=3)
    proof = solution.certificate
    if problem.dim < problem.classes - 1:  # the bound is that of unlimited dimension
        assert proof.gap > 0 and "unlimited dimension" in proof.reason
        return
    assert proof.valid and -1e-13 <= proof.gap <= 1e-9
    if problem.constraint == "ridge" and problem.loss != "focal":
        if solution.status is ufm.Status.ZERO:
            assert proof.dual_norm <= 1 + 1e-12
        else:
            assert proof.dual_norm == pytest.approx(1, abs=1e-8)
