"""`single`, the heavy half: batches of cells to solutions, predictions and measures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ufm.errors import RequestError
from ufm.geometry import one_vs_rest_margins, relabelling
from ufm.measure import collapse
from ufm.predict import predict as predict_problem
from ufm.prediction import Prediction
from ufm.problem import Problem
from ufm.solution import Solution
from ufm.solve import method_for, solve_many
from ufm.systems import Task
from ufm.systems.means import SCATTER, measure_means, regular, scalars
from ufm.systems.single import Single, problem_of
from ufm.systems.targets import read_targets
from ufm.systems.trajectory import follow_many
from ufm.systems.trajectory import record_of as record_of_path
from ufm.theory.rate import rate

# What a solution on class means can be asked; the ranks and vci need a d x d product and say nothing new of K means.
MEASURED = (
    "nc1_pinv",
    "nc1_trace",
    "nc1_total",
    "cdnv",
    "nc2_equinorm_means",
    "nc2_equinorm_weights",
    "nc2_equiangular_means",
    "nc2_equiangular_weights",
    "nc2_etf_means",
    "nc2_etf_weights",
    "nc2_to_prediction",
    "nc3_papyan",
    "nc3_zhu",
    "nc3_cosine",
    "bias_collapse",
    "nc4_disagreement",
    "gram_coherence",
)

SCALARS = ("logit_gap", "weight_norm", "feature_norm", "angle_weights", "angle_means")
SMALL_GRAM = 20  # classes up to which a row keeps its Gram matrices
_WHY_NOT = {
    False: "the predicted Gram is zero or not unique",
    True: "the means found are no copy of the predicted code, whichever class sits where",
}
NEAR = 0.02  # of a threshold: convergence is slow there
MOST_OF_A_CODE = 64  # the margins of a larger code take longer than its optimum


def problem_of_task(spec: Single) -> Problem:
    """Return the Problem of a cell, its targets read."""
    return problem_of(spec, None if spec.targets is None else read_targets(spec.targets))


def validate(specs: Sequence[Single]) -> None:
    """Raise RequestError for a cell that its method does not solve, or that has no optimum."""
    seen: set[tuple[Problem, str]] = set()
    for spec in specs:
        problem = problem_of_task(spec)
        if (problem, spec.method) not in seen:
            method_for(problem, spec.method)
            seen.add((problem, spec.method))


def simulate(tasks: Sequence[Task], device: str) -> list[dict[str, Any]]:
    """Solve cells in batches; one row per task: status, loss, prediction, certificate, measures."""
    problems = [problem_of_task(task.spec) for task in tasks]
    groups: dict[tuple[Any, ...], list[int]] = {}
    for i, (spec, _) in enumerate(tasks):
        groups.setdefault((spec.trajectory, spec.method, spec.steps, spec.tol, spec.lr), []).append(i)
    rows: list[dict[str, Any]] = [{}] * len(tasks)
    predictions: dict[Problem, Prediction] = {}
    for (trajectory, method, steps, tol, lr), members in groups.items():
        settings = {"method": method, "steps": steps, "tol": tol, "lr": lr, "device": device}
        chosen, seeds = [problems[i] for i in members], [tasks[i].seed for i in members]
        if trajectory:
            found = follow_many(chosen, seeds, **settings)
        else:
            found = [(solution, None) for solution in solve_many(chosen, seeds=seeds, **settings)]
        for i in members:
            if problems[i] not in predictions:
                predictions[problems[i]] = predict_problem(problems[i])
        known = [predictions[problems[i]] for i in members]
        measured = measure_many([solution for solution, _ in found], known)
        for i, (solution, path), measures in zip(members, found, measured, strict=True):
            rows[i] = row_of(solution, predictions[problems[i]], measures)
            if path is not None:
                rows[i]["trajectory"] = record_of_path(path, problems[i], predictions[problems[i]])
    return rows


def row_of(solution: Solution, prediction: Prediction, measures: dict[str, Any]) -> dict[str, Any]:
    """Return what is recorded of one solution beside its prediction; `measures` from `measure_many`."""
    problem, certificate = solution.problem, solution.certificate
    row: dict[str, Any] = {
        "status": solution.status.value,
        "loss": solution.loss,
        "predicted": prediction.loss if prediction.applies else None,
        "prediction": record_of(problem, prediction),
        "certificate": None,
        "gradient_norm": solution.gradient_norm,
        "iterations": solution.iterations,
        "method": solution.method,
        "counts": list(problem.counts) if isinstance(problem.counts, tuple) else problem.counts,
    }
    if certificate is not None:
        row["certificate"] = {
            "gap": certificate.gap,
            "relative": certificate.relative,
            "dual_norm": certificate.dual_norm,
            "valid": certificate.valid,
            "reason": certificate.reason,
        }
    return {**row, "geometry": geometry_of(solution, prediction), **measures, **small_grams(solution)}


def small_grams(solution: Solution) -> dict[str, Any]:
    """Return the Gram matrices W W^T and H H^T of few classes, each as its upper triangle row by row."""
    K = solution.problem.classes
    if K > SMALL_GRAM or solution.problem.targets is not None or _not_finite(solution):
        return {}
    upper = np.triu_indices(K)
    parts = {"weights": solution.W, "means": solution.H}
    return {"gram": {name: (rows @ rows.T).numpy(force=True)[upper].tolist() for name, rows in parts.items()}}


def geometry_of(solution: Solution, prediction: Prediction) -> dict[str, float | None]:
    """Return what single theorems are about; None where a problem is not theirs.

    to_simplex: |Z/|Z| - Z0/|Z0|| with Z0 = I - J/K, the distance of the logits' direction from that of SELI. minority_cosine:
    mean cosine between the classifiers of the smallest classes (1: minority collapse). margin: the smallest one-vs-rest
    margin of the classifiers on the sphere for K > d + 1, known_margin the largest that a code can have, rate (any unit rows)
    -temperature log(loss), which tends to it: the form in which temperatures compare, and a number where the loss underflows.
    """
    problem, found = solution.problem, dict.fromkeys(("to_simplex", "minority_cosine", "margin", "known_margin", "rate"))
    weight, logits = solution.W.detach().cpu().numpy(), (solution.logits - solution.b).detach().cpu().numpy()
    if problem.targets is not None or _no_geometry(solution):
        return found
    K, counts = problem.classes, problem.count_vector
    simplex = np.eye(K) - 1 / K
    if norm := float(np.linalg.norm(logits)):
        found["to_simplex"] = float(np.linalg.norm(logits / norm - simplex / np.linalg.norm(simplex)))
    small = counts == counts.min()
    if 1 < small.sum() < K:
        rows = weight[small] / np.maximum(np.linalg.norm(weight[small], axis=1, keepdims=True), 1e-300)
        found["minority_cosine"] = float((rows @ rows.T)[np.triu_indices(len(rows), 1)].mean())
    if problem.constraint == "sphere" and problem.dim + 1 < K <= MOST_OF_A_CODE:
        found["margin"] = float(one_vs_rest_margins(weight).min())
        found["known_margin"] = prediction.details.get("margin")
    if problem.constraint == "sphere":
        adjusted = (problem.class_weights, problem.logit_scale, problem.logit_offset)
        if problem.loss == "ce" and problem.bias == "none" and adjusted == (None, None, None):
            found["rate"] = rate(logits, counts, problem.temperature)
        elif solution.loss > 0:
            found["rate"] = -problem.temperature * math.log(solution.loss)
    return found


def record_of(problem: Problem, prediction: Prediction) -> dict[str, Any]:
    """Return the scalars of a prediction, JSON-ready."""
    return {
        "name": prediction.name,
        "applies": prediction.applies,
        "reason": prediction.reason,
        "loss": prediction.loss,
        "status": prediction.status,
        "assumptions": list(prediction.assumptions),
        "reference": prediction.reference,
        "tolerance": prediction.tolerance,
        "unique": prediction.unique,
        "zero": prediction.zero,
        "thresholds": dict(prediction.thresholds),
        "regime": regime_of(prediction),
        "values": predicted_scalars(problem, prediction),
    }


def regime_of(prediction: Prediction) -> str:
    """Return in words what is special of a predicted optimum: zero, minority collapse, dead classes, at a threshold; or ""."""
    if not prediction.applies:
        return ""
    words = []
    dead = prediction.details.get("dead_classes") or []
    if prediction.zero:
        words.append("zero solution")
    elif dead and prediction.details.get("minority_collapse"):
        words.append(f"minority collapse: classes {_named(dead)} share one w")
    elif dead:
        words.append(f"dead classes {_named(dead)}")
    near = [name for name, number in prediction.thresholds.items() if abs(number - 1) < NEAR]
    if near:
        words.append(f"at the threshold {near[0]!r}")
    return ", ".join(words)


def nearest_threshold(prediction: Prediction) -> str:
    """Return the threshold whose number is nearest to 1, where the regime changes, by ratio; "" where there is none."""
    known = {name: number for name, number in prediction.thresholds.items() if 0 < number < math.inf}
    if not prediction.applies or not known:
        return ""
    name = min(known, key=lambda name: abs(math.log(known[name])))
    return f"{name} {known[name]:.3g}"


def _named(classes: Sequence[int]) -> str:
    """Return "2-5,8" for [2, 3, 4, 5, 8], cut after six runs."""
    runs: list[list[int]] = []
    for k in sorted(classes):
        if runs and k == runs[-1][1] + 1:
            runs[-1][1] = k
        else:
            runs.append([k, k])
    text = ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs[:6])
    return text if len(runs) <= 6 else f"{text},.. ({len(classes)} in all)"


def predicted_scalars(problem: Problem, prediction: Prediction) -> dict[str, float]:
    """Return what the prediction says of each of SCALARS; nan where it is silent or the Grams are not unique."""
    if not prediction.applies:
        return dict.fromkeys(SCALARS, math.nan)
    parts = (prediction.logits, prediction.gram_w, prediction.gram_h)
    return scalars(*parts, problem.count_vector, problem.targets is None)


def measure_many(solutions: Sequence[Solution], predictions: Sequence[Prediction]) -> list[dict[str, Any]]:
    """Return `measures`, `reasons` and `flags` of every solution: null with the reason where there is no geometry."""
    out: list[dict[str, Any] | None] = [None] * len(solutions)
    shapes: dict[tuple[int, int], list[int]] = {}
    for i, solution in enumerate(solutions):
        if solution.features is None and not _no_geometry(solution):
            shapes.setdefault(tuple(solution.W.shape), []).append(i)
    for members in shapes.values():
        weight, means, bias = (
            np.stack([getattr(solutions[i], name).numpy(force=True) for i in members]) for name in ("W", "H", "b")
        )
        keep = np.flatnonzero(regular(weight, means))
        chosen = [members[j] for j in keep]
        grams = [_gram(solutions[i], predictions[i]) for i in chosen]
        for i, found in zip(chosen, measure_means(weight[keep], means[keep], bias[keep], grams), strict=True):
            out[i] = {"measures": found, "reasons": {}, "flags": dict.fromkeys(SCATTER, "degenerate")}
    return [
        _with_scalars(solution, prediction, measures or measures_of(solution, prediction))
        for solution, prediction, measures in zip(solutions, predictions, out, strict=True)
    ]


def measures_of(solution: Solution, prediction: Prediction) -> dict[str, Any]:
    """Return `measures`, `reasons` and `flags` of the features of one solution, whatever they look like."""
    problem = solution.problem
    why = _no_geometry(solution)
    if why:
        return {"measures": dict.fromkeys(MEASURED), "reasons": dict.fromkeys(MEASURED, why), "flags": {}}
    if solution.features is not None:
        features = solution.features.numpy(force=True)
        labels = np.repeat(np.arange(problem.classes), problem.count_vector.astype(int))
    else:
        features, labels = solution.H.numpy(force=True), np.arange(problem.classes)
    try:
        found = collapse(
            features,
            labels,
            weight=solution.W.numpy(force=True),
            bias=solution.b.numpy(force=True),
            classes=problem.classes,
            predicted_gram=_gram(solution, prediction),
            names=MEASURED,
        )
    except RequestError as error:  # a geometry that does not exist is a value, not the end of the sweep
        return {"measures": dict.fromkeys(MEASURED), "reasons": dict.fromkeys(MEASURED, str(error)), "flags": {}}
    measures = {name: float(found[name]) for name in MEASURED if name in found}
    reasons = {name: found.reasons.get(name, "the value is not finite") for name in measures if not math.isfinite(measures[name])}
    return {"measures": measures, "reasons": reasons, "flags": {k: v for k, v in found.flags.items() if k in measures}}


def _gram(solution: Solution, prediction: Prediction) -> np.ndarray | None:
    """Return the Gram of the means to compare with: that of a code with its vertices named as the solution names them."""
    if not (prediction.applies and prediction.unique and not prediction.zero) or prediction.gram_h is None:
        return None
    if "code" not in prediction.details:
        return prediction.gram_h
    means = solution.H.numpy(force=True)
    places = relabelling(means @ means.T, prediction.gram_h) if len(means) <= MOST_OF_A_CODE else None
    return None if places is None else prediction.gram_h[np.ix_(places, places)]


def _with_scalars(solution: Solution, prediction: Prediction, found: dict[str, Any]) -> dict[str, Any]:
    """Add the scalars, and the reasons of what is missing, in the order in which they are recorded."""
    problem, reasons = solution.problem, dict(found["reasons"])
    values = {name: found["measures"].get(name, math.nan) for name in MEASURED}
    if "nc2_to_prediction" not in found["measures"]:
        reasons["nc2_to_prediction"] = prediction.reason or _WHY_NOT["code" in prediction.details]
    numbers = dict.fromkeys(SCALARS, math.nan)
    if not _not_finite(solution):
        W, H, Z = (part.numpy(force=True) for part in (solution.W, solution.H, solution.logits))
        numbers = scalars(Z, W @ W.T, H @ H.T, problem.count_vector, problem.targets is None)
        if solution.features is not None:
            numbers["feature_norm"] = float(solution.features.norm())
    for name, value in numbers.items():
        if not math.isfinite(value):
            reasons[name] = _no_geometry(solution) or "a row of W or a class mean is zero, so it has no angle"
    return {"measures": {**numbers, **values}, "reasons": reasons, "flags": found["flags"]}


def _no_geometry(solution: Solution) -> str:
    if solution.problem.targets is not None:
        return "with soft or regression targets a row is no class; the class measures do not exist"
    if _not_finite(solution):
        return "the solution is not finite"
    if float(solution.H.abs().max()) == 0.0 or float(solution.W.abs().max()) == 0.0:
        return "the zero solution has no geometry"
    return ""


def _not_finite(solution: Solution) -> bool:
    return not (math.isfinite(float(solution.H.abs().sum())) and math.isfinite(float(solution.W.abs().sum())))


def predict(spec: Single) -> dict[str, Any]:
    """Return the closed form of one cell, arrays included."""
    prediction = predict_problem(problem_of_task(spec))
    return {
        "prediction": prediction.name if prediction.applies else "none",
        "loss": prediction.loss,
        "zero": prediction.zero,
        "status": prediction.status if prediction.applies else "does not apply",
        "reference": prediction.reference,
        "reason": prediction.reason,
        "assumptions": list(prediction.assumptions),
        "applies": prediction.applies,
        "regime": regime_of(prediction),
        "threshold": nearest_threshold(prediction),
        "thresholds": dict(prediction.thresholds),
        "details": dict(prediction.details),
        "logits": prediction.logits,
        "bias": prediction.bias,
        "gram_w": prediction.gram_w,
        "gram_h": prediction.gram_h,
        "singular_values": prediction.singular_values,
        "unique": prediction.unique,
        "tolerance": prediction.tolerance,
    }
