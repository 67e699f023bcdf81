"""`predict` and `structures`: which form answers, what a refusal says, rewrites, invariances, cost of import."""

import itertools
import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ufm
from ufm.errors import RequestError
from ufm.prediction import DERIVED, EVIDENCE, STATED
from ufm.references import REFERENCES
from ufm.tables import load
from ufm.theory import PREDICTIONS, STRUCTURES, canonical, seli

BASE = {"lambda_w": 0.01, "lambda_h": 0.002}


def test_predicting_imports_no_torch():
    code = (
        "import sys, ufm; assert 'scipy' not in sys.modules; import ufm.theory, ufm.predict, ufm.references;"
        "assert 'scipy' not in sys.modules;"
        "ufm.predict(ufm.Problem(4, 4, (9, 9, 3, 3))); ufm.structures(ufm.Problem(3, 3)); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=60)


@pytest.mark.parametrize("order", ["import ufm.predict", "from ufm.predict import structures", "import ufm; ufm.structures"])
def test_functions_are_not_shadowed_by_their_modules(order):
    subprocess.run([sys.executable, "-c", f"{order}; import ufm; assert callable(ufm.predict)"], check=True, timeout=60)


def test_every_prediction_of_the_table_answers_somewhere():
    problems = {
        "balanced_contrast": ufm.Problem(3, 3),
        "balanced_mse": ufm.Problem(3, 3, loss="mse"),
        "orthogonal_mse": ufm.Problem(3, 3, (9, 4, 2), loss="mse"),
        "ball_mse": ufm.Problem(3, 3, loss="mse", bias="free", constraint="ball", energy_w=0.2),
        "symmetric_mse": ufm.Problem(2, 3, 4, loss="mse", targets=((0.9, 0.1), (0.1, 0.9)), bias="ridge", lambda_b=1.0),
        "soft_threshold_mse": ufm.Problem(3, 3, (9, 4, 2), loss="mse", bias="free"),
        "two_sizes": ufm.Problem(3, 3, (9, 4, 4)),
        "nonnegative_contrast": ufm.Problem(3, 3, (9, 4, 2), features="nonnegative"),
        "nonnegative_mse": ufm.Problem(3, 3, loss="mse", bias="free", features="nonnegative"),
        "unit_norm": ufm.Problem(3, 3, constraint="sphere"),
        "rank_limited": ufm.Problem(5, 2),
        "contrastive": ufm.Problem(3, 3, loss="supcon", constraint="sphere"),
        "soft_targets": ufm.Problem(2, 2, 4, targets=((0.9, 0.1), (0.1, 0.9))),
        "zero": ufm.Problem(3, 3, (9, 4, 2), bias="free", lambda_w=9.0, lambda_h=9.0),
    }
    assert set(problems) == set(PREDICTIONS)
    for name, problem in problems.items():
        own = load(PREDICTIONS, name, "prediction")(problem)
        first = ufm.predict(problem)
        assert own.applies and first.applies, name
        assert own.loss == pytest.approx(first.loss, rel=1e-12), name
        assert own.status in (DERIVED, EVIDENCE, STATED) and own.reference in REFERENCES and own.assumptions, name
        assert own.tolerance <= 1e-10, name
        if own.logits is not None:
            assert own.logits.shape == (len(problem.count_vector), problem.classes), name
            assert own.bias.shape == (problem.classes,) if own.unique else own.bias is None, name
        assert (own.gram_w is None) == (not own.unique or problem.loss == "supcon"), name


def test_the_forms_of_squared_error_agree():
    """Balanced, orthogonal and soft-threshold forms are the same optimum where they overlap."""
    for bias, names in (
        ("none", ["balanced_mse", "orthogonal_mse", "soft_threshold_mse"]),
        ("free", ["balanced_mse", "soft_threshold_mse"]),
    ):
        p = ufm.Problem(4, 4, 7, loss="mse", bias=bias, **BASE)
        first, *others = (load(PREDICTIONS, name, "prediction")(p) for name in names)
        for other in others:
            assert other.loss == pytest.approx(first.loss, rel=1e-13)
            np.testing.assert_allclose(other.logits, first.logits, atol=1e-13)
            np.testing.assert_allclose(other.gram_w, first.gram_w, atol=1e-13)
            np.testing.assert_allclose(other.gram_h, first.gram_h, atol=1e-13)
            np.testing.assert_allclose(other.singular_values, first.singular_values, atol=1e-12)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"counts": (40, 40, 10, 5)}, "two class sizes"),
        ({"counts": (40, 40, 10, 10), "bias": "free"}, "bias"),
        ({"counts": (40, 40, 10, 10), "loss": "focal"}, "focal"),
        ({"logit_scale": (1, 1, 1, 0.5)}, "logit_scale"),
        ({"logit_offset": (0, 0, 0, 1.0)}, "logit_offset"),
        ({"class_weights": (1, 1, 1, 2.0), "bias": "free"}, "bias"),
        ({"dim": 1, "loss": "smoothing"}, "d >= K-1 = 3"),
        ({"dim": 1}, "d = 1"),
        ({"lambda_w": 0.0}, "lambda_w * lambda_h"),
        ({"lambda_h": 0.0, "loss": "mse"}, "lambda_w * lambda_h"),
        ({"loss": "mse", "bias": "ridge", "lambda_b": 1.0, "counts": (9, 4, 3, 2)}, "ridge bias"),
        ({"loss": "mse", "bias": "ridge", "lambda_b": 9.0, "dim": 3}, "d >= 4"),
        ({"loss": "mse", "bias": "free", "constraint": "ball", "counts": (9, 4, 3, 2)}, "balanced classes"),
        ({"loss": "mse", "class_weights": (1, 1, 1, 2.0), "bias": "free"}, "class_weights"),
        ({"features": "nonnegative", "dim": 3}, "orthogonal directions"),
        ({"features": "nonnegative", "bias": "free", "counts": (9, 4, 3, 2)}, "without bias"),
        ({"features": "nonnegative", "loss": "mse", "bias": "free", "counts": (9, 4, 3, 2)}, "balanced classes"),
        ({"features": "nonnegative", "loss": "mse", "bias": "free", "dim": 3}, "d >= 4"),
        ({"constraint": "sphere", "counts": (9, 4, 3, 2)}, "balanced"),
        ({"constraint": "sphere", "loss": "mse"}, "certificate"),
        ({"constraint": "sphere", "features": "nonnegative"}, "certificate"),
        ({"loss": "supcon"}, "sphere"),
        ({"loss": "supcon", "constraint": "sphere", "counts": (9, 4, 3, 2)}, "balanced"),
        ({"loss": "supcon", "constraint": "sphere", "counts": 1}, "positive pair"),
        ({"loss": "supcon", "constraint": "sphere", "dim": 2}, "d >= 3"),
        ({"targets": ((1, 0, 0, 0), (0, 0.5, 0.5, 0))}, "permutation"),
        ({"targets": np.eye(4)[:, ::-1] * 0.9 + 0.025, "dim": 2}, "d >= K-1 = 3"),
        ({"targets": ((1, -1, 0, 0), (0, 0.5, 0.5, 0))}, "non-negative"),
        ({"targets": np.eye(4), "class_weights": (1, 1, 1, 2.0)}, "class_weights"),
        ({"constraint": "ball", "counts": (9, 9, 4, 4), "energy_w": 1e6}, "energy"),
    ],
)
def test_refusals_say_what_is_missing(fields, words):
    p = ufm.Problem(**({"classes": 4, "dim": 4, "counts": 5} | BASE | fields))
    found = ufm.predict(p)
    assert not found.applies and found.loss is None
    assert words in found.reason and "\n" not in found.reason and len(found.reason) < 250


@pytest.mark.parametrize(
    ("fields", "same"),
    [
        ({"logit_scale": (1.0,) * 4}, {}),
        ({"logit_offset": (0.7,) * 4}, {}),
        ({"class_weights": (1.0,) * 4}, {}),
        ({"loss": "smoothing", "smoothing": 0.0}, {}),
        ({"loss": "focal", "focal_gamma": 0.0}, {}),
        ({"targets": np.eye(4)}, {}),
        ({"targets": np.repeat(np.eye(4), 2, 0), "counts": (2, 3) * 4}, {"counts": 5}),
        ({"targets": np.eye(4)[[2, 0, 1, 3]], "counts": (3, 9, 9, 3)}, {"counts": (9, 9, 3, 3)}),
        ({"targets": 0.8 * np.eye(4) + 0.05}, {"loss": "smoothing", "smoothing": 0.2}),
    ],
)
def test_the_same_problem_in_other_words(fields, same):
    base = {"classes": 4, "dim": 5, "counts": 5} | BASE
    p, q = ufm.Problem(**(base | fields)), ufm.Problem(**(base | same))
    found, expected = ufm.predict(p), ufm.predict(q)
    assert found.loss == pytest.approx(expected.loss, rel=1e-12)
    np.testing.assert_allclose(found.gram_w, expected.gram_w, atol=1e-10)
    rows = np.argmax(p.targets, axis=1) if p.targets is not None else np.arange(4)
    np.testing.assert_allclose(found.logits, expected.logits[rows], atol=1e-10)
    np.testing.assert_allclose(found.gram_h, expected.gram_h[np.ix_(rows, rows)], atol=1e-10)
    np.testing.assert_allclose(found.singular_values, expected.singular_values, atol=1e-9)


def test_a_free_bias_absorbs_the_offset():
    offset = np.array([1.0, -2.0, 0.5, 0.1])
    plain = ufm.predict(ufm.Problem(4, 4, 5, bias="free", **BASE))
    found = ufm.predict(ufm.Problem(4, 4, 5, bias="free", logit_offset=offset, **BASE))
    assert found.loss == plain.loss
    np.testing.assert_allclose(found.bias, offset.mean() - offset, atol=1e-15)
    np.testing.assert_allclose(found.logits + offset - offset.mean(), plain.logits, atol=1e-14)


def test_rewriting_keeps_what_matters():
    p = ufm.Problem(3, 3, 5, logit_offset=(0, 0, 1), bias="free", logit_scale=(1, 1, 2))
    assert canonical.canonical(p).problem == p
    assert canonical.canonical(ufm.Problem(1, 1, 5, loss="mse", targets=((1.0,),))).problem.classes == 1


def test_label_noise():
    """Noise on free features is memorised: the optimum of the noisy counts. On tied features it is label smoothing."""
    clean, eta = (20, 20, 8, 8), 0.25
    K = len(clean)
    rows = [(i, j) for i in range(K) for j in range(K)]  # (clean, noisy) label
    sizes = [clean[i] - 3 * (clean[i] // 8) if i == j else clean[i] // 8 for i, j in rows]
    noisy = tuple(int(sum(s for (_, j), s in zip(rows, sizes, strict=True) if j == k)) for k in range(K))
    split = ufm.predict(ufm.Problem(K, K, tuple(sizes), targets=np.eye(K)[[j for _, j in rows]], **BASE))
    assert split.loss == pytest.approx(ufm.predict(ufm.Problem(K, K, noisy, **BASE)).loss, rel=1e-14)
    tied = (1 - eta) * np.eye(K) + eta / (K - 1) * (1 - np.eye(K))
    soft = ufm.predict(ufm.Problem(K, K, 10, targets=tied, **BASE))
    smooth = ufm.predict(ufm.Problem(K, K, 10, loss="smoothing", smoothing=eta * K / (K - 1), **BASE))
    assert soft.loss == pytest.approx(smooth.loss, rel=1e-12)
    np.testing.assert_allclose(soft.logits, smooth.logits, atol=1e-10)


def test_regression_formula():
    """Andriopoulos et al.: 1/2 sum min(sig, cc) + sqrt(cc) sum (sqrt sig - sqrt cc)_+, W W^T from Sigma^{1/2}."""
    Y = np.random.default_rng(3).normal(size=(30, 4)) * [3, 1, 0.4, 0.1] + 1
    p = ufm.Problem(4, 4, 1, loss="mse", targets=Y, bias="free", lambda_w=0.05, lambda_h=0.01)
    for bias, centre in (("free", Y.mean(0)), ("none", 0.0)):
        found = ufm.predict(p.replace(bias=bias))
        sigma = (Y - centre).T @ (Y - centre) / 30
        cc, per_sample = 0.05 * 0.01 * 30, 0.01 * 30
        values, vectors = np.linalg.eigh(sigma)
        kept = np.maximum(np.sqrt(values) - np.sqrt(cc), 0)
        assert found.loss == pytest.approx(np.minimum(values, cc).sum() / 2 + np.sqrt(cc) * kept.sum(), rel=1e-12)
        np.testing.assert_allclose(found.gram_w, np.sqrt(per_sample / 0.05) * (vectors * kept) @ vectors.T, atol=1e-12)
        np.testing.assert_allclose(found.bias, Y.mean(0) if bias == "free" else 0, atol=1e-14)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    order=st.permutations(range(5)),
    case=st.sampled_from(
        [
            ({"loss": "mse"}, (30, 9, 9, 4, 1)),
            ({"loss": "mse", "bias": "free"}, (30, 9, 9, 4, 1)),
            ({}, (20, 20, 3, 3, 3)),
            ({}, (20, 3, 3, 3, 3)),
            ({"constraint": "ball"}, (20, 20, 3, 3, 3)),
            ({"features": "nonnegative"}, (30, 9, 9, 4, 1)),
        ]
    ),
)
def test_relabelling_the_classes(order, case):
    fields, counts = case
    first = ufm.predict(ufm.Problem(5, 5, counts, **BASE, **fields))
    second = ufm.predict(ufm.Problem(5, 5, tuple(counts[i] for i in order), **BASE, **fields))
    index = np.ix_(order, order)
    assert second.loss == pytest.approx(first.loss, rel=1e-12)
    for name in ("logits", "gram_w", "gram_h"):
        np.testing.assert_allclose(getattr(second, name), getattr(first, name)[index], atol=1e-10)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(factor=st.floats(0.05, 20.0), loss=st.sampled_from(["ce", "mse", "focal", "smoothing"]))
def test_only_the_product_of_the_penalties_matters(factor, loss):
    p = ufm.Problem(4, 4, 6, loss=loss, **BASE)
    q = p.replace(lambda_w=p.lambda_w * factor, lambda_h=p.lambda_h / factor)
    first, second = ufm.predict(p), ufm.predict(q)
    assert second.loss == pytest.approx(first.loss, rel=1e-12)
    np.testing.assert_allclose(second.gram_w * factor, first.gram_w, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(second.gram_h / factor, first.gram_h, rtol=1e-9, atol=1e-12)


def test_dimensions_beyond_the_need_change_nothing():
    for fields in ({}, {"loss": "mse"}, {"counts": (9, 9, 2, 2)}, {"features": "nonnegative"}, {"constraint": "sphere"}):
        p = ufm.Problem(**({"classes": 4, "dim": 4, "counts": 5} | BASE | fields))
        assert ufm.predict(p).loss == ufm.predict(p.replace(dim=512)).loss


def test_many_classes_are_fast_enough_to_list():
    found = ufm.predict(ufm.Problem(1000, 1024, 600, **{"lambda_w": 1e-6, "lambda_h": 1e-6}))
    assert found.gram_w.shape == (1000, 1000) and found.singular_values.shape == (1000,)
    assert found.details["off_class_probability"] == pytest.approx(math.sqrt(600) * 1e-6, rel=1e-12)


def test_contrastive_by_search():
    """Full-batch supervised contrastive loss over unit features, against both frames."""
    from scipy.optimize import minimize

    def loss(x, labels, tau, relu):
        H = np.abs(x.reshape(len(labels), -1)) if relu else x.reshape(len(labels), -1)
        H = H / np.linalg.norm(H, axis=1, keepdims=True)
        S = H @ H.T / tau - 1e9 * np.eye(len(labels))
        log_p = S - np.logaddexp.reduce(S, axis=1)[:, None]
        same = (labels[:, None] == labels) & ~np.eye(len(labels), dtype=bool)
        return -np.mean([log_p[i, same[i]].mean() for i in range(len(labels))])

    for counts, features in (((3, 3), "free"), ((3, 2), "nonnegative")):
        labels = np.repeat([0, 1], counts)
        p = ufm.Problem(2, 2, counts, loss="supcon", constraint="sphere", temperature=0.5, features=features)
        found = ufm.predict(p)
        starts = [np.random.default_rng(s).normal(size=2 * len(labels)) for s in range(4)]
        best = min(minimize(loss, x, (labels, 0.5, features == "nonnegative")).fun for x in starts)
        assert found.loss <= best + 1e-10 and best == pytest.approx(found.loss, rel=1e-5)
        assert found.status == STATED and found.logits is None and found.gram_w is None


@settings(max_examples=150, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_problem_gets_an_answer(data):
    """Whatever is asked: a finite answer with its reference, or a sentence; no structure below a proven optimum."""
    draw, K = data.draw, data.draw(st.integers(2, 6))
    size, positive = st.integers(1, 60), st.floats(-6.0, 2.0).map(lambda x: 10**x)
    fields = {
        "loss": draw(st.sampled_from(["ce", "mse", "smoothing", "focal", "supcon"])),
        "bias": draw(st.sampled_from(["none", "free", "ridge"])),
        "constraint": draw(st.sampled_from(["ridge", "ridge", "sphere", "ball"])),
        "features": draw(st.sampled_from(["free", "free", "nonnegative"])),
        "counts": draw(st.one_of(size, st.lists(size, min_size=K, max_size=K), size.map(lambda n: [n] + [7] * (K - 1)))),
        "lambda_w": draw(st.one_of(st.just(0.0), positive)),
        "lambda_h": draw(positive),
        "temperature": draw(positive),
        "energy_w": draw(positive),
        "focal_gamma": draw(st.floats(0.0, 8.0)),
        "smoothing": draw(st.floats(0.0, 0.99)),
    }
    if fields["bias"] == "ridge":
        fields["lambda_b"] = draw(positive)
    for name, values in (("logit_scale", positive), ("class_weights", positive), ("logit_offset", st.floats(-3.0, 3.0))):
        if draw(st.integers(0, 4)) == 0:
            fields[name] = draw(st.lists(values, min_size=K, max_size=K))
    p = ufm.Problem(K, draw(st.integers(1, 8)), **fields)
    found, others = ufm.predict(p), ufm.structures(p)
    if not found.applies:
        assert found.reason and found.loss is None
        return
    assert math.isfinite(found.loss) and found.reference in REFERENCES and found.assumptions
    for matrix in (found.logits, found.gram_w, found.gram_h, found.singular_values):
        assert matrix is None or np.isfinite(matrix).all()
    for name, other in others.items():
        assert other.loss >= found.loss * (1 - 1e-9) - 1e-13, name


# structures


def test_structures_of_a_balanced_problem():
    p = ufm.Problem(4, 6, 5, **BASE)
    found = ufm.structures(p)
    assert set(found) == {"etf", "of", "gof", "seli", "zero"}
    assert found["etf"].loss == pytest.approx(ufm.predict(p).loss, rel=1e-13)
    assert found["seli"].loss == pytest.approx(found["etf"].loss, rel=1e-13)  # balanced: the same point
    assert found["etf"].loss < found["of"].loss < found["zero"].loss == pytest.approx(math.log(4))
    for name in ("etf", "seli"):
        np.testing.assert_allclose(found[name].gram_w, ufm.predict(p).gram_w, atol=1e-6)
        np.testing.assert_allclose(found[name].gram_h, ufm.predict(p).gram_h, atol=1e-6)
    mse = ufm.structures(p.replace(loss="mse"))
    assert mse["of"].loss == pytest.approx(ufm.predict(p.replace(loss="mse")).loss, rel=1e-12)
    free = ufm.structures(p.replace(loss="mse", bias="free"))
    assert free["etf"].loss == pytest.approx(ufm.predict(p.replace(loss="mse", bias="free")).loss, rel=1e-12)


@pytest.mark.parametrize(
    "fields",
    [
        {"counts": (30, 30, 4, 4)},
        {"counts": (30, 9, 4, 1), "loss": "mse"},
        {"counts": (30, 9, 4, 1), "loss": "mse", "bias": "free"},
        {"loss": "focal"},
        {"loss": "smoothing", "bias": "ridge", "lambda_b": 0.1},
        {"constraint": "sphere", "temperature": 0.4},
        {"constraint": "ball", "energy_w": 2.0, "counts": (9, 9, 3, 3)},
        {"features": "nonnegative", "counts": (30, 9, 4, 1)},
        {"classes": 6, "dim": 3},
        {"classes": 6, "dim": 2, "constraint": "sphere"},
        {"counts": (9, 5, 4, 1), "class_weights": (1, 2, 2, 4.0), "loss": "mse"},
    ],
)
def test_no_structure_beats_the_prediction(fields):
    p = ufm.Problem(**({"classes": 4, "dim": 5, "counts": 6} | BASE | fields))
    best, found = ufm.predict(p), ufm.structures(p)
    assert best.applies and found
    for name, structure in found.items():
        assert structure.loss >= best.loss * (1 - 1e-12), name
        assert structure.name in (name, "code") and structure.reference in REFERENCES
        if structure.gram_w is not None and p.constraint == "ridge" and p.loss != "focal":
            cost = p.lambda_w / 2 * np.trace(structure.gram_w) + p.lambda_h / 2 * p.count_vector @ np.diag(structure.gram_h)
            assert structure.loss >= cost - 1e-12  # the penalty is part of the loss
            z = structure.logits - structure.bias
            block = np.block([[structure.gram_w, z.T], [z, structure.gram_h]])
            assert np.linalg.eigvalsh(block)[0] > -1e-9
    if p.loss == "mse" and p.bias == "none":
        assert found["gof"].loss == pytest.approx(best.loss, rel=1e-11)


def test_structures_need_their_dimensions():
    names = {d: set(ufm.structures(ufm.Problem(6, d, 5, **BASE))) for d in (1, 2, 3, 4, 5, 6)}
    assert names[1] == {"zero"} and names[2] == names[3] == {"code", "zero"} and names[4] == {"zero"}
    assert names[5] == {"etf", "seli", "zero"} and names[6] == {"etf", "seli", "of", "gof", "zero"}
    assert set(STRUCTURES) == {"etf", "of", "gof", "seli", "code", "zero"}
    assert set(ufm.structures(ufm.Problem(3, 3, 4, targets=np.eye(3) * 0.8 + 0.1, lambda_w=1.0))) == {"zero"}


def test_seli_without_penalty_is_the_limit():
    p = ufm.Problem(5, 5, (100, 100, 10, 10, 10), lambda_w=0.0, lambda_h=0.0)
    found = ufm.structures(p)["seli"]
    assert found.loss is None and found.details["svm_value"] == pytest.approx(24.324555320336756)
    cdt = ufm.structures(p.replace(logit_scale=(1, 1, 0.5, 0.5, 0.5)))["seli"]
    assert cdt.name == "cdt" and cdt.details["svm_value"] == pytest.approx(32.21093951534867)


def test_seli_is_approached_at_its_slow_rate():
    """|Z/|Z| - Pi/|Pi|| = 1.25 / log(1/lambda): the warning that comes with the limit."""
    counts, direction = (100, 100, 10, 10, 10), seli.limit((100, 100, 10, 10, 10)).logits
    for lam, expected in ((1e-3, 0.200), (1e-4, 0.141), (1e-6, 0.091), (1e-9, 0.060), (1e-12, 0.045)):
        z = ufm.predict(ufm.Problem(5, 5, counts, lambda_w=lam, lambda_h=lam)).logits
        gap = np.linalg.norm(z / np.linalg.norm(z) - direction / np.linalg.norm(direction))
        assert gap == pytest.approx(expected, abs=6e-4)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    counts=st.lists(st.integers(1, 500), min_size=2, max_size=9),
    seed=st.integers(0, 999),
    scaled=st.booleans(),
)
def test_seli_certificate(counts, seed, scaled):
    """Margins exactly 1, all multipliers positive, primal = dual: optimality for every imbalance and every scale."""
    delta = np.exp(np.random.default_rng(seed).normal(size=len(counts))) if scaled else None
    found = seli.limit(counts, delta)
    scale = np.ones(len(counts)) if delta is None else delta
    z = found.logits * scale
    margins = np.diag(z)[:, None] - z
    np.testing.assert_allclose(margins[~np.eye(len(counts), dtype=bool)], 1, atol=1e-9)
    assert found.details["least_multiplier"] > 0
    assert found.details["dual_value"] == pytest.approx(found.details["svm_value"], rel=1e-9)
    assert np.linalg.norm(found.gram_w) == pytest.approx(1) and np.linalg.norm(found.gram_h) == pytest.approx(1)


def test_equal_singular_values_at_square_root_scales():
    """delta_k ~ sqrt(n_k): Z diag(sqrt n) is a projection up to scale."""
    counts = (64, 25, 9, 4)
    s = seli.limit(counts, np.sqrt(counts)).singular_values
    np.testing.assert_allclose(s[:-1], s[0], rtol=1e-12)


@pytest.mark.parametrize("bad", [((5,), None), ((5, 0), None), ((5, 5), (1.0,)), ((5, 5), (1.0, -1.0))])
def test_seli_refuses(bad):
    with pytest.raises(RequestError, match="positive"):
        seli.limit(*bad)


def test_targets_in_any_order():
    """Rows of class-symmetric targets may come in any order: logits and Grams follow."""
    rows = [(r, 2) for r in itertools.permutations((0.7, 0.2, 0.1))] + [(tuple(r), 3) for r in np.eye(3)]
    order = np.random.default_rng(0).permutation(len(rows))
    first = ufm.predict(ufm.Problem(3, 3, tuple(n for _, n in rows), targets=tuple(r for r, _ in rows), **BASE))
    shuffled = [rows[i] for i in order]
    second = ufm.predict(ufm.Problem(3, 3, tuple(n for _, n in shuffled), targets=tuple(r for r, _ in shuffled), **BASE))
    assert second.loss == pytest.approx(first.loss, rel=1e-13)
    np.testing.assert_allclose(second.logits, first.logits[order], atol=1e-10)
    np.testing.assert_allclose(second.gram_h, first.gram_h[np.ix_(order, order)], atol=1e-9)
