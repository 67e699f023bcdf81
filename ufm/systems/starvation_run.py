"""What `ufm simulate starvation` and `ufm predict starvation` compute.

`simulate` makes features Phi = Y U S V^T and labels, minimises the objective over the weights (the primal) and reads the
responses off the singular vectors of Y Phi; theory (`ufm.theory.starvation`) solves the dual in n numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ufm.prediction import DERIVED
from ufm.seeds import stream
from ufm.solution import Status
from ufm.systems import Task
from ufm.systems.starvation import NEAR, Starvation, strengths_of
from ufm.theory import starvation as theory

REFERENCE = "pezeshki2020"
TOLERANCE = 1e-8  # relative, of the predicted loss
STEPS = 300  # of Newton's method on the weights
GRADIENT = 1e-9  # relative size at which the weights are at rest
DIFFERENCE = 2e-3  # relative, of s_1^2: two central differences of it and its half leave 1e-11 of the derivative
ASSUMPTIONS = ("linear or linearised model", "labels +-1, logistic loss", "n features of n samples, d >= n")


def simulate(tasks: Sequence[Task], device: str) -> list[dict[str, Any]]:
    """Return one row per task: the optimum of the weights beside the dual's, and what a stronger first feature changes."""
    return [_row(task.spec, task.seed) for task in tasks]


def data(spec: Starvation, seed: int, strengths: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (Phi (n, d), y (n,) of +-1, U (n, n)) with Y Phi = U S V^T, V drawn from the seed's stream "directions"."""
    n, d = spec.samples, spec.samples if spec.dim is None else spec.dim
    U = theory.mixing(n, spec.coupling, kind=spec.mixing, seed=seed)
    labels = 2.0 * stream(seed, "labels").integers(0, 2, size=n) - 1
    directions = np.linalg.qr(stream(seed, "directions").standard_normal((d, n)))[0]
    return labels[:, None] * ((U * strengths) @ directions.T), labels, U


def primal(features: np.ndarray, labels: np.ndarray, weight: float, penalty: str) -> tuple[np.ndarray, bool]:
    """Return (theta (d,), whether it is at rest), the minimum over the weights by Newton's method.

    Each step is a least-squares problem, so that strengths of very different size cost their ratio and not its square.
    """
    signed, n = labels[:, None] * features, len(labels)
    theta = np.zeros(features.shape[1])
    value = objective(signed @ theta, theta, weight, penalty)
    for _ in range(STEPS):
        margins = signed @ theta
        alpha = _share(margins)
        slope, curvature = -alpha, alpha * (1 - alpha)
        if penalty == theory.DECOUPLING:
            slope, curvature = slope + weight * margins, curvature + weight
        root = np.sqrt(np.maximum(curvature, 1e-300))
        rows, right = root[:, None] * signed, -slope / root
        if penalty == theory.RIDGE:
            rows = np.concatenate([rows, math.sqrt(n * weight) * np.eye(len(theta))])
            right = np.concatenate([right, -math.sqrt(n * weight) * theta])
        step, *_ = np.linalg.lstsq(rows, right, rcond=None)
        length = 1.0
        while length > 1e-10:
            trial = objective(signed @ (theta + length * step), theta + length * step, weight, penalty)
            if trial <= value * (1 + 1e-15):
                break
            length /= 2
        theta = theta + length * step
        value = objective(signed @ theta, theta, weight, penalty)
        if np.linalg.norm(length * step) <= 1e-14 * np.linalg.norm(theta):
            break
    return theta, _rest(signed, theta, weight, penalty) < GRADIENT


def objective(margins: np.ndarray, theta: np.ndarray, weight: float, penalty: str) -> float:
    """Return f: the mean logistic loss of the margins (n,), and the penalty."""
    fit = np.logaddexp(0, -margins).mean()
    return float(fit + weight / 2 * ((theta @ theta) if penalty == theory.RIDGE else (margins @ margins) / len(margins)))


def _share(margins: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0, margins))  # 1/(1 + e^u), to full precision for large u


def _rest(signed: np.ndarray, theta: np.ndarray, weight: float, penalty: str) -> float:
    """Return the gradient's size over that of its two parts, which cancel at the optimum."""
    margins = signed @ theta
    pull = signed.T @ _share(margins) / len(signed)
    held = weight * (theta if penalty == theory.RIDGE else signed.T @ margins / len(signed))
    return float(np.linalg.norm(held - pull) / np.linalg.norm(held))


def responses(features: np.ndarray, labels: np.ndarray, theta: np.ndarray, strengths: np.ndarray, U: np.ndarray) -> np.ndarray:
    """Return |z_j| (n,) in the order of the strengths, from the singular vectors of Y Phi.

    Where strengths coincide the data does not tell their features apart, and those of `U` are taken.
    """
    signed = labels[:, None] * features
    order = np.argsort(-strengths, kind="stable")
    apart = np.min(-np.diff(strengths[order])) > 1e-6 * strengths.max()
    size = np.empty(len(strengths))
    left = np.linalg.svd(signed, full_matrices=False)[0] if apart else U[:, order]
    size[order] = np.abs(left.T @ (signed @ theta))
    return size


def certificate(margins: np.ndarray, loss: float, scaled: np.ndarray | None, weight: float) -> dict[str, Any]:
    """Return a bound on f - f*: the dual's value at alpha = 1/(1 + e^u), or strong convexity in the margins."""
    alpha = _share(margins)
    if scaled is None:
        gap = float(np.mean((weight * margins - alpha) ** 2) / (2 * weight))
        reason = "f is lambda-strongly convex in every margin, and the margins are free"
    else:
        gap = max(0.0, loss - theory.dual_value(alpha, scaled))
        reason = "the dual's value at the weights' own alpha is below f*"
    return {"gap": gap, "relative": gap / loss if loss > 0 else math.nan, "dual_norm": math.nan, "valid": True, "reason": reason}


def _row(spec: Starvation, seed: int) -> dict[str, Any]:
    strengths, weight = np.array(strengths_of(spec)), spec.penalty_weight
    features, labels, U = data(spec, seed, strengths)
    theta, rest = primal(features, labels, weight, spec.penalty)
    size = responses(features, labels, theta, strengths, U)
    known = theory.optimum(U, strengths, weight, spec.penalty)
    margins = labels * (features @ theta)
    loss = objective(margins, theta, weight, spec.penalty)
    slopes = _elasticities(spec, seed, strengths)
    expected = known.elasticities(spec.s1)
    scaled = theory.gram(U, strengths, weight) if spec.penalty == theory.RIDGE else None
    row: dict[str, Any] = {
        "status": (Status.CONVERGED if rest else Status.STEP_LIMIT).value,
        "loss": loss,
        "predicted": known.loss,
        "prediction": _prediction(spec, seed),
        "certificate": certificate(margins, loss, scaled, weight),
        "measures": {"z1": size[0], "z2": size[1], "elasticity": slopes[1], "elasticity_own": slopes[0]},
        "z": size,
        "elasticities": slopes,
        "starved": float(np.mean(slopes[1:] < 0)),
        "errors": {
            "z": _distance(size, np.abs(known.responses), size.max()),
            "elasticity": _distance(slopes, expected, 1.0),
        },
        "against": _against(spec, U, strengths, size, slopes),
        "reasons": _reasons(slopes, strengths),
    }
    if spec.trajectory:
        row["path"] = path(spec, seed)
    return row


def _against(spec: Starvation, U: np.ndarray, strengths: np.ndarray, size: np.ndarray, slopes: np.ndarray) -> dict[str, float]:
    """Return the distances to what holds elsewhere: the laws' negative controls."""
    free = np.abs(theory.decoupling(U, spec.penalty_weight).responses)
    alone = theory.uncoupled(strengths, spec.penalty_weight)
    return {
        "decoupling": _distance(size, free, size.max()),
        "uncoupled": _distance(size, alone, size.max()),
        "no_change": float(np.nanmax(np.abs(slopes[1:]))) if np.isfinite(slopes[1:]).any() else math.nan,
    }


def _distance(found: np.ndarray, known: np.ndarray, unit: float) -> float:
    away = np.abs(found - known)
    return float(np.nanmax(away) / unit) if np.isfinite(away).any() else math.nan


def _reasons(slopes: np.ndarray, strengths: np.ndarray) -> dict[str, str]:
    if np.isfinite(slopes[:2]).all():
        return {}
    near = np.abs(strengths[1:] / strengths[0] - 1).min() < NEAR
    why = "two strengths coincide, and the data does not tell their features apart" if near else "the response is zero"
    return {"elasticity": why}


def _elasticities(spec: Starvation, seed: int, strengths: np.ndarray) -> np.ndarray:
    """Return d log|z_j| / d log s_1^2 (n,) by central differences of minima over the weights; nan where z_j is zero.

    Two differences, of a step and of its half, and Richardson's combination of them.
    """
    if np.abs(strengths[1:] / strengths[0] - 1).min() < 2 * DIFFERENCE:
        return np.full(len(strengths), math.nan)
    slopes = []
    for step in (DIFFERENCE, DIFFERENCE / 2):
        logs = []
        for sign in (1, -1):
            moved = strengths.copy()
            moved[0] *= math.exp(sign * step / 2)
            features, labels, U = data(spec, seed, moved)
            theta, _ = primal(features, labels, spec.penalty_weight, spec.penalty)
            size = responses(features, labels, theta, moved, U)
            with np.errstate(divide="ignore"):
                logs.append(np.log(np.where(size > 1e-9 * size.max(), size, math.nan)))
        slopes.append((logs[0] - logs[1]) / (2 * step))
    return (4 * slopes[1] - slopes[0]) / 3


def _prediction(spec: Starvation, seed: int) -> dict[str, Any]:
    strengths = np.array(strengths_of(spec))
    U = theory.mixing(spec.samples, spec.coupling, kind=spec.mixing, seed=seed)
    known = theory.optimum(U, strengths, spec.penalty_weight, spec.penalty)
    slopes, size = known.elasticities(spec.s1), np.abs(known.responses)
    values = {"z1": size[0], "z2": size[1], "elasticity": slopes[1], "elasticity_own": slopes[0]}
    return {
        "name": "dual fixed point" if spec.penalty == theory.RIDGE else "c U^T 1",
        "applies": True,
        "reason": "",
        "loss": known.loss,
        "status": DERIVED,
        "assumptions": ASSUMPTIONS,
        "reference": REFERENCE,
        "tolerance": TOLERANCE,
        "values": {name: float(value) for name, value in values.items() if math.isfinite(value)},
    }


def path(spec: Starvation, seed: int) -> dict[str, list[float]]:
    """Return t, z1 and z2 (signs of U's columns chosen so that they end positive) under gradient flow.

    primal: theta' = -df/dtheta from zero, in margins u' = K (alpha - lambda u)/n with the decoupling penalty, and
    u' = K alpha/n - lambda u with ridge. dual: alpha' = log((1 - alpha)/alpha) - K alpha/(n lambda) from alpha = 1e-8, the
    margins being K alpha/(n lambda), or alpha/lambda with the decoupling penalty (whose dual has the identity for K/n).
    """
    from scipy.integrate import solve_ivp

    strengths, weight = np.array(strengths_of(spec)), spec.penalty_weight
    U = theory.mixing(spec.samples, spec.coupling, kind=spec.mixing, seed=seed)
    gram = theory.gram(U, strengths, 1.0)  # K/n
    scaled = gram / weight if spec.penalty == theory.RIDGE else np.eye(spec.samples) / weight

    def primal_flow(_: float, u: np.ndarray) -> np.ndarray:
        alpha = _share(u)
        return gram @ alpha - weight * u if spec.penalty == theory.RIDGE else gram @ (alpha - weight * u)

    def dual_flow(_: float, logit: np.ndarray) -> np.ndarray:  # of log(alpha/(1-alpha)), so that alpha stays inside (0, 1)
        alpha = _share(-logit)
        return -(logit + scaled @ alpha) / np.maximum(alpha * (1 - alpha), 1e-300)

    times = np.concatenate([[0.0], np.geomspace(spec.t_end * 1e-8, spec.t_end, spec.points - 1)])
    dual = spec.dynamics == "dual"
    start = np.full(spec.samples, math.log(1e-8) if dual else 0.0)
    end = solve_ivp(dual_flow if dual else primal_flow, (0.0, spec.t_end), start, "LSODA", t_eval=times, rtol=1e-9, atol=1e-12)
    margins = scaled @ _share(-end.y) if dual else end.y
    z = U.T @ margins
    z *= np.where(z[:, -1:] < 0, -1.0, 1.0)
    return {"t": end.t.tolist(), "z1": z[0].tolist(), "z2": z[1].tolist()}


def predict(spec: Starvation, seed: int = 0) -> dict[str, Any]:
    """Return one row: the optimum of the seed's mixing, and the sign of what a stronger first feature does to the second."""
    made = _prediction(spec, seed)
    U = theory.mixing(spec.samples, spec.coupling, kind=spec.mixing, seed=seed)
    known = theory.optimum(U, np.array(strengths_of(spec)), spec.penalty_weight, spec.penalty)
    slope = made["values"].get("elasticity", 0.0)
    return {
        **{name: made[name] for name in ("loss", "status", "reference", "assumptions", "applies", "reason")},
        "prediction": made["name"],
        **{name: made["values"].get(name) for name in ("z1", "z2", "elasticity")},
        "effect": "no change" if abs(slope) < 1e-12 else "starves" if slope < 0 else "feeds",
        "z": np.abs(known.responses),
        "elasticities": known.elasticities(spec.s1),
    }
