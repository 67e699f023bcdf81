"""What a training is said to take, at the published sizes of the data sets that the presets name."""

import pytest
import torch

from empirical import presets
from empirical.cost import cost_of, layer_sizes
from empirical.experiment import Experiment
from empirical.models import Architecture, build
from empirical.training import clock_of

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
    cost = cost_of(experiment, shape, classes, test, clock_of(experiment, train))
    assert cost.warning is None and cost.bytes < 8 * 2**30


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
