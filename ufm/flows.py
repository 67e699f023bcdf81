"""Gradient flow and gradient descent of the single-layer model, in raw coordinates, beside the exact path where one exists.

    W' = -df/dW,   H' = -df/dH (one column per sample),   b' = -df/db

Two exact reductions make it cheap. Rows: everything stays in span[W(0)', H(0)], so d falls to min(d, K + N). Columns
(MSE): a rotation of the samples splits H into K class sums and a remainder with zero targets, of which min(d, N - K)
columns suffice. Neither is exact for Adam, which is tied to coordinates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from ufm import seeds
from ufm.errors import RequestError
from ufm.flow_starts import check_start
from ufm.problem import Problem
from ufm.solvers import runge_kutta
from ufm.tables import suggest
from ufm.theory import dynamics

INITS = ("random", "subspace", "aligned")
METHODS = ("flow", "gd", "momentum")


@dataclass(frozen=True, eq=False)
class Trajectory:
    """A path of one problem; arrays are float64 numpy, T times.

    t: (T,); W: (T, K, d); H: (T, N, d), one row per sample, sorted by class; b: (T, K); loss: (T,).
    measures: name -> (T,): nc1_ratio (Tr S_W / Tr S_B), weight_norm, feature_norm, logit_gap, margin (normalised),
    imbalance_drift (|W'W - HH' - its exact course|). modes: (T, r) the quantity the closed form is about, predicted:
    the same from theory (None where no law applies), law: its name. evaluations: calls of the gradient.
    """

    problem: Problem
    t: np.ndarray
    W: np.ndarray
    H: np.ndarray
    b: np.ndarray
    loss: np.ndarray
    measures: dict[str, np.ndarray]
    modes: np.ndarray | None = None
    predicted: np.ndarray | None = None
    law: str = ""
    evaluations: int = 0
    finished: bool = True
    limited: bool = False  # ran out of steps while still finite
    seed: int = 0
    notes: tuple[str, ...] = field(default_factory=tuple)


def flow(
    problem: Problem,
    *,
    init: str = "random",
    init_scale: float = 0.1,
    t_end: float = 100.0,
    points: int = 101,
    seed: int = 0,
    method: str = "flow",
    lr: float = 0.1,
    rtol: float = 1e-8,
    reduce: bool = True,
) -> Trajectory:
    """Follow one problem from a start to time `t_end`; see `flow_many`."""
    return flow_many(
        [problem],
        init=init,
        init_scale=init_scale,
        t_end=t_end,
        points=points,
        run_seeds=[seed],
        method=method,
        lr=lr,
        rtol=rtol,
        reduce=reduce,
    )[0]


def flow_many(
    problems: Sequence[Problem],
    *,
    init: str = "random",
    init_scale: float | Sequence[float] = 0.1,
    t_end: float = 100.0,
    points: int = 101,
    run_seeds: Sequence[int] | None = None,
    method: str = "flow",
    lr: float = 0.1,
    rtol: float = 1e-8,
    reduce: bool = True,
    stop: Callable[[], bool] = lambda: False,
) -> list[Trajectory]:
    """Follow many problems at once; cells of one shape (K, d, counts) share a batch.

    Args:
        problems: depth 1, loss ce or mse, ridge constraint, free features, one-hot labels; lambdas may be 0.
        init: "random" (all entries N(0, init_scale^2)), "subspace" (the invariant subspace of Mixon, Parshall & Pi 2020:
            MSE, free bias, balanced) or "aligned" (modes start apart from each other: MSE without bias at any counts, or
            the simplex ray of balanced CE).
        init_scale: scale of the start, > 0; one number or one per problem.
        t_end: last time; the path is returned at 0 and `points` - 1 log-spaced times up to it.
        method: "flow" (Dormand-Prince with per-cell steps), "gd" or "momentum" (0.9), whose time is lr x step.
        rtol: local relative error of the flow.
        reduce: False integrates all entries of W and H, for checking.

    Returns:
        One Trajectory per problem, in order.
    """
    scales = np.broadcast_to(np.asarray(init_scale, dtype=np.float64), (len(problems),))
    _check_request(problems, init, scales, t_end, points, method, lr)
    run_seeds = list(run_seeds) if run_seeds is not None else [0] * len(problems)
    times = np.concatenate([[0.0], np.geomspace(t_end / 1000, t_end, points - 1)])
    groups: dict[tuple, list[int]] = {}
    for i, p in enumerate(problems):
        groups.setdefault((p.loss, p.bias != "none", p.dim, tuple(p.count_vector)), []).append(i)
    results: dict[int, Trajectory] = {}
    for members in groups.values():
        cells = [problems[i] for i in members]
        starts = [start(problems[i], init, float(scales[i]), run_seeds[i]) for i in members]
        # A path that diverged holds inf and nan: `finished` says so, and NumPy need not say it again at every product.
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            paths = _run_group(cells, starts, times, method, lr, rtol, reduce, stop)
            for i, path in zip(members, paths, strict=True):
                results[i] = _describe(problems[i], init, float(scales[i]), run_seeds[i], path)
    return [results[i] for i in range(len(problems))]


def _check_request(
    problems: Sequence[Problem], init: str, scales: np.ndarray, t_end: float, points: int, method: str, lr: float
) -> None:
    if init not in INITS:
        raise RequestError(f"init {init!r} is not known; {suggest(init, INITS)}")
    if method not in METHODS:
        raise RequestError(f"method {method!r} is not known; {suggest(method, METHODS)}")
    for name, value in (("t_end", t_end), ("lr", lr), *(("init_scale", float(s)) for s in scales)):
        if not (math.isfinite(value) and value > 0):
            raise RequestError(f"{name} {value!r} is not a positive number; give for example 0.1")
    if points < 2:
        raise RequestError(f"points {points} is smaller than 2; a path needs its start and its end")
    for p in problems:
        if (
            p.loss not in ("ce", "mse")
            or p.depth != 1
            or p.constraint != "ridge"
            or p.features != "free"
            or p.targets is not None
        ):
            raise RequestError("the flow takes loss ce or mse, depth 1, ridge penalties, free features and one-hot labels")
        if p.logit_scale or p.logit_offset or p.class_weights:
            raise RequestError("the flow takes no logit adjustment or class weights; drop them")
        check_start(p, init)


# --- starts ------------------------------------------------------------------------------------------------------


def start(problem: Problem, init: str, scale: float, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (W (K, d), H (d, N), b (K,)) at time 0."""
    K, d, counts = problem.classes, problem.dim, problem.count_vector.astype(int)
    labels, total = np.repeat(np.arange(K), counts), int(counts.sum())
    rng = seeds.stream(seed, "flow-init")
    if init == "random":
        return scale * rng.standard_normal((K, d)), scale * rng.standard_normal((d, total)), np.zeros(K)
    if init == "subspace":
        # Different modes start at different sizes, so that each follows its own law.
        left = np.linalg.qr(np.eye(K) - 1 / K)[0][:, : K - 1]
        right = np.linalg.qr(rng.standard_normal((d, K - 1)))[0]
        weight = left @ np.diag(scale * rng.uniform(0.5, 1.5, K - 1)) @ right.T
        return weight, weight[labels].T / math.sqrt(counts[0]), np.full(K, 1 / K)
    right = np.linalg.qr(rng.standard_normal((d, K)))[0].T  # (K, d), orthonormal rows
    if problem.loss == "mse":
        return scale * right, scale * right[labels].T / np.sqrt(counts[labels]), np.zeros(K)
    frame = (np.eye(K) - 1 / K) @ right
    size = math.sqrt(scale * math.sqrt(counts[0]))  # |W| = |H|: the start is balanced, Z = scale (I - J/K)
    return size * frame, (scale / size) * frame[labels].T, np.zeros(K)


# --- one batch ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Columns:
    """H in the coordinates that are integrated: K class columns of weight n_k (`merged`) and the rest, or all N."""

    targets: torch.Tensor  # (K, C): MSE targets (times sqrt n_k when merged)
    ones: torch.Tensor  # (C,): what the bias multiplies
    labels: torch.Tensor | None  # (N,) for CE


@dataclass(frozen=True)
class RawPath:
    """States of one cell in full coordinates."""

    t: np.ndarray
    W: np.ndarray
    H: np.ndarray
    b: np.ndarray
    evaluations: int
    finished: bool
    limited: bool


def _run_group(
    problems: Sequence[Problem],
    starts: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]],
    times: np.ndarray,
    method: str,
    lr: float,
    rtol: float,
    reduce: bool,
    stop: Callable[[], bool],
) -> list[RawPath]:
    first = problems[0]
    counts = first.count_vector.astype(int)
    labels = np.repeat(np.arange(first.classes), counts)
    merge = reduce and first.loss == "mse"
    reduced, ways_back = zip(*(_reduce(*s, labels, counts, merge, reduce) for s in starts), strict=True)
    system = _System(problems, reduced[0][0].shape[1], reduced[0][1].shape[1], labels, counts, merge)
    x = torch.tensor(np.stack([np.concatenate([w.ravel(), h.ravel(), b]) for w, h, b in reduced]), dtype=torch.float64)
    grid = torch.tensor(np.tile(times, (len(problems), 1)))
    if method == "flow":
        path = runge_kutta.integrate(system.velocity, x, grid, rtol=rtol, atol=1e-2 * rtol, stop=stop)
    else:
        path = _descend(system, x, grid, lr, 0.9 if method == "momentum" else 0.0, stop)
    result = []
    for i, (rows, columns) in enumerate(ways_back):
        w, h, b = (part.numpy() for part in system.split(path.states[i]))
        ended = int(path.evaluations[i]), bool(path.finished[i]), bool(path.limited[i])
        result.append(RawPath(grid[i].numpy(), w @ rows.T, rows @ h @ columns.T, b, *ended))
    return result


def _reduce(
    w: np.ndarray, h: np.ndarray, b: np.ndarray, labels: np.ndarray, counts: np.ndarray, merge: bool, rotate: bool
) -> tuple[tuple[np.ndarray, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Return the start in few coordinates and (rows (d, r), columns (N, C)) with W = W_r rows', H = rows H_r columns'."""
    rows = np.eye(w.shape[1])
    if rotate and w.shape[1] > w.shape[0] + h.shape[1]:
        rows = np.linalg.qr(np.hstack([w.T, h]))[0]
    columns = np.eye(h.shape[1])
    if merge:
        sums = np.zeros((h.shape[1], len(counts)))
        sums[np.arange(len(labels)), labels] = 1 / np.sqrt(counts[labels])
        rest = h - (h @ sums) @ sums.T
        # Columns beyond the rank of the within-class part are zero and stay zero; their singular vectors are arbitrary
        # (they may even lie in the span of the class sums) and must not carry anything.
        keep = min(h.shape[0], h.shape[1] - len(counts))
        _, size, right = np.linalg.svd(rest, full_matrices=False)
        right[size <= 1e-14 * np.linalg.norm(h)] = 0.0
        columns = np.hstack([sums, right[:keep].T])
    return (w @ rows, rows.T @ h @ columns, b), (rows, columns)


class _System:
    """Minus the gradient, for a batch of cells in reduced coordinates."""

    def __init__(
        self, problems: Sequence[Problem], dim: int, columns: int, labels: np.ndarray, counts: np.ndarray, merged: bool
    ) -> None:
        self.K, self.d, self.C, self.total = problems[0].classes, dim, columns, float(counts.sum())
        self.loss, self.has_bias = problems[0].loss, problems[0].bias != "none"
        self.lambdas = torch.tensor([[p.layer_lambdas[0], p.lambda_h, p.lambda_b] for p in problems], dtype=torch.float64)
        targets, ones = np.eye(self.K)[:, labels], np.ones(len(labels))
        if merged:
            targets = np.hstack([np.diag(np.sqrt(counts)), np.zeros((self.K, columns - self.K))])
            ones = np.concatenate([np.sqrt(counts), np.zeros(columns - self.K)])
        self.targets, self.ones = torch.tensor(targets), torch.tensor(ones)

    def split(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return (W, H, b) of flat states (..., P)."""
        w, h, b = x.split([self.K * self.d, self.d * self.C, self.K], dim=-1)
        return w.unflatten(-1, (self.K, self.d)), h.unflatten(-1, (self.d, self.C)), b

    def velocity(self, x: torch.Tensor, cells: torch.Tensor) -> torch.Tensor:
        """Return -grad f of flat states (b, P)."""
        w, h, b = self.split(x)
        z = torch.bmm(w, h) + b[:, :, None] * self.ones
        if self.loss == "mse":
            residual = (self.targets - z) / self.total
        else:
            p = torch.softmax(z, dim=1) * (1 - self.targets)  # own class: minus the others' sum keeps the digits
            residual = (self.targets * p.sum(1, keepdim=True) - p) / self.total
        lam = self.lambdas[cells]
        dw = torch.bmm(residual, h.transpose(1, 2)) - lam[:, 0, None, None] * w
        dh = torch.bmm(w.transpose(1, 2), residual) - lam[:, 1, None, None] * h
        db = (residual @ self.ones - lam[:, 2, None] * b) if self.has_bias else torch.zeros_like(b)
        return torch.cat([dw.flatten(1), dh.flatten(1), db], 1)


def _descend(
    system: _System, x: torch.Tensor, times: torch.Tensor, lr: float, momentum: float, stop: Callable[[], bool]
) -> runge_kutta.Path:
    """Gradient descent with heavy-ball momentum; a time is reached at the first step with lr x step >= it."""
    cells, velocity = torch.arange(len(x)), torch.zeros_like(x)
    due = torch.ceil(times[0] / lr - 1e-9).long()
    states = torch.full((*times.shape, x.shape[1]), float("nan"), dtype=x.dtype)
    states[:, due == 0] = x[:, None]
    for step in range(1, int(due[-1]) + 1):
        velocity.mul_(momentum).add_(system.velocity(x, cells))
        x = x + lr * velocity
        here = due == step
        if bool(here.any()):
            states[:, here] = x[:, None]
            if not bool(torch.isfinite(x).all()) or stop():
                break
    finished = torch.isfinite(states[:, -1]).all(1)
    limited = torch.zeros(len(x), dtype=torch.bool)
    return runge_kutta.Path(times, states, torch.full((len(x),), int(due[-1])), finished, limited)


# --- what a path shows -------------------------------------------------------------------------------------------


def _describe(problem: Problem, init: str, scale: float, seed: int, path: RawPath) -> Trajectory:
    modes, predicted, law = _closed_form(problem, init, path)
    early = "it ran out of steps" if path.limited else "the step fell below rounding or the state became non-finite"
    notes = () if path.finished else (f"the path ended early: {early}",)
    if problem.lambda_h == 0 and init == "random":
        notes += ("no penalty: collapse stays as loose as the start, Tr S_W / Tr S_B ~ c init_scale^2",)
    return Trajectory(
        problem=problem,
        t=path.t,
        W=path.W,
        H=path.H.transpose(0, 2, 1),
        b=path.b,
        loss=_losses(problem, path),
        measures=_measures(problem, path),
        modes=modes,
        predicted=predicted,
        law=law,
        evaluations=path.evaluations,
        finished=path.finished,
        limited=path.limited,
        seed=seed,
        notes=notes,
    )


def _labels(problem: Problem) -> np.ndarray:
    return np.repeat(np.arange(problem.classes), problem.count_vector.astype(int))


def _losses(problem: Problem, path: RawPath) -> np.ndarray:
    labels = _labels(problem)
    z = path.W @ path.H + path.b[:, :, None]
    if problem.loss == "mse":
        fit = 0.5 * ((z - np.eye(problem.classes)[:, labels]) ** 2).sum((1, 2))
    else:
        gaps = z - z[:, labels, np.arange(len(labels))][:, None, :]
        gaps[:, labels, np.arange(len(labels))] = -np.inf
        top = np.maximum(gaps.max(1), 0)
        others = np.exp(gaps - top[:, None]).sum(1)
        fit = np.where(top == 0, np.log1p(others), top + np.log(np.exp(-top) + others)).sum(1)
    penalty = problem.layer_lambdas[0] * (path.W**2).sum((1, 2)) + problem.lambda_h * (path.H**2).sum((1, 2))
    return fit / len(labels) + 0.5 * (penalty + problem.lambda_b * (path.b**2).sum(1))


def _measures(problem: Problem, path: RawPath) -> dict[str, np.ndarray]:
    K, labels = problem.classes, _labels(problem)
    counts = problem.count_vector
    membership = np.eye(K)[labels]
    means = path.H @ membership / counts  # (T, d, K)
    within = ((path.H - means[:, :, labels]) ** 2).sum((1, 2)) / len(labels)
    between = ((means - means.mean(2, keepdims=True)) ** 2).sum((1, 2)) / K
    z = path.W @ path.H + path.b[:, :, None]
    own = z[:, labels, np.arange(len(labels))]
    z[:, labels, np.arange(len(labels))] = -np.inf
    margin = (own - z.max(1)).min(1)
    weight_norm, feature_norm = (path.W**2).sum((1, 2)), (path.H**2).sum((1, 2))
    return {
        "nc1_ratio": within / np.maximum(between, 1e-300),
        "weight_norm": np.sqrt(weight_norm),
        "feature_norm": np.sqrt(feature_norm),
        "logit_gap": (own - z.max(1)).mean(1),
        "margin": margin / (weight_norm * feature_norm) ** 0.5,
        "imbalance_drift": _imbalance_drift(problem, path),
    }


def _imbalance_drift(problem: Problem, path: RawPath) -> np.ndarray:
    """Return |W'W - HH' - its exact course|: constant without penalty, times e^(-2 lambda t) when both lambdas are equal."""
    imbalance = path.W.transpose(0, 2, 1) @ path.W - path.H @ path.H.transpose(0, 2, 1)
    if problem.layer_lambdas[0] != problem.lambda_h:
        return np.full(len(path.t), np.nan)
    course = np.exp(-2 * problem.lambda_h * path.t)[:, None, None] * imbalance[0]
    return np.sqrt(((imbalance - course) ** 2).sum((1, 2)))


def _closed_form(problem: Problem, init: str, path: RawPath) -> tuple[np.ndarray | None, np.ndarray | None, str]:
    """Return (measured modes (T, r), their exact course, the law's name), or (None, None, '')."""
    counts, total = problem.count_vector, float(problem.count_vector.sum())
    lam_w, lam_h = problem.layer_lambdas[0], problem.lambda_h
    if init == "subspace" and lam_w == lam_h == 0:
        there = np.isfinite(path.W).all((1, 2))  # an SVD of nan is an error
        modes = np.full((len(path.t), problem.classes - 1), np.nan)
        modes[there] = np.linalg.svd(path.W[there], compute_uv=False)[:, : problem.classes - 1] ** 2
        law = np.stack([dynamics.subspace_mode(path.t, u, counts[0], total) for u in modes[0]], 1)
        return modes, np.sort(law, 1)[:, ::-1], "mixon2020"
    if init == "aligned" and problem.loss == "mse" and lam_w == lam_h:
        # The left singular vectors stay the coordinate axes, so the k-th row of W carries mode k.
        modes = (path.W**2).sum(2)
        limits = dynamics.mode_limits(counts, lam_h)
        return (
            modes,
            np.stack([dynamics.logistic(path.t, a, k, total) for a, k in zip(modes[0], limits, strict=True)], 1),
            "modes",
        )
    if init == "aligned" and problem.loss == "ce" and lam_w == lam_h == 0 and problem.bias == "none":
        z = path.W @ path.H
        gap = z[:, 0, 0] - z[:, 1, 0]
        return gap[:, None], dynamics.ray(path.t, float(gap[0]), problem.classes, counts[0])[:, None], "ji2021"
    return None, None, ""
