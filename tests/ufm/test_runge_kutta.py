"""Dormand-Prince with per-cell steps against scipy's DOP853."""

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from ufm.solvers import runge_kutta

STIFFNESS = torch.tensor([1.0, 5.0, 0.2], dtype=torch.float64)
TIMES = torch.stack([torch.linspace(0, end, 41, dtype=torch.float64) for end in (10.0, 20.0, 30.0)])
START = torch.tensor([[2.0, 0.0]] * 3, dtype=torch.float64)


def van_der_pol(x, cells):
    return torch.stack([x[:, 1], STIFFNESS[cells] * (1 - x[:, 0] ** 2) * x[:, 1] - x[:, 0]], 1)


def reference(i):
    def flow(t, x):
        return [x[1], float(STIFFNESS[i]) * (1 - x[0] ** 2) * x[1] - x[0]]

    grid = TIMES[i].numpy()
    return solve_ivp(flow, (0, grid[-1]), [2.0, 0.0], t_eval=grid, method="DOP853", rtol=1e-13, atol=1e-13).y.T


@pytest.mark.parametrize(("rtol", "error"), [(1e-6, 3e-4), (1e-9, 1e-6)])
def test_each_cell_matches_scipy_at_every_output_time(rtol, error):
    path = runge_kutta.integrate(van_der_pol, START, TIMES, rtol=rtol, atol=rtol)
    assert path.finished.all()
    for i in range(3):
        np.testing.assert_allclose(path.states[i], reference(i), atol=error)
    # Steps are each cell's own: the stiffer cell pays, the others do not.
    assert path.evaluations[1] > 1.5 * path.evaluations[0]


def test_a_cell_does_not_depend_on_its_neighbours():
    together = runge_kutta.integrate(van_der_pol, START, TIMES, rtol=1e-7, atol=1e-9)

    def only_second(x, cells):
        return van_der_pol(x, torch.ones_like(cells))

    alone = runge_kutta.integrate(only_second, START[:1], TIMES[1:2], rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(alone.states[0], together.states[1], rtol=1e-12, atol=1e-12)
    assert alone.evaluations[0] == together.evaluations[1]


def test_fifth_order_in_the_step():
    """On x' = -x the error at the end falls about 10x for 10x in rtol, and dense output is as good as the end points."""
    grid = torch.linspace(0, 5, 200, dtype=torch.float64)[None]
    errors = []
    for rtol in (1e-5, 1e-7, 1e-9):
        path = runge_kutta.integrate(lambda x, cells: -x, torch.ones(1, 1, dtype=torch.float64), grid, rtol=rtol, atol=0.0)
        errors.append((path.states[0, :, 0] - torch.exp(-grid[0])).abs().max().item())
    assert errors[1] < 0.03 * errors[0]
    assert errors[2] < 0.03 * errors[1]


def test_blow_up_is_a_value_not_an_exception():
    grid = torch.linspace(0, 2, 5, dtype=torch.float64)[None].repeat(2, 1)
    start = torch.tensor([[1.0], [0.1]], dtype=torch.float64)  # x' = x^2 from 1 is infinite at t = 1, from 0.1 at t = 10
    path = runge_kutta.integrate(lambda x, cells: x**2, start, grid)
    assert path.finished.tolist() == [False, True]
    assert torch.isnan(path.states[0, -1]).all()
    assert path.states[1, -1, 0].item() == pytest.approx(1 / (10 - 2), rel=1e-5)
