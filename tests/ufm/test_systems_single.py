import math

import numpy as np
import pytest

from ufm.errors import RequestError
from ufm.predict import predict
from ufm.problem import Problem
from ufm.solution import Status
from ufm.systems import SYSTEMS, Cost, Task, single, single_run, trajectory
from ufm.systems.single import Single, check, class_counts, problem_of
from ufm.tables import load, resolve_target

SMALL = {"classes": 3, "dim": 4, "per_class": 5}


def spec(**values):
    return Single(**{**SMALL, **values})


@pytest.mark.parametrize(
    "values, counts",
    [
        ({}, 5),
        ({"counts": (5, 4, 3)}, (5, 4, 3)),
        ({"per_class": 100, "imbalance": 10.0, "minority": 1}, (100, 100, 10)),
        ({"per_class": 100, "imbalance": 10.0}, (100, 100, 10)),  # K // 2 = 1
        ({"per_class": 100, "imbalance": 3.0, "minority": 2}, (100, 33, 33)),
        ({"imbalance": 1.0, "minority": 2}, 5),
    ],
)
def test_counts(values, counts):
    assert class_counts(spec(**values)) == counts


def test_an_imbalance_that_leaves_nothing_is_refused():
    with pytest.raises(RequestError, match="leaves no sample"):
        class_counts(spec(imbalance=11.0))


def test_every_option_reaches_the_problem():
    values = {
        "counts": (5, 4, 3),
        "loss": "focal",
        "focal_gamma": 3.0,
        "smoothing": 0.2,
        "lambda_w": 1e-3,
        "lambda_h": 2e-3,
        "lambda_b": 0.1,
        "bias": "ridge",
        "features": "nonnegative",
        "logit_scale": (1.0, 2.0, 3.0),
        "logit_offset": (0.0, -1.0, 1.0),
        "class_weights": (1.0, 2.0, 1.0),
        "temperature": 0.5,
        "energy_w": 2.0,
        "energy_h": 3.0,
    }
    problem = problem_of(spec(**values))
    assert all(getattr(problem, name) == value for name, value in values.items())
    assert problem == Problem(3, 4, **values)


def test_cost_grows_with_the_problem_and_paths_cost_more():
    small, large, path = check(spec()), check(spec(classes=300, dim=500)), check(spec(per_class=5000, method="gd"))
    assert isinstance(small, Cost) and small.memory < large.memory and small.seconds < large.seconds
    assert path.memory > check(spec(per_class=5000)).memory
    assert check(spec(classes=10**9)).memory > 1e18  # answered without building anything of that size


@pytest.mark.parametrize("name", SYSTEMS)
def test_every_system_declares_what_the_commands_need(name):
    system = load(SYSTEMS, name, "system")
    assert system.name == name and len(system.examples) == 2
    for target in (system.check, system.simulate, system.predict):
        assert callable(resolve_target(target))
    cost = resolve_target(system.check)(system.spec())
    assert cost.seconds > 0 and cost.memory > 0


def test_a_row_is_the_solution_beside_its_prediction():
    import ufm

    row = single_run.simulate([Task(spec(lambda_w=1e-3, lambda_h=2e-3), 4)], "cpu")[0]
    s = ufm.solve(Problem(3, 4, 5, lambda_w=1e-3, lambda_h=2e-3), seed=4)
    c = 3 * math.sqrt(5 * 1e-3 * 2e-3)  # K s; the closed form of balanced cross-entropy, theory of Zhu et al. 2021
    closed = -math.log(1 - 2 * c / 3) + 2 * c / 3 * math.log(3 / c - 2)
    assert row["loss"] == s.loss == pytest.approx(closed, rel=1e-12) and row["predicted"] == pytest.approx(closed, rel=1e-12)
    assert row["status"] == Status.CONVERGED.value and row["prediction"]["reference"] == "zhu2021"
    assert row["measures"]["nc1_pinv"] == 0 and row["flags"]["nc1_pinv"] == "degenerate"
    assert row["measures"]["nc2_etf_means"] < 1e-7 and row["measures"]["nc3_cosine"] < 1e-13


def test_scalars_are_found_where_they_are_predicted():
    """Independent: the closed forms of balanced cross-entropy and of squared error without bias, written out."""
    K, n, lw, lh = 3, 5, 1e-3, 2e-3
    s = math.sqrt(n * lw * lh)
    a, t = math.log(1 / s - K + 1), 1 - K * s
    size, squares = math.sqrt(math.sqrt(lh * n / lw) * a * (K - 1)), math.sqrt(math.sqrt(lh * n / lw) * t * K)
    rows = single_run.simulate([Task(spec(lambda_w=lw, lambda_h=lh, loss=loss), 0) for loss in ("ce", "mse")], "cpu")
    for row, gap, norm, angle in zip(rows, (a, t), (size, squares), (120.0, 90.0), strict=True):
        expected = {"logit_gap": gap, "weight_norm": norm, "feature_norm": norm * math.sqrt(lw / lh)}
        expected |= {"angle_weights": angle, "angle_means": angle}
        for name, value in expected.items():
            assert row["measures"][name] == pytest.approx(value, rel=1e-8)
            assert row["prediction"]["values"][name] == pytest.approx(value, rel=1e-8)


def test_a_row_keeps_small_grams():
    import ufm

    row = single_run.simulate([Task(spec(counts=(9, 4, 2)), 2)], "cpu")[0]
    found = ufm.solve(Problem(3, 4, (9, 4, 2), lambda_w=5e-4, lambda_h=5e-4), seed=2)
    for name, rows in (("weights", found.W), ("means", found.H)):
        gram = (rows @ rows.T).numpy()
        assert row["gram"][name] == [gram[i, j] for i in range(3) for j in range(i, 3)]
    assert "gram" not in single_run.simulate([Task(spec(classes=21, dim=30), 0)], "cpu")[0]


def test_zero_has_norms_and_no_angle():
    row = single_run.simulate([Task(spec(lambda_w=1.0, lambda_h=1.0), 0)], "cpu")[0]
    assert row["measures"]["weight_norm"] == row["measures"]["logit_gap"] == row["prediction"]["values"]["feature_norm"] == 0
    assert math.isnan(row["measures"]["angle_means"]) and "zero" in row["reasons"]["angle_means"]


@pytest.mark.parametrize(
    "method, values, words",
    [
        ("gd", {"loss": "supcon", "constraint": "sphere"}, "follows ridge problems"),
        ("momentum", {"constraint": "ball"}, "follows ridge problems"),
        ("flow", {"features": "nonnegative"}, "needs features='free'"),
        ("exact", {"counts": (9, 5, 2)}, "knows no closed form"),
        ("exact", {"features": "nonnegative"}, "ridge problems with free features"),
        ("exact", {"constraint": "sphere"}, "ridge problems with free features"),
        ("scipy", {"constraint": "sphere"}, "penalised problems"),
        ("scipy", {"lambda_w": 0.0}, "penalised problems"),
        ("newton", {"constraint": "ball"}, "does not solve"),
        ("newton", {"features": "nonnegative"}, "does not solve"),
        ("auto", {"lambda_h": 0.0}, "no optimum"),
        ("auto", {"loss": "supcon"}, "unit features"),
        ("auto", {"loss": "supcon", "constraint": "sphere", "per_class": 1}, "no positive pair"),
        ("auto", {"loss": "supcon", "constraint": "sphere", "logit_scale": (1.0, 2.0, 3.0)}, "no logits to adjust"),
    ],
)
def test_a_method_that_cannot_is_refused_before_the_sweep(method, values, words):
    with pytest.raises(RequestError, match=words):
        single_run.validate([spec(), spec(method=method, **values)])


def test_a_tolerance_of_one_is_refused():
    with pytest.raises(RequestError, match="below 1"):
        check(spec(tol=1.0))


def test_what_a_method_can_do_is_not_refused():
    can = [spec(method=m) for m in ("auto", "lbfgs", "newton", "gd", "momentum", "adam", "flow", "scipy", "exact")]
    single_run.validate([*can, spec(method="gd", lambda_w=0.0), spec(method="scipy", features="nonnegative")])


def test_seeds_and_methods_of_one_batch_keep_their_order():
    tasks = [Task(spec(lambda_w=w, method=m), s) for w in (1e-3, 1e-2) for m in ("lbfgs", "newton") for s in (0, 1)]
    rows = single_run.simulate(tasks, "cpu")
    assert [row["method"] for row in rows] == [task.spec.method for task in tasks]
    for row, other in zip(rows[:4], rows[4:], strict=True):
        assert row["loss"] < other["loss"]


def test_soft_targets_have_no_class_measures(tmp_path):
    from dataclasses import fields

    from ufm.spec import read_value

    file = tmp_path / "t.json"
    file.write_text("[[0.5, 0.5, 0], [0, 0.5, 0.5]]")
    field = {f.name: f for f in fields(Single)}["targets"]
    row = single_run.simulate([Task(spec(targets=read_value(field, str(file))), 0)], "cpu")[0]
    assert row["status"] == Status.CONVERGED.value and {row["measures"][name] for name in single_run.MEASURED} == {None}
    assert row["measures"]["weight_norm"] > 0 and math.isnan(row["measures"]["logit_gap"]) and "gram" not in row
    assert "soft" in row["reasons"]["nc1_pinv"]
    file.write_text("[[1, 0, 0], [0, 0.5, 0.5]]")
    single_run.read_targets.cache_clear()
    with pytest.raises(RequestError, match="changed while the sweep ran"):
        single_run.simulate([Task(spec(targets=read_value(field, str(file))._replace(sha256="0" * 64)), 0)], "cpu")


# --- trajectories --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("last", [1, 2, 3, 10, 1000, 12345])
def test_log_spaced_steps(last):
    steps = trajectory.log_spaced(last)
    assert steps[0] == 0 and steps[-1] == last and steps == sorted(set(steps)) and len(steps) <= 8 * math.log10(last + 1) + 3


@pytest.mark.parametrize("method", single.PATHS)
def test_a_trajectory_ends_at_the_solution(method):
    row = single_run.simulate([Task(spec(method=method, trajectory=True, lr=0.05, steps=200), 1)], "cpu")[0]
    path = row["trajectory"]
    assert path["step"][0] == 0 and path["step"][-1] == 200 and len({len(column) for column in path.values()}) == 1
    assert path["loss"][-1] == pytest.approx(row["loss"], rel=1e-12)
    for name in ("nc1_pinv", "nc2_etf_means", "nc3_cosine", "nc2_to_prediction"):
        assert path[name][-1] == pytest.approx(row["measures"][name], rel=1e-9)
    if method in ("gd", "flow"):
        assert np.all(np.diff(path["loss"]) < 0)
    assert path["nc1_pinv"][0] > path["nc1_pinv"][-1] > 0


def test_gradient_descent_follows_the_plain_loop():
    """Independent: autograd on all samples from the same start."""
    import torch

    from ufm.solvers.descent import start

    problem = problem_of(spec())
    weight, features = (torch.tensor(a, requires_grad=True) for a in start(problem, 1, False))
    labels = torch.arange(3).repeat_interleave(5)

    def f():
        data = torch.nn.functional.cross_entropy((weight @ features).T, labels)
        return data + 2.5e-4 * weight.square().sum() + 2.5e-4 * features.square().sum()

    losses = [f().item()]
    for _ in range(100):
        f().backward()
        with torch.no_grad():
            for x in (weight, features):
                x -= 0.05 * x.grad
                x.grad = None
        losses.append(f().item())
    path = single_run.simulate([Task(spec(method="gd", trajectory=True, lr=0.05, steps=100), 1)], "cpu")[0]["trajectory"]
    assert path["loss"] == pytest.approx([losses[int(step)] for step in path["step"]], rel=1e-11)


def test_a_trajectory_that_diverges_is_null_and_says_so():
    row = single_run.simulate([Task(spec(method="gd", trajectory=True, lr=1e6, steps=100), 0)], "cpu")[0]
    assert row["status"] == Status.DIVERGED.value
    assert all(v is None or math.isnan(v) for v in row["measures"].values()) and "not finite" in row["reasons"]["nc1_pinv"]
    assert not math.isfinite(row["trajectory"]["loss"][-1]) and math.isnan(row["trajectory"]["nc1_pinv"][-1])


@pytest.mark.parametrize(("K", "d", "constraint"), [(5, 2, "ridge"), (6, 3, "ridge"), (7, 2, "sphere"), (12, 3, "sphere")])
def test_a_code_is_compared_whichever_class_sits_at_which_vertex(K, d, constraint):
    cell = spec(classes=K, dim=d, per_class=3, lambda_w=1e-3, constraint=constraint, temperature=0.3)
    for row in single_run.simulate([Task(cell, seed) for seed in range(3)], "cpu"):
        assert row["loss"] == pytest.approx(row["predicted"], rel=1e-8)
        assert row["measures"]["nc2_to_prediction"] < 1e-6 and "nc2_to_prediction" not in row["reasons"]


def regime(**more):
    return single_run.regime_of(predict(Problem(4, 6, **{"lambda_h": 1e-2, **more})))


def test_the_regime_of_a_prediction_in_words():
    """By hand: class k of squared error is dead iff n_k <= N^2 lambda_w lambda_h; N = 107 and 8 <= 11.4."""
    assert regime(counts=(50, 44, 8, 5), loss="mse", lambda_w=0.1) == "dead classes 2-3"
    assert regime(counts=(50, 8, 44, 5), loss="mse", lambda_w=0.1) == "dead classes 1,3"
    assert regime(counts=(50, 44, 8, 5), loss="mse", lambda_w=0.01) == ""
    assert regime(counts=(50, 44, 8, 5), loss="mse", lambda_w=100.0) == "zero solution"
    assert regime(counts=(50, 50, 5, 5), lambda_w=0.1) == "minority collapse: classes 2-3 share one w"
    number = 5 / (110**2 * 1e-2)  # lambda_w at the threshold n_B = N^2 lambda_w lambda_h, in which numbers are square roots
    assert regime(counts=(50, 50, 5, 5), lambda_w=0.99 * number) == "at the threshold 'minority collapse'"
    assert regime(counts=(50, 50, 5, 5), lambda_w=0.95 * number) == ""
    assert regime(counts=50, lambda_w=1e-3) == "" and regime(counts=50, lambda_w=1e3) == "zero solution"
    dead = single_run._named(range(10)), single_run._named([0, 2, 4, 6, 8, 10, 12])
    assert dead == ("0-9", "0,2,4,6,8,10,.. (7 in all)")


def test_cost_counts_the_starts_of_narrow_problems():
    """d < K - 1 has local minima: several slow searches, dearer than d = K at the same size."""
    narrow, wide = check(Single(classes=200, dim=64)), check(Single(classes=200, dim=200))
    assert narrow.seconds > 60 > wide.seconds
    assert 3 < check(Single(classes=100, dim=33)).seconds < 60
    assert check(Single(classes=200, dim=64, method="exact")).seconds < 5


@pytest.mark.parametrize(("classes", "dim", "seconds"), [(3, 2, 0.3), (10, 4, 1.3), (16, 8, 6.0), (24, 10, 9.0)])
def test_cost_counts_the_moves_of_non_negative_features(classes, dim, seconds):
    """Against what these took on one core."""
    cost = check(Single(classes=classes, dim=dim, per_class=10, features="nonnegative"))
    assert seconds / 4 < cost.seconds < 4 * seconds
    assert cost.seconds > 2 * check(Single(classes=classes, dim=2 * classes, per_class=10, features="nonnegative")).seconds
    assert cost.memory > check(Single(classes=classes, dim=dim, per_class=10)).memory


def test_the_table_of_the_sphere_shows_the_rate_and_no_other_does(ufm):
    sphere = ("simulate", "single", "--classes", "4", "--dim", "2", "--constraint", "sphere", "--temperature", "0.5,0.05")
    answer = ufm(*sphere)
    head, *lines = answer.out.splitlines()
    rates = [cell["geometry"]["rate"] for cell in ufm(*sphere, "--json").json["cells"]]
    shown = [float(line.split()[head.split().index("rate")]) for line in lines[: len(rates)]]
    assert len(rates) == 2 and shown == pytest.approx(rates, rel=1e-3)
    assert "rate" not in ufm("simulate", "single", "--classes", "3", "--dim", "4").out.split()
