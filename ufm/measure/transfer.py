"""Errors predicted from measured class moments: few-shot nearest-class-mean error, and the Gaussian orthant."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ufm.errors import RequestError
from ufm.measure.arrays import as_matrix
from ufm.measure.pairs import PairMargins


def few_shot_moments(means: Any, covariances: Any, shots: int) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and variance, each (K, K), of the margin of class a against b when both means come from `shots` samples.

    With d = mu_a - mu_b and m shots: mean = |d|^2/2 + (Tr S_b - Tr S_a)/(2m), variance = d^T S_a d + d^T S_b d/m + Tr(S_a S_b)/m
    + Tr(S_a^2)/m + (Tr S_a^2 + Tr S_b^2)/(2 m^2). The mean is exact for every distribution, the variance for Gaussian classes.
    means (K, d), covariances (K, d, d), shots >= 1; the diagonal is nan.
    """
    mu = as_matrix(means, (None, None), "means")
    spread = as_matrix(covariances, (len(mu), mu.shape[1], mu.shape[1]), "covariances")
    if isinstance(shots, bool) or int(shots) != shots or shots < 1:
        raise RequestError(f"shots is {shots!r}; it must be an integer >= 1: pass the samples per class of the support set")
    m, traces = int(shots), np.einsum("kdd->k", spread)
    products = np.einsum("ade,bde->ab", spread, spread, optimize=True)  # Tr(S_a S_b)
    squares = np.diag(products)
    mean, variance = np.full((len(mu), len(mu)), np.nan), np.full((len(mu), len(mu)), np.nan)
    for a in range(len(mu)):
        for b in range(len(mu)):
            if a != b:
                d = mu[a] - mu[b]
                mean[a, b] = d @ d / 2 + (traces[b] - traces[a]) / (2 * m)
                variance[a, b] = d @ spread[a] @ d + (d @ spread[b] @ d + products[a, b] + squares[a]) / m
                variance[a, b] += (squares[a] + squares[b]) / (2 * m**2)
    return mean, variance


def few_shot_error(means: Any, covariances: Any, shots: int) -> np.ndarray:
    """Return Phi(-mean/sd) of `few_shot_moments`, (K, K): the chance that a sample of class a is taken for b; nan for a = b."""
    mean, variance = few_shot_moments(means, covariances, shots)
    with np.errstate(divide="ignore", invalid="ignore"):
        score = np.where(np.isnan(mean), np.nan, np.where(variance > 0, -mean / np.sqrt(variance), -np.sign(mean) * np.inf))
    return torch.special.ndtr(torch.from_numpy(score)).numpy()


def few_shot_bound(means: Any, covariances: Any, shots: int) -> np.ndarray:
    """Return Cantelli's bound variance/(variance + mean^2) on that chance, (K, K); 1 where the mean margin is not positive."""
    mean, variance = few_shot_moments(means, covariances, shots)
    bound = variance / (variance + mean**2)
    return np.where(np.isnan(mean) | (mean > 0), bound, 1.0)


def orthant_error(margins: PairMargins, points: int = 2**13) -> float:
    """Return the nearest-class-mean error of Gaussian classes with these margins: mean over classes of 1 - P(all g_ji > 0).

    Anisotropic, class-dependent, shifted test means are all inside. The orthant probability is taken with the separation of
    variables of Genz (1992) on a Richtmyer lattice of `points` points with antithetic pairs: the same number on every run,
    error about 1e-4.
    Needs `pair_margins(..., covariances=True)`.
    """
    if margins.covariances is None:
        raise RequestError("the margins hold no covariances; the orthant needs them: measure with covariances=True")
    wrong = 0.0
    for j in np.flatnonzero(margins.counts):
        others = np.flatnonzero(np.isfinite(margins.means[j]))
        inside = _positive_orthant(margins.means[j, others], margins.covariances[j][np.ix_(others, others)], points)
        wrong += margins.counts[j] * (1 - inside)
    return float(wrong / margins.counts.sum())


def _positive_orthant(mean: np.ndarray, covariance: np.ndarray, points: int) -> float:
    """Return P(g > 0) for g normal, hardest conditions first so that the integrand is smooth where it matters."""
    sd = np.sqrt(np.diag(covariance))
    if (mean[sd == 0] <= 0).any():
        return 0.0
    live = sd > 0
    if not live.any():
        return 1.0
    order = np.argsort(mean[live] / sd[live])
    z = (mean[live] / sd[live])[order]
    correlation = (covariance[np.ix_(live, live)] / np.outer(sd[live], sd[live]))[np.ix_(order, order)]
    count = len(z)
    lower = _semidefinite_root(correlation)
    primes = [p for p in range(2, 20 * count + 20) if all(p % q for q in range(2, int(p**0.5) + 1))][:count]
    lattice = (np.arange(1, points + 1)[:, None] * np.sqrt(primes)[None, :]) % 1.0
    total = 0.0
    for uniform in (lattice, 1.0 - lattice):
        total += _genz(z, lower, np.clip(uniform, 1e-16, 1 - 1e-16))
    return total / 2


def _genz(z: np.ndarray, lower: np.ndarray, uniform: np.ndarray) -> float:
    """Return the lattice mean of prod_i P(y_i > -(z_i + sum_{l<i} L_il y_l)/L_ii | earlier y)."""
    ndtr, ndtri = torch.special.ndtr, torch.special.ndtri
    drawn = torch.zeros(uniform.shape, dtype=torch.float64)
    product = torch.ones(len(uniform), dtype=torch.float64)
    root = torch.from_numpy(lower)
    for i in range(len(z)):
        limit = (z[i] + drawn[:, :i] @ root[i, :i]) / root[i, i]
        inside = ndtr(limit)
        product *= inside
        drawn[:, i] = -ndtri((torch.from_numpy(uniform[:, i]) * inside).clamp_min(1e-300))  # -y below the limit
    return float(product.mean())


def _semidefinite_root(correlation: np.ndarray) -> np.ndarray:
    """Return a Cholesky factor; a margin that others determine (d < K-1) keeps a tiny variance of its own."""
    ridge = 1e-12
    while True:
        try:
            return np.linalg.cholesky(correlation + ridge * np.eye(len(correlation)))
        except np.linalg.LinAlgError:
            ridge *= 10
