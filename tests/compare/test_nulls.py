import numpy as np
import pytest
from synthetic_runs import rows_of_seed, write_training

from compare.load import load
from compare.nulls import gaussian_means
from compare.papers import Claim, Quantity
from compare.verdict import AGREES, UNDECIDED, judge_claim
from ufm.errors import RequestError


def test_random_means_are_already_nearly_equiangular_in_high_dimension():
    values = gaussian_means("nc2_equiangular_means", 10, 2048, 60)
    low, high = np.quantile(values, [0.05, 0.95])
    assert low > 0.013 and high < 0.022
    # Off-diagonal cosines of random directions have standard deviation 1/sqrt(d); a Gaussian's mean size is sqrt(2/pi) of it.
    assert np.mean(values) == pytest.approx(np.sqrt(2 / np.pi / 2048), rel=0.05)


def test_the_nulls_are_the_measures_themselves():
    torch = pytest.importorskip("torch")
    from ufm.measure import collapse
    from ufm.seeds import stream

    means = stream(0, "null-4-7").standard_normal((1, 4, 7))[0]
    # One sample per class: the class means of these features are the rows themselves.
    found = collapse(torch.from_numpy(means), torch.arange(4))
    for measure in ("nc2_equinorm_means", "nc2_equiangular_means", "nc2_etf_means"):
        assert gaussian_means(measure, 4, 7, 1)[0] == pytest.approx(found[measure], rel=1e-9)


@pytest.mark.parametrize("tolerance, wanted", [(0.004, AGREES), (0.1, UNDECIDED)])
def test_a_tolerance_that_random_means_meet_decides_nothing(tmp_path, tolerance, wanted):
    rows = {seed: rows_of_seed(seed, train_end=1e-6) for seed in range(5)}
    for seed, own in rows.items():
        folder = write_training(tmp_path, seeds=[seed], rows=own, tensors={"weight": np.zeros((10, 2048))})
    claim = Claim(
        "nc2", "", "equivalence", Quantity("nc2_etf_weights"), tolerance=tolerance, log=True,
        null={"random": "gaussian_means"}, control={"epoch": 0},
    )  # fmt: skip
    made = judge_claim(load(folder).of_cell(folder.name), claim)
    assert made.verdict == wanted
    assert ("not distinguishable from random" in made.reason) == (wanted == UNDECIDED)


def test_a_measure_without_class_means_has_no_such_null():
    with pytest.raises(RequestError, match="no null of random means"):
        gaussian_means("nc1_pinv", 10, 8)
