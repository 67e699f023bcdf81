"""What a training is said to take, at the published sizes of the data sets that the presets name."""

import pytest
import torch

from empirical import cost, presets
from empirical.commands.run import Request, read_layers
from empirical.cost import check_room, cost_of, layer_sizes
from empirical.experiment import Experiment
from empirical.models import Architecture, build
from empirical.studies import study
from empirical.training import clock_of
from ufm.errors import RequestError

DIGITS = (5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949)  # of MNIST's train images
# name: (train samples, of the rarest class, classes, test samples, shape of one)
PUBLISHED = {
    "mnist": (sum(DIGITS), min(DIGITS), 10, 10_000, (1, 28, 28)),
    "fashion": (60_000, 6000, 10, 10_000, (1, 28, 28)),
    "cifar10": (50_000, 5000, 10, 10_000, (3, 32, 32)),
    "cifar100": (50_000, 500, 100, 10_000, (3, 32, 32)),
    "svhn": (73_257, 4659, 10, 26_032, (3, 32, 32)),
    "stl10": (5000, 500, 10, 8000, (3, 96, 96)),
}
PRESETS = [f"papyan-{name}" for name in PUBLISHED] + ["zhu-cifar10", "zhu-mnist", "zhu-mnist-mse"]


@pytest.mark.parametrize("name", PRESETS)
def test_the_published_protocols_fit_a_laptops_memory_and_no_last_batch_is_too_small(name):
    experiment = Experiment(**presets.read(name)[1]).resolved()
    train, rarest, classes, test, shape = PUBLISHED[experiment.dataset]
    if experiment.train_per_class is not None:
        assert experiment.train_per_class <= rarest
        train = classes * experiment.train_per_class
    found = cost_of(experiment, shape, classes, test, clock_of(experiment, train))
    assert found.warning is None and found.bytes < 8 * 2**30


@pytest.mark.parametrize(
    ("model", "side"), [("resnet18", 32), ("resnet18", 96), ("densenet40", 96), ("vgg11", 64), ("vit-tiny", 32)]
)
def test_activations_are_estimated_within_a_factor_of_three(model, side):
    """Against the tensors that torch keeps for the gradient, also behind the larger stem of large images."""
    pytest.importorskip("torchvision", reason="torchvision (extra 'vision') is not installed")
    network = build(model, Architecture((3, side, side), 10), 0).train()
    parameters = {p.data_ptr() for p in network.parameters()}
    kept = {}

    def keep(tensor):
        kept[tensor.data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        network(torch.zeros(2, 3, side, side))
    counted = sum(tensor.numel() for place, tensor in kept.items() if place not in parameters) / 2
    ((_, _, estimated),) = layer_sizes(Experiment(dataset="stl10", model=model).resolved(), (3, side, side), 10)
    assert counted / 1.1 < estimated < 3 * counted


# --- a GPU's memory is not the machine's -------------------------------------------------------------------------------

GIB = 2**30


@pytest.fixture
def memory(monkeypatch):
    """Give the machine and its GPU so many bytes."""

    def give(machine, card):
        monkeypatch.setattr(cost, "machine_memory", lambda: machine)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (card // 2, card if device.index == 1 else 1))

    return give


def resnet(batch):
    """About 2 GiB of activations for each 100 images of a batch; 1.2 GB of data."""
    experiment = Experiment(dataset="cifar10", model="resnet18", batch_size=batch).resolved()
    return lambda: cost_of(experiment, (3, 32, 32), 10, 10_000, clock_of(experiment, 50_000))


def test_a_training_on_a_gpu_is_held_against_the_gpus_memory_and_its_data_against_the_machines(memory):
    memory(machine=4 * GIB, card=80 * GIB)
    large = resnet(1000)()
    assert 20 * GIB < large.card < 80 * GIB and 1.5 * GIB < large.host < 2.5 * GIB < large.bytes
    check_room(large, "cuda:1")
    with pytest.raises(RequestError, match=r"needs about \d+ GiB, the machine has 4 GiB"):
        check_room(large, "cpu")
    memory(machine=512 * GIB, card=8 * GIB)
    check_room(large, "cpu")
    with pytest.raises(RequestError, match=r"needs about \d+ GiB, cuda:1 has 8 GiB; use a smaller --width"):
        check_room(large, "cuda:1")
    check_room(resnet(100)(), "cuda:1")
    memory(machine=GIB, card=80 * GIB)
    with pytest.raises(RequestError, match="the machine has 1 GiB"):
        resnet(1000)()


def test_the_command_checks_the_device_it_trains_on(memory, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    chosen = study("collapse")
    given = {"dataset": "gaussian", "width": "4096", "depth": "3", "device": "cuda:1"}
    request = Request.of(chosen, read_layers(chosen, None, None, given), [])
    memory(machine=4 * GIB, card=64 * GIB)
    assert request.describe(as_json=False) == 0
    assert "MiB on cuda:1" in capsys.readouterr().out
    memory(machine=4 * GIB, card=GIB // 4)
    with pytest.raises(RequestError, match=r"cuda:1 has 0\.2 GiB"):
        request.describe(as_json=False)
    with pytest.raises(RequestError, match=r"cuda:1 has 0\.2 GiB"):
        request.execute(as_json=False)
    assert list(tmp_path.iterdir()) == []
