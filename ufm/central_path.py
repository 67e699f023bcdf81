"""The central path of Han, Papyan & Donoho (2021), simulated on every sample, beside its exact law.

MSE with free bias; W and b are at every moment the least-squares optimum for the features H, and H follows the gradient
flow of what is left, projected on {Sigma_W = I}. The law is about the singular values w of Sigma_W^(-1/2) [mu_k - mu_G].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from ufm import seeds
from ufm.errors import RequestError
from ufm.solvers import runge_kutta
from ufm.theory import dynamics

DRIFT = 1e-6  # |Sigma_W - I| from which on a path has left its manifold; it is some 1e-14 where nothing went wrong


@dataclass(frozen=True, eq=False)
class CentralPath:
    """A simulated central path: t (T,), singular_values (T, K-1) descending, predicted (T, K-1), clock (T, K-1).

    `clock` is K ln w + w^2 + w^4/(4K) of the simulated values: the law says it rises by t/N. `covariance_drift` (T,) is
    the distance of Sigma_W from I in the simulation. nc1 (T,) is Tr(Sigma_W Sigma_B^+)/K.
    """

    t: np.ndarray
    singular_values: np.ndarray
    predicted: np.ndarray
    clock: np.ndarray
    covariance_drift: np.ndarray
    nc1: np.ndarray
    evaluations: int
    finished: bool
    limited: bool  # ran out of steps

    @property
    def drifted(self) -> bool:
        """Whether the simulation left {Sigma_W = I}: its values are then not those of the flow."""
        return not bool(np.nan_to_num(self.covariance_drift).max() <= DRIFT)


def central_path(
    classes: int,
    per_class: int,
    dim: int,
    *,
    signal: float = 1.0,
    t_end: float = 1e4,
    points: int = 101,
    seed: int = 0,
    renormalised: bool = False,
    rtol: float = 1e-9,
    stop: Callable[[], bool] = lambda: False,
) -> CentralPath:
    """Simulate one path from random class means of scale `signal` and random noise whitened to Sigma_W = I.

    Args:
        classes, per_class: K and n; N = K n.
        dim: d with K - 1 <= d <= N - K (Sigma_W must have full rank).
        signal: scale of the starting singular values.
        renormalised: rescale features by Sigma_W^(-1/2) afterwards instead of projecting the flow; another law.
    """
    total = classes * per_class
    if not classes - 1 <= dim <= total - classes:
        raise RequestError(
            f"dim {dim} must lie between classes - 1 = {classes - 1} and N - K = {total - classes} for Sigma_W = I"
        )
    labels = torch.arange(classes).repeat_interleave(per_class)
    start = _start(classes, per_class, dim, signal, seed)
    grid = torch.cat([torch.zeros(1), torch.logspace(-3, 0, points - 1, dtype=torch.float64) * t_end]).to(torch.float64)

    def velocity(x: torch.Tensor, cells: torch.Tensor) -> torch.Tensor:
        return _velocity(x.view(dim, total), labels, classes, renormalised).reshape(1, -1)

    def retract(x: torch.Tensor) -> torch.Tensor:
        return _retracted(x.view(dim, total), labels, classes, renormalised).reshape(1, -1)

    path = runge_kutta.integrate(
        velocity, start.reshape(1, -1), grid[None], rtol=rtol, atol=1e-2 * rtol, stop=stop, retract=retract
    )
    rows = [_describe(state.view(dim, total), labels, classes) for state in path.states[0]]
    values = np.stack([r[0] for r in rows])
    times = grid.numpy()
    return CentralPath(
        t=times,
        singular_values=values,
        predicted=dynamics.central_path(times, values[0], classes, total, renormalised),
        clock=dynamics.central_path_clock(values, classes, renormalised),
        covariance_drift=np.array([r[1] for r in rows]),
        nc1=np.array([r[2] for r in rows]),
        evaluations=int(path.evaluations[0]),
        finished=bool(path.finished[0]),
        limited=bool(path.limited[0]),
    )


def _start(classes: int, per_class: int, dim: int, signal: float, seed: int) -> torch.Tensor:
    rng = seeds.stream(seed, "central-path-init")
    noise = rng.standard_normal((dim, classes, per_class))
    noise = (noise - noise.mean(2, keepdims=True)).reshape(dim, -1)
    covariance = noise @ noise.T / noise.shape[1]
    noise = np.linalg.solve(np.linalg.cholesky(covariance), noise)
    means = rng.standard_normal((dim, classes))
    means -= means.mean(1, keepdims=True)
    left, _, right = np.linalg.svd(means, full_matrices=False)
    sizes = np.append(signal * np.sort(rng.uniform(0.5, 1.5, classes - 1))[::-1], 0.0)[: len(left.T)]
    return torch.tensor((left[:, : len(sizes)] * sizes) @ right[: len(sizes)]).repeat_interleave(per_class, 1) + torch.tensor(
        noise
    )


def _split(h: torch.Tensor, labels: torch.Tensor, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (class means (d, K), deviations (d, N))."""
    means = h.view(h.shape[0], classes, -1).mean(2)
    return means, h - means[:, labels]


def _velocity(h: torch.Tensor, labels: torch.Tensor, classes: int, renormalised: bool) -> torch.Tensor:
    """Return H' : minus the gradient at the least-squares W (envelope theorem), tangent to {Sigma_W = I}."""
    total = h.shape[1]
    centred = h - h.mean(1, keepdim=True)
    targets = torch.nn.functional.one_hot(labels, classes).to(h.dtype).T
    weight = torch.linalg.solve(centred @ centred.T, centred @ (targets - 1 / classes).T).T
    residual = weight @ centred - (targets - 1 / classes)
    step = -weight.T @ residual / total
    _, deviations = _split(h, labels, classes)
    mean_step, deviation_step = _split(step, labels, classes)
    if renormalised:
        # Sigma_W^(-1/2) (h + dt step) for Sigma_W = I: subtract half of Sigma_W' from the left, means included.
        drift = (deviation_step @ deviations.T + deviations @ deviation_step.T) / total
        return step - 0.5 * drift @ h
    # Normal space of {Sigma_W = C} at E: {B E, B symmetric}, and B C + C B = Sigma_W' asks for B. With C = I it would be
    # half of Sigma_W', but then an error D of C obeys D' = -(B D + D B), which grows wherever B is negative.
    size, frame = torch.linalg.eigh(deviations @ deviations.T / total)
    drift = frame.T @ (deviation_step @ deviations.T + deviations @ deviation_step.T) @ frame / total
    normal = frame @ (drift / (size[:, None] + size)) @ frame.T
    return mean_step[:, labels] + deviation_step - normal @ deviations


def _retracted(h: torch.Tensor, labels: torch.Tensor, classes: int, renormalised: bool) -> torch.Tensor:
    """Return the features with Sigma_W^(-1/2) before their deviations (renormalised: before all of them)."""
    means, deviations = _split(h, labels, classes)
    size, frame = torch.linalg.eigh(deviations @ deviations.T / h.shape[1])
    root = (frame / size.sqrt()) @ frame.T
    return root @ h if renormalised else means[:, labels] + root @ deviations


def _describe(h: torch.Tensor, labels: torch.Tensor, classes: int) -> tuple[np.ndarray, float, float]:
    if not bool(torch.isfinite(h).all()):
        return np.full(classes - 1, np.nan), np.nan, np.nan
    means, deviations = _split(h, labels, classes)
    covariance = deviations @ deviations.T / h.shape[1]
    ratio = torch.linalg.solve(torch.linalg.cholesky(covariance), means - means.mean(1, keepdim=True))
    values = torch.linalg.svdvals(ratio)[: classes - 1].numpy()
    drift = float((covariance - torch.eye(len(covariance), dtype=h.dtype)).norm())
    # Tr(Sigma_W Sigma_B^+)/K with Sigma_B = M M'/K is the sum of 1/w^2 over the K - 1 directions.
    return values, drift, float((1 / values**2).sum())
