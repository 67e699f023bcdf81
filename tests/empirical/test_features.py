"""Features taken by hooks against the same features computed by hand."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from empirical import finder
from empirical.features import Taps, classifier_weight, evaluating, list_layers, plan_layers, pooled
from empirical.trace import Flow
from ufm.errors import RequestError, RunError


def take(model, inputs, layers, classifier=None):
    plan = plan_layers(model, inputs[:2], layers, classifier)
    found = {}

    def keep(layer, raw):
        found[layer.name] = pooled(raw, layer.pooling).clone()

    with evaluating(model), Taps(model, plan, keep) as taps:
        taps.forward(inputs)
    for layer in plan.layers:
        assert found[layer.name].shape == (len(inputs), layer.dim)
    return found


def settle(model, *shape):
    """Give batch norm running statistics that are not the initial ones."""
    torch.manual_seed(1)
    with torch.no_grad():
        for _ in range(3):
            model.train()(2 * torch.randn(8, *shape) + 1)
    return model


class Residual(nn.Module):
    """One basic block: the shortcut is added before the last activation, and the activation module is used twice."""

    def __init__(self, width):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)

    def forward(self, x):
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += x
        return self.relu(out)


class ResNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
        self.stage = nn.Sequential(Residual(4), Residual(4))
        self.pool, self.head = nn.AdaptiveAvgPool2d(1), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.pool(self.stage(self.stem(x))).flatten(1))


class Functional(nn.Module):
    """LeNet style: activations, pooling and dropout are functions, so no hook sees them."""

    def __init__(self):
        super().__init__()
        self.c1, self.norm, self.f1 = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Linear(4 * 9, 6)
        self.f2 = nn.Linear(6, 5)

    def forward(self, x):
        x = F.max_pool2d(F.relu_(self.norm(self.c1(x))), 2)
        x = F.dropout(torch.tanh(self.f1(x.flatten(1))), training=self.training)
        return F.log_softmax(self.f2(x), dim=1)


class Encoder(nn.Module):
    def __init__(self, pool):
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True, norm_first=True)
        self.embed, self.body = nn.Linear(5, 8), nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head, self.pool = nn.Linear(8, 3), pool

    def forward(self, x):
        return self.head(self.pool(self.body(self.embed(x))))


def test_mlp_with_batch_norm():
    model = settle(
        nn.Sequential(
            nn.Flatten(),
            nn.Linear(12, 7),
            nn.BatchNorm1d(7),
            nn.ReLU(),
            nn.Linear(7, 6),
            nn.ReLU(inplace=True),
            nn.Linear(6, 3),
        ),
        3,
        4,
    )
    x = torch.randn(5, 3, 4)
    found = take(model, x, "all")
    assert list(found) == ["input", "1", "penultimate", "logits"]  # block 4 is what the classifier sees
    linear, norm = model[1], model[2]
    pre = x.flatten(1) @ linear.weight.T + linear.bias
    hidden = ((pre - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * norm.weight + norm.bias).clamp(min=0)
    last = (hidden @ model[4].weight.T + model[4].bias).clamp(min=0)
    torch.testing.assert_close(found["input"], x.reshape(5, 12))
    torch.testing.assert_close(found["1"], hidden)
    torch.testing.assert_close(found["penultimate"], last)
    torch.testing.assert_close(found["logits"], last @ model[6].weight.T + model[6].bias)
    assert (found["penultimate"] == 0).any() and (found["penultimate"] > 0).any()
    torch.testing.assert_close(take(model, x, "4")["4"], last)
    weight, bias = classifier_weight(model, plan_layers(model, x[:2]))
    assert torch.equal(weight, model[6].weight) and torch.equal(bias, model[6].bias)


def test_a_named_norm_or_activation_stands_for_what_it_returns():
    model = settle(nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(inplace=True), nn.Linear(6, 2)), 4)
    x = torch.randn(9, 4)
    found = take(model, x, "0,1,2")
    with evaluating(model):
        norm = model[1](model[0](x))
    torch.testing.assert_close(found["1"], norm)  # taken before the in-place ReLU overwrites it
    assert (norm < 0).any()
    torch.testing.assert_close(found["0"], norm.clamp(min=0))
    torch.testing.assert_close(found["2"], norm.clamp(min=0))


def test_residual_network():
    model = settle(ResNet(), 3, 6, 6)
    x = torch.randn(4, 3, 6, 6)
    found = take(model, x, "all")
    assert list(found) == ["input", "stem", "stage.0", "penultimate", "logits"]
    with evaluating(model):
        stem = F.relu(model.stem[1](model.stem[0](x)))
        blocks, out = [], stem
        for block in model.stage:
            inner = F.relu(block.bn1(block.conv1(out)))
            out = F.relu(block.bn2(block.conv2(inner)) + out)
            blocks.append((inner, out))
    torch.testing.assert_close(found["stem"], stem.mean((2, 3)))
    torch.testing.assert_close(found["stage.0"], blocks[0][1].mean((2, 3)))
    torch.testing.assert_close(found["penultimate"], blocks[1][1].mean((2, 3)))
    inside = take(model, x, ["stage.1.conv1", "stage.1.conv2", "stage.1:flat", "stem.0"])
    torch.testing.assert_close(inside["stage.1.conv1"], blocks[1][0].mean((2, 3)))
    with evaluating(model):
        second = model.stage[1].bn2(model.stage[1].conv2(blocks[1][0]))  # the sum is not part of conv2's block
    torch.testing.assert_close(inside["stage.1.conv2"], second.mean((2, 3)))
    torch.testing.assert_close(inside["stage.1:flat"], blocks[1][1].flatten(1))
    torch.testing.assert_close(inside["stem.0"], found["stem"])


def test_functional_activations_are_followed():
    model = settle(Functional(), 1, 8, 8)
    x = torch.randn(4, 1, 8, 8)
    found = take(model, x, "c1,c1:flat,f1,penultimate,logits")
    with evaluating(model):
        maps = F.relu(model.norm(model.c1(x)))
        hidden = torch.tanh(model.f1(F.max_pool2d(maps, 2).flatten(1)))
        logits = F.log_softmax(model.f2(hidden), dim=1)
    torch.testing.assert_close(found["c1"], maps.mean((2, 3)))
    torch.testing.assert_close(found["c1:flat"], maps.flatten(1))
    torch.testing.assert_close(found["f1"], hidden)
    torch.testing.assert_close(found["penultimate"], hidden)
    torch.testing.assert_close(found["logits"], logits)


def test_tokens_are_averaged_or_the_first_is_taken():
    model = Encoder(lambda tokens: tokens[:, 0])
    x = torch.randn(3, 6, 5)
    found = take(model, x, ["body.layers.0", "body.layers.0:cls", "body.layers.0:flat", "penultimate"])
    with evaluating(model):
        first = model.body.layers[0](model.embed(x))
        second = model.body.layers[1](first)
    torch.testing.assert_close(found["body.layers.0"], first.mean(1))
    torch.testing.assert_close(found["body.layers.0:cls"], first[:, 0])
    torch.testing.assert_close(found["body.layers.0:flat"], first.flatten(1))
    torch.testing.assert_close(found["penultimate"], second[:, 0])
    assert take(model, x, "all").keys() == {"input", "embed", "body.layers.0", "body.layers.1", "penultimate", "logits"}


def test_sequences_of_a_one_dimensional_convolution_are_averaged_over_length():
    model = nn.Sequential(nn.Conv1d(2, 5, 3), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(5, 2))
    x = torch.randn(3, 2, 9)
    torch.testing.assert_close(take(model, x, "0")["0"], model[0](x).clamp(min=0).mean(2).detach())


def test_nothing_is_left_behind():
    model = settle(ResNet(), 3, 6, 6)
    model.train()
    model.stage[0].bn1.eval()  # a frozen norm keeps its own mode
    before = {k: v.clone() for k, v in model.state_dict().items()}
    modes = [m.training for m in model.modules()]
    random_state = torch.get_rng_state()
    take(model, torch.ones(4, 3, 6, 6), "all")
    with pytest.raises(RequestError):
        take(model, torch.ones(4, 3, 6, 6), "nowhere")
    with pytest.raises(RuntimeError):
        plan_layers(model, torch.ones(2, 1, 6, 6), "all")  # the network itself refuses this input
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random_state)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_list_layers_names_blocks_and_their_twins():
    rows = {row["layer"]: row for row in list_layers(ResNet(), torch.randn(2, 3, 6, 6))}
    assert [n for n, r in rows.items() if r["measured_by_all"]] == ["input", "stem", "stage.0", "penultimate", "logits"]
    assert rows["stage.1"]["note"] == "the same features as penultimate"
    assert rows["stem.0"]["through"] == "batch_norm + relu"
    assert (rows["stage.0"]["shape"], rows["stage.0"]["dim"], rows["stage.0"]["pooling"]) == ("4x4x4", 4, "space")


def test_the_classifier_may_be_named():
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3), nn.Linear(3, 3))
    x = torch.randn(6, 4)
    hidden = model[0](x).clamp(min=0).detach()
    torch.testing.assert_close(take(model, x, "last", classifier="2")["penultimate"], hidden)
    torch.testing.assert_close(take(model, x, "last")["penultimate"], model[2](hidden).detach())


def test_wrong_requests_are_one_line():
    model, x = ResNet(), torch.randn(2, 3, 6, 6)
    with pytest.raises(RequestError, match=r"unknown layer 'stage.2'; did you mean 'stage.[01]'"):
        plan_layers(model, x, "stage.2")
    with pytest.raises(RequestError, match="did you mean 'penultimate'"):
        plan_layers(model, x, "penultmate")
    with pytest.raises(RequestError, match="unknown pooling 'max'"):
        plan_layers(model, x, "stem:max")
    with pytest.raises(RequestError, match="no tokens"):
        plan_layers(model, x, "penultimate:cls")
    with pytest.raises(RequestError, match="twice"):
        plan_layers(model, x, "stem,stem")
    with pytest.raises(RequestError, match="names no layer"):
        plan_layers(model, x, [])
    with pytest.raises(RequestError, match=r"classifier 'haed'.*did you mean 'head'"):
        plan_layers(model, x, "last", "haed")
    with pytest.raises(RequestError, match="must return logits"):
        plan_layers(nn.Conv2d(3, 4, 3), x)
    with pytest.raises(RequestError, match="one logit"):
        plan_layers(nn.Linear(3, 1), torch.randn(2, 3))
    bodiless = nn.Sequential(nn.Conv2d(3, 2, 6), nn.Flatten())
    assert plan_layers(bodiless, x, "all").names == ["input", "0", "logits"]
    with pytest.raises(RequestError, match="no linear layer"):
        plan_layers(bodiless, x, "last")


def test_a_path_that_depends_on_the_data_is_noticed():
    class Sometimes(nn.Module):
        def __init__(self):
            super().__init__()
            self.extra, self.head = nn.Linear(3, 3), nn.Linear(3, 2)

        def forward(self, x):
            return self.head(self.extra(x) if x[0, 0] > 0 else x)

    model = Sometimes()
    plan = plan_layers(model, torch.ones(2, 3), "extra")
    with evaluating(model), Taps(model, plan, lambda layer, raw: None) as taps, pytest.raises(RunError, match="not reached"):
        taps.forward(-torch.ones(2, 3))


def test_modules_named_like_the_keys_do_not_shadow_them():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.input, self.network, self.logits = nn.Linear(4, 5), Residual(1), nn.Linear(5, 3)

        def forward(self, x):
            x = self.network(self.input(x)[:, None, :, None])[:, 0, :, 0]
            return self.logits(x)

    model, x = Named(), torch.randn(6, 4)
    found = take(model, x, "all")
    assert len(found) == len(set(found)) and "network" not in found
    torch.testing.assert_close(found["input"], x)
    torch.testing.assert_close(found["logits"], model.eval()(x).detach())
    with pytest.raises(RequestError, match="whole network"):
        take(model, x, "network")
    assert {row["layer"] for row in list_layers(model, x)} >= {"input", "penultimate", "logits"}


class Wrapped(dict):
    """What some libraries return: a mapping with `logits` among other things."""


def test_other_outputs_inputs_and_weights():
    class Text(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.read = nn.Embedding(20, 6), nn.LSTM(6, 7, batch_first=True)
            self.head = nn.utils.parametrizations.weight_norm(nn.Linear(7, 3))

        def forward(self, x):
            _, (last, _) = self.read(self.words(x))
            return Wrapped(logits=self.head(last[-1]))

    model, x = Text(), torch.randint(0, 20, (5, 4))
    found = take(model, x, "all")
    with evaluating(model):
        last = model.read(model.words(x))[1][0][-1]
    torch.testing.assert_close(found["penultimate"], last)
    torch.testing.assert_close(found["logits"], model.head(last).detach())
    torch.testing.assert_close(found["words"], model.words(x).mean(1).detach())
    weight, _ = classifier_weight(model, plan_layers(model, x))
    torch.testing.assert_close(weight, model.head.weight.detach())
    compiled = torch.compile(nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2)), backend="eager")
    assert plan_layers(compiled, torch.randn(2, 4), "all").names == ["input", "penultimate", "logits"]


def test_an_operation_torch_cannot_report_falls_back_on_the_order():
    class Double(torch.autograd.Function):
        @staticmethod
        def forward(context, x):
            return 2 * x

    class Hidden(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.head = nn.Linear(4, 6), nn.Linear(6, 5), nn.Linear(5, 3)

        def forward(self, x):
            return self.head(torch.relu(self.b(Double.apply(torch.relu(self.a(x))))))

    model, x = Hidden(), torch.randn(4, 4)
    found = take(model, x, "all")
    assert list(found) == ["input", "a", "penultimate", "logits"]
    torch.testing.assert_close(found["a"], torch.relu(model.a(x)).detach())


def test_the_work_of_naming_layers_grows_with_their_number(monkeypatch):
    asked = []

    def counted(function):
        def count(*given):
            asked.append(function)
            return function(*given)

        return count

    monkeypatch.setattr(nn.Module, "get_submodule", counted(nn.Module.get_submodule))
    monkeypatch.setattr(Flow, "following", counted(Flow.following))
    monkeypatch.setattr(finder, "has_matrix", counted(finder.has_matrix))

    def work(depth):
        asked.clear()
        blocks = [nn.Sequential(nn.Linear(3, 3), nn.ReLU()) for _ in range(depth)]
        rows = list_layers(nn.Sequential(*blocks, nn.Linear(3, 2)), torch.randn(2, 3))
        assert len(rows) == 2 * depth + 4  # input, blocks, their linear layers, penultimate, classifier, logits
        return len(asked)

    assert work(80) < 2.2 * work(40)  # of all pairs of layers it would be four times as many
