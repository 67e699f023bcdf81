"""`empirical measure` and `empirical layers` as a user types them."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from make_features import make

from empirical.cli import main
from ufm.console import explain
from ufm.errors import RequestError
from ufm.record import Run

ATTACKS = sorted((Path(__file__).parent.parent / "attacks").glob("features-*"))


@pytest.fixture
def features(tmp_path):
    made = make("confused")
    given = {
        f"{split}/{what}": made[key]
        for split, what, key in (
            ("train", "features", "features"),
            ("train", "labels", "labels"),
            ("test", "features", "test_features"),
            ("test", "labels", "test_labels"),
        )
    }
    path = tmp_path / "mine.npz"
    np.savez(path, weight=made["weight"], bias=made["bias"], **given)
    return path


def run(*arguments):
    return CliRunner().invoke(main, list(map(str, arguments)), standalone_mode=False)


def failure(result):
    """(exit status, message) as the console script would have them."""
    assert result.exception is not None
    return explain(result.exception)


def test_a_file_becomes_a_run_and_a_table(features, tmp_path):
    out = tmp_path / "runs"
    result = run("measure", "--features", features, "--out", out, "--name", "mine", "--epoch", 200, "--seed", 3)
    assert result.exception is None, result.exception
    lines = result.stdout.splitlines()
    assert lines[0].split()[:3] == ["layer", "measure", "train"] and "test (train centres)" in lines[0]
    (seed,) = out.glob("measure/mine-*/seed-3")
    record = Run.open(seed)
    record.verify()
    rows = record.rows("metrics.jsonl")
    assert record.done and {(r["seed"], r["epoch"]) for r in rows} == {(3, 200)}
    strong = next(r for r in rows if r["metric"] == "nc1_pinv_strong")
    assert (strong["split"], strong["centres"], strong["layer"]) == ("test", "train", "penultimate")
    shown = next(line for line in lines if "nc1_pinv_strong" in line)
    assert f"{strong['value']:.4g}" in shown
    arrays = record.read_tensors("tensors.safetensors")
    assert arrays["penultimate/test/strong"].mean() == pytest.approx(strong["value"], rel=1e-9)
    assert arrays["test/confusion"].sum() == 200
    data = record.read_json("result.json")["data"]
    assert (data["train"], data["test"], data["classes"], sum(data["counts"])) == (500, 200, 10, 500)


def test_the_same_request_finds_the_same_folder(features, tmp_path):
    first = run("measure", "--features", features, "--out", tmp_path / "a", "--json")
    again = run("measure", "--features", features, "--out", tmp_path / "a", "--json")
    one, two = json.loads(first.stdout), json.loads(again.stdout)
    assert one == two and len(list((tmp_path / "a" / "measure").iterdir())) == 1
    assert Run.open(one["run"]).rows("metrics.jsonl") == one["rows"]


def test_a_measured_run_says_how_to_go_on(features, tmp_path):
    run("measure", "--features", features, "--out", tmp_path / "runs")
    (folder,) = (tmp_path / "runs" / "measure").iterdir()
    status, message = failure(run("resume", folder))
    assert status == 2 and "again" in message


def test_flags_are_said(tmp_path):
    made = make("exact")
    labels = made["labels"]
    np.savez(
        tmp_path / "exact.npz",
        **{"train/features": made["features"], "train/labels": labels, "test/features": made["features"], "test/labels": labels},
    )
    result = run("measure", "--features", tmp_path / "exact.npz", "--out", tmp_path / "runs")
    assert result.exception is None
    (line,) = (x for x in result.stdout.splitlines() if " nc1_pinv " in x)
    assert "below the noise floor" in line


def test_compare_reads_it(features, tmp_path):
    compare = pytest.importorskip("compare.load")
    run("measure", "--features", features, "--out", tmp_path / "runs")
    table = compare.load(tmp_path / "runs")
    assert not table.excluded
    where = (table["measure"] == "nc1_pinv_strong") & (table["split"] == "test")
    assert where.sum() == 1 and table["centres"][where][0] == "train"


@pytest.mark.parametrize("path", ATTACKS, ids=lambda path: path.name)
def test_hostile_files_exit_2_and_create_nothing(path, tmp_path):
    status, message = failure(run("measure", "--features", path, "--out", tmp_path / "runs"))
    assert status == 2 and "\n" not in message and not (tmp_path / "runs").exists()


def test_wrong_requests_exit_2_and_create_nothing(features, tmp_path):
    out = tmp_path / "runs"
    wrong = [
        (["--features", tmp_path / "no.npz"], "no such file"),
        ([], "no --features"),
        (["--features", features, "--classes", "1"], "--classes"),
        (["--features", features, "--classes", "nan"], "--classes"),
        (["--features", features, "--classes", "9"], "10 rows"),
        (["--features", features, "--epoch", "-1"], "--epoch"),
        (["--features", features, "--seed", "x"], "--seed"),
        (["--features", features, "--name", "../up"], "name"),
        (["--features", features, "--device", "tpu"], "--device"),
        (["--features", features, "--ood", tmp_path / "no.npz"], "no such file"),
        (["--fetures", features], "--features"),
        (["stray"], "stray"),
    ]
    for arguments, message in wrong:
        status, said = failure(run("measure", *arguments, "--out", out))
        assert (status, message in said) == (2, True), (arguments, said)
        assert not out.exists()
    (tmp_path / "file").write_text("")
    status, _ = failure(run("measure", "--features", features, "--out", tmp_path / "file"))
    assert status == 2


def test_layers_of_a_shipped_model():
    result = run("layers", "mlp", "--shape", "12", "--depth", "2", "--width", "7", "--classes", "3", "--json")
    assert result.exception is None, result.exception
    rows = json.loads(result.stdout)["layers"]
    measured = [(r["layer"], r["dim"]) for r in rows if r["all"]]
    assert measured[0] == ("input", 12) and measured[-2:] == [("penultimate", 7), ("logits", 3)] and len(measured) == 4
    table = run("layers", "convnet").stdout.splitlines()
    assert table[0].split()[0] == "layer" and any("space" in line for line in table)


def test_layers_of_an_unknown_model():
    result = run("layers", "mpl")
    assert isinstance(result.exception, RequestError) and "did you mean 'mlp'" in str(result.exception)


def test_help_ends_with_examples_and_imports_no_torch():
    code = (
        "import sys; from click.testing import CliRunner; from empirical.cli import main; import empirical\n"
        "for name in ('measure', 'layers'):\n"
        "    out = CliRunner().invoke(main, [name, '--help'])\n"
        "    assert out.exit_code == 0 and 'Examples' in out.output, out.output\n"
        "assert 'measure' in dir(empirical) and 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
