"""Trainings with a deep head in the figures layers and spectrum: what is drawn, and the deep model's structures beside it."""

import itertools

import numpy as np
import pytest
from figure_tables import collisions

import compare
from compare import figures
from compare.figures.drawing import csv_text, render
from compare.figures.head_sizes import sizes
from compare.figures.heads import deep_cells, theories, trained
from compare.style import Style
from ufm.errors import RequestError
from ufm.record import Run

LAYERS = ("blocks.1", "head.0", "head.1", "penultimate")
MAPS = ("head.0", "head.1", "penultimate", "logits")
SETTING = {
    "dataset": "digits", "model": "mlp", "width": 16, "head": "deep", "head_depth": 4, "head_activation": "relu", "bias": False,
    "loss": "mse", "optimizer": "sgd", "weight_decay": 0.01, "lr": 0.1,
}  # fmt: skip
EDGES = list(itertools.combinations(range(5), 2))  # classes = edges of the complete graph on five points
INCIDENCE = np.array([[float(v in edge) for edge in EDGES] for v in range(5)])  # (5, 10)


def srg_means():
    """The class means (10, 10) of H_1..H_4 of the strongly regular graph solution, by hand from its definition."""
    middle = np.hstack([INCIDENCE.T, np.zeros((10, 5))])
    complement = np.maximum(1 - INCIDENCE.T @ INCIDENCE, 0)  # the Petersen graph
    first = np.hstack([np.eye(10)[:, :5], np.zeros((10, 5))])  # theory leaves H_1 to the balance; here anything of rank 5
    return [first + 0.3, middle, 2 * middle, complement]


def write(root, seeds=3, epochs=(0, 10), means_of=None, norm_of=2.0, fit=0.01, logits=None, **changed):
    setting = SETTING | changed
    draw = np.random.default_rng(0)
    for seed in range(seeds):
        with Run.create(root, "collapse", "toy", {"study": "collapse", **setting}, seed=seed, environment={}) as run:
            rows = []
            for epoch in epochs:
                place = {"seed": seed, "epoch": epoch, "step": 10 * epoch}
                noise = float(np.exp(0.05 * draw.standard_normal()))
                for number, (name, means) in enumerate(zip(LAYERS, means_of or srg_means(), strict=True)):
                    values = np.linalg.svd(means, compute_uv=False)
                    share = values[values > 1e-9] / values.sum()
                    unit = means / np.linalg.norm(means, axis=1, keepdims=True)
                    own = {
                        "nc1_pinv": noise * (3.0 if epoch == 0 else 0.1**number),
                        "means_rank_effective": np.exp(-(share * np.log(share)).sum()),
                        "means_cosine": (unit @ unit.T)[np.triu_indices(10, 1)].mean(),
                    }
                    found = [("train", "self", key, value) for key, value in own.items()]
                    found.append(("test", "train", "nc1_pinv_strong", noise * (3.0 if epoch == 0 else 0.3)))
                    rows += [
                        {**place, "split": s, "layer": name, "centres": c, "metric": m, "value": float(v)} for s, c, m, v in found
                    ]
                for number, name in enumerate(MAPS):
                    norm = norm_of if setting["optimizer"] == "sgd" and epoch else 3.0 - 0.6 * number * noise
                    rows.append(
                        {**place, "split": "train", "layer": name, "centres": "self", "metric": "head_norm", "value": norm}
                    )
                whole = {"split": "train", "layer": "network", "centres": "self", "metric": "loss", "value": fit}
                rows.append({**place, **whole})
            run.append("metrics.jsonl", rows)
            arrays = {} if logits is None else {"logits/train/means": logits}
            arrays |= {f"{LAYERS[0]}/train/traces": np.zeros(10), f"{LAYERS[0]}/train/counts": np.full(10, 40)}
            for name, means in zip(LAYERS, means_of or srg_means(), strict=True):
                for split, spread in (("train", 0.0), ("test", 0.02)):
                    arrays[f"{name}/{split}/means"] = means + spread * draw.standard_normal(means.shape)
            run.write_tensors("tensors.safetensors", arrays)
            data = {"train": 400, "test": 200, "classes": 10, "counts": [40] * 10}
            run.finish({"status": "finished", "ok": True, "data": data})


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    root = tmp_path_factory.mktemp("one")
    write(root)
    return compare.load(root)


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    root = tmp_path_factory.mktemp("several")
    for decay in (0.002, 0.01, 0.02):
        write(root, weight_decay=decay)
    write(root, optimizer="adamw", weight_decay=3.0, lr=0.003)
    return compare.load(root)


def drawn(drawing, panel, curve):
    """Return the values of a curve in the CSV."""
    return [row[3] for row in drawing.rows if row[0] == panel and row[1] == curve]


@pytest.mark.parametrize("width", ["neurips", "75"])
@pytest.mark.parametrize("name", ["layers", "spectrum"])
@pytest.mark.parametrize("runs", ["one", "several"])
def test_no_text_overlaps_or_leaves_the_figure(runs, name, width, request):
    assert collisions(figures.draw(name, request.getfixturevalue(runs), Style.of(width)).figure) == []


@pytest.mark.parametrize("name", ["layers", "spectrum"])
def test_drawn_twice_the_bytes_are_the_same(name, one):
    style = Style.of("icml")
    first, second = figures.draw(name, one, style), figures.draw(name, one, style)
    assert render(first, ".svg", style, {}) == render(second, ".svg", style, {}) and csv_text(first) == csv_text(second)


def test_layers_draws_the_measured_means_and_both_structures(one):
    drawing = figures.draw("layers", one, Style.of("icml"))
    rank = drawn(drawing, "rank", "rank train")
    # H_2, H_3: one singular value sqrt(2 (m-1)) and m-1 times sqrt(m-2), m = 5; H_4: the Petersen graph, 3, 1 (5 x), -2 (4 x)
    middle = np.array([8**0.5, *[3**0.5] * 4]) / (8**0.5 + 4 * 3**0.5)
    last = np.array([3, *[1] * 5, *[2] * 4]) / 16
    by_hand = [float(np.exp(-(p * np.log(p)).sum())) for p in (middle, middle, last)]
    np.testing.assert_allclose(rank[1:], by_hand, rtol=1e-9)
    np.testing.assert_allclose(drawn(drawing, "rank", "rank Theory: SRG")[1:], by_hand, rtol=1e-9)
    np.testing.assert_allclose(drawn(drawing, "rank", "rank Theory: DNC"), 10, rtol=1e-9)
    # an edge meets 6 of the 9 others in one point of two; the Petersen graph's non-neighbours share one of three neighbours
    np.testing.assert_allclose(drawn(drawing, "cosine", "cosine Theory: SRG")[1:], [1 / 3, 1 / 3, 2 / 9], rtol=1e-9)
    np.testing.assert_allclose(drawn(drawing, "cosine", "cosine train")[1:], [1 / 3, 1 / 3, 2 / 9], rtol=1e-9)
    np.testing.assert_allclose(drawn(drawing, "cosine", "cosine Theory: DNC"), 0, atol=1e-9)
    assert drawn(drawing, "balance", "balance train") == drawn(drawing, "balance", "balance theory") == [1, 1, 1, 1]
    assert drawn(drawing, "balance", "balance untrained")[0] > 1.5
    assert len(drawn(drawing, "nc1", "nc1 test")) == 4
    assert "DNC ranks [10, 10, 10, 10]; SRG ranks [5, 5, 5, 10]" in " ".join(drawing.notes)


def test_nc1_is_a_geometric_mean_over_seeds(one):
    drawing = figures.draw("layers", one, Style.of("icml"))
    values = one["value"][
        (one["measure"] == "nc1_pinv") & (one["epoch"] == 10) & (one["layer"] == "penultimate") & (one["split"] == "train")
    ]
    assert drawn(drawing, "nc1", "nc1 train")[3] == pytest.approx(np.exp(np.log(values).mean()))


def test_spectrum_is_over_the_largest_and_beside_the_structures(one):
    drawing = figures.draw("spectrum", one, Style.of("icml"))
    assert [label for label in dict.fromkeys(row[0] for row in drawing.rows)] == ["H_1", "H_2", "H_3", "H_4"]
    profile = [1, *[(3 / 8) ** 0.5] * 4, *[0] * 5]
    np.testing.assert_allclose(drawn(drawing, "H_3", "Train H_3"), profile, atol=1e-9)
    np.testing.assert_allclose(drawn(drawing, "H_3", "Theory: SRG H_3"), profile, atol=1e-9)
    np.testing.assert_allclose(drawn(drawing, "H_4", "Theory: SRG H_4"), [1, *[2 / 3] * 4, *[1 / 3] * 5], atol=1e-9)
    np.testing.assert_allclose(drawn(drawing, "H_2", "Theory: DNC H_2"), 1, atol=1e-9)


def test_several_settings_are_named_by_what_differs_and_decoupled_decay_comes_last(several):
    found = trained(several, "layers", 6)
    assert [one.label for one in found] == ["SGD, decay 0.002", "SGD, decay 0.01", "SGD, decay 0.02", "AdamW, decay 3"]
    drawing = figures.draw("layers", several, Style.of("neurips"))
    assert drawn(drawing, "balance", "balance SGD, decay 0.01") == [1, 1, 1, 1]
    assert drawn(drawing, "balance", "balance AdamW, decay 3")[0] > 1.5
    assert "need not balance" in " ".join(drawing.notes)
    with pytest.raises(RequestError, match="at most 3"):
        trained(several, "layers", 3)


@pytest.mark.parametrize(
    ("changed", "words"),
    [({"bias": True}, "has a bias"), ({"loss": "ce"}, "no structure is known"), ({"loss": "focal"}, "loss")],
)
def test_what_theory_does_not_know_is_said_and_the_rest_is_drawn(changed, words, tmp_path):
    write(tmp_path, seeds=2, **changed)
    table = compare.load(tmp_path)
    known, reason = theories(trained(table, "layers", 1)[0])
    assert known == [] and words in reason
    for name in ("layers", "spectrum"):
        drawing = figures.draw(name, table, Style.of("icml"))
        assert words in " ".join(drawing.notes) and not any("Theory: DNC" in str(row[1]) for row in drawing.rows)


def test_a_linear_head_is_beside_its_lowest_structure(tmp_path):
    write(tmp_path, seeds=1, head_activation="linear", weight_decay=1e-3)
    (known,), reason = theories(trained(compare.load(tmp_path), "layers", 1)[0])
    assert reason == "" and known.label == "Theory: orthogonal frame" and known.head.layers[0].rank == 10


def test_the_sizes_at_the_networks_own_regularisation_are_those_of_its_structure(tmp_path):
    """Maps w I and features a e_k at the minimum that scipy finds: the loss, the rank and the logits are those of DNC."""
    from scipy.optimize import minimize

    decay, lambda_h, n = 0.01, 2e-5, 40

    def objective(v):
        w, a = v
        return (w**4 * a - 1) ** 2 / 2 + decay / 2 * 4 * 10 * w**2 + lambda_h / 2 * n * 10 * a**2

    best = minimize(objective, [1.0, 1.0], method="Nelder-Mead", options={"xatol": 1e-10, "fatol": 1e-14, "maxiter": 5000})
    w, a = best.x
    eye = np.hstack([np.eye(10), np.zeros((10, 6))])
    write(
        tmp_path,
        seeds=2,
        means_of=[a * w**power * eye for power in range(4)],
        norm_of=float(10**0.5 * w),
        fit=float((w**4 * a - 1) ** 2 / 2),
        logits=w**4 * a * np.eye(10),
    )
    table = compare.load(tmp_path)
    (one,) = trained(table, "layers", 1)
    for found in sizes(table, one):
        assert found.lambda_h == pytest.approx(lambda_h, rel=1e-5)
        assert found.loss == pytest.approx(best.fun, rel=1e-8)
        loss, gap = found.structures["dnc"]
        assert found.loss == pytest.approx(loss, rel=1e-7) and found.gap == pytest.approx(gap, rel=1e-4)
        assert found.structures["srg"][0] < loss and found.effective_rank == pytest.approx(10, rel=1e-4)
    said = figures.draw("layers", table, Style.of("icml")).notes
    assert any("at the lambda_h of the balance (2e-05)" in note and "effective rank 10." in note for note in said)


def test_no_sizes_where_the_balance_says_nothing(several, one):
    assert sizes(several, trained(several, "layers", 6)[-1]) == []  # AdamW
    assert sizes(one, trained(one, "layers", 1)[0]) == []  # the logits' means were not kept


def test_heads_of_two_depths_and_runs_without_means_are_one_line(tmp_path, one):
    write(tmp_path / "a")
    folder = next((tmp_path / "a").rglob("seed-0"))
    for path in folder.parent.glob("seed-*/tensors.safetensors"):
        path.unlink()
    with pytest.raises(RequestError, match="--layers all"):
        figures.draw("spectrum", compare.load(tmp_path / "a"), Style.of("icml"))
    cut = one.take(~((one["measure"] == "head_norm") & (one["layer"] == "head.0")))
    assert deep_cells(cut) == deep_cells(one)
    assert trained(cut, "layers", 1)[0].depth == 3
