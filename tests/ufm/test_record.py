import hashlib
import json
import os
import shutil
import subprocess
import sys
import warnings

import numpy as np
import pytest
from safetensors.numpy import load_file

from ufm import files, record
from ufm.errors import RequestError, RunError
from ufm.record import Run, RunWarning, find_runs, seed_folders, setting_hash

ENV = {"version": "1", "commit": "a", "dirty": False}
CONFIG = {"lambda_w": 1e-4, "classes": 10, "counts": [5, 5], "bias": None}


def create(root, config=CONFIG, **more):
    return Run.create(root, "single", "name", config, environment=more.pop("environment", ENV), **more)


def finished(root, **more):
    with create(root, **more) as run:
        run.append("cells.jsonl", [{"a": 0.1}, {"a": 1 / 3}])
        run.write_tensors("tensors.safetensors", {"W": np.arange(6.0).reshape(2, 3)})
        run.finish({"status": "done"})
    return run.path


def test_hash_is_sha256_of_sorted_strict_json():
    text = '{"bias":null,"classes":10,"counts":[5,5],"lambda_w":0.0001}'
    assert setting_hash(CONFIG) == hashlib.sha256(text.encode()).hexdigest()
    assert setting_hash(dict(reversed(CONFIG.items()))) == setting_hash(CONFIG)
    assert setting_hash({**CONFIG, "counts": (5, 5), "classes": np.int64(10), "lambda_w": np.float64(1e-4)}) == setting_hash(
        CONFIG
    )


def test_round_trip(tmp_path):
    path = finished(tmp_path)
    assert path.name == f"name-{setting_hash(CONFIG)[:12]}" and path.parent == tmp_path / "single"
    run = Run.open(path)
    assert run.done and run.seed is None and run.config == CONFIG and run.environment == ENV
    assert run.rows("cells.jsonl") == [{"a": 0.1}, {"a": 1 / 3}]
    assert run.rows("nothing.jsonl") == []
    assert run.read_json("result.json") == {"status": "done"}
    tensors = run.read_tensors("tensors.safetensors")
    assert tensors["W"].dtype == np.float64 and np.array_equal(tensors["W"], np.arange(6.0).reshape(2, 3))
    assert np.array_equal(load_file(path / "tensors.safetensors")["W"], tensors["W"])
    run.verify()
    assert not list(path.glob("*.tmp")) and not list(path.glob(".*.tmp"))


def test_full_precision(tmp_path):
    values = [1 / 3, 5e-324, 1.7976931348623157e308, -0.0, 2**60]
    with create(tmp_path) as run:
        run.append("cells.jsonl", [{"v": v} for v in values])
        found = [row["v"] for row in run.rows("cells.jsonl")]
    assert [v.hex() if isinstance(v, float) else v for v in found] == [v.hex() if isinstance(v, float) else v for v in values]


def test_same_request_finds_the_same_folder_and_another_another(tmp_path):
    assert create(tmp_path).path == create(tmp_path / ".." / tmp_path.name, seed=3).path.parent.resolve()
    with create(tmp_path, config={**CONFIG, "lambda_w": 2e-4}) as other:
        assert other.path != tmp_path / "single" / f"name-{setting_hash(CONFIG)[:12]}"


def test_seeds_have_their_own_folder_lock_and_done(tmp_path):
    with create(tmp_path, seed=3) as three, create(tmp_path, seed=11) as eleven:
        three.append("metrics.jsonl", [{"seed": 3}])
        three.finish({"status": "done"})
        eleven.append("metrics.jsonl", [{"seed": 11}])
    setting = three.path.parent
    assert seed_folders(setting) == [setting / "seed-3", setting / "seed-11"]
    assert Run.open(setting / "seed-3").done and not Run.open(setting / "seed-11").done
    assert Run.open(setting / "seed-3").seed == 3 and Run.open(setting / "seed-3").config == CONFIG
    assert find_runs(tmp_path) == find_runs([setting, setting / "seed-3"]) == [setting]
    Run.open(setting / "seed-3").verify()


def test_a_copied_or_renamed_folder_opens(tmp_path):
    path = finished(tmp_path / "here")
    shutil.copytree(path, tmp_path / "there" / path.name)
    shutil.copytree(path, tmp_path / "renamed")
    for copy in (tmp_path / "there" / path.name, tmp_path / "renamed"):
        run = Run.open(copy)
        run.verify()
        assert run.done and len(run.rows("cells.jsonl")) == 2
    assert (path / ".lock").read_bytes() == b""  # no name of a machine travels with the copy


def edit(path, change):
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def test_an_edited_setting_is_refused_with_the_differing_keys(tmp_path):
    path = finished(tmp_path)
    edit(path / "config.json", lambda d: d["setting"].update(lambda_w=5, classes=3))
    with pytest.raises(RunError, match="differing: classes, lambda_w"):
        Run.open(path)
    with pytest.raises(RunError, match="differing: classes, lambda_w"):
        create(tmp_path)


def test_a_consistently_edited_setting_is_refused_by_the_name_of_the_folder(tmp_path):
    path = finished(tmp_path)

    def forge(document):
        document["setting"]["classes"] = 3
        document["marks"]["classes"] = setting_hash({"classes": 3})[:8]
        document["hash"] = setting_hash(document["setting"])

    edit(path / "config.json", forge)
    with pytest.raises(RunError, match="does not match its hash"):
        Run.open(path)


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.pop("setting"),
        lambda d: d.pop("hash"),
        lambda d: d.update(setting=[]),
        lambda d: d.update(run_format="1"),
        lambda d: d.update(run_format=True),
        lambda d: d.update(run_format=99),
        lambda d: d.update(system="other"),
        lambda d: d["setting"].update(extra=1),
        lambda d: d["setting"].pop("bias"),
    ],
)
def test_a_damaged_config_is_refused(tmp_path, change):
    path = finished(tmp_path)
    edit(path / "config.json", change)
    with pytest.raises(RunError, match=r"config\.json|'single'"):
        create(tmp_path)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../x", "a\0b", "a\nb", "-x", ".x", "x" * 101, "ä", "a b", None, 3])
def test_wrong_names_create_nothing(tmp_path, name):
    root = tmp_path / "runs"
    for arguments in ((name, "name"), ("single", name)):
        with pytest.raises(RequestError, match="not a plain name"):
            Run.create(root, *arguments, CONFIG, environment=ENV)
    assert not root.exists()


@pytest.mark.parametrize(
    "arguments",
    [
        {"seed": -1},
        {"seed": 2**32},
        {"seed": 1.5},
        {"seed": True},
        {"shard": (2, 2)},
        {"shard": (-1, 2)},
        {"shard": (0, 0)},
        {"config": {"x": float("nan")}},
        {"config": {"x": [float("inf")]}},
        {"config": {"x": object()}},
        {"config": [1]},
        {"environment": {"x": float("nan")}},
    ],
)
def test_wrong_requests_create_nothing(tmp_path, arguments):
    with pytest.raises(RequestError) as caught:
        create(tmp_path / "runs", **arguments)
    assert "\n" not in str(caught.value) and not (tmp_path / "runs").exists()


def test_a_file_where_a_folder_should_be(tmp_path):
    (tmp_path / "file").write_text("x")
    for root in (tmp_path / "file", tmp_path / "file" / "deeper"):
        with pytest.raises(RequestError, match="is a file where a folder is needed"):
            create(root)
    (tmp_path / "single").write_text("x")
    with pytest.raises(RequestError, match="is a file where a folder is needed"):
        create(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "single"]


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    monkeypatch.setattr(record.os, "access", lambda path, mode: False)
    with pytest.raises(RequestError, match="is not writable"):
        create(tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_a_kernel_folder_that_cannot_be_written():
    if not os.path.isdir("/proc/self"):
        pytest.skip("no /proc on this system")
    with pytest.raises(RequestError, match=r"cannot be written|not writable"):
        create("/proc/self/runs")


def test_links_do_not_lead_out_of_the_root(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "single").symlink_to(outside)
    with pytest.raises(RequestError, match="leads out of"):
        create(tmp_path / "runs")
    (tmp_path / "runs" / "single").unlink()
    (tmp_path / "runs" / "single").symlink_to(tmp_path / "nowhere")
    with pytest.raises(RequestError, match="link to nothing"):
        create(tmp_path / "runs")
    assert not list(outside.iterdir()) and not (tmp_path / "nowhere").exists()


def test_a_linked_file_is_neither_written_nor_read(tmp_path):
    secret = tmp_path / "secret"
    secret.write_text('{"a": 1}\n')
    with create(tmp_path) as run:
        (run.path / "cells.jsonl").symlink_to(secret)
        with pytest.raises(OSError):
            run.append("cells.jsonl", [{"a": 2}])
        with pytest.raises(RunError, match="symbolic link"):
            run.rows("cells.jsonl")
        os.mkfifo(run.path / "pipe.json")
        with pytest.raises(RunError, match="not a regular file"):
            run.read_json("pipe.json")
    assert secret.read_text() == '{"a": 1}\n'


@pytest.mark.parametrize("value", [float("nan"), float("inf"), np.float64("nan"), np.array([1.0, np.nan]), {1, 2}, b"x", 1j])
def test_what_is_not_json_is_refused_and_leaves_the_file_alone(tmp_path, value):
    with create(tmp_path) as run:
        run.append("cells.jsonl", [{"a": 1}])
        with pytest.raises(RequestError):
            run.append("cells.jsonl", [{"a": 2}, {"a": {"deep": [value]}}])
        with pytest.raises(RequestError):
            run.write_json("x.json", value)
        assert run.rows("cells.jsonl") == [{"a": 1}] and not (run.path / "x.json").exists()


def test_a_torn_tail_is_left_out_by_readers_and_cut_by_writers(tmp_path):
    path = finished(tmp_path)
    with open(path / "cells.jsonl", "ab") as file:
        file.write(b'{"a": 4')
    with pytest.warns(RunWarning, match="left out a last line"):
        assert len(Run.open(path).rows("cells.jsonl")) == 2
    with pytest.warns(RunWarning, match="cut 7 bytes"):
        run = create(tmp_path)
    with run:
        run.append("cells.jsonl", [{"a": 5}])
        assert run.rows("cells.jsonl") == [{"a": 0.1}, {"a": 1 / 3}, {"a": 5}]


def test_a_file_that_is_all_torn_tail(tmp_path):
    with create(tmp_path) as run:
        (run.path / "cells.jsonl").write_bytes(b"x" * 200_000)
    with pytest.warns(RunWarning, match="cut 200000 bytes"), create(tmp_path) as run:
        assert run.rows("cells.jsonl") == []


def test_a_bad_line_in_the_middle_is_an_error_naming_it(tmp_path):
    with create(tmp_path) as run:
        for bad in (
            b"{",
            b"",
            b"[1]",
            b'{"a": NaN}',
            b'{"a": 1e999}',
            b'{"a": 1, "a": 2}',
            b"\xff",
            b"[" * 100_000,
            b'"' + b"1" * 9,
        ):
            (run.path / "x.jsonl").write_bytes(b'{"a": 1}\n' + bad + b'\n{"a": 3}\n')
            with pytest.raises(RunError, match=r"x\.jsonl, line 2"):
                run.rows("x.jsonl")


def test_truncate_goes_back_to_a_checkpoint(tmp_path):
    with create(tmp_path, seed=0) as run:
        run.append("metrics.jsonl", [{"i": i} for i in range(5)])
        run.truncate("metrics.jsonl", 3)
        assert [row["i"] for row in run.rows("metrics.jsonl")] == [0, 1, 2]
        with pytest.raises(RunError, match="3 whole lines of the 4"):
            run.truncate("metrics.jsonl", 4)
        run.finish({"status": "done"})
        run.truncate("metrics.jsonl", 0)
        assert not run.done and run.rows("metrics.jsonl") == []
        run.truncate("other.jsonl", 0)
    Run.open(run.path).verify()


def test_a_second_writer_is_refused_and_told_who_holds_it(tmp_path):
    with create(tmp_path) as run:
        with pytest.raises(RunError, match=f"being written by process {os.getpid()} on"):
            create(tmp_path)
        program = (
            "import sys; from ufm.record import Run; from ufm.errors import RunError\n"
            f"try: Run.create({str(tmp_path)!r}, 'single', 'name', {CONFIG!r}, environment={{}})\n"
            "except RunError as e: print(e); sys.exit(1)"
        )
        other = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
        assert other.returncode == 1 and f"process {os.getpid()} on" in other.stdout
        run.append("cells.jsonl", [{"a": 1}])
    create(tmp_path).close()


def test_without_flock_it_is_said_once_and_works(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "fcntl", None)
    monkeypatch.setattr(files, "_said", set())
    with pytest.warns(RunWarning, match="no flock"):
        first = create(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        second = create(tmp_path, seed=1)
    for run in (first, second):
        run.append("cells.jsonl", [{"a": 1}])
        run.finish({})
        run.close()
        Run.open(run.path).verify()


def test_reading_needs_no_lock_and_cannot_write(tmp_path):
    with create(tmp_path) as run:
        run.append("cells.jsonl", [{"a": 1}])
        reader = Run.open(run.path)
        assert reader.rows("cells.jsonl") == [{"a": 1}]
        for change in (
            lambda: reader.append("cells.jsonl", [{"a": 2}]),
            lambda: reader.write_json("x.json", 1),
            lambda: reader.truncate("cells.jsonl", 0),
            lambda: reader.finish({}),
        ):
            with pytest.raises(RunError, match="opened for reading"):
                change()


def test_growing_a_finished_run_keeps_checking_its_beginning(tmp_path):
    path = finished(tmp_path)
    with create(tmp_path) as run:
        assert run.done
        run.append("cells.jsonl", [{"a": 7}])
        assert not run.done
    run = Run.open(path)
    assert len(run.rows("cells.jsonl")) == 3
    data = bytearray((path / "cells.jsonl").read_bytes())
    data[5] ^= 4
    (path / "cells.jsonl").write_bytes(data)
    with pytest.raises(RunError, match=r"cells\.jsonl is damaged"):
        Run.open(path).rows("cells.jsonl")


def test_shards_share_a_run_and_the_last_writes_done(tmp_path):
    with create(tmp_path, shard=(0, 2)) as first, create(tmp_path, shard=(1, 2)) as second:
        first.append("cells-0-of-2.jsonl", [{"a": 1}])
        second.append("cells-1-of-2.jsonl", [{"a": 2}])
        second.finish({"status": "done", "request": "r"})
        assert not second.done
        first.finish({"status": "diverged", "request": "r"})
        assert first.done
    run = Run.open(first.path)
    run.verify()
    assert run.read_json("result.json")["status"] == "diverged" and run.environment == ENV


def test_shards_of_different_requests_do_not_make_a_whole(tmp_path):
    for index, request in ((0, "small"), (1, "large")):
        with create(tmp_path, shard=(index, 2)) as run:
            run.finish({"status": "done", "request": request})
    assert not run.done
    with create(tmp_path, shard=(0, 2)) as run:
        run.finish({"status": "done", "request": "large"})
    assert run.done


def test_another_code_version_is_a_warning_and_both_are_recorded(tmp_path):
    finished(tmp_path)
    with pytest.warns(RunWarning, match="commit a, now 1 commit b"):
        run = create(tmp_path, environment={**ENV, "commit": "b"})
    assert Run.open(run.path).environment == ENV  # nothing was changed yet
    run.append("cells.jsonl", [{"a": 1}])
    run.close()
    environment = Run.open(run.path).environment
    assert environment["commit"] == "b" and environment["earlier"] == [ENV]


def test_log_is_lines(tmp_path):
    with create(tmp_path) as run:
        run.log("one\ntwo")
        run.log("three")
        run.finish({})
        run.log("four")
    assert (run.path / "log.txt").read_text() == "one two\nthree\nfour\n"


def test_left_over_temporaries_of_dead_processes_are_removed(tmp_path):
    with create(tmp_path) as run:
        dead = run.path / f".x.json.{files._host()}-{2**22 + 7}-01234567.tmp"  # above the largest process number
        alive = run.path / f".x.json.{files._host()}-{os.getpid()}-01234567.tmp"
        elsewhere = run.path / ".x.json.ffffffff-1-01234567.tmp"
        for path in (dead, alive, elsewhere):
            path.write_text("x")
    with create(tmp_path):
        assert not dead.exists() and alive.exists() and elsewhere.exists()


@pytest.mark.parametrize("where", ["", "single", "nowhere"])
def test_open_names_what_is_no_run(tmp_path, where):
    finished(tmp_path)
    with pytest.raises(RequestError, match="no run folder"):
        Run.open(tmp_path / where)


def test_find_runs(tmp_path):
    one = finished(tmp_path)
    with create(tmp_path, config={"x": 1}, seed=2) as two:
        pass
    assert find_runs([tmp_path]) == sorted([one, two.path.parent]) == find_runs(str(tmp_path))
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "config.json").write_text("{}")
    assert len(find_runs(tmp_path)) == 2
    with pytest.raises(RequestError, match="is no folder"):
        find_runs(tmp_path / "nowhere")
    assert find_runs([]) == []


def test_a_lock_is_free_once_released_though_a_forked_process_still_holds_its_copy(tmp_path):
    with create(tmp_path) as run:
        copy = os.dup(run._lock._descriptor)  # what a child has between fork and exec
    try:
        create(tmp_path).close()
    finally:
        os.close(copy)
