"""What `ufm simulate flow` and `ufm predict flow` compute."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ufm.prediction import DERIVED, STATED
from ufm.solution import Status
from ufm.systems import Task
from ufm.systems.flow import Flow, problem_of
from ufm.theory import dynamics


class Law(NamedTuple):
    """A closed form of a path: whose it is, what it is about, how far it is proven."""

    reference: str
    quantity: str
    status: str = DERIVED


LAWS = {
    "mixon2020": Law("mixon2020", "squared singular values of W on the invariant subspace"),
    "modes": Law("dang2023", "product modes, kappa_k = sqrt(n_k) - N lambda"),
    "ji2021": Law("ji2021", "logit gap on the simplex ray"),
    "han2021": Law("han2021", "singular values of the signal-to-noise matrix", STATED),
    "han2021-renormalised": Law("han2021", "singular values of the signal-to-noise matrix, renormalised flow"),
}


def simulate(tasks: Sequence[Task], device: str) -> list[dict[str, Any]]:
    """Return one row per task: the end of the path, and the distance to the law where one exists."""
    from ufm.flows import flow_many

    rows: list[dict[str, Any]] = [{} for _ in tasks]
    groups: dict[tuple, list[int]] = {}
    for i, task in enumerate(tasks):
        spec: Flow = task.spec
        if spec.init == "central":
            rows[i] = _central_row(spec, task.seed)
        else:
            groups.setdefault((spec.init, spec.t_end, spec.points, spec.method, spec.lr, spec.rtol), []).append(i)
    for (init, t_end, points, method, lr, rtol), members in groups.items():
        paths = flow_many(
            [problem_of(tasks[i].spec) for i in members],
            init=init,
            init_scale=[tasks[i].spec.init_scale for i in members],
            t_end=t_end,
            points=points,
            run_seeds=[tasks[i].seed for i in members],
            method=method,
            lr=lr,
            rtol=rtol,
        )
        for i, path in zip(members, paths, strict=True):
            rows[i] = _row(path, tasks[i].spec.trajectory)
    return rows


def _status(finished: bool, limited: bool) -> Status:
    return Status.ARRIVED if finished else Status.STEP_LIMIT if limited else Status.DIVERGED


def _row(path: Any, keep: bool) -> dict[str, Any]:
    row: dict[str, Any] = {
        "status": _status(path.finished and bool(np.isfinite(path.loss[-1])), path.limited).value,
        "loss": float(path.loss[-1]),
        "law": path.law,
        "law_error": float(np.abs(path.modes - path.predicted).max()) if path.law else None,
        "end": {name: float(values[-1]) for name, values in path.measures.items()},
        "evaluations": path.evaluations,
        "notes": list(path.notes),
    }
    if not path.law:
        row["reasons"] = {"law_error": "no closed form is known for this start, loss and penalty"}
    if not path.law:
        row["off_law"] = _off_law(path)
    if keep:
        row["path"] = {"t": path.t, "loss": path.loss, **path.measures}
        if path.law:
            row["path"] |= {"modes": path.modes, "predicted": path.predicted}
    return row


def _off_law(path: Any) -> dict[str, float]:
    """Return how wrong a law is where it need not hold, off its subspace or its ray: the laws' negative control."""
    problem = path.problem
    if not problem.balanced or problem.lambda_h or problem.layer_lambdas[0] or not path.finished:
        return {}
    per_class, total = float(problem.count_vector[0]), float(problem.count_vector.sum())
    if problem.loss == "mse" and problem.bias == "free":
        modes = np.linalg.svd(path.W, compute_uv=False)[:, : problem.classes - 1] ** 2
        law = np.stack([dynamics.subspace_mode(path.t, u, per_class, total) for u in modes[0]], 1)
        return {"mixon2020": float(np.abs(modes - np.sort(law, 1)[:, ::-1]).max())}
    gap = path.measures["logit_gap"]
    if problem.loss == "ce" and problem.bias == "none" and gap[-1] > 0:
        first = int(np.argmax(gap > 0))  # the ray has a positive gap
        law = dynamics.ray(path.t[first:] - path.t[first], float(gap[first]), problem.classes, per_class)
        return {"ji2021": float(np.abs(gap[first:] - law).max())}
    return {}


def _central_row(spec: Flow, seed: int) -> dict[str, Any]:
    from ufm.central_path import central_path

    path = central_path(
        spec.classes,
        spec.per_class,
        spec.dim,
        signal=spec.init_scale,
        t_end=spec.t_end,
        points=spec.points,
        seed=seed,
        renormalised=spec.renormalised,
        rtol=min(spec.rtol, 1e-8),
    )
    total = spec.classes * spec.per_class
    rates = {
        name: np.diff(clock, axis=0) / np.diff(path.t)[:, None] * total
        for name, clock in (
            ("clock_rate", path.clock),
            ("other_clock_rate", dynamics.central_path_clock(path.singular_values, spec.classes, not spec.renormalised)),
        )
    }
    row: dict[str, Any] = {
        "status": (Status.DRIFTED if path.drifted else _status(path.finished, path.limited)).value,
        "loss": None,
        "law": "han2021-renormalised" if spec.renormalised else "han2021",
        "law_error": float(np.abs(path.singular_values - path.predicted).max()),
        # In units of 1/N; the law says 1, and the other flow's clock does not run evenly.
        **{name: {"min": float(rate.min()), "max": float(rate.max())} for name, rate in rates.items()},
        "end": {"nc1_pinv": float(path.nc1[-1]), "covariance_drift": float(path.covariance_drift.max())},
        "evaluations": path.evaluations,
        "reasons": {"loss": "the loss is that of the least-squares classifier, not of a path of W"},
    }
    if spec.trajectory:
        row["path"] = {"t": path.t, "modes": path.singular_values, "predicted": path.predicted, "nc1_pinv": path.nc1}
    return row


def predict(spec: Flow) -> dict[str, Any]:
    """Return one row: which law holds from this start, what it is about, and its limit."""
    problem = problem_of(spec)
    counts, total = problem.count_vector, float(problem.count_vector.sum())
    equal, free_of_penalty = spec.lambda_w == spec.lambda_h, spec.lambda_w == spec.lambda_h == 0
    law, limit = "", None
    if spec.init == "central":
        law = "han2021-renormalised" if spec.renormalised else "han2021"
    elif spec.init == "subspace" and spec.loss == "mse" and spec.bias == "free" and problem.balanced and free_of_penalty:
        law, limit = "mixon2020", [float(np.sqrt(counts[0]))] * (problem.classes - 1)
    elif spec.init == "aligned" and spec.loss == "mse" and spec.bias == "none" and equal:
        law, limit = "modes", np.maximum(dynamics.mode_limits(counts, spec.lambda_h), 0).tolist()
    elif spec.init == "aligned" and spec.loss == "ce" and problem.balanced and free_of_penalty and spec.bias == "none":
        law = "ji2021"
    if not law:
        reason = "no closed form is known for this start, loss and penalty; --init subspace and aligned have one"
        return {"law": None, "reference": None, "quantity": None, "limit": None, "reason": reason}
    reference, quantity, _ = LAWS[law]
    return {"law": law, "reference": reference, "quantity": quantity, "limit": limit, "reason": "", "total": total}
