import math

import numpy as np
import pytest
from synthetic_runs import hui_setting, rows_of_seed, write_training

from compare.calibrate import QUANTITIES, calibrations, why_not
from compare.load import load
from compare.report import render
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


def write_network(tmp_path, arrays, problem, loss, **setting):
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
            "value": loss,
        },
    ]
    options = hui_setting(weight_decay=problem.lambda_w, bias=True, loss=problem.loss, **setting)
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
        ({"loss": "mse-mean"}, "mse-mean"),
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
