"""Several processes train one network: torchrun on two, one of them killed and the training taken up again, against one."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from command_line import Shell
from torch import nn

from empirical import distributed
from empirical.__main__ import _load
from empirical.distributed import ALONE, GlobalBatchNorm, Team
from empirical.experiment import Experiment
from empirical.runner import Job, work

EXACT_EPOCHS = 2  # later the order of sums has grown to where it shows
SETTING = {
    "dataset": "gaussian",
    "width": 12,
    "depth": 2,
    "train_per_class": 37,
    "imbalance": 3.0,
    "minority": 2,
    "test_per_class": 11,
    "batch_size": 25,
    "epochs": 100,
    "measure_at": "1,2,50",
    "layers": "all",
}
RUN = ["run", "collapse", *[f"--{key.replace('_', '-')}={value}" for key, value in SETTING.items()], "--device=cpu"]


def torchrun(*words):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", "-m", "empirical", *words]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"UFM_CHECKPOINT_SECONDS": "0.1"},
        start_new_session=True,
    )


def process_of_rank(parent, rank):
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return next(int(pid) for pid in children if f"RANK={rank}\0" in Path(f"/proc/{pid}/environ").read_text().replace("_RANK", ""))


def end_all(parent):
    """End torchrun and the processes it started, which its own end would leave behind."""
    if parent.poll() is None:
        children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
        for pid in (parent.pid, *map(int, children)):
            os.kill(pid, signal.SIGKILL)
        parent.communicate()


def rows_of(root):
    (file,) = Path(root).glob("collapse/*/seed-0/metrics.jsonl")
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.mark.skipif(not Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").exists(), reason="needs Linux's /proc")
def test_two_processes_give_the_numbers_of_one_and_a_lost_one_ends_both(tmp_path):
    first = torchrun(*RUN, f"--out={tmp_path / 'two'}")
    try:
        end = time.monotonic() + 120
        while not list(tmp_path.glob("two/collapse/*/seed-0/checkpoint-2.json")):
            assert first.poll() is None and time.monotonic() < end, first.communicate()
            time.sleep(0.02)
        os.kill(process_of_rank(first.pid, 1), signal.SIGKILL)
        _, err = first.communicate(timeout=120)
    finally:
        end_all(first)
    said = [line for line in err.splitlines() if line.startswith("error: ")]
    assert first.returncode == 1 and len(said) == 1 and "another process of this training was lost" in said[0], err
    second = torchrun(*RUN, f"--out={tmp_path / 'two'}", "--json")
    try:
        out, err = second.communicate(timeout=120)
    finally:
        end_all(second)
    assert second.returncode == 0, err
    assert json.loads(out)["runs"][0]["status"] == "finished"
    (folder,) = tmp_path.glob("two/collapse/*/seed-0")
    assert len(json.loads((folder / "result.json").read_text())["resumed_at"]) == 1
    work(Job("collapse", Experiment(**SETTING).resolved(), 0, str(tmp_path / "one"), "cpu"))
    two, one = rows_of(tmp_path / "two"), rows_of(tmp_path / "one")
    assert [{**row, "value": 0} for row in two] == [{**row, "value": 0} for row in one]
    early = [(a, b) for a, b in zip(two, one, strict=True) if a["epoch"] <= EXACT_EPOCHS]
    assert len(early) > 300
    for a, b in early:
        assert a["value"] == pytest.approx(b["value"], rel=1e-6, abs=1e-9), a


# --- one process -----------------------------------------------------------------------------------------------------


def test_shares_cover_everything_once():
    for samples in (1, 2, 3, 7, 100):
        shares = [Team(rank, 3).share(samples) for rank in range(3)]
        assert [i for first, last in shares for i in range(first, last)] == list(range(samples))
        assert max(b - a for a, b in shares) - min(b - a for a, b in shares) <= 1


def test_alone_nothing_is_exchanged():
    values = torch.arange(3.0)
    assert ALONE.total(values) is values and ALONE.joined(values, 3) is values
    assert ALONE.sent(b"x") == b"x" and ALONE.said([1]) == [1] and ALONE.agreed(15, True) == (15, True)


@pytest.mark.parametrize("shape", [(6, 5), (4, 5, 3, 2)])
def test_batch_norm_over_one_process_is_batch_norm(monkeypatch, shape):
    """With one process the sum over processes is the sum itself: torch's own layer is the oracle, gradients included."""
    monkeypatch.setattr(distributed.dist, "all_reduce", lambda values: None)
    draw = torch.Generator().manual_seed(0)
    plain = (nn.BatchNorm1d if len(shape) == 2 else nn.BatchNorm2d)(5).double()
    with torch.no_grad():
        plain.weight.copy_(torch.rand(5, generator=draw))
    ours = GlobalBatchNorm(type(plain)(5).double())
    ours.load_state_dict(plain.state_dict())
    x = torch.randn(shape, generator=draw, dtype=torch.float64)
    seen = []
    for norm in (plain, ours):
        given = x.clone().requires_grad_()
        norm(given).pow(3).sum().backward()
        seen.append([given.grad, norm.weight.grad, norm.bias.grad, *norm.buffers(), norm.eval()(x)])
    for a, b in zip(*seen, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


ONE_OF_TWO = """
import sys
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
import torch.distributed as dist
from empirical.distributed import Team, spread

rank, store, out = int(sys.argv[1]), sys.argv[2], sys.argv[3]
dist.init_process_group("gloo", init_method="file://" + store, rank=rank, world_size=2)
torch.manual_seed(0)
x, network = torch.randn(9, 3) * 2 + 5, nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2))
network, wrapped = spread(network, Team(rank, 2, torch.device("cpu")))
first, last = Team(rank, 2).share(9)
torch.compile(wrapped, dynamic=False, backend="aot_eager")(x[first:last]).pow(3).sum().backward()
if rank == 0:
    torch.save([2 * p.grad for p in network.parameters()], out)
dist.barrier()
dist.destroy_process_group()
"""


def test_compiled_batch_norm_over_two_processes_has_the_gradient_of_the_whole_batch(tmp_path):
    """Torch 2.11 compiles the sum over processes in a backward pass away; the oracle is torch's own layer on all samples."""
    words = [str(tmp_path / "store"), str(tmp_path / "gradients.pt")]
    ranks = [subprocess.Popen([sys.executable, "-c", ONE_OF_TWO, str(rank), *words], stderr=subprocess.PIPE) for rank in (0, 1)]
    try:
        errors = [process.communicate(timeout=120)[1].decode() for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    assert [process.returncode for process in ranks] == [0, 0], errors
    torch.manual_seed(0)
    x, network = torch.randn(9, 3) * 2 + 5, nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2))
    network(x).pow(3).sum().backward()
    found = torch.load(tmp_path / "gradients.pt", weights_only=True)
    for gradient, parameter in zip(found, network.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("of", [GlobalBatchNorm, nn.SyncBatchNorm.convert_sync_batchnorm], ids=["cpu", "cuda"])
def test_a_copy_that_every_process_trains_on_all_samples_has_batch_norm_of_its_own(monkeypatch, of):
    """As `probe_finetune` does: over both processes the same samples would count twice in the running variance."""
    monkeypatch.setattr(distributed.dist, "all_reduce", lambda values: pytest.fail("asked the other processes"))
    x = torch.randn(6, 5, 3, 2, generator=torch.Generator().manual_seed(0))
    plain, shared = nn.Sequential(nn.BatchNorm2d(5)), nn.Sequential(of(nn.BatchNorm2d(5)))
    own = distributed.unspread(shared)
    torch.testing.assert_close(own(x), plain(x), rtol=0, atol=0)
    assert all(torch.equal(a, b) for a, b in zip(own.state_dict().values(), plain.state_dict().values(), strict=True))


@pytest.fixture
def two_processes(tmp_path, monkeypatch, capsys):
    """A command line that torchrun has started as the first of two processes."""
    monkeypatch.chdir(tmp_path)
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    return Shell("empirical", _load, tmp_path, capsys)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--workers=2"], "--workers 2"),
        (["--cluster=tcp://localhost:1"], "--cluster"),
        (["--shard=0/2"], "--shard"),
        (["--stack=on"], "--stack"),
        (["--optimizer=lbfgs"], "lbfgs"),
        (["--batch-size=1", "--norm=none"], "--batch-size 1"),
        (["--device=cuda:0"], "--device cuda:0"),
    ],
)
def test_what_torchrun_does_not_go_together_with_is_refused_in_one_line(two_processes, words, said):
    assert said in two_processes.refuses("run", "collapse", "--dataset=gaussian", *words)


def test_without_torchrun_there_is_no_team(monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    with distributed.started("cpu") as found:
        assert found is ALONE and distributed.team() is ALONE
