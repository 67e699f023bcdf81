"""Deep unconstrained-features models, many cells and seeds in one batch.

Coordinates: W_1 .. W_L and G = H_1 diag(sqrt n), one column per class, so that every penalty is lambda/2 times a sum of
squares. Exact at every optimum, because all samples of a class share their feature there (Jensen); only the
within-class dynamics are dropped. All parameters of a cell lie in one row of one (B, P) array: an optimiser step is a
handful of elementwise operations, a gradient is 2L batched products.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from ufm import seeds
from ufm.errors import RequestError
from ufm.problem import Problem

# The recipe that ends at the closed forms to 1e-8: a long hot stage, then a cool one; (learning rate, steps), each with
# a cosine to zero. One stage alone leaves low-rank solutions 1e-4 above their value, because they sit on ReLU kinks.
ADAM_STAGES = ((0.02, 3000), (0.003, 2500))
BETAS, EPSILON = (0.9, 0.999), 1e-12


Parts = tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]  # [W_1 .. W_L], G, b of B cells


@dataclass(frozen=True)
class Shape:
    """What all cells of a batch share."""

    classes: int
    dim: int
    depth: int
    activation: str
    loss: str
    bias: bool

    @property
    def sizes(self) -> list[int]:
        """Entries of W_1 .. W_L, G and b in a cell's row."""
        square = self.dim * self.dim
        return [square] * (self.depth - 1) + [self.classes * self.dim, self.dim * self.classes, self.classes]


class Batch:
    """The objective of B deep problems of one shape: value and gradient of a (B, P) array of parameters."""

    def __init__(self, problems: Sequence[Problem], device: str | torch.device = "cpu") -> None:
        first = problems[0]
        self.shape = Shape(first.classes, first.dim, first.depth, first.activation, first.loss, first.bias != "none")
        for problem in problems:
            check(problem)
            if (problem.classes, problem.dim, problem.depth) != (first.classes, first.dim, first.depth):
                raise RequestError("problems of one batch must share classes, dim and depth; call once per shape")
            if (problem.activation, problem.loss, problem.bias) != (first.activation, first.loss, first.bias):
                raise RequestError("problems of one batch must share activation, loss and bias; call once per setting")
        counts = torch.tensor(np.stack([p.count_vector for p in problems]), dtype=torch.float64, device=device)
        self.total, self.roots = counts.sum(1), counts.sqrt()
        self.weight = counts / self.total[:, None]  # n_k/N
        rates = [[*p.layer_lambdas, p.lambda_h] for p in problems]
        self.lambdas = torch.tensor(rates, dtype=torch.float64, device=device)  # (B, L+1): W_1 .. W_L, G
        ridge = torch.tensor([p.lambda_b for p in problems], dtype=torch.float64, device=device)
        self.penalty = self._spread(torch.cat([self.lambdas, ridge[:, None]], 1))
        self.eye = torch.eye(self.shape.classes, dtype=torch.float64, device=device)
        self.target = self.eye * self.roots[:, None, :]  # Y diag(sqrt n)

    def _spread(self, rates: torch.Tensor) -> torch.Tensor:
        """Return the rate of every entry (B, P) from those of W_1 .. W_L, G, b (B, L+2)."""
        return torch.repeat_interleave(rates, torch.tensor(self.shape.sizes, device=rates.device), dim=1)

    def narrow(self, dim: int) -> Batch:
        """Return the same problems with layers of width `dim`."""
        part = copy.copy(self)
        part.shape = replace(self.shape, dim=dim)
        part.penalty = part._spread(torch.cat([self.lambdas, self.penalty[:, -1:]], 1))
        return part

    def take(self, cells: torch.Tensor) -> Batch:
        """Return the batch of some cells (indices or mask), copied."""
        part = copy.copy(self)
        for name in ("total", "roots", "weight", "lambdas", "penalty", "target"):
            setattr(part, name, getattr(self, name)[cells])
        return part

    def views(self, x: torch.Tensor) -> Parts:
        """Return ([W_1 .. W_L], G, b) as views into the rows of x."""
        s, parts = self.shape, x.split(self.shape.sizes, dim=1)
        weights = [p.view(-1, s.dim, s.dim) for p in parts[: s.depth - 1]]
        weights.append(parts[s.depth - 1].view(-1, s.classes, s.dim))
        return weights, parts[s.depth].view(-1, s.dim, s.classes), parts[s.depth + 1]

    def value_and_gradient(self, x: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        """Return the objective (B,) and write its gradient (B, P) into `gradient`."""
        output = self.data_gradient(self.views(x), self.views(gradient))
        weighted = self.penalty * x
        gradient += weighted
        return self.data_term(output, self.views(x)[2]) + 0.5 * (weighted * x).sum(1)

    def value(self, x: torch.Tensor) -> torch.Tensor:
        """Return the objective (B,)."""
        weights, state, bias = self.views(x)
        for weight in weights[:-1]:
            state = torch.bmm(weight, state)
            state = state.relu_() if self.shape.activation == "relu" else state
        return self.data_term(torch.bmm(weights[-1], state), bias) + 0.5 * (self.penalty * x * x).sum(1)

    def data_gradient(self, point: Parts, steps: Parts) -> torch.Tensor:
        """Write the data term's gradient at ([W_1 .. W_L], G, b) into like-shaped `steps`; return the output Z diag(sqrt n)."""
        (weights, features, bias), (weight_steps, feature_step, bias_step) = point, steps
        relu = self.shape.activation == "relu"
        hidden = [features]  # inputs of each layer
        for weight in weights[:-1]:
            state = torch.bmm(weight, hidden[-1])
            hidden.append(state.relu_() if relu else state)
        output = torch.bmm(weights[-1], hidden[-1])
        signal = self.data_signal(output, bias, bias_step)
        torch.bmm(signal, hidden[-1].transpose(1, 2), out=weight_steps[-1])
        for layer in range(self.shape.depth - 1, 0, -1):
            signal = torch.bmm(weights[layer].transpose(1, 2), signal)
            if relu:
                # One kernel for signal * (hidden > 0): the derivative at a kink is 0.
                signal = torch.ops.aten.threshold_backward(signal, hidden[layer], 0)
            torch.bmm(signal, hidden[layer - 1].transpose(1, 2), out=weight_steps[layer - 1])
        torch.bmm(weights[0].transpose(1, 2), signal, out=feature_step)
        return output

    def data_signal(self, output: torch.Tensor, bias: torch.Tensor, bias_step: torch.Tensor) -> torch.Tensor:
        """Return the data term's gradient with respect to `output`, (B, K, K); fill the bias gradient."""
        residual = self._residual(output, bias)
        if self.shape.bias:
            torch.sum(residual * self.roots[:, None, :], 2, out=bias_step)
        else:
            bias_step.zero_()
        return residual

    def data_term(self, output: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """Return the data term (B,) at an output."""
        if self.shape.loss == "mse":
            return 0.5 * self.total * (self._residual(output, bias) ** 2).sum((1, 2))
        log_probability = torch.log_softmax(output / self.roots[:, None, :] + bias[:, :, None], dim=1)
        return -(self.weight * log_probability.diagonal(dim1=1, dim2=2)).sum(1)

    def _residual(self, output: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        roots, total = self.roots[:, None, :], self.total[:, None, None]
        if self.shape.loss == "mse":
            target = (self.eye - bias[:, :, None]) * roots if self.shape.bias else self.target
            return (output - target).div_(total)
        residual = torch.log_softmax(output / roots + bias[:, :, None], dim=1).exp_()
        residual.diagonal(dim1=1, dim2=2).zero_()  # the own class is minus the others' sum: p - 1 loses all digits
        residual.diagonal(dim1=1, dim2=2).copy_(-residual.sum(1))
        return residual.mul_(roots).div_(total)


def check(problem: Problem) -> None:
    """Refuse a problem the deep model does not cover, in one line."""
    if problem.loss not in ("mse", "ce"):
        raise RequestError(f"loss {problem.loss!r} is not available with depth > 1; use ce or mse")
    if problem.targets is not None or problem.constraint != "ridge" or problem.features != "free":
        raise RequestError(
            "depth > 1 takes one-hot labels, ridge penalties and free features; drop targets, constraint, features"
        )
    if problem.logit_scale or problem.logit_offset or problem.class_weights:
        raise RequestError("depth > 1 takes no logit adjustment or class weights; drop them")
    if min(*problem.layer_lambdas, problem.lambda_h) <= 0:
        raise RequestError("a deep optimum needs every weight decay > 0; give lambda_w and lambda_h > 0")


def start(batch: Batch, run_seeds: Sequence[int], init_scale: float) -> torch.Tensor:
    """Return random parameters (B, P): G ~ N(0, 1/d), weights ~ N(0, init_scale^2/d), b = 0."""
    s, rows = batch.shape, []
    for seed in run_seeds:
        draw = seeds.stream(seed, "deep-init").standard_normal(sum(s.sizes))
        draw[: sum(s.sizes[: s.depth])] *= init_scale
        draw[-s.classes :] = 0
        rows.append(draw / math.sqrt(s.dim))
    return torch.tensor(np.stack(rows), dtype=torch.float64, device=batch.roots.device)


def adam(
    batch: Batch,
    x: torch.Tensor,
    stages: Sequence[tuple[float, int]] = ADAM_STAGES,
    stop: Callable[[], bool] = lambda: False,
) -> torch.Tensor:
    """Run Adam with a cosine to zero in each stage, in place on x (B, P); return the loss at the end (B,).

    The parameters are kept layer by layer here, not cell by cell: products written into a strided view cost half as much again.
    """
    from torch.optim.adam import adam as fused_step  # the function: the class imports the compiler, which takes a second

    layers, columns = _blocks(batch, x), _blocks(batch, batch.penalty.expand_as(x))
    point, decay = _parts(batch, layers), columns
    gradient, weighted = torch.zeros_like(layers), torch.empty_like(layers)
    steps = _parts(batch, gradient)
    for rate, count in stages:
        moments, clock = (torch.zeros_like(layers), torch.zeros_like(layers)), torch.zeros((), device=x.device)
        for step in range(count):
            batch.data_gradient(point, steps)
            gradient.add_(torch.mul(decay, layers, out=weighted))
            # One fused kernel per step: written out, Adam's seven passes over the parameters cost more than the gradient.
            fused_step(
                [layers], [gradient], [moments[0]], [moments[1]], [], [clock],
                fused=True, amsgrad=False, beta1=BETAS[0], beta2=BETAS[1], eps=EPSILON, weight_decay=0.0, maximize=False,
                lr=rate * 0.5 * (1 + math.cos(math.pi * step / count)),
            )  # fmt: skip
            if step % 100 == 99 and stop():
                break
    for mine, moved in zip(_flat(batch.views(x)), _flat(point), strict=True):
        mine.copy_(moved)
    return batch.value(x)


def _blocks(batch: Batch, x: torch.Tensor) -> torch.Tensor:
    """Return the entries of x (B, P) as one flat array, all cells of W_1 first, then of W_2, ..."""
    return torch.cat([part.reshape(-1) for part in x.split(batch.shape.sizes, dim=1)])


def _parts(batch: Batch, flat: torch.Tensor) -> Parts:
    """Return ([W_1 .. W_L], G, b) as contiguous views of `_blocks`."""
    s, cells = batch.shape, len(batch.total)
    shapes = [(s.dim, s.dim)] * (s.depth - 1) + [(s.classes, s.dim), (s.dim, s.classes), (s.classes,)]
    *weights, features, bias = (
        part.view(cells, *shape) for part, shape in zip(flat.split([cells * n for n in s.sizes]), shapes, strict=True)
    )
    return weights, features, bias


def _flat(parts: Parts) -> list[torch.Tensor]:
    return [*parts[0], parts[1], parts[2]]


# --- batched L-BFGS: the linear models, where nothing has a kink ----------------------------------------------------

MEMORY = 20
SLOPE_DROP = 0.5  # a step is taken when the slope along it has fallen to this share of its start


def lbfgs(
    batch: Batch,
    x: torch.Tensor,
    tol: float = 1e-11,
    max_steps: int = 3000,
    stop: Callable[[], bool] = lambda: False,
    memory: int = MEMORY,
) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Minimise from x (B, P), in place; return (loss (B,), relative gradient (B,), steps).

    The line search looks at slopes only: near the optimum values differ by less than their rounding, slopes do not.
    """
    gradient = torch.empty_like(x)
    loss = batch.value_and_gradient(x, gradient)
    history: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
    steps = 0
    for steps in range(1, max_steps + 1):
        done = relative_gradient(batch, x, gradient) <= tol
        if bool(done.all()) or (steps % 20 == 0 and stop()):
            break
        direction = _two_loop(gradient, history)
        slope = (direction * gradient).sum(1)
        ascending = ~(slope < 0)
        direction[ascending] = -gradient[ascending]
        direction[done] = 0  # a finished cell stays where it is
        first = 1 / gradient.norm(dim=1).clamp_min(1.0) if not history else torch.ones_like(loss)
        moved, new_loss, new_gradient = _line_search(batch, x, loss, gradient, direction, first)
        s, y = moved - x, new_gradient - gradient
        curvature = (s * y).sum(1)
        # A pair without curvature (a cell that is done, or a failed search) gets weight 0 and drops out of the recursion.
        inverse = torch.where(curvature > 0, 1 / curvature.clamp_min(1e-300), torch.zeros_like(curvature))
        history = [*history[-(memory - 1) :], (s, y, inverse)]
        x.copy_(moved)
        loss, gradient = new_loss, new_gradient
        if not bool((s != 0).any()):
            break
    return loss, relative_gradient(batch, x, gradient), steps


def relative_gradient(batch: Batch, x: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """Return |grad| / |lambda x|, the scale-free residual; at x ~ 0 it is taken against |lambda| instead."""
    scale = (batch.penalty * x).norm(dim=1)
    return gradient.norm(dim=1) / torch.maximum(scale, 1e-3 * batch.penalty.amax(1))


def _two_loop(gradient: torch.Tensor, history: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    q, alphas = gradient.clone(), []
    for s, y, inverse in reversed(history):
        alphas.append(inverse * (s * q).sum(1))
        q.addcmul_(alphas[-1][:, None], y, value=-1)
    if history:
        s, y, inverse = history[-1]
        scale = torch.where(inverse > 0, (s * y).sum(1) / (y * y).sum(1).clamp_min(1e-300), torch.ones_like(inverse))
        q.mul_(scale[:, None])
    for (s, y, inverse), alpha in zip(history, reversed(alphas), strict=True):
        q.addcmul_((alpha - inverse * (y * q).sum(1))[:, None], s)
    return q.neg_()


def _line_search(
    batch: Batch, x: torch.Tensor, loss: torch.Tensor, gradient: torch.Tensor, direction: torch.Tensor, step: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return (point, loss, gradient) after a bracketing secant search on the slope, all cells at once."""
    start_slope = (gradient * direction).sum(1)
    low, low_slope = torch.zeros_like(step), start_slope.clone()
    high, high_slope = torch.full_like(step, math.inf), torch.zeros_like(step)
    best, best_loss, best_gradient = x.clone(), loss.clone(), gradient.clone()
    open_cells = start_slope < 0
    trial_gradient = torch.empty_like(x)
    for _ in range(25):
        trial = torch.addcmul(x, step[:, None], direction)
        trial_loss = batch.value_and_gradient(trial, trial_gradient)
        slope = (trial_gradient * direction).sum(1)
        sane = torch.isfinite(trial_loss) & (trial_loss <= loss + 1e-12 * loss.abs())
        taken = open_cells & sane & (slope.abs() <= SLOPE_DROP * start_slope.abs())
        best[taken], best_loss[taken], best_gradient[taken] = trial[taken], trial_loss[taken], trial_gradient[taken]
        open_cells = open_cells & ~taken
        if not bool(open_cells.any()):
            break
        rising = ~sane | (slope > 0)
        high, high_slope = torch.where(rising, step, high), torch.where(rising, slope, high_slope)
        low, low_slope = torch.where(rising, low, step), torch.where(rising, low_slope, slope)
        share = (-low_slope / (high_slope - low_slope)).nan_to_num(0.5).clamp(0.1, 0.9)
        share = torch.where(high_slope > 0, share, torch.full_like(share, 0.3))  # the value rose although the slope had not
        step = torch.where(torch.isinf(high), 2 * step.clamp_min(1e-300), low + share * (high - low))
    return best, best_loss, best_gradient
