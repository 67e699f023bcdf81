"""Exact paths of gradient flow: six laws with closed forms, in the objective of the package (1/N, N samples in total).

Gradient flow is W' = -df/dW, H' = -df/dH in raw coordinates, one column of H per sample. A summed loss is the same
flow with t multiplied by N.
"""

from __future__ import annotations

import math

import numpy as np

from ufm.errors import RequestError


def subspace_mode(t: np.ndarray, u0: float, per_class: float, total: float) -> np.ndarray:
    """Return u(t) = sigma_k(W)^2 on the invariant subspace of the unpenalised MSE flow with free bias.

    u' = (2/N) u (sqrt(n) - u), so u(t) = sqrt(n) / (1 + (sqrt(n)/u0 - 1) exp(-2 sqrt(n) t/N)).
    Mixon, Parshall & Pi 2020, in the package's normalisation.

    Args:
        t: (T,) times >= 0.
        u0: u(0) > 0.
        per_class: n.
        total: N = K n.
    """
    return logistic(t, u0, math.sqrt(per_class), total)


def logistic(t: np.ndarray, start: float, limit: float, total: float) -> np.ndarray:
    """Return a(t) of a' = (2/N) a (kappa - a): kappa / (1 + (kappa/a0 - 1) exp(-2 kappa t/N)).

    The product modes of the aligned, balanced MSE flow with lambda_w = lambda_h = lambda have kappa_k = sqrt(n_k) - N lambda.
    kappa <= 0 (a minority class below the threshold) decays to 0; at kappa = 0 the law is a0 / (1 + 2 a0 t/N).
    """
    t = np.asarray(t, dtype=np.float64)
    if not (start > 0 and math.isfinite(start)):
        raise RequestError(f"start {start!r} is not a positive number; zero is a saddle the flow never leaves")
    if limit == 0:
        return start / (1 + 2 * start * t / total)
    if limit > 0:
        return limit / (1 + (limit / start - 1) * np.exp(-2 * limit * t / total))
    decay = np.exp(2 * limit * t / total)  # written so that the exponential stays bounded for kappa < 0
    return limit * decay / (decay + limit / start - 1)


def mode_limits(counts: np.ndarray, penalty: float) -> np.ndarray:
    """Return kappa_k = sqrt(n_k) - N lambda of every class; a class with kappa_k <= 0 dies (minority collapse)."""
    counts = np.asarray(counts, dtype=np.float64)
    return np.sqrt(counts) - counts.sum() * penalty


def half_rise_time(start: float, limit: float, total: float) -> float:
    """Return the time at which the logistic reaches kappa/2: ln(kappa/a0 - 1) N / (2 kappa)."""
    if not 0 < start < limit:
        raise RequestError(f"start {start!r} must lie in (0, {limit!r}); a rise needs a start below the limit")
    return math.log(limit / start - 1) * total / (2 * limit)


def central_path_clock(w: np.ndarray, classes: int, renormalised: bool = False) -> np.ndarray:
    """Return t/N + a of the central path: K ln w + w^2 + w^4/(4K) (Han, Papyan & Donoho 2021, projected flow).

    w are the singular values of the signal-to-noise matrix Sigma_W^(-1/2) [mu_k - mu_G]. `renormalised` gives the clock
    K ln w + w^2/2 of the flow that renormalises Sigma_W afterwards instead of projecting.
    """
    w = np.asarray(w, dtype=np.float64)
    if renormalised:
        return classes * np.log(w) + 0.5 * w**2
    return classes * np.log(w) + w**2 + w**4 / (4 * classes)


def central_path(t: np.ndarray, w0: np.ndarray, classes: int, total: float, renormalised: bool = False) -> np.ndarray:
    """Return w(t), shape (T, r), of the central path from w0 (r,) > 0: the root of clock(w) = clock(w0) + t/N."""
    t, w0 = np.atleast_1d(np.asarray(t, dtype=np.float64)), np.atleast_1d(np.asarray(w0, dtype=np.float64))
    if not (np.isfinite(w0).all() and (w0 > 0).all()):
        raise RequestError("w0 has an entry that is not a positive number; the central path starts at positive singular values")
    goal = central_path_clock(w0, classes, renormalised) + t[:, None] / total
    log_w = np.log(np.broadcast_to(w0, goal.shape)).copy()
    # Newton in ln w on a convex increasing clock: from the right of the root it never overshoots, from the left once.
    for _ in range(200):
        w = np.exp(log_w)
        slope = classes + (w**2 if renormalised else 2 * w**2 + w**4 / classes)
        step = (central_path_clock(w, classes, renormalised) - goal) / slope
        log_w = log_w - np.clip(step, -1, 1)
        if np.abs(step).max() < 1e-14 * max(1.0, np.abs(log_w).max()):
            break
    return np.exp(log_w)


def ray_clock(a: np.ndarray, classes: int) -> np.ndarray:
    """Return Ei(a) + (K-1) log a, which grows like 2t/sqrt(n) on the simplex ray of the unpenalised CE flow (Ji et al. 2022)."""
    from scipy.special import expi

    a = np.asarray(a, dtype=np.float64)
    return expi(a) + (classes - 1) * np.log(a)


def ray(t: np.ndarray, a0: float, classes: int, per_class: float) -> np.ndarray:
    """Return a(t) of a' = 2a / (sqrt(n) (e^a + K - 1)), the logit gap on the simplex ray, from a0 > 0.

    Inverts Ei(a) + (K-1) log a = 2t/sqrt(n) + const by a bracketed root for each time.
    """
    from scipy.optimize import brentq

    if not (a0 > 0 and math.isfinite(a0)):
        raise RequestError(f"a0 {a0!r} is not a positive number; the ray starts at a positive logit gap")
    start = float(ray_clock(np.asarray(a0), classes))
    found = []
    for time in np.atleast_1d(np.asarray(t, dtype=np.float64)):
        goal = start + 2 * time / math.sqrt(per_class)
        high = a0 + 1.0
        while ray_clock(np.asarray(high), classes) < goal:
            high += 1.0
        found.append(
            a0
            if time == 0
            else brentq(lambda a, goal=goal: float(ray_clock(np.asarray(a), classes)) - goal, a0, high, xtol=1e-14)
        )
    return np.array(found)


def off_row_space_decay(t: np.ndarray, lambda_h: float) -> np.ndarray:
    """Return e^(-lambda_h t): the part of H orthogonal to the row space of W, once that row space is fixed (any loss)."""
    return np.exp(-lambda_h * np.asarray(t, dtype=np.float64))


def perturbation_filter(singular_values: np.ndarray, lambda_h: float, beta: float) -> np.ndarray:
    """Return the factors that scale a deviation of H0 along the right singular directions of W, and off its row space (last).

    For fixed W, min_H 1/2 |W H - Y|^2 + lambda/2 |H|^2 + beta/2 |H - H0|^2 scales it by beta/(s_k^2 + lambda + beta) along
    direction k and by beta/(lambda + beta) off the row space (Tirer, Huang & Niles-Weed 2023).
    """
    squares = np.append(np.asarray(singular_values, dtype=np.float64) ** 2, 0.0)
    return beta / (squares + lambda_h + beta)


def within_class_residue(start_scale: float, classes: int, per_class: float, dim: int) -> float:
    """Return the scale of Tr S_W / Tr S_B that an unpenalised MSE flow keeps from a random start: c eps^2.

    c ~ (d - K)(1 - 1/n) sqrt(n) K/(K - 1): without a penalty, collapse is only as tight as the start is small.
    """
    return (dim - classes) * (1 - 1 / per_class) * math.sqrt(per_class) * classes / (classes - 1) * start_scale**2
