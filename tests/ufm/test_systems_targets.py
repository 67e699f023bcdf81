"""Rows of --targets that are no targets: one line, exit 2, nothing created; and rows that are."""

import json

import numpy as np
import pytest

SMALL = ("simulate", "single", "--classes", "3", "--dim", "4", "--per-class", "5", "--device", "cpu")
SOFT = [[0.5, 0.5, 0.0], [0.0, 0.25, 0.75], [0.1, 0.2, 0.7]]
LABELS = [[1, 1, 0], [1, 0, 0], [1, 1, 1]]


def save(rows, name="rows.json"):
    with open(name, "w") as file:
        json.dump(rows, file)
    return name


@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
@pytest.mark.parametrize("loss", ["ce", "smoothing"])
@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([*SOFT, [0.2, 0.2, 0.2]], "row 4 sums to 0.6;"),
        ([[0.5, 0.5, 1e-5], *SOFT], "row 1 sums to 1.00001;"),
        ([*SOFT, [0, 0, 0]], "row 4 sums to 0;"),
        ([*SOFT, [2, 0, 0]], "row 4 sums to 2;"),
        ([*LABELS, [1, 0.5, 0]], "row 4 sums to 1.5;"),
        ([*SOFT, [1.5, -0.5, 0]], "row 4: -0.5 is negative;"),
        ([[1, float("nan"), 0], *SOFT], "row 1: nan is no target;"),
        ([*SOFT, [0, float("inf"), 0]], "row 4: inf is no target;"),
        ([[0.5, 0.5], [1, 0]], "has 2 columns and --classes is 3;"),
        ([[0.25] * 4], "has 4 columns and --classes is 3;"),
    ],
)
def test_rows_that_cross_entropy_does_not_take(ufm, rows, told, loss, dry):
    line = ufm.refuses(*SMALL, "--targets", save(rows), "--loss", loss, *dry)
    assert line.startswith("error: --targets rows.json") and told in line


@pytest.mark.parametrize("loss", ["focal", "supcon"])
def test_losses_of_hard_labels_take_no_rows(ufm, loss):
    assert f"--loss {loss} takes hard labels" in ufm.refuses(*SMALL, "--targets", save(SOFT), "--loss", loss)
    assert f"--loss {loss} takes hard labels" in ufm.refuses(*SMALL, "--targets", save(SOFT), "--loss", f"ce,{loss}")


def test_squared_error_takes_any_finite_rows_but_no_class_weights(ufm):
    name = save([[-1.5, 2.0, 0.3], [0, 0, 0], [4, -4, 0]])
    assert ufm(*SMALL, "--targets", name, "--loss", "mse", "--json").json["statuses"] == {"converged": 1}
    save([[1, float("nan"), 0]], "bad.json")
    assert "nan is no target" in ufm.refuses(*SMALL, "--targets", "bad.json", "--loss", "mse")
    line = ufm.refuses(*SMALL, "--targets", name, "--loss", "mse", "--class-weights", "1,2,3")
    assert "put the weights into --counts" in line


def test_one_output_is_regression(ufm):
    name = save([[1.0], [1.0]])
    one = ("simulate", "single", "--classes", "1", "--dim", "4", "--per-class", "5", "--targets", name)
    assert "use --loss mse for one output" in ufm.refuses(*one, "--loss", "ce")
    assert ufm(*one, "--loss", "mse", "--device", "cpu", "--json").json["statuses"] == {"converged": 1}


@pytest.mark.parametrize("rows", [SOFT, LABELS])
def test_soft_and_several_labels_are_taken_from_every_kind_of_file(ufm, rows):
    table = np.asarray(rows, dtype=np.float32)  # rounded: sums are 1 to seven digits only
    np.save("rows.npy", table)
    np.savetxt("rows.csv", np.asarray(rows), delimiter=",")
    from safetensors.numpy import save_file

    save_file({"targets": table}, "rows.safetensors")
    save(rows)
    found = [
        ufm(*SMALL, "--targets", f"rows.{kind}", "--out", kind, "--json").json["cells"][0]
        for kind in ("json", "csv", "npy", "safetensors")
    ]
    assert [row["status"] for row in found] == ["converged"] * 4
    assert [row["loss"] for row in found] == pytest.approx([found[0]["loss"]] * 4, rel=1e-6)
    assert all(row["certificate"]["gap"] <= 1e-9 for row in found)


def test_counts_are_those_of_the_rows(ufm):
    assert "3 targets" in ufm.refuses(*SMALL, "--targets", save(SOFT), "--counts", "5,5")
    assert "multiplicities by --counts" in ufm.refuses(*SMALL, "--targets", save(SOFT), "--imbalance", "5")
