"""The alignment study: many networks in one program, permuted vertices, margins, and the analysis of variance."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from test_empirical_cli import empirical, files  # noqa: F401

from empirical.alignment import OneWay, normalised_margins, permutation_rows, permutations_of
from empirical.crowd import evaluated
from empirical.experiment import Experiment, from_setting
from empirical.runner import Job, attempt, work
from empirical.step import take_step
from empirical.studies import study
from empirical.studies.alignment import Alignment
from empirical.training import set_up
from ufm.errors import RequestError
from ufm.geometry import polygon, simplex_etf
from ufm.interrupt import Stop
from ufm.seeds import stream

CPU = torch.device("cpu")
SMALL = {"dataset": "gaussian", "classes": 5, "input_dim": 6, "signal": 2.0, "train_per_class": 12, "test_per_class": 8}
SMALL |= {"width": 8, "depth": 2, "batch_size": 20, "steps": 7, "permutations": 3, "starts": 2, "measure_at": "1,2"}
FLAGS = [word for key, value in SMALL.items() for word in (f"--{key.replace('_', '-')}", str(value))]


def alignment(**changed):
    return Alignment(**(SMALL | changed)).resolved()


# --- many networks as one ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vertices", ["simplex", "polygon", "learned"])
@pytest.mark.parametrize("norm", ["batch", "none"])
def test_each_network_of_the_crowd_is_trained_as_if_it_were_alone(vertices, norm):
    permutations = 1 if vertices == "learned" else 3
    experiment = alignment(vertices=vertices, norm=norm, permutations=permutations, weight_decay=1e-2)
    training = set_up(experiment, 4, CPU)
    weights = training.network.weight().clone()
    steps = [torch.arange(0, 20), torch.arange(20, 45)]
    for step in steps:
        take_step(training, step)
    logits, _ = evaluated(training.network, training.test.batch(slice(None))[0])
    plain = Experiment(**{f.name: getattr(experiment, f.name) for f in dataclasses.fields(Experiment)})
    for place in (0, 2 * permutations - 1):
        own = int(stream(4, f"start-{place // 2}-{place % 2}").integers(2**32))
        alone = set_up(plain, own, CPU)
        alone.train = training.train
        alone.targets = training.targets
        with torch.no_grad():
            alone.network.classifier.weight.copy_(weights[place])
        for step in steps:
            take_step(alone, step)
        alone.network.eval()
        with torch.no_grad():
            assert torch.allclose(alone.network(training.test.batch(slice(None))[0]), logits[place], atol=2e-5)


def test_the_logged_loss_is_the_mean_over_the_networks():
    training = set_up(alignment(), 0, CPU)
    inputs, labels = training.train.batch(slice(None))
    logits = training.network(inputs)
    each = [float(torch.nn.functional.cross_entropy(z, labels)) for z in logits.detach()]
    assert float(training.minimised(logits, labels).detach()) == pytest.approx(np.mean(each), rel=1e-6) and len(set(each)) == 6


@pytest.mark.parametrize(("vertices", "frame"), [("simplex", simplex_etf(5)), ("polygon", polygon(5))])
def test_classifiers_are_the_permuted_vertices_each_in_a_frame_of_its_own(vertices, frame):
    experiment = alignment(vertices=vertices)
    weight = set_up(experiment, 1, CPU).network.weight().double().numpy()
    orders = permutations_of(experiment, 5, 1)
    assert len({tuple(order) for order in orders}) > 1 and all(sorted(order) == list(range(5)) for order in orders)
    for place, rows in enumerate(weight):
        expected = frame[orders[place // 2]]
        assert np.allclose(rows @ rows.T, expected @ expected.T, atol=1e-6)
    assert not np.allclose(weight[0], weight[1], atol=1e-2)


def test_symmetries_keep_every_polygons_gram_and_permutations_of_a_simplex_are_turns():
    experiment = alignment(vertices="polygon", permute="symmetries", permutations=20)
    orders, gram = permutations_of(experiment, 5, 0), polygon(5) @ polygon(5).T
    assert all(np.allclose(gram[order][:, order], gram) for order in orders)
    assert {int(np.sign((order[1] - order[0] + 2) % 5 - 2)) for order in orders} == {-1, 1}  # reflections too
    frame = simplex_etf(5)
    turn = np.linalg.lstsq(frame, frame[[3, 1, 0, 2, 4]], rcond=None)[0]
    assert np.allclose(turn @ turn.T, np.eye(4)) and np.allclose(frame @ turn, frame[[3, 1, 0, 2, 4]])


# --- what is measured ----------------------------------------------------------------------------------------------


def test_margins_of_a_hand_solved_network_and_one_at_collapse():
    weight = torch.tensor([[[1.0, 0.0], [-1.0, 0.0]]])
    features = torch.tensor([[[1.0, 5.0], [-2.0, 5.0], [-2.0, 5.0], [3.0, 5.0]]])
    labels = torch.tensor([0, 1, 1, 0])
    logits = features @ weight.transpose(1, 2) + torch.tensor([0.5, -0.5])
    found = normalised_margins(logits, labels, weight, features)
    # margins 2h + 1 and -2h - 1; K/(K-1) = 2, rms |w| = 1, h is centred: rms sqrt(18/4)
    assert np.allclose(found.numpy(), np.array([[3.0, 3.0, 3.0, 7.0]]) / (2 * np.sqrt(4.5)))
    simplex = torch.from_numpy(simplex_etf(4))[None]
    labels = torch.arange(4).repeat(3)
    exact = normalised_margins((3 * simplex[:, labels]) @ simplex.transpose(1, 2), labels, simplex, 3 * simplex[:, labels] + 1.0)
    assert np.allclose(exact.numpy(), 1.0)


def test_the_mean_margin_of_balanced_classes_is_at_most_one():
    draw = torch.Generator().manual_seed(0)
    for scale in (0.1, 1.0, 10.0):
        weight, features = torch.randn(50, 4, 6, generator=draw), torch.randn(50, 20, 6, generator=draw)
        labels = torch.arange(4).repeat(5)
        features = features + scale * weight[:, labels]
        logits = features @ weight.transpose(1, 2) + torch.randn(50, 1, 4, generator=draw)
        found = normalised_margins(logits, labels, weight, features).mean(1)
        assert found.max() <= 1 and (scale < 10 or found.max() > 0.5)


def test_the_analysis_of_variance_is_scipys():
    from scipy.stats import f_oneway

    draw = np.random.default_rng(0)
    for size in (0.0, 0.5, 3.0):
        values = draw.standard_normal((6, 9)) + size * draw.standard_normal((6, 1))
        found, oracle = OneWay.of(values), f_oneway(*values)
        assert found.f == pytest.approx(oracle.statistic, rel=1e-12) and found.p == pytest.approx(oracle.pvalue, rel=1e-9)
        assert found.within == pytest.approx(np.sqrt(np.mean(values.var(1, ddof=1))))
    large = draw.standard_normal((200, 40)) + 2 * draw.standard_normal((200, 1))
    assert OneWay.of(large).share == pytest.approx(0.8, abs=0.04)  # 4 of 5 parts of the variance


@pytest.mark.parametrize("values", [np.ones((3, 4)), np.ones((3, 1)), np.ones((1, 4)), np.arange(4.0)[None]])
def test_without_spread_or_groups_there_is_no_ratio_but_a_reason(values):
    assert all(np.isnan(x) for x in (OneWay.of(values).f, OneWay.of(values).p, OneWay.of(values).share))
    row = permutation_rows(values, 0)[0]
    assert row["metric"] == "permutation_f" and row["value"] is None and "two permutations" in row["reason"]


def test_groups_drawn_at_random_hide_what_the_groups_say():
    values = np.random.default_rng(1).standard_normal((8, 10)) + 5 * np.arange(8)[:, None]
    rows = {row["metric"]: row["value"] for row in permutation_rows(values, 3)}
    assert rows["permutation_f"] > 100 and rows["permutation_f_shuffled"] < 4


# --- the command ---------------------------------------------------------------------------------------------------


def test_a_run_has_its_rows_and_arrays_and_goes_on_to_the_same_bytes(empirical, tmp_path):  # noqa: F811
    code, out, _ = empirical("run", "alignment", "--vertices", "polygon", *FLAGS, "--out", "whole", "--json", "--workers", "1")
    assert code == 0 and json.loads(out)
    folder = next((tmp_path / "whole").rglob("seed-0"))
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    names = {(row["split"], row["layer"], row["metric"]) for row in rows if row["step"] == 7}
    assert {
        ("test", "network", "permutation_f"),
        ("train", "network", "margin_min"),
        ("train", "penultimate", "nc1_pinv"),
    } <= names
    from ufm.record import Run

    arrays = Run.open(folder).read_tensors("tensors.safetensors")
    error = next(row["value"] for row in rows if row["step"] == 7 and (row["split"], row["metric"]) == ("test", "error"))
    assert arrays["alignment/test_error"].shape == (3, 2) and arrays["alignment/permutations"].shape == (3, 5)
    assert arrays["alignment/test_error"].mean() == pytest.approx(error) and arrays["alignment/weights"].shape == (6, 5, 8)
    job = Job("alignment", alignment(vertices="polygon"), 0, str(tmp_path / "cut"), "cpu")

    class AtStep(Stop):
        def __bool__(self):
            self.asked = getattr(self, "asked", 0) + 1
            self.signum = 15 if self.asked > 3 else 0
            return self.signum > 0

    assert attempt(job, AtStep()).exit == 143
    assert work(job).exit == 0
    for name in ("metrics.jsonl", "tensors.safetensors"):
        assert (job.path / name).read_bytes() == (folder / name).read_bytes(), name
    assert json.loads((job.path / "result.json").read_text())["resumed_at"]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"vertices": "learned"}, "no vertices to permute"),
        ({"vertices": "learned", "permutations": 1, "permute": "symmetries"}, "no vertices to permute"),
        ({"permute": "symmetries"}, "every permutation is a symmetry"),
        ({"permutations": 100, "starts": 100}, "more than 4096"),
        ({"head": "deep"}, "--vertices says"),
        ({"model": "convnet"}, "--model convnet"),
        ({"model": "mpl"}, "did you mean 'mlp'"),
        ({"layers": "all"}, "--layers all"),
        ({"optimizer": "lbfgs", "batch_size": None}, "--optimizer lbfgs"),
        ({"decay": "weights"}, "--decay weights"),
        ({"compile": True}, "--compile"),
    ],
)
def test_what_the_study_cannot_do_is_one_line(changed, words):
    with pytest.raises(RequestError, match=words) as caught:
        alignment(**changed)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["--vertices", "simplx"], "did you mean 'simplex'"),
        (["--permutations", "0"], ">= 1"),
        (["--width", "3"], "--vertices simplex --width 3: these vertices of 5 classes need features of dimension 4 or more"),
        (["--vertices", "polygon", "--width", "1"], "--vertices polygon --width 1: these vertices of 5 classes need features"),
        (["--depth", "0"], "nothing to train"),
        (["--stack", "on"], "cannot train seeds in one program"),
    ],
)
def test_wrong_requests_write_nothing(empirical, tmp_path, words, answer):  # noqa: F811
    code, out, err = empirical("run", "alignment", *FLAGS, *words)
    assert code == 2 and answer in err and not out and err.count("\n") == 1 and not files(tmp_path)


def test_torchrun_is_refused_and_a_setting_survives_its_config(empirical, tmp_path, monkeypatch):  # noqa: F811
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    code, _, err = empirical("run", "alignment", *FLAGS)
    assert code == 2 and "torchrun" in err and not files(tmp_path)
    made = alignment(vertices="polygon", permute="symmetries")
    assert from_setting(study("alignment").spec, json.loads(json.dumps(made.setting()))).resolved() == made


def test_a_run_cites_the_paper_whose_question_it_asks(tmp_path):
    from ufm.commands.cite import use_of

    job = Job("alignment", alignment(), 0, str(tmp_path), "cpu")
    assert attempt(job).exit == 0 and "gao2023" in use_of(job.path).references


def test_the_same_rows_on_a_simulated_card(tmp_path, monkeypatch):
    from simulated_card import Machine

    def rows(device):
        job = Job("alignment", alignment(vertices="polygon"), 0, str(tmp_path / device[:4]), device)
        assert attempt(job).exit == 0
        return [json.loads(line) for line in (job.path / "metrics.jsonl").read_text().splitlines()]

    with Machine().installed(monkeypatch) as card:
        there = rows("cuda:0")
    here = rows("cpu")
    assert card.operations["bmm"] + card.operations["baddbmm"] > 20 and len(there) == len(here)
    for one, other in zip(there, here, strict=True):
        expected = None if other["value"] is None else pytest.approx(other["value"], rel=1e-4, abs=1e-5)
        assert one["metric"] == other["metric"] and one["value"] == expected, one


def test_the_cost_counts_every_network():
    check = study("alignment").function("check")
    one, six = check(alignment(permutations=1, starts=1), 0), check(alignment(), 0)
    assert six.parameters == 6 * one.parameters and six.steps == one.steps and six.seconds == pytest.approx(6 * one.seconds)
