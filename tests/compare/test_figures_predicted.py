"""The predicted panel of `gram` is the prediction that applies; `geometry` shows the kept test points."""

import numpy as np
import pytest
from figure_tables import arrays, collisions, run_folder
from synthetic_runs import hui_setting, rows_of_seed, write_training

import compare
from compare import figures
from compare.figures.geometry import most_confused, plane_of, points_of
from compare.style import Style
from ufm.predict import predict
from ufm.problem import Problem

STYLE = Style.of("neurips")
DIM = 16


def network(problem, tmp_path, noise=0.0, **setting):
    """A run whose last layer has the Grams predicted for `problem`, by a factorisation of its own, and its loaded table."""
    q = predict(problem)
    K, rng = problem.classes, np.random.default_rng(0)
    nonnegative = problem.features == "nonnegative"
    values, vectors = np.linalg.eigh(q.gram_h)
    frame = np.eye(DIM)[:K] if nonnegative else np.linalg.qr(rng.standard_normal((DIM, K)))[0].T
    means = vectors * np.sqrt(np.clip(values, 0, None)) @ vectors.T @ frame
    weight = np.linalg.lstsq(means, np.asarray(q.logits) - q.bias, rcond=None)[0].T
    means = means + noise * np.abs(rng.standard_normal(means.shape))
    centred = means - means.mean(0)
    found = {"weight": weight}
    if problem.bias != "none":
        found["bias"] = q.bias
    for split in ("train", "test"):
        found |= {f"penultimate/{split}/means": means, f"penultimate/{split}/gram": centred @ centred.T}
    found |= {"penultimate/train/counts": problem.count_vector.astype(np.int64), "penultimate/train/traces": np.zeros(K)}
    options = {"weight_decay": problem.lambda_w, "loss": problem.loss, "bias": problem.bias != "none"}
    folder = write_training(
        tmp_path, seeds=[0], setting=hui_setting(**{**options, **setting}), rows=rows_of_seed(0), tensors=found
    )
    return compare.load(folder), q


def panel(drawing, name, K):
    values = {(r[1], r[2]): r[3] for r in drawing.rows if r[0] == name}
    return np.array([[values.get((f"class {i}", float(j)), 1.0) for j in range(K)] for i in range(K)])


def cosines(gram):
    return gram / np.sqrt(np.outer(np.diag(gram), np.diag(gram)))


BASE = {"classes": 4, "dim": DIM, "counts": 20, "lambda_w": 2e-3, "lambda_h": 1e-4}


@pytest.mark.parametrize(
    "changes, title, off",
    [
        ({"loss": "ce"}, "(a) Theory: simplex ETF", -1 / 3),
        ({"loss": "mse"}, "(a) Theory: orthogonal", 0.0),
        ({"loss": "mse", "counts": (30, 20, 10, 5)}, "(a) Theory: orthogonal", 0.0),
        ({"loss": "mse", "bias": "ridge", "lambda_b": 2e-3}, "(a) Theory: simplex ETF", -1 / 3),
        ({"loss": "ce", "features": "nonnegative"}, "(a) Theory: orthogonal", 0.0),
    ],
)
def test_the_predicted_panel_is_the_prediction_that_applies(tmp_path, changes, title, off):
    table, q = network(Problem(**{**BASE, **changes}), tmp_path)
    drawing = figures.draw("gram", table, STYLE)
    predicted, train = panel(drawing, "theory", 4), panel(drawing, "train", 4)
    apart = ~np.eye(4, dtype=bool)
    assert predicted[apart] == pytest.approx(off, abs=1e-6)
    np.testing.assert_allclose(predicted, cosines(q.gram_h), atol=1e-6)
    np.testing.assert_allclose(train, predicted, atol=1e-6)  # this network sits on its prediction
    assert title in [ax.get_title(loc="left") or ax.get_title() for ax in drawing.figure.axes]
    assert any("own regularisation" in note for note in drawing.notes)
    for width in ("neurips", "icml"):
        assert not collisions(figures.draw("gram", table, Style.of(width)).figure)


def test_imbalanced_cross_entropy_shows_its_own_angles(tmp_path):
    problem = Problem(**{**BASE, "counts": (40, 40, 4, 4)})
    table, q = network(problem, tmp_path)
    predicted = panel(figures.draw("gram", table, STYLE), "theory", 4)
    assert predicted[0, 1] != pytest.approx(-1 / 3, abs=0.02)
    np.testing.assert_allclose(predicted, cosines(q.gram_h), atol=1e-5)


def test_where_no_prediction_applies_the_simplex_is_shown_and_the_reason_said(tmp_path):
    table, _ = network(Problem(**BASE), tmp_path, optimizer="adamw")
    drawing = figures.draw("gram", table, STYLE)
    assert panel(drawing, "theory", 4)[0, 1] == pytest.approx(-1 / 3)
    assert any("AdamW" in note for note in drawing.notes)


def test_the_common_part_of_the_means_is_seen_only_about_the_origin(tmp_path):
    """ReLU features with a common mean: about their centre the angles would look like the prediction."""
    problem = Problem(**{**BASE, "features": "nonnegative"})
    table, q = network(problem, tmp_path / "on")
    shifted, _ = network(problem, tmp_path / "off", noise=0.5 * float(np.sqrt(q.gram_h[0, 0])))
    off = ~np.eye(4, dtype=bool)
    assert panel(figures.draw("gram", table, STYLE), "train", 4)[off].max() < 1e-6
    assert panel(figures.draw("gram", shifted, STYLE), "train", 4)[off].min() > 0.1


def test_geometry_draws_the_test_points_of_its_three_classes(tmp_path):
    table = run_folder(tmp_path, seeds=1)
    found = arrays(0)
    plain = figures.draw("geometry", table, STYLE)
    assert not [row for row in plain.rows if row[7] == "point"]  # an older run kept none
    rng = np.random.default_rng(5)
    labels = found["test/labels"]
    rows = np.arange(0, len(labels), 2)
    means = found["penultimate/train/means"] @ found["penultimate/basis"].T
    places = means[labels[rows]] + 0.3 * rng.standard_normal((len(rows), means.shape[1]))
    places[0] = 100.0  # far away: it must not shrink the picture
    kept = {**found, "penultimate/test/places": places.astype(np.float32), "penultimate/test/places_of": rows}
    folder = write_training(tmp_path / "new", seeds=[0], rows=rows_of_seed(0), tensors=kept)
    drawing = figures.draw("geometry", compare.load(folder), STYLE)
    chosen = most_confused(found["test/confusion"])
    plane = plane_of(means, chosen)
    for k in chosen:
        mine = [row[2:4] for row in drawing.rows if row[1] == f"class {k}, points"]
        wanted = [plane.of(place) for place, label in zip(places, labels[rows], strict=True) if label == k]
        np.testing.assert_allclose(mine, wanted, rtol=1e-5, atol=1e-5)
        assert len(points_of(kept, k)) == len(mine) == 20
    assert drawing.figure.axes[1].get_xlim()[1] < 10
    assert any(note.startswith("Dots: 60 test points") for note in drawing.notes)
