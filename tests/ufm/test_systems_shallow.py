"""The system `shallow`: gradients and kernels by autograd, paths by a plain loop and by SciPy, rows, refused cells."""

import json
import math

import numpy as np
import pytest
import torch
from scipy import linalg

from ufm.cli import main
from ufm.console import plain
from ufm.errors import RequestError
from ufm.systems import Task, shallow_run
from ufm.systems.shallow import Shallow, check
from ufm.systems.shallow_path import Law, Networks, descent_schedule, flow_schedule, follow
from ufm.theory import shallow as theory

LAYERS = [theory.Rates(1, 1), theory.Rates(1, 0), theory.Rates(0, 1), theory.Rates(1, 3)]


def networks(spec, seeds):
    cells = [shallow_run.draw(spec, seed) for seed in seeds]
    parts = [
        torch.from_numpy(np.stack([getattr(c, name) for c in cells])) for name in ("reduced", "targets", "weights", "outputs")
    ]
    return Networks(*parts, shallow_run.rates_of(spec)), cells


def outputs(x, w, a):
    return torch.relu(x @ w.T) @ a / math.sqrt(len(a))


@pytest.mark.parametrize("rates", LAYERS)
def test_velocity_and_kernel_are_those_of_autograd(rates):
    made, _ = networks(Shallow(samples=6, dim=4, width=10, antisymmetric=False), range(3))
    made.rates = rates
    residual, to_w, to_a = made.velocity(made.w, made.a)
    kernels = made.kernel()
    for i in range(3):
        x, w, a = made.x[i], made.w[i].clone().requires_grad_(), made.a[i].clone().requires_grad_()
        f = outputs(x, w, a)
        torch.testing.assert_close(residual[i], (f - made.y[i]).detach(), rtol=0, atol=1e-14)
        by_w, by_a = torch.autograd.grad(0.5 * (f - made.y[i]).square().sum(), (w, a))
        for found, rate, gradient in ((to_w, rates.hidden, by_w), (to_a, rates.output, by_a)):
            assert (found is None) == (rate == 0)
            if rate:
                torch.testing.assert_close(found[i], -rate * gradient, rtol=1e-13, atol=1e-14)
        jacobian = torch.autograd.functional.jacobian(lambda w, a, x=x: outputs(x, w, a), (w.detach(), a.detach()))
        own = sum(rate * j.flatten(1) @ j.flatten(1).T for rate, j in zip(rates, jacobian, strict=True))
        torch.testing.assert_close(kernels[i], own, rtol=1e-12, atol=1e-13)


def test_descent_is_a_plain_loop_over_every_network():
    spec = Shallow(samples=7, dim=5, width=8, t_end=3.0, step=0.4, points=5, output_rate=2.0)
    rows = shallow_run.simulate([Task(spec, seed) for seed in range(4)], "cpu")
    made, _ = networks(spec, range(4))
    for i, row in enumerate(rows):
        x, y, h = made.x[i], made.y[i], row["step_size"]
        w, a = made.w[i].clone().requires_grad_(), made.a[i].clone().requires_grad_()
        largest = np.linalg.eigvalsh(made.kernel()[i].numpy())[-1]
        assert row["steps"] * h == pytest.approx(3.0) and row["measures"]["step_share"] == pytest.approx(h * largest / 2)
        assert 0.36 < h * largest / 2 <= 0.4
        start = (outputs(x, w, a) - y).detach().numpy()
        assert np.abs(start + y.numpy()).max() < 1e-15  # f = 0 at the start
        kernel, away = theory.gram(x.numpy(), theory.Rates(1, 2)), [0.0]
        for k in range(1, row["steps"] + 1):
            by_w, by_a = torch.autograd.grad(0.5 * (outputs(x, w, a) - y).square().sum(), (w, a))
            with torch.no_grad():
                w -= h * by_w
                a -= h * 2.0 * by_a
            law = np.linalg.matrix_power(np.eye(7) - h * kernel, k) @ start
            away.append(np.linalg.norm((outputs(x, w, a) - y).detach().numpy() - law))
        assert row["measures"]["gap"] == pytest.approx(max(away) / np.linalg.norm(start), rel=1e-9)
        assert row["loss"] == pytest.approx(float((outputs(x, w, a) - y).detach().square().sum()) / 14, rel=1e-9)


def test_the_flow_is_many_tiny_steps_beside_a_matrix_exponential():
    """Independent: Euler's steps of 2e-4. (An integrator with error control stops where a kink of ReLU attracts the path.)"""
    spec = Shallow(samples=6, dim=4, width=40, t_end=2.0, method="flow", points=4, trajectory=True)
    row = shallow_run.simulate([Task(spec, 3)], "cpu")[0]
    made, cells = networks(spec, [3])
    x, y, w, a, h = made.x[0].numpy(), made.y[0].numpy(), cells[0].weights.copy(), cells[0].outputs.copy(), 2e-4
    losses = []
    for _ in range(10_001):
        z = x @ w.T
        r = np.maximum(z, 0) @ a / math.sqrt(40) - y
        losses.append(np.mean(r**2) / 2)
        to_a = np.maximum(z, 0).T @ r
        w -= h / math.sqrt(40) * a[:, None] * (((z > 0) * r[:, None]).T @ x)
        a -= h / math.sqrt(40) * to_a
    own = np.interp(row["path"]["t"], h * np.arange(10_001), losses)
    np.testing.assert_allclose(row["path"]["loss"], own, rtol=3e-3)
    law = [np.sum((linalg.expm(-t * cells[0].kernel) @ y) ** 2) / 12 for t in row["path"]["t"]]
    np.testing.assert_allclose(row["path"]["predicted_loss"], law, rtol=1e-10)


def test_smaller_runge_kutta_steps_change_nothing_that_is_seen():
    found = []
    for share in (0.5, 0.1):
        made, cells = networks(Shallow(width=400, method="flow"), range(2))
        laws = {"gap": Law.of(torch.from_numpy(np.stack([c.kernel for c in cells])), made.residual(), True)}
        largest = torch.linalg.eigvalsh(made.kernel())[:, -1].numpy()
        follow(made, laws, flow_schedule(np.full(2, 10.0), share / largest, 8))
        found.append(laws["gap"].gap.numpy())
    np.testing.assert_allclose(found[0], found[1], rtol=2e-3)


def test_a_linear_model_follows_its_own_kernel_exactly():
    """With the output layer alone the network is linear in what is trained: the law of its own kernel is an identity."""
    spec = Shallow(width=60, layers_trained="output", t_end=5.0)
    for row in shallow_run.simulate([Task(spec, seed) for seed in range(3)], "cpu"):
        assert row["measures"]["gap_start"] < 1e-13 and row["measures"]["kernel_movement"] < 1e-10
        assert row["measures"]["flips"] == 0 and row["measures"]["gap"] > 0.05


def test_the_distance_falls_with_the_width_and_a_wrong_kernel_keeps_its():
    rows = shallow_run.simulate([Task(Shallow(width=m, t_end=8.0), s) for m in (160, 2560) for s in range(5, 13)], "cpu")
    mean = {
        name: [np.mean([r["measures"][name] for r in part]) for part in (rows[:8], rows[8:])] for name in ("gap", "gap_swapped")
    }
    assert 2.5 < mean["gap"][0] / mean["gap"][1] < 6.5  # sixteen times the width: 4 in the mean
    assert mean["gap_swapped"][0] / mean["gap_swapped"][1] < 2.3
    assert all(r["measures"]["gap_start"] < r["measures"]["gap"] for r in rows)


def test_a_seed_has_one_set_of_inputs_and_targets_at_every_width():
    a, b = (shallow_run.draw(Shallow(width=m), 5) for m in (20, 200))
    assert (a.reduced == b.reduced).all() and (a.targets == b.targets).all()
    assert np.linalg.norm(a.reduced, axis=1) == pytest.approx(1.0)
    assert not np.array_equal(a.targets, shallow_run.draw(Shallow(width=20), 6).targets)


def test_more_dimensions_than_samples_are_turned_into_as_many():
    cell = shallow_run.draw(Shallow(samples=8, dim=300, width=10, data="gaussian"), 0)
    assert cell.reduced.shape == (8, 8) and cell.weights.shape == (10, 8)
    np.testing.assert_allclose(theory.gram(cell.reduced), cell.kernel, atol=1e-12)


@pytest.mark.parametrize("targets", ["signs", "gaussian", "slowest"])
def test_targets(targets):
    spec = Shallow(width=10, targets=targets)
    cell = shallow_run.draw(spec, 1)
    if targets == "signs":
        assert set(cell.targets) == {-1.0, 1.0}
    if targets == "slowest":
        values = np.linalg.eigvalsh(cell.kernel)
        np.testing.assert_allclose(cell.kernel @ cell.targets, values[0] * cell.targets, atol=1e-12)
        assert np.linalg.norm(cell.targets) == pytest.approx(math.sqrt(20))
    assert np.isfinite(cell.targets).all()


def test_contradictory_inputs_leave_their_share_of_the_loss():
    spec = Shallow(samples=12, dim=6, width=60, contradictions=3, t_end=100.0)
    for row in shallow_run.simulate([Task(spec, seed) for seed in range(3)], "cpu"):
        assert row["loss"] == pytest.approx(3 / 12, rel=1e-3)
        assert row["predicted"] == pytest.approx(3 / 12, rel=1e-3) and abs(row["measures"]["lambda_min"]) < 1e-14
        for name in ("kernel_distance", "lambda_min_ratio"):
            assert math.isnan(row["measures"][name]) and row["reasons"][name]


def test_a_singular_gram_says_why_it_has_no_unit():
    row = shallow_run.simulate([Task(Shallow(samples=5, dim=1, width=20, t_end=1.0), 0)], "cpu")[0]
    for name in ("kernel_distance", "kernel_movement"):
        assert math.isnan(row["measures"][name]) and "singular" in row["reasons"][name]


def test_a_step_too_large_is_a_row_with_its_step_and_valid_json():
    spec = Shallow(width=200, step=50.0, t_end=1e5, samples=4)
    row = shallow_run.simulate([Task(spec, 0)], "cpu")[0]
    assert row["status"].startswith("diverged")
    assert "no longer finite at step" in row["reasons"]["kernel_movement"] and row["reasons"]["gap"]
    json.dumps(plain(row), allow_nan=False)


def test_time_zero_is_the_kernels_alone():
    row = shallow_run.simulate([Task(Shallow(samples=40, width=4, t_end=0.0), 0)], "cpu")[0]
    assert row["measures"]["gap"] == 0 and row["measures"]["loss_ratio"] == 1 and row["loss"] == 0.5
    assert row["measures"]["lambda_min_ratio"] == pytest.approx(1, rel=0.3)


def test_mixed_cells_come_back_in_order():
    specs = [
        Shallow(width=m, t_end=2.0, method=way, layers_trained=layers)
        for m in (10, 30)
        for way in ("gd", "flow")
        for layers in theory.LAYERS
    ]
    rows = shallow_run.simulate([Task(s, k) for s in specs for k in (0, 1)], "cpu")
    for (spec, k), row in zip([(s, k) for s in specs for k in (0, 1)], rows, strict=True):
        alone = shallow_run.simulate([Task(spec, k)], "cpu")[0]
        assert row["measures"] == pytest.approx(alone["measures"], rel=1e-7, abs=1e-11, nan_ok=True)


def test_schedules_end_at_their_times():
    made = descent_schedule(np.array([3.0, 0.5]), np.array([0.21, 0.2]), 6)
    assert (made.counts.sum(0) == [15, 3]).all() and made.times[-1] == pytest.approx([3.0, 0.5]) and (made.sizes <= 0.21).all()
    flow = flow_schedule(np.array([3.0, 1.0]), np.array([0.3, 0.2]), 4)
    np.testing.assert_allclose(flow.times[1:], np.logspace(-3, 0, 3)[:, None] * [3.0, 1.0])
    assert (flow.sizes <= [0.3, 0.2]).all()


def test_a_kept_path_starts_at_one_and_ends_where_the_row_does():
    for way in ("gd", "flow"):
        row = shallow_run.simulate([Task(Shallow(width=200, trajectory=True, method=way), 2)], "cpu")[0]
        path = row["path"]
        assert path["t"][0] == 0 and path["t"][-1] == pytest.approx(20.0) and (np.diff(path["t"]) > 0).all()
        assert (path["modes"][0] == 1).all() and (path["predicted"][0] == 1).all() and path["modes"].shape == (len(path["t"]), 4)
        assert path["loss"][-1] == row["loss"] and path["predicted_loss"][-1] == pytest.approx(row["predicted"])
        assert path["gap"][-1] == pytest.approx(row["measures"]["gap"]) and (np.diff(path["gap"]) >= 0).all()
        if way == "flow":
            np.testing.assert_allclose(path["predicted"], np.exp(-np.outer(path["t"], path["eigenvalues"])), rtol=1e-9)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"width": 7}, "odd"),
        ({"contradictions": 11}, "use at most 10"),
        ({"contradictions": 1, "targets": "slowest"}, "drop one"),
        ({"layers_trained": "hidden", "output_rate": 2.0}, "output-rate"),
        ({"t_end": 1e12}, "steps, over 1e"),
    ],
)
def test_wrong_cells_are_refused(options, said):
    with pytest.raises(RequestError, match=said) as caught:
        check(Shallow(**options))
    assert "\n" not in str(caught.value)


def test_absurd_sizes_cost_nothing_to_check():
    assert check(Shallow(width=10**12)).memory > 1e14 and check(Shallow(dim=10**12)).memory > 1e14
    assert check(Shallow(width=7, antisymmetric=False)).seconds > 0


def test_predictions_are_closed_forms_with_their_reasons(capsys):
    row = shallow_run.predict(Shallow(samples=100, dim=20))
    found = theory.edges(100, 20)
    assert row["lambda_min"] == found.lowest and row["largest_step"] == 2 / found.highest and row["lambda_min_linear"] is None
    assert row["law"] == "(I - h H)^k" and shallow_run.predict(Shallow(method="flow"))["law"] == "exp(-H t)"
    assert shallow_run.predict(Shallow(samples=30, dim=90))["lambda_min_linear"] == theory.edges(30, 90).linear
    assert "two inputs are equal" in shallow_run.predict(Shallow(contradictions=1))["reason"]
    assert (
        shallow_run.predict(Shallow(dim=3))["lambda_min"] is None
        and "dimensions" in shallow_run.predict(Shallow(dim=3))["reason"]
    )
    main(["predict", "shallow", "--samples", "20,40"], standalone_mode=False)
    assert "samples=40" in capsys.readouterr().out


def test_the_table_fits_and_the_run_resumes(tmp_path, capsys):
    words = ["simulate", "shallow", "--width", "10,20", "--t-end", "1", "--seeds", "0:2", "--out", str(tmp_path)]
    main(words, standalone_mode=False)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6 and max(map(len, lines[:5])) <= 130 and lines[0].split()[:3] == ["cell", "loss", "gap"]
    before = {path: path.read_bytes() for path in tmp_path.rglob("cells.jsonl")}
    main(words, standalone_mode=False)
    assert {path: path.read_bytes() for path in tmp_path.rglob("cells.jsonl")} == before


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_gives_the_same_rows():
    tasks = [Task(Shallow(width=200, method=way, t_end=5.0), seed) for way in ("gd", "flow") for seed in (0, 1)]
    for here, there in zip(shallow_run.simulate(tasks, "cpu"), shallow_run.simulate(tasks, "cuda:0"), strict=True):
        assert there["measures"] == pytest.approx(here["measures"], rel=1e-6, abs=1e-9)
