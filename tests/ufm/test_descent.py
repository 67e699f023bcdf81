"""Paths of gradient descent and momentum against autograd on every sample: 500 steps, every reduction, both BLAS libraries."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

import ufm
from ufm.solvers import products
from ufm.solvers.descent import Batch, follow, reduce_path, solve_paths, start
from ufm.solvers.walk import Walk

LIBRARIES = {"torch": "", "numpy": "skylakex", "small by numpy": "haswell"}  # what decides between them


@pytest.fixture(params=LIBRARIES)
def library(request, monkeypatch):
    monkeypatch.setattr(products, "kernels", lambda: LIBRARIES[request.param])
    return request.param


def autograd(problem, seed, steps, lr, momentum, equal=False):
    """Return W, H (N, d), b after `steps` of torch.optim.SGD on all samples."""
    weight, features = start(problem, seed, equal)
    W = torch.tensor(weight, requires_grad=True)
    H = torch.tensor((abs(features) if problem.features == "nonnegative" else features).T.copy(), requires_grad=True)
    b = torch.zeros(problem.classes, dtype=torch.float64, requires_grad=True)
    labels = torch.arange(problem.classes).repeat_interleave(torch.as_tensor(problem.count_vector).long())
    optimizer = torch.optim.SGD([W, H, b] if problem.bias != "none" else [W, H], lr=lr, momentum=momentum)
    scale = 1.0 if problem.logit_scale is None else torch.tensor(problem.logit_scale, dtype=W.dtype)
    offset = 0.0 if problem.logit_offset is None else torch.tensor(problem.logit_offset, dtype=W.dtype)
    of_class = torch.as_tensor(problem.class_weights or (1.0,) * problem.classes, dtype=W.dtype)
    for _ in range(steps):
        optimizer.zero_grad()
        z = (H @ W.T + b) * scale + offset
        if problem.loss == "mse":
            each = 0.5 * (z - torch.nn.functional.one_hot(labels, problem.classes)).square().sum(1)
        else:
            smoothing = problem.smoothing if problem.loss == "smoothing" else 0.0
            each = torch.nn.functional.cross_entropy(z, labels, label_smoothing=smoothing, reduction="none")
            if problem.loss == "focal":
                each = (1 - torch.exp(-each)) ** problem.focal_gamma * each
        penalty = problem.lambda_w * W.square().sum() + problem.lambda_h * H.square().sum() + problem.lambda_b * b.square().sum()
        ((of_class[labels] * each).mean() + 0.5 * penalty).backward()
        optimizer.step()
        if problem.features == "nonnegative":
            with torch.no_grad():
                H.clamp_min_(0.0)
    return W.detach(), H.detach(), b.detach()


ROWS = {
    "all samples": (ufm.Problem(4, 5, (6, 5, 3, 2), lambda_w=0.02, lambda_h=0.01), False),
    "rows": (ufm.Problem(3, 19, 3, lambda_w=0.02, lambda_h=0.01, bias="free"), False),
    "MSE, class columns and remainder": (ufm.Problem(3, 5, (9, 7, 4), loss="mse", lambda_w=0.02, lambda_h=0.001), False),
    "MSE balanced, rows and remainder": (ufm.Problem(3, 12, 2, loss="mse", lambda_w=0.02, lambda_h=0.01, bias="free"), False),
    "start equal within classes": (ufm.Problem(3, 20, (4, 2, 1), lambda_w=0.02, lambda_h=0.01, bias="ridge", lambda_b=0.1), True),
    "MSE, equal": (ufm.Problem(3, 8, 5, loss="mse", lambda_w=0.02, lambda_h=0.01), True),
    "MSE, scales and offsets": (
        ufm.Problem(
            3, 5, 4, loss="mse", lambda_w=0.02, lambda_h=0.01, logit_scale=(1.0, 0.5, 2.0), logit_offset=(0.1, 0.0, -0.2)
        ),
        True,
    ),
    "scales, offsets, weights": (
        ufm.Problem(
            3, 5, (4, 3, 3), lambda_w=0.02, lambda_h=0.01, logit_scale=(1.0, 0.5, 2.0), logit_offset=(0.1, 0.0, -0.2),
            class_weights=(1.0, 2.0, 3.0),
        ),
        False,
    ),
    "focal": (ufm.Problem(3, 5, 4, loss="focal", lambda_w=0.02, lambda_h=0.01), False),
    "smoothing": (ufm.Problem(3, 5, 4, loss="smoothing", lambda_w=0.02, lambda_h=0.01), False),
    "nonnegative": (ufm.Problem(3, 5, 4, lambda_w=0.02, lambda_h=0.01, features="nonnegative"), False),
}  # fmt: skip


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("method", ["gd", "momentum"])
def test_500_steps_are_those_of_autograd_on_every_sample(row, method, library):
    problem, equal = ROWS[row]
    batch = [problem.replace(lambda_w=0.05), problem, problem.replace(lambda_h=0.03)]
    ours = solve_paths(batch, [1, 4, 4], method=method, steps=500, lr=0.1, tol=0.0, equal=equal)[1]
    W, H, b = autograd(problem, 4, 500, 0.1, 0.9 if method == "momentum" else 0.0, equal)
    assert ours.iterations == 500 and ours.status is ufm.Status.STEP_LIMIT
    assert float((ours.W - W).abs().max()) < 1e-10
    assert float((ours.features - H).abs().max()) < 1e-10
    shift = b.mean() if problem.bias == "free" and problem.loss != "mse" else 0.0
    assert float((ours.b - (b - shift)).abs().max()) < 1e-10


@pytest.mark.parametrize("method", ["gd", "momentum", "adam"])
def test_large_products_take_the_other_way_round_and_agree(method, monkeypatch):
    """10 x 64 by 64 x 200: above the size that NumPy keeps without wide kernels."""
    problem = ufm.Problem(10, 64, 20, lambda_w=5e-4, lambda_h=5e-4, bias="free")
    found = []
    for name in LIBRARIES.values():
        monkeypatch.setattr(products, "kernels", lambda name=name: name)
        found.append(solve_paths([problem, problem], [0, 1], method=method, steps=200, lr=0.1, tol=0.0)[1])
    W, H, _ = autograd(problem, 1, 200, 0.1, 0.9) if method == "momentum" else (found[0].W, found[0].features, None)
    for one in found:
        assert float((one.W - W).abs().max()) < 1e-10 and float((one.features - H).abs().max()) < 1e-10


@pytest.mark.parametrize("method", ["gd", "momentum", "adam"])
def test_a_problem_that_ends_early_leaves_the_others_on_their_paths(method, library):
    """Selections carry the velocities, the moments and the bias along; snapshots of what has ended stay."""
    problem = ufm.Problem(3, 4, 3, lambda_w=0.01, lambda_h=0.01, bias="free", loss="mse")
    quick = problem.replace(lambda_w=0.1, lambda_h=0.1)
    rates = {"lr": 0.5 if method == "gd" else 0.05, "steps": 900, "tol": 1e-6, "method": method}
    both = follow([quick, problem], [0, 1], at=(50, 450, 900), **rates)
    alone = follow([problem], [1], at=(50, 450, 900), **rates)[0]
    assert both[0][0].status.ok and both[0][0].iterations < 450 and both[0][0].iterations < both[1][0].iterations
    assert torch.equal(both[1][0].W, alone[0].W) and torch.equal(both[1][0].features, alone[0].features)
    assert np.array_equal(both[1][1].H, alone[1].H) and np.array_equal(both[1][1].b, alone[1].b)
    assert np.array_equal(both[0][1].W[2], both[0][0].W.numpy())


def test_a_path_to_infinity_ends_with_a_status(library):
    """NumPy warns of overflow in a product where PyTorch does not; here warnings are errors."""
    problem = ufm.Problem(3, 4, 5, loss="mse", lambda_w=0.01, lambda_h=0.01)
    for method in ("gd", "momentum"):
        ends = solve_paths([problem, problem.replace(lambda_w=0.02)], [0, 1], method=method, steps=400, lr=50.0)
        assert [end.status for end in ends] == [ufm.Status.DIVERGED] * 2


def test_steps_write_over_their_buffers_only(library):
    """A step takes no new memory for anything of the features' size."""
    problem = ufm.Problem(3, 4, 5, lambda_w=0.01, lambda_h=0.01)
    weight, features = start(problem, 0, False)
    for method, buffers in (("gd", 2), ("momentum", 3)):
        batch = Batch([problem], [0], [(weight, features, reduce_path(problem, weight, features, False, True))], "cpu")
        walk = Walk(method, batch.system, batch.parts, 0.1)
        seen = set()
        for _ in range(10):
            walk.step()
            seen.add(walk.parts[1].data_ptr())
        assert len(seen) <= buffers


def test_the_kernels_are_those_openblas_names():
    code = "from ufm.solvers.products import kernels; print(kernels())"
    env = {**os.environ, "OPENBLAS_CORETYPE": "Haswell"}
    named = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True).stdout.strip()
    assert named == named.lower()
    pools = pytest.importorskip("threadpoolctl").threadpool_info()
    if any(pool.get("architecture") in ("Haswell", "Zen", "SkylakeX", "Cooperlake") for pool in pools):
        assert named == "haswell"  # what the variable asks for, on a processor that has it


def test_openblas_has_the_threads_of_torch_for_the_time_of_a_path():
    function = products._openblas()
    if function is None:
        pytest.skip("NumPy has another BLAS here")
    before, of_torch = function("get_num_threads")(), torch.get_num_threads()
    try:
        for number in (1, 2):
            torch.set_num_threads(number)
            with products.threads_of_torch():
                assert function("get_num_threads")() == number
            assert function("get_num_threads")() == before
    finally:
        torch.set_num_threads(of_torch)


@pytest.mark.parametrize("name", LIBRARIES.values())
def test_products_are_those_of_torch(name, monkeypatch):
    monkeypatch.setattr(products, "kernels", lambda: name)
    a, b = torch.randn(3, 4, 40, dtype=torch.float64), torch.randn(3, 40, 300, dtype=torch.float64)
    assert torch.allclose(products.product(a, b), torch.einsum("bij,bjk->bik", a, b), rtol=1e-12, atol=1e-12)
    assert torch.allclose(products.product(b.mT, a.mT), torch.einsum("bij,bjk->bki", a, b), rtol=1e-12, atol=1e-12)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("method", ["gd", "momentum", "adam"])
def test_paths_on_a_gpu(method):
    problem = ufm.Problem(4, 5, (6, 5, 3, 2), lambda_w=0.02, lambda_h=0.01, bias="free")
    here, there = (solve_paths([problem], [0], method=method, steps=200, lr=0.1, device=d)[0] for d in ("cpu", "cuda:0"))
    assert float((here.W - there.W).abs().max()) < 1e-10 and float((here.features - there.features).abs().max()) < 1e-10
