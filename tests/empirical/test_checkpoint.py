"""Checkpoints: what goes in comes out, and damage is found."""

import json
import math

import pytest
import torch

from empirical import checkpoint
from ufm.errors import RunError
from ufm.record import Run, RunWarning


@pytest.fixture
def run(tmp_path):
    with Run.create(tmp_path, "collapse", "test", {"a": 1}, seed=0, environment={}) as opened:
        yield opened


def tree():
    return {
        "network": {"weight": torch.arange(6.0).view(2, 3), "steps": torch.tensor(3)},
        "optimizer": {"state": {0: {"momentum": torch.ones(2), "old": [torch.zeros(1), None]}}, "lr": 0.1},
        "step": 7,
        "wild": [math.inf, -math.inf, 1e-320, True, "text", None],
    }


def same(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other) and one.dtype == other.dtype
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other and type(one) is type(other)


def test_everything_comes_back(run):
    checkpoint.save(run, 1, tree())
    number, found = checkpoint.newest(run)
    assert number == 1 and same(tree(), found)


def test_the_state_of_every_optimiser_comes_back(run):
    for number, kind in enumerate((torch.optim.SGD, torch.optim.Adam, torch.optim.LBFGS), 1):
        weight = torch.nn.Parameter(torch.arange(3.0))
        optimiser = kind([weight], lr=0.1)
        optimiser.step(lambda w=weight, o=optimiser: (o.zero_grad(), (w**4).sum().backward(), (w**4).sum())[-1])
        checkpoint.save(run, number, {"state": optimiser.state_dict()})
        found = checkpoint.load(run, number)["state"]
        again = kind([torch.nn.Parameter(weight.detach().clone())], lr=0.1)
        again.load_state_dict(found)
        assert found["param_groups"][0].keys() == optimiser.state_dict()["param_groups"][0].keys()


def test_what_is_neither_tensor_nor_plain_value_is_refused(run):
    with pytest.raises(TypeError, match=r"state\.bad"):
        checkpoint.save(run, 1, {"bad": object()})


def test_the_two_newest_are_kept(run):
    for number in range(1, 5):
        checkpoint.save(run, number, {"step": number})
    assert checkpoint.numbers(run) == [3, 4]
    assert len(list(run.path.glob("checkpoint-*"))) == 4


def damage_tail(path):
    path.write_bytes(path.read_bytes()[:-9])


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def remove(path):
    path.unlink()


@pytest.mark.parametrize("harm", [damage_tail, flip, remove])
@pytest.mark.parametrize("ending", ["safetensors", "json"])
def test_a_bad_newest_falls_back_with_a_warning(run, harm, ending):
    checkpoint.save(run, 1, tree())
    checkpoint.save(run, 2, tree() | {"step": 8})
    harm(run.path / f"checkpoint-2.{ending}")
    if harm is remove and ending == "json":  # without its JSON a pair was never finished
        assert checkpoint.newest(run)[1]["step"] == 7
        return
    with pytest.warns(RunWarning, match="checkpoint-2"):
        number, found = checkpoint.newest(run)
    assert number == 1 and found["step"] == 7


def test_two_bad_checkpoints_are_an_error_naming_them(run):
    for number in (1, 2):
        checkpoint.save(run, number, tree())
        flip(run.path / f"checkpoint-{number}.safetensors")
    with pytest.raises(RunError, match=r"checkpoint-2\.safetensors.*checkpoint-1\.safetensors"):
        checkpoint.newest(run)


def test_every_flipped_bit_is_noticed(run):
    checkpoint.save(run, 1, {"weight": torch.arange(4.0), "step": 3})
    for ending in ("safetensors", "json"):
        path = run.path / f"checkpoint-1.{ending}"
        data = path.read_bytes()
        for position in range(0, len(data), 7):
            harmed = bytearray(data)
            harmed[position] ^= 1 << (position % 8)
            path.write_bytes(bytes(harmed))
            with pytest.raises(RunError):
                checkpoint.newest(run)
        path.write_bytes(data)
    assert checkpoint.newest(run)[1]["step"] == 3


def test_a_newer_format_is_refused(run):
    import hashlib

    checkpoint.save(run, 1, {"step": 3})
    body = json.dumps(json.loads(run.read_json("checkpoint-1.json")["body"]) | {"format": 99})
    run.write_json("checkpoint-1.json", {"sha256": hashlib.sha256(body.encode()).hexdigest(), "body": body})
    with pytest.raises(RunError, match="format 99"):
        checkpoint.newest(run)


def test_random_states_come_back():
    here = torch.device("cpu")
    before = checkpoint.random_states(here)
    first = torch.rand(3)
    checkpoint.set_random_states(before, here)
    assert set(before) == {"cpu"} and torch.equal(first, torch.rand(3))


def test_the_random_state_of_a_gpu_is_that_of_the_trainings_own(monkeypatch):
    """On a machine with another number of GPUs too, and from a checkpoint that kept the states of all of them."""
    states = {number: torch.tensor([number], dtype=torch.uint8) for number in range(4)}
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: states[device.index])
    put = []
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: put.append((int(state), device.index)))
    kept = checkpoint.random_states(torch.device("cuda", 3))
    assert kept["cuda"] == [states[3]]
    checkpoint.set_random_states(kept, torch.device("cuda", 0))
    checkpoint.set_random_states(kept, torch.device("cpu"))
    checkpoint.set_random_states(kept | {"cuda": list(states.values())}, torch.device("cuda", 2))
    checkpoint.set_random_states({"cpu": kept["cpu"]}, torch.device("cuda", 1))
    assert put == [(3, 0), (2, 2)]


def test_saves_are_at_most_a_minute_apart_and_cost_at_most_two_per_cent(monkeypatch):
    monkeypatch.delenv("UFM_CHECKPOINT_SECONDS", raising=False)
    now = [0.0]
    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: now[0])
    timer = checkpoint.Timer()
    for seconds, interval in ((0.01, 5.0), (0.5, 25.0), (10.0, 60.0)):
        timer.saved(seconds)
        now[0] += interval - 1e-6
        assert not timer.due()
        now[0] += 2e-6
        assert timer.due()
