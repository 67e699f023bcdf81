"""The system `starvation`: its rows beside theory's, its paths, what it refuses, and the two commands."""

import itertools
import json

import numpy as np
import pytest
from click.testing import CliRunner

from ufm.cli import main
from ufm.errors import RequestError
from ufm.systems import SYSTEMS, Task, starvation_run
from ufm.systems.starvation import Starvation, check, strengths_of
from ufm.tables import load


def row(seed=0, **options):
    return starvation_run.simulate([Task(Starvation(**options), seed)], "cpu")[0]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"dim": 7},
        {"penalty": "decoupling"},
        {"coupling": -0.3, "s1": 1.2},
        {"samples": 15, "mixing": "random", "coupling": 0.8, "dim": 20},
        {"samples": 15, "penalty": "decoupling", "penalty_weight": 1.0},
        {"penalty_weight": 1e-9, "s1": 1e3},
    ],
)
def test_the_weights_found_are_the_duals(options):
    for seed in (0, 1):
        found = row(seed, **options)
        assert found["status"] == "converged"
        assert found["errors"]["z"] < 1e-9 and found["errors"]["elasticity"] < 1e-6
        assert found["loss"] == pytest.approx(found["predicted"], rel=1e-10)
        assert -1e-12 < found["certificate"]["relative"] < 1e-9 and found["certificate"]["valid"]
        for name, value in found["prediction"]["values"].items():
            assert found["measures"][name] == pytest.approx(value, rel=1e-6, abs=1e-9)


def test_two_features_of_the_authors_toy():
    """U by sin = 1/2, s_2 = 2, C = 100 times the summed loss: lambda = 1/(2 C). z_2 falls as s_1 grows, but not with SD."""
    ridge = [row(s1=s1) for s1 in (3.0, 4.0, 5.0, 6.0)]
    assert all(a["measures"]["z2"] > b["measures"]["z2"] for a, b in itertools.pairwise(ridge))
    assert all(r["measures"]["elasticity"] < -0.08 for r in ridge)
    free = [row(s1=s1, penalty="decoupling", penalty_weight=0.002) for s1 in (3.0, 6.0)]
    assert free[0]["measures"]["z2"] == pytest.approx(free[1]["measures"]["z2"], rel=1e-10)
    assert all(abs(r["measures"]["elasticity"]) < 1e-9 for r in free)


def test_the_controls_of_the_laws_are_far_away():
    found = row()
    assert found["against"]["decoupling"] > 0.05 and found["against"]["uncoupled"] > 0.05 and found["against"]["no_change"] > 0.05
    assert row(penalty="decoupling")["against"]["decoupling"] < 1e-10
    assert row(coupling=0.0)["against"]["uncoupled"] < 1e-10 and abs(row(coupling=0.0)["measures"]["elasticity"]) < 1e-9


@pytest.mark.parametrize("options", [{"s1": 2.0}, {"s1": 2.001}, {"coupling": float(np.sqrt(0.5))}])
def test_what_has_no_derivative_is_nan_with_its_reason(options):
    found = row(**options)
    assert np.isnan(found["measures"]["elasticity"]) and found["reasons"]["elasticity"]
    assert found["errors"]["z"] < 1e-9  # equal strengths: the features are known, the data cannot tell them apart


@pytest.mark.parametrize("penalty", ["ridge", "decoupling"])
@pytest.mark.parametrize("dynamics", ["primal", "dual"])
def test_both_flows_end_at_the_optimum(penalty, dynamics):
    found = row(penalty=penalty, dynamics=dynamics, trajectory=True, t_end=1e7, points=25)
    path = found["path"]
    assert len(path["t"]) == len(path["z1"]) == 25 and path["t"][0] == 0 and path["t"][-1] == 1e7
    assert abs(path["z1"][0]) < 1e-3
    assert [path["z1"][-1], path["z2"][-1]] == pytest.approx(found["z"], rel=1e-6)


def test_on_the_way_the_strong_feature_comes_first_and_holds_the_weak_one_back():
    """The weak response overtakes its end and falls back while the strong one still grows: it was starved, not late."""
    path = row(s1=10.0, trajectory=True, t_end=1e6)["path"]
    z1, z2 = np.array(path["z1"]), np.array(path["z2"])
    half = np.argmax(z1 > z1[-1] / 2)
    assert z2[half] < 0.6 * row(s1=2.1)["measures"]["z2"] and z1[half] > 3 * z2[half]


def test_strengths_fall_by_the_spread():
    assert strengths_of(Starvation(samples=4, s1=9.0, s2=2.0, spread=0.5)) == (9.0, 2.0, 1.0, 0.5)


@pytest.mark.parametrize(
    ("options", "words"),
    [({"samples": 5, "dim": 4}, "use --dim 5 or more"), ({"samples": 100, "spread": 0.5}, "use a larger --spread")],
)
def test_wrong_cells_are_refused(options, words):
    with pytest.raises(RequestError, match=words):
        check(Starvation(**options))


def test_an_absurd_size_costs_nothing_to_check():
    small, large = check(Starvation()), check(Starvation(samples=500, spread=0.98, dim=5000))
    assert large.seconds > 100 * small.seconds and large.memory > 1e7


def run(*words):
    return CliRunner().invoke(main, list(words), standalone_mode=False)


def test_predict_says_what_a_strong_feature_does():
    answer = run("predict", "starvation", "--coupling=-0.5,0,0.5", "--penalty", "ridge,decoupling", "--json")
    told = [
        (r["parameters"]["coupling"], r["parameters"]["penalty"], r["effect"]) for r in json.loads(answer.output)["predictions"]
    ]
    assert [effect for coupling, penalty, effect in told if penalty == "ridge"] == ["feeds", "no change", "starves"]
    assert {effect for _, penalty, effect in told if penalty == "decoupling"} == {"no change"}


def test_predictions_are_of_the_seeds_asked_for():
    words = ("starvation", "--mixing", "random", "--samples", "6")
    answer = json.loads(run("predict", *words, "--seeds", "0,5", "--json").output)["predictions"]
    assert [one["seed"] for one in answer] == [0, 5] and answer[0]["loss"] != answer[1]["loss"]
    for one in answer:
        found = row(one["seed"], mixing="random", samples=6)
        assert [one["loss"], one["z2"]] == pytest.approx([found["loss"], found["measures"]["z2"]], rel=1e-8)
    told = run("predict", *words, "--seeds", "0,5").output
    assert "seed=0" in told and "seed=5" in told


def test_a_prediction_that_draws_nothing_has_no_seeds():
    for name in SYSTEMS:
        seeded = load(SYSTEMS, name, "system").predict_seeds
        assert ("--seeds" in run("predict", name, "--help").output) == seeded == (name == "starvation")
        assert "--seeds" in run("simulate", name, "--help").output
        answer = run("predict", name, "--seeds", "5")
        assert (answer.exit_code == 0) == seeded and ("--seeds" in str(answer.exception)) != seeded


def test_a_sweep_is_written_and_its_numbers_are_predicted(tmp_path):
    words = ("simulate", "starvation", "--s1", "3,6", "--penalty", "ridge,decoupling", "--seeds", "0:2")
    answer = run(*words, "--out", str(tmp_path), "--json", "--strict")
    document = json.loads(answer.stdout)
    assert answer.exit_code == 0 and document["computed"] == 8 and document["statuses"] == {"converged": 8}
    for found in document["cells"]:
        assert found["measures"]["z2"] == pytest.approx(found["prediction"]["values"]["z2"], rel=1e-9)
        assert found["prediction"]["reference"] == "pezeshki2020" and found["certificate"]["dual_norm"] is None
