"""What `ufm simulate deep` and `ufm predict deep` compute."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ufm.measure.algebra import gram_distance, simplex_gram
from ufm.prediction import Prediction
from ufm.problem import Problem
from ufm.solution import Solution
from ufm.systems import Task
from ufm.systems.deep import Deep, problem_of
from ufm.theory import deep as theory
from ufm.theory.deep_linear import product
from ufm.theory.deep_scalar import effective_rank
from ufm.theory.layers import class_means

ROUNDING = 1e-10  # a geometric measure below the solvers' tolerance is 0
ALIVE = 1e-3  # logits of a class under this are zero: where a class survives a first-order jump they are of order 1


def simulate(tasks: Sequence[Task], device: str) -> list[dict[str, Any]]:
    """Return one row per task: end points of random starts, classified by loss and rank."""
    from ufm.solve_deep import solve_deep

    rows: list[dict[str, Any]] = [{} for _ in tasks]
    groups: dict[tuple, list[int]] = {}
    for i, task in enumerate(tasks):
        spec: Deep = task.spec
        groups.setdefault((spec.init_scale, spec.method, spec.steps, spec.tol), []).append(i)
    known: dict[Problem, dict[str, Prediction]] = {}
    for (init_scale, method, steps, tol), members in groups.items():
        problems = [problem_of(tasks[i].spec) for i in members]
        found = solve_deep(
            problems,
            run_seeds=[tasks[i].seed for i in members],
            method=method,
            init_scale=init_scale,
            steps=steps,
            tol=tol,
            device=device,
        )
        for i, problem, solution in zip(members, problems, found, strict=True):
            if problem not in known:
                known[problem] = theory.structures(problem)
            rows[i] = _row(problem, solution, known[problem])
    return rows


def _row(problem: Problem, solution: Solution, known: dict[str, Prediction]) -> dict[str, Any]:
    losses = {name: q.loss for name, q in known.items()}
    lowest = min(losses, key=lambda name: losses[name])
    found = theory.lowest(problem, known)
    at_zero = solution.structure == "zero"
    row: dict[str, Any] = {
        "status": solution.status.value,
        "loss": solution.loss,
        "predicted": found.loss if found.applies else None,
        "prediction": _predicted(found),
        "lowest_known": lowest,
        "lowest_known_loss": losses[lowest],
        "structure": solution.structure,
        "structures": losses,
        "layer_ranks": list(solution.layer_ranks or ()),
        "balance": _finite(solution.balance).get("layers"),
        "norm_balance": _finite(solution.balance),
        "balance_found": _finite(solution.balance_found),
        "gradient_norm": solution.gradient_norm,
        "iterations": solution.iterations,
        "ranks": "/".join(map(str, solution.layer_ranks or ())),
        **(_nothing(solution) if at_zero else _collapse(problem, solution, known[lowest])),
        "output": _output(problem, solution, known[lowest]),
        "reasons": {"collapse": "the zero solution has no geometry"} if at_zero else {},
    }
    if "dnc" in losses:
        row["over_dnc"] = solution.loss / losses["dnc"]
    if problem.loss == "mse" and problem.balanced and problem.bias == "none" and 0 < solution.loss < 0.5:
        row["effective_rank"] = effective_rank(solution.loss, problem.depth, float(problem.count_vector[0]), product(problem))
    return row


def _predicted(found: Prediction) -> dict[str, Any]:
    """Return what a row says of its prediction; the loss is that of the lowest known structure unless `status` says more."""
    if not found.applies:
        return {"applies": False, "reason": found.reason}
    return {
        "applies": True,
        "structure": found.name,
        "loss": found.loss,
        "status": found.status,
        "reference": found.reference,
        "zero": found.zero,
    }


def _nothing(solution: Solution) -> dict[str, Any]:
    """Return what `_collapse` says of the zero solution: no layer of it has a geometry."""
    none = {"mean": None, "std": None}
    sizes = [min(means.shape) for means in solution.layer_means or ()]
    layers = [
        {
            "layer": f"H_{number}",
            "singular_values": [0.0] * size,
            "cosine_raw": none,
            "cosine_centred": none,
            **dict.fromkeys(("nc1", "nc2", "distance")),
        }
        for number, size in enumerate(sizes, 1)
    ]
    return {"layers": layers, "collapse": dict.fromkeys(("nc1", "nc2", "nc3", "distance"))}


def _output(problem: Problem, solution: Solution, prediction: Prediction | None) -> dict[str, Any]:
    """Return what Z = (logits - b)^T shows: singular values of Z diag(sqrt n), their distance to theory, classes not at zero."""
    logits = (solution.logits - solution.b).cpu().numpy()
    values = np.linalg.svd(logits.T * np.sqrt(problem.count_vector), compute_uv=False)
    alive = int((np.linalg.norm(logits, axis=1) > ALIVE).sum())
    found: dict[str, Any] = {"singular_values": values.tolist(), "alive": alive, "distance": None}
    if prediction is not None and prediction.singular_values is not None:
        expected = np.zeros(len(values))
        expected[: len(prediction.singular_values)] = np.sort(prediction.singular_values)[::-1]
        found["distance"] = float(np.abs(values - expected).max())
        found["predicted_alive"] = int((np.linalg.norm(prediction.logits - prediction.bias, axis=1) > ALIVE).sum())
    return found


def _finite(found: dict[str, float] | None) -> dict[str, float | None]:
    """Return the norm balance with None in place of nan: the zero solution has none."""
    return {name: value if math.isfinite(value) else None for name, value in (found or {}).items()}


def _collapse(problem: Problem, solution: Solution, prediction: Prediction | None) -> dict[str, Any]:
    """Return `layers`, per layer mean (H_1, then after each activation), and `collapse`: NC1 to NC3 of the last one.

    NC1 is 0 in every layer: at an optimum the samples of a class share their features. distance, per layer and the largest:
    singular values of the class means, each set over its root of squares, against those of the lowest known structure,
    which know nothing of the (arbitrary) order of the classes. Under ReLU H_1 has none: a family of H_1 has one loss.
    """
    states = [means.cpu().numpy() for means in solution.layer_means or ()]
    expected = _expected_spectra(problem, prediction, len(states))
    layers = []
    for number, (means, wanted) in enumerate(zip(states, expected, strict=True), 1):
        values, centred = np.linalg.svd(means, compute_uv=False), means - means.mean(0)
        distance = None if wanted is None or values[0] == 0 else _floored(np.linalg.norm(_unit(values) - _unit(wanted)))
        layers.append(
            {
                "layer": f"H_{number}",
                "singular_values": values.tolist(),
                "cosine_raw": _cosines(means),
                "cosine_centred": _cosines(centred),
                "nc1": 0.0 if values[0] > 0 else None,
                "nc2": _floored(gram_distance(centred @ centred.T, simplex_gram(len(means)))),
                "distance": distance,
            }
        )
    known = [layer["distance"] for layer in layers if layer["distance"] is not None]
    last = {name: layers[-1][name] for name in ("nc1", "nc2")}
    centred = states[-1] - states[-1].mean(0)
    return {
        "layers": layers,
        "collapse": {**last, "nc3": _alignment(solution.W.cpu().numpy(), centred), "distance": max(known, default=None)},
    }


def _expected_spectra(problem: Problem, prediction: Prediction | None, count: int) -> list[np.ndarray | None]:
    if prediction is None or prediction.name == "zero" or prediction.weights is None:
        return [None] * count
    spectra = [np.linalg.svd(means, compute_uv=False) for means in class_means(problem, prediction)]
    return [None, *spectra[1:]] if problem.activation == "relu" else spectra


def _unit(values: np.ndarray) -> np.ndarray:
    return values / np.linalg.norm(values)


def _floored(value: float) -> float | None:
    """Return 0 for what is rounding, None for what does not exist."""
    return None if not math.isfinite(value) else 0.0 if value < ROUNDING else float(value)


def _alignment(weight: np.ndarray, centred: np.ndarray) -> float | None:
    """Return nc3_cosine: the mean of 1 - cos(w_k, centred mean of class k); None where one of them vanishes."""
    sizes = np.linalg.norm(weight, axis=1) * np.linalg.norm(centred, axis=1)
    return (
        None
        if sizes.min() <= 1e-12 * max(sizes.max(), 1e-300)
        else _floored(1 - float(((weight * centred).sum(1) / sizes).mean()))
    )


def _cosines(rows: np.ndarray) -> dict[str, float | None]:
    """Return the mean and spread of the cosines over pairs of rows; None where a row is zero."""
    norms = np.linalg.norm(rows, axis=1)
    if norms.min() <= 1e-12 * max(norms.max(), 1e-300):
        return {"mean": None, "std": None}
    unit = rows / norms[:, None]
    values = (unit @ unit.T)[np.triu_indices(len(rows), 1)]
    return {"mean": float(values.mean()), "std": float(values.std())}


def predict(spec: Deep) -> dict[str, Any]:
    """Return one row: the predicted optimum, or the lowest known structure, and every structure with its loss."""
    problem = problem_of(spec)
    known, found = theory.structures(problem), theory.predict(problem)
    return {
        "prediction": found.name if found.applies else None,
        "loss": found.loss,
        "zero": found.zero,
        "structures": {name: q.loss for name, q in known.items()},
        "status": found.status if found.applies else None,
        "reference": found.reference,
        "assumptions": list(found.assumptions),
        "reason": found.reason,
        "thresholds": found.thresholds,
        "details": found.details,
        "logits": found.logits,
        "gram_w": found.gram_w,
        "gram_h": found.gram_h,
        "singular_values": found.singular_values,
    }
