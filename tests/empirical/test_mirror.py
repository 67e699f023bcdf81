"""The TensorBoard mirror: the same numbers as metrics.jsonl, and one sentence where tensorboard is missing."""

import sys

import pytest
from command_line import Shell

from empirical.__main__ import _load
from empirical.mirror import mirrored
from ufm.record import Run

RUN = ["run", "collapse", "--dataset=gaussian", "--train-per-class=10", "--test-per-class=5", "--width=8", "--depth=1"]
RUN += ["--epochs=2", "--device=cpu", "--workers=1"]


@pytest.fixture
def shell(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    return Shell("empirical", _load, tmp_path, capsys)


def test_without_tensorboard_one_sentence_says_how_to_get_it(shell, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)  # importing it now fails
    assert "pip install 'ufm[track]'" in shell.refuses(*RUN, "--tensorboard=logs")


def test_a_file_in_the_place_of_the_folder_is_refused(shell, monkeypatch, tmp_path):
    monkeypatch.setattr("empirical.mirror._writer_class", lambda: None)
    (tmp_path / "logs").write_text("")
    assert "it is a file" in shell.refuses(*RUN, "--tensorboard=logs")


class Writer:
    """Stands for tensorboard's: keeps what it is told."""

    made = ()

    def __init__(self, log_dir):
        self.log_dir, self.scalars, self.closed = log_dir, {}, False
        Writer.made += (self,)

    def add_scalar(self, tag, value, step):
        self.scalars[tag, step] = value

    def flush(self):
        pass

    def close(self):
        self.closed = True


@pytest.mark.parametrize("stack", ["off", "on"])
def test_every_measured_value_is_mirrored(shell, monkeypatch, stack):
    monkeypatch.setattr(Writer, "made", ())
    monkeypatch.setattr("empirical.mirror._writer_class", lambda: Writer)
    answer = shell(*RUN, "--tensorboard=logs", "--seeds=0:2", f"--stack={stack}", "--json")
    assert answer.code == 0
    for run, writer in zip(answer.json["runs"], Writer.made, strict=True):
        rows = Run.open(run["path"]).rows("metrics.jsonl")
        expected = {
            ("/".join((r["split"], r["layer"], r["centres"], r["metric"])), r["step"]): r["value"]
            for r in rows
            if r["value"] is not None
        }
        assert writer.scalars == expected and writer.closed and len(expected) > 100
        assert writer.log_dir.endswith(run["path"].removeprefix("runs"))


def test_tensorboard_reads_the_mirror(shell, tmp_path):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason="tensorboard is not installed")
    answer = shell(*RUN, "--tensorboard=logs", "--json")
    assert answer.code == 0, answer.err
    (path,) = tmp_path.glob("logs/collapse/*/seed-0")
    events = reader.EventAccumulator(str(path)).Reload().Scalars("train/penultimate/self/nc1_pinv")
    rows = Run.open(answer.json["runs"][0]["path"]).rows("metrics.jsonl")
    wanted = [
        (r["step"], r["value"])
        for r in rows
        if (r["split"], r["layer"], r["metric"]) == ("train", "penultimate", "nc1_pinv") and r["value"] is not None
    ]
    assert [e.step for e in events] == [step for step, _ in wanted]
    assert [e.value for e in events] == pytest.approx([value for _, value in wanted], rel=1e-6)  # kept as float32


def test_a_resumed_run_goes_on_mirroring_and_begins_with_what_was_there(shell, monkeypatch, tmp_path):
    """A run without a mirror whose last epoch is done again: the mirror of the resume holds every row once."""
    answer = shell(*RUN, "--json")
    (folder,) = (run["path"] for run in answer.json["runs"])
    (tmp_path / folder / "done").unlink()
    monkeypatch.setattr("empirical.mirror._writer_class", lambda: Writer)
    monkeypatch.setattr(Writer, "made", ())
    assert "it is a file" in shell.refuses("resume", folder, f"--tensorboard={folder}/result.json")
    again = shell("resume", folder, "--tensorboard=logs", "--json")
    (writer,) = Writer.made
    rows = Run.open(folder).rows("metrics.jsonl")
    assert again.code == 0 and {step for _, step in writer.scalars} == {row["step"] for row in rows}
    assert len(writer.scalars) == sum(row["value"] is not None for row in rows) and writer.closed


def test_what_is_written_before_and_again_by_a_resume_is_mirrored_once(monkeypatch, tmp_path):
    told = []
    monkeypatch.setattr(Writer, "add_scalar", lambda self, tag, value, step: told.append((tag, step, value)))
    monkeypatch.setattr("empirical.mirror._writer_class", lambda: Writer)
    row = {"split": "train", "layer": "penultimate", "centres": "self", "metric": "cdnv", "value": 0.5}
    with Run.create(tmp_path, "collapse", "name", {"version": 1}, seed=0, environment={}) as run:
        run.append("metrics.jsonl", [row | {"step": 0}, row | {"step": 1, "value": 0.25}])
        with mirrored(run, str(tmp_path / "logs")):
            run.truncate("metrics.jsonl", 1)
            run.append("metrics.jsonl", [row | {"step": 1, "value": 0.25}, row | {"step": 2, "value": 0.125}])
    assert told == [("train/penultimate/self/cdnv", step, value) for step, value in ((0, 0.5), (1, 0.25), (2, 0.125))]


def test_the_command_to_go_on_with_names_the_mirror(shell, monkeypatch):
    """What is printed after a signal takes the mirror along."""
    seen = []
    monkeypatch.setattr("empirical.mirror._writer_class", lambda: Writer)
    monkeypatch.setattr("empirical.commands.run.run_jobs", lambda jobs, *, resume, **named: seen.append(resume) or [])
    shell(*RUN, "--tensorboard=my logs")
    assert seen[0].startswith("empirical resume ") and seen[0].endswith("--tensorboard 'my logs'")
