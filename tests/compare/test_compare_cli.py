import importlib
import json
import subprocess
import sys

import numpy as np
import pytest
from click.testing import CliRunner
from synthetic_runs import hui_setting, rows_of_seed, write_training

import ufm
from compare.cli import COMMANDS
from ufm import console


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    return write_training(folder / "runs", layers=("blocks.0", "penultimate"))


@pytest.fixture
def run(capfd, monkeypatch):
    """Call `compare` in this process as the console script does; return (status, stdout, stderr)."""

    def call(*arguments):
        from compare.__main__ import _load

        monkeypatch.setattr("signal.signal", lambda *values: None)
        with pytest.raises(SystemExit) as leave:
            console.run(_load, "compare", list(map(str, arguments)))
        captured = capfd.readouterr()
        return leave.value.code, captured.out, captured.err

    return call


@pytest.mark.parametrize("program", ["ufm", "empirical", "compare"])
def test_each_command_says_its_version(program):
    main = importlib.import_module(f"{program}.cli").main
    result = CliRunner().invoke(main, ["--version"])
    assert result.exit_code == 0 and result.output == f"{program}, version {ufm.__version__}\n"


def test_verdict_prints_the_table_and_the_reasons(run, runs):
    code, out, err = run("verdict", runs)
    assert code == 0 and err == ""
    assert out.startswith("hui2022 (claims version ")
    lines = out.splitlines()
    assert "verdict" in lines[1] and sum(" agrees " in line for line in lines[2:7]) == 5
    assert "control (the untrained network): deviates" in out
    assert run("verdict", runs, "--strict")[0] == 0


def test_a_deviation_is_a_result_and_with_strict_a_failure(run, tmp_path):
    folder = write_training(tmp_path, train_end=0.2)
    code, out, _ = run("verdict", folder)
    assert code == 0 and "train-collapse: deviates" in out
    assert run("verdict", folder, "--strict")[0] == 1


def test_what_is_left_out_is_printed(run, tmp_path):
    folder = write_training(tmp_path, seeds=range(6))
    (folder / "seed-0" / "done").unlink()
    assert "left out: " in run("verdict", folder)[1]
    code, out, err = run("table", folder)
    assert code == 0 and "seed 0: unfinished" in err and "left out" not in out


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc, where nobody can write")
def test_an_output_that_cannot_be_written_is_a_wrong_request(run, runs):
    for arguments in (("plot", "trajectory", runs, "-o", "/proc/a.pdf"), ("report", runs, "-o", "/proc/a.html")):
        code, out, err = run(*arguments)
        assert (code, out, err.count("\n")) == (2, "", 1) and "/proc is not writable" in err


@pytest.mark.parametrize("command", ["verdict", "table", "papers"])
def test_json_is_one_document_on_stdout(run, runs, command):
    arguments = [] if command == "papers" else [runs]
    code, out, _ = run(command, *arguments, "--json")
    assert code == 0
    document = json.loads(out, parse_constant=pytest.fail)
    if command == "verdict":
        claims = document["papers"][0]["claims"]
        assert len(claims) == 5 and claims[0]["control"] == "deviates" and claims[0]["low"] < claims[0]["high"]


def test_papers_lists_scales_and_the_last_verdicts(run, tmp_path):
    folder = tmp_path / "reports" / "hui2022-demo"
    folder.mkdir(parents=True)
    (folder / "verdicts.json").write_text(json.dumps({"summary": "5 agree", "version": 1}))
    code, out, _ = run("papers", "--out", tmp_path)
    assert code == 0 and "5 agree (version 1)" in out and "not run" in out
    (folder / "verdicts.json").write_text("{")
    assert "damaged" in run("papers", "--out", tmp_path)[1]


def test_plot_writes_the_figure_its_numbers_and_its_origin(run, runs, tmp_path):
    code, out, _ = run("plot", "trajectory", runs, "-o", tmp_path / "t.svg")
    assert code == 0 and "t.svg" in out
    assert (tmp_path / "t.csv").stat().st_size and json.loads((tmp_path / "t.json").read_text())["provenance"]["runs"]
    code, out, _ = run("plot", "layers", runs, "-o", tmp_path / "l.pdf", "--json")
    assert len(json.loads(out)["files"]) == 3


def test_report_and_table_write_files(run, runs, tmp_path):
    code, out, _ = run("report", runs, "-o", tmp_path / "r.html", "--figures", "trajectory")
    assert code == 0 and out.startswith("5 agree") and (tmp_path / "r.html").stat().st_size > 5000
    code, out, _ = run("table", runs, "--format", "latex", "--layer", "penultimate", "-o", tmp_path / "t.tex")
    assert code == 0 and out == "" and r"\begin{tabular}" in (tmp_path / "t.tex").read_text()
    assert "Zhu 2021" in run("table", runs, "--conventions")[1]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["verdict", "absent"], "no such folder"),
        (["verdict"], "Missing argument"),
        (["verdict", "{runs}", "--paper", "hui202"], "did you mean 'hui2022'"),
        (["plot", "trajektory", "{runs}", "-o", "x.pdf"], "did you mean 'trajectory'"),
        (["plot", "trajectory", "{runs}", "-o", "x.jpg"], "must end in .pdf"),
        (["plot", "trajectory", "{runs}", "-o", "absent/x.pdf"], "does not exist"),
        (["plot", "trajectory", "{runs}", "-o", "x.pdf", "--width", "nature"], "unknown width"),
        (["report", "{runs}", "-o", "x.txt"], "must end in .html"),
        (["report", "{runs}", "-o", "x.html", "--figures", "nope"], "unknown figure"),
        (["table", "{runs}", "--format", "yaml"], "unknown --format"),
        (["table", "{runs}", "--measure", "nc1"], "is not in these runs"),
        (["table", "{runs}", "--layer", "last"], "is not in these runs"),
        (["reproduce", "hui2022", "--scale", "demmo"], "did you mean 'demo'"),
        (["reproduce", "nobody2020"], "unknown paper"),
        (["reproduce", "hui2022", "--seeds", "nan"], "--seeds"),
        (["reproduce", "hui2022", "--workers", "-1"], "--workers"),
        (["reproduce", "general"], "general has no scale: it runs nothing"),
        (["reproduce", "galanti2022", "--scale", "demo"], "run `compare reproduce galanti2022 --scale laptop`"),
        (["reproduce", "kothapalli2022", "--scale", "laptop"], "run `compare reproduce kothapalli2022 --scale demo`"),
        (["verdic", "{runs}"], "did you mean 'verdict'"),
    ],
)
def test_a_wrong_request_is_one_line_and_writes_nothing(run, runs, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(*[a.format(runs=runs) for a in arguments])
    assert code == 2 and out == ""
    assert message in err and err.startswith("error: ") and err.count("\n") == 1 and "Traceback" not in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", COMMANDS)
def test_every_help_page_ends_with_two_examples_and_their_time(run, command):
    code, out, _ = run(command, "--help")
    examples = out[out.index("Examples:") :].strip().splitlines()[1:]
    assert code == 0 and len(examples) == 2
    assert all(line.strip().startswith(f"compare {command}") and "  # " in line for line in examples)


def test_help_and_verdict_import_no_torch(runs):
    script = (
        "import sys\nfrom compare.cli import main\n"
        "for words in (['--help'], ['plot', '--help'], ['papers'], ['verdict', sys.argv[1]]):\n"
        "    main.main(args=words, standalone_mode=False)\n"
        "heavy = [m for m in ('torch', 'matplotlib') if m in sys.modules]\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(runs)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_calibrate_prints_predicted_beside_measured_and_says_why_not(run, tmp_path):
    generator = np.random.default_rng(0)
    means = np.abs(generator.standard_normal((3, 5)))
    arrays = {
        "weight": generator.standard_normal((3, 5)),
        "penultimate/train/means": means,
        "penultimate/train/counts": np.full(3, 10),
        "penultimate/train/traces": np.full(3, 0.1),
    }
    setting = hui_setting(bias=False)
    loss = {**rows_of_seed(0)[0], "epoch": 100, "step": 800, "layer": "network", "metric": "loss", "value": 0.5}
    folder = write_training(tmp_path / "sgd", seeds=[0], setting=setting, tensors=arrays, rows=[*rows_of_seed(0), loss])
    code, out, err = run("calibrate", folder)
    assert code == 0 and err == "" and "measured / predicted" in out and "relative distance: logits " in out
    assert "duality gap" in out and "assumption not met: batch norm" in out and "nonnegative features" in out
    document = json.loads(run("calibrate", folder, "--json")[1])
    seeds = document[0]["seeds"]
    assert [one["seed"] for one in seeds] == [0] and seeds[0]["values"]["margin"]["predicted"] > 0
    assert seeds[0]["optimality"]["gap"] > 0
    # lambda_h = lambda_w |W|^2 / sum_i |h_i|^2 with the scatter of 3 x 10 features; the loss is this package's own (CE).
    decay, size_w = setting["weight_decay"], float((arrays["weight"] ** 2).sum())
    size_h = 10 * float((means**2).sum()) + 10 * 3 * 0.1
    inferred = f"lambda_w {decay:.4g}, inferred lambda_h {decay * size_w / size_h:.4g}, c {decay * (size_w / size_h) ** 0.5:.4g}"
    assert inferred in out.splitlines()
    other = write_training(tmp_path / "adamw", seeds=[0], setting={**setting, "optimizer": "adamw"}, tensors=arrays)
    assert "no prediction (seed 0): AdamW" in run("calibrate", other)[1]
