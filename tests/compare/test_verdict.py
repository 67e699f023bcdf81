import dataclasses
import math

import numpy as np
import pytest
from scipy import stats
from synthetic_runs import write_training

from compare.load import load
from compare.papers import Claim, Paper, Quantity, paper
from compare.points import sample_error
from compare.rows import Cell, table_of
from compare.statistics import bootstrap_error, holm, lower_quantile, mean_over_seeds, proportion_error
from compare.verdict import AGREES, DEVIATES, NOT_RUN, UNDECIDED, judge, judge_claim, summary


def table_with(values, *, null=None, other=None, split="train", measure="nc1_pinv", epoch=10):
    """One value per seed at the last epoch, and optionally one at epoch 0 and one of another measure."""
    rows = [(s, epoch, measure, v, split) for s, v in enumerate(values)]
    rows += [(s, 0, measure, v, split) for s, v in enumerate([] if null is None else null)]
    rows += [(s, epoch, "other", v, split) for s, v in enumerate([] if other is None else other)]
    seed, epochs, measures, value, splits = zip(*rows, strict=True)
    number = len(rows)
    return table_of(
        {"seed": seed, "epoch": epochs, "measure": measures, "value": value, "split": splits, "cell": ["c"] * number,
         "layer": ["penultimate"] * number, "centres": ["self"] * number}
    )  # fmt: skip


EQUIVALENCE = Claim(
    "0", "", "equivalence", Quantity("nc1_pinv"), predicted=0, tolerance=0.01, log=True, null={"epoch": 0}, control={"epoch": 0}
)  # fmt: skip
NULL = [1.0, 1.1, 0.9, 1.2, 1.0]


@pytest.mark.parametrize(
    "values, wanted",
    [
        ([0.001, 0.002, 0.001, 0.003, 0.002], AGREES),
        ([0.1, 0.2, 0.1, 0.3, 0.2], DEVIATES),
        ([0.005, 0.02, 0.004, 0.03, 0.008], UNDECIDED),
        ([0.001, 0.002, 0.001, 0.003], UNDECIDED),  # four seeds
    ],
)
def test_equivalence_to_zero(values, wanted):
    assert judge_claim(table_with(values, null=NULL), EQUIVALENCE).verdict == wanted


def test_the_interval_is_student_t_of_the_logs():
    values = [0.001, 0.002, 0.001, 0.003, 0.002]
    made = judge_claim(table_with(values, null=NULL), EQUIVALENCE)
    low, high = stats.t.interval(0.9, 4, loc=np.mean(np.log(values)), scale=stats.sem(np.log(values)))
    assert made.low == pytest.approx(math.exp(low)) and made.high == pytest.approx(math.exp(high))
    assert made.p == pytest.approx(stats.ttest_1samp(np.log(values), math.log(0.01), alternative="less").pvalue)


def test_a_tolerance_that_noise_meets_is_not_distinguishable_from_random():
    made = judge_claim(table_with([0.001] * 4 + [0.002], null=[0.02, 0.03, 0.02, 0.025, 0.03]), EQUIVALENCE)
    assert made.verdict == UNDECIDED and "not distinguishable from random" in made.reason


def test_agreement_needs_a_null_that_was_measured_and_a_control_that_deviates():
    assert "null was not measured" in judge_claim(table_with([0.001] * 4 + [0.002]), EQUIVALENCE).reason
    same = dataclasses.replace(EQUIVALENCE, control={"epoch": "last"}, control_text="the same states")
    made = judge_claim(table_with([0.001] * 4 + [0.002], null=NULL), same)
    assert made.verdict == UNDECIDED and "control (the same states) does not deviate" in made.reason


@pytest.mark.parametrize(
    "planted, wanted",
    [(2.0, AGREES), (2.5, DEVIATES), (1.5, DEVIATES), (2.1, UNDECIDED)],
)
def test_a_planted_wrong_prediction_turns_the_verdict(planted, wanted):
    value = Quantity("nc1_pinv")
    claim = Claim("2", "", "equivalence", value, predicted=planted, tolerance=0.1, null={"epoch": 0}, control={"predicted": 9.0})
    values = [2.01, 1.98, 2.02, 1.97, 2.02]
    assert judge_claim(table_with(values, null=[12.0, 11.0, 13.0, 12.5, 11.5]), claim).verdict == wanted


RATIO = Claim("gap", "", "ratio", Quantity("nc1_pinv"), over=Quantity("other"), least=10, least_each=4, control={"epoch": 0})


@pytest.mark.parametrize(
    "ratios, wanted",
    [
        ([20, 25, 18, 30, 22], AGREES),
        ([5, 6, 5, 4.5, 5.5], DEVIATES),
        ([8, 14, 9, 13, 11], UNDECIDED),
        ([60, 70, 50, 3, 65], DEVIATES),  # one seed below 4
    ],
)
def test_ratio(ratios, wanted):
    table = table_with(np.array(ratios) * 0.1, other=[0.1] * 5)
    assert judge_claim(table, dataclasses.replace(RATIO, control={"least": 1e6})).verdict == wanted


def test_a_ratio_may_be_over_the_same_seeds_in_another_cell():
    one, other = table_with([2.0, 2.2, 1.9, 2.1, 2.0], null=[1.0] * 5), table_with([1.0, 1.1, 0.95, 1.05, 1.0], null=[1.0] * 5)
    claim = dataclasses.replace(RATIO, over=Quantity("nc1_pinv", cell="large"), least=1.5, least_each=0, seeds_needed=5)
    made = judge_claim(one, claim, others={"large": other})
    assert made.verdict == AGREES and made.estimate == pytest.approx(2.0) and made.control.verdict == DEVIATES
    assert made.control.estimate == 1.0  # epoch 0 of both cells
    control = dataclasses.replace(claim, control={"cell": "middle"})  # what is above moves, what is below stays
    middle = judge_claim(one, control, others={"large": other, "middle": table_with([1.2, 1.32, 1.14, 1.26, 1.2])}).control
    assert middle.estimate == pytest.approx(1.2) and middle.verdict == DEVIATES
    assert judge_claim(one, claim, others={}).verdict == NOT_RUN


def test_the_test_sample_widens_the_interval(tmp_path):
    claim = Claim(
        "t", "", "ratio", Quantity("nc1_pinv_strong", "test", centres="train"), over=0.02, least=1.0, control={"least": 1e3}
    )  # fmt: skip
    folder = write_training(tmp_path / "plain")
    plain = judge_claim(load(folder).of_cell(folder.name), claim)
    # Two of 60 points carry all of the variance: the seeds agree with one another, and yet the mean is uncertain.
    share = np.zeros(60)
    share[:2] = 0.9
    folder = write_training(tmp_path / "sampled", tensors={"penultimate/test/strong": share})
    made = judge_claim(load(folder).of_cell(folder.name), claim)
    assert plain.verdict == AGREES and made.verdict == UNDECIDED
    assert made.estimate == plain.estimate and made.low < plain.low and made.high > plain.high


def test_a_share_of_errors_is_binomial_in_the_test_points(tmp_path):
    folder = write_training(tmp_path, tensors={"test/labels": np.zeros(100, dtype=np.int64)})
    cell = load(folder).cells[folder.name]
    found = sample_error(cell, 0, Quantity("ncc_error", "test", centres="train"), 0.2)
    assert found == pytest.approx(0.04, rel=0.05)
    assert sample_error(cell, 0, Quantity("ncc_error", "test", centres="train", epoch=0), 0.2) == 0


def test_demo_claims_on_collapsed_runs_all_agree_and_every_control_deviates(tmp_path):
    write_training(tmp_path)
    verdicts = judge(load(tmp_path), paper("hui2022"), "demo")
    assert {v.claim.name: v.verdict for v in verdicts} == dict.fromkeys(
        ["train-collapse", "train-test-gap", "test-stays-above", "test-floor", "test-identity"], AGREES
    )
    assert all(v.control.verdict == DEVIATES for v in verdicts)
    assert summary(verdicts) == "5 agree, 0 deviate, 0 undecided, 0 not run"


@pytest.mark.parametrize(
    "numbers, claim",
    [
        ({"train_end": 0.05}, "train-collapse"),
        ({"test_end": 0.001, "error": 1e-4}, "test-stays-above"),
        ({"test_end": 0.001, "error": 1e-4}, "train-test-gap"),
        ({"test_end": 0.003, "error": 0.02}, "test-floor"),
    ],
)
def test_demo_claims_deviate_where_the_numbers_contradict_them(tmp_path, numbers, claim):
    write_training(tmp_path, **numbers)
    verdicts = {v.claim.name: v for v in judge(load(tmp_path), paper("hui2022"), "demo")}
    assert verdicts[claim].verdict == DEVIATES


def test_only_registered_seeds_are_judged_and_missing_runs_are_not_run(tmp_path):
    write_training(tmp_path, seeds=range(3, 9))
    verdicts = judge(load(tmp_path), paper("hui2022"), "demo")
    assert all(v.seeds == (3, 4) and v.verdict == UNDECIDED for v in verdicts)
    other = tmp_path / "other"
    write_training(other, setting={"dataset": "mnist5k"})
    assert all(v.verdict == NOT_RUN for v in judge(load(other), paper("hui2022"), "demo"))


def test_a_broken_identity_deviates_and_names_the_point(tmp_path):
    folder = write_training(tmp_path)
    table = load(folder)
    values = table.data["value"].copy()
    where = np.flatnonzero(table.mask(measure="nc1_pinv_cross", seed=2, epoch=10))[0]
    values[where] += 1e-3
    verdicts = {v.claim.name: v for v in judge(table.with_columns(value=values), paper("hui2022"), "demo")}
    assert verdicts["test-identity"].verdict == DEVIATES and "seed 2, epoch 10" in verdicts["test-identity"].reason


def test_the_floor_is_not_asked_where_the_means_have_low_rank(tmp_path):
    table = load(write_training(tmp_path))
    values = table.data["value"].copy()
    values[table.mask(measure="nc1_pinv_between")] *= 0.7
    values[table.mask(measure="nc1_pinv_strong", epoch=100)] = 1e-6
    made = {v.claim.name: v for v in judge(table.with_columns(value=values), paper("hui2022"), "demo")}["test-floor"]
    assert made.verdict == NOT_RUN and "20 points with means of rank below K-1 left out" in made.reason


def test_general_claims_judge_any_run_even_of_one_seed(tmp_path):
    write_training(tmp_path, seeds=[7], setting={"dataset": "own"}, name="own")
    verdicts = judge(load(tmp_path), paper("general"))
    assert [v.verdict for v in verdicts] == [AGREES, AGREES]


def test_holm_turns_a_marginal_agreement_into_undecided():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])


def test_holm_counts_the_tests_that_decided_nothing():
    values = [0.001, 0.002, 0.001, 0.003, 0.002]
    logs = np.log(values)
    edge = math.exp(np.mean(logs) + stats.t.ppf(0.97, 4) * stats.sem(logs))  # p = .03
    marginal = dataclasses.replace(EQUIVALENCE, name="marginal", tolerance=edge)
    vague = [dataclasses.replace(EQUIVALENCE, name=str(i), tolerance=math.exp(np.mean(logs))) for i in range(3)]  # p = .5
    table = dataclasses.replace(table_with(values, null=NULL), cells={"c": Cell("c", "collapse", "", {})})
    alone = judge(table, Paper("p", 1, "", "", (marginal,)))
    assert [v.verdict for v in alone] == [AGREES] and alone[0].p_holm == pytest.approx(0.03)
    among = judge(table, Paper("p", 1, "", "", (marginal, *vague)))
    assert [v.verdict for v in among] == [UNDECIDED] * 4 and among[0].p_holm == pytest.approx(0.12)
    assert "Holm" in among[0].reason and "Holm" not in among[1].reason


def test_mean_over_seeds_joins_seed_and_sample_variance():
    plain = mean_over_seeds([1.0, 2.0, 3.0])
    assert plain.deviation == pytest.approx(stats.sem([1, 2, 3])) and plain.freedom == 2
    joined = mean_over_seeds([1.0, 2.0, 3.0], test_errors=[1.0, 1.0, 1.0])
    assert joined.deviation == pytest.approx(math.sqrt(1 / 3 + 1)) and joined.freedom == pytest.approx(2 * 16)


def test_five_seeds_cover_what_they_say_and_false_agreement_is_rare():
    rng = np.random.default_rng(7)
    draws = np.exp(math.log(0.01) + 0.5 * rng.standard_normal((2000, 5)))  # the truth sits exactly on the tolerance
    means = [mean_over_seeds(row, log=True) for row in draws]
    covered = np.mean([low <= 0.01 <= high for low, high in (m.interval() for m in means)])
    assert covered == pytest.approx(0.90, abs=0.02)
    assert np.mean([m.p_below(0.01) <= 0.05 for m in means]) == pytest.approx(0.05, abs=0.015)


def test_bootstrap_error_of_a_mean_is_its_standard_error():
    sample = np.random.default_rng(0).standard_normal(400)
    assert bootstrap_error(sample) == pytest.approx(stats.sem(sample), rel=0.1)
    assert bootstrap_error(sample) == bootstrap_error(sample)


def test_small_statistics():
    assert proportion_error(0.5, 10_000) == pytest.approx(0.005, rel=1e-2)
    assert proportion_error(0.0, 100) > 0
    draws = np.exp(np.random.default_rng(1).standard_normal(5000))
    assert lower_quantile(draws) == pytest.approx(np.quantile(draws, 0.01))
    assert lower_quantile(draws[:50]) == pytest.approx(math.exp(stats.norm.ppf(0.01)), rel=0.5)


def test_the_null_of_five_networks_knows_that_it_is_five():
    """One more null value falls below the 1 % limit once in a hundred: with a normal quantile it would be one in twenty."""
    draws = np.exp(0.4 * np.random.default_rng(2).standard_normal((4000, 6)))
    below = np.mean([row[5] < lower_quantile(row[:5]) for row in draws])
    assert below == pytest.approx(0.01, abs=0.006)
    assert lower_quantile([1.0]) == 0.0 and lower_quantile([1.0, 0.0, 2.0]) == 0.0


def test_a_degenerate_zero_is_no_collapse():
    """One sample per class: within-class scatter is 0 whatever the network does."""
    table = table_with([0.0] * 5, null=NULL)
    columns = {name: table[name].tolist() for name in ("seed", "epoch", "measure", "value", "split", "cell", "layer", "centres")}
    flags = ["degenerate" if value == 0 else "" for value in columns["value"]]
    claim = dataclasses.replace(EQUIVALENCE, log=False)
    assert judge_claim(table_of({**columns, "flag": flags}), claim).verdict == NOT_RUN
    assert judge_claim(table, claim).verdict == AGREES  # the same numbers, measured on more samples
    made = judge_claim(table, EQUIVALENCE)
    assert made.verdict == UNDECIDED and "logarithm" in made.reason


@pytest.mark.parametrize("claim", [EQUIVALENCE, RATIO])
def test_no_file_of_claims_can_ask_for_fewer_than_five_seeds(claim):
    table = table_with([0.001, 0.002, 0.001, 0.003], null=NULL[:4], other=[1e-5] * 4)
    made = judge_claim(table, dataclasses.replace(claim, seeds_needed=1))
    assert made.verdict == UNDECIDED and "at least 5 are needed" in made.reason


def test_registered_seeds_that_are_missing_are_said():
    table = table_with([0.001, 0.002, 0.001, 0.003, 0.002], null=NULL)
    made = judge_claim(table, EQUIVALENCE, seeds=range(7))
    assert made.verdict == AGREES and "without the registered seeds 5, 6" in made.reason
    assert "without" not in judge_claim(table, EQUIVALENCE, seeds=range(5)).reason


def test_seeds_that_do_not_differ_are_said():
    made = judge_claim(table_with([0.001] * 5, null=NULL), EQUIVALENCE)
    assert "every seed gives the same number" in made.reason


def test_a_test_value_without_its_points_says_whose_interval_it_is():
    claim = dataclasses.replace(EQUIVALENCE, value=Quantity("nc1_pinv", "test"))
    values = [0.001, 0.002, 0.001, 0.003, 0.002]
    assert "over seeds alone" in judge_claim(table_with(values, null=NULL, split="test"), claim).reason
    assert "over seeds alone" not in judge_claim(table_with(values, null=NULL), EQUIVALENCE).reason


def test_equivalence_never_agrees_beyond_its_level_where_the_truth_is_at_the_edge():
    """Planted: the truth sits exactly on predicted + tolerance; agreement is an error, and so is deviation."""
    rng = np.random.default_rng(11)
    value = Quantity("nc1_pinv")
    claim = Claim("2", "", "equivalence", value, predicted=2.0, tolerance=0.1, control={"predicted": 9.0})
    verdicts = [judge_claim(table_with(2.1 + 0.02 * rng.standard_normal(5)), claim).verdict for _ in range(400)]
    assert verdicts.count(AGREES) / 400 <= 0.085 and verdicts.count(DEVIATES) / 400 <= 0.085  # .05 and three standard errors
    assert verdicts.count(UNDECIDED) > 300
