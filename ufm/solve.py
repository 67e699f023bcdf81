"""Problems in, Solutions out: batches of equal kind, one loop for every solver, and the way back to W, H and b."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ufm.certify import certificates, closed
from ufm.errors import RequestError
from ufm.loop import CERTIFIED, LEFT, STALLED, STATUS, STEP_LIMIT, ZERO, Prover, at_zero, iterate, objective_of, prover, settle
from ufm.losses import supcon
from ufm.problem import Problem
from ufm.reduce import (
    columns,
    expand,
    fits,
    groups_of,
    internal_dim,
    loss_name,
    outputs_of,
    padded,
    random_start,
    rank_bound,
    reduce,
    signature,
)
from ufm.seeds import check_seed
from ufm.solution import Solution, Status
from ufm.solvers import METHODS, SOLVERS, Solver
from ufm.solvers.lbfgs import MEMORY
from ufm.solvers.moves import arrange
from ufm.solvers.objective import Objective
from ufm.solvers.revive import revive
from ufm.tables import load, resolve_target, suggest

STEPS = 5000
START = 0.5  # standard deviation of the start in balanced coordinates; zero itself is a saddle
FAR_START = 2.0  # ... of every other attempt: some optima of narrow problems are reached by no start near the saddle
NEAR_START = 0.01  # ... of a start beside zero
STARTS = 48  # attempts at a small narrow problem: one start in ten to twenty finds the best arrangement of 5 classes
SMALL = 1000  # ... with so many parameters, where a batch of attempts costs little more than one
LARGE = 5000  # parameters from which Newton's few costly steps beat many cheap ones (7 times at K = 100)
HUGE = 200_000  # ... and to which: products with a nearly singular Hessian become many (d < K, soft targets)
MANY = 150  # classes from which the curvature of every logit is worth its K x K work
SHORT = 150  # iterations after which "classwise" gives way to Newton's steps: where it serves it takes 10 to 100
CHUNK = 24 << 20  # bytes worked on at once: small enough for the outer cache, large enough to hide the cost of a call
LARGEST = 64 << 30  # bytes; a problem beyond it is a typing error on any machine this runs on
COARSE = 1e-3  # tolerance of the temperatures on the way to the one asked for


def solve(
    problem: Problem,
    *,
    method: str = "auto",
    seed: int = 0,
    steps: int | None = None,
    tol: float = 1e-10,
    lr: float | None = None,
) -> Solution:
    """Find the optimum of one problem from a random start; the arguments are those of `solve_many`.

    The start is random but where `solve_many` says otherwise: at K >= 150 (method "classwise") and on a sphere of d = 1.

    >>> s = solve(Problem(classes=4, dim=6, counts=5, lambda_w=0.01, lambda_h=0.001))
    >>> s.status.value, round(s.loss, 10), s.certificate.gap < 1e-9
    ('converged', 0.1260289434, True)
    """
    return solve_many([problem], method=method, seeds=[seed], steps=steps, tol=tol, lr=lr)[0]


def solve_many(
    problems: Sequence[Problem],
    *,
    method: str = "auto",
    seeds: Sequence[int] | int | None = None,
    steps: int | None = None,
    tol: float = 1e-10,
    lr: float | None = None,
    device: str = "cpu",
) -> list[Solution]:
    """Solve problems in batches, every one from its own start; at depth 1 a batch changes the last bits of an answer only.

    Starts are random, with two exceptions: "classwise", which "auto" takes for convex problems with K >= 150 and d >= K, starts
    at the best diagonal logits plus 1 % of noise, and "signs" (a sphere of d = 1) tries signs without a start.

    Args:
        problems: any mix of sizes, losses, biases, constraints and depths; equal kinds are solved together.
        method: "auto" (L-BFGS; projected where features are non-negative), or a name of `ufm.solvers.METHODS`. Optimum
            methods solve the reduced problem; "gd", "momentum", "adam" and "flow" move every sample from a random start.
            At depth > 1 "auto", "adam" and "lbfgs", see `ufm.solve_deep.solve_deep`.
        seeds: one root seed for all, or one per problem; the start is the stream "init" of it.
        steps: at most so many iterations; None for the method's own limit.
        tol: the scale-free gradient |grad| / (c |x|) in balanced coordinates at which a solve has converged.
        lr: the step size of the path methods.
        device: a torch device.

    Returns:
        One Solution per problem, in order; what went wrong is in `status`, never an exception.

    Raises:
        RequestError: a problem without an optimum (no penalty), or one that the method does not solve.
    """
    problems = list(problems)
    seeds = _seeds(seeds, len(problems))
    if method != "auto" and method not in METHODS:
        raise RequestError(f"unknown method {method!r}; {suggest(method, ['auto', *METHODS])}")
    if not 0 <= tol < 1:
        raise RequestError(f"tol {tol!r} is out of range; give a relative gradient in [0, 1) such as 1e-10")
    if steps is not None and steps < 1:
        raise RequestError(f"steps {steps!r} is out of range; give an integer >= 1, or None")
    if any(p.depth > 1 for p in problems):
        return _by_depth(problems, seeds, method=method, steps=steps, tol=tol, lr=lr, device=device)
    if method not in ("auto", *SOLVERS):
        return load(METHODS, method, "method")(problems, seeds, method=method, steps=steps, tol=tol, lr=lr, device=device)
    names = [method_for(p, method) for p in problems]
    out: list[Solution | None] = [None] * len(problems)
    for members in _groups(problems, names):
        if names[members[0]] not in SOLVERS:  # "signs": nothing to iterate
            whole = load(METHODS, names[members[0]], "method")
            solved = whole([problems[i] for i in members], [seeds[i] for i in members], tol=tol, device=device)
            for i, solution in zip(members, solved, strict=True):
                out[i] = solution
            continue
        for chunk in _chunks(members, problems):
            solver = load(SOLVERS, names[chunk[0]], "method")()
            run = Run(names[chunk[0]], solver, steps or STEPS, tol, device)
            solved = run.solve([problems[i] for i in chunk], [seeds[i] for i in chunk])
            for i, solution in zip(chunk, solved, strict=True):
                out[i] = solution
    return out  # type: ignore[return-value]


def _by_depth(
    problems: list[Problem], seeds: list[int], *, method: str, steps: int | None, tol: float, lr: float | None, device: str
) -> list[Solution]:
    """Solve the deep problems of a mixture by `ufm.solve_deep` and the others here."""
    from ufm.solve_deep import solve_deep

    if lr is not None:
        raise RequestError("lr is not used with depth > 1, whose methods choose their own steps; leave it out")
    deep, flat = ([i for i, p in enumerate(problems) if (p.depth > 1) == wanted] for wanted in (True, False))
    chosen = [[problems[i] for i in part] for part in (deep, flat)]
    of = [[seeds[i] for i in part] for part in (deep, flat)]
    solved = solve_deep(chosen[0], run_seeds=of[0], method=method, steps=steps, tol=tol, device=device)
    if flat:
        solved += solve_many(chosen[1], method=method, seeds=of[1], steps=steps, tol=tol, device=device)
    found = dict(zip([*deep, *flat], solved, strict=True))
    return [found[i] for i in range(len(problems))]


def _seeds(seeds: Sequence[int] | int | None, count: int) -> list[int]:
    if seeds is None or isinstance(seeds, int):
        return [check_seed(seeds or 0)] * count
    if len(seeds) != count:
        raise RequestError(f"seeds has {len(seeds)} entries but there are {count} problems; give one seed per problem")
    return [check_seed(s) for s in seeds]


def method_for(problem: Problem, method: str) -> str:
    """Return the name of the solver that `method` stands for: a depth-1 request is refused here or not at all.

    Raises:
        RequestError: the problem has no optimum, or the method does not solve it.
    """
    if problem.depth > 1:
        raise RequestError(f"depth {problem.depth} is not solved by this command; use `ufm simulate deep`, ufm.solve or depth=1")
    if problem.loss == "supcon":
        supcon.check(problem)
    if method != "auto" and method not in SOLVERS:  # these modules know best what they solve
        module = METHODS[method].target.partition(":")[0]
        resolve_target(f"{module}:check")(problem, method)
        return method
    if problem.constraint == "ridge" and problem.penalty == 0 and problem.loss != "supcon":
        raise RequestError("lambda_w * lambda_h is 0: there is no optimum to find; use positive values, or method='gd'")
    if problem.constraint == "sphere" and problem.dim == 1:
        if method != "auto":
            raise RequestError(f"method {method!r} follows gradients, and unit vectors of dim=1 are signs; use method='auto'")
        return "signs"
    nonnegative = problem.features == "nonnegative"
    if method == "auto":
        if nonnegative:
            return "projected"
        k, t, r = outputs_of(problem), columns(problem), internal_dim(problem)
        convex = problem.constraint == "ridge" and loss_name(problem) != "focal"
        if k >= MANY and classwise(problem):
            return "classwise"
        return "newton" if convex and LARGE <= (k + t) * r < HUGE else "lbfgs"  # by size alone: the batch must not matter
    if nonnegative != (method == "projected"):
        known = "projected or scipy" if nonnegative else "lbfgs, newton or scipy"
        raise RequestError(f"method {method!r} does not solve features={problem.features!r}; use auto, {known}")
    if problem.constraint != "ridge" and method == "newton":
        raise RequestError(f"method {method!r} does not solve constraint={problem.constraint!r}; use auto or lbfgs")
    if method == "classwise" and not classwise(problem):
        raise RequestError(
            "method 'classwise' solves convex ridge problems with class labels and d >= K; use auto, lbfgs or newton"
        )
    return method


def classwise(problem: Problem) -> bool:
    """Whether every class can have an axis of its own, see `ufm.solvers.classwise`."""
    plain = problem.constraint == "ridge" and problem.features == "free" and problem.targets is None
    return plain and problem.loss in ("ce", "mse", "smoothing") and problem.dim >= problem.classes


# --- batches -----------------------------------------------------------------------------------------------------


def _groups(problems: list[Problem], names: list[str]) -> list[list[int]]:
    """Return indices of problems solved together: same kind, and sizes that padding does not make much dearer."""
    groups: dict[tuple, list[int]] = {}
    for i, (p, name) in enumerate(zip(problems, names, strict=True)):
        sizes = (outputs_of(p), columns(p), internal_dim(p))
        if p.constraint == "ridge" and p.features == "free" and name != "classwise":
            sizes = padded(sizes)
        groups.setdefault((name, *signature(p), attempts(p), len(temperatures(p)), *sizes), []).append(i)
    return list(groups.values())


def _chunks(members: list[int], problems: list[Problem]) -> list[list[int]]:
    """Cut a group so that a chunk's working memory stays in cache; refuse what would not fit any memory."""
    some = [problems[i] for i in members]
    k, t, r = (max(size(p) for p in some) for size in (outputs_of, columns, internal_dim))
    need = 8 * attempts(some[0]) * ((k + t) * r * (2 * MEMORY + 8) + 10 * k * t)
    if need > LARGEST:
        raise RequestError(f"K = {k}, T = {t}, d = {r} needs about {need / 2**30:.0f} GiB; use smaller sizes")
    count = max(1, CHUNK // need)
    pieces = -(-len(members) // count)
    return [members[i::pieces] for i in range(pieces)]


def attempts(problem: Problem, wide: bool = True) -> int:
    """Return how many random starts a problem gets: more than one only where local minima exist or are not excluded."""
    dim = internal_dim(problem, wide)
    small = problem.constraint == "ridge" and (outputs_of(problem) + columns(problem)) * dim <= SMALL
    if problem.features == "nonnegative":
        if problem.loss == "supcon":
            return STARTS if problem.dim < problem.classes and columns(problem) * dim <= SMALL else 12
        return 4 if dim >= 2 * groups_of(problem) else STARTS if small else 12
    if problem.constraint == "sphere" and problem.loss != "supcon" and problem.dim < problem.classes - 1:
        return 8
    if problem.dim < rank_bound(problem):
        return STARTS if small else 4
    return 4 if loss_name(problem) == "focal" else 1


# --- one batch ---------------------------------------------------------------------------------------------------


class Run:
    """The settings of one call, applied to batches."""

    def __init__(self, name: str, solver: Solver, steps: int, tol: float, device: str) -> None:
        self.name, self.solver, self.steps, self.tol, self.device = name, solver, steps, tol, device

    def solve(self, problems: list[Problem], seeds: list[int], wide: bool = True) -> list[Solution]:
        """Return the best end point over as many attempts as it takes, for every problem of a batch: one where it is proven."""
        tries, everyone = attempts(problems[0], wide), list(range(len(problems)))
        out: list[Solution | None] = [None] * len(problems)
        left, narrow = everyone, []
        for some in (1, tries) if tries > 1 and prover(problems[0]) is not None else (tries,):
            found, unfit = self.best_of(some, [problems[i] for i in left], [seeds[i] for i in left], wide)
            for i, solution in zip(left, found, strict=True):
                out[i] = solution
            unproven = [i for i in left if not closed(out[i].certificate)]
            narrow = [i for i in narrow if i not in left] + [left[j] for j in unfit]
            left = unproven
            if not left:
                break
        if narrow:  # what was found needs more dimensions than there are
            again = self.solve([problems[i] for i in narrow], [seeds[i] for i in narrow], wide=False)
            for i, solution in zip(narrow, again, strict=True):
                out[i] = solution
        return out  # type: ignore[return-value]

    def best_of(self, tries: int, problems: list[Problem], seeds: list[int], wide: bool) -> tuple[list[Solution], list[int]]:
        """Return the best end point over `tries` attempts, and which problems it does not fit the dimension of."""
        count = len(problems)
        repeated = problems * tries
        reduced = reduce(repeated, self.device, wide)
        scales = [FAR_START if attempt % 2 else START for attempt in range(tries)]
        starts = [random_start(problems, seeds, reduced, scale, attempt) for attempt, scale in enumerate(scales)]
        objective = objective_of(repeated[0], reduced)
        x = self.cool(repeated, objective.start(torch.cat(starts)))
        # Features >= 0 whose multipliers vanish (MSE) slow the search down for ever: there the gap is asked at intervals.
        slow = problems[0].features == "nonnegative"
        if slow and tries == STARTS and problems[0].dim < groups_of(problems[0]):
            objective = objective.select(torch.arange(count, device=x.device))
            labels = [labels_of(p) for p in problems] if problems[0].loss == "supcon" else None
            x, end = arrange(objective, x, tries, self.solver, self.steps, self.tol, prover(problems[0]), labels)
            return self.improve(problems, seeds, objective, x, end, starts[0])
        owner = torch.arange(count, device=x.device).repeat(tries) if tries > 1 else None
        end = self.descend(objective, x, prover(problems[0]), slow, owner)
        x = settle(objective, end)
        values = objective.score(x).masked_fill(end["status"] == LEFT, torch.inf)
        # The lowest value wins; among values equal to rounding, a converged run.
        rank = torch.nan_to_num(values, nan=torch.inf).view(tries, count)
        close = rank <= rank.amin(0) + 1e-12 * rank.amin(0).abs()
        unfinished = (end["status"] > CERTIFIED).double().view(tries, count)
        best = torch.where(close, unfinished, 2.0).argmin(0)
        index = best * count + torch.arange(count, device=best.device)
        end, objective, x = {name: value[index] for name, value in end.items()}, objective.select(index), x[index]
        return self.improve(problems, seeds, objective, x, end, starts[0])

    def improve(
        self, problems: list[Problem], seeds: list[int], objective: Objective, x: Tensor, end: dict[str, Tensor], start: Tensor
    ) -> tuple[list[Solution], list[int]]:
        """Return the Solutions after what is known of local minima, and which problems they do not fit the dimension of."""
        if problems[0].constraint == "ridge" and loss_name(problems[0]) == "focal":
            x = self.compare_with_zero(objective, x, end, start)
        if problems[0].features == "nonnegative" and problems[0].constraint == "ridge":
            x = revive(objective, x, end, self.solver, self.steps, self.tol, prover(problems[0]))
        features = objective.factors(x)[1].cpu()
        narrow = [i for i, p in enumerate(problems) if p.features == "nonnegative" and not fits(p, features[i])]
        found = finish(problems, seeds, objective, x, end, self.name)
        for i in (end["iterations"] > SHORT).nonzero().flatten().tolist() if self.name == "classwise" else ():
            found[i] = replace(found[i], method="classwise, newton")
        return found, narrow

    def descend(
        self, objective: Objective, x: Tensor, prove: Prover | None, sublinear: bool, owner: Tensor | None
    ) -> dict[str, Tensor]:
        """Return where the solver ends; what "classwise" leaves unfinished after `SHORT` iterations Newton's steps finish."""
        if self.name != "classwise" or self.steps <= SHORT:
            return iterate(objective, self.solver, x, self.steps, self.tol, prove, sublinear, owner)
        end = iterate(objective, self.solver, x, SHORT, self.tol, prove)
        index = ((end["status"] == STEP_LIMIT) | (end["status"] == STALLED)).nonzero().squeeze(1)
        if len(index):
            newton = load(SOLVERS, "newton", "method")()
            again = iterate(objective.select(index), newton, end["x"][index], self.steps - SHORT, self.tol, prove)
            again["iterations"] += end["iterations"][index]
            for name, value in again.items():
                end[name][index] = value
        return end

    def compare_with_zero(self, objective: Objective, x: Tensor, end: dict[str, Tensor], start: Tensor) -> Tensor:
        """Return the end points, none above zero: a loss that is not convex has minima that cost more than no features at all."""
        at = at_zero(objective, x, keep=False)
        index = (~(objective.value(x) <= objective.value(at))).nonzero().squeeze(1)
        if not len(index):
            return x
        some, at, x = objective.select(index), at[index], x.clone()
        optimal = some.is_zero(at)
        end["status"][index[optimal]], end["residual"][index[optimal]] = ZERO, 0.0
        x[index] = at
        if not bool(optimal.all()):  # zero is a saddle: from beside it the way leads below it
            saddle = index[~optimal]
            objective, beside = objective.select(saddle), at[~optimal]
            beside = beside + NEAR_START * objective.start(start[saddle])
            again = iterate(objective, self.solver, beside, self.steps, self.tol)
            x[saddle] = settle(objective, again)
            for name in ("residual", "iterations", "status"):
                end[name][saddle] = again[name]
        return x

    def cool(self, problems: list[Problem], x: Tensor) -> Tensor:
        """Lead points on the sphere to their temperature by halving it from 1, where the landscape is benign."""
        first = problems[0]
        if first.constraint != "sphere" or (first.loss == "supcon" and attempts(first) == STARTS):
            return x  # at high temperature all samples of this loss go to the axes, and no later one takes them away
        for stage in zip(*(temperatures(p) for p in problems), strict=True):
            warm = [p.replace(temperature=at) for p, at in zip(problems, stage, strict=True)]
            objective = objective_of(warm[0], reduce(warm, self.device))
            x = iterate(objective, self.solver, x, 200, COARSE)["x"]
        return x


def labels_of(problem: Problem) -> Tensor:
    """Return the class of every sample, (N,)."""
    return torch.repeat_interleave(torch.arange(problem.classes), torch.as_tensor(problem.count_vector).long())


def temperatures(problem: Problem) -> list[float]:
    """Return the temperatures on the way to the problem's own: 1, 1/2, 1/4, ... while they are well above it."""
    way, at = [], 1.0
    while problem.constraint == "sphere" and at > 1.5 * problem.temperature:
        way.append(at)
        at /= 2
    return way


# --- the way back ------------------------------------------------------------------------------------------------


def finish(
    problems: list[Problem], seeds: list[int], objective: Objective, x: Tensor, end: dict[str, Tensor], method: str
) -> list[Solution]:
    """Return the Solutions of a batch: values and certificates batched, W, H and b at every problem's own d."""
    values = objective.value(x)
    factors = objective.factors(x)
    proofs = certificates(problems, objective.reduced, objective.logits(x), values, factors)
    u, v, b = (None if part is None else part.cpu() for part in factors)
    codes, iterations, residuals, values = (t.tolist() for t in (end["status"], end["iterations"], end["residual"], values))
    out = []
    for i, (problem, seed) in enumerate(zip(problems, seeds, strict=True)):
        k, t, r = (int(s) for s in objective.reduced.sizes[i])
        bias = None if b is None else b[i, :k]
        status = STATUS[codes[i]]
        if status is Status.ZERO and not closed(proofs[i]):  # the first-order test proves it for convex losses only
            status = Status.AT_ZERO
        parts = expand(problem, u[i, :k, :r], v[i, :t, :r], bias)
        out.append(
            Solution(
                problem=problem,
                loss=values[i],
                status=status,
                iterations=iterations[i],
                gradient_norm=residuals[i],
                method=method,
                seed=seed,
                certificate=proofs[i],
                **parts,
            )
        )
    return out
