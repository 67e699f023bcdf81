"""Coloured digits and the two moons: what is spurious in them, by how much, and what is refused."""

import numpy as np
import pytest
import torch

from empirical import data
from empirical.data.coloured import conflicting, palette
from empirical.data.source import Request
from ufm.errors import RequestError


def painted(part):
    """Each image's colour, from its pixels alone: the direction of the sum over pixels."""
    total = part.inputs.sum((2, 3)).double().numpy()
    return np.argmax(total @ palette(part.attributes).T, axis=1)


@pytest.mark.parametrize(("name", "sizes"), [("coloured-digits", (1000, 797)), ("coloured-mnist5k", (4000, 1000))])
@pytest.mark.parametrize("colours", [2, 10])
def test_colours_go_with_the_classes_but_for_the_share_asked_for(name, sizes, colours):
    train, test, info = data.load(name, seed=1, request=Request(colours=colours, conflict=0.05))
    assert (len(train), len(test)) == sizes and info["shape"][0] == 3
    for part, share in ((train, 0.05), (test, 1 - 1 / colours)):
        assert np.array_equal(painted(part), part.attribute.numpy())
        own = part.labels if colours == 10 else (part.labels >= 5).long()
        assert torch.equal(conflicting(part), part.attribute != own)
        assert int(conflicting(part).sum()) == round(share * len(part))


def test_at_test_the_colour_is_independent_of_the_class_unless_said():
    _, test, _ = data.load("coloured-mnist5k", seed=0)
    table = np.zeros((10, 10))
    np.add.at(table, (test.labels.numpy(), test.attribute.numpy()), 1)
    assert table.sum(1).tolist() == [100] * 10 and np.abs(table / 100 - 0.1).max() < 0.11  # sd .03
    _, flipped, _ = data.load("coloured-digits", seed=0, request=Request(colours=2, conflict_test=1.0), coarse=(5, 5))
    assert torch.equal(flipped.attribute, 1 - flipped.labels)


def test_colours_are_of_unit_length_and_shapes_are_those_of_the_grey_set():
    assert np.allclose(np.linalg.norm(palette(10), axis=1), 1)
    grey, coloured = (data.load(name, seed=4)[0] for name in ("digits", "coloured-digits"))
    assert torch.allclose(coloured.inputs.norm(dim=1, keepdim=True), grey.inputs, atol=1e-6)
    assert torch.equal(coloured.labels, grey.labels)
    grey, coloured = (data.load(name, seed=4)[0] for name in ("mnist5k", "coloured-mnist5k"))
    means = torch.nn.functional.avg_pool2d(grey.inputs.float() / 255, 2)
    assert torch.allclose(coloured.inputs.norm(dim=1, keepdim=True), means, atol=1e-6)


def test_the_share_is_exact_after_a_subsample():
    train, _, info = data.load("coloured-digits", seed=2, per_class=50, request=Request(conflict=0.02))
    assert info["counts"] == [50] * 10 and int(conflicting(train).sum()) == 10
    half = train.subset(torch.arange(0, 500, 2))
    assert torch.equal(half.attribute, train.attribute[::2]) and len(conflicting(half)) == 250


def test_mislabelled_samples_have_the_colour_of_their_wrong_label():
    request = Request(colours=2, conflict=0.0, mislabelled=0.25, conflict_test=0.0)
    train, test, _ = data.load("coloured-digits", seed=0, request=request, coarse=(5, 5))
    clean, clean_test, _ = data.load("digits", seed=0, coarse=(5, 5))
    assert torch.equal(train.attribute, train.labels) and not conflicting(train).any()
    assert int((train.labels != clean.labels).sum()) == 250 and int((test.labels != clean_test.labels).sum()) == round(797 / 4)


@pytest.mark.parametrize(
    ("request_", "options", "words"),
    [
        (Request(colours=1), {}, "1 colours; use 2 to 10"),
        (Request(conflict=1.5), {}, r"--conflict 1.5 must lie in \[0, 1\]"),
        (Request(conflict_test=float("nan")), {}, "--conflict-test nan"),
        (Request(mislabelled=0.1), {"per_class": 9}, "exclude each other"),
        (Request(margin=0.1), {}, "--margin 0.1: data set coloured-digits has no such size, moons have"),
        (None, {"per_class": 101}, "use --train-per-class 100"),
    ],
)
def test_wrong_requests_for_colours_are_one_line(request_, options, words):
    with pytest.raises(RequestError, match=words) as caught:
        data.load("coloured-digits", seed=0, request=request_, **options)
    assert "\n" not in str(caught.value)


def test_data_without_colours_have_no_conflicts():
    with pytest.raises(RequestError, match="no spurious attribute"):
        conflicting(data.load("digits", seed=0)[0])


@pytest.mark.parametrize("margin", [0.1, -0.1])
def test_one_coordinate_separates_the_moons_by_the_margin(margin):
    for part in data.load("moons", seed=3, request=Request(margin=margin))[:2]:
        signed = part.inputs[:, 0] * (1 - 2 * part.labels)
        assert (signed.min() > 0) == (margin > 0) and abs(signed.min().item() - margin) < 0.02
        inner = part.inputs[:, 1].abs() < 0.3  # the middle of one moon and the ends of the other
        assert abs(inner[part.labels == 0].float().mean() - inner[part.labels == 1].float().mean()) < 0.15


def test_the_second_coordinate_of_the_moons_tells_the_class_where_the_first_is_equal():
    """The curve: at |x_1| + noise alike, both classes' x_2 lie apart; neighbours in (|x_1|, x_2) beat chance."""
    from sklearn.neighbors import KNeighborsClassifier

    train, test, _ = data.load("moons", seed=0)
    folded = [np.c_[p.inputs[:, 0].abs().numpy(), p.inputs[:, 1].numpy()] for p in (train, test)]
    score = KNeighborsClassifier(15).fit(folded[0], train.labels).score(folded[1], test.labels)
    assert score > 0.7


def test_colours_of_varying_saturation_point_the_right_way_and_can_be_hardly_visible():
    request = Request(colours=2, conflict=0.0, conflict_test=1.0, saturation=0.4)
    train, test, _ = data.load("coloured-digits", seed=0, coarse=(5, 5), request=request)
    red, cyan = palette(2)
    for part, sign in ((train, 1), (test, -1)):
        total = part.inputs.sum((2, 3)).double().numpy()
        lean = np.arctan2(np.sqrt(2), 1) - np.arctan2(total @ cyan, total @ red)  # from white, 54.7 degrees from red, to red
        assert (sign * lean * (1 - 2 * part.labels.numpy()) > 0).all()
        assert np.abs(lean).min() < 0.01 and 0.3 < np.abs(lean).max() < 0.5
    full = data.load("coloured-digits", seed=0, coarse=(5, 5), request=Request(colours=2, conflict=0.0))[0]
    assert torch.equal(full.labels, train.labels) and torch.allclose(full.inputs.norm(dim=1), train.inputs.norm(dim=1), atol=1e-6)


def test_a_saturation_that_is_no_share_is_refused():
    for most in (0.0, 1.5, float("nan")):
        with pytest.raises(RequestError, match="--saturation"):
            data.load("coloured-digits", seed=0, request=Request(saturation=most))
