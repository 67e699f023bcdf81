"""The commands `empirical run`, `resume`, `list` and `data`, in one process."""

import errno
import json
import subprocess
import sys

import numpy as np
import pytest

from empirical import presets
from empirical.cli import COMMANDS
from empirical.commands.run import Request, read_layers
from empirical.data import DATASETS
from empirical.devices import processes
from empirical.experiment import Experiment, from_setting
from empirical.models import MODELS
from empirical.studies import STUDIES, study
from ufm import console, record
from ufm.record import find_runs

TINY = [
    "--dataset=gaussian",
    "--width=8",
    "--depth=1",
    "--train-per-class=10",
    "--test-per-class=10",
    "--epochs=2",
    "--device=cpu",
]


@pytest.fixture
def empirical(capsys, tmp_path, monkeypatch):
    """Run a command line; return (exit status, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("signal.signal", lambda *_: None)

    def call(*words):
        def load():
            from empirical.cli import main

            return main

        with pytest.raises(SystemExit) as left:
            console.run(load, "empirical", list(map(str, words)))
        out = capsys.readouterr()
        return left.value.code, out.out, out.err

    return call


def files(root):
    return sorted(str(p.relative_to(root)) for p in root.rglob("*") if p.is_file())


# --- what works ----------------------------------------------------------------------------------------------------


def test_run_writes_a_run_that_verifies_and_is_found_again(empirical, tmp_path):
    code, out, err = empirical("run", "collapse", *TINY, "--seeds", "0:2", "--workers", "1", "--json")
    document = json.loads(out)
    assert code == 0, err
    assert [run["status"] for run in document["runs"]] == ["finished"] * 2
    (setting,) = find_runs([tmp_path / "runs"])
    for seed in (0, 1):
        opened = record.Run.open(setting / f"seed-{seed}")
        opened.verify()
        rows = opened.rows("metrics.jsonl")
        assert {row["epoch"] for row in rows} == {0, 1, 2} and {row["split"] for row in rows} == {"train", "test"}
        assert set(rows[0]) >= {"seed", "epoch", "step", "split", "layer", "centres", "metric", "value"}
        assert opened.environment["device"] == "cpu" and opened.read_json("result.json")["data"]["digest"]
    before = files(tmp_path)
    code, out, _ = empirical("run", "collapse", *TINY, "--seeds", "0:3", "--workers", "1", "--json")
    assert [run["skipped"] for run in json.loads(out)["runs"]] == [True, True, False]
    assert code == 0 and set(before) < set(files(tmp_path))


def test_a_grid_makes_one_folder_per_setting_and_resume_knows_them_all(empirical, tmp_path):
    grid = ["--weight-decay", "1e-4,1e-2", "--lr", "0.1,0.2", "--zip", "weight-decay,lr", "--seeds", "3", "--workers", "1"]
    code, out, err = empirical("run", "collapse", *TINY, *grid)
    assert code == 0, err
    assert len(out.splitlines()) == 3 and out.split()[:3] == ["lr", "weight_decay", "seed"]
    settings = find_runs([tmp_path / "runs"])
    assert len(settings) == 2
    (sweep,) = (tmp_path / "runs" / "collapse").glob("sweep-*")
    (settings[0] / "seed-3" / "done").unlink()
    code, out, err = empirical("resume", sweep)
    assert code == 0 and out.count("(before)") == 1, err
    assert (settings[0] / "seed-3" / "done").is_file()


def test_resume_of_one_seed_and_of_a_setting_with_a_missing_seed(empirical, tmp_path):
    empirical("run", "collapse", *TINY, "--seeds", "0:2", "--workers", "1")
    (setting,) = find_runs([tmp_path / "runs"])
    rows = (setting / "seed-1" / "metrics.jsonl").read_bytes()
    for path in sorted((setting / "seed-1").iterdir()):
        path.unlink()
    (setting / "seed-1").rmdir()
    code, _, err = empirical("resume", setting)
    assert code == 0, err
    assert (setting / "seed-1" / "metrics.jsonl").read_bytes() == rows
    code, out, _ = empirical("resume", setting / "seed-1", "--json")
    assert code == 0 and json.loads(out)["runs"][0]["skipped"]


def test_dry_run_writes_nothing(empirical, tmp_path):
    code, out, _ = empirical("run", "collapse", *TINY, "--seeds", "0:5", "--lr", "1e-3:1e-1:3log", "--dry-run", "--json")
    document = json.loads(out)
    assert code == 0 and document["trainings"] == document["missing"] == 15 and document["steps"] == 15 * 2
    assert not files(tmp_path)


def test_shards_share_the_trainings():
    values = read_layers(study("collapse"), None, None, {"seeds": "0:5", "lr": "0.1,0.2", "dataset": "gaussian"})
    parts = []
    for index in range(3):
        request = Request.of(study("collapse"), values | {"shard": [f"{index}/3"]}, [])
        parts.append(request.jobs("cpu"))
    whole = Request.of(study("collapse"), values, []).jobs("cpu")
    assert sorted(map(len, parts)) == [3, 3, 4] and {job for part in parts for job in part} == set(whole)


def test_config_and_flags_and_presets_in_their_order(tmp_path):
    config = tmp_path / "mine.toml"
    config.write_text('lr = 0.3\nweight_decay = [1e-3, 1e-2]\nseeds = "0:2"\nepochs = 7\n')
    values = read_layers(study("collapse"), "digits", str(config), {"lr": "0.7"})
    assert values["lr"] == [0.7] and values["weight_decay"] == [1e-3, 1e-2] and values["seeds"] == [0, 1]
    assert values["epochs"] == [7] and values["steps"] == [None] and values["batch_size"] == [128]


@pytest.mark.parametrize("name", presets.names())
def test_every_preset_is_a_valid_and_described_setting(name):
    about, _ = presets.read(name)
    assert set(about) == {"version", "study", "summary", "cost", "reference"}
    request = Request.of(study(about["study"]), read_layers(study(about["study"]), name, None, {}), [])
    assert len(request.settings) == 1 or len(request.varied) == 1  # one setting, or a sweep over one option
    assert all(setting.dataset in DATASETS and setting.model in MODELS for setting in request.settings)
    text = (presets.Path(presets.__file__).parent / f"{name}.toml").read_text()
    assert text.count("#") >= 3 and len(text.splitlines()) < 40


def test_a_setting_survives_its_own_config(tmp_path):
    setting = Experiment(dataset="digits", coarse=(5, 5), label_noise=0.1).resolved()
    assert from_setting(Experiment, json.loads(json.dumps(setting.setting()))) == setting


def test_list_names_everything_without_torch():
    program = (
        "import sys\nfrom empirical.__main__ import main\nsys.argv = ['empirical', 'list', '--json']\n"
        "try: main()\nexcept SystemExit as left: assert left.code == 0\n"
        "heavy = {'torch', 'sklearn', 'scipy', 'mlxtend', 'matplotlib', 'joblib'} & set(sys.modules)\nassert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert [row["name"] for row in document["studies"]] == list(STUDIES)
    assert {row["name"] for row in document["models"]} == {*MODELS, "timm:NAME"}


def test_help_shows_every_command_and_every_study_two_examples(empirical):
    code, out, _ = empirical("--help")
    assert code == 0 and all(name in out for name in COMMANDS)
    for name in STUDIES:
        code, out, _ = empirical("run", name, "--help")
        assert code == 0 and out.count("empirical run ") >= 2 and "--weight-decay" in out


def test_data_commands(empirical, tmp_path, monkeypatch):
    monkeypatch.setenv("UFM_DATA", str(tmp_path / "none"))
    code, out, _ = empirical("data", "list", "--json")
    states = {row["name"]: row["state"] for row in json.loads(out)}
    assert code == 0 and states["digits"] == "present" and states["cifar10"] == "not here"
    assert empirical("data", "check", "gaussian")[0] == 0
    assert empirical("data", "check", "cifar10")[0] == 1
    assert empirical("data", "fetch", "digits")[0] == 2
    code, _, err = empirical("data", "check", f"folder:{tmp_path}")  # as a training on it answers
    assert code == 2 and "found neither train.npz" in err and err.count("\n") == 1


# --- what is refused -----------------------------------------------------------------------------------------------

WRONG = [
    (["--model", "mpl"], "did you mean 'mlp'"),
    (["--dataset", "digit"], "did you mean 'digits'"),
    (["--weight-decay", "-1"], "must be >= 0"),
    (["--weight-decay", "nan"], "finite"),
    (["--lr", "0"], "must be > 0"),
    (["--classes", "1"], "--classes '1'"),
    (["--minority", "3"], "--imbalance > 1"),
    (["--label-noise", "2"], "<= 1"),
    (["--loss", "hinge"], "known: ce"),
    (["--epochs", "2.5"], "integer"),
    (["--steps", "3"], "exclude each other"),
    (["--batch-size", "1"], "batch norm"),
    (["--measure-at", "sometimes"], "log, papyan, every"),
    (["--measure-at", "9"], "0..2"),
    (["--layers", "nothing"], "nothing"),
    (["--augment", "crop-flip"], "--augment crop-flip needs images"),
    (["--seeds", "-1"], ">= 0"),
    (["--shard", "3/3"], "0 <= I < N"),
    (["--preset", "digit"], "did you mean 'digits'"),
    (["--config", "missing.toml"], "missing.toml"),
    (["--zip", "lr,nothing"], "no such option"),
    (["--head", "deep"], "--head-depth"),
    (["--head", "etf", "--depth", "0"], "nothing to train"),
    (["--width", "100000000", "--depth", "3"], "GiB"),
    (["--model", "resnet18", "--device", "cpu"], "fixed --width"),
    (["--coarse", "1,2"], "sum to 4"),
    (["--optimizer", "lbfgs", "--batch-size", "8"], "all samples"),
    (["--out", "a-file"], "a-file"),
    (["--nothing"], "No such option"),
]


@pytest.mark.parametrize(("words", "answer"), WRONG)
def test_wrong_requests_are_one_line_and_write_nothing(empirical, tmp_path, words, answer):
    (tmp_path / "a-file").write_text("")
    code, out, err = empirical("run", "collapse", *TINY, *words)
    assert code == 2 and answer in err and not out
    assert err.startswith("error: ") and err.count("\n") == 1 and "Traceback" not in err
    assert files(tmp_path) == ["a-file"]


def test_what_torchrun_cannot_share_and_too_many_classes_are_found_before_anything_is_written(empirical, tmp_path, monkeypatch):
    few = [*TINY, "--test-per-class", "1"]  # four test samples
    with monkeypatch.context() as patch:
        for name, value in {"TORCHELASTIC_RUN_ID": "x", "RANK": "0", "WORLD_SIZE": "5", "LOCAL_RANK": "0"}.items():
            patch.setenv(name, value)
        code, out, err = empirical("run", "collapse", *few)
    assert (code, out) == (2, "") and "4 test samples" in err and "torchrun's 5 processes" in err and err.count("\n") == 1
    monkeypatch.setattr("empirical.data.generated.check_memory", lambda *_: None)  # the data themselves fit
    monkeypatch.setattr("empirical.store.free_memory", lambda device: 100)
    code, out, err = empirical("run", "collapse", *few)
    assert (code, out) == (2, "") and "4 classes need about" in err and err.count("\n") == 1
    assert not files(tmp_path)


def test_wrong_studies_runs_and_configs(empirical, tmp_path):
    assert empirical("run", "colapse")[0] == 2
    assert empirical("resume", tmp_path)[0] == 2
    (tmp_path / "c.toml").write_text("widht = 3\n")
    code, _, err = empirical("run", "collapse", *TINY, "--config", "c.toml")
    assert code == 2 and "did you mean 'width'" in err
    np.savez(tmp_path / "train.npz", inputs=np.full((4, 3), np.nan), labels=[0, 1, 0, 1])
    np.savez(tmp_path / "test.npz", inputs=np.zeros((4, 3)), labels=[0, 1, 0, 1])
    code, _, err = empirical("run", "collapse", "--dataset", f"folder:{tmp_path}", "--device", "cpu")
    assert code == 2 and "non-finite" in err and not (tmp_path / "runs").exists()


@pytest.mark.skipif("__import__('torch').cuda.is_available()", reason="there is a CUDA GPU")
def test_a_gpu_that_is_not_there(empirical, tmp_path):
    for device in ("cuda", "cuda:3", "gpu"):
        code, _, err = empirical("run", "collapse", *TINY, "--device", device)
        assert code == 2 and "--device" in err
    assert not files(tmp_path)


def test_a_second_writer_and_damaged_checkpoints_are_exit_1(empirical, tmp_path):
    empirical("run", "collapse", *TINY, "--workers", "1")
    (setting,) = find_runs([tmp_path / "runs"])
    seed = setting / "seed-0"
    (seed / "done").unlink()
    opened = record.Run.open(seed)
    with record.Run.create(tmp_path / "runs", "collapse", opened.name, opened.config, seed=0):
        code, _, err = empirical("resume", setting)
    assert code == 1 and "is being written by process" in err
    for path in seed.glob("checkpoint-*.safetensors"):
        path.write_bytes(path.read_bytes()[:-20])
    code, _, err = empirical("resume", setting)
    assert code == 1 and "no checkpoint can be read" in err and "safetensors" in err and "Traceback" not in err


def test_a_value_that_one_sample_per_class_makes_zero_is_marked(empirical, tmp_path):
    words = ("run", "collapse", *TINY, "--train-per-class", "1", "--seeds", "0:2", "--workers", "1")
    for _ in range(2):  # and when it was done before
        code, out, err = empirical(*words)
        assert code == 0, err
        assert out.splitlines()[0].split()[-1] == "flag" and out.count("train NC1: degenerate (one sample per class)") == 2
    shown = json.loads(empirical(*words, "--json")[1])["runs"][0]
    assert shown["flags"]["train/penultimate/self/nc1_pinv"] == "degenerate"
    assert not any("flag" in row or row["train NC1"] for row in [shown["summary"]])
    code, out, err = empirical("run", "collapse", *TINY, "--workers", "1")
    assert code == 0 and "flag" not in out.splitlines()[0] and "degenerate" not in out


@pytest.mark.parametrize(("more", "warned"), [([], True), (["--norm", "none"], False), (["--batch-size", "10"], False)])
def test_a_last_batch_too_small_for_batch_norm_is_said_and_logged(empirical, tmp_path, more, warned):
    code, _, err = empirical("run", "collapse", *TINY, "--batch-size", "12", "--workers", "1", *more)  # 3 x 12 + 4
    line = "warning: the last batch of an epoch has 4 of 40 samples; batch norm over so few can keep train from collapsing: "
    assert code == 0 and (line + "--batch-size 10 divides 40" in err) == warned
    (log,) = tmp_path.rglob("log.txt")
    assert log.read_text().count(line) == warned


def test_what_was_written_is_said_only_where_there_are_rows(empirical, tmp_path):
    words = ("run", "collapse", *TINY, "--workers", "1")
    code, _, err = empirical(*words)
    assert code == 0 and "written to runs/collapse/" in err
    (setting,) = find_runs([tmp_path / "runs"])
    opened = record.Run.open(setting / "seed-0")
    (setting / "seed-0" / "done").unlink()
    with record.Run.create(tmp_path / "runs", "collapse", opened.name, opened.config, seed=0):
        code, _, err = empirical(*words)
        assert code == 1 and "is being written by process" in err and "written to" not in err
        code, _, err = empirical(*words, "--seeds", "0:2")  # the other seed has rows
    assert code == 1 and "written to runs/collapse/" in err


def test_no_space_is_one_line(empirical, tmp_path, monkeypatch):
    from empirical import checkpoint

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device", "checkpoint-1.safetensors")

    monkeypatch.setattr(checkpoint, "save", full)
    code, _, err = empirical("run", "collapse", *TINY)
    assert code == 1 and "free some space" in err


def test_a_moved_run_is_not_resumed_into_another_place(empirical, tmp_path):
    empirical("run", "collapse", *TINY)
    (setting,) = find_runs([tmp_path / "runs"])
    moved = setting.rename(tmp_path / setting.name)
    code, _, err = empirical("resume", moved)
    assert code == 2 and "must lie at collapse" in err


@pytest.mark.parametrize(
    ("asked", "device", "jobs", "expected"), [(0, "cuda:0", 9, 1), (3, "cpu", 9, 3), (3, "cpu", 2, 2), (0, "cpu", 0, 1)]
)
def test_number_of_processes(asked, device, jobs, expected):
    assert processes(asked, device, jobs) == expected
