"""The system `benign`: against networks trained by autograd in R^d, brute force over test points, and a published grid."""

import dataclasses

import numpy as np
import pytest
import torch
from scipy import stats

from ufm.cli import main
from ufm.errors import RequestError
from ufm.solution import Status
from ufm.systems import Task
from ufm.systems.benign import Benign, check, signal_of
from ufm.systems.benign_net import Nets, draw, error_law, train
from ufm.systems.benign_run import predict, simulate

CASES = {
    "relu": Benign(dim=100, signal=3.0, flip=0.1),
    "few dimensions": Benign(dim=15, signal=2.0, flip=0.2, samples=8, filters=3, init="fan_in", init_scale=1.0, noise=1.5),
    "power": Benign(dim=120, signal=6.0, q=3.0, orthogonal=True, init_scale=0.1),
    "square": Benign(dim=2, signal=1.0, q=2.0),
    "output": Benign(dim=60, signal=2.0, flip=0.3, output=0.5, init="fan_in", init_scale=0.6, samples=30, orthogonal=True),
}
STEPS = 120


def outside(spec, one):
    """Return (noise, filters, mu) of a draw as vectors of R^d, in axes that have nothing to do with its own."""
    axes = np.linalg.qr(np.random.default_rng(5).standard_normal((spec.dim, spec.dim)))[0]
    width = one.noise.shape[1]
    return (
        torch.tensor(part) for part in (one.noise @ axes[:, :width].T, one.filters @ axes[:, :width].T, spec.signal * axes[:, 0])
    )


def output(spec, weights, signal, noise):
    """Return f of points with signal patches (T, d) and noise patches (T, d), written down from the model."""
    m = spec.filters
    each = torch.relu(signal @ weights.T) ** spec.q + torch.relu(noise @ weights.T) ** spec.q
    return (1 / m if spec.output is None else spec.output) * (each[:, :m].sum(1) - each[:, m:].sum(1))


def trained_plainly(spec, one):
    noise, filters, mu = outside(spec, one)
    clean, labels = torch.tensor(one.clean), torch.tensor(one.labels)
    weights = filters.clone().requires_grad_(True)
    for _ in range(STEPS):
        loss = torch.nn.functional.softplus(-labels * output(spec, weights, clean[:, None] * mu, noise)).mean()
        (gradient,) = torch.autograd.grad(loss, weights)
        with torch.no_grad():
            weights -= spec.lr * gradient
    weights = weights.detach()
    loss = torch.nn.functional.softplus(-labels * output(spec, weights, clean[:, None] * mu, noise)).mean()
    return weights, noise, mu, float(loss)


@pytest.mark.parametrize("name", CASES)
def test_training_is_that_of_autograd_on_vectors(name):
    spec = CASES[name]
    one = draw(spec, 3)
    nets = Nets.of([spec], [one], "cpu")
    lost, clipped = train(nets, STEPS, clip=False)
    weights, noise, mu, loss = trained_plainly(spec, one)
    found = torch.cat([weights @ noise.T, (weights @ mu / spec.signal)[:, None]], 1)
    assert (found - nets.projections[0]).abs().max() < 1e-10
    assert (weights @ weights.T - nets.weight_gram()[0]).abs().max() < 1e-10
    assert float(torch.nn.functional.softplus(-nets.labels * nets.outputs()).mean()) == pytest.approx(loss, abs=1e-12)
    assert float(lost[0]) == -1 and float(clipped[0]) == 0
    # The law of a test point: errors and both losses of 100,000 drawn in R^d.
    law = {key: float(value[0]) for key, value in error_law(nets, [3], 4000).items()}
    generator, number = np.random.default_rng(7), 100_000
    clean = torch.tensor(generator.choice([-1.0, 1.0], number))
    patches = torch.tensor(spec.noise * generator.standard_normal((number, spec.dim)))
    if spec.orthogonal:
        patches -= (patches @ mu)[:, None] * mu / mu.square().sum()
    margin = clean * output(spec, weights, clean[:, None] * mu, patches)
    assert law["clean_error"] == pytest.approx(float((margin < 0).double().mean()), abs=0.012)
    for key, sign in (("loss_plus", -1), ("loss_minus", 1)):
        losses = torch.nn.functional.softplus(sign * margin)
        assert law[key] == pytest.approx(float(losses.mean()), abs=4 * float(losses.std()) / 4000**0.5)


def test_draws_have_the_law_of_vectors_in_all_dimensions():
    """Independent: the same inner products of vectors drawn in R^d; two samples, Kolmogorov and Smirnov."""
    spec = Benign(samples=2, filters=1, dim=12, noise=2.0, init_scale=0.5)
    generator = np.random.default_rng(2)
    ours, theirs = [], []
    for seed in range(1500):
        one = draw(spec, seed)
        theirs.append(_products(2.0 * generator.standard_normal((2, 12)), 0.5 * generator.standard_normal((2, 12))))
        ours.append(_products(one.noise, one.filters))
    for a, b in zip(np.array(ours).T, np.array(theirs).T, strict=True):
        assert stats.ks_2samp(a, b).pvalue > 1e-3


def _products(noise, filters):
    return [noise[0] @ noise[0], noise[1] @ noise[1], noise[0] @ noise[1], noise[0, 0], filters[0] @ noise[1],
            filters[1] @ filters[1], filters[0] @ filters[1], filters[1, 0]]  # fmt: skip


def test_noise_is_orthogonal_to_the_signal_where_asked_and_flips_are_of_the_labels_seen():
    one = draw(Benign(orthogonal=True, flip=0.3, samples=2000, filters=2), 0)
    assert not one.noise[:, 0].any() and set(np.unique(one.clean)) == {-1.0, 1.0}
    assert np.mean(one.clean != one.labels) == pytest.approx(0.3, abs=0.04)
    assert not (draw(Benign(), 0).clean != draw(Benign(), 0).labels).any()


def test_a_cell_is_the_same_alone_and_among_others():
    specs = [Benign(dim=d, signal=s, flip=0.1, samples=n) for d in (50, 900) for s in (0.0, 2.0) for n in (10, 20)]
    tasks = [Task(spec, seed) for spec in specs for seed in (4, 9)]
    together = simulate(tasks, "cpu")
    for task, row in zip(tasks, together, strict=True):
        alone = simulate([task], "cpu")[0]
        assert alone["measures"] == pytest.approx(row["measures"], rel=1e-9, abs=1e-12) and alone["status"] == row["status"]


def test_the_test_error_does_not_hang_on_the_batch_or_on_the_order_of_filters():
    """Few directions: another square root of the same covariance gives other errors."""
    spec = Benign(dim=300, signal=2.0, flip=0.1, test_points=10)
    tasks = [Task(dataclasses.replace(spec, dim=d), 5) for d in range(300, 340)]
    together = [row["measures"] for row in simulate(tasks, "cpu")]
    for i in (0, 17, 39):
        assert simulate([tasks[i]], "cpu")[0]["measures"] == pytest.approx(together[i], abs=1e-13)
    # Weights that differ by rounding alone, at a covariance whose eigenvectors are arbitrary.
    base = Nets.of([spec], [draw(spec, 5)], "cpu")
    base.start_gram = torch.eye(20, dtype=torch.float64)[None]
    law = error_law(base, [5], 10)
    for seed in range(5):
        tiny = torch.tensor(np.random.default_rng(seed).standard_normal(base.start_gram.shape))
        moved = dataclasses.replace(base, start_gram=base.start_gram + 1e-15 * (tiny + tiny.mT))
        for key, value in error_law(moved, [5], 10).items():
            assert float(value) == pytest.approx(float(law[key]), abs=1e-12)


def test_a_row_says_what_was_found_beside_what_is_known():
    row = simulate([Task(Benign(flip=0.1, signal=3.0), 0)], "cpu")[0]
    known, found = predict(Benign(flip=0.1, signal=3.0)), row["measures"]
    assert row["status"] == Status.ARRIVED.value and row["side"] == "between" and row["signal"] == 3.0
    assert row["variable"] == known["variable"] == pytest.approx(20 * 81 / 1000)
    assert found["test_error"] == pytest.approx(0.1 * (1 - found["clean_error"]) + 0.9 * found["clean_error"])
    assert found["train_error"] == 0 and found["margin"] > 0 and found["noise_memorized"] > 0
    assert row["prediction"]["values"]["test_error"] == known["test_error"] == pytest.approx(found["test_error"], abs=0.06)
    assert row["prediction"]["reference"] == "kou2023"


def test_without_a_signal_nothing_is_learnt_of_it():
    row = simulate([Task(Benign(signal=0.0), 0)], "cpu")[0]
    assert row["measures"]["clean_error"] == pytest.approx(0.5, abs=1e-12) and row["measures"]["train_error"] == 0
    assert row["measures"]["signal_learned"] == 0 and row["loss"] < 0.1


def test_the_signal_may_be_given_by_its_norm_its_ratio_or_its_variable():
    assert signal_of(Benign()) == 5 and signal_of(Benign(signal=0.0)) == 0
    assert signal_of(Benign(snr=0.1, dim=400, noise=2.0)) == pytest.approx(4.0)
    assert signal_of(Benign(variable=1.0, dim=320, samples=20)) == pytest.approx(2.0)
    assert signal_of(Benign(variable=20 / 8, dim=400, q=3.0)) == pytest.approx(10.0)
    for names in (("signal", "snr"), ("snr", "variable"), ("signal", "variable")):
        with pytest.raises(RequestError, match="give one of them"):
            check(Benign(**dict.fromkeys(names, 1.0)))


def test_steps_that_are_too_long_are_shortened_or_diverge_with_the_step():
    wild = dict(q=4.0, lr=50.0, dim=2000, init_scale=0.3, steps=40)
    clipped, plain = simulate([Task(Benign(**wild), 0), Task(Benign(**wild, clip=False), 0)], "cpu")
    assert clipped["measures"]["clipped_steps"] > 0 and clipped["status"] == Status.ARRIVED.value and clipped["loss"] < 2
    assert plain["measures"]["clipped_steps"] == 0 and (plain["loss"] > 1e3 or plain["status"] == Status.DIVERGED.value)
    lost = simulate([Task(Benign(q=4.0, lr=1e90, dim=100, init_scale=1.0, clip=False), 0)], "cpu")[0]
    assert lost["status"] == Status.DIVERGED.value and "at step" in lost["reasons"]["clean_error"]
    gentle = [simulate([Task(Benign(q=3.0, clip=clip, lr=0.01), 1)], "cpu")[0]["loss"] for clip in (True, False)]
    assert gentle[0] == gentle[1]


# Test errors of the authors' program (github.com/uclaml/Benign_ReLU_CNN, data_test100.csv; ten networks and 1000 points each)
# at |mu| = 0, 1, .., 9. It has weights 1/2 and a start of deviation 1/sqrt(3 d); its biases and uniform start are not ours.
PUBLISHED = {
    100: (0.4978, 0.3569, 0.2402, 0.1821, 0.1555, 0.1274, 0.1182, 0.1196, 0.1141, 0.1199),
    590: (0.5033, 0.4504, 0.3504, 0.2668, 0.1910, 0.1579, 0.1297, 0.1035, 0.1140, 0.1000),
    1090: (0.4989, 0.4714, 0.4067, 0.3151, 0.2151, 0.1312, 0.1102, 0.1010, 0.1099, 0.1188),
}


def test_the_published_errors_of_relu_networks_are_found():
    base = Benign(flip=0.1, output=0.5, init="fan_in", init_scale=3**-0.5, test_points=400)
    tasks = [
        Task(dataclasses.replace(base, dim=d, signal=float(s)), seed) for d in PUBLISHED for s in range(10) for seed in range(10)
    ]
    found = np.array([row["measures"]["test_error"] for row in simulate(tasks, "cpu")]).reshape(3, 10, 10).mean(2)
    published = np.array(list(PUBLISHED.values()))
    assert np.corrcoef(found.ravel(), published.ravel())[0, 1] > 0.99
    assert np.abs(found - published).max() < 0.06  # their standard error is about 0.02, ours likewise


def test_the_command_runs_predicts_and_refuses(tmp_path, capsys):
    out = str(tmp_path / "runs")
    words = ["benign", "--q", "1,3", "--signal", "1,20", "--samples", "10"]
    assert main(["simulate", *words, "--seeds", "0:2", "--out", out], standalone_mode=False) in (0, None)
    text = capsys.readouterr().out
    assert "clean_error" in text and "benign" in text and "harmful" in text
    assert main(["predict", *words, "--strict"], standalone_mode=False) == 0
    assert "n SNR^q" in capsys.readouterr().out
    assert main(["predict", "benign", "--q", "2", "--strict"], standalone_mode=False) == 1
    with pytest.raises(RequestError, match="fit one Gram matrix"):
        main(["simulate", "benign", "--samples", "4000", "--filters", "1000", "--out", out], standalone_mode=False)
    with pytest.raises(RequestError, match="out of range"):
        main(["simulate", "benign", "--flip", "0.5", "--out", out], standalone_mode=False)


@pytest.mark.parametrize(
    "words",
    [["--signal", "1e99"], ["--noise", "1e-90"], ["--snr", "1e90"], ["--noise", "1e-300"], 
     ["--signal", "1e60", "--noise", "1e-60"], ["--q", "10", "--signal", "1e50"]],
)  # fmt: skip
@pytest.mark.parametrize("command", ["simulate", "predict"])
def test_numbers_whose_powers_are_none_are_refused(command, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RequestError, match=r"out of range|at most|below 1e-70|overflows") as found:
        main([command, "benign", *words], standalone_mode=False)
    assert len(str(found.value).splitlines()) == 1 and not list(tmp_path.iterdir())


def test_small_steps_bring_the_law_and_large_ones_do_not():
    """Forty seeds beside the law at kappa 1/4: .28 with lr a sigma^2 d/n = .8, .35 with 32 and weights 1/2."""
    found = {}
    for name, options in (("small", dict(lr=0.1, steps=60)), ("large", dict(lr=0.8, output=0.5, steps=60))):
        spec = Benign(dim=1600, variable=0.25, flip=0.1, init="fan_in", init_scale=1e-3, test_points=100, **options)
        rows = simulate([Task(spec, seed) for seed in range(40)], "cpu")
        found[name] = np.mean([row["measures"]["clean_error"] for row in rows]), predict(spec)
    (small, known), (large, unknown) = found["small"], found["large"]
    assert small == pytest.approx(known["clean_error"], abs=0.03) and large > 0.32
    assert unknown["clean_error"] is None and "lr a sigma^2 d/n = 32" in unknown["reason"]


def test_cost_grows_with_everything_but_the_dimension():
    base = check(Benign())
    assert check(Benign(dim=10**9)) == base
    for changes in ({"samples": 200}, {"filters": 100}, {"steps": 1000}, {"test_points": 10**6}):
        more = check(Benign(**changes))
        assert more.seconds > base.seconds and more.memory >= base.memory
    assert check(Benign(test_points=10**7)).memory > 5e9
    vast = simulate([Task(Benign(dim=10**9, signal=300.0), 0)], "cpu")[0]  # costs what d = 1000 costs
    assert vast["measures"]["train_error"] == 0
