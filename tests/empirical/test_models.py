"""Architectures: shapes, heads, and initial values that do not depend on torch's generators."""

import numpy as np
import pytest
import torch
from torch import nn

from empirical.models import MODELS, Architecture, build
from ufm.errors import RequestError

OWN = ["mlp", "convnet"]


def architecture(**changed):
    return Architecture(**({"shape": (1, 8, 8), "classes": 5, "width": 12, "depth": 2} | changed))


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize("head", [("linear", 1), ("etf", 1), ("deep", 3)])
@pytest.mark.parametrize("norm", ["batch", "none"])
def test_every_own_model_maps_a_batch_to_logits_and_learns(name, head, norm):
    network = build(name, architecture(head=head[0], head_depth=head[1], norm=norm), 0)
    inputs = torch.linspace(-1, 1, 7 * 64).view(7, 1, 8, 8)
    logits = network(inputs)
    assert logits.shape == (7, 5) and network.classifier.out_features == 5
    logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters() if p.requires_grad and p.ndim > 1)


@pytest.mark.parametrize("name", OWN)
def test_initial_values_follow_the_seed_alone(name):
    torch.manual_seed(1)
    one = build(name, architecture(), 0).state_dict()
    torch.manual_seed(2)
    same, other = build(name, architecture(), 0).state_dict(), build(name, architecture(), 1).state_dict()
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert not torch.equal(one["classifier.weight"], other["classifier.weight"])


def test_initial_law_is_uniform_with_bound_one_over_root_fan_in():
    from scipy.stats import kstest

    weight = build("mlp", architecture(width=200, norm="none"), 0).blocks[1][0].weight.detach().double().flatten()
    assert kstest(weight.numpy() * np.sqrt(200), "uniform", args=(-1, 2)).pvalue > 0.01


def test_depth_counts_hidden_layers_and_the_bias_belongs_to_the_classifier():
    network = build("mlp", architecture(depth=4, bias=False), 0)
    linears = [m for m in network.modules() if isinstance(m, nn.Linear)]
    assert len(linears) == 5 and all(m.bias is None for m in linears)
    assert build("mlp", architecture(depth=0), 0).classifier.in_features == 64
    assert build("mlp", architecture(norm="none"), 0).blocks[0][0].bias is not None


def test_etf_head_is_the_simplex_frame_and_stays():
    classifier = build("mlp", architecture(head="etf"), 0).classifier
    gram = (classifier.weight @ classifier.weight.T).double().numpy()
    assert np.allclose(gram, (np.eye(5) - 1 / 5) * 5 / 4, atol=1e-6)
    assert not classifier.weight.requires_grad and classifier.bias is None


def test_deep_head_has_no_activation():
    network = build("mlp", architecture(head="deep", head_depth=3), 0)
    product = network.classifier.weight @ network.head[1].weight @ network.head[0].weight
    features = torch.randn(3, 12, generator=torch.Generator().manual_seed(0))
    expected = features @ product.T + network.classifier.bias
    assert torch.allclose(network.classifier(network.head(features)), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "changed", "words"),
    [
        ("mpl", {}, "did you mean 'mlp'"),
        ("mlp", {"head": "etf", "width": 3}, "dimension 4 or more"),
        ("mlp", {"head": "deep"}, "--head-depth"),
        ("mlp", {"head_depth": 2}, "--head-depth"),
        ("convnet", {"shape": (64,)}, "needs images"),
        ("convnet", {"depth": 0}, "--depth 1..8"),
        ("mlp", {"norm": "layer"}, "known heads"),
    ],
)
def test_wrong_models_are_one_line(name, changed, words):
    with pytest.raises(RequestError, match=words):
        build(name, architecture(**changed), 0)


@pytest.mark.parametrize("name", [name for name in MODELS if name not in OWN])
def test_public_architectures_fit_small_images(name):
    pytest.importorskip("torchvision", reason="torchvision is not installed")
    network = build(name, architecture(shape=(1, 32, 32), head="deep", head_depth=2), 0).eval()
    assert network(torch.zeros(2, 1, 32, 32)).shape == (2, 5)
    again = build(name, architecture(shape=(1, 32, 32), head="deep", head_depth=2), 0)
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize("changed", [{}, {"head": "etf"}])
def test_init_scale_multiplies_what_is_trained_and_keeps_old_folders(changed):
    from empirical.experiment import Experiment
    from empirical.train import set_up

    def network(**more):
        experiment = Experiment(dataset="gaussian", depth=2, width=8, **changed, **more).resolved()
        return set_up(experiment, 0, torch.device("cpu")).network

    plain, large = (dict(n.named_parameters()) for n in (network(), network(init_scale=8.0)))
    for name, parameter in plain.items():
        scaled = parameter.requires_grad and (parameter.ndim == 2 or name.startswith("classifier"))
        assert torch.equal(large[name], 8 * parameter if scaled else parameter), name
    assert "init_scale" not in Experiment().setting() and Experiment(init_scale=8.0).setting()["init_scale"] == 8.0
