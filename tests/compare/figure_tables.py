"""Made-up measured rows with the shape of a training, for the tests of the figures."""

import tempfile
from pathlib import Path

import numpy as np
from alignment_tables import alignments
from sweep_tables import ends, flows, starvations

import compare
from compare.rows import Cell
from ufm.record import Run

EPOCHS = (0, 1, 2, 3, 5, 8, 13, 22, 40, 75, 140, 260, 375)
COLUMNS = ("paper", "cell", "seed", "epoch", "step", "split", "layer", "centres", "measure", "value", "predicted", "flag")


def rows_of(cell, seed, epoch, layers, draw):
    """Yield (split, layer, centres, measure, value) at one epoch: train collapses, test stops at its error."""
    left = 1.0 / (1.0 + epoch)
    noise = lambda: float(np.exp(0.05 * draw.standard_normal()))  # noqa: E731
    error = min(0.9, 0.012 * draw.uniform(0.8, 1.2) + 0.9 * left**1.6)
    for depth, layer in enumerate(layers):
        behind = 2.2 ** ((len(layers) - 1 - depth) * (1.0 if epoch else 0.1))
        train, test = (5 * left**1.55 + 4e-4) * behind, 0.02 + 3 * left**1.3
        wrong = round(min(0.9, error * behind**0.5) * 797) / 797
        yield "train", layer, "self", "nc1_pinv", train * noise()
        yield "test", layer, "self", "nc1_pinv", (0.8 * test + train) * noise()
        yield "test", layer, "train", "nc1_pinv_strong", (1.3 * test + train) * noise()
        yield "test", layer, "train", "nc1_pinv_weak", (0.9 * test + train) * noise()
        yield "test", layer, "train", "ncc_error", wrong
        yield "test", layer, "train", "ncc_error_between", wrong
        yield "train", layer, "self", "ncc_error", round(max(0.0, wrong - 0.02) * 1000) / 1000
        for measure, scale in (("nc2_etf_means", 0.5), ("nc3_papyan", 0.9)):
            yield "train", layer, "self", measure, (scale * left**0.9 + 0.004) * noise()
            yield "test", layer, "self", measure, (scale * left**0.6 + 0.06) * noise()
        yield "train", layer, "self", "nc2_etf_weights", (0.5 * left**0.8 + 0.003) * noise()
        yield "train", layer, "self", "nc4_disagreement", round(max(0.0, 0.4 * left**1.5 - 0.01) * 1000) / 1000
        yield "test", layer, "self", "nc4_disagreement", round((0.4 * left**1.5 + 0.003) * 797) / 797
    yield "train", "network", "self", "error", round(max(0.0, error - 0.02) * 1000) / 1000
    yield "test", "network", "self", "error", round(error * 797) / 797


def make(seeds=5, layers=("input", "hidden1", "hidden2", "penultimate"), epochs=EPOCHS, cells=("digits-0a1b2c",)):
    """Return a table (a dict of arrays) of trainings."""
    lines = []
    for cell in cells:
        for seed in range(seeds):
            draw = np.random.default_rng(seed)
            for epoch in epochs:
                for split, layer, centres, measure, value in rows_of(cell, seed, epoch, layers, draw):
                    lines.append(("hui2022", cell, seed, epoch, 8 * epoch, split, layer, centres, measure, value, np.nan, ""))
    return table_of(lines)


class Loaded(dict):
    """Columns with what compare.load brings beside them: the cells and what was left out."""

    def __init__(self, columns, cells=None, excluded=()):
        super().__init__(columns)
        self.cells, self.excluded = cells or {}, excluded


def table_of(lines, cells=None):
    """Return a table from tuples in the order of COLUMNS."""
    columns = {
        name: np.array([line[i] for line in lines], dtype=object if isinstance(lines[0][i], str) else None)
        for i, name in enumerate(COLUMNS)
    }
    return Loaded(columns, cells)


def keep(table, mask):
    """Return the rows of a mask."""
    return Loaded({name: table[name][mask] for name in table}, table.cells, table.excluded)


def change(table, mask, **columns):
    """Return a copy with some columns set where the mask is true."""
    copy = Loaded({name: table[name].copy() for name in table}, table.cells, table.excluded)
    for name, value in columns.items():
        copy[name][mask] = value
    return copy


def without(table, *names):
    """Return the table without some columns."""
    return Loaded({name: column for name, column in table.items() if name not in names}, table.cells, table.excluded)


def sweep(losses=("ce", "mse"), seeds=2):
    """Return cells of a theory sweep over lambda_w whose loss is the prediction to 1e-12."""
    lines, cells = [], {}
    for loss in losses:
        for lam in (1e-4, 1e-3, 1e-2, 1e-1):
            for seed in range(seeds):
                name = f"single#{loss}-{lam:g}-{seed}"
                cells[name] = Cell(name, "single", "", {"loss": loss, "lambda_w": lam, "lambda_h": 1e-3}, {}, (seed,))
                f = (1.0 if loss == "ce" else 0.4) * lam**0.4
                values = {
                    "loss": f * (1 + 1e-12),
                    "certificate_gap": lam * 1e-9,
                    "nc2_to_prediction": 1e-9 * (1 + seed),
                    "nc3_cosine": 0.0,
                }
                for measure, value in values.items():
                    predicted = f if measure == "loss" else np.nan
                    lines.append(("", name, seed, -1, -1, "theory", "penultimate", "self", measure, value, predicted, ""))
    return table_of(lines, cells)


def samples(sizes=(10, 20, 40, 80)):
    """Return trainings that differ in train_per_class."""
    lines, cells = [], {}
    for size in sizes:
        table = make(seeds=3, layers=("penultimate",), epochs=(0, 100), cells=(f"n{size}",))
        table = change(table, table["split"] == "test", value=table["value"][table["split"] == "test"] * (20 / size) ** 0.5)
        lines += list(zip(*(table[name].tolist() for name in COLUMNS), strict=True))
        results = {seed: {"data": {"train": 10 * size, "test": 797, "classes": 10}} for seed in range(3)}
        cells[f"n{size}"] = Cell(
            f"n{size}", "collapse", "", {"dataset": "digits", "train_per_class": size}, {}, (0, 1, 2), results
        )
    return table_of(lines, cells)


def transfer(decays=(5e-4, 5e-3)):
    """Return two trainings on coarse labels with probes; with the larger decay the raw probe falls to chance."""
    lines, cells = [], {}
    for decay in decays:
        name = f"transfer-{decay:g}"
        for seed in range(3):
            draw = np.random.default_rng(seed)
            for epoch in (0, 1, 4, 10, 25, 50, 100):
                kept = np.exp(-5 * decay * epoch)
                values = {
                    "probe_raw": 0.1 + (0.77 * kept if epoch else 0.0),
                    "probe_whiten": 0.7 + 0.2 * kept,
                    "probe_finetune": 0.3 + 0.6 * kept,
                    "rank_effective": 1 + 30 * kept,
                    "nc1_pinv": 2 / (1 + epoch) ** 1.5,
                    "fine_cdnv_directional": 0.1 / kept,
                }
                for measure, value in values.items():
                    split = "train" if measure in ("rank_effective", "nc1_pinv") else "test"
                    value *= float(np.exp(0.02 * draw.standard_normal()))
                    row = (epoch, 8 * epoch, split, "penultimate", "self", measure, value, np.nan, "")
                    lines.append(("hui2022", name, seed, *row))
        setting = {"dataset": "digits", "coarse": [5, 5], "weight_decay": decay}
        results = {seed: {"data": {"train": 1000, "test": 797, "classes": 2}} for seed in range(3)}
        cells[name] = Cell(name, "transfer", "", setting, {}, (0, 1, 2), results)
    return table_of(lines, cells)


def shortcut(kinds=("etf", "none")):
    """Return two trainings on coloured digits; primes raise the accuracy against the colour and loosen the collapse to it."""
    lines, cells = [], {}
    for kind in kinds:
        name, primed = f"coloured-{kind}", kind != "none"
        for seed in range(3):
            draw = np.random.default_rng(seed)
            for epoch in (0, 1, 2, 4, 8, 16, 25, 40):
                done = epoch / (3 + epoch)
                other = 0.1 + (0.4 if primed else 0.25) * done
                values = {
                    ("train", "network", "accuracy_conflicting"): min(1.0, 0.1 + done) if epoch else 0.0,
                    ("test", "network", "accuracy_aligned"): 0.1 + 0.88 * done,
                    ("test", "network", "accuracy_conflicting"): other,
                    ("test", "network", "accuracy_unbiased"): 0.9 * other + 0.1 * (0.1 + 0.88 * done),
                    ("test", "network", "attribute_followed"): 0.1 + (0.15 if primed else 0.3) * done,
                    ("train", "penultimate", "nc1_pinv"): (0.2 if primed else 0.15) + 5 / (1 + epoch),
                    ("test", "penultimate", "nc1_pinv"): 12.0 if primed else 19.0,
                    ("train", "penultimate", "attribute_nc1_pinv"): (0.21 if primed else 0.16) + 4 / (1 + epoch),
                    ("test", "penultimate", "attribute_nc1_pinv"): (36.0 if primed else 15.0) * done + 5.0,
                }
                for (split, layer, measure), value in values.items():
                    value *= float(np.exp(0.02 * draw.standard_normal()))
                    value = min(value, 1.0) if layer == "network" else value
                    lines.append(("wang2024", name, seed, epoch, 16 * epoch, split, layer, "self", measure, value, np.nan, ""))
        results = {seed: {"data": {"train": 4000, "test": 1000, "classes": 10}} for seed in range(3)}
        cells[name] = Cell(name, "shortcut", "", {"dataset": "coloured-mnist5k", "primes": kind}, {}, (0, 1, 2), results)
    return table_of(lines, cells)


def nesy(operands=(2, 10)):
    """Return trainings on sums: with ten operands the pretrained ones are ahead, and the frozen one stays behind at the end."""
    lines, cells = [], {}
    for m in operands:
        for start in ("frozen", "scratch", "finetune"):
            name, before = f"sums-{m}-{start}", 0 if start == "scratch" else 4
            for seed in range(3):
                draw = np.random.default_rng(seed)
                for epoch in range(before + 7):
                    done = max(0.0, epoch - before) / 6
                    top, rate = {"frozen": (0.6, 3.0), "scratch": (0.95, m / 5), "finetune": (0.95, 0.3)}[start]
                    values = {
                        ("test", "penultimate", "nc1_pinv"): 2.0 / (1 + 0.3 * (epoch if start != "frozen" else min(epoch, 4)))
                    }
                    if epoch >= before:
                        values["test", "network", "digit_accuracy"] = 0.1 + (top - 0.1) * done**rate
                    for (split, layer, measure), value in values.items():
                        value *= float(np.exp(0.02 * draw.standard_normal()))
                        row = (epoch, 16 * epoch, split, layer, "self", measure, value, np.nan, "")
                        lines.append(("daniele2024", name, seed, *row))
            setting = {"dataset": "digits", "operands": m, "start": start, "pretrain_epochs": before or None}
            results = {seed: {"data": {"train": 1000, "test": 797, "classes": 10}} for seed in range(3)}
            cells[name] = Cell(name, "nesy", "", setting, {}, (0, 1, 2), results)
    return table_of(lines, cells)


def arrays(seed, classes=5, dim=16, test=0.35):
    """Return the arrays that a training keeps, for Gaussian features about a simplex ETF; test ones are wider."""
    draw = np.random.default_rng(seed)
    basis = np.linalg.qr(draw.standard_normal((dim, classes)))[0].T
    corners = (np.eye(classes) - 1 / classes) @ basis
    span = np.linalg.svd(corners)[2][: classes - 1]
    found = {"penultimate/basis": span, "weight": 3 * corners + 0.05 * draw.standard_normal(corners.shape)}
    labels = np.repeat(np.arange(classes), 40)
    for split, noise in (("train", 0.05), ("test", test)):
        points = corners[labels] + noise * draw.standard_normal((len(labels), dim))
        means = np.stack([points[labels == k].mean(0) for k in range(classes)])
        centred, residual = means - means.mean(0), (points - means[labels]) @ span.T
        by_class = np.stack([residual[labels == k].T @ residual[labels == k] / 40 for k in range(classes)])
        found |= {
            f"penultimate/{split}/{k}": v
            for k, v in (("means", means), ("gram", centred @ centred.T), ("within_class", by_class))
        }
        traces = ((points - means[labels]) ** 2).sum(1).reshape(classes, 40).mean(1)
        found |= {f"penultimate/{split}/traces": traces, f"penultimate/{split}/counts": np.full(classes, 40)}
        found |= {f"penultimate/{split}/within": by_class.mean(0), f"penultimate/{split}/spectrum": np.linalg.svd(centred)[1]}
    nearest = ((points[:, None] - found["penultimate/train/means"]) ** 2).sum(2).argmin(1)
    found |= {"test/labels": labels, "test/predicted": nearest, "penultimate/test/nearest": nearest}
    found["test/confusion"] = np.bincount(labels * classes + nearest, minlength=classes**2).reshape(classes, classes)
    return found


def run_folder(root, seeds=2, config=None):
    """Write a finished training with arrays and load it."""
    for seed in range(seeds):
        with Run.create(root, "collapse", "toy", {"study": "collapse", **(config or {})}, seed=seed, environment={}) as run:
            rows = rows_of("toy", seed, 0, ("penultimate",), np.random.default_rng(seed))
            names = ("split", "layer", "centres", "metric", "value")
            run.append(
                "metrics.jsonl", [{"seed": seed, "epoch": 0, "step": 0, **dict(zip(names, row, strict=True))} for row in rows]
            )
            run.write_tensors("tensors.safetensors", arrays(seed))
            run.finish({"status": "finished", "ok": True, "data": {"train": 200, "test": 200, "classes": 5, "counts": [40] * 5}})
    table = compare.load(root)
    return Loaded({name: table[name] for name in table}, table.cells, table.excluded)


def drawn_texts(figure):
    """Return [(text, box)] of every text artist that drawing the figure really draws."""
    from unittest import mock

    from matplotlib.text import Text

    seen, draw = [], Text.draw

    def record(self, renderer, *args, **kwargs):
        if self.get_visible() and self.get_text().strip():
            seen.append((self.get_text(), self.get_window_extent(renderer)))
        return draw(self, renderer, *args, **kwargs)

    with mock.patch.object(Text, "draw", record):
        figure.canvas.draw()
    return seen


def collisions(figure, slack=0.5):
    """Return what is wrong with the texts' places: outside the figure, or over one another (slack in pixels)."""
    texts, (width, height) = drawn_texts(figure), figure.bbox.size
    found = [
        f"{text!r} leaves the figure: {box.extents}"
        for text, box in texts
        if box.x0 < -slack or box.y0 < -slack or box.x1 > width + slack or box.y1 > height + slack
    ]
    for i, (one, a) in enumerate(texts):
        for other, b in texts[i + 1 :]:
            wide = min(a.x1, b.x1) - max(a.x0, b.x0)
            high = min(a.y1, b.y1) - max(a.y0, b.y0)
            if wide > slack and high > slack:
                found.append(f"{one!r} over {other!r}: {wide:.1f} x {high:.1f} px")
    return found


_ROOT = tempfile.TemporaryDirectory()
_MAKERS = {"sweep": sweep, "samples": samples, "transfer": transfer, "shortcut": shortcut} | dict.fromkeys(
    ("gram", "confusion", "spectrum", "geometry"), lambda: run_folder(Path(_ROOT.name) / "arrays")
)
_MAKERS |= {"nesy": nesy}
_OWN = {"loss": "ce", "weight_decay": 1e-3, "norm": "none", "bias": False}
_MAKERS |= {"calibration": lambda: run_folder(Path(_ROOT.name) / "own", config=_OWN)}
_MAKERS |= {"flow": lambda: flows(Path(_ROOT.name) / "flows"), "phase": lambda: ends(Path(_ROOT.name) / "ends")}
_MAKERS |= {"starvation": lambda: starvations(Path(_ROOT.name) / "starvations")}
_MAKERS |= {"alignment": lambda: alignments(Path(_ROOT.name) / "alignments")}
_MADE = {}


def table_for(name):
    """Return the table that the figure `name` draws in the tests that hold for all figures."""
    maker = _MAKERS.get(name, make)
    if maker not in _MADE:
        _MADE[maker] = maker()
    return _MADE[maker]
