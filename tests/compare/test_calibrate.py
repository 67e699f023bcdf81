import math

import numpy as np
import pytest
from synthetic_runs import hui_setting, rows_of_seed, write_training

from compare.calibrate import NORMED, PARTIAL, QUANTITIES, calibrations, explain, why_not
from compare.derived import NAMES, with_derived
from compare.load import load
from compare.report import render
from ufm.predict import predict
from ufm.problem import Problem


def arrays_at_the_optimum(problem):
    """The arrays a run keeps of a network that sits on the optimum a solver found (no closed form is used)."""
    from ufm.solve import solve

    found = solve(problem, seed=0)
    assert found.status.ok
    weight, means = found.W.numpy(), found.H.numpy()
    return {
        "weight": weight,
        "bias": found.b.numpy(),
        "penultimate/train/means": means,
        "penultimate/train/counts": problem.count_vector.astype(np.int64),
        "penultimate/train/traces": np.zeros(problem.classes),
    }, found


def write_network(tmp_path, arrays, problem, fit, **setting):
    rows = [
        *rows_of_seed(0),
        {
            "seed": 0,
            "epoch": 100,
            "step": 800,
            "split": "train",
            "layer": "network",
            "centres": "self",
            "metric": "loss",
            "value": fit,
        },
    ]
    options = hui_setting(**{"weight_decay": problem.lambda_w, "bias": True, "loss": problem.loss, **setting})
    return write_training(tmp_path, seeds=[0], setting=options, rows=rows, tensors=arrays)


@pytest.mark.parametrize("loss", ["ce", "mse"])
def test_the_solvers_optimum_gives_back_its_own_regularisation_and_every_prediction(tmp_path, loss):
    problem = Problem(
        classes=4, dim=6, counts=20, loss=loss, lambda_w=2e-3, lambda_h=1e-4, bias="ridge", lambda_b=2e-3
    )  # fmt: skip
    arrays, found = arrays_at_the_optimum(problem)
    penalty = 0.5 * (
        2e-3 * (found.W**2).sum() + 1e-4 * 20 * (found.H**2).sum() + 2e-3 * (found.b**2).sum()
    )  # fmt: skip
    folder = write_network(tmp_path, arrays, problem, found.loss - float(penalty), norm="none")
    made = calibrations(load(folder), folder.name)[0]
    assert made.applies, made.reason
    assert made.lambda_h == pytest.approx(1e-4, rel=1e-6) and made.c == pytest.approx(math.sqrt(2e-7), rel=1e-6)
    assert made.caveats == ()
    assert set(made.values) == set(QUANTITIES)
    for quantity, (predicted, measured) in made.values.items():
        assert measured == pytest.approx(predicted, rel=1e-5), quantity


def test_a_network_off_the_optimum_shows_the_gap(tmp_path):
    problem = Problem(classes=4, dim=6, counts=20, lambda_w=2e-3, lambda_h=1e-4, bias="ridge", lambda_b=2e-3)
    arrays, _ = arrays_at_the_optimum(problem)
    arrays["weight"], arrays["penultimate/train/means"] = 1.2 * arrays["weight"], 1.2 * arrays["penultimate/train/means"]
    folder = write_network(tmp_path, arrays, problem, 0.01)
    made = calibrations(load(folder), folder.name)[0]
    assert made.lambda_h == pytest.approx(1e-4, rel=1e-6)  # the balance does not see a common factor
    predicted, measured = made.values["logit gap"]
    assert measured == pytest.approx(1.44 * predicted, rel=1e-4)
    assert any("batch norm" in c for c in made.caveats)


def test_relu_features_are_held_against_nonnegative_ones(tmp_path):
    problem = Problem(classes=3, dim=5, counts=10, lambda_w=2e-3, lambda_h=1e-4)
    arrays, _ = arrays_at_the_optimum(problem)
    arrays["penultimate/train/means"] = np.abs(arrays["penultimate/train/means"])
    folder = write_network(tmp_path, arrays, problem, 0.01)
    made = calibrations(load(folder), folder.name)[0]
    assert made.applies and (made.structure == "of" or any("ReLU" in c for c in made.caveats))


@pytest.mark.parametrize(
    "changes, word",
    [
        ({"weight_decay": 0.0}, "no weight decay"),
        ({"optimizer": "adamw"}, "AdamW"),
        ({"loss": "supcon"}, "supcon"),
        ({"optimizer": "adam"}, "second moment"),
        ({"head": "etf"}, "head"),
        ({"label_noise": 0.1}, "one-hot"),
    ],
)
def test_where_the_assumption_fails_the_reason_is_said(changes, word):
    assert word in why_not(hui_setting(**changes))
    assert why_not(hui_setting()) == ""


def test_a_run_without_arrays_says_so_and_the_report_leaves_the_section_out(tmp_path):
    folder = write_training(tmp_path, seeds=[0])
    table = load(folder)
    assert "kept no class means" in calibrations(table, folder.name)[0].reason
    assert "own regularisation" not in render(table, [], [])


def test_the_report_lays_the_prediction_beside_the_measurement(tmp_path):
    problem = Problem(classes=4, dim=6, counts=20, lambda_w=2e-3, lambda_h=1e-4, bias="ridge", lambda_b=2e-3)
    arrays, _ = arrays_at_the_optimum(problem)
    folder = write_network(tmp_path, arrays, problem, 0.01)
    text = render(load(folder), [], [])
    assert "own regularisation" in text and "logit gap" in text


def at_optimum(tmp_path, problem, **setting):
    """One network at the solver's optimum of `problem`, as its calibration sees it."""
    arrays, found = arrays_at_the_optimum(problem)
    if problem.bias == "none":
        del arrays["bias"]
    penalty = problem.lambda_w * (found.W**2).sum() + problem.lambda_b * (found.b**2).sum()
    penalty = 0.5 * float(penalty) + 0.5 * problem.lambda_h * float(problem.count_vector @ (found.H.numpy() ** 2).sum(1))
    folder = write_network(tmp_path, arrays, problem, found.loss - penalty, norm="none", **setting)
    return calibrations(load(folder), folder.name)[0], found


@pytest.mark.parametrize(
    "changes, structure",
    [
        ({"loss": "mse", "bias": "none"}, "of"),
        ({"loss": "mse", "bias": "none", "counts": (30, 20, 10, 5)}, "gof"),
        ({"loss": "mse", "bias": "ridge", "lambda_b": 2e-3}, "etf"),
        ({"loss": "mse", "bias": "ridge", "lambda_b": 2e-3, "features": "nonnegative", "dim": 8}, "of"),
        ({"loss": "ce", "bias": "none", "features": "nonnegative", "dim": 8}, "of"),
        ({"loss": "ce", "bias": "ridge", "lambda_b": 2e-3, "counts": (30, 20, 10, 5)}, "solved"),
        ({"loss": "smoothing", "bias": "none"}, "etf"),
        ({"loss": "focal", "bias": "none"}, "etf"),
    ],
)
def test_each_optimum_is_recognised_and_certified(tmp_path, changes, structure):
    problem = Problem(**{"classes": 4, "dim": 6, "counts": 20, "lambda_w": 2e-3, "lambda_h": 1e-4, **changes})
    extra = {"smoothing": 0.1, "focal_gamma": 2.0}
    made, found = at_optimum(tmp_path, problem, **extra)
    assert made.applies, made.reason
    assert made.structure == structure and made.problem.features == problem.features
    assert made.lambda_h == pytest.approx(1e-4, rel=1e-6)
    assert max(made.distances.values()) < 1e-4 and set(made.distances) >= {"logits", "W W^T", "M M^T"}
    assert abs(made.optimality.gap) < 1e-6 * found.loss  # the solver stops at 1e-10 and lambda_h is inferred to 1e-10
    assert made.optimality.pull == pytest.approx(1, abs=1e-4) and made.optimality.scatter == pytest.approx(0, abs=1e-9)
    assert made.optimality.excess == pytest.approx(made.optimality.least_excess, rel=1e-5)
    z = made.prediction.logits - made.prediction.bias
    # |W||H| = |z| sqrt(K n) with orthogonal means of one length, the nuclear norm with free features
    wanted = 2 * np.linalg.norm(z) / np.linalg.norm(z, "nuc") if problem.features == "nonnegative" else 1.0
    assert made.optimality.least_excess == pytest.approx(wanted, rel=1e-6)


def test_the_duality_gap_bounds_how_far_above_the_optimum_a_network_is(tmp_path):
    problem = Problem(classes=4, dim=6, counts=20, lambda_w=2e-3, lambda_h=1e-4, bias="ridge", lambda_b=2e-3)
    arrays, found = arrays_at_the_optimum(problem)
    arrays["weight"] = arrays["weight"] * 1.2
    arrays["penultimate/train/means"] = arrays["penultimate/train/means"] * 1.2
    z = arrays["penultimate/train/means"] @ arrays["weight"].T
    fit = float(np.mean(np.log(np.exp(z).sum(1)) - np.diag(z)))
    made = calibrations(load(folder := write_network(tmp_path, arrays, problem, fit)), folder.name)[0]
    best, paid = made.values["objective"]
    assert best == pytest.approx(found.loss, rel=1e-9)
    assert 0 < paid - best < made.optimality.gap < paid
    assert made.distances["W W^T"] == pytest.approx(0.44, rel=1e-5) and made.distances["W W^T, shape"] < 1e-5
    assert made.optimality.pull < 0.9 and NORMED in made.caveats and any("less than its decay" in c for c in made.caveats)


def test_scatter_within_classes_is_told_apart_from_the_rest(tmp_path):
    problem = Problem(classes=4, dim=6, counts=20, loss="mse", lambda_w=2e-3, lambda_h=1e-4)
    arrays, _ = arrays_at_the_optimum(problem)
    del arrays["bias"]
    share = 0.1  # of each mean's squared length, along its own direction and its negative: logits scatter with it
    means = arrays["penultimate/train/means"]
    arrays["penultimate/train/traces"] = share * (means**2).sum(1)
    wide = float(20 * (means**2).sum() * (1 + share))
    z = means @ arrays["weight"].T
    fit = 0.5 * float(((z - np.eye(4)) ** 2).sum(1).mean() + share * (z**2).sum(1).mean())
    folder = write_network(tmp_path, arrays, problem, fit, bias=False)
    made = calibrations(load(folder), folder.name)[0]
    size_w = float((arrays["weight"] ** 2).sum())
    assert made.lambda_h == pytest.approx(2e-3 * size_w / wide, rel=1e-9)
    assert made.values[QUANTITIES[7]] == (0.0, pytest.approx(share / (1 + share)))
    lost = made.lambda_h / 2 * wide * share / (1 + share) + 0.5 * share * float((z**2).sum(1).mean())
    assert made.optimality.scatter == pytest.approx(lost, rel=1e-9)
    pull = -float(((z - np.eye(4)) * z).sum(1).mean() + share * (z**2).sum(1).mean())
    assert made.optimality.pull == pytest.approx(pull / (2e-3 * size_w), rel=1e-9)
    assert f"{made.optimality.scatter:.3g} of it" in explain([made])


def test_the_mean_over_classes_is_the_same_problem_in_other_units(tmp_path):
    problem = Problem(classes=4, dim=6, counts=20, loss="mse", lambda_w=2e-3, lambda_h=1e-4)
    one, _ = at_optimum(tmp_path / "sum", problem, bias=False)
    arrays, _ = arrays_at_the_optimum(problem)
    del arrays["bias"]
    setting = {"loss": "mse-mean", "bias": False, "weight_decay": 1e-3}
    folder = write_network(tmp_path / "mean", arrays, problem, one.values["train loss"][1] / 2, **setting)
    other = calibrations(load(folder), folder.name)[0]  # K/2 = 2: half the loss, half the decay
    assert other.lambda_w == pytest.approx(2e-3) and other.lambda_h == pytest.approx(1e-4, rel=1e-6)
    for quantity, pair in one.values.items():
        assert other.values[quantity] == pytest.approx(pair, rel=1e-6, abs=1e-12)


def test_decay_on_weights_alone_leaves_the_bias_free_and_is_said(tmp_path):
    problem = Problem(classes=4, dim=6, counts=20, loss="mse", lambda_w=2e-3, lambda_h=1e-4, bias="free")
    made, _ = at_optimum(tmp_path, problem, decay="weights")
    assert made.problem.bias == "free" and made.caveats == (PARTIAL,) and max(made.distances.values()) < 1e-5


def test_a_wrong_structure_is_far_from_the_prediction(tmp_path):
    """Permuted classes: the means belong to the wrong rows of the classifier."""
    problem = Problem(classes=4, dim=6, counts=(30, 20, 10, 5), loss="mse", lambda_w=2e-3, lambda_h=1e-4)
    arrays, _ = arrays_at_the_optimum(problem)
    del arrays["bias"]
    arrays["penultimate/train/means"] = arrays["penultimate/train/means"][[1, 0, 3, 2]]
    folder = write_network(tmp_path, arrays, problem, 1.0, bias=False)
    made = calibrations(load(folder), folder.name)[0]
    assert made.distances["logits"] > 1 and made.distances["M M^T"] > 0.1 and made.values["margin"][1] < 0


def test_the_table_gets_calibrated_predictions_and_their_assumptions(tmp_path):
    problem = Problem(classes=4, dim=6, counts=20, lambda_w=2e-3, lambda_h=1e-4, bias="ridge", lambda_b=2e-3)
    arrays, _ = arrays_at_the_optimum(problem)
    table = with_derived(load(write_network(tmp_path, arrays, problem, 0.01)))
    loss = table.where(measure="loss", epoch=100)
    penalties = predict(problem)
    assert loss["predicted"][0] < penalties.loss and "simplex ETF" in loss["assumption"][0] and NORMED in loss["assumption"][0]
    for name in (*NAMES.values(), "logits_distance", "gram_h_distance", "certificate_gap"):
        row = table.where(measure=name)
        assert row.rows == 1 and np.isfinite(row["predicted"][0]) and row["epoch"][0] == 100, name
    assert table.where(measure="nc1_pinv", split="train", epoch=1)["predicted"][0] == 0  # what was there stays


def test_few_shot_bounds_stand_beside_the_error_of_the_fine_classes(tmp_path):
    values = {"fine_few_shot_error": 0.01, "fine_few_shot_bound": 0.05, "fine_cdnv": 0.02, "fine_cdnv_directional": 0.01}
    where = {"seed": 0, "epoch": 9, "step": 72, "split": "test", "layer": "penultimate", "centres": "self"}
    rows = [{**where, "metric": name, "value": value} for name, value in values.items()]
    table = with_derived(load(write_training(tmp_path, seeds=[0], study="transfer", rows=rows)))
    assert table.where(measure="fine_few_shot_bound_cdnv")["value"].tolist() == [pytest.approx(4 * 0.02 * 1.2)]  # five shots
    assert table.where(measure="fine_many_shot_bound")["value"].tolist() == [pytest.approx(0.04 / 1.04)]
    assert "m shots = 5" in table.where(measure="fine_few_shot_bound_cdnv")["assumption"][0]


def test_the_passage_says_where_each_distance_lies(tmp_path):
    problem = Problem(classes=4, dim=6, counts=20, lambda_w=2e-3, lambda_h=1e-4)
    arrays, _ = arrays_at_the_optimum(problem)
    arrays["weight"] = 1.1 * arrays["weight"]
    arrays["penultimate/train/means"] = 1.1 * arrays["penultimate/train/means"]
    del arrays["bias"]
    folder = write_network(tmp_path, arrays, problem, 0.01, bias=False, norm="none")
    made = calibrations(load(folder), folder.name)
    assert made[0].parts["W W^T"].scale == pytest.approx(1, abs=1e-6)
    assert "W W^T 0.21 (100% one common factor, 0% another level" in explain(made)
    assert made[0].record()["distance_parts"]["M M^T"]["scale"] == pytest.approx(1, abs=1e-6)
    assert "W W^T 0.21 (100%" in render(load(folder), [], [])
