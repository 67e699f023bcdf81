"""Deep unconstrained-features models, many cells and seeds in one batch.

Coordinates: W_1 .. W_L and G = H_1 diag(sqrt n), one column per class, so that every penalty is lambda/2 times a sum of
squares. Exact at every optimum, because all samples of a class share their feature there (Jensen); only the
within-class dynamics are dropped. All parameters of a cell lie in one row of one (B, P) array: an optimiser step is a
handful of elementwise operations, a gradient is 2L batched products.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ufm import seeds
from ufm.errors import RequestError
from ufm.problem import Problem

# The recipe that ends at the closed forms to 1e-8: a long hot stage, then a cool one; (learning rate, steps), each with
# a cosine to zero. One stage alone leaves low-rank solutions 1e-4 above their value, because they sit on ReLU kinks.
ADAM_STAGES = ((0.02, 3000), (0.003, 2500))
BETAS, EPSILON = (0.9, 0.999), 1e-12


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
        sizes = torch.tensor(self.shape.sizes, device=device)
        self.penalty = torch.repeat_interleave(torch.cat([self.lambdas, ridge[:, None]], 1), sizes, dim=1)
        self.eye = torch.eye(self.shape.classes, dtype=torch.float64, device=device)

    def views(self, x: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
        """Return ([W_1 .. W_L], G, b) as views into the rows of x."""
        s, parts = self.shape, x.split(self.shape.sizes, dim=1)
        weights = [p.view(-1, s.dim, s.dim) for p in parts[: s.depth - 1]]
        weights.append(parts[s.depth - 1].view(-1, s.classes, s.dim))
        return weights, parts[s.depth].view(-1, s.dim, s.classes), parts[s.depth + 1]

    def value_and_gradient(self, x: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        """Return the objective (B,) and write its gradient (B, P) into `gradient`."""
        weights, features, bias = self.views(x)
        steps, feature_step, bias_step = self.views(gradient)
        hidden = [features]  # inputs of each layer
        for weight in weights[:-1]:
            state = torch.bmm(weight, hidden[-1])
            hidden.append(state.relu_() if self.shape.activation == "relu" else state)
        output = torch.bmm(weights[-1], hidden[-1])
        fit, signal = self._fit(output, bias, bias_step)
        torch.bmm(signal, hidden[-1].transpose(1, 2), out=steps[-1])
        for layer in range(self.shape.depth - 1, 0, -1):
            signal = torch.bmm(weights[layer].transpose(1, 2), signal)
            if self.shape.activation == "relu":
                signal = signal.mul_(hidden[layer] > 0)  # the derivative at a kink is 0
            torch.bmm(signal, hidden[layer - 1].transpose(1, 2), out=steps[layer - 1])
        torch.bmm(weights[0].transpose(1, 2), signal, out=feature_step)
        weighted = self.penalty * x
        gradient += weighted
        return fit + 0.5 * (weighted * x).sum(1)

    def _fit(self, output: torch.Tensor, bias: torch.Tensor, bias_step: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the data term (B,) and its gradient with respect to `output` = Z diag(sqrt n); fill the bias gradient."""
        roots = self.roots[:, None, :]
        if self.shape.loss == "mse":
            residual = (output + (bias[:, :, None] - self.eye) * roots) / self.total[:, None, None]
            fit = 0.5 * self.total * (residual**2).sum((1, 2))
        else:
            log_probability = torch.log_softmax(output / roots + bias[:, :, None], dim=1)
            fit = -(self.weight * log_probability.diagonal(dim1=1, dim2=2)).sum(1)
            residual = log_probability.exp()
            residual.diagonal(dim1=1, dim2=2).zero_()  # the own class is minus the others' sum: p - 1 loses all digits
            residual.diagonal(dim1=1, dim2=2).copy_(-residual.sum(1))
            residual = residual * roots / self.total[:, None, None]
        bias_step.copy_((residual * roots).sum(2) if self.shape.bias else torch.zeros_like(bias))
        return fit, residual


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
    """Run Adam with a cosine to zero in each stage, in place on x (B, P); return the last step's loss (B,)."""
    x.grad = torch.empty_like(x)
    loss = torch.full((len(x),), math.nan, dtype=x.dtype, device=x.device)
    for rate, steps in stages:
        # One fused kernel per step: written out, Adam's seven passes over the parameters cost more than the gradient.
        optimizer = torch.optim.Adam([x], lr=rate, betas=BETAS, eps=EPSILON, fused=True)
        for step in range(steps):
            loss = batch.value_and_gradient(x, x.grad)
            optimizer.param_groups[0]["lr"] = rate * 0.5 * (1 + math.cos(math.pi * step / steps))
            optimizer.step()
            if step % 100 == 99 and stop():
                break
    x.grad = None
    return loss


# --- batched L-BFGS: the linear models, where nothing has a kink ----------------------------------------------------

MEMORY = 20
SLOPE_DROP = 0.5  # a step is taken when the slope along it has fallen to this share of its start


def lbfgs(
    batch: Batch,
    x: torch.Tensor,
    tol: float = 1e-11,
    max_steps: int = 3000,
    stop: Callable[[], bool] = lambda: False,
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
        history = [*history[-(MEMORY - 1) :], (s, y, inverse)]
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
