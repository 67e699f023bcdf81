"""Every golden row of the single-layer theory, reproduced by `predict` or by the limit's own function."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

import ufm
from ufm.theory import seli

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "single_public.json").read_text())["rows"]
TIGHT = ("ce_balanced", "mse_balanced_bias_none", "mse_balanced_bias_free", "mse_balanced_bias_reg")
LIMITS = ("seli_limit", "cdt_seli_limit")


def ridge(P, **fields):
    lambda_b = P.get("lambda_b")
    bias = (
        {"bias": "none"} if lambda_b is None else {"bias": "free"} if lambda_b == 0 else {"bias": "ridge", "lambda_b": lambda_b}
    )
    counts = tuple(P["n_vec"]) if "n_vec" in P else P.get("n")
    common = {"classes": P.get("K") or len(P["n_vec"]), "dim": P["d"], "counts": counts}
    return ufm.Problem(**(common | {"lambda_w": P["lambda_W"], "lambda_h": P["lambda_H"]} | bias | fields))


def pick_all_labels(P):
    K = P["K"]
    sets = [(S, n) for m, n in P["mult"].items() for S in itertools.combinations(range(K), int(m))]
    rows = tuple(tuple(float(k in S) for k in range(K)) for S, _ in sets)
    return ridge(P, targets=rows, counts=tuple(n for _, n in sets))


def mixup(P):
    K, eye = P["K"], np.eye(P["K"])
    pairs = [(lam, n, i, j) for lam, n in zip(P["lams"], P["mult"], strict=True) for i in range(K) for j in range(K)]
    rows = tuple(tuple((lam * eye[i] + (1 - lam) * eye[j]).tolist()) for lam, _, i, j in pairs)
    return ridge(P, targets=rows, counts=tuple(n for _, n, _, _ in pairs))


def regression(P):
    m, N = P["targets"], P["N"]
    Y = np.random.default_rng(P["target_seed"]).normal(size=(m, N)) * np.linspace(1.5, 0.3, m)[:, None]
    Y[-1] += 0.5 * Y[0]
    P = P | {"K": m, "n": 1, "lambda_b": 0.0}
    return ridge(P, loss="mse", targets=Y.T)


def adjusted(P):
    return ridge(P, logit_scale=P["delta"], logit_offset=P["iota"])


def step(P):
    return ridge(P, counts=(P["n_A"],) * P["K_A"] + (P["n_B"],) * P["K_B"])


def sphere(P):
    return ufm.Problem(P["K"], P["d"], 10, constraint="sphere", temperature=P["tau"])


def contrastive(P, features):
    fields = {"constraint": "sphere", "temperature": P["tau"], "features": features}
    return ufm.Problem(len(P["n_vec"]), P["d"], tuple(P["n_vec"]), loss="supcon", **fields)


BUILD = {
    "ce_balanced": ridge,
    "label_smoothing": lambda P: ridge(P, loss="smoothing", smoothing=P["alpha"]),
    "focal": lambda P: ridge(P, loss="focal", focal_gamma=P["gamma"]),
    "mse_balanced_bias_none": lambda P: ridge(P, loss="mse"),
    "mse_balanced_bias_free": lambda P: ridge(P, loss="mse"),
    "mse_balanced_bias_reg": lambda P: ridge(P, loss="mse"),
    "mse_imbalanced_bias_none": lambda P: ridge(P, loss="mse"),
    "mse_imbalanced_bias_free": lambda P: ridge(P, loss="mse"),
    "ce_imbalanced_step": step,
    "ce_relu_features": lambda P: ridge(P, features="nonnegative"),
    "multilabel_pick_all_label": pick_all_labels,
    "mixup_ce": mixup,
    "regression_nrc": regression,
    "ce_rank_limited": ridge,
    "spherical_ce": sphere,
    "scl_relu_OF": lambda P: contrastive(P, "nonnegative"),
    "scl_ETF": lambda P: contrastive(P, "free"),
    "ce_certified_LA": adjusted,
    "ce_certified_VS": adjusted,
    "ce_certified_free_bias": ridge,
}
ROWS = {row["id"]: row for row in GOLDEN}
CLOSED = [i for i, row in ROWS.items() if row["variant"] in BUILD and "certified" not in row["variant"]]
CERTIFIED = [i for i, row in ROWS.items() if "certified" in row["variant"]]
SVM = [i for i, row in ROWS.items() if row["variant"] in LIMITS]


def test_every_row_is_covered():
    assert len(GOLDEN) == 41 and {*CLOSED, *CERTIFIED, *SVM} == set(ROWS)


def gram(entry):
    if "full" in entry:
        return np.array(entry["full"])
    full = np.full((len(entry["diag"]),) * 2, entry["offdiag"])
    np.fill_diagonal(full, entry["diag"])
    return full


def as_code(row):
    """Golden targets of the multi-label row come in the order of `pick_all_labels`: nothing to permute."""
    return BUILD[row["variant"]](row["params"])


@pytest.mark.parametrize("name", CLOSED)
def test_value(name):
    row = ROWS[name]
    found = ufm.predict(as_code(row))
    assert found.applies and found.reference and found.assumptions
    tolerance = 1e-12 if row["variant"] in TIGHT else 1e-10
    assert found.loss == pytest.approx(row["predicted"]["value"], rel=tolerance)
    assert found.tolerance <= 1e-10


@pytest.mark.parametrize("name", CLOSED)
def test_geometry(name):
    expected, found = ROWS[name]["predicted"], ufm.predict(as_code(ROWS[name]))
    for key, matrix in (("W_gram", found.gram_w), ("M_gram", found.gram_h)):
        if isinstance(expected.get(key), dict):
            np.testing.assert_allclose(matrix, gram(expected[key]), atol=1e-11)
        if f"{key}_sorted_row" in expected:
            target = np.sort(expected[f"{key}_sorted_row"])
            np.testing.assert_allclose(np.sort(matrix, axis=1), np.tile(target, (len(matrix), 1)), atol=1e-11)
    if isinstance(expected.get("Z_classmean_logits_without_bias"), list):
        np.testing.assert_allclose((found.logits - found.bias).T, expected["Z_classmean_logits_without_bias"], atol=1e-11)
    if "bias" in expected:
        np.testing.assert_allclose(found.bias, expected["bias"], atol=1e-12)
    if "Z_nuclear" in expected:
        assert found.singular_values.sum() == pytest.approx(expected["Z_nuclear"], rel=1e-11, abs=1e-12)
    if "W_fro" in expected:
        assert np.sqrt(np.trace(found.gram_w)) == pytest.approx(expected["W_fro"], rel=1e-11, abs=1e-12)
    if "ovr_margin" in expected:
        assert found.details["margin"] == pytest.approx(expected["ovr_margin"], abs=1e-13)


@pytest.mark.parametrize("name", CLOSED)
def test_scalars(name):
    expected, details = ROWS[name]["predicted"], ufm.predict(as_code(ROWS[name])).details
    for golden, path in (("beta", "beta"), ("r", "r"), ("phi", "phi"), ("minority_collapse", "minority_collapse")):
        if golden in expected:
            assert details[path] == pytest.approx(expected[golden], abs=1e-11)
    for golden, path, place in (("aA", "a", 0), ("aB", "a", 1), ("xA", "x", 0), ("xB", "x", 1)):
        if golden in expected:
            assert details[path][place] == pytest.approx(expected[golden], abs=1e-11)
    if ROWS[name]["variant"] in ("ce_balanced", "label_smoothing", "focal", "ce_relu_features"):
        np.testing.assert_allclose(details["a"], expected["a"], atol=1e-11)
    if "cos_between_classes" in expected:
        assert details["cos_between_classes"] == expected["cos_between_classes"]


def test_multi_label_scales():
    found = ufm.predict(as_code(ROWS["pub-pal-0"]))
    np.testing.assert_allclose(sorted(found.details["a"]), sorted(ROWS["pub-pal-0"]["predicted"]["a"]), atol=1e-11)


def test_mixup_scales():
    row = ROWS["pub-mixup-0"]
    expected, orbits = row["predicted"], ufm.predict(as_code(row)).details["orbits"]
    (same,) = [o["logits"] for o in orbits if o["target"][0] == 1]
    assert same[0] - same[-1] == pytest.approx(expected["a"], abs=1e-11)
    for lam, x, y, v in zip(row["params"]["lams"], expected["x"], expected["y"], expected["v"], strict=True):
        (cross,) = [o["logits"] for o in orbits if o["target"][0] == pytest.approx(lam)]
        np.testing.assert_allclose(cross, [x, y, v, v], atol=1e-10)


def test_regression_spectrum():
    row = ROWS["pub-reg-0"]
    found = ufm.predict(as_code(row))
    np.testing.assert_allclose(found.details["spectrum"], row["predicted"]["sv"], rtol=1e-12)
    np.testing.assert_allclose(found.singular_values, row["predicted"]["sv_t"], rtol=1e-12)


@pytest.mark.parametrize("name", CERTIFIED)
def test_certified_rows_have_no_closed_form(name):
    found = ufm.predict(as_code(ROWS[name]))
    assert not found.applies and "certificate" in found.reason


@pytest.mark.parametrize("name", SVM)
def test_limits(name):
    row = ROWS[name]
    expected, found = row["predicted"], seli.limit(row["params"]["n_vec"], row["params"]["delta"])
    np.testing.assert_allclose(found.logits.T, expected["Z"], atol=1e-12)
    np.testing.assert_allclose(found.singular_values, expected["singular_values"], atol=1e-12)
    np.testing.assert_allclose(found.gram_w, expected["W_gram_direction"], atol=1e-12)
    np.testing.assert_allclose(found.gram_h, expected["M_gram_direction"], atol=1e-12)
    assert found.details["svm_value"] == pytest.approx(expected["svm_value"], rel=1e-13)
    assert found.details["dual_value"] == pytest.approx(row["verified"]["dual_value"], rel=1e-12)
    assert found.details["least_multiplier"] > 0
    assert found.loss is None and "1/log" in found.details["rate"]


@pytest.mark.parametrize("name", CLOSED)
def test_the_listed_status_is_the_answers(name):
    from ufm.tables import load
    from ufm.theory import PREDICTIONS, STATUS
    from ufm.theory.canonical import canonical

    problem = canonical(as_code(ROWS[name])).problem
    answers = {key: load(PREDICTIONS, key, "prediction")(problem) for key in PREDICTIONS}
    told = {key: answer.status for key, answer in answers.items() if answer.applies}
    assert told and set(STATUS) == set(PREDICTIONS)
    assert all(status in STATUS[key] for key, status in told.items())
