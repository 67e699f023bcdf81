"""The Recorder in a plain loop: what it writes, that it changes nothing, and that it goes on."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import empirical
from empirical.recorder import log_spaced
from ufm.errors import RequestError, RunError
from ufm.record import Run

CLASSES = 3


def data(samples, seed):
    draw = torch.Generator().manual_seed(seed)
    y = torch.arange(samples) % CLASSES
    return 3 * torch.eye(CLASSES, 6)[y] + torch.randn(samples, 6, generator=draw), y


def loaders():
    """Shuffling draws from torch's global generator, as in most people's scripts."""
    train, test = TensorDataset(*data(60, 1)), TensorDataset(*data(30, 2))
    return DataLoader(train, batch_size=20, shuffle=True), DataLoader(test, batch_size=30)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, CLASSES))


def fit(model, batches, epochs, recorder=None):
    """A plain loop, with two added lines."""
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    if recorder:
        recorder.epoch(0)
    for epoch in range(1, epochs + 1):
        model.train()
        for x, y in batches:
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimiser.step()
            if recorder:
                recorder.step()
        if recorder:
            recorder.epoch(epoch, {"lr": optimiser.param_groups[0]["lr"]})


def test_a_plain_loop_end_to_end(tmp_path):
    model, (train, test) = network(), loaders()
    with empirical.Recorder(tmp_path, model, train, test, name="plain", seed=2, at=[0, 2], layers="all") as recorder:
        fit(model, train, 5, recorder)
    run = Run.open(recorder.path)
    run.verify()
    assert run.done and run.seed == 2 and run.read_json("result.json")["epoch"] == 5
    assert recorder.path.parent.parent == tmp_path / "measure" and run.config["layers"] == ["input", "penultimate", "logits"]
    rows = run.rows("metrics.jsonl")
    assert [e for e, _ in itertools.groupby(r["epoch"] for r in rows)] == [0, 2, 5]  # the final state is always measured
    assert {(r["epoch"], r["step"]) for r in rows} == {(0, 0), (2, 6), (5, 15)}
    assert {r["seed"] for r in rows} == {2}
    assert [(r["layer"], r["epoch"], r["value"]) for r in rows if r["metric"] == "lr"] == [
        ("network", 2, 0.1),
        ("network", 5, 0.1),
    ]
    now = empirical.measure(model, train, test)
    written = [r for r in rows if r["epoch"] == 5 and r["metric"] != "lr"]
    assert len(written) == len(now)
    for was, row in zip(written, now, strict=True):
        assert {k: was[k] for k in ("split", "layer", "centres", "metric")} == {
            k: v for k, v in row.items() if k in was and k != "value"
        }
        assert was["value"] == pytest.approx(row["value"], rel=1e-4, abs=1e-6)  # float32 features in another order
    value = {
        r["epoch"]: r["value"]
        for r in rows
        if r["metric"] == "nc1_pinv" and r["layer"] == "penultimate" and r["split"] == "train"
    }
    assert value[5] < value[0]  # it did learn
    np.testing.assert_array_equal(run.read_tensors("tensors.safetensors")["weight"], model[4].weight.detach().double().numpy())


def test_recording_does_not_change_the_training(tmp_path):
    finals = []
    for record in (False, True):
        model, (train, test) = network(), loaders()
        if record:
            with empirical.Recorder(tmp_path, model, train, test, at="every") as recorder:
                fit(model, train, 4, recorder)
        else:
            fit(model, train, 4)
        finals.append((model.state_dict(), torch.get_rng_state()))
    (plain, state), (recorded, other) = finals
    assert all(torch.equal(plain[key], recorded[key]) for key in plain) and torch.equal(state, other)


@pytest.mark.parametrize("inside", [False, True], ids=["after", "inside"])
def test_workers_that_persist_are_left_alone(tmp_path, inside):
    """Such a loader has one iterator for good: asked for again, it would end the caller's epoch and draw a new order."""
    seen = []
    for record in (False, True):
        train, test = (TensorDataset(*data(n, n)) for n in (60, 30))
        options = {"num_workers": 1, "persistent_workers": True, "generator": torch.Generator().manual_seed(3)}
        batches, model = DataLoader(train, batch_size=20, shuffle=True, **options), network()
        recorder = empirical.Recorder(tmp_path, model, batches, DataLoader(test, batch_size=30), at="every") if record else None
        inputs = []
        for epoch in (1, 2):
            for number, (x, _) in enumerate(batches):
                inputs.append(x)
                if recorder and inside and number == 1:
                    recorder.epoch(epoch)
            if recorder and not inside:
                recorder.epoch(epoch)
        if recorder:
            recorder.close()
        seen.append(torch.cat(inputs))
        assert len(inputs) == 6
    assert torch.equal(*seen)


def test_persistent_workers_of_a_loader_with_its_own_iterator_are_refused(tmp_path):
    class Own(DataLoader):
        def __iter__(self):
            return super().__iter__()

    train, test = (TensorDataset(*data(n, n)) for n in (60, 30))
    batches = Own(train, batch_size=20, num_workers=1, persistent_workers=True)
    with pytest.raises(RequestError, match="persistent_workers=False"):
        empirical.Recorder(tmp_path, network(), batches, DataLoader(test, batch_size=30))
    assert not list(tmp_path.iterdir())


def test_an_interrupted_loop_goes_on(tmp_path):
    model, (train, test) = network(), loaders()
    keep = {}
    with pytest.raises(KeyError), empirical.Recorder(tmp_path, model, train, test, at="every") as recorder:
        fit(model, train, 3, recorder)
        keep["epoch 3"] = [r for r in Run.open(recorder.path).rows("metrics.jsonl") if r["epoch"] <= 2]
        raise KeyError
    assert not Run.open(recorder.path).done and recorder.path.joinpath("metrics.jsonl").exists()
    with empirical.Recorder(tmp_path, model, train, test, at="every") as again:
        assert again.path == recorder.path and again.recorded == [0, 1, 2, 3]
        again.steps = 9
        again.epoch(3)  # the checkpoint was at epoch 2, so epoch 3 comes again
        again.epoch(4)
    run = Run.open(again.path)
    rows = run.rows("metrics.jsonl")
    assert run.done and [e for e, _ in itertools.groupby(r["epoch"] for r in rows)] == [0, 1, 2, 3, 4]
    assert rows[: len(keep["epoch 3"])] == keep["epoch 3"]
    points = [(r["epoch"], r["split"], r["layer"], r["centres"], r["metric"]) for r in rows]
    assert len(set(points)) == len(points)
    before = again.path.joinpath("metrics.jsonl").read_bytes()
    empirical.Recorder(tmp_path, model, train, test, at="every").close()  # opened and closed: still done, nothing changed
    assert Run.open(again.path).done and again.path.joinpath("metrics.jsonl").read_bytes() == before


def test_a_diverged_network_is_written_down(tmp_path):
    model, (train, test) = network(), loaders()
    with pytest.raises(RunError, match="not finite"), empirical.Recorder(tmp_path, model, train, test) as recorder:
        recorder.epoch(0)
        with torch.no_grad():
            model[0].weight.fill_(torch.inf)
        recorder.epoch(1)
    run = Run.open(recorder.path)
    assert not run.done and run.read_json("result.json")["status"].startswith("diverged: ")
    assert {r["epoch"] for r in run.rows("metrics.jsonl")} == {0}


def test_one_writer_and_separate_seeds(tmp_path):
    model, (train, test) = network(), loaders()
    with empirical.Recorder(tmp_path, model, train, test, seed=0) as first:
        with pytest.raises(RunError):
            empirical.Recorder(tmp_path, model, train, test, seed=0)
        with empirical.Recorder(tmp_path, model, train, test, seed=1) as second:
            assert first.path.parent == second.path.parent and first.path != second.path
        with empirical.Recorder(tmp_path, model, train, test, config={"lr": 0.1}) as other:
            assert other.path.parent != first.path.parent  # another setting
    with pytest.raises(RequestError, match="closed"):
        first.epoch(0)


def test_wrong_requests_create_nothing(tmp_path):
    model, (train, test) = network(), loaders()
    wrong = [
        ({"at": "sometimes"}, "not known"),
        ({"at": [-1]}, "epochs >= 0"),
        ({"at": []}, "epochs >= 0"),
        ({"layers": "nowhere"}, "unknown layer"),
        ({"name": "../up"}, "name"),
        ({"seed": -1}, "seed"),
        ({"config": {"lr": float("nan")}}, "strict JSON"),
        ({"classifier": "9"}, "classifier"),
    ]
    for options, message in wrong:
        with pytest.raises(RequestError, match=message):
            empirical.Recorder(tmp_path / "out", model, train, test, **options)
    with pytest.raises(RequestError, match="used up"):
        empirical.Recorder(tmp_path / "out", model, train, iter(test))
    assert not (tmp_path / "out").exists()
    with empirical.Recorder(tmp_path / "out", model, train, test) as recorder, pytest.raises(RequestError, match="epoch -1"):
        recorder.epoch(-1)


def test_log_spacing_needs_no_end():
    due = [epoch for epoch in range(1025) if log_spaced(epoch)]
    assert due[:12] == [0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 13]
    assert {64, 128, 256, 512, 1024} < set(due) and len(due) < 40
    ratios = [b / a for a, b in itertools.pairwise(due[8:])]
    assert max(ratios) < 1.3 and min(ratios) >= 1.1


def test_a_recorded_head_of_several_maps_is_drawn_beside_its_theory(tmp_path):
    """What the figures cannot see in the network, its user says in `config`; without it the reason is named."""
    from compare.figures import draw
    from compare.load import load
    from compare.style import Style

    told = {"head": "deep", "head_activation": "relu", "bias": False, "loss": "mse", "width": 8, "weight_decay": 1e-3}
    notes = {}
    for name, config in (("told", told), ("untold", {})):
        torch.manual_seed(0)
        maps = [part for _ in range(2) for part in (nn.Linear(8, 8, bias=False), nn.ReLU())]
        model, (train, test) = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), *maps, nn.Linear(8, CLASSES, bias=False)), loaders()
        with empirical.Recorder(tmp_path, model, train, test, name=name, at=[0, 2], config=config) as recorder:
            fit(model, train, 2, recorder)
        drawing = draw("layers", load(recorder.path), Style.of("icml"))
        notes[name] = " ".join(drawing.notes), " ".join(map(str, drawing.rows))
    assert "Theory: DNC ranks [3, 3, 3]" in notes["told"][0] and "DNC" in notes["told"][1]
    assert "does not say the loss and the activation of its head" in notes["untold"][0]
    assert "DNC" not in notes["untold"][1]
