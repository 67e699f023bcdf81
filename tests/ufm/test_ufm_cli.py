import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ufm.systems import SYSTEMS

TESTS = Path(__file__).resolve().parents[1]


SMALL = ("simulate", "single", "--classes", "3", "--dim", "4", "--per-class", "5", "--device", "cpu")


# --- wrong requests ------------------------------------------------------------------------------------------------

WRONG = [
    "simulat",
    "simulate nothing",
    "predict singel",
    "list solver",
    "cite",
    "cite nowhere",
    "--lambda-w 1",
    "simulate single extra",
    "simulate single --lamda-w 1",
    "simulate single --lambda-w",
    "simulate single --lambda-w nan",
    "simulate single --lambda-w inf",
    "simulate single --lambda-w -1",
    "simulate single --lambda-w 1e-4:1e-1",
    "simulate single --lambda-w 0:1:5log",
    "simulate single --lambda-w 1,1",
    "simulate single --lambda-w ''",
    "simulate single --lambda-w 0",
    "simulate single --lambda-w 1:2:99999999",
    "simulate single --lambda-w 1:2:9999 --lambda-h 1:2:9999",
    "simulate single --classes 1",
    "simulate single --classes 0",
    "simulate single --classes 2.5",
    "simulate single --classes 1e400",
    "simulate single --classes 1000000",
    "simulate single --classes 1000000000000",
    "simulate single --dim 0",
    "simulate single --dim -3",
    "simulate single --per-class 0",
    "simulate single --counts 5,5",
    "simulate single --counts 5,5 --classes 2 --imbalance 10",
    "simulate single --counts 5,x --classes 2",
    "simulate single --imbalance 0.5",
    "simulate single --imbalance 1000",
    "simulate single --imbalance 10 --minority 11",
    "simulate single --loss cross-entropy",
    "simulate single --loss ce,msee",
    "simulate single --smoothing 1",
    "simulate single --smoothing 1.5",
    "simulate single --focal-gamma -1",
    "simulate single --bias rigde",
    "simulate single --bias ridge",
    "simulate single --lambda-b 0.1",
    "simulate single --loss supcon --bias free",
    "simulate single --constraint cube",
    "simulate single --temperature 0",
    "simulate single --energy-w 0",
    "simulate single --logit-scale 1,2",
    "simulate single --classes 2 --logit-scale 1,-2",
    "simulate single --classes 2 --class-weights 0,1",
    "simulate single --targets nowhere.json",
    "simulate single --targets .",
    "simulate single --method magic",
    "simulate single --method newton --features nonnegative",
    "simulate single --trajectory",
    "simulate single --steps 0",
    "simulate single --tol -1",
    "simulate single --lr 0",
    "simulate single --seeds -1",
    "simulate single --seeds 4294967296",
    "simulate single --seeds 5:5",
    "simulate single --seeds 0:9999999",
    "simulate single --device gpu",
    "simulate single --device cuda:x",
    "simulate single --dtype float16",
    "simulate single --workers 0",
    "simulate single --workers 1.5",
    "simulate single --workers 100000",
    "simulate single --shard 2/2",
    "simulate single --shard 1",
    "simulate single --shard -1/2",
    "simulate single --shard 0/0",
    "simulate single --zip lambda-w,nothing",
    "simulate single --zip lambda-w,lambda-h --lambda-w 1,2",
    "simulate single --config nowhere.toml",
    "simulate single --config .",
    "simulate single --json=yes",
    "predict single --out runs",
    "predict single --workers 2",
    "predict single --classes 0",
    "list --classes 3",
    "list losses --conventions",
    "list --conventions --lambda-w 0",
    "list --conventions --classes 1",
]


@pytest.mark.parametrize("line", WRONG)
def test_a_wrong_request_is_one_line_and_creates_nothing(ufm, line):
    ufm.refuses(*shlex.split(line))


def test_control_characters_do_not_reach_the_terminal(ufm):
    for word in ("\x1b[31mred", "a\x00b", "a\nb", "\u202e", "\ud800"):
        line = ufm.refuses("simulate", word)
        assert line.isprintable()
        assert ufm.refuses("simulate", "single", "--loss", word).isprintable()
        assert ufm.refuses("simulate", "single", f"--{word}", "1").isprintable()


def test_the_nearest_name_is_suggested(ufm):
    assert "did you mean 'simulate'" in ufm.refuses("simulat")
    assert "did you mean 'single'" in ufm.refuses("simulate", "singel")
    assert "--lambda-w" in ufm.refuses("simulate", "single", "--lamda-w", "1")
    assert "did you mean 'smoothing'" in ufm.refuses("simulate", "single", "--loss", "smooth")
    far = ufm.refuses("simulate", "single", "--loss", "hinge")
    assert "did you mean" not in far and "known: ce, focal, mse, smoothing, supcon" in far


def test_an_empty_text_is_answered_in_words_of_its_flag(ufm):
    for flag in ("--out", "--device", "--shard", "--cluster", "--targets", "--config"):
        line = ufm.refuses("simulate", "single", flag, "")
        assert flag in line and " = " not in line, line
    assert "--out '' is empty; give a path, or drop --out" in ufm.refuses("simulate", "single", "--out", "")


def test_wrong_toml(ufm, tmp_path):
    def config(text):
        (tmp_path / "x.toml").write_text(text)
        return ufm.refuses("simulate", "single", "--config", "x.toml")

    assert "did you mean 'lambda_w'" in config("lamda_w = 1")
    assert "not valid TOML" in config("lambda_w = ")
    assert "out of range" in config("lambda_w = -1")
    assert "not true or false" in config("trajectory = 1")
    assert "cannot name another file" in config("config = 'y.toml'")
    config("[table]\nlambda_w = 1")
    config("lambda_w = [[1]]")
    config("seeds = -1")
    config("shard = 3")


@pytest.mark.parametrize("device", ["cuda", "cuda:0", "cuda:99"])
def test_a_device_that_is_not_there(ufm, device):
    import torch

    if torch.cuda.is_available() and device != "cuda:99":
        pytest.skip("this machine has a CUDA device")
    assert "CUDA device" in ufm.refuses(*SMALL[:-2], "--device", device)


def test_out_that_cannot_be_written(ufm, tmp_path):
    (tmp_path / "file").write_text("x")
    assert "is a file" in ufm.refuses(*SMALL, "--out", "file")
    assert "is a file" in ufm.refuses(*SMALL, "--out", "file/deeper")
    if os.path.isdir("/proc/self"):
        ufm.refuses(*SMALL, "--out", "/proc/self/runs")
    ufm.refuses(*SMALL, "--out", "a\0b")
    ufm.refuses(*SMALL, "--out", "x" * 300)


def test_a_wrong_targets_file(ufm, tmp_path):
    for name, content in [
        ("a.json", b"{"),
        ("b.json", b"[[1, 2], [3]]"),
        ("c.json", b"[]"),
        ("d.csv", b"1,2\nx,y\n"),
        ("e.npy", b"\x93NUMPY\x01\x00v\x00{'descr': '|O', 'fortran_order': False, 'shape': (1,), }"),
        ("f.safetensors", b"\xff" * 64),
        ("g.pt", b"1,2\n"),
        ("h.json", b'[[1, "x", 2]]'),
        ("i.json", b"[[1, NaN, 2]]"),
        ("j.csv", b"1,2\n3,4\n"),  # two columns for three classes
        ("k.json", b"[" * 100_000),
    ]:
        (tmp_path / name).write_bytes(content)
        ufm.refuses(*SMALL, "--targets", name)


# --- what works ----------------------------------------------------------------------------------------------------


def test_simulate_prints_a_table_and_writes_a_run(ufm, tmp_path):
    answer = ufm(*SMALL, "--lambda-w", "1e-3,1e-2", "--seeds", "0:2")
    assert answer.code == 0
    lines = answer.out.splitlines()
    shown = ["loss", "predicted", "gap", "nc1_pinv", "nc2_etf_means", "nc3_cosine", "nc2_to_prediction", "status"]
    assert lines[0].split() == ["cell", *shown]
    assert len(lines) == 6 and lines[1].startswith("lambda_w=0.001 seed=0") and lines[1].endswith("converged")
    path = tmp_path / lines[-1].removeprefix("run: ")
    rows = [json.loads(line) for line in (path / "cells.jsonl").read_text().splitlines()]
    assert len(rows) == 4 and (path / "done").is_file()
    for row in rows:
        assert row["loss"] == pytest.approx(row["predicted"], rel=1e-10)
        assert row["certificate"]["valid"] and 0 <= row["certificate"]["gap"] < 1e-9
        assert row["measures"]["nc1_pinv"] == 0 and row["flags"]["nc1_pinv"] == "degenerate"
        assert row["measures"]["nc2_to_prediction"] < 1e-6
    again = ufm(*SMALL, "--lambda-w", "1e-3,1e-2", "--seeds", "0:2", "--json")
    assert again.json["computed"] == 0 and again.json["statuses"] == {"converged": 4}


def test_what_is_not_proven_is_marked_in_the_table_and_dead_classes_are_named(ufm):
    plane = ("--classes", "5", "--dim", "2,6", "--per-class", "3", "--device", "cpu")
    lines = ufm("simulate", "single", *plane).out.splitlines()
    assert lines[1].split()[2].endswith("*") and not lines[2].split()[2].endswith("*") and "regime" not in lines[0]
    assert lines[3] == "* evidence only (multistart), not proven"
    assert "evidence only (multistart), not proven" in ufm("predict", "single", *plane[:-2]).out.splitlines()[1]
    uneven = ("simulate", "single", "--counts", "50,20,2", "--loss", "mse", "--lambda-w", "1e-3,0.1", "--lambda-h", "0.01")
    lines = ufm(*uneven, "--classes", "3", "--device", "cpu").out.splitlines()
    assert lines[0].endswith("regime") and lines[1].endswith("converged") and lines[2].endswith("dead classes 2")
    lines = ufm("predict", *uneven[1:], "--classes", "3").out.splitlines()
    assert "dead classes 2" in lines[2] and "dead" not in lines[1]


def test_json_is_one_document_and_nothing_else(ufm):
    answer = ufm(*SMALL, "--json")
    assert answer.code == 0 and answer.out.count("\n") == 1
    cell = answer.json["cells"][0]
    assert cell["parameters"]["classes"] == 3 and cell["parameters"]["loss"] == "ce"
    assert ufm(*SMALL[1:], "--json").code == 2  # not a command
    assert ufm("predict", "single", "--classes", "3", "--json").json["predictions"][0]["prediction"] == "etf"
    assert {"systems", "losses", "solvers", "predictions", "measures"} <= set(ufm("list", "--json").json)
    assert ufm("list", "--conventions", "--json").json["numbers"]["N"] == 1000
    assert ufm(*SMALL, "--dry-run", "--json").json["cells"] == 1


def test_flags_win_over_the_file_and_the_file_over_defaults(ufm, tmp_path):
    (tmp_path / "x.toml").write_text(
        'classes = 3\ndim = 4\nper-class = 5\nlambda_w = [1e-3, 1e-2]\nseeds = "0:2"\ndevice = "cpu"\n'
    )
    cells = ufm("simulate", "single", "--config", "x.toml", "--lambda-w", "5e-3", "--json").json["cells"]
    assert [(c["parameters"]["lambda_w"], c["seed"]) for c in cells] == [(5e-3, 0), (5e-3, 1)]


def test_zip(ufm):
    answer = ufm(*SMALL, "--lambda-w", "1e-3,1e-2", "--lambda-h", "1e-2,1e-3", "--zip", "lambda-w,lambda-h", "--json")
    found = [(c["parameters"]["lambda_w"], c["parameters"]["lambda_h"]) for c in answer.json["cells"]]
    assert found == [(1e-3, 1e-2), (1e-2, 1e-3)]


def test_dry_run_creates_nothing(ufm):
    answer = ufm(*SMALL, "--lambda-w", "1e-5:1e-1:20log", "--seeds", "0:5", "--dry-run")
    assert answer.code == 0 and answer.out.startswith("100 cells in") and "memory" in answer.out and ufm.created == []


def test_shards_and_whole_agree(ufm):
    grid = (*SMALL, "--lambda-w", "1e-4:1e-1:6log", "--loss", "ce,mse")
    whole = ufm(*grid, "--json", "--out", "whole").json["cells"]
    for i in (1, 0):
        assert ufm(*grid, "--shard", f"{i}/2", "--out", "parts").code == 0
    parts = ufm(*grid, "--json", "--out", "parts").json
    assert parts["computed"] == 0
    for a, b in zip(parts["cells"], whole, strict=True):
        assert a["cell"] == b["cell"] and a["loss"] == pytest.approx(b["loss"], rel=1e-12)


def test_the_zero_solution_has_no_geometry(ufm):
    cell = ufm(*SMALL, "--lambda-w", "1000", "--json").json["cells"][0]
    assert cell["status"] == "the zero solution is optimal here"
    assert cell["measures"]["nc2_etf_means"] is None and "zero" in cell["reasons"]["nc2_etf_means"]


def test_strict_turns_results_into_failures(ufm):
    steps = (*SMALL, "--steps", "2")
    assert ufm(*steps).code == 0 and ufm(*steps, "--strict").code == 1
    assert ufm(*SMALL, "--strict").code == 0
    # Reaching the last time is how a flow ends well, and the zero solution is a right answer.
    flow = ("simulate", "flow", "--t-end", "5")
    assert ufm(*flow, "--init", "subspace", "--strict").code == 0
    assert ufm(*SMALL, "--lambda-w", "1000", "--strict").code == 0


NO_THEOREM = {
    "single": ("--classes", "3", "--dim", "1", "--lambda-w", "1e-3"),
    "deep": ("--classes", "3", "--counts", "4,5,6", "--depth", "3", "--dim", "6"),
    "flow": ("--t-end", "5"),
    "benign": ("--q", "2", "--steps", "5"),
}


@pytest.mark.parametrize("system", NO_THEOREM)
def test_strict_is_1_where_no_prediction_applies(ufm, system):
    for command in ("simulate", "predict"):
        words = (command, system, *NO_THEOREM[system])
        assert ufm(*words).code == 0
        answer = ufm(*words, "--strict")
        assert answer.code == 1 and "Traceback" not in answer.err
        if command == "simulate":
            assert "--strict: no prediction applies to 1 of 1 cells" in answer.err


@pytest.mark.parametrize(
    "words", [("single", *SMALL[2:]), ("deep", "--activation", "linear"), ("flow", "--init", "subspace"), ("benign",)]
)
def test_strict_is_0_where_one_does(ufm, words):
    words = [w for w in words if w not in ("--device", "cpu")]
    assert ufm("predict", *words, "--strict").code == 0


def test_targets_file(ufm, tmp_path):
    import numpy as np
    from safetensors.numpy import save_file

    rows = [[0.5, 0.5, 0], [0, 0.5, 0.5], [0.5, 0, 0.5]]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    (tmp_path / "b.csv").write_text("# soft labels\n" + "\n".join(",".join(map(str, row)) for row in rows))
    np.save(tmp_path / "c.npy", np.array(rows))
    save_file({"targets": np.array(rows)}, tmp_path / "d.safetensors")
    losses = [
        ufm(*SMALL, "--targets", n, "--out", n + "-runs", "--json").json["cells"][0]["loss"]
        for n in ("a.json", "b.csv", "c.npy", "d.safetensors")
    ]
    assert len(set(losses)) == 1 and losses[0] > 0


def test_imbalance_makes_the_counts(ufm):
    cells = ufm(
        "simulate",
        "single",
        "--classes",
        "4",
        "--dim",
        "5",
        "--per-class",
        "100",
        "--imbalance",
        "1,10",
        "--minority",
        "1",
        "--json",
        "--device",
        "cpu",
    ).json["cells"]
    assert [c["counts"] for c in cells] == [100, [100, 100, 100, 10]]


def test_every_system_has_help_with_two_examples(ufm):
    pages = [(), ("simulate",), ("predict",), ("list",), ("cite",)]
    pages += [(command, system) for system in SYSTEMS for command in ("simulate", "predict")]
    for words in pages:
        page = ufm(*words, "--help")
        assert page.code == 0 and page.err == ""
        end = page.out.partition("Examples:")[2]
        assert len(re.findall(r"^ +(?:ufm|make) .+# .+(?:s|min)$", end, re.MULTILINE)) == 2, (words, end)


def test_the_examples_of_help_pages_are_valid(ufm):
    for words in [(), ("simulate",), *[("simulate", s) for s in SYSTEMS]]:
        for line in re.findall(r"^ +ufm (simulate .+?) +#", ufm(*words, "--help").out, re.MULTILINE):
            assert ufm(*shlex.split(line), "--dry-run").code == 0, line


def test_without_a_command_help_is_shown(ufm):
    answer = ufm()
    assert answer.out.startswith("Usage: ufm") and answer.code == 2


def test_list_names_everything(ufm):
    text = ufm("list").out
    for word in ("single", "ce", "lbfgs", "nc1_pinv", "nc2_to_prediction", "zhu2021"):
        assert word in text
    assert "nc1_pinv" not in ufm("list", "losses").out


def test_conventions_convert():
    from ufm.commands.listing import Setting, conversions

    rows = {r["convention"]: r for r in conversions(Setting(classes=4, per_class=5, lambda_w=1e-3, lambda_h=2e-3))}
    assert rows["feature ridge averaged over samples"]["lambda_h"] == pytest.approx(20 * 2e-3)
    assert rows["sum of losses, no 1/N"]["lambda_w"] == pytest.approx(20 * 1e-3)
    # The layer-peeled radii are those of the optimum itself.
    import ufm as package

    s = package.solve(package.Problem(4, 6, 5, lambda_w=1e-3, lambda_h=2e-3))
    peeled = rows["layer-peeled, at the CE optimum"]
    assert peeled["lambda_w"] == pytest.approx(float(s.W.square().sum()) / 4, rel=1e-8)
    assert peeled["lambda_h"] == pytest.approx(float(s.H.square().sum()) / 4, rel=1e-8)


def test_a_diverged_sweep_fails_and_the_table_says_so(ufm):
    answer = ufm(*SMALL, "--method", "gd", "--lr", "0.1,1e6", "--steps", "50")
    assert answer.code == 1 and "diverged" in answer.out and answer.err.splitlines()[-1].startswith("error: 1 of 2 cells")


# The command with one more system, whose sixty chunks take twenty milliseconds each.
PROGRAM = """
import sys
sys.path.insert(0, sys.argv.pop(1))
from ufm.systems import SYSTEMS
from ufm.tables import Entry
SYSTEMS["toy"] = Entry("toy_system:SYSTEM", "a toy")
from ufm.__main__ import main
main()
"""


def start(folder, *words):
    command = [sys.executable, "-c", PROGRAM, str(TESTS), *words]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def end(process):
    _, err = process.communicate(timeout=60)
    assert "Traceback" not in err, err
    return process.returncode, err.strip()


def wait_for_a_chunk(folder):
    for _ in range(6000):
        if any(p.stat().st_size for p in folder.glob("*/*/cells.jsonl")):
            return
        time.sleep(0.01)
    pytest.fail("no chunk was written")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_stopped_sweep_goes_on_to_the_same_bytes(tmp_path, number):
    grid = ("simulate", "toy", "--x", "20:79:60", "--mode", "pause", "--weight", "5", "--device", "cpu")
    assert end(start(tmp_path, *grid, "--out", "whole"))[0] == 0
    right = next(tmp_path.glob("whole/*/*/cells.jsonl")).read_bytes()
    process = start(tmp_path, *grid)
    wait_for_a_chunk(tmp_path / "runs")
    process.send_signal(number)
    code, err = end(process)
    if number == signal.SIGKILL:
        assert code == -9
    else:
        assert code == 128 + number
        assert err.splitlines()[-1].startswith("stopped; everything finished is saved. To go on: ufm simulate toy --x 20:79:60")
    cells = next(tmp_path.glob("runs/*/*/cells.jsonl"))
    before = cells.read_bytes()
    assert len(before) < len(right) and right.startswith(before[: before.rfind(b"\n") + 1])
    assert end(start(tmp_path, *grid))[0] == 0
    assert cells.read_bytes() == right


def test_predict_prints_assumptions_and_the_nearest_threshold(ufm):
    """By hand: lambda_w at n_B = N^2 lambda_w lambda_h with n_B = 5, N = 110; numbers are square roots of it."""
    number = 5 / (110**2 * 0.005)
    grid = ("--classes", "4", "--counts", "50,50,5,5", "--lambda-h", "0.005", "--lambda-w", f"{0.64 * number},{1.21 * number}")
    lines = ufm("predict", "single", *grid).out.splitlines()
    assert "minority collapse 0.8 " in lines[1] and "minority collapse 1.1 " in lines[2]
    assert "minority collapse: classes 2-3 share one w" in lines[2] and "share" not in lines[1]
    assert lines[3] == "blocks assumes two class sizes, no bias, d >= K-1, global minimum"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--classes 5 --dim 3", "no theorem is known for cross-entropy with d = 3 < K-1 = 4; only d = 2 and K = 2d"),
        ("--classes 4 --dim 1", "no theorem is known for cross-entropy with d = 1 < K-1 = 3"),
        ("--classes 9 --dim 3 --constraint sphere", "-> 0.666667, evidence only (multistart), not proven"),
        ("--classes 5 --dim 3 --constraint sphere", "-> 1, stated in the source"),
        ("--lambda-w 0", "the minimum is not attained"),
        ("--classes 3 --logit-offset 0,1,2", "the certificate of the solution decides"),
        ("--classes 2 --counts 9,3 --bias free", "the bias is non-trivial"),
    ],
)
def test_predict_says_why_it_is_silent(ufm, words, told):
    assert told in ufm("predict", "single", *words.split()).out.splitlines()[1]
