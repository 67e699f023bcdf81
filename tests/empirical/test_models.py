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
@pytest.mark.parametrize("head", [("linear", 1), ("etf", 1), ("polygon", 1), ("deep", 3)])
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


def test_polygon_head_is_a_regular_polygon_in_a_plane_and_stays():
    classifier = build("mlp", architecture(head="polygon"), 0).classifier
    gram = (classifier.weight @ classifier.weight.T).double().numpy()
    angle = 2 * np.pi * (np.arange(5)[:, None] - np.arange(5)) / 5
    assert np.allclose(gram, np.cos(angle), atol=1e-6) and np.linalg.matrix_rank(gram, tol=1e-4) == 2
    assert not classifier.weight.requires_grad and classifier.bias is None


def test_frames_are_turned_uniformly_and_keep_their_cosines():
    from scipy.stats import kstest

    from empirical.models.layers import turned
    from ufm.geometry import simplex_etf

    draw = np.random.default_rng(0)
    entries = np.array([turned(np.eye(1), 3, draw)[0] for _ in range(500)])
    # Archimedes: a coordinate of a uniform point of the sphere is uniform; QR alone leaves one that is never positive
    assert all(kstest(column, "uniform", args=(-1, 2)).pvalue > 0.01 for column in entries.T)
    rows = turned(simplex_etf(4), 9, draw)
    assert np.allclose(rows @ rows.T, (np.eye(4) - 1 / 4) * 4 / 3, atol=1e-12)


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
        ("mlp", {"head": "polygon", "width": 1}, "dimension 2 or more"),
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


@pytest.mark.parametrize("name", [*MODELS])
def test_the_layers_of_every_model_can_be_listed(name):
    """What `empirical layers NAME` prints: the input, blocks, the classifier's input, and the classifier last."""
    from empirical.commands.layers import LayersRequest, layers_of

    if name not in OWN:
        pytest.importorskip("torchvision", reason="torchvision is not installed")
    rows = layers_of(name, LayersRequest())
    names = [row["layer"] for row in rows if row["all"]]
    assert names[0] == "input" and {"penultimate", "logits"} <= set(names) and len(names) >= 5
    assert rows[-1]["note"] == "the classifier" and rows[-1]["dim"] == 10


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *((name, {}) for name in MODELS),
        ("mlp", {"depth": 0}),
        ("mlp", {"width": 7, "depth": 2, "norm": "none"}),
        ("convnet", {"width": 2, "depth": 4}),
        ("convnet", {"head": "deep", "head_depth": 3, "head_activation": "relu", "bias": False}),
    ],
)
def test_the_listed_layers_are_those_of_the_trained_network(name, options):
    """Without options, too: what `empirical layers NAME` prints works in `empirical run --model NAME --layers`."""
    from empirical.commands.layers import LayersRequest, layers_of
    from empirical.data import Split
    from empirical.experiment import Experiment
    from empirical.features import plan_layers
    from empirical.training import build_network

    if name not in OWN:
        pytest.importorskip("torchvision", reason="torchvision is not installed")
    shape = (1, 8, 8) if name in OWN else (3, 32, 32)
    rows = layers_of(name, LayersRequest(shape=shape, **options))
    data = Split(torch.zeros(2, *shape), torch.tensor([0, 9]), 10)
    trained = build_network(Experiment(model=name, **options).resolved(), data, 0)
    plan = plan_layers(trained, data.inputs, [row["layer"] for row in rows])
    assert [(layer.name, layer.dim) for layer in plan.layers] == [(row["layer"], row["dim"]) for row in rows]
    assert plan_layers(trained, data.inputs, "all").names == [row["layer"] for row in rows if row["all"]]


def test_listing_the_layers_of_an_impossible_network_is_one_line():
    from empirical.commands.layers import LayersRequest, layers_of

    with pytest.raises(RequestError, match=r"needs about .* GiB"):
        layers_of("mlp", LayersRequest(width=65536, depth=1000))
    with pytest.raises(RequestError, match="fixed --width"):
        layers_of("resnet18", LayersRequest(depth=3))


@pytest.mark.parametrize(
    ("name", "millions", "features"),
    # He et al. 2016; Simonyan & Zisserman 2015 (bodies); Huang et al. 2017, table 2: 0.2M at depth 40; Touvron et al. 2021: 5M
    [("resnet18", 11.2, 512), ("resnet50", 23.5, 2048), ("vgg13", 9.4, 512), ("densenet40", 0.18, 132), ("vit-tiny", 5.4, 192)],
)
def test_public_architectures_have_the_published_size(name, millions, features):
    pytest.importorskip("torchvision", reason="torchvision is not installed")
    network = build(name, architecture(shape=(3, 32, 32), classes=10), 0)
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions, rel=0.03)
    assert [m for m in network.modules() if isinstance(m, nn.Linear)][-1].in_features == features


def test_a_vision_transformer_cuts_small_images_into_small_patches():
    pytest.importorskip("torchvision", reason="torchvision is not installed")
    patches = {side: build("vit-tiny", architecture(shape=(1, side, side)), 0).patch_size for side in (8, 28, 32, 96)}
    assert patches == {8: 1, 28: 4, 32: 4, 96: 12}


@pytest.mark.parametrize(
    ("name", "changed", "words"),
    [
        ("vgg13", {"shape": (3, 28, 28)}, "halves the image five times"),
        ("densenet40", {"shape": (3, 2, 9)}, "halves the image twice"),
        ("vit-tiny", {"shape": (3, 32, 28)}, "square images"),
        ("vit-tiny", {"norm": "none", "shape": (3, 32, 32)}, "layer norm"),
        ("resnet34", {"norm": "none", "shape": (3, 32, 32)}, "batch norm"),
        ("resnet34", {"shape": (64,)}, "needs images"),
    ],
)
def test_what_a_public_architecture_cannot_take_is_one_line(name, changed, words):
    pytest.importorskip("torchvision", reason="torchvision is not installed")
    with pytest.raises(RequestError, match=words) as caught:
        build(name, architecture(**changed), 0)
    assert "\n" not in str(caught.value)


def test_building_leaves_torchs_generator_alone():
    pytest.importorskip("torchvision", reason="torchvision is not installed")
    torch.manual_seed(5)
    expected = torch.randn(3)
    torch.manual_seed(5)
    build("vit-tiny", architecture(shape=(3, 8, 8)), 0)
    assert torch.equal(torch.randn(3), expected)


# --- timm ----------------------------------------------------------------------------------------------------------


def test_timm_is_asked_for_by_name_and_missed_in_one_line(monkeypatch):
    import sys

    from empirical.experiment import Experiment

    setting = Experiment(model="timm:resnet18", dataset="photos").resolved()
    assert setting.name == "photos-resnet18"
    for wrong in ("timm:", "tim:resnet18"):
        with pytest.raises(RequestError, match="unknown model"):
            Experiment(model=wrong).resolved()
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(RequestError, match=r"pip install 'ufm\[timm\]'"):
        build("timm:resnet18", architecture(shape=(3, 32, 32)), 0)


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224", "convnext_atto"])
def test_timm_models_take_our_heads_and_a_small_image(name):
    timm = pytest.importorskip("timm", reason="timm (extra 'timm') is not installed")
    assert timm.is_model(name)
    shape = {"shape": (3, 32, 32), "classes": 5}
    network = build(f"timm:{name}", architecture(**shape, head="etf"), 0).eval()
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 5)
    (fixed,) = [p for p in network.parameters() if not p.requires_grad]
    assert torch.allclose(fixed @ fixed.T, (torch.eye(5) - 1 / 5) * 5 / 4, atol=1e-6)
    again = build(f"timm:{name}", architecture(**shape, head="etf"), 0)
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize(
    ("name", "shape", "words"),
    [
        ("resnet1", (3, 32, 32), "near: .*resnet1"),
        ("densenet121", (1, 28, 28), "cannot be used"),
        ("resnet18", (64,), "needs images"),
    ],
)
def test_what_timm_cannot_do_is_one_line(name, shape, words):
    pytest.importorskip("timm", reason="timm (extra 'timm') is not installed")
    with pytest.raises(RequestError, match=words) as caught:
        build(f"timm:{name}", architecture(shape=shape), 0)
    assert "\n" not in str(caught.value)
