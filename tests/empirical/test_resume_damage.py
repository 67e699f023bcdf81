"""What `empirical resume` says to a finished training, one of whose files is damaged."""

import json
import os
import shutil

import pytest
from command_line import Shell

from ufm.record import find_runs

pytestmark = pytest.mark.filterwarnings("always::ufm.files.RunWarning")  # commands print them as lines

TINY = "--dataset gaussian --width 8 --depth 1 --train-per-class 10 --test-per-class 10 --epochs 2 --device cpu --workers 1"
RESULTS = ("../config.json", "env.json", "metrics.jsonl", "timing.jsonl", "tensors.safetensors", "result.json", "manifest.json")
HARMS = {
    "missing": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-7]),
    "flipped": lambda path: flip(path),
    "longer": lambda path: path.write_bytes(path.read_bytes() + path.read_bytes()[-30:]),
}


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of runs of a finished training of one seed."""
    from empirical.cli import main

    root = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UFM_CHECKPOINT_SECONDS", "0")  # after every look, so that there are two
        patch.setattr("empirical.train.LOOK_SECONDS", 0.0)
        assert main(["run", "collapse", *TINY.split(), "--out", str(root)], standalone_mode=False) in (0, None)
    return root


@pytest.fixture
def empirical(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def load():
        from empirical.cli import main

        return main

    return Shell("empirical", load, tmp_path, capsys)


@pytest.fixture
def seed(trained, tmp_path):
    """A copy of its seed's folder."""
    shutil.copytree(trained, tmp_path / "runs")
    (setting,) = find_runs([tmp_path / "runs"])
    return setting / "seed-0"


def contents(folder):
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.name != ".lock"}


def newest(seed, ending):
    return max(seed.glob(f"checkpoint-*.{ending}"), key=lambda path: int(path.stem.split("-")[1]))


def test_an_undamaged_one_is_left_as_it_is(empirical, seed):
    before = contents(seed)
    assert empirical("resume", seed).code == 0 and contents(seed) == before
    assert "metrics.jsonl" in before and set(RESULTS[1:]) <= set(before)


@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize("file", RESULTS)
def test_a_damaged_file_is_named_with_what_helps_and_nothing_is_changed(empirical, seed, file, harm):
    HARMS[harm](seed / file)
    before = contents(seed)
    answer = empirical("resume", seed)
    name = file.removeprefix("../")
    # without config.json a folder is no run folder: the request names something else
    assert answer.code == (2 if (name, harm) == ("config.json", "missing") else 1), answer
    line = next(line for line in answer.err.splitlines() if "error" in line or "failed" in line)
    assert name in answer.err + answer.out and "Traceback" not in answer.err
    assert "restore" in answer.err + answer.out or "name a folder" in line, answer
    assert contents(seed) == before
    if name not in ("config.json", "manifest.json"):  # the other way that is named: without the folder it is computed again
        kept = contents(seed)
        shutil.rmtree(seed)
        assert empirical("resume", seed.parent).code == 0
        intact = {"metrics.jsonl", "tensors.safetensors"} - {name}
        assert all((seed / other).read_bytes() == kept[other] for other in intact)


@pytest.mark.parametrize("harm", ["empty", "truncated", "flipped", "longer"])
def test_a_damaged_marker(empirical, seed, harm):
    HARMS[harm](seed / "done")
    answer = empirical("resume", seed)
    assert answer.code == 1 and "does not match manifest.json" in answer.err + answer.out
    rows = (seed / "metrics.jsonl").read_bytes()
    (seed / "done").unlink()
    (seed / "manifest.json").unlink()  # what is named as the remedy
    assert empirical("resume", seed).code == 0 and (seed / "metrics.jsonl").read_bytes() == rows
    assert empirical("resume", seed).code == 0


def test_without_a_marker_it_is_finished_again_to_the_same_numbers(empirical, seed):
    before = contents(seed)
    (seed / "done").unlink()
    assert empirical("resume", seed).code == 0
    after = contents(seed)
    for same in ("metrics.jsonl", "timing.jsonl", "tensors.safetensors"):
        assert after[same] == before[same]
    assert json.loads(after["result.json"])["final"] == json.loads(before["result.json"])["final"]


@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize("ending", ["json", "safetensors"])
def test_a_damaged_checkpoint_of_a_finished_training_is_a_warning(empirical, seed, ending, harm):
    path = newest(seed, ending)
    HARMS[harm](path)
    before = contents(seed)
    answer = empirical("resume", seed)
    assert answer.code == 0 and f"{path.name} missing or damaged" in answer.err and contents(seed) == before


@pytest.mark.parametrize("file", ["log.txt", ".lock"])
def test_messages_and_locks_are_no_results(empirical, seed, file):
    os.unlink(seed / file)
    assert empirical("resume", seed).code == 0


# --- damage that the missing marker might hide ----------------------------------------------------------------------


@pytest.mark.parametrize("harm", ["missing", "empty", "truncated", "flipped"])
@pytest.mark.parametrize("file", ["metrics.jsonl", "timing.jsonl"])
@pytest.mark.parametrize("sealed", [True, False])
def test_rows_before_a_checkpoint_are_checked_against_it(empirical, seed, file, harm, sealed):
    for marker in ("done", *(() if sealed else ("manifest.json",))):
        (seed / marker).unlink()
    HARMS[harm](seed / file)
    answer = empirical("resume", seed)
    said = answer.err + answer.out
    assert answer.code == 1 and file in said and "restore it from a copy" in said, answer


def test_the_older_checkpoint_serves_and_none_at_all_is_said(empirical, seed):
    before = contents(seed)
    (seed / "done").unlink()
    flip(newest(seed, "safetensors"))
    answer = empirical("resume", seed)
    assert answer.code == 0 and "is damaged" in answer.err, answer
    assert contents(seed)["metrics.jsonl"] == before["metrics.jsonl"]
    for path in [seed / "done", *seed.glob("checkpoint-*")]:
        path.unlink()
    answer = empirical("resume", seed)
    assert answer.code == 0 and "begins again from the start" in answer.err, answer
    assert contents(seed)["metrics.jsonl"] == before["metrics.jsonl"]
