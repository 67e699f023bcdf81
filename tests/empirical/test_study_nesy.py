"""The nesy study: the exact sum by enumeration, its gradient, what each stage trains, stops at every stage, bad requests."""

import itertools
import json

import numpy as np
import pytest
import torch

from empirical import nesy
from empirical.features import plan_layers
from empirical.models import HEADS
from empirical.nesy import classifier_of
from empirical.runner import Job, attempt
from empirical.step import order_of, take_step
from empirical.studies import study
from empirical.studies.nesy import Nesy
from empirical.sums import draw_operands, sum_log_probabilities
from empirical.train import set_up
from ufm.commands.cite import use_of
from ufm.errors import RequestError
from ufm.interrupt import Interrupted, Stop
from ufm.provenance import environment
from ufm.record import Run

SMALL = {
    "train_per_class": 12,
    "operands": 3,
    "start": "finetune",
    "pretrain_epochs": 2,
    "repeats": 3,
    "width": 16,
    "depth": 2,
    "plain_width": 16,
    "batch_size": 25,
    "epochs": 3,
}
CPU = torch.device("cpu")


def small(**changed):
    values = SMALL | changed
    if values["start"] == "scratch":
        values.pop("pretrain_epochs")
    return Nesy(**values).resolved()


# --- the exact sum -------------------------------------------------------------------------------------------------


def enumerated(p):
    """P(S = s) and P(d_j = d | S = s) by going through all K^m tuples, float64."""
    m, K = p.shape
    total, joint = np.zeros(m * (K - 1) + 1), np.zeros((m * (K - 1) + 1, m, K))
    for digits in itertools.product(range(K), repeat=m):
        weight = np.prod([p[j, d] for j, d in enumerate(digits)])
        total[sum(digits)] += weight
        for j, d in enumerate(digits):
            joint[sum(digits), j, d] += weight
    return total, joint


@pytest.mark.parametrize(("m", "K"), [(1, 10), (2, 10), (4, 10), (7, 3), (10, 2)])
@pytest.mark.parametrize("sharpness", [1.0, 8.0])
def test_the_sum_and_its_gradient_are_those_of_all_tuples(m, K, sharpness):
    logits = sharpness * np.random.default_rng(m).standard_normal((3, m, K))
    log_p = torch.from_numpy(logits - np.log(np.exp(logits).sum(2, keepdims=True))).requires_grad_()
    found = sum_log_probabilities(log_p)
    assert found.shape == (3, m * (K - 1) + 1)
    for n in range(3):
        total, joint = enumerated(np.exp(log_p[n].detach().numpy()))
        np.testing.assert_allclose(found[n].detach().exp().numpy(), total, rtol=1e-11)
        for s in (0, m * (K - 1) // 2, m * (K - 1)):
            (gradient,) = torch.autograd.grad(found[n, s], log_p, retain_graph=True)
            np.testing.assert_allclose(gradient[n].numpy(), joint[s] / total[s], rtol=1e-10, atol=1e-13)


def test_ten_digits_in_float32_agree_with_a_convolution_of_polynomials():
    """By numpy in extended precision; probabilities down to 1e-90 are no zeros."""
    logits = 12 * np.random.default_rng(0).standard_normal((20, 10, 10))
    log_p = logits - np.log(np.exp(logits).sum(2, keepdims=True))
    found = sum_log_probabilities(torch.from_numpy(log_p).float()).double().numpy()
    for n in range(20):
        product = np.ones(1, np.longdouble)
        for p in np.exp(log_p[n].astype(np.longdouble)):
            product = np.convolve(product, p)
        expected = np.log(product).astype(float)
        np.testing.assert_allclose(found[n], expected, rtol=2e-6, atol=2e-5)
        assert expected.min() < -100
    np.testing.assert_allclose(np.exp(found).sum(1), 1, rtol=1e-5)


def test_known_digits_have_one_sum_and_no_gradient_is_nan():
    log_p = torch.full((1, 3, 4), -torch.inf)
    for operand, digit in enumerate((3, 0, 2)):
        log_p[0, operand, digit] = 0.0
    log_p.requires_grad_()
    found = sum_log_probabilities(log_p)
    assert found.exp().tolist() == [[0.0] * 5 + [1.0] + [0.0] * 4]
    (gradient,) = torch.autograd.grad(found[0, 5], log_p)
    assert torch.equal(gradient, log_p.detach().exp())


def test_operands_are_drawn_from_their_stream_each_as_often():
    drawn = draw_operands(23, 5, 4, 7, "sums")
    assert drawn.shape == (16, 5)
    for number in range(4):
        assert len(np.unique(drawn[4 * number : 4 * number + 4])) == 20
    assert np.array_equal(drawn, draw_operands(23, 5, 4, 7, "sums"))
    assert not np.array_equal(drawn, draw_operands(23, 5, 4, 8, "sums"))
    assert not np.array_equal(drawn, draw_operands(23, 5, 4, 7, "test-sums"))


# --- a training ----------------------------------------------------------------------------------------------------


def steps(training, until):
    order = None
    while training.step < until:
        epoch, position = divmod(training.step, training.clock.per_epoch)
        if order is None or position == 0:
            order = order_of(training, epoch)
        first, last = training.clock.bounds(position)
        training.begin(training)
        take_step(training, order[first:last])
        training.step += 1


def parts(training):
    """Copies of (features' parameters, the digits' classifier, the plain network)."""
    groups = {"features": [], "digits": [], "plain": []}
    for name, parameter in training.network.named_parameters():
        kind = "plain" if ".plain." in name else "digits" if name.startswith("classifier") else "features"
        groups[kind].append(parameter.detach().clone())
    return groups


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_sum_is_the_label_of_its_images_digits():
    training = set_up(small(), 2, CPU)
    assert training.groups.shape == (3 * 40, 3) and training.clock.samples == 120
    digits = training.train.labels.numpy()[training.groups.numpy()]
    assert np.array_equal(training.targets.numpy(), digits.sum(1))
    other = set_up(small(operands=4), 2, CPU)
    assert other.groups.shape == (90, 4) and int(other.targets.max()) <= 36


@pytest.mark.parametrize("start", ["frozen", "finetune"])
@pytest.mark.parametrize("norm", ["none", "batch"])
def test_each_stage_trains_its_own_part(start, norm):
    training = set_up(small(start=start, norm=norm), 1, CPU)
    switch = nesy.pretrained(training)
    assert switch == 2 * training.clock.per_epoch and training.clock.steps == 5 * training.clock.per_epoch
    begun = parts(training)
    steps(training, switch)
    plain = parts(training)
    assert same(plain["digits"], begun["digits"])  # the plain network knows no digits
    assert not same(plain["features"], begun["features"]) and not same(plain["plain"], begun["plain"])
    buffers = {name: value.clone() for name, value in training.network.named_buffers()}
    steps(training, training.clock.steps)
    ended = parts(training)
    assert same(ended["plain"], plain["plain"]) and not same(ended["digits"], plain["digits"])
    assert same(ended["features"], plain["features"]) is (start == "frozen")
    unmoved = all(torch.equal(buffers[name], value) for name, value in training.network.named_buffers())
    assert unmoved is (start == "frozen" or norm == "none")


def test_the_optimiser_of_the_exact_stage_starts_afresh():
    training = set_up(small(), 1, CPU)
    steps(training, nesy.pretrained(training) + 1)
    counted = {int(state["step"]) for state in training.optimizer.state.values()}
    assert counted == {1}


def test_all_starts_have_one_untrained_network_and_the_same_sums():
    scratch, tuned = set_up(small(start="scratch"), 3, CPU), set_up(small(), 3, CPU)
    assert classifier_of(scratch.network).plain is None
    assert same(parts(scratch)["features"], parts(tuned)["features"]) and same(parts(scratch)["digits"], parts(tuned)["digits"])
    assert torch.equal(scratch.groups, tuned.groups) and torch.equal(scratch.targets, tuned.targets)


def test_measuring_sees_digits_and_training_sees_sums():
    training = set_up(small(), 0, CPU)
    images = training.train.batch(slice(0, 6))[0]
    plan = plan_layers(training.network, images[:2], "last", None)
    assert (plan.classifier, plan.outputs) == ("classifier", 10)
    assert training.network(images).shape == (2, 28)
    training.network.eval()
    assert training.network(images).shape == (6, 10)


def test_the_rows_are_of_digits_and_of_sums():
    """Losses and errors of the sums counted here from numpy's convolution, accuracies from the logits."""
    training = set_up(small(start="scratch", epochs=6), 4, CPU)
    steps(training, training.clock.steps)
    look = nesy.Look()
    rows = {(r["split"], r["metric"]): r["value"] for r in look.rows(training) if r["layer"] == "network"}
    assert not any("plain" in metric for _, metric in rows)
    training.network.eval()
    for split, data in (("train", training.train), ("test", training.test)):
        with torch.no_grad():
            logits = training.network(data.batch(slice(None))[0]).double().numpy()
        p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        labels = data.labels.numpy()
        assert rows[split, "digit_accuracy"] == pytest.approx(np.mean(logits.argmax(1) == labels))
        assert rows[split, "error"] == pytest.approx(1 - rows[split, "digit_accuracy"])
        losses, wrong = [], []
        for images in look.sums[split].numpy():
            total = np.ones(1)
            for image in images:
                total = np.convolve(total, p[image])
            losses.append(-np.log(total[labels[images].sum()]))
            wrong.append(total.argmax() != labels[images].sum())
        assert rows[split, "sum_loss"] == pytest.approx(np.mean(losses), rel=1e-5)
        assert rows[split, "sum_error"] == pytest.approx(np.mean(wrong), abs=1e-9)


def test_the_plain_network_is_measured_while_it_is_trained():
    training = set_up(small(), 0, CPU)
    seen = []
    for step in (0, nesy.pretrained(training), training.clock.steps):
        steps(training, step)
        rows = [r["metric"] for r in nesy.Look().rows(training) if r["layer"] == "network" and r["split"] == "test"]
        seen.append({m for m in rows if "sum" in m or "digit" in m})
    plain = {"plain_sum_loss", "plain_sum_error"}
    exact = {"sum_loss", "sum_error", "digit_accuracy", "digit_accuracy_matched"}
    assert seen == [plain, plain | exact, exact]


def test_renamed_digits_are_right_after_renaming():
    class Kept:
        labels = torch.arange(10).repeat(3)
        predicted = 9 - labels

    assert nesy.digit_values(Kept) == {"digit_accuracy": 0.0, "digit_accuracy_matched": 1.0}
    Kept.predicted = torch.cat([Kept.labels[:15], torch.zeros(15, dtype=torch.int64)])
    found = nesy.digit_values(Kept)
    assert found["digit_accuracy"] == pytest.approx((15 + 1) / 30) == found["digit_accuracy_matched"]


def test_digits_are_read_after_sums_alone():
    """The effect itself, one seed: two operands are enough for most digits, with no digit ever labelled."""
    training = set_up(Nesy(operands=2, start="scratch", repeats=10, depth=2, epochs=6, width=64).resolved(), 0, CPU)
    steps(training, training.clock.steps)
    rows = {(r["split"], r["metric"]): r["value"] for r in nesy.Look().rows(training)}
    assert rows["test", "digit_accuracy"] > 0.85 and rows["test", "sum_error"] < 0.3


def test_the_schedule_starts_anew_with_each_stage():
    training = set_up(small(schedule="thirds", optimizer="sgd", lr=0.1), 0, CPU)
    per_epoch, sizes = training.clock.per_epoch, []
    for step in range(training.clock.steps):
        training.step = step
        sizes.append(training.step_size)
    switch = 2 * per_epoch
    assert sizes[0] == sizes[switch] == 0.1
    assert sizes[switch - 1] == pytest.approx(1e-3) == pytest.approx(sizes[-1])
    assert sizes[switch + per_epoch] == pytest.approx(1e-2)


# --- runs ----------------------------------------------------------------------------------------------------------


class StopsAfter(Stop):
    """Asks to stop when it has been looked at so many times."""

    def __init__(self, looks):
        super().__init__()
        self.left = looks

    def __bool__(self):
        self.left -= 1
        if self.left < 0:
            self.signum = 15
        return self.left < 0


def bytes_of(root, experiment, looks=()):
    """Return the bytes of metrics and arrays of a run that is stopped after these looks."""
    for number in looks:
        with Run.create(root, "nesy", experiment.name, experiment.setting(), seed=1, environment=environment("cpu")) as run:
            try:
                nesy.train(experiment, run, device=CPU, threads=1, stop=StopsAfter(number), report=None)
            except Interrupted:
                continue
            raise AssertionError("it was not stopped")
    outcome = attempt(Job("nesy", experiment, 1, str(root), "cpu"))
    assert outcome.exit == 0, outcome.status
    folder = Job("nesy", experiment, 1, str(root), "cpu").path
    return [(folder / name).read_bytes() for name in ("metrics.jsonl", "tensors.safetensors")]


@pytest.mark.parametrize("start", ["frozen", "finetune"])
def test_stopped_in_either_stage_and_between_them_it_gives_the_same_bytes(tmp_path, start):
    experiment = small(start=start, measure_at="1,4", norm="batch")  # 5 steps an epoch: the stages meet at step 10
    whole = bytes_of(tmp_path / "whole", experiment)
    for looks in ((3,), (9,), (10,), (11, 2)):
        assert bytes_of(tmp_path / f"after-{looks[0]}", experiment, looks) == whole


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"start": "scratch", "pretrain_epochs": 3}, "--pretrain-epochs 3: --start scratch has no pretraining"),
        ({"loss": "mse"}, "--loss mse: the digits of nesy are known by their sums alone"),
        ({"coarse": (5, 5)}, "--coarse: the digits"),
        ({"label_noise": 0.1}, "--label-noise 0.1: the digits"),
        ({"augment": "crop-flip"}, "--augment crop-flip"),
        ({"layers": "logits"}, "--layers logits: nesy measures the last features by digit"),
        ({"head": "etf", "start": "frozen", "pretrain_epochs": 1}, "--head etf: a fixed classifier on frozen features"),
        ({"head": "polygon", "start": "frozen", "pretrain_epochs": 1}, "--head polygon: a fixed classifier on frozen features"),
        ({"start": "finetune", "steps": 10}, "--steps 10: say with --pretrain-epochs"),
    ],
)
def test_what_the_study_cannot_do_is_refused(changed, said):
    with pytest.raises(RequestError) as error:
        Nesy(**changed).resolved()
    assert said in str(error.value) and "\n" not in str(error.value)


def test_every_fixed_head_can_be_pretrained_for_but_not_be_all_that_is_left():
    """Whatever head has no parameter to train is refused on frozen features."""
    for head in HEADS:
        made = {"head": head, "head_depth": 2 if head == "deep" else 1}
        own = classifier_of(set_up(small(**made), 0, CPU).network)
        if own.weight.requires_grad:
            steps(set_up(small(start="frozen", **made), 0, CPU), 11)  # into the exact stage
        else:
            with pytest.raises(RequestError, match=f"--head {head}"):
                small(start="frozen", **made)


def test_a_pretrained_run_cites_its_method(tmp_path):
    cited = {}
    for start in ("scratch", "frozen", "finetune"):
        job = Job("nesy", small(start=start, epochs=1, measure_at="1"), 0, str(tmp_path), "cpu")
        assert attempt(job).exit == 0
        cited[start] = "daniele2024" in use_of(job.path.parent).references
    assert cited == {"scratch": False, "frozen": True, "finetune": True}


def test_more_operands_than_images_are_refused():
    with pytest.raises(RequestError, match=r"--operands 50: there are 40 train images"):
        nesy.check(small(operands=50, train_per_class=4), 0)


def test_more_sums_than_fit_are_refused_by_their_flag():
    with pytest.raises(RequestError, match=r"GiB; use a smaller --width, --depth, --batch-size or --repeats$"):
        nesy.check(small(repeats=10**6, train_per_class=None), 0)


def test_torchrun_is_refused(monkeypatch):
    for name, value in (("TORCHELASTIC_RUN_ID", "one"), ("RANK", "0"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "0")):
        monkeypatch.setenv(name, value)
    with pytest.raises(RequestError, match="nesy trains a network in one"):
        nesy.check(small(), 0)


def test_the_cost_grows_with_operands_and_with_the_pretraining():
    few, many, scratch = (nesy.check(small(**c), 0) for c in ({}, {"operands": 9}, {"start": "scratch"}))
    assert few.steps == 5 * 5 and scratch.steps == 3 * 5 and many.seconds > few.seconds > scratch.seconds


def test_the_study_is_listed_and_a_run_says_what_it_did(tmp_path):
    assert study("nesy").spec is Nesy
    experiment = small(start="frozen", epochs=1, measure_at="1")
    outcome = attempt(Job("nesy", experiment, 0, str(tmp_path), "cpu"))
    final = outcome.result["final"]
    for place, _ in study("nesy").columns.values():
        assert place in final
    text = (Job("nesy", experiment, 0, str(tmp_path), "cpu").path / "metrics.jsonl").read_text()
    rows = [json.loads(line) for line in text.splitlines()]
    assert sorted({row["epoch"] for row in rows}) == [0, 1, 2, 3]
