"""One convention in every prediction: logits are W h + b, the loss is taken of scale * (W h + b)/temperature + offset.

The objective is written from that sentence and minimised by scipy over W, the class means and b.
"""

import itertools
import json

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import log_softmax

import ufm
from ufm.cli import main

SMALL = {"lambda_w": 0.02, "lambda_h": 0.004}
TIGHT = {"maxiter": 8000, "maxfun": 8000, "ftol": 1e-16, "gtol": 1e-11, "maxcor": 30}


def data(p, z):
    """The data term at logits z = W h + b (T, K), and its gradient."""
    tau = p.temperature if p.constraint == "sphere" else 1.0
    scale = np.ones(p.classes) if p.logit_scale is None else np.array(p.logit_scale)
    seen = scale * z / tau + (0.0 if p.logit_offset is None else np.array(p.logit_offset))
    q = np.eye(p.classes) if p.targets is None else np.array(p.targets)
    mass = p.count_vector / p.total
    if p.class_weights is not None and p.targets is None:
        mass = mass * p.class_weights
    elif p.class_weights is not None:
        q = q * np.array(p.class_weights)
    if p.loss == "mse":
        rows, pull = ((seen - q) ** 2).sum(1) / 2, seen - q
    else:
        q = (1 - p.smoothing) * q + p.smoothing / p.classes * q.sum(1, keepdims=True) if p.loss == "smoothing" else q
        log_p = log_softmax(seen, axis=1)
        rows, pull = -(q * log_p).sum(1), q.sum(1, keepdims=True) * np.exp(log_p) - q
        if p.loss == "focal":
            own = np.diag(log_p)
            miss, g = 1 - np.exp(own), p.focal_gamma
            rows, pull = -(miss**g) * own, (miss**g - g * miss ** (g - 1) * np.exp(own) * own)[:, None] * pull
    return mass @ rows, mass[:, None] * pull * scale / tau


def factors(p, x):
    K, d, T = p.classes, p.dim, len(p.count_vector)
    W, H, b = x[: K * d].reshape(K, d), x[K * d : (K + T) * d].reshape(T, d), x[(K + T) * d :]
    if p.constraint == "sphere":
        W, H = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (W, H))
    if p.constraint == "ball":
        W, H = W * np.sqrt(K * p.energy_w) / np.linalg.norm(W), H * np.sqrt(T * p.energy_h) / np.linalg.norm(H)
    return W, H, b if len(b) else np.zeros(K)


def objective(p, x):
    K, d, n = p.classes, p.dim, p.count_vector
    W, H, b = factors(p, x)
    f, g = data(p, H @ W.T + b)
    f, gW, gH, gb = f + p.lambda_b / 2 * b @ b, g.T @ H, g @ W, g.sum(0) + p.lambda_b * b
    U, V = x[: K * d].reshape(W.shape), x[K * d : (K + len(n)) * d].reshape(H.shape)
    if p.constraint == "ridge":
        f += p.lambda_w / 2 * (W**2).sum() + p.lambda_h / 2 * n @ (H**2).sum(1)
        gW, gH = gW + p.lambda_w * W, gH + p.lambda_h * n[:, None] * H
    elif p.constraint == "sphere":
        gW = (gW - (gW * W).sum(1, keepdims=True) * W) / np.linalg.norm(U, axis=1, keepdims=True)
        gH = (gH - (gH * H).sum(1, keepdims=True) * H) / np.linalg.norm(V, axis=1, keepdims=True)
    else:
        gW = (gW - (gW * W).sum() / (W**2).sum() * W) * np.linalg.norm(W) / np.linalg.norm(U)
        gH = (gH - (gH * H).sum() / (H**2).sum() * H) * np.linalg.norm(H) / np.linalg.norm(V)
    return f, np.concatenate([gW.ravel(), gH.ravel(), gb if p.bias != "none" else []])


def best(p, starts=4):
    ends = []
    for seed in range(starts):
        x = np.random.default_rng(seed).normal(size=(p.classes + len(p.count_vector)) * p.dim)
        x = np.concatenate([x * (0.6, 1.5)[seed % 2], np.zeros(p.classes if p.bias != "none" else 0)])
        ends.append(minimize(lambda x: objective(p, x), x, jac=True, method="L-BFGS-B", options=TIGHT))
    return min(ends, key=lambda end: end.fun)


def permuted(rows):
    found = [(r, n) for row, n in rows for r in sorted(set(itertools.permutations(row)))]
    return {"targets": tuple(r for r, _ in found), "counts": tuple(n for _, n in found)}


SPHERE = {"classes": 4, "dim": 4, "counts": 5, "constraint": "sphere"}
PREDICTED = {
    "sphere": {**SPHERE, "temperature": 0.3},
    "sphere-hot": {**SPHERE, "temperature": 3.0},
    "sphere-free": {**SPHERE, "temperature": 0.6, "bias": "free"},
    "sphere-ridge": {**SPHERE, "temperature": 2.0, "bias": "ridge", "lambda_b": 0.05},
    "sphere-offset": {**SPHERE, "temperature": 0.6, "bias": "free", "logit_offset": (1.0, -2.0, 0.5, 0.1)},
    "sphere-equal-offset": {**SPHERE, "temperature": 0.6, "bias": "ridge", "lambda_b": 0.1, "logit_offset": (1.5,) * 4},
    "sphere-scale": {**SPHERE, "temperature": 0.6, "logit_scale": (2.0,) * 4},
    "sphere-scale-offset": {
        **SPHERE,
        "bias": "free",
        "temperature": 2.0,
        "logit_scale": (3.0,) * 4,
        "logit_offset": (1, 0, 0, -1),
    },
    "sphere-weights": {**SPHERE, "temperature": 0.6, "class_weights": (2.5,) * 4, "bias": "ridge", "lambda_b": 0.1},
    "sphere-smoothing": {**SPHERE, "temperature": 0.6, "loss": "smoothing", "bias": "free"},
    "sphere-focal": {**SPHERE, "temperature": 0.6, "loss": "focal", "bias": "ridge", "lambda_b": 0.1},
    "sphere-code": {"classes": 6, "dim": 3, "counts": 5, "constraint": "sphere", "temperature": 0.4, "logit_scale": (0.7,) * 6},
    "scale": {"classes": 4, "dim": 4, "counts": 5, "logit_scale": (2.0,) * 4, **SMALL},
    "scale-ridge": {"classes": 4, "dim": 3, "counts": 5, "logit_scale": (0.5,) * 4, "bias": "ridge", "lambda_b": 0.1, **SMALL},
    "scale-mse": {
        **{"classes": 4, "dim": 4, "counts": 5, "loss": "mse", "logit_scale": (3.0,) * 4, "bias": "ridge", "lambda_b": 0.2},
        **SMALL,
    },
    "scale-offset": {
        **{"classes": 4, "dim": 4, "counts": 5, "logit_scale": (2.0,) * 4, "logit_offset": (1.0, -2.0, 0.5, 0.1), "bias": "free"},
        **SMALL,
    },
    "scale-mse-offset": {
        **{"classes": 3, "dim": 3, "counts": (5, 2, 1), "loss": "mse", "bias": "free", "lambda_w": 0.02, "lambda_h": 0.004},
        **{"logit_scale": (2.0,) * 3, "logit_offset": (1.0, -2.0, 0.5)},
    },
    "scale-ball": {"classes": 3, "dim": 3, "counts": 5, "constraint": "ball", "energy_w": 1.5, "logit_scale": (2.0,) * 3},
    "scale-two-sizes": {"classes": 4, "dim": 4, "counts": (9, 9, 3, 3), "logit_scale": (2.0,) * 4, **SMALL},
    "weights-mse": {
        **{"classes": 3, "dim": 3, "counts": (5, 2, 1), "loss": "mse", "bias": "free", "class_weights": (2.5,) * 3},
        **SMALL,
    },
    "weights-ridge": {
        **{"classes": 4, "dim": 4, "counts": 5, "loss": "mse", "class_weights": (0.5,) * 4, "bias": "ridge", "lambda_b": 0.2},
        **SMALL,
    },
    "weights-soft": {
        **{"classes": 3, "dim": 3, "class_weights": (0.5,) * 3, **permuted([((1.0, 0.0, 0.0), 4), ((0.6, 0.4, 0.0), 2)])},
        **SMALL,
    },
}


@pytest.mark.parametrize("name", PREDICTED)
def test_predictions_against_the_definition(name):
    p = ufm.Problem(**PREDICTED[name])
    predicted = ufm.predict(p)
    assert predicted.applies, predicted.reason
    end = best(p)
    assert end.fun == pytest.approx(predicted.loss, rel=2e-8)
    assert predicted.loss <= end.fun + 1e-10
    W, H, b = factors(p, end.x)
    z = H @ W.T
    if p.bias == "free" and p.loss != "mse":
        b = b - b.mean()
    order = np.sort if "code" in predicted.details else np.asarray  # codes are unique up to relabelling
    for found, expected in ((z + b, predicted.logits), (W @ W.T, predicted.gram_w), (H @ H.T, predicted.gram_h)):
        np.testing.assert_allclose(order(found), order(expected), atol=2e-4 * max(1.0, np.abs(expected).max()))
    np.testing.assert_allclose(b, predicted.bias, atol=2e-4)
    spectrum = np.linalg.svd(z * np.sqrt(p.count_vector)[:, None], compute_uv=False)
    np.testing.assert_allclose(
        np.append(spectrum, np.zeros(9))[:3], np.append(predicted.singular_values, np.zeros(9))[:3], atol=1e-3
    )


UNEVEN = {"classes": 3, "dim": 3, "counts": (5, 1, 1), "constraint": "sphere", "temperature": 2.0}
STRUCTURED = {
    "ridge": {**UNEVEN, "bias": "ridge", "lambda_b": 0.05},
    "free": {**UNEVEN, "bias": "free", "temperature": 0.5},
    "ridge-mse": {**UNEVEN, "bias": "ridge", "lambda_b": 0.28, "loss": "mse", "temperature": 3.7},
    "free-mse": {**UNEVEN, "bias": "free", "loss": "mse", "temperature": 0.7},
    "focal": {**UNEVEN, "bias": "ridge", "lambda_b": 0.05, "loss": "focal"},
    "weights": {**UNEVEN, "bias": "ridge", "lambda_b": 0.05, "class_weights": (1.0, 2.0, 0.5)},
    "adjusted": {**UNEVEN, "bias": "ridge", "lambda_b": 0.05, "logit_scale": (1.0, 0.4, 2.0), "logit_offset": (0.5, -1.0, 0.0)},
    "offset": {**UNEVEN, "bias": "free", "logit_offset": (0.5, -1.0, 0.0)},
    "code": {"classes": 5, "dim": 2, "counts": (5, 1, 1, 2, 1), "constraint": "sphere", "temperature": 0.4, "bias": "free"},
}


def rows_of(gram, dim):
    values, vectors = np.linalg.eigh(gram)
    return vectors[:, -dim:] * np.sqrt(np.maximum(values[-dim:], 0))


@pytest.mark.parametrize("name", STRUCTURED)
def test_structures_of_the_sphere_against_the_definition(name):
    """Their geometry with the best bias that scipy finds for it; none lies below the optimum."""
    p = ufm.Problem(**STRUCTURED[name])
    found, least = ufm.structures(p), best(p, 8).fun
    assert found
    for structure in found.values():
        W = rows_of(structure.gram_w, p.dim)  # W = H in every structure of the sphere
        np.testing.assert_allclose(structure.gram_h, structure.gram_w, atol=1e-12)

        def value(b, W=W):
            f, g = data(p, W @ W.T + b)
            return f + p.lambda_b / 2 * b @ b, g.sum(0) + p.lambda_b * b

        end = minimize(value, np.zeros(p.classes), jac=True, method="BFGS", options={"gtol": 1e-9})
        assert structure.loss == pytest.approx(end.fun, rel=1e-10)
        b = end.x - (end.x.mean() if p.bias == "free" and p.loss != "mse" else 0.0)
        np.testing.assert_allclose(structure.bias, b, atol=1e-5)
        np.testing.assert_allclose(structure.logits, W @ W.T + b, atol=1e-5)
        assert structure.loss >= least - 1e-9


def test_the_solver_speaks_the_same_words():
    p = ufm.Problem(3, 3, (5, 1, 1), constraint="sphere", temperature=2.0, bias="ridge", lambda_b=0.05)
    solution = ufm.solve(p)
    W, H, b = (part.numpy() for part in (solution.W, solution.H, solution.b))
    np.testing.assert_allclose(solution.logits.numpy(), H @ W.T + b, atol=1e-12)
    assert data(p, H @ W.T + b)[0] + 0.025 * b @ b == pytest.approx(solution.loss, rel=1e-12)
    assert solution.loss == pytest.approx(best(p).fun, rel=1e-8)


def test_predicted_logit_gaps_are_those_found(tmp_path):
    """At every temperature: a factor 1/temperature between the two would be the temperature's, not the optimum's."""
    grid = ["--classes", "4", "--dim", "5", "--constraint", "sphere", "--temperature", "0.1:1:5log", "--device", "cpu"]
    with pytest.raises(SystemExit) as left:
        main(["simulate", "single", *grid, "--out", str(tmp_path)])
    assert left.value.code == 0
    (path,) = tmp_path.rglob("cells.jsonl")
    cells = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(cells) == 5
    for cell in cells:
        assert cell["prediction"]["values"]["logit_gap"] == pytest.approx(4 / 3, rel=1e-12)
        assert cell["measures"]["logit_gap"] == pytest.approx(4 / 3, rel=1e-7)


def test_tilted_frames_have_no_spectrum():
    """Two optima of smoothed labels on the sphere, of equal loss and different singular values."""
    p = ufm.Problem(4, 5, 5, constraint="sphere", temperature=0.3, loss="smoothing", smoothing=0.2)
    predicted = ufm.predict(p)
    gap = np.log(4 * 0.8 / 0.2 + 1) * 0.3  # of W h, where the softmax equals the smoothed labels
    frame = 4 / 3 * (np.eye(4) - 1 / 4)
    both = 1 - gap * 3 / 4  # squares of the common components' lengths: in W and H alike, or unequal with the same product
    spectra = []
    for w, h in ((both, both), (both / 2, 1 - (1 - both) ** 2 / (1 - both / 2))):
        z = np.sqrt((1 - w) * (1 - h)) * frame + np.sqrt(w * h)
        assert data(p, z)[0] == pytest.approx(predicted.loss, rel=1e-12)
        spectra.append(np.linalg.svd(z, compute_uv=False))
    assert abs(spectra[0] - spectra[1]).max() > 0.01
    assert not predicted.unique and predicted.singular_values is None and predicted.logits is None
    assert predicted.details["a"] == pytest.approx(gap, rel=1e-12)


@pytest.mark.parametrize(
    ("lambda_b", "penalty", "rank", "name"),
    [(5.0, 1.0, 0, "zero"), (5.0, 0.05, 1, "mean"), (5.0, 0.001, 3, "etf+mean"), (1e-4, 0.001, 2, "etf")],
)
def test_symmetric_squared_error_names_what_is_there(lambda_b, penalty, rank, name):
    targets = permuted([((0.4, 0.3, 0.3), 1)])
    p = ufm.Problem(3, 4, loss="mse", bias="ridge", lambda_b=lambda_b, lambda_w=penalty, lambda_h=penalty, **targets)
    predicted, end = ufm.predict(p), best(p)
    W, H, _ = factors(p, end.x)
    assert end.fun == pytest.approx(predicted.loss, rel=1e-9)
    assert np.linalg.matrix_rank(H @ W.T, tol=1e-4) == rank and predicted.name == name
    assert predicted.zero == (rank == 0)


@pytest.mark.parametrize(("K", "price"), [(14, 0.15), (16, 0.1), (20, 0.15)])
def test_many_classes_in_the_plane_leave_the_polygon(K, price):
    """Why the polygon is predicted up to 13 classes: a search started beside it ends below."""
    penalty = price / K / np.sqrt(10)
    p = ufm.Problem(K, 2, 10, lambda_w=penalty, lambda_h=penalty)
    polygon = ufm.structures(p)["code"]
    turn = 2 * np.pi * np.arange(K) / K
    rows = np.stack([np.cos(turn), np.sin(turn)], 1)
    lengths = np.sqrt(np.array([polygon.gram_w[0, 0], polygon.gram_h[0, 0]]))
    noise = np.random.default_rng(K).normal(size=(2, K, 2)) * 0.05
    x = np.concatenate([((1 + noise[i]) * rows * lengths[i]).ravel() for i in range(2)])
    end = minimize(lambda x: objective(p, x), x, jac=True, method="L-BFGS-B", options=TIGHT)
    assert end.fun < polygon.loss * (1 - 1e-5)
    refused = ufm.predict(p)
    assert not refused.applies and "K = 13" in refused.reason


@pytest.mark.parametrize(("K", "d"), [(5, 2), (10, 2), (13, 2), (8, 4)])
@pytest.mark.parametrize("price", [0.03, 0.15, 0.5])
def test_narrow_codes_are_not_beaten(K, d, price):
    penalty = price / K / np.sqrt(10)
    p = ufm.Problem(K, d, 10, lambda_w=penalty, lambda_h=penalty)
    predicted = ufm.predict(p)
    assert predicted.applies and any("compared with searches" in words for words in predicted.assumptions)
    W = rows_of(predicted.gram_w, d)
    H = predicted.logits @ np.linalg.pinv(W).T
    curvature = []
    x = np.concatenate([W.ravel(), H.ravel()])
    for i in range(len(x)):
        step = np.eye(len(x))[i] * 1e-5
        curvature.append((objective(p, x + step)[1] - objective(p, x - step)[1]) / 2e-5)
    turns = d * (d - 1) // 2  # rotations are the only flat directions
    values = np.linalg.eigvalsh(np.array(curvature) / penalty)
    assert values[0] > -1e-5 and values[turns] > 1e-4
    assert best(p, 3).fun >= predicted.loss * (1 - 1e-10)


def test_more_classes_than_were_compared_are_refused():
    small = {"lambda_w": 1e-4, "lambda_h": 1e-4}
    assert ufm.predict(ufm.Problem(32, 16, 10, **small)).applies
    assert "d = 16 only" in ufm.predict(ufm.Problem(34, 17, 10, **small)).reason
    assert ufm.predict(ufm.Problem(40, 2, 10, lambda_w=1.0, lambda_h=1.0)).zero  # a theorem at any size


@pytest.mark.parametrize(
    "fields",
    [
        {"loss": "smoothing", "constraint": "ball", "energy_w": 20.0},
        {"loss": "smoothing", "constraint": "ball", "energy_w": 20.0, "bias": "free"},
        {"loss": "mse", "constraint": "ball", "energy_w": 20.0, "bias": "free"},
        {"loss": "smoothing", "constraint": "sphere", "temperature": 0.1, "bias": "free"},
    ],
)
def test_what_is_not_unique_is_left_out(fields):
    """Searches from different starts end at one loss and different optima; what differs between them is not predicted."""
    p = ufm.Problem(3, 4, 5, **fields)
    predicted = ufm.predict(p)
    ends = [best(p, 1 + s) for s in (0,)] + [
        minimize(
            lambda x: objective(p, x),
            np.random.default_rng(s).normal(size=24 + (3 if p.bias == "free" else 0)),
            jac=True,
            method="L-BFGS-B",
            options=TIGHT,
        )
        for s in (11, 12)
    ]
    parts = []
    for end in ends:
        assert end.fun == pytest.approx(predicted.loss, rel=1e-7, abs=1e-10)
        W, H, b = factors(p, end.x)
        b = b - (b.mean() if p.loss != "mse" else 0.0)
        parts.append({"gram_w": W @ W.T, "singular_values": np.linalg.svd(H @ W.T, compute_uv=False), "bias": b})
        parts[-1] |= {"gram_h": H @ H.T, "logits": H @ W.T + b}
    assert not predicted.unique
    for name in parts[0]:
        apart = max(abs(one[name] - parts[0][name]).max() for one in parts)
        assert (getattr(predicted, name) is None) == (apart > 1e-3), (name, apart)


def test_codes_of_the_sphere_are_predicted_as_far_as_they_were_compared():
    cold = {"counts": 2, "constraint": "sphere", "temperature": 0.3}
    assert any("up to 48 classes" in words for words in ufm.predict(ufm.Problem(48, 2, **cold)).assumptions)
    for K, d in ((49, 2), (34, 17)):
        refused = ufm.predict(ufm.Problem(K, d, **cold))
        assert not refused.applies and "no closed form" in refused.reason and refused.details["margin"] > 0
