"""`collapse` against independent oracles, its invariances, and every bad input."""

import subprocess
import sys
import warnings

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from make_features import make
from scipy.spatial.distance import cdist
from sklearn.metrics import calinski_harabasz_score
from sklearn.neighbors import NearestCentroid

from ufm import geometry
from ufm.errors import RequestError
from ufm.measure import MEASURES, ClassMoments, collapse, from_moments
from ufm.measure.names import COLLAPSE, DEFAULT, NEEDS_SCATTER

UNITLESS = sorted(DEFAULT - {"bias_collapse"})


def sample(seed=0, counts=(30, 20, 10, 5), dim=12, noise=0.7, offset=0.0):
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(counts)), counts)
    means = rng.standard_normal((len(counts), dim))
    features = means[labels] + noise * rng.standard_normal((len(labels), dim)) + offset
    order = rng.permutation(len(labels))
    return features[order], labels[order], rng.standard_normal((len(counts), dim)), rng.standard_normal(len(counts))


def close(first, second, rtol=1e-9, atol=1e-12):
    assert set(first) == set(second)
    for name in first:
        assert np.isclose(first[name], second[name], rtol=rtol, atol=atol, equal_nan=True), (name, first[name], second[name])


# oracles


@pytest.mark.parametrize("dim", [2, 12])
def test_pinv_forms_are_scipys(dim):
    x, y, _, _ = sample(1, dim=dim)
    found = collapse(x, y)
    means = np.array([x[y == k].mean(0) for k in range(4)])
    share = np.bincount(y) / len(y)
    within = sum(share[k] * np.cov(x[y == k].T, ddof=0) for k in range(4))
    about = {"nc1_pinv": means.mean(0), "nc1_pinv_sample": x.mean(0)}
    for name, centre in about.items():
        between = (means - centre).T @ (means - centre) / 4
        wanted = np.trace(within @ scipy.linalg.pinv(between, rtol=1e-12)) / 4
        assert found[name] == pytest.approx(wanted, rel=1e-10)
    assert found["nc1_pinv_sum"] == pytest.approx(4 * found["nc1_pinv"])
    between = ((means - x.mean(0)).T * share) @ (means - x.mean(0))
    assert found["nc1_weighted"] == pytest.approx(np.trace(within @ scipy.linalg.pinv(between, rtol=1e-12)), rel=1e-10)
    rank = min(3, dim)
    assert found.rank == rank
    vci = 1 - np.trace(scipy.linalg.pinv(within + between) @ between) / rank
    assert found["vci"] == pytest.approx(vci, rel=1e-9)


def test_traces_are_calinski_harabasz():
    x, y, _, _ = sample(2, counts=(20,) * 5)
    found = collapse(x, y)
    score = calinski_harabasz_score(x, y)
    assert found["nc1_trace"] == pytest.approx((len(y) - 5) / (4 * score))
    x, y, _, _ = sample(3)  # imbalanced: the score weights classes by n_k, as nc1_total does
    ratio = (len(y) - 4) / (3 * calinski_harabasz_score(x, y))
    assert collapse(x, y)["nc1_total"] == pytest.approx(ratio / (1 + ratio))


def test_nearest_mean_is_sklearns():
    x, y, weight, bias = sample(4, noise=1.5)
    test_x, test_y, _, _ = sample(4, noise=2.5)
    centroid = NearestCentroid().fit(x, y)
    found = collapse(x, y, weight=weight, bias=bias)
    assert found["ncc_error"] == np.mean(centroid.predict(x) != y)
    assert found["nc4_disagreement"] == np.mean(centroid.predict(x) != (x @ weight.T + bias).argmax(1))
    test = collapse(test_x, test_y, weight=weight, bias=bias, reference=ClassMoments.of(x, y))
    assert test["ncc_error"] == np.mean(centroid.predict(test_x) != test_y) > 0
    assert test.own["ncc_error"] == np.mean(NearestCentroid().fit(test_x, test_y).predict(test_x) != test_y)


def test_between_metric_error_is_nearest_mean_after_whitening():
    x, y, _, _ = sample(5)
    test_x, test_y, _, _ = sample(6, noise=2.0)
    means = np.array([x[y == k].mean(0) for k in range(4)])
    centred = means - means.mean(0)
    _, size, right = np.linalg.svd(centred, full_matrices=False)
    frame = right[:3] / size[:3, None]
    found = collapse(test_x, test_y, reference=ClassMoments.of(x, y))
    nearest = cdist(test_x @ frame.T, means @ frame.T).argmin(1)
    assert found["ncc_error_between"] == np.mean(nearest != test_y) > 0


@pytest.mark.parametrize("dim", [2, 3, 12])
def test_identity_of_strong_weak_between_and_cross(dim):
    x, y, _, _ = sample(7, dim=dim)
    test_x, test_y, _, _ = sample(8, dim=dim, noise=2.0)
    found = collapse(test_x, test_y, reference=ClassMoments.of(x, y))
    parts = found["nc1_pinv_weak"] + found["nc1_pinv_between"] + found["nc1_pinv_cross"]
    assert found["nc1_pinv_strong"] == pytest.approx(parts, rel=1e-12)
    if dim >= 3:
        assert found["nc1_pinv_between"] == pytest.approx(2 * found["ncc_error"], rel=1e-12)
        assert found["nc1_pinv_strong"] >= found["ncc_error_between"] / 2
    else:
        assert abs(found["nc1_pinv_between"] - 2 * found["ncc_error"]) > 1e-3
    means = np.array([x[y == k].mean(0) for k in range(4)])
    between = np.cov(means.T, ddof=0)
    wanted = np.einsum("nd,de,ne->", r := test_x - means[test_y], scipy.linalg.pinv(between, rtol=1e-12), r) / len(test_y) / 4
    assert found["nc1_pinv_strong"] == pytest.approx(wanted, rel=1e-9)
    spread = [((test_x[test_y == k] - means[k]) ** 2).sum(1).mean() for k in range(4)]
    pairs = [(spread[i] + spread[j]) / (2 * ((means[i] - means[j]) ** 2).sum()) for i in range(4) for j in range(i)]
    assert found["cdnv_strong"] == pytest.approx(np.mean(pairs))


def test_train_about_its_own_moments_is_self_centred():
    x, y, weight, bias = sample(9)
    found = collapse(x, y, weight=weight, bias=bias, reference=ClassMoments.of(x, y))
    assert found["nc1_pinv_strong"] == pytest.approx(found["nc1_pinv"], rel=1e-12)
    assert found["cdnv_strong"] == pytest.approx(found["cdnv"], rel=1e-12)
    assert found["ncc_error"] == found.own["ncc_error"]


def test_etf_and_frame_are_zero_of_their_measures():
    means = 3.0 * geometry.simplex_etf(5, 9)
    x, y = np.repeat(means, 4, axis=0), np.repeat(np.arange(5), 4)
    found = collapse(x, y, weight=0.1 * means, bias=np.ones(5), predicted_gram=np.eye(5) - 0.2, names=COLLAPSE)
    zero = ["nc1_pinv", "nc1_trace", "cdnv", "vci", "nc2_equinorm_means", "nc2_equiangular_means", "nc2_etf_means"]
    zero += ["nc2_etf_weights", "nc3_papyan", "nc3_zhu", "nc3_cosine", "nc4_disagreement", "ncc_error", "nc2_to_prediction"]
    assert max(abs(found[name]) for name in zero) < 1e-13
    assert found["gnc_margin"] == pytest.approx(5 / 4)
    assert found["hardmax_margin"] == pytest.approx(5 / 4)
    assert found["gram_coherence"] == pytest.approx(-1 / 4)
    assert found["bias_collapse"] == pytest.approx(np.sqrt(5))
    assert (found["rank_stable"], found["rank_numeric"]) == (pytest.approx(4), 4)
    frame = np.repeat(geometry.orthogonal_frame(5, 9), 4, axis=0)
    as_frame = collapse(frame, y, predicted_gram=np.eye(5))
    assert as_frame["nc2_to_prediction"] < 1e-14  # a frame about the origin; about mu_C it is the simplex
    assert as_frame["nc2_etf_means"] < 1e-14
    assert collapse(x, y, predicted_gram=np.eye(5))["nc2_to_prediction"] > 0.3


def test_angles_by_hand():
    """Two classes at right angles about their mean are opposite; three at 0, 90 and 180 degrees are not an ETF."""
    x = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    found = collapse(x, [0, 1, 2], ood=[[0.0, 5.0], [0.0, 7.0]])
    centred = x - x.mean(0)
    angle = lambda i, j: centred[i] @ centred[j] / np.linalg.norm(centred[i]) / np.linalg.norm(centred[j])  # noqa: E731
    assert found["nc2_equiangular_means"] == pytest.approx(np.mean([abs(angle(i, j) + 0.5) for i, j in ((0, 1), (0, 2), (1, 2))]))
    assert found["gram_coherence"] == pytest.approx(angle(0, 1))
    up = np.array([0.0, 6.0]) - x.mean(0)
    assert found["nc5"] == pytest.approx(np.mean([abs(c @ up) / np.linalg.norm(c) / np.linalg.norm(up) for c in centred]))


# invariances


def rotation(dim, seed):
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((dim, dim)))[0]


@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.integers(2, 6), st.integers(2, 9))
def test_rotation_translation_scale_order_and_class_names(seed, classes, dim):
    rng = np.random.default_rng(seed)
    x, y, weight, bias = sample(seed, counts=tuple(rng.integers(2, 9, classes)), dim=dim)
    base = collapse(x, y, weight=weight, bias=bias)
    turn, shift, scale = rotation(dim, seed), 3 * rng.standard_normal(dim), float(rng.uniform(0.1, 10))
    moved = collapse(x @ turn + shift, y, weight=weight @ turn, bias=bias - weight @ turn @ shift)
    close(base, moved, rtol=1e-7, atol=1e-9)
    scaled = collapse(scale * x, y, weight=weight / scale, bias=bias)
    close({k: base[k] for k in UNITLESS if k in base}, {k: scaled[k] for k in UNITLESS if k in scaled}, rtol=1e-9, atol=1e-9)
    order, names = rng.permutation(len(y)), rng.permutation(classes)
    shuffled = collapse(x[order], names[y][order], weight=weight[np.argsort(names)], bias=bias[np.argsort(names)])
    close(base, shuffled, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_dtypes_and_kinds_agree(offset):
    x, y, weight, bias = sample(10, offset=offset)
    x = x.astype(np.float32)
    wide = collapse(x.astype(np.float64), y, weight=weight, bias=bias)
    close(wide, collapse(x, y, weight=weight, bias=bias), rtol=1e-4, atol=1e-6)
    half = x.astype(np.float16) if offset == 0 else x
    close(collapse(half.astype(np.float32), y), collapse(torch.from_numpy(half), y.tolist()), rtol=1e-4, atol=1e-6)
    same = collapse(torch.from_numpy(x), torch.from_numpy(y), weight=torch.from_numpy(weight), bias=torch.from_numpy(bias))
    assert dict(same) == dict(collapse(x, y, weight=weight, bias=bias))


def test_a_training_loop_around_it_changes_nothing():
    x, y, weight, bias = sample(17)
    x, weight = (torch.from_numpy(a.astype(np.float32)).requires_grad_() for a in (x, weight))
    wanted = collapse(x.detach(), y, weight=weight.detach(), bias=bias, reference=ClassMoments.of(x.detach(), y))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = collapse(x, y, weight=weight, bias=bias, reference=ClassMoments.of(x, y))
    assert dict(found) == dict(wanted)


def test_many_classes():
    """More classes than the 25 above which torch.cdist goes through products, one of them unknown to the train split."""
    x, y, weight, bias = sample(18, counts=(6,) * 40, dim=50, noise=1.5)
    test_x, test_y, _, _ = sample(18, counts=(3,) * 40, dim=50, noise=3.0)
    keep = y != 31
    with pytest.warns(UserWarning, match="class 31"):
        found = collapse(test_x, test_y, weight=weight, bias=bias, reference=ClassMoments.of(x[keep], y[keep], classes=40))
    means = np.array([x[y == k].mean(0) if k != 31 else np.full(50, 1e6) for k in range(40)])
    known = np.delete(means, 31, axis=0)
    inside = test_y != 31
    nearest = cdist(test_x[inside], means).argmin(1)
    assert found["ncc_error"] == np.mean(nearest != test_y[inside]) > 0
    inverse = scipy.linalg.pinv(np.cov(known.T, ddof=0), rtol=1e-12)
    gaps = test_x[inside][:, None] - means[None]
    nearest = np.einsum("nkd,de,nke->nk", gaps, inverse, gaps, optimize=True)
    nearest[:, 31] = np.inf
    assert found["ncc_error_between"] == np.mean(nearest.argmin(1) != test_y[inside]) > 0
    assert found["nc1_pinv_between"] == pytest.approx(2 * found["ncc_error"], rel=1e-9)


def test_collapse_in_float32_is_exact_on_the_stored_values():
    """At collapse 1e-5 and offset 1 a float32 E[h^2] - mu^2 has no digit left; residuals keep six."""
    data = make("collapsed")
    x = (data["features"] * 1.0).astype(np.float32) + np.float32(1.0)
    narrow, wide = collapse(x, data["labels"]), collapse(x.astype(np.float64), data["labels"])
    for name in ("nc1_pinv", "nc1_trace", "cdnv", "nc1_weighted"):
        assert narrow[name] == pytest.approx(wide[name], rel=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ["imbalanced", "offset", "few_dims", "confused"])
def test_cuda(name, dtype):
    data = {key: torch.from_numpy(value) for key, value in make(name).items()}
    data = {key: value.to(getattr(torch, dtype)) if value.is_floating_point() else value for key, value in data.items()}

    def everything(place):
        moved = {key: value.to(place) for key, value in data.items()}
        train = ClassMoments.of(moved["features"], moved["labels"])
        return collapse(moved["test_features"], moved["test_labels"], weight=moved["weight"], bias=moved["bias"], reference=train)

    tolerance = dict(rtol=1e-9, atol=1e-12) if dtype == "float64" else dict(rtol=1e-4, atol=1e-7)
    close(everything("cpu"), everything("cuda"), **tolerance)
    assert dict(everything("cuda")) == dict(everything("cuda"))  # no atomics: the same bits


# flags, reasons, what is left out


def test_exact_collapse_is_below_the_floor():
    data = make("exact")
    for dtype in (np.float64, np.float32):
        found = collapse(data["features"].astype(dtype), data["labels"])
        for name in ("nc1_pinv", "nc1_pinv_sum", "nc1_pinv_sample", "nc1_weighted", "nc1_trace", "nc1_total", "cdnv"):
            assert found.flags[name] == "below_floor", (name, found[name], found.floors[name])
            assert found[name] <= found.floors[name]
        assert found.floor == found.floors["nc1_pinv"] < (1e-13 if dtype == np.float32 else 1e-30)
    assert "nc1_pinv" not in collapse(make("collapsed")["features"].astype(np.float32), data["labels"]).flags


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rounding_noise_stays_under_the_floor(dtype):
    """Features that were collapsed before they were rounded carry nothing but rounding: all of it is under the floor."""
    rng = np.random.default_rng(0)
    means = rng.standard_normal((10, 64)) + 2.0
    labels = np.repeat(np.arange(10), 40)
    tiny = np.finfo(dtype).eps / 3
    x = means[labels] * (1 + tiny * rng.standard_normal((400, 64)))
    found = collapse(x.astype(dtype), labels)
    assert found.flags["nc1_pinv"] == "below_floor"
    loud = collapse((means[labels] * (1 + 60 * tiny * rng.standard_normal((400, 64)))).astype(dtype), labels)
    assert "nc1_pinv" not in loud.flags


def test_one_sample_per_class_is_degenerate():
    x, y, _, _ = sample(11, counts=(1, 1, 1, 1))
    found = collapse(x, y)
    assert found["nc1_pinv"] == found["cdnv"] == found["nc1_trace"] == 0.0
    assert found.flags["nc1_pinv"] == found.flags["cdnv"] == "degenerate"
    data = make("one_sample")
    assert collapse(data["features"], data["labels"]).flags == {}


def test_absent_class():
    data = make("missing")
    with pytest.warns(UserWarning, match="no sample of class 7"):
        found = collapse(data["features"], data["labels"], weight=data["weight"], bias=data["bias"], predicted_gram=np.eye(10))
    assert found.absent == (7,)
    for name in ("nc3_zhu", "nc3_papyan", "nc3_cosine", "nc2_etf_weights", "nc2_to_prediction", "hardmax_margin"):
        assert np.isnan(found[name])
        assert "no sample" in found.reasons[name]
    assert np.isfinite(found["bias_collapse"])
    keep = np.delete(np.arange(10), 7)
    compact = collapse(data["features"], np.searchsorted(keep, data["labels"]))
    for name in compact:
        assert compact[name] == pytest.approx(found[name], rel=1e-12)


def test_class_known_only_to_one_split():
    x, y, _, _ = sample(12)
    train = ClassMoments.of(x[y != 2], y[y != 2], classes=4)
    with pytest.warns(UserWarning, match="no train mean for class 2"):
        found = collapse(x, y, reference=train)
    with pytest.warns(UserWarning, match="no sample of class 2"):
        wanted = collapse(x[y != 2], y[y != 2], reference=train)
    for name in ("nc1_pinv_strong", "nc1_pinv_weak", "ncc_error", "ncc_error_between", "cdnv_strong"):
        assert found[name] == pytest.approx(wanted[name], rel=1e-12)


def test_coincident_means_have_reasons():
    x = np.array([[0.0, 1.0], [0.0, -1.0], [1.0, 0.0], [-1.0, 0.0]])
    found = collapse(x, [0, 0, 1, 1])
    assert found.rank == 0
    for name in ("nc1_pinv", "nc1_trace", "cdnv", "vci", "nc2_etf_means", "nc2_equiangular_means"):
        assert np.isnan(found[name])
        assert "coincide" in found.reasons[name] or "direction" in found.reasons[name]
    rows = {row["metric"]: row for row in found.to_rows()}
    assert rows["nc1_pinv"]["value"] is None
    assert rows["nc1_pinv"]["reason"] == found.reasons["nc1_pinv"]


def test_means_that_differ_by_rounding_alone_coincide():
    """The same rows in other orders: the means differ by float64 rounding, which is no between-class scatter."""
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((41, 3)) + 0.1
    orders = [rng.permutation(41) for _ in range(4)]
    x, y = np.concatenate([rows[order] for order in orders]), np.repeat(np.arange(4), 41)
    assert 0 < np.ptp(ClassMoments.of(x, y).means, axis=0).max() < 1e-15
    found = collapse(x, y, reference=ClassMoments.of(x, y))
    assert found.rank == 0
    for name in ("nc1_pinv", "nc1_weighted", "nc1_trace", "cdnv", "vci", "nc2_etf_means", "nc1_pinv_strong", "cdnv_strong"):
        assert np.isnan(found[name]), name
        assert found.reasons[name]


def test_rows_carry_centres():
    x, y, _, _ = sample(13)
    rows = collapse(x, y, reference=ClassMoments.of(x, y)).to_rows()
    assert {row["centres"] for row in rows if row["metric"] == "ncc_error"} == {"self", "train"}
    assert {row["centres"] for row in rows if row["metric"] == "nc1_pinv_strong"} == {"train"}
    assert {row["centres"] for row in rows if row["metric"] == "nc1_pinv"} == {"self"}


def test_names_choose():
    x, y, weight, bias = sample(14)
    every = collapse(x, y, weight=weight, bias=bias)
    assert set(every) == DEFAULT - {"nc2_to_prediction", "nc5"} - {n for n in MEASURES if "train" in MEASURES[n].assumptions}
    for name in every:
        assert dict(collapse(x, y, weight=weight, bias=bias, names=[name])) == {name: pytest.approx(every[name], rel=1e-12)}
    assert not NEEDS_SCATTER & set(collapse(x, y, names=DEFAULT - NEEDS_SCATTER))


def test_moments_alone_give_the_same():
    x, y, weight, bias = sample(15)
    every = collapse(x, y, weight=weight, bias=bias)
    moments = from_moments(ClassMoments.of(x, y, scatter=True), weight=weight, bias=bias)
    per_sample = {"ncc_error", "nc4_disagreement"}
    close({n: every[n] for n in every if n not in per_sample}, {n: moments[n] for n in moments if n not in per_sample})
    assert all(np.isnan(moments[n]) and "every sample" in moments.reasons[n] for n in per_sample)
    thin = from_moments(ClassMoments.of(x, y))
    assert np.isnan(thin["nc1_pinv"])
    assert "scatter" in thin.reasons["nc1_pinv"]
    assert thin["cdnv"] == pytest.approx(every["cdnv"])


BAD = [
    (dict(features=np.ones(4)), "must be (N, d)"),
    (dict(features=np.ones((0, 2)), labels=[]), "must be (N, d)"),
    (dict(features=[["a", "b"]], labels=[0]), "not an array of real numbers"),
    (dict(features=np.ones((4, 2)) * 1j), "array of real numbers"),
    (dict(features=np.array([[0.0, 1.0], [np.nan, 2.0], [1.0, 1.0], [0.0, 0.0]])), "features[1, 0] is nan"),
    (dict(features=np.array([[0.0, np.inf], [1.0, 2.0], [1.0, 1.0], [0.0, 0.0]])), "features[0, 1] is inf"),
    (dict(labels=[0, 1]), "must be (4,)"),
    (dict(labels=[0.0, 1.0, 0.0, 1.0]), "labels are integers"),
    (dict(labels=[0, 1, -1, 1]), "label -1 is out of range"),
    (dict(labels=[0, 1, 2, 1], classes=2), "label 2 is out of range"),
    (dict(labels=[0, 0, 0, 0]), "needs two"),
    (dict(classes=0), "classes is 0"),
    (dict(weight=np.ones((2, 3))), "weight has shape (2, 3)"),
    (dict(weight=np.full((2, 2), np.nan)), "weight has an entry that is not finite"),
    (dict(weight=np.ones((3, 2)), classes=2), "weight has 3 rows"),
    (dict(weight=np.ones((2, 2)), bias=np.ones(3)), "bias has shape (3,)"),
    (dict(bias=np.ones(2)), "bias without weight"),
    (dict(predicted_gram=np.eye(3)), "predicted_gram has shape (3, 3)"),
    (dict(ood=np.ones(3)), "ood has shape (3,)"),
    (dict(names=["nc1_pinw"]), "did you mean 'nc1_pinv"),
    (dict(names=["spectrum"]), "not one number"),
    (dict(reference=ClassMoments.empty(3, 5)), "reference has"),
]


@pytest.mark.parametrize(("change", "words"), BAD)
def test_bad_requests_are_one_line(change, words):
    request = dict(features=np.array([[0.0, 1.0], [1.0, 0.0], [2.0, 1.0], [0.0, 3.0]]), labels=[0, 1, 0, 1]) | change
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(RequestError) as caught:
            collapse(request.pop("features"), request.pop("labels"), **request)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_measure_has_a_suggestion():
    x, y, _, _ = sample(16)
    with pytest.raises(RequestError, match="did you mean 'nc1_pinv"):
        collapse(x, y)["nc1_pinw"]


def test_the_table_needs_no_torch():
    code = "import sys, ufm.measure; len(ufm.measure.MEASURES); sys.exit('torch' in sys.modules or 'scipy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
