"""The systems `deep` and `flow`: rows, predictions and refused cells."""

import numpy as np
import pytest

from ufm.cli import main
from ufm.errors import RequestError
from ufm.solvers import runge_kutta
from ufm.systems import Task, deep, deep_run, flow, flow_run


def test_deep_row_names_structure_ranks_and_balance():
    spec = deep.Deep(classes=3, dim=8, depth=3, per_class=50)
    rows = deep_run.simulate([Task(spec, seed) for seed in range(2)], "cpu")
    for row in rows:
        assert row["structure"] == "dnc"
        assert row["layer_ranks"] == [3, 3, 3]
        assert row["over_dnc"] == pytest.approx(1, rel=1e-7)
        assert row["effective_rank"] == pytest.approx(3, rel=1e-5)
        assert row["balance"] < 1e-6 and max(row["norm_balance"].values()) < 1e-6
        assert row["ranks"] == "3/3/3" and row["collapse"]["nc1"] == 0
        assert row["collapse"]["nc2"] < 1e-6 and row["collapse"]["distance"] < 1e-6
        # Without a bias W_L is along the raw means, which are orthogonal: 1 - cos to the centred ones is 1 - sqrt(1 - 1/K).
        assert row["collapse"]["nc3"] == pytest.approx(1 - np.sqrt(2 / 3), rel=1e-6)
        # Post-ReLU class means of deep neural collapse are orthogonal and equal at every hidden layer.
        assert row["layers"][-1]["cosine_raw"]["mean"] == pytest.approx(0, abs=1e-3)


def test_the_deep_table_fits_a_hundred_columns(capsys, tmp_path):
    options = ["--activation", "linear", "--depth", "2,3", "--seeds", "0:2", "--out", str(tmp_path)]
    main(["simulate", "deep", *options], standalone_mode=False)
    lines = capsys.readouterr().out.splitlines()
    header = lines[0].split()
    wanted = ["cell", "loss", "predicted", "structure", "ranks", "nc1", "nc2", "nc3", "distance", "status"]
    assert header == wanted
    assert max(map(len, lines[:5])) <= 100


def test_a_row_at_zero_has_no_ranks_and_no_geometry():
    rows = deep_run.simulate([Task(deep.Deep(init_scale=0.5), seed) for seed in range(2)], "cpu")
    for row in rows:
        assert row["structure"] == "zero" and row["status"].startswith("ended at the zero solution")
        assert row["ranks"] == "0/0/0/0" and row["layer_ranks"] == [0] * 4 and row["balance"] is None
        assert set(row["collapse"].values()) == {None} and "zero" in row["reasons"]["collapse"]
        assert len(row["layers"]) == 4 and all(not any(layer["singular_values"]) for layer in row["layers"])
        assert row["predicted"] == pytest.approx(0.1748, abs=1e-4) and row["lowest_known"] == "srg"


def test_a_prediction_without_proof_is_marked_in_row_and_table(capsys, tmp_path):
    options = ["--classes", "2,3", "--dim", "5", "--depth", "2", "--out", str(tmp_path)]
    main(["simulate", "deep", *options], standalone_mode=False)
    lines = capsys.readouterr().out.splitlines()
    assert "*" not in lines[1] and lines[2].split()[2].endswith("*") and lines[3] == "* evidence only (multistart), not proven"
    narrow = deep_run.simulate([Task(deep.Deep(classes=3, dim=2, depth=2), 0)], "cpu")[0]
    assert narrow["predicted"] is None and not narrow["prediction"]["applies"] and "width 2 < 3" in narrow["prediction"]["reason"]


def test_deep_mixed_cells_come_back_in_order():
    specs = [deep.Deep(classes=4, dim=5, depth=d, activation="linear", loss=loss) for d in (1, 2) for loss in ("mse", "ce")]
    rows = deep_run.simulate([Task(s, 0) for s in specs], "cpu")
    for spec, row in zip(specs, rows, strict=True):
        alone = deep_run.simulate([Task(spec, 0)], "cpu")[0]
        assert row["loss"] == pytest.approx(alone["loss"], rel=1e-12)
        lowest = deep_run.predict(spec)["loss"]
        assert row["loss"] >= lowest * (1 - 1e-9)
        if spec.loss == "mse" or spec.depth == 1:  # deep linear cross-entropy has local minima above the lowest structure
            assert row["loss"] == pytest.approx(lowest, rel=1e-8)


def test_deep_prediction_lists_every_structure():
    found = deep_run.predict(deep.Deep(depth=4))
    assert set(found["structures"]) == {"zero", "dnc", "srg", "srg_flipped"}
    assert found["structures"]["srg"] / found["structures"]["dnc"] == pytest.approx(0.81457140553, rel=1e-9)
    assert "not proven" in found["status"]
    assert deep_run.predict(deep.Deep(activation="relu", loss="ce"))["prediction"] is None


def test_flow_rows_and_laws():
    specs = [
        flow.Flow(init="subspace", t_end=100, trajectory=True),
        flow.Flow(init="central", dim=8, t_end=1e3, init_scale=1.0),
        flow.Flow(loss="ce", init="aligned", bias="none", init_scale=0.5, t_end=100),
        flow.Flow(init="random", t_end=10),
    ]
    rows = flow_run.simulate([Task(s, 0) for s in specs], "cpu")
    assert [r["law"] for r in rows] == ["mixon2020", "han2021", "ji2021", ""]
    assert all(r["law_error"] < 1e-6 for r in rows[:3])
    assert "no closed form" in rows[3]["reasons"]["law_error"]
    path = rows[0]["path"]
    assert np.shape(path["modes"]) == np.shape(path["predicted"]) == (101, 3)
    assert "path" not in rows[3]
    for spec, row in zip(specs, rows, strict=True):
        assert (flow_run.predict(spec)["law"] or "") == row["law"]


@pytest.mark.parametrize(
    ("module", "spec"),
    [
        (deep, deep.Deep(depth=3, lambdas=(0.1, 0.2))),
        (deep, deep.Deep(bias="ridge")),
        (flow, flow.Flow(init="central", counts=(3, 4, 5, 6))),
        (flow, flow.Flow(init="central", lambda_h=0.1)),
        (flow, flow.Flow(init="central", bias="none")),
        (flow, flow.Flow(init="central", method="gd")),
        (flow, flow.Flow(init="central", dim=37)),
    ],
)
def test_wrong_cells_are_refused(module, spec):
    with pytest.raises(RequestError):
        module.check(spec)


@pytest.mark.parametrize("init", flow.INITS)
@pytest.mark.parametrize("loss", ["mse", "ce"])
@pytest.mark.parametrize("counts", [None, (3, 4, 5, 6)])
@pytest.mark.parametrize("bias", ["none", "free", "ridge"])
def test_a_start_that_a_problem_does_not_have_is_refused_before_anything_runs(init, loss, counts, bias):
    """What the check lets through arrives, and what it refuses is what has no such start."""
    spec = flow.Flow(init=init, loss=loss, counts=counts, bias=bias, lambda_b=0.1 if bias == "ridge" else 0, t_end=1, points=3)
    exists = {
        "random": True,
        "subspace": loss == "mse" and counts is None and bias == "free",
        "aligned": bias == "none" if loss == "mse" else counts is None,
        "central": loss == "mse" and counts is None and bias == "free",
    }
    if not exists[init]:
        with pytest.raises(RequestError, match=f"init {init}"):
            flow.check(spec)
        return
    flow.check(spec)
    assert flow_run.simulate([Task(spec, 0)], "cpu")[0]["status"] == "reached its last time"


def test_a_refused_start_writes_nothing(tmp_path):
    with pytest.raises(RequestError, match="init subspace needs loss mse"):
        main(["simulate", "flow", "--init", "subspace", "--loss", "ce", "--out", str(tmp_path / "out")], standalone_mode=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "options",
    [
        {"method": "gd"},
        {"method": "momentum", "init": "subspace"},
        {"method": "gd", "init": "aligned", "bias": "none"},
        {"method": "gd", "loss": "ce", "lambda_w": 1.0, "lambda_h": 1.0},
    ],
)
def test_descent_with_a_step_far_too_large_diverges_without_a_warning(options):
    row = flow_run.simulate([Task(flow.Flow(lr=1e4, t_end=1e6, points=11, **options), 0)], "cpu")[0]
    assert row["status"].startswith("diverged")


def test_a_flow_that_runs_out_of_steps_did_not_diverge(monkeypatch):
    whole = runge_kutta.integrate
    monkeypatch.setattr(runge_kutta, "integrate", lambda *args, **options: whole(*args, **options, max_steps=20))
    for init in ("random", "central"):
        row = flow_run.simulate([Task(flow.Flow(init=init, t_end=1e300, points=5), 0)], "cpu")[0]
        assert row["status"] == "stopped at the step limit"


def test_too_many_points_and_too_many_steps_are_refused():
    with pytest.raises(RequestError, match="points"):
        main(["simulate", "flow", "--points", "1000000"], standalone_mode=False)
    with pytest.raises(RequestError, match="steps, over 1e"):
        flow.check(flow.Flow(method="gd", t_end=1e300))
    assert flow.check(flow.Flow(points=50_000)).memory > 40_000 * flow.check(flow.Flow(points=2)).memory / 22


def test_absurd_sizes_cost_nothing_to_check():
    assert deep.check(deep.Deep(dim=10**9)).memory > 1e15
    assert flow.check(flow.Flow(per_class=10**12)).memory > 1e12
