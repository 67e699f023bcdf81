"""`Solution`, its `Status` and its `Certificate`: what a solver returns."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ufm.problem import Problem

if TYPE_CHECKING:
    import torch


class Status(str, enum.Enum):
    """How a solve ended; the value is the sentence printed. Failure is a value, not an exception, inside a sweep."""

    CONVERGED = "converged"
    ZERO = "the zero solution is optimal here"
    AT_ZERO = "ended at the zero solution: not proven optimal here"
    PLATEAU = "on a plateau: the loss no longer falls, the subgradient is not zero"
    CERTIFIED = "converged: the duality gap is closed, the gradient is at its rounding error or slow"
    ARRIVED = "reached its last time"
    STEP_LIMIT = "stopped at the step limit"
    STALLED = "stopped: no further decrease at this precision"
    DIVERGED = "diverged: the loss became non-finite"
    DRIFTED = "diverged: the path left its manifold"
    FAILED = "failed: the worker was lost"

    @property
    def ok(self) -> bool:
        """Whether the end point may be compared with a prediction."""
        return self in (
            *(Status.CONVERGED, Status.ZERO, Status.AT_ZERO, Status.PLATEAU, Status.CERTIFIED),
            Status.ARRIVED,
        )


@dataclass(frozen=True)
class Certificate:
    """A bound on the distance to the global optimum: f - f* <= gap (convex duality, theory of nuclear norms)."""

    gap: float  # nan when no bound exists
    relative: float  # gap / |f|
    dual_norm: float  # sigma / c: 1 at a non-zero optimum, <= 1 at zero
    valid: bool  # whether the bound is a theorem here
    reason: str  # a sentence: what is certified, or why nothing is


@dataclass(frozen=True, eq=False)
class Solution:
    """The end point of a solver on one problem; tensors are float64.

    W: (K, d); H: (T, d) class (or distinct-target) means; b: (K,); logits: (T, K) = H W^T + b, row = class of the sample.
    """

    problem: Problem
    W: torch.Tensor
    H: torch.Tensor
    b: torch.Tensor
    loss: float
    logits: torch.Tensor
    status: Status
    iterations: int
    gradient_norm: float  # relative: |grad| / (lambda |x|) in balanced coordinates
    method: str
    seed: int
    certificate: Certificate | None = None
    features: torch.Tensor | None = None  # (N, d) only for methods that move every sample
    weights: tuple[torch.Tensor, ...] | None = None  # depth > 1: W_1 .. W_L
    layer_means: tuple[torch.Tensor, ...] | None = None  # depth > 1: (K, d) class means of H_1, then after each activation
    layer_ranks: tuple[int, ...] | None = None  # depth > 1: singular values above 1e-2 of the largest, per layer mean
    structure: str = ""  # depth > 1: zero, dnc, srg, pairs, circle, below both, other, unconverged
    # depth > 1: by how much each norm balance fails, relative (`ufm.solvers.balance.Balance`); nan at the zero solution
    balance: dict[str, float] | None = None
    # the same before the exact rescaling of ReLU end points, which restores it: what the optimiser found by itself
    balance_found: dict[str, float] | None = None
