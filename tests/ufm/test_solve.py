"""What a caller of `solve` and `solve_many` may rely on: batches, statuses, edges, refusals, paths."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import ufm
from ufm.errors import RequestError
from ufm.solvers import METHODS, PATHS, SOLVERS
from ufm.solvers.descent import follow, solve_paths, start

SMALL = ufm.Problem(4, 6, 5, lambda_w=0.01, lambda_h=0.001)


def same(a, b, tolerance=1e-9):
    assert a.status == b.status
    assert a.loss == pytest.approx(b.loss, rel=1e-12)
    for one, other in ((a.W @ a.W.T, b.W @ b.W.T), (a.H @ a.H.T, b.H @ b.H.T), (a.logits, b.logits)):
        assert float((one - other).abs().max()) <= tolerance * max(1.0, float(other.abs().max()))


def test_a_mixed_batch_gives_what_single_solves_give():
    problems = [
        SMALL,
        ufm.Problem(3, 2, (7, 2, 1), lambda_w=0.01, lambda_h=0.002),
        ufm.Problem(5, 9, 4, lambda_w=1e-3, lambda_h=1e-3),
        ufm.Problem(6, 5, 4, lambda_w=1e-3, lambda_h=1e-2),
        ufm.Problem(5, 9, 4, loss="mse", bias="free", lambda_w=1e-2, lambda_h=1e-3),
        ufm.Problem(4, 9, 4, loss="mse", bias="ridge", lambda_b=0.1, lambda_w=1e-2, lambda_h=1e-3),
        ufm.Problem(3, 4, 5, loss="focal", focal_gamma=1.0, lambda_w=1e-2, lambda_h=1e-3),
        ufm.Problem(3, 4, 5, loss="focal", focal_gamma=3.0, lambda_w=1e-2, lambda_h=1e-3),
        ufm.Problem(4, 3, 5, constraint="sphere", temperature=0.3),
        ufm.Problem(4, 3, 5, constraint="sphere", temperature=1.5),
        ufm.Problem(4, 8, (5, 4, 3, 2), features="nonnegative", lambda_w=1e-2, lambda_h=1e-3),
        ufm.Problem(4, 4, 5, lambda_w=10.0, lambda_h=10.0),
    ]
    seeds = list(range(len(problems)))
    for together, problem, seed in zip(ufm.solve_many(problems, seeds=seeds), problems, seeds, strict=True):
        assert together.problem is problem and together.seed == seed
        same(together, ufm.solve(problem, seed=seed))


def test_equal_requests_give_equal_bits_and_seeds_differ():
    first, again, other = ufm.solve(SMALL, seed=3), ufm.solve(SMALL, seed=3), ufm.solve(SMALL, seed=4)
    assert torch.equal(first.W, again.W) and torch.equal(first.H, again.H)
    assert not torch.allclose(first.W, other.W)
    same(first, other, 1e-7)


@pytest.mark.parametrize("method", ["lbfgs", "newton", "scipy", "exact", "gd", "momentum", "adam", "flow"])
def test_methods_agree(method):
    steps = {"gd": 4000, "momentum": 2000, "adam": 4000, "flow": 3000}.get(method)
    solution = ufm.solve(SMALL, method=method, steps=steps, lr=1.0 if method == "gd" else None)
    assert solution.method == method
    tolerance = 2e-3 if method in ("gd", "momentum", "flow") else 1e-6  # spread within classes decays like e^(-lambda_h t)
    assert solution.loss == pytest.approx(0.12602894343939372, rel=tolerance)
    assert (solution.features is not None) == (method in PATHS)
    if solution.features is not None:
        assert solution.features.shape == (20, 6)
        assert torch.allclose(solution.features.view(4, 5, 6).mean(1), solution.H, atol=1e-12)


def test_the_tables_load():
    from ufm.tables import load

    for name in METHODS:
        assert callable(load(METHODS, name, "method"))
    assert set(SOLVERS) < set(METHODS)


@pytest.mark.parametrize("bias", ["none", "free", "ridge"])
def test_huge_penalties_end_at_exact_zero(bias):
    for loss in ("ce", "mse", "smoothing"):
        fields = {"loss": loss, "bias": bias, "lambda_b": 0.1 if bias == "ridge" else 0.0}
        solution = ufm.solve(ufm.Problem(3, 4, (9, 3, 1), lambda_w=10.0, lambda_h=10.0, **fields))
        assert solution.status is ufm.Status.ZERO and float(solution.W.norm()) == float(solution.H.norm()) == 0
        assert -1e-13 <= solution.certificate.gap <= 1e-12 and solution.certificate.dual_norm < 1
        if bias == "free":  # without features the bias alone fits the class frequencies
            shares = np.array([9, 3, 1]) / 13
            smooth = 0.9 * shares + 0.1 / 3 if loss == "smoothing" else shares
            expected = shares if loss == "mse" else np.log(smooth) - np.log(smooth).mean()
            assert np.abs(solution.b.numpy() - expected).max() < 1e-8


@pytest.mark.parametrize("loss", ["ce", "mse", "smoothing"])
@pytest.mark.parametrize("around, status", [(0.98, "CONVERGED"), (1.02, "ZERO"), (1.0, None)])
def test_around_the_threshold(loss, around, status):
    """K sqrt(n lambda_w lambda_h) = 1 (1 - alpha for smoothing) is where the zero solution takes over."""
    critical = 0.9 if loss == "smoothing" else 1.0
    lam = around * critical / (5 * 10**0.5)
    solution = ufm.solve(ufm.Problem(5, 6, 10, loss=loss, lambda_w=lam, lambda_h=lam))
    assert solution.status.ok
    if status:
        assert solution.status.name == status
    assert -1e-13 <= solution.certificate.gap <= 1e-9


@pytest.mark.parametrize("around, alive", [(0.98, False), (1.02, True)])
def test_minority_classes_die_at_their_threshold(around, alive):
    """Differences among minority classes vanish iff n_B <= (c N)^2."""
    counts = (40, 40, 4, 4)
    lam = 2 / 88 / around**0.5
    solution = ufm.solve(ufm.Problem(4, 5, counts, lambda_w=lam, lambda_h=lam))
    spread = float((solution.W[2] - solution.W[3]).norm())
    assert solution.status.ok and (spread > 1e-2 if alive else spread < 1e-8)


@given(
    st.integers(2, 6),
    st.integers(1, 7),
    st.lists(st.sampled_from([1, 2, 5, 40, 1000]), min_size=6, max_size=6),
    st.floats(-8, 1),
    st.floats(-8, 1),
    st.sampled_from(["ce", "mse", "smoothing"]),
    st.sampled_from(["none", "free", "ridge"]),
)
@settings(max_examples=40, deadline=None, derandomize=True)
def test_any_problem_ends_with_a_status_and_a_bound(K, d, counts, lw, lh, loss, bias):
    fields = {"loss": loss, "bias": bias, "lambda_b": 0.01 if bias == "ridge" else 0.0}
    problem = ufm.Problem(K, d, tuple(counts[:K]), lambda_w=10**lw, lambda_h=10**lh, **fields)
    solution = ufm.solve(problem)
    assert isinstance(solution.status, ufm.Status) and np.isfinite(solution.loss)
    assert solution.certificate.gap >= -1e-13
    if solution.status.ok and d >= K:
        assert solution.certificate.gap <= 1e-9
    assert solution.W.shape == (K, d) and solution.H.shape == (K, d) and solution.b.shape == (K,)
    assert torch.allclose(solution.logits, solution.H @ solution.W.T + solution.b)


@pytest.mark.parametrize(
    "problem",
    [
        ufm.Problem(2, 1, 1, lambda_w=1e-3, lambda_h=1e-3),
        ufm.Problem(2, 1, (1000, 1), lambda_w=1e-5, lambda_h=1e-5),
        ufm.Problem(6, 1, 4, lambda_w=1e-3, lambda_h=1e-3),
        ufm.Problem(5, 5, (1000, 1000, 100, 10, 1), lambda_w=1e-8, lambda_h=1e-8),
        ufm.Problem(5, 5, (1000, 1000, 100, 10, 1), lambda_w=1e-6, lambda_h=1e-6, bias="free"),
        ufm.Problem(5, 5, 10, lambda_w=1e-8, lambda_h=1.0),
        ufm.Problem(5, 5, 10, lambda_w=10.0, lambda_h=1e-8, bias="free"),
        ufm.Problem(3, 7, (1, 1, 1000), loss="mse", lambda_w=1e-5, lambda_h=1e-5, bias="free"),
        ufm.Problem(20, 5, 3, lambda_w=1e-3, lambda_h=1e-3),
    ],
    ids=["K2d1n1", "K2d1", "d1", "tiny", "tiny-free", "lopsided", "lopsided-free", "mse", "d<K"],
)
def test_edges_converge(problem):
    solution = ufm.solve(problem)
    assert solution.status.ok, (solution.status, solution.gradient_norm)
    assert solution.certificate.gap >= -1e-13
    if problem.dim >= problem.classes - 1:
        assert solution.certificate.gap <= 1e-9


def test_a_thousand_classes():
    """Only a large penalty is quick enough for a test; the sizes, the memory and the certificate are the real ones."""
    solution = ufm.solve(ufm.Problem(1000, 1000, 50, lambda_w=1e-2, lambda_h=1e-2, loss="mse"))
    assert solution.status is ufm.Status.ZERO and solution.loss == pytest.approx(0.5, rel=1e-12)


def test_step_limit_and_divergence_are_statuses():
    assert ufm.solve(SMALL, steps=3).status is ufm.Status.STEP_LIMIT
    blown = ufm.solve(SMALL.replace(loss="mse"), method="gd", lr=1e6, steps=500)
    assert blown.status is ufm.Status.DIVERGED
    impossible = ufm.solve(SMALL, tol=0.0, steps=3000)
    assert impossible.status in (ufm.Status.CERTIFIED, ufm.Status.CONVERGED) and impossible.gradient_norm < 1e-12


def test_a_free_bias_of_cross_entropy_is_centred():
    solution = ufm.solve(ufm.Problem(4, 5, (40, 40, 10, 5), lambda_w=1e-3, lambda_h=1e-3, bias="free"))
    assert abs(float(solution.b.sum())) < 1e-14
    assert solution.b.numpy() == pytest.approx(np.array([1.381, 1.381, -1.008, -1.654]) - 0.025, abs=6e-4)


def test_nonnegative_features_fit_their_dimension():
    for d in (4, 6, 8, 11):
        solution = ufm.solve(ufm.Problem(4, d, (9, 6, 3, 2), features="nonnegative", lambda_w=1e-2, lambda_h=1e-3))
        assert solution.status.ok and solution.H.shape == (4, d) and float(solution.H.min()) >= 0
        assert -1e-13 <= solution.certificate.gap <= 1e-9
        value = ufm.predict(solution.problem)
        assert solution.loss == pytest.approx(value.loss, rel=1e-9)
        assert np.abs((solution.H @ solution.H.T).numpy() - value.gram_h).max() <= 1e-7 * np.abs(value.gram_h).max()


def test_the_ball_keeps_its_budgets():
    problem = ufm.Problem(5, 6, (9, 6, 3, 2, 1), constraint="ball", energy_w=2.0, energy_h=0.5)
    solution = ufm.solve(problem)
    assert solution.status.ok and -1e-13 <= solution.certificate.gap <= 1e-8
    assert float(solution.W.square().sum()) / 5 == pytest.approx(2.0, rel=1e-9)
    assert float(solution.H.square().sum()) / 5 == pytest.approx(0.5, rel=1e-9)


def test_cold_spheres_reach_the_code():
    """K = 6, d = 3: the cross-polytope, whose value at temperature tau is log(1 + e^(-2/tau) + 4 e^(-1/tau))."""
    for tau in (0.3, 0.05):
        solution = ufm.solve(ufm.Problem(6, 3, 5, constraint="sphere", temperature=tau))
        assert solution.status.ok
        assert solution.loss == pytest.approx(np.log1p(np.exp(-2 / tau) + 4 * np.exp(-1 / tau)), rel=1e-6)
        assert torch.allclose(solution.W.norm(dim=1), torch.ones(6, dtype=torch.float64))


@pytest.mark.parametrize(
    "problem, options, words",
    [
        (SMALL.replace(lambda_w=0.0), {}, "no optimum"),
        (SMALL, {"method": "lbfsg"}, "did you mean 'lbfgs'"),
        (SMALL, {"method": "projected"}, "does not solve"),
        (SMALL.replace(features="nonnegative"), {"method": "newton"}, "does not solve"),
        (SMALL.replace(constraint="sphere"), {"method": "newton"}, "does not solve"),
        (SMALL.replace(constraint="sphere"), {"method": "gd"}, "follows ridge problems"),
        (SMALL.replace(counts=(5, 4, 3, 2)), {"method": "exact"}, "no closed form"),
        (SMALL.replace(loss="supcon", constraint="sphere", bias="free"), {}, "no bias"),
        (SMALL, {"tol": -1.0}, "out of range"),
        (SMALL, {"steps": 0}, "out of range"),
        (SMALL, {"method": "gd", "lr": -1.0}, "out of range"),
        (SMALL.replace(classes=100_000, dim=100_000), {}, "GiB"),
    ],
)
def test_wrong_requests_are_one_line(problem, options, words):
    with pytest.raises(RequestError, match=words) as error:
        ufm.solve(problem, **options)
    assert "\n" not in str(error.value)


def test_seeds_must_match():
    with pytest.raises(RequestError, match="one seed per problem"):
        ufm.solve_many([SMALL, SMALL], seeds=[1])


# --- paths -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["ce", "mse", "smoothing"])
@pytest.mark.parametrize("bias", ["none", "free", "ridge"])
@pytest.mark.parametrize("method", ["gd", "momentum", "adam"])
def test_paths_are_those_of_torch_optim(loss, bias, method):
    """Row and column reductions (d = 11 > K + N, MSE class sums) must not move the path."""
    fields = {"loss": loss, "bias": bias, "lambda_b": 0.1 if bias == "ridge" else 0.0}
    problem = ufm.Problem(3, 11, (3, 2, 1), lambda_w=0.02, lambda_h=0.01, **fields)
    other = problem.replace(lambda_w=0.05)
    ours = solve_paths([problem, other], [4, 4], method=method, steps=80, lr=0.1, tol=0.0)[0]
    weight, features = start(problem, 4, False)
    W, H = torch.tensor(weight, requires_grad=True), torch.tensor(features.T.copy(), requires_grad=True)
    b = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    moving = [W, H, b] if bias != "none" else [W, H]
    kind = torch.optim.Adam if method == "adam" else torch.optim.SGD
    optimizer = kind(moving, lr=0.1, **({"momentum": 0.9} if method == "momentum" else {}))
    labels = torch.tensor([0, 0, 0, 1, 1, 2])
    for _ in range(80):
        optimizer.zero_grad()
        z = H @ W.T + b
        if loss == "mse":
            f = 0.5 * (z - torch.nn.functional.one_hot(labels, 3)).square().sum(1).mean()
        else:
            f = torch.nn.functional.cross_entropy(z, labels, label_smoothing=0.1 if loss == "smoothing" else 0.0)
        f = f + 0.01 * W.square().sum() + 0.005 * H.square().sum() + 0.5 * problem.lambda_b * b.square().sum()
        f.backward()
        optimizer.step()
    assert float((ours.W - W.detach()).abs().max()) < 1e-12
    assert float((ours.features - H.detach()).abs().max()) < 1e-12


@pytest.mark.parametrize("method", ["gd", "momentum"])
def test_a_start_equal_within_classes_stays_so_and_reduces_exactly(method):
    problem = ufm.Problem(3, 20, (4, 2, 1), lambda_w=0.02, lambda_h=0.01, bias="free")
    ours = solve_paths([problem], [0], method=method, steps=50, lr=0.1, tol=0.0, equal=True)[0]
    weight, features = start(problem, 0, True)
    W, H = torch.tensor(weight, requires_grad=True), torch.tensor(features.T.copy(), requires_grad=True)
    b = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([W, H, b], lr=0.1, momentum=0.9 if method == "momentum" else 0.0)
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 2])
    for _ in range(50):
        optimizer.zero_grad()
        f = torch.nn.functional.cross_entropy(H @ W.T + b, labels) + 0.01 * W.square().sum() + 0.005 * H.square().sum()
        f.backward()
        optimizer.step()
    assert float((ours.features - H.detach()).abs().max()) < 1e-12


def test_snapshots_lie_on_the_path():
    problem = ufm.Problem(3, 4, 3, lambda_w=0.02, lambda_h=0.01, bias="free")
    ((end, path),) = follow([problem], [0], method="momentum", steps=30, tol=0.0, at=(0, 10, 30))
    weight, features = start(problem, 0, False)
    assert path.W.shape == (3, 3, 4) and path.H.shape == (3, 9, 4) and path.b.shape == (3, 3)
    assert np.allclose(path.W[0], weight) and np.allclose(path.H[0], features.T)
    ten = solve_paths([problem], [0], method="momentum", steps=10, tol=0.0)[0]
    assert np.allclose(path.W[1], ten.W) and np.allclose(path.H[2], end.features)


def test_paths_without_penalty_run():
    for method in ("gd", "momentum", "adam", "flow"):
        free = ufm.Problem(3, 4, 3, lambda_w=0.0, lambda_h=0.0)
        solution = ufm.solve(free, method=method, steps=200)
        assert solution.status is ufm.Status.STEP_LIMIT and solution.certificate is None and solution.loss < np.log(3)
