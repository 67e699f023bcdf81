"""`single`, the heavy half: batches of cells to solutions, predictions and measures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ufm.errors import RequestError
from ufm.measure import collapse
from ufm.predict import predict as predict_problem
from ufm.prediction import Prediction
from ufm.problem import Problem
from ufm.solution import Solution
from ufm.solve import _method_for, solve_many
from ufm.solvers import SOLVERS
from ufm.systems import Task
from ufm.systems.single import Single, problem_of
from ufm.systems.targets import read_targets
from ufm.systems.trajectory import follow_many
from ufm.systems.trajectory import record_of as record_of_path

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


def problem_of_task(spec: Single) -> Problem:
    """Return the Problem of a cell, its targets read."""
    return problem_of(spec, None if spec.targets is None else read_targets(spec.targets))


def validate(specs: Sequence[Single]) -> None:
    """Raise RequestError for a cell that its method does not solve, or that has no optimum."""
    seen: set[tuple[Problem, str]] = set()
    for spec in specs:
        problem = problem_of_task(spec)
        if spec.method in ("auto", *SOLVERS) and (problem, spec.method) not in seen:
            _method_for(problem, spec.method)
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
        for i, (solution, path) in zip(members, found, strict=True):
            if problems[i] not in predictions:
                predictions[problems[i]] = predict_problem(problems[i])
            rows[i] = row_of(solution, predictions[problems[i]])
            if path is not None:
                rows[i]["trajectory"] = record_of_path(path, problems[i], predictions[problems[i]])
    return rows


def row_of(solution: Solution, prediction: Prediction) -> dict[str, Any]:
    """Return what is recorded of one solution beside its prediction."""
    problem, certificate = solution.problem, solution.certificate
    row: dict[str, Any] = {
        "status": solution.status.value,
        "loss": solution.loss,
        "predicted": prediction.loss if prediction.applies else None,
        "prediction": record_of(prediction),
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
    return {**row, **measures_of(solution, prediction)}


def record_of(prediction: Prediction) -> dict[str, Any]:
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
    }


def measures_of(solution: Solution, prediction: Prediction) -> dict[str, Any]:
    """Return `measures`, `reasons` and `flags` of the free features; all null with the reason where there is no geometry."""
    problem = solution.problem
    why = _no_geometry(solution)
    if why:
        return {"measures": dict.fromkeys(MEASURED), "reasons": dict.fromkeys(MEASURED, why), "flags": {}}
    if solution.features is not None:
        features = solution.features.detach().cpu().numpy()
        labels = np.repeat(np.arange(problem.classes), problem.count_vector.astype(int))
    else:
        features, labels = solution.H.detach().cpu().numpy(), np.arange(problem.classes)
    gram = prediction.gram_h if prediction.applies and prediction.unique and not prediction.zero else None
    try:
        found = collapse(
            features,
            labels,
            weight=solution.W.detach().cpu().numpy(),
            bias=solution.b.detach().cpu().numpy(),
            classes=problem.classes,
            predicted_gram=gram,
            names=MEASURED,
        )
    except RequestError as error:  # a geometry that does not exist is a value, not the end of the sweep
        return {"measures": dict.fromkeys(MEASURED), "reasons": dict.fromkeys(MEASURED, str(error)), "flags": {}}
    measures = {name: float(found[name]) for name in MEASURED if name in found}
    reasons = {name: found.reasons.get(name, "the value is not finite") for name in measures if not math.isfinite(measures[name])}
    if "nc2_to_prediction" not in measures:
        measures["nc2_to_prediction"] = math.nan
        reasons["nc2_to_prediction"] = prediction.reason or "the predicted Gram is zero or not unique"
    return {"measures": measures, "reasons": reasons, "flags": {k: v for k, v in found.flags.items() if k in measures}}


def _no_geometry(solution: Solution) -> str:
    if solution.problem.targets is not None:
        return "with soft or regression targets a row is no class; the class measures do not exist"
    if not bool(solution.H.isfinite().all()) or not bool(solution.W.isfinite().all()):
        return "the solution is not finite"
    if float(solution.H.abs().max()) == 0.0 or float(solution.W.abs().max()) == 0.0:
        return "the zero solution has no geometry"
    return ""


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
