"""Targets that are symmetric in the classes: soft labels, mixup, multi-label (pick-all-labels), in one convex problem.

When every permutation of a target row occurs equally often, the weighted Z Z^T is w^2 Pi at the optimum, hence
|Zt|_* = sqrt(K-1) |Zt|_F and the rows decouple given their common norm: row t minimises

    CE(z; q_t) + rho/2 |z|^2,      rho = N c sqrt(K-1) / |Zt|_F,

a strongly convex problem with 1^T z = 0; rho is one scalar root. W is an equiangular tight frame: derived, not assumed.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

import numpy as np

from ufm.prediction import Prediction, not_applicable
from ufm.problem import Problem
from ufm.theory.etf import centring
from ufm.theory.reduced import factors, obstacle, reduce, single_layer
from ufm.theory.rows import cross_entropy

DIGITS = 12  # target entries are compared after rounding to this many decimals
NEWTON_STEPS = 200


@dataclass(frozen=True, eq=False)
class Orbit:
    """All permutations of one target row."""

    values: np.ndarray  # (K,) descending
    count: float  # samples of each permutation
    rows: list[int]  # the rows of `targets` it stands for, one per permutation


def orbits(targets: np.ndarray, counts: np.ndarray) -> list[Orbit] | None:
    """Return the orbits of the rows under class permutations, or None if the set is not invariant."""
    rounded = np.round(targets, DIGITS) + 0.0
    members: dict[tuple[float, ...], dict[tuple[float, ...], list[int]]] = {}
    for t, row in enumerate(map(tuple, rounded.tolist())):
        members.setdefault(tuple(sorted(row, reverse=True)), {}).setdefault(row, []).append(t)
    found = []
    for key, variants in members.items():
        size = math.factorial(len(key)) // math.prod(math.factorial(m) for m in Counter(key).values())
        totals = {float(counts[rows].sum()) for rows in variants.values()}
        if len(variants) != size or len(totals) != 1:
            return None
        rows = [t for group in variants.values() for t in group]
        found.append(Orbit(np.sort(targets[rows[0]])[::-1], totals.pop(), rows))
    return found


def _decoupled(values: np.ndarray, rho: float) -> np.ndarray:
    """Return argmin CE(z; q) + rho/2 |z|^2 for each row q of `values` (O, K): damped Newton, diagonal plus rank one."""
    mass = values.sum(axis=1, keepdims=True)
    z = np.zeros_like(values)

    def objective(z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        losses, gradient = cross_entropy(values, z)
        return losses + rho / 2 * (z**2).sum(axis=1), gradient + rho * z

    for _ in range(NEWTON_STEPS):
        p = np.exp(z - z.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        start, gradient = objective(z)
        diagonal = mass * p + rho
        left, right = gradient / diagonal, p / diagonal  # Sherman-Morrison for diag - mass p p^T
        step = left + right * mass * (p * left).sum(1, keepdims=True) / (1 - mass * (p * right).sum(1, keepdims=True))
        slope = (gradient * step).sum(axis=1)
        if np.all(np.abs(step) <= 4e-16 * (1 + np.abs(z))):
            break
        t = np.ones(len(z))
        for _ in range(40):
            bad = objective(z - t[:, None] * step)[0] > start - 1e-4 * t * slope + 1e-14 * np.abs(start)
            if not bad.any():
                break
            t[bad] /= 2
        z = z - t[:, None] * step
    return z


def _solve(found: list[Orbit], c: float, N: float) -> tuple[np.ndarray, float, float]:
    """Return the logits of the orbits' descending rows (O, K), |Zt|_F and the threshold number."""
    from scipy.optimize import brentq

    values = np.array([orbit.values for orbit in found])
    K = values.shape[1]
    sizes = np.array([_size(orbit.values) for orbit in found], dtype=float)
    n = np.array([orbit.count for orbit in found]) * sizes
    pull = N * c * math.sqrt(K - 1)
    spread = math.sqrt(n @ ((values - values.mean(axis=1, keepdims=True)) ** 2).sum(axis=1))
    if spread <= pull:
        return np.zeros_like(values), 0.0, pull / spread if spread else math.inf

    def norm(rho: float) -> float:
        return math.sqrt(n @ (_decoupled(values, rho) ** 2).sum(axis=1))

    high = 1.0
    while high * norm(high) < pull:
        high *= 16
    low = high / 16
    while low * norm(low) >= pull:
        low /= 16
    rho = math.exp(brentq(lambda t: math.exp(t) * norm(math.exp(t)) - pull, math.log(low), math.log(high), xtol=1e-15))
    z = _decoupled(values, rho)
    return z, math.sqrt(n @ (z**2).sum(axis=1)), pull / spread


def _size(values: np.ndarray) -> int:
    repeats = Counter(np.round(values, DIGITS).tolist()).values()
    return math.factorial(len(values)) // math.prod(math.factorial(m) for m in repeats)


def soft_targets(problem: Problem) -> Prediction:
    """Predict cross-entropy with class-symmetric targets (soft, mixup, multi-label), d >= K-1, any bias."""
    if not single_layer(problem, ("ce",), targets=True):
        return not_applicable("")
    refusal = obstacle(problem)
    if refusal is not None:
        return refusal
    reduced, K = reduce(problem), problem.classes
    if np.any(reduced.targets < 0) or np.any(reduced.targets.sum(axis=1) <= 0):
        return not_applicable("cross-entropy needs non-negative targets with positive row sums")
    found = orbits(reduced.targets, reduced.counts)
    if found is None:
        return not_applicable(
            "the targets are not symmetric in the classes (every permutation of a row equally often); the certificate decides"
        )
    if problem.dim < K - 1:
        return not_applicable(f"class-symmetric targets need d >= K-1 = {K - 1}, here d = {problem.dim}")
    z, norm, number = _solve(found, problem.penalty, reduced.counts.sum())
    logits = _spread(found, z, reduced.targets)
    data = cross_entropy(reduced.targets, logits)[0]
    kind, reference = _kind(found)
    return Prediction(
        name="etf" if norm else "zero",
        loss=float(reduced.mass @ data) + problem.penalty * math.sqrt(K - 1) * norm,
        logits=logits,
        bias=np.zeros(K),
        assumptions=(f"class-symmetric {kind} targets", "d >= K-1", "global minimum"),
        reference=reference,
        zero=norm == 0,
        thresholds={"zero": number},
        details={
            "kind": kind,
            "a": [float(row[0] - row[-1]) for row in z],
            "orbits": [{"target": o.values.tolist(), "logits": row.tolist()} for o, row in zip(found, z, strict=True)],
        },
        **factors(reduced, logits),
    )


def _spread(found: list[Orbit], z: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Write the orbits' logits into the order of the target rows: equal target entries share a logit."""
    logits = np.zeros_like(targets)
    for orbit, row in zip(found, z, strict=True):
        for t in orbit.rows:
            logits[t, np.argsort(-targets[t], kind="stable")] = row
    return logits


def _kind(found: list[Orbit]) -> tuple[str, str]:
    """Name what the targets are, and whom to cite."""
    values = [orbit.values for orbit in found]
    if all(set(np.round(v, DIGITS)) <= {0.0, 1.0} for v in values):
        return "multi-label", "li2023"
    if all(abs(v.sum() - 1) < 1e-9 and np.count_nonzero(v > 1e-12) <= 2 for v in values):
        return "mixup", "fisher2024"
    return "soft", "zhou2022losses"


def squared_error(problem: Problem) -> Prediction:
    """Predict squared error with a ridge bias and class-symmetric targets of one mass m: the mean mode splits off.

    Pi-part: soft-threshold as without bias. Mean: beta = m (1 - r)_+, r = c sqrt(K N) (1 + lambda_b) / (m lambda_b), and
    b0 = (m - beta) / (K (1 + lambda_b)).
    """
    if problem.bias != "ridge" or not single_layer(problem, ("mse",), targets=True):
        return not_applicable("")
    refusal = obstacle(problem)
    if refusal is not None:
        return refusal
    reduced, K = reduce(problem), problem.classes
    mass = reduced.targets.sum(axis=1)
    if orbits(reduced.targets, reduced.counts) is None or np.ptp(mass) > 1e-12 or mass[0] <= 0:
        return not_applicable("")
    N, root, c = reduced.counts.sum(), np.sqrt(reduced.counts), problem.penalty
    m, lambda_b = float(mass[0]), problem.lambda_b
    number = c * math.sqrt(K * N) * (1 + lambda_b) / (m * lambda_b)
    beta = m * max(0.0, 1 - number)
    b0 = (m - beta) / (K * (1 + lambda_b))
    u, s, vt = np.linalg.svd(reduced.targets @ centring(K) * root[:, None], full_matrices=False)
    kept = np.maximum(s - N * c, 0.0)
    rank = int(np.count_nonzero(kept)) + (beta > 0)
    if problem.dim < rank:
        return not_applicable(f"the optimum has rank {rank}, here d = {problem.dim}; give d >= {rank}")
    z = (u * kept) @ vt / root[:, None] + beta / K
    loss = np.sum((s - kept) ** 2) / (2 * N) + c * kept.sum() + c * beta * math.sqrt(N / K)
    loss += (m - beta) ** 2 * lambda_b / (2 * K * (1 + lambda_b))
    name = "etf" if kept.any() else ""  # W of the centred part: by symmetry its K-1 singular values are equal
    return Prediction(
        name="+".join(filter(None, (name, "mean" if beta else ""))) or "zero",
        loss=float(loss),
        logits=z + b0,
        bias=np.full(K, b0),
        assumptions=("class-symmetric targets of equal mass", f"d >= {max(rank, 1)}", "global minimum"),
        reference="fisher2024",
        zero=rank == 0,
        thresholds={"mean mode": number, "zero": float(N * c / s[0]) if s[0] > 0 else math.inf},
        details={"beta": beta, "b0": b0},
        **factors(reduced, z),
    )
