"""Made-up runs of the alignment study for the tests of the figures: a simplex, a polygon, and a trained classifier."""

import numpy as np

import compare
from ufm.record import Run

EPOCHS = (0, 1, 2, 4, 8, 16, 40)
KINDS = {"simplex": 0.002, "polygon": 0.01, "learned": 0.0}  # deviation between permutations; between starts it is .005


def alignments(root, kinds=tuple(KINDS), seeds=3):
    """Write finished runs and load them."""
    for kind in kinds:
        shape = (1, 1) if kind == "learned" else (5, 4)
        setting = {"study": "alignment", "vertices": kind, "permute": "any", "permutations": shape[0], "starts": shape[1]}
        for seed in range(seeds):
            draw = np.random.default_rng(seed)
            errors = 0.05 + KINDS[kind] * draw.standard_normal((shape[0], 1)) + 0.005 * draw.standard_normal(shape)
            with Run.create(root, "alignment", kind, setting, seed=seed, environment={}) as run:
                run.append("metrics.jsonl", [row for epoch in EPOCHS for row in _rows(kind, seed, epoch, draw)])
                run.write_tensors("tensors.safetensors", {"alignment/test_error": errors})
                run.finish({"status": "finished", "ok": True, "data": {"train": 200, "test": 400, "classes": 10}})
    return compare.load(root)


def _rows(kind, seed, epoch, draw):
    left = 1 / (1 + epoch)
    values = {
        ("train", "error"): max(0.0, 0.9 * left - 0.15),
        ("test", "error"): 0.02 + 0.8 * left * draw.uniform(0.9, 1.1),
        ("train", "margin_mean"): 0.8 - 0.8 * left,
        ("train", "margin_min"): 0.5 - 1.5 * left + 0.02 * draw.standard_normal(),
    }
    if kind != "learned":
        values["test", "permutation_f"] = (15.0 if kind == "polygon" else 1.0) * draw.uniform(0.8, 1.2)
    place = {"seed": seed, "epoch": epoch, "step": 8 * epoch, "layer": "network", "centres": "self"}
    return [{**place, "split": split, "metric": metric, "value": float(value)} for (split, metric), value in values.items()]
