"""The shortcut study: primes as a linear map on joined features, rows by group and by attribute, stops, stacks, bad requests."""

import json

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from sklearn.neighbors import NearestCentroid

from empirical import shortcut
from empirical.data.coloured import conflicting
from empirical.experiment import from_setting
from empirical.primes import PrimedLinear, prime_loss, prime_vectors
from empirical.runner import Job, attempt, attempt_stacked
from empirical.studies import study
from empirical.studies.shortcut import PRIMES, Shortcut
from empirical.train import run_training, set_up
from ufm.errors import RequestError
from ufm.interrupt import Interrupted, Stop
from ufm.provenance import environment
from ufm.record import Run

SMALL = {
    "dataset": "coloured-digits",
    "train_per_class": 20,
    "conflict": 0.1,
    "primes": "etf",
    "width": 16,
    "depth": 1,
    "norm": "none",
    "optimizer": "adam",
    "batch_size": 50,
    "epochs": 4,
    "measure_at": "2",
}
CPU = torch.device("cpu")


def small(**changed):
    return Shortcut(**(SMALL | changed)).resolved()


def rows_at(root, experiment, seed=0):
    job = Job("shortcut", experiment, seed, str(root), "cpu")
    outcome = attempt(job)
    assert outcome.exit == 0, outcome.status
    return [json.loads(line) for line in (job.path / "metrics.jsonl").read_text().splitlines()], job.path


def cross_entropy(logits, labels):
    return float(np.mean(logsumexp(logits, axis=1) - logits[np.arange(len(labels)), labels]))


def test_the_loss_is_that_of_one_linear_map_on_joined_features():
    """The same by numpy: a classifier (W V) on (f, m_a), and the primes' own loss of the attribute."""
    draw = np.random.default_rng(0)
    features, label, attribute = draw.standard_normal((30, 7)), draw.integers(0, 4, 30), draw.integers(0, 4, 30)
    plain = torch.nn.Linear(7, 4).double()
    primes = prime_vectors("etf", 4, 7, draw)
    primed = PrimedLinear(plain, primes, draw)
    W, b, V = (p.detach().numpy() for p in (primed.weight, primed.bias, primed.prime_weight))
    x = torch.from_numpy(features)
    targets = torch.from_numpy(np.stack([label, attribute, attribute], 1))
    joined = np.hstack([features, primes[attribute]]) @ np.hstack([W, V]).T + b
    expected = cross_entropy(joined, label) + 0.8 * cross_entropy(primes[attribute] @ V.T, attribute)
    assert prime_loss(primed.train()(x), targets, 4, 0.8).item() == pytest.approx(expected, rel=1e-12)
    assert torch.equal(primed.eval()(x), plain(x))  # at test the prime is 0
    other = torch.from_numpy(np.stack([label, attribute, (attribute + 1) % 4], 1))  # somebody else's prime
    assert prime_loss(primed.train()(x), other, 4, 0.0).item() == pytest.approx(
        cross_entropy(features @ W.T + b + primes[(attribute + 1) % 4] @ V.T, label), rel=1e-12
    )


def test_primes_are_a_simplex_or_directions():
    etf = prime_vectors("etf", 6, 9, np.random.default_rng(1))
    np.testing.assert_allclose(etf @ etf.T, 1.2 * np.eye(6) - 0.2, atol=1e-12)
    directions = prime_vectors("gaussian", 6, 9, np.random.default_rng(1))
    np.testing.assert_allclose((directions**2).sum(1), 1, atol=1e-12)
    assert np.linalg.matrix_rank(directions) == 6
    with pytest.raises(RequestError, match="6 values of an attribute need as many features; 5 are too few"):
        prime_vectors("etf", 6, 5, np.random.default_rng(1))


def test_a_primed_run_cites_its_method(tmp_path):
    from ufm.commands.cite import use_of

    cited = {primes: use_of(rows_at(tmp_path, small(primes=primes, epochs=2))[1].parent) for primes in ("none", "etf")}
    assert "wang2024" in cited["etf"].references and "wang2024" not in cited["none"].references


def test_a_primed_network_starts_as_the_plain_one():
    """So that two methods under one seed differ by the primes alone."""
    plain, primed = set_up(small(primes="none"), 3, CPU), set_up(small(), 3, CPU)
    own, other = dict(plain.network.named_parameters()), dict(primed.network.named_parameters())
    assert set(other) - set(own) == {"classifier.prime_weight"} and all(torch.equal(own[n], other[n]) for n in own)
    assert torch.equal(plain.train.inputs, primed.train.inputs) and torch.equal(plain.train.attribute, primed.train.attribute)
    assert torch.equal(plain.targets, plain.train.labels)
    assert torch.equal(primed.targets, torch.stack([primed.train.labels, *[primed.train.attribute] * 2], 1))
    shuffled = set_up(small(primes="shuffled"), 3, CPU).targets
    assert torch.equal(shuffled[:, :2], primed.targets[:, :2]) and not torch.equal(shuffled[:, 2], primed.targets[:, 2])
    assert torch.equal(shuffled[:, 2].sort().values, primed.targets[:, 2].sort().values)


@pytest.mark.parametrize("primes", ["none", "etf"])
def test_the_rows_are_of_groups_and_of_the_attribute(primes):
    """Accuracies counted here, nearest means by scikit-learn, NC1 with scipy's kind of pseudo-inverse."""
    training = set_up(small(primes=primes), 1, CPU)
    rows = {(r["split"], r["centres"], r["metric"]): r["value"] for r in shortcut.Look().rows(training)}
    training.network.eval()
    features, guess = [], []
    with torch.no_grad():
        for data in (training.train, training.test):
            features.append(training.network.blocks(data.batch(slice(None))[0].flatten(1)).double().numpy())
            guess.append(training.network(data.batch(slice(None))[0]).argmax(1).numpy())
    for split, data, said in zip(("train", "test"), (training.train, training.test), guess, strict=True):
        label, colour = data.labels.numpy(), data.attribute.numpy()
        right, aligned = said == label, colour == label
        assert np.array_equal(conflicting(data).numpy(), ~aligned) and 0 < aligned.sum() < len(label)
        found = {m: rows[split, "self", m] for m in ("accuracy_aligned", "accuracy_conflicting", "accuracy_unbiased")}
        assert found["accuracy_aligned"] == pytest.approx(right[aligned].mean())
        assert found["accuracy_conflicting"] == pytest.approx(right[~aligned].mean())
        assert found["accuracy_unbiased"] == pytest.approx(0.1 * right[aligned].mean() + 0.9 * right[~aligned].mean())
        assert rows[split, "self", "attribute_followed"] == pytest.approx((said == colour)[~aligned].mean())
    colours = [data.attribute.numpy() for data in (training.train, training.test)]
    score = NearestCentroid().fit(features[0], colours[0]).score(features[1], colours[1])
    assert rows["test", "train", "attribute_ncc_error"] == pytest.approx(1 - score, abs=1e-9)
    means = np.stack([features[1][colours[1] == c].mean(0) for c in range(10)])
    within = np.cov((features[1] - means[colours[1]]).T, bias=True)
    between = np.cov(means.T, bias=True)
    expected = np.trace(within @ np.linalg.pinv(between, rcond=1e-9)) / 10
    assert rows["test", "self", "attribute_nc1_pinv"] == pytest.approx(expected, rel=1e-3)


def test_a_group_without_samples_has_no_accuracy():
    training = set_up(small(conflict=0.0), 0, CPU)
    rows = {(r["split"], r["metric"]): r for r in shortcut.Look().rows(training)}
    for metric in ("accuracy_conflicting", "accuracy_unbiased", "attribute_followed"):
        assert rows["train", metric]["value"] is None and "no train sample" in rows["train", metric]["reason"]
        assert rows["test", metric]["value"] is not None
    assert rows["train", "accuracy_aligned"]["value"] is not None


def test_primes_take_the_colour_off_the_features():
    """A seed of the effect itself: fewer conflicting test samples are called by their colour, more by their digit."""
    final = {}
    for primes in ("none", "etf"):
        training = set_up(small(primes=primes, train_per_class=None, conflict=0.02, width=64, epochs=40), 7, CPU)
        _train(training)
        final[primes] = {r["metric"]: r["value"] for r in shortcut.accuracy_rows("test", _guess(training), training.test, None)}
    assert final["etf"]["accuracy_unbiased"] > final["none"]["accuracy_unbiased"] + 0.02
    assert final["etf"]["attribute_followed"] < final["none"]["attribute_followed"] - 0.02


def _train(training):
    from empirical.step import order_of, take_step

    training.network.train()
    while training.step < training.clock.steps:
        epoch, position = divmod(training.step, training.clock.per_epoch)
        first, last = training.clock.bounds(position)
        take_step(training, order_of(training, epoch)[first:last])
        training.step += 1


def _guess(training):
    with torch.no_grad():
        return training.network.eval()(training.test.batch(slice(None))[0]).argmax(1)


@pytest.mark.parametrize("stop_at", [0, 5])
def test_a_stopped_training_goes_on_to_the_same_bytes(tmp_path, stop_at):
    experiment = small(primes="shuffled")
    _, whole = rows_at(tmp_path / "whole", experiment)
    job = Job("shortcut", experiment, 0, str(tmp_path / "halved"), "cpu")
    stop = Stop()
    with Run.create(
        job.root, job.study, job.experiment.name, job.experiment.setting(), seed=0, environment=environment("cpu", seed=0)
    ) as run:
        look = shortcut.Look()

        def watched(training):
            if training.step >= stop_at:
                stop.signum = 15
            return look.rows(training)

        with pytest.raises(Interrupted):
            run_training(job.experiment, run, observe=watched, device=CPU, stop=stop)
    _, again = rows_at(tmp_path / "halved", experiment)
    for file in ("metrics.jsonl", "tensors.safetensors"):
        assert (again / file).read_bytes() == (whole / file).read_bytes()


def test_seeds_in_one_program_are_those_one_by_one(tmp_path):
    experiment = small(norm="batch")
    jobs = [Job("shortcut", experiment, seed, str(tmp_path / "stacked"), "cpu") for seed in (0, 1)]
    outcomes = attempt_stacked(jobs, None, None)
    assert [o.exit for o in outcomes] == [0, 0], outcomes
    for outcome in outcomes:
        rows, _ = rows_at(tmp_path / "single", experiment, outcome.seed)
        alone = {(r["split"], r["layer"], r["centres"], r["metric"]): r["value"] for r in rows if r["epoch"] == 4}
        for metric in ("train/network/self/loss", "test/network/self/loss", "train/network/self/loss_running"):
            assert outcome.result["final"][metric] == pytest.approx(alone[tuple(metric.split("/"))], rel=1e-3)


def test_the_setting_finds_its_way_back():
    made = small(coarse=(5, 5), colours=2, conflict_test=0.9)
    assert from_setting(study("shortcut").spec, json.loads(json.dumps(made.setting()))).resolved() == made
    training = set_up(made, 0, CPU)
    assert training.train.attributes == training.train.classes == 2
    assert float(conflicting(training.test).double().mean()) == pytest.approx(0.9, abs=2e-3)
    rows = {(r["split"], r["metric"]): r["value"] for r in shortcut.Look().rows(training)}
    assert rows["test", "accuracy_unbiased"] == pytest.approx(
        (rows["test", "accuracy_aligned"] + rows["test", "accuracy_conflicting"]) / 2
    )
    cost = shortcut.check(made, 0)
    assert cost.steps == training.clock.steps and set(PRIMES) == {"none", "etf", "gaussian", "shuffled"}


@pytest.mark.parametrize(
    ("coarse", "colours", "stands"),
    [((4, 3, 3), 3, True), ((2, 3, 5), 3, False), ((5, 5), 3, False), ((5, 5), 2, True), (None, 10, True), (None, 9, False)],
)
def test_what_an_attribute_stands_for_is_a_class_of_the_same_digits(coarse, colours, stands):
    """As many groups are not enough: of 2, 3 and 5 digits, the second holds digits of two colours of 4, 3 and 3."""
    training = set_up(small(coarse=coarse, colours=colours, primes="none", label_noise=0.6), 0, CPU)
    rows = {(r["split"], r["metric"]) for r in shortcut.Look().rows(training)}
    for split in ("train", "test"):
        assert ((split, "attribute_followed") in rows) is stands
    of_class = [
        set(training.test.attribute[~conflicting(training.test) & (training.test.labels == k)].tolist()) for k in range(3)
    ]
    assert (of_class == [{0}, {1}, {2}]) is (stands and colours > 2)
    if stands:
        shortcut.check(small(coarse=coarse, colours=colours, primes="etf"), 0)


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"dataset": "digits"}, "--dataset digits has no spurious attribute; use coloured-mnist5k or coloured-digits"),
        ({"loss": "mse"}, "--loss mse: --primes etf are trained by cross-entropy; use --loss ce"),
        ({"layers": "blocks.0"}, "add penultimate"),
        ({"colours": 5}, "the attribute has 5 values and there are 10 classes"),
        (
            {"coarse": (2, 3, 5), "colours": 3},
            "--coarse 2,3,5: value a of the attribute does not stand for class a, .*coarse 4,3,3$",
        ),
        ({"head": "deep", "head_depth": 2, "width": 9}, "need as many features; 9 are too few"),
        ({"width": 9}, "10 values of an attribute need as many features; 9 are too few"),
        ({"dataset": "coloured-digit"}, "did you mean 'coloured-digits'"),
    ],
)
def test_wrong_requests_are_one_line(changed, message):
    with pytest.raises(RequestError, match=message) as caught:
        shortcut.check(small(**changed), 0)
    assert "\n" not in str(caught.value)
