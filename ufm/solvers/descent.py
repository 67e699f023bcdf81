"""Paths: gradient descent, momentum, Adam and gradient flow on all samples, in raw coordinates, for a batch of problems.

    W' = -grad_W f,  H' = -grad_H f (one column per sample),  b' = -grad_b f

Exact reductions of the path, for all but Adam (which is tied to coordinates):
- rows: everything stays in the span of [W(0)', H(0)], so that d falls to min(d, K + columns);
- columns, plain MSE: rotating the samples of a class gives K class columns sqrt(n_k) h_k and a remainder with zero targets
  whose right singular directions never change, min(d, N - K) columns of it;
- columns, any loss from a start that is equal within classes: the T class columns sqrt(n_t) h_t alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ufm.certify import certificates
from ufm.errors import RequestError
from ufm.losses.protocol import Targets
from ufm.problem import Problem
from ufm.reduce import Reduced, loss_of, reduce, sample_weights
from ufm.seeds import stream
from ufm.solution import Solution, Status
from ufm.solvers.products import threads_of_torch
from ufm.solvers.runge_kutta import integrate
from ufm.solvers.walk import System, Walk

STEPS = 10_000
END = 1000.0  # time of a flow when `steps` does not say another
RATES = {"gd": 0.1, "momentum": 0.1, "adam": 0.01, "flow": 1.0}
EVERY = 100  # steps between two looks at the gradient norm
CHUNK = 1 << 21  # bytes of one batch's matrices: more leave the cache, fewer do not pay for the calls of a step


@dataclass(frozen=True)
class Columns:
    """How the N features of a problem are kept: (d, C) = rows' H' columns, and what each kept column stands for."""

    lift: np.ndarray  # (r, d): H = lift' X columns', W = U lift
    back: np.ndarray | None  # (N, C); None for the identity
    kept: np.ndarray  # (C,) index of the column's target, -1 for a zero-target column
    share: np.ndarray  # (C,) the number of samples a column stands for


@dataclass(frozen=True)
class Path:
    """Snapshots of one problem: steps (S,), W (S, K, d), H (S, N, d) one row per sample, b (S, K), float64 numpy."""

    steps: np.ndarray
    W: np.ndarray
    H: np.ndarray
    b: np.ndarray


def start(problem: Problem, seed: int, equal: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return W (K, d) and H (d, N), entries of variance 1/d from the stream "init"; `equal` repeats one feature per target."""
    rng, counts = stream(seed, "init"), problem.count_vector.astype(int)
    scale = problem.dim**-0.5
    weight = scale * rng.standard_normal((problem.classes, problem.dim))
    if equal:
        return weight, np.repeat(scale * rng.standard_normal((problem.dim, len(counts))), counts, 1)
    return weight, scale * rng.standard_normal((problem.dim, counts.sum()))


def reduce_path(problem: Problem, weight: np.ndarray, features: np.ndarray, equal: bool, exact: bool) -> Columns:
    """Return the columns and rows that a path needs; `exact` False keeps every coordinate (Adam)."""
    counts = problem.count_vector.astype(int)
    labels, total, groups = np.repeat(np.arange(len(counts)), counts), int(counts.sum()), len(counts)
    kept, share, back = labels, np.ones(total), None
    plain = problem.logit_scale is None and problem.logit_offset is None and problem.class_weights is None
    if exact and (equal or (problem.loss == "mse" and plain)):
        back = np.zeros((total, groups))
        back[np.arange(total), labels] = counts[labels] ** -0.5
        kept, share = np.arange(groups), counts.astype(float)
        rest = features - (features @ back) @ back.T
        if not equal and total > groups:
            # beyond the rank of the remainder singular vectors are arbitrary and must not carry anything
            _, size, right = np.linalg.svd(rest, full_matrices=False)
            right = right[size > 1e-14 * np.linalg.norm(features)]
            back = np.hstack([back, right.T])
            kept, share = np.append(kept, np.full(len(right), -1)), np.append(share, np.ones(len(right)))
    lift = np.eye(problem.dim)
    if exact and problem.dim > problem.classes + len(kept):
        columns = features if back is None else features @ back
        lift = np.linalg.qr(np.hstack([weight.T, columns]))[0].T
    return Columns(lift, back, kept, share)


def solve_paths(
    problems: Sequence[Problem],
    seeds: Sequence[int],
    *,
    method: str,
    steps: int | None = None,
    tol: float = 1e-10,
    lr: float | None = None,
    device: str = "cpu",
    equal: bool = False,
) -> list[Solution]:
    """Follow every problem from its random start until its relative gradient is at most `tol` or `steps` are done.

    Args:
        problems: depth 1, constraint "ridge", any loss of logits; lambdas may be 0.
        seeds: one per problem.
        method: "gd", "momentum", "adam" or "flow"; the flow takes `steps` as its end time.
        lr: step size; `RATES` when None.
        equal: start with one feature per target (H of variance 1/d all the same).
    """
    return [end for end, _ in follow(problems, seeds, method=method, steps=steps, tol=tol, lr=lr, device=device, equal=equal)]


def follow(
    problems: Sequence[Problem],
    seeds: Sequence[int],
    *,
    method: str,
    steps: int | None = None,
    tol: float = 1e-10,
    lr: float | None = None,
    device: str = "cpu",
    equal: bool = False,
    at: Sequence[int] = (),
) -> list[tuple[Solution, Path]]:
    """Return the end point and the snapshots at the steps `at` (times, for the flow) of every problem; see `solve_paths`."""
    lr = RATES[method] if lr is None else lr
    if not 0 < lr < float("inf"):
        raise RequestError(f"lr {lr!r} is out of range; give a positive step size such as {RATES[method]}")
    groups: dict[tuple, list[int]] = {}
    prepared = []
    for i, (p, seed) in enumerate(zip(problems, seeds, strict=True)):
        check(p, method)
        weight, features = start(p, seed, equal)
        if p.features == "nonnegative":
            features = np.abs(features)
        columns = reduce_path(p, weight, features, equal, exact=method != "adam" and p.features == "free")
        prepared.append((weight, features, columns))
        shape = (len(columns.kept), len(columns.lift), tuple(columns.kept < 0))
        groups.setdefault((p.loss, p.bias != "none", p.features, p.targets is None, p.classes, *shape), []).append(i)
    out: list[tuple[Solution, Path] | None] = [None] * len(problems)
    for members in groups.values():
        kept, rows = len(prepared[members[0]][2].kept), len(prepared[members[0]][2].lift)
        size = 8 * (problems[members[0]].classes * (3 * rows + 2 * kept) + 3 * rows * kept)
        count = max(1, CHUNK // size)
        for chunk in (members[j : j + count] for j in range(0, len(members), count)):
            batch = Batch([problems[i] for i in chunk], [seeds[i] for i in chunk], [prepared[i] for i in chunk], device)
            for i, result in zip(chunk, batch.run(method, steps, tol, lr, at), strict=True):
                out[i] = result
    return out  # type: ignore[return-value]


def check(problem: Problem, method: str) -> None:
    """Raise RequestError for a problem whose path is not followed."""
    if problem.depth > 1 or problem.constraint != "ridge" or problem.loss == "supcon":
        raise RequestError(f"method {method!r} follows ridge problems of depth 1; use method='auto' for this one")
    if problem.features == "nonnegative" and method == "flow":
        raise RequestError("method 'flow' needs features='free'; use gd, momentum or adam with nonnegative features")


class Batch:
    """Problems of one shape with their starts."""

    def __init__(self, problems: list[Problem], seeds: list[int], prepared: list, device: str) -> None:
        self.problems, self.seeds, self.device = problems, seeds, device
        self.columns = [c for _, _, c in prepared]
        self.system = System(problems, self.columns, device)

        def stack(arrays: list[np.ndarray]) -> Tensor:
            return torch.as_tensor(np.stack(arrays), device=device)

        kept = [(w @ c.lift.T, c.lift @ (h if c.back is None else h @ c.back)) for w, h, c in prepared]
        self.parts = [stack([w for w, _ in kept]), stack([h for _, h in kept])]
        self.parts.append(self.parts[0].new_zeros(len(problems), problems[0].classes, 1))

    def run(self, method: str, steps: int | None, tol: float, lr: float, at: Sequence[int]) -> list[tuple[Solution, Path]]:
        """Return Solutions and snapshots."""
        # a path may be on its way to infinity: its status says so
        with np.errstate(over="ignore", invalid="ignore"), threads_of_torch():
            if method == "flow":
                end, shots = self._flow(float(steps or END), tol, at)
            else:
                end, shots = self._walk(method, steps or STEPS, tol, lr, sorted(set(at)))
        return [(self._solution(i, method, end), self._path(i, at, shots)) for i in range(len(self.problems))]

    def _walk(self, method: str, steps: int, tol: float, lr: float, at: list[int]) -> tuple[dict, list[list[Tensor]]]:
        count, slots = len(self.problems), {step: slot for slot, step in enumerate(at)}
        end = {
            "parts": [t.clone() for t in self.parts],
            "residual": self.parts[0].new_full((count,), torch.inf),
            "iterations": torch.full((count,), steps, dtype=torch.long),
            "status": [Status.STEP_LIMIT] * count,
        }
        active, now = torch.arange(count, device=self.parts[0].device), Walk(method, self.system, self.parts, lr)
        shots = [[t.clone() for t in self.parts] for _ in at]
        for k in range(steps + 1):
            if k in slots:
                for whole, part in zip(shots[slots[k]], now.parts, strict=True):
                    whole[active] = part
            if k % EVERY == 0 or k == steps:
                residual = now.system.relative(*now.parts)
                end["residual"][active] = residual
                done = (residual <= tol) | ~torch.isfinite(residual)
                if bool(done.any()) or k == steps:
                    for whole, part in zip(end["parts"], now.parts, strict=True):
                        whole[active] = part
                    for i in active[done].tolist():
                        end["status"][i] = Status.CONVERGED if end["residual"][i] <= tol else Status.DIVERGED
                        end["iterations"][i] = k
                    going = (~done).nonzero().squeeze(1)
                    for shot, step in zip(shots, at, strict=True):  # a finished problem stays where it is
                        if step > k:
                            for whole, part in zip(shot, now.parts, strict=True):
                                whole[active[done]] = part[done]
                    if not len(going):
                        break
                    active, now = active[going], now.select(going)
            if k < steps:
                now.step()
        return end, shots

    def _flow(self, time: float, tol: float, at: Sequence[float]) -> tuple[dict, list[list[Tensor]]]:
        sizes = [t[0].numel() for t in self.parts]
        shapes = [t.shape[1:] for t in self.parts]

        def split(flat: Tensor) -> list[Tensor]:
            return [p.unflatten(-1, s) for p, s in zip(flat.split(sizes, -1), shapes, strict=True)]

        def velocity(flat: Tensor, cells: Tensor) -> Tensor:
            gu, gx, gb = self.system.select(cells).gradient(*split(flat))
            gb = flat.new_zeros(len(flat), sizes[2]) if gb is None else gb.flatten(1)
            return -torch.cat([gu.flatten(1), gx.flatten(1), gb], 1)

        x = torch.cat([t.flatten(1) for t in self.parts], 1)
        times = torch.tensor(sorted({0.0, time, *map(float, at)}), dtype=x.dtype, device=x.device)
        path = integrate(velocity, x, times.expand(len(x), -1).contiguous(), rtol=1e-8, atol=1e-10)
        parts = [t.contiguous() for t in split(path.states[:, -1])]
        residual = self.system.relative(*parts)
        status = [
            Status.CONVERGED if r <= tol else Status.STEP_LIMIT if np.isfinite(r) else Status.DIVERGED for r in residual.tolist()
        ]
        end = {"parts": parts, "residual": residual, "iterations": path.evaluations, "status": status}
        wanted = [int((times == float(a)).nonzero()[0, 0]) for a in at]
        return end, [[t.contiguous() for t in split(path.states[:, j])] for j in wanted]

    def _raw(self, i: int, parts: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Return W (K, d), the features (N, d) and b (K,) of one problem."""
        columns, (u, x, b) = self.columns[i], (t[i].cpu() for t in parts)
        lift = torch.as_tensor(columns.lift)
        features = x if columns.back is None else x @ torch.as_tensor(columns.back).T
        return u @ lift, features.T @ lift, b.squeeze(1)

    def _path(self, i: int, at: Sequence[int], shots: list[list[Tensor]]) -> Path:
        raw = [self._raw(i, shot) for shot in shots]
        empty = self._raw(i, self.parts)
        arrays = (np.stack([r[j].numpy() for r in raw]) if raw else np.zeros((0, *empty[j].shape)) for j in range(3))
        return Path(np.array(sorted(set(at))), *arrays)

    def _solution(self, i: int, method: str, end: dict) -> Solution:
        problem = self.problems[i]
        weight, features, b = self._raw(i, end["parts"])
        value = objective_value(problem, weight, features, b)
        means = class_means(problem, features)
        if problem.bias == "free" and problem.loss != "mse" and problem.logit_scale is None:
            b = b - b.mean()
        status = end["status"][i] if np.isfinite(value) else Status.DIVERGED
        return Solution(
            problem=problem,
            W=weight,
            H=means,
            b=b,
            loss=value,
            logits=means @ weight.T + b,
            status=status,
            iterations=int(end["iterations"][i]),
            gradient_norm=float(end["residual"][i]),
            method=method,
            seed=self.seeds[i],
            certificate=_certificate(problem, means @ weight.T + b, value) if status is not Status.DIVERGED else None,
            features=features,
        )


def class_means(problem: Problem, features: Tensor) -> Tensor:
    """Return the means (T, d) of features (N, d) sorted by target."""
    counts = torch.as_tensor(problem.count_vector)
    labels = torch.repeat_interleave(torch.arange(len(counts)), counts.long())
    means = torch.zeros(len(counts), features.shape[1], dtype=features.dtype).index_add_(0, labels, features)
    return means / counts[:, None]


def objective_value(problem: Problem, weight: Tensor, features: Tensor, b: Tensor) -> float:
    """Return f of all samples, sorted by target; by the definition, with no reduction."""
    counts = problem.count_vector.astype(int)
    labels, loss = np.repeat(np.arange(len(counts)), counts), loss_of(problem.loss)
    rows = torch.as_tensor(loss.rows(problem)[labels].T)[None]
    z = (features @ weight.T + b).T[None]
    if problem.logit_scale is not None:
        z = z * torch.as_tensor(problem.logit_scale)[:, None]
    if problem.logit_offset is not None:
        z = z + torch.as_tensor(problem.logit_offset)[:, None]
    gamma = torch.tensor([[problem.focal_gamma]], dtype=z.dtype) if problem.loss == "focal" else None
    targets = Targets(rows, rows.sum(1, keepdim=True), rows.argmax(1, keepdim=True), False, False, gamma)
    weights = np.broadcast_to(sample_weights(problem), counts.shape)[labels] / problem.total
    data = float(loss.value(z, targets)[0] @ torch.as_tensor(weights.copy()))
    penalty = problem.layer_lambdas[0] * float(weight.square().sum()) + problem.lambda_h * float(features.square().sum())
    return data + 0.5 * (penalty + problem.lambda_b * float(b.square().sum()))


def _certificate(problem: Problem, logits: Tensor, value: float):
    """Return the duality bound at the logits of the class means: valid for any point, whatever the features did."""
    if problem.penalty == 0:
        return None
    reduced: Reduced = reduce([problem])
    z = logits.T[None].clone()
    if reduced.logit_scale is not None:
        z *= reduced.logit_scale
    if reduced.offset is not None:
        z += reduced.offset
    return certificates([problem], reduced, z, torch.tensor([value], dtype=z.dtype), (z, z, None))[0]
