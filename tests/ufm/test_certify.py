"""The certificate never promises more than the truth, at any point and for every kind of problem."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import ufm
from ufm.certify import certificates, optimal_bias, spectral_norm
from ufm.loop import objective_of
from ufm.reduce import reduce

PLAIN = {"lambda_w": 0.02, "lambda_h": 0.005}
KINDS = {
    "ce": {},
    "ce-free": {"bias": "free"},
    "ce-ridge": {"bias": "ridge", "lambda_b": 0.05},
    "mse": {"loss": "mse"},
    "mse-free": {"loss": "mse", "bias": "free"},
    "mse-ridge": {"loss": "mse", "bias": "ridge", "lambda_b": 0.05},
    "smoothing": {"loss": "smoothing", "bias": "free"},
    "vs": {"logit_scale": (1.0, 0.7, 0.4), "logit_offset": (0.0, -1.0, 2.0)},
    "vs-free": {"logit_scale": (1.0, 0.7, 0.4), "logit_offset": (0.0, -1.0, 2.0), "bias": "free"},
    "weights": {"class_weights": (1.0, 2.0, 5.0)},
    "nonnegative": {"features": "nonnegative"},
    "sphere": {"constraint": "sphere", "temperature": 0.4},
    "ball": {"constraint": "ball", "energy_w": 2.0},
    "ball-mse": {"constraint": "ball", "energy_w": 0.3, "loss": "mse"},
    "soft": {"targets": ((0.5, 0.5, 0.0), (0.1, 0.2, 0.7), (0.0, 0.0, 1.0), (0.2, 0.8, 0.0)), "counts": (4, 3, 2, 1)},
    "multilabel": {"targets": ((1, 1, 0), (0, 1, 1), (0, 0, 1)), "counts": (4, 3, 2)},
}


def problem_of(kind):
    return ufm.Problem(**({"classes": 3, "dim": 6, "counts": (6, 3, 1)} | PLAIN | KINDS[kind]))


def at_random(problem, rng):
    """The certificate of a random point, with the value there."""
    reduced = reduce([problem])
    objective = objective_of(problem, reduced)
    _, outputs, groups, dim = reduced.shape
    size = (outputs + groups) * dim
    x = objective.start(torch.as_tensor(10 ** rng.uniform(-2, 1) * rng.normal(size=(1, size))))
    if problem.bias != "none":
        x[:, size : size + outputs] = torch.as_tensor(rng.normal(size=(1, outputs)))
    if problem.features == "nonnegative":
        x[:, objective.bounded[0] : objective.bounded[1]].abs_()
    f = objective.value(x)
    return float(f), certificates([problem], reduced, objective.logits(x), f, objective.factors(x))[0]


@pytest.mark.parametrize("kind", KINDS)
def test_the_bound_holds_everywhere_and_closes_at_the_optimum(kind):
    problem, rng = problem_of(kind), np.random.default_rng(0)
    best = ufm.solve(problem)
    assert best.status.ok and best.certificate.valid
    assert -1e-13 <= best.certificate.gap <= 1e-8
    if problem.constraint != "sphere":
        assert best.certificate.dual_norm == pytest.approx(1, abs=1e-7)
    valid = 0
    for _ in range(60):
        value, proof = at_random(problem, rng)
        valid += proof.valid
        assert not proof.valid or value - proof.gap <= best.loss + 1e-12 * max(1, value)
    # far out, where every probability is 0 or 1, a free bias cannot be made optimal: then nothing is promised
    assert valid == 60 or (problem.bias == "free" and valid >= 20)


@given(st.integers(2, 5), st.integers(0, 10**6), st.floats(-4, 0), st.sampled_from(["ce", "mse", "smoothing"]))
@settings(max_examples=30, deadline=None, derandomize=True)
def test_no_point_of_any_problem_beats_its_bound(K, seed, log_lambda, loss):
    rng = np.random.default_rng(seed)
    bias = ("none", "free", "ridge")[seed % 3]
    counts = tuple(int(n) for n in rng.integers(1, 50, K))
    fields = {"bias": bias, "lambda_b": 0.02 if bias == "ridge" else 0.0, "lambda_w": 10**log_lambda, "lambda_h": 10**log_lambda}
    problem = ufm.Problem(K, K, counts, loss=loss, **fields)
    best = ufm.solve(problem)
    assert best.status.ok and -1e-13 <= best.certificate.gap <= 1e-9
    for _ in range(5):
        value, proof = at_random(problem, rng)
        assert value - proof.gap <= best.loss + 1e-12 or (bias == "free" and not proof.valid)


def test_focal_is_bounded_by_the_scalar_problem_or_not_at_all():
    problem = ufm.Problem(4, 5, 5, loss="focal", focal_gamma=2.0, lambda_w=0.01, lambda_h=0.001)
    proof = ufm.solve(problem).certificate
    assert proof.valid and abs(proof.gap) <= 1e-12 and "scalar" in proof.reason
    for changed in (problem.replace(counts=(5, 4, 3, 2)), problem.replace(lambda_w=1.0, lambda_h=1.0)):
        proof = ufm.solve(changed).certificate
        assert not proof.valid and np.isnan(proof.gap) and "not convex" in proof.reason


def test_few_dimensions_leave_a_gap_and_say_so():
    proof = ufm.solve(ufm.Problem(5, 2, 10, lambda_w=0.01, lambda_h=0.001)).certificate
    assert proof.valid and proof.gap > 0.01 and "unlimited dimension" in proof.reason


def test_contrastive_features_are_certified():
    for features, counts, temperature in (("free", 4, 0.5), ("free", 4, 1.0), ("nonnegative", (6, 4, 2), 0.5)):
        problem = ufm.Problem(3, 4, counts, loss="supcon", constraint="sphere", temperature=temperature, features=features)
        solution = ufm.solve(problem)
        assert solution.status.ok and -1e-13 <= solution.certificate.gap <= 1e-8
        assert solution.features.shape == (12, 4)


def test_a_certificate_is_plain_numbers():
    proof = ufm.solve(problem_of("ce")).certificate
    assert {f.name for f in dataclasses.fields(proof)} == {"gap", "relative", "dual_norm", "valid", "reason"}
    assert all(isinstance(v, (float, bool, str)) for v in dataclasses.astuple(proof))


def test_the_spectral_norm_is_numpys():
    rng = np.random.default_rng(0)
    for shape in ((3, 5), (5, 3), (4, 4)):
        matrix = rng.normal(size=shape)
        assert float(spectral_norm(torch.as_tensor(matrix)[None])) == pytest.approx(np.linalg.norm(matrix, 2), rel=1e-13)
        tiny = float(spectral_norm(torch.as_tensor(1e-200 * matrix)[None]))  # squares would underflow
        assert tiny == pytest.approx(1e-200 * np.linalg.norm(matrix, 2), rel=1e-13)
        v = np.abs(rng.normal(size=shape[1]))
        bound = float(spectral_norm(torch.as_tensor(matrix)[None], nonnegative=True))
        assert np.linalg.norm(matrix @ v) <= bound * np.linalg.norm(v) + 1e-12


def test_the_bias_of_the_bound_solves_its_equation():
    problem = problem_of("vs-free")
    reduced = reduce([problem])
    z = torch.as_tensor(np.random.default_rng(0).normal(size=(1, 3, 3)))
    b = optimal_bias(reduced, z)
    u = reduced.loss.gradient(z + reduced.logit_scale * b, reduced.targets)
    assert float((u * reduced.weight).sum(2).abs().max()) < 1e-15
