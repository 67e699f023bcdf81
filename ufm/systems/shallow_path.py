"""Training of a batch of two-layer ReLU networks of equal shape, and at every step its distance to the laws.

    f_i = m^(-1/2) sum_r a_r max(w_r . x_i, 0),   L = 1/2 |f - y|^2,   eta_w and eta_a the layers' rates

All cells go in one program of `bmm`; each has its own step size and number of steps, and a step of zero once it is done.
Inputs are given in an orthonormal basis of their span, since weights off it neither move nor matter.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ufm.theory.shallow import Rates

Tensor = torch.Tensor


@dataclass
class Networks:
    """B networks of m neurons on their own n inputs; float64 tensors.

    x: (B, n, d); y: (B, n); w: (B, m, d); a: (B, m).
    """

    x: Tensor
    y: Tensor
    w: Tensor
    a: Tensor
    rates: Rates

    def residual(self) -> Tensor:
        """Return f - y, (B, n)."""
        return self._forward(self.w, self.a)[0]

    def _forward(self, w: Tensor, a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        before = torch.bmm(w, self.x.mT)
        active = (before > 0).to(before.dtype)
        after = before.mul_(active)
        output = torch.bmm(a[:, None], after)[:, 0]
        return output.mul_(w.shape[1] ** -0.5).sub_(self.y), active, after

    def velocity(self, w: Tensor, a: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Return the residual and -eta dL/dw, -eta dL/da at (w, a); None for a layer that is not trained."""
        residual, active, after = self._forward(w, a)
        scale = -(w.shape[1] ** -0.5)
        to_w = to_a = None
        if self.rates.hidden:
            to_w = torch.bmm(active, residual[:, :, None] * self.x).mul_(a[:, :, None] * (scale * self.rates.hidden))
        if self.rates.output:
            to_a = torch.bmm(after, residual[:, :, None])[:, :, 0].mul_(scale * self.rates.output)
        return residual, to_w, to_a

    def kernel(self) -> Tensor:
        """Return the tangent kernels (B, n, n): r' = -kernel r at this moment."""
        _, active, after = self._forward(self.w, self.a)
        width = self.w.shape[1]
        found = self.x.new_zeros(*self.y.shape, self.y.shape[1])
        if self.rates.hidden:
            weighed = active * self.a[:, :, None]
            found += torch.bmm(weighed.mT, weighed) * torch.bmm(self.x, self.x.mT) * (self.rates.hidden / width)
        if self.rates.output:
            found += torch.bmm(after.mT, after) * (self.rates.output / width)
        return found

    def patterns(self) -> Tensor:
        """Return which neuron is active on which input, (B, m, n)."""
        return torch.bmm(self.w, self.x.mT) > 0

    def step(self, size: Tensor, velocity: tuple[Tensor | None, Tensor | None], runge_kutta: bool) -> None:
        """Move every network by its own `size` (B,) from its `velocity`: a step of gradient descent, or of the flow."""
        h = size[:, None]
        if runge_kutta:
            velocity = self._mean_velocity(velocity, h)
        to_w, to_a = velocity
        if to_w is not None:
            self.w = torch.addcmul(self.w, to_w, h[:, :, None])
        if to_a is not None:
            self.a = torch.addcmul(self.a, to_a, h)

    def _mean_velocity(self, velocity: tuple[Tensor | None, Tensor | None], h: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Return the weighed velocity of the classical Runge-Kutta step."""
        to_w, to_a = velocity
        sum_w, sum_a = (None if part is None else part / 6 for part in velocity)
        for node, weight in ((0.5, 1 / 3), (0.5, 1 / 3), (1.0, 1 / 6)):
            w = self.w if to_w is None else torch.addcmul(self.w, to_w, node * h[:, :, None])
            a = self.a if to_a is None else torch.addcmul(self.a, to_a, node * h)
            _, to_w, to_a = self.velocity(w, a)
            sum_w = None if to_w is None else sum_w + weight * to_w
            sum_a = None if to_a is None else sum_a + weight * to_a
        return sum_w, sum_a


@dataclass(frozen=True)
class Schedule:
    """When each cell steps: between recorded point p - 1 and p, `counts` (P, B) steps of `sizes` (P, B)."""

    counts: np.ndarray
    sizes: np.ndarray
    runge_kutta: bool

    @property
    def times(self) -> np.ndarray:
        """Times (P + 1, B) of the recorded points, 0 first."""
        return np.concatenate([np.zeros((1, self.counts.shape[1])), np.cumsum(self.counts * self.sizes, 0)])


def descent_schedule(t_end: np.ndarray, largest: np.ndarray, points: int) -> Schedule:
    """Return steps of equal size, at most `largest` (B,), that end exactly at t_end (B,)."""
    number = np.maximum(np.ceil(t_end / largest - 1e-9), 1)
    marks = np.round(number ** np.linspace(0, 1, points - 1)[:, None])
    counts = np.diff(np.concatenate([np.zeros((1, len(number))), marks]), axis=0).astype(int)
    return Schedule(counts, np.broadcast_to(t_end / number, counts.shape), False)


def flow_schedule(t_end: np.ndarray, largest: np.ndarray, points: int) -> Schedule:
    """Return steps of at most `largest` that meet t_end/1000 .. t_end, log-spaced."""
    times = np.concatenate([[0.0], np.logspace(-3, 0, points - 1)])[:, None] * t_end
    gaps = np.diff(times, axis=0)
    counts = np.maximum(np.ceil(gaps / largest - 1e-9), 1).astype(int)
    return Schedule(counts, gaps / counts, True)


@dataclass
class Law:
    """A law of the residual in the eigenbasis of a kernel: (I - h H)^k r(0), or exp(-H t) r(0).

    values: (B, n); basis: (B, n, n), columns; modes: (B, n), the law's residual in the basis.
    """

    values: Tensor
    basis: Tensor
    modes: Tensor
    exponential: bool
    gap: Tensor  # (B,) the largest distance so far

    @classmethod
    def of(cls, kernel: Tensor, start: Tensor, exponential: bool) -> Law:
        """Return the law at time 0."""
        values, basis = torch.linalg.eigh(kernel)
        modes = torch.bmm(basis.mT, start[:, :, None])[:, :, 0]
        return cls(values, basis, modes, exponential, torch.zeros_like(start[:, 0]))

    def step(self, h: Tensor) -> None:
        """Go on by h (B,)."""
        moved = self.values * h[:, None]
        self.modes = self.modes * (torch.exp(-moved) if self.exponential else 1 - moved)

    def coordinates(self, residual: Tensor) -> Tensor:
        """Return the residual in the basis, (B, n)."""
        return torch.bmm(self.basis.mT, residual[:, :, None])[:, :, 0]

    def compare(self, residual: Tensor) -> None:
        """Take the distance to a residual into account; a residual that is not finite is at infinite distance."""
        away = (self.coordinates(residual) - self.modes).norm(dim=1)
        self.gap = torch.maximum(self.gap, away.nan_to_num(nan=torch.inf))


@dataclass(frozen=True)
class Path:
    """What is kept of a batch: at the recorded points, and over all steps.

    modes, predicted: (P + 1, B, n) residuals in the eigenbasis of the first law. loss: (P + 1, B), |r|^2 / 2n.
    peak: (B,) largest loss over the first. broken: (B,) the step at which the loss was no longer finite, -1 if never.
    """

    times: np.ndarray
    modes: np.ndarray
    predicted: np.ndarray
    loss: np.ndarray
    gaps: np.ndarray
    peak: np.ndarray
    broken: np.ndarray


def _point(law: Law, residual: Tensor) -> tuple[Tensor, ...]:
    return law.coordinates(residual), law.modes, residual.square().sum(1), law.gap


def follow(networks: Networks, laws: dict[str, Law], schedule: Schedule) -> Path:
    """Train all networks along the schedule; the laws' gaps take in every step. `networks` ends at its end."""
    first = next(iter(laws.values()))
    device = networks.x.device
    residual, *velocity = networks.velocity(networks.w, networks.a)
    start = residual.square().sum(1)
    peak, broken, done = start.clone(), torch.full_like(start, -1.0), torch.zeros_like(start)
    kept = [_point(first, residual)]
    for counts, sizes in zip(schedule.counts, schedule.sizes, strict=True):
        size, left = torch.from_numpy(sizes.copy()).to(device), torch.from_numpy(counts).to(device)
        for k in range(int(counts.max(initial=0))):
            h = torch.where(left > k, size, 0.0)
            networks.step(h, (velocity[0], velocity[1]), schedule.runge_kutta)
            residual, *velocity = networks.velocity(networks.w, networks.a)
            loss = residual.square().sum(1)
            peak = torch.maximum(peak, loss.nan_to_num(nan=torch.inf))
            done += left > k
            broken = torch.where((broken < 0) & ~loss.isfinite(), done, broken)
            for law in laws.values():
                law.step(h)
                law.compare(residual)
        kept.append(_point(first, residual))
    modes, predicted, loss, gaps = (torch.stack(part).cpu().numpy() for part in zip(*kept, strict=True))
    n = networks.y.shape[1]
    shape = (schedule.times, modes, predicted, loss / (2 * n), gaps)
    return Path(*shape, (peak / start).cpu().numpy(), broken.cpu().numpy())
