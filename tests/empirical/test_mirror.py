"""The TensorBoard mirror: the same numbers as metrics.jsonl, and one sentence where tensorboard is missing."""

import sys

import pytest
from command_line import Shell

from empirical.__main__ import _load
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
