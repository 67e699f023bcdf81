"""Conversions between the conventions of NC1 on the same features: right where they hold, absent where they do not."""

import numpy as np
import pytest
from synthetic_runs import hui_setting, write_training

from compare.conventions import CONVENTIONS, conventions
from compare.load import load
from compare.papers import PAPERS, paper
from compare.verdict import AGREES, DEVIATES, judge
from ufm import measure
from ufm.record import Run


def features(counts, dim=16, seed=0, within=0.3):
    draw = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(counts)), counts)
    means = draw.standard_normal((len(counts), dim))
    stretch = np.linspace(0.2, 1.8, dim)  # scatter that is not isotropic: the quotient of traces is no multiple
    return means[labels] + within * stretch * draw.standard_normal((len(labels), dim)), labels


def run_of(root, counts, seeds=range(3), within=0.3):
    """A run whose rows are measured on real arrays, all conventions at once."""
    for seed in seeds:
        points, labels = features(counts, seed=seed, within=within)
        found = measure.collapse(points, labels)
        rows = [
            {"seed": seed, "epoch": 1, "step": 8, "split": "train", "layer": "penultimate", "centres": "self", "metric": name,
             "value": float(found[name])}
            for name in CONVENTIONS if name in found
        ]  # fmt: skip
        setting = hui_setting(train_per_class=list(counts))
        with Run.create(root, "collapse", "toy", setting, seed=seed, environment={}) as run:
            run.append("metrics.jsonl", rows)
            run.finish({"status": "finished", "data": {"train": len(labels), "counts": list(counts), "classes": len(counts)}})
    return load(root)


def test_with_equal_classes_every_conversion_gives_the_measured_number(tmp_path):
    rows = {row["measure"]: row for row in conventions(run_of(tmp_path, (20,) * 5))}
    exact = [name for name, one in CONVENTIONS.items() if one.law and "simplex" not in one.needs]
    assert len(exact) == 4
    for name in exact:
        assert rows[name]["converted"] == pytest.approx(rows[name]["mean"], rel=1e-9), name
    assert rows["cdnv"]["converted"] != pytest.approx(rows["cdnv"]["mean"], rel=0.02)  # random means are no simplex ETF
    assert np.isnan(rows["nc1_pinv"]["converted"]) and rows["nc1_pinv"]["conversion"] == ""


def test_with_unequal_classes_only_what_always_holds_is_converted(tmp_path):
    rows = {row["measure"]: row for row in conventions(run_of(tmp_path, (40, 30, 10, 5, 5)))}
    assert rows["nc1_pinv_sum"]["converted"] == pytest.approx(rows["nc1_pinv_sum"]["mean"], rel=1e-9)
    for name in ("nc1_pinv_sample", "nc1_weighted", "nc1_total", "cdnv"):
        assert np.isnan(rows[name]["converted"]) and rows[name]["conversion"].startswith("needs equal class sizes")
    assert rows["nc1_weighted"]["mean"] > 1.2 * 5 * rows["nc1_pinv"]["mean"]  # and it would have been wrong


def test_a_simplex_etf_has_the_cdnv_of_its_quotient_of_traces(tmp_path):
    K, dim, n = 4, 6, 50
    corners = np.linalg.qr(np.random.default_rng(1).standard_normal((dim, dim)))[0][:K]
    corners = corners - corners.mean(0)
    labels = np.repeat(np.arange(K), n)
    noise = np.random.default_rng(2).standard_normal((n, dim))
    noise -= noise.mean(0)
    found = measure.collapse(corners[labels] + 0.2 * np.tile(noise, (K, 1)), labels)  # own means are the corners exactly
    law = CONVENTIONS["cdnv"].law
    assert found["cdnv"] == pytest.approx(law(found["nc1_trace"], K), rel=1e-9)


def test_without_known_class_sizes_nothing_is_converted_that_needs_them(tmp_path):
    rows = {row["measure"]: row for row in conventions(load(write_training(tmp_path)))}
    assert set(rows) == {"nc1_pinv", "nc1_pinv_strong", "nc1_pinv_weak"}
    assert all(np.isnan(row["converted"]) for row in rows.values())


def test_the_review_is_judged_on_real_features_and_its_controls_fail(tmp_path):
    """The claims of the paper on measured Gaussian features, in the place of trainings."""
    one = paper("kothapalli2022")
    assert "kothapalli2022" in PAPERS
    scale = one.scales["demo"]
    for key, counts in (("equal", (60,) * 10), ("unequal", (60,) * 7 + (6,) * 3)):
        options = scale.cells[key]["options"]
        for seed in scale.seeds:
            rows = []
            for layer, within, seed_of in (("penultimate", 0.3, seed), ("blocks.0", 1.0, seed + 50)):
                points, labels = features(counts, dim=40, seed=seed_of, within=within)
                found = measure.collapse(points, labels)
                rows += [row_of(seed, layer, name, found[name]) for name in CONVENTIONS if name in found]
            flat, labels = features(counts, dim=10, seed=seed + 100)
            found = measure.collapse(np.sign(flat.sum()) * flat, labels)
            rows += [row_of(seed, "logits", name, found["nc1_pinv"]) for name in ("nc1_pinv", "nc1_trace")]
            with Run.create(tmp_path, "collapse", key, options, seed=seed, environment={}) as run:
                run.append("metrics.jsonl", rows)
                run.finish({"status": "finished", "data": {"counts": list(counts)}})
    verdicts = {v.claim.name: v for v in judge(load(tmp_path), one, "demo")}
    identities = [v for v in verdicts.values() if v.claim.kind == "identity"]
    assert len(identities) == 4 and all(v.verdict == AGREES and v.control.verdict == DEVIATES for v in identities)
    assert verdicts["conventions-differ"].verdict == AGREES
    assert verdicts["conventions-differ"].control.verdict == DEVIATES


def row_of(seed, layer, name, value):
    return {"seed": seed, "epoch": 1, "step": 8, "split": "train", "layer": layer, "centres": "self", "metric": name,
            "value": float(value)}  # fmt: skip
