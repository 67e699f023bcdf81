"""What theory says of benign overfitting, against simulation, quadrature and the race that the border is derived from."""

import math

import numpy as np
import pytest
from scipy.integrate import solve_ivp

from ufm.errors import RequestError
from ufm.prediction import EVIDENCE, STATED
from ufm.theory import benign

SETTING = dict(samples=20, dim=1000, signal=5.0, noise=1.0, q=1.0, flip=0.1, filters=10, start=0.1, orthogonal=False)
SETTING |= dict(lr=0.1, steps=100, output=0.1)


@pytest.mark.parametrize(("kappa", "flip"), [(1e-9, 0.0), (0.25, 0.1), (1.0, 0.0), (4.0, 0.3), (30.0, 0.1)])
def test_the_leading_order_error_is_that_of_two_rectified_normals(kappa, flip):
    u, v = np.random.default_rng(1).standard_normal((2, 400_000))
    s = (1 - 2 * flip) * math.sqrt(kappa / 2)
    share = np.mean(np.maximum(u, 0) - np.maximum(v, 0) > s)
    assert benign.relu_clean_error(kappa, flip) == pytest.approx(share, abs=4 * math.sqrt(0.25 / 400_000))


def test_the_leading_order_error_falls_and_knows_kappa_and_flip_through_one_number():
    errors = [benign.relu_clean_error(k, 0.1) for k in np.geomspace(1e-4, 1e3, 30)]
    assert errors[0] == pytest.approx(3 / 8, abs=5e-3) and errors[-1] < 1e-9 and np.all(np.diff(errors) < 0)
    assert benign.relu_clean_error(4.0, 0.25) == pytest.approx(benign.relu_clean_error(1.0, 0.0), rel=1e-9)
    assert benign.noisy_error(0.25, 0.1) == pytest.approx(0.1 * 0.75 + 0.9 * 0.25)  # wrong by the flip, or by the network


@pytest.mark.parametrize("q", [2.5, 3.0, 4.0])
def test_the_border_is_where_signal_and_noise_blow_up_at_the_same_time(q):
    """Independent: the two growth equations, integrated; which explodes first changes at the border."""
    n, d, sigma, start, c = 20, 500, 1.3, 1e-2, 1.0

    def explosion(rate, begin):
        reached = lambda t, z: z[0] - 1e4 * start  # noqa: E731
        reached.terminal = True
        found = solve_ivp(lambda t, z: rate * z ** (q - 1), (0, 1e9), [begin], events=reached, rtol=1e-9, method="LSODA")
        return found.t[-1]

    for factor, signal_first in ((0.99, False), (1.01, True)):
        mu = factor * benign.power_border(n, sigma, d, q)
        signal = explosion(c * mu**2 / 2, start * mu)
        noise = explosion(c * sigma**2 * d / n, start * sigma * math.sqrt(d))
        assert (signal < noise) == signal_first


def test_borders_are_where_their_variables_have_the_level():
    mu = benign.power_border(20, 2.0, 300, 3.0, level=0.7)
    assert benign.power_variable(20, mu, 2.0, 300, 3.0) == pytest.approx(0.7, rel=1e-13)
    mu = benign.kappa_border(20, 2.0, 300, level=0.7)
    assert benign.kappa(20, mu, 2.0, 300) == pytest.approx(0.7, rel=1e-13)
    assert benign.kappa_border(20, 1.0, 1600) / benign.kappa_border(20, 1.0, 100) == pytest.approx(2.0)  # d^(1/4)


@pytest.mark.parametrize(
    ("changes", "name", "side", "status", "error"),
    [
        ({}, "kappa", "benign", EVIDENCE, True),
        ({"signal": 1.9}, "kappa", "harmful", EVIDENCE, True),
        ({"signal": 3.0}, "kappa", "between", EVIDENCE, True),
        ({"start": 3.0}, "kappa", "benign", STATED, False),
        ({"filters": 3}, "kappa", "benign", STATED, False),
        ({"dim": 100}, "kappa", "benign", STATED, False),
        ({"lr": 0.3}, "kappa", "benign", STATED, False),
        ({"output": 0.5}, "kappa", "benign", STATED, False),
        ({"noise": 2.0, "signal": 8.0}, "kappa", "between", STATED, False),
        ({"steps": 10}, "kappa", "benign", STATED, False),
        ({"samples": 10}, "kappa", "between", STATED, False),
        ({"flip": 0.3}, "kappa", "benign", STATED, False),
        ({"signal": 1.5, "dim": 1500, "lr": 0.05}, "kappa", "harmful", STATED, False),
        ({"signal": 0.0}, "kappa", "harmful", EVIDENCE, True),
        ({"signal": 0.0, "lr": 10.0, "filters": 1}, "kappa", "harmful", EVIDENCE, True),
        ({"q": 3.0, "flip": 0.0}, "n SNR^q", "harmful", STATED, False),
        ({"q": 3.0, "flip": 0.0, "signal": 40.0}, "n SNR^q", "benign", STATED, False),
    ],
)
def test_a_setting_is_on_a_side_and_the_error_is_given_only_where_it_was_compared(changes, name, side, status, error):
    found = benign.regime(**{**SETTING, **changes})
    assert (found.variable_name, found.side, found.status, found.applies) == (name, side, status, True)
    assert (found.clean_error is not None) == error
    assert bool(found.reason) == (name == "kappa" and not error)
    assert (found.border is not None) == (name == "n SNR^q")


@pytest.mark.parametrize(("changes", "words"), [({"q": 2.0}, "1 < q <= 2"), ({"q": 3.0}, "flipped labels")])
def test_where_no_theorem_is_known_the_reason_says_so(changes, words):
    found = benign.regime(**{**SETTING, **changes})
    assert not found.applies and words in found.reason and "use" in found.reason and found.variable is None


def test_without_a_signal_the_error_is_a_half_and_no_limit_of_the_law():
    assert benign.relu_clean_error(0.0, 0.1) == 0.5 and benign.regime(**{**SETTING, "signal": 0.0}).clean_error == 0.5


def test_the_ratio_of_signal_to_noise_is_raised_and_not_each():
    assert benign.kappa(20, 1e-68, 1e-70, 20) == pytest.approx(1e8) and benign.kappa(20, 1e70, 1e69, 20) == pytest.approx(1e4)


def test_wrong_numbers_are_refused():
    with pytest.raises(RequestError, match=r"q 2\.0 must be > 2"):
        benign.power_border(20, 1.0, 100, 2.0)
    for kappa, flip in ((-1.0, 0.1), (1.0, 0.5), (math.nan, 0.1)):
        with pytest.raises(RequestError, match="must be >= 0"):
            benign.relu_clean_error(kappa, flip)
