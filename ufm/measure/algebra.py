"""The K x K algebra behind the measures, in numpy float64: pseudo-inverse forms, Grams, pair distances, VCI."""

from __future__ import annotations

import numpy as np
import torch

from ufm.errors import RequestError

EPS = float(np.finfo(np.float64).eps)
SAFE = 1e-9  # of unit variance: where every pivot is larger, Cholesky stands in for the five times slower eigenvectors
RIGID = 1e-6  # a larger share of the means in directions without within-class variance is no rounding, not even of float32


def pinv_factor(between: np.ndarray) -> tuple[np.ndarray, int]:
    """Return F (r, p) with F^T F = (B^T B)^+ for the rows B (m, p), and the rank r.

    Directions are dropped where the eigenvalue of the Gram B B^T is zero to float64 rounding, and nowhere else.
    """
    _, size, right = np.linalg.svd(between, full_matrices=False)
    floor = max(between.shape) * EPS * size[0] ** 2 if len(size) else 0.0
    keep = (size**2 > floor) & (size > 0)
    return right[keep] / size[keep, None], int(keep.sum())


def pinv_form(within: np.ndarray, factor: np.ndarray) -> float:
    """Return Tr(Sigma_W (B^T B)^+) for the factor of `pinv_factor`."""
    return float(((factor @ within) * factor).sum())


def centred_rows(rows: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """Return rows - centre (K, d); exactly zero where nothing but float64 rounding of the rows is left of all of them."""
    gaps = rows - centre
    return gaps if np.linalg.norm(gaps) > 16 * EPS * np.linalg.norm(rows) else np.zeros_like(gaps)


def simplex_gram(classes: int) -> np.ndarray:
    """Return the Gram of the simplex ETF with unit Frobenius norm, (I - J/K)/sqrt(K-1)."""
    return (np.eye(classes) - 1.0 / classes) / np.sqrt(classes - 1.0)


def gram_distance(gram: np.ndarray, target: np.ndarray) -> float:
    """Return the Frobenius distance of the two matrices, each scaled to unit Frobenius norm; nan if one is zero."""
    size, wanted = np.linalg.norm(gram), np.linalg.norm(target)
    if size == 0 or wanted == 0:
        return float("nan")
    return float(np.linalg.norm(gram / size - target / wanted))


def equinorm(rows: np.ndarray) -> float:
    """Return std/mean (ddof = 1) of the rows' norms; nan when they are all zero."""
    norms = np.linalg.norm(rows, axis=1)
    return float(norms.std(ddof=1) / norms.mean()) if norms.mean() > 0 else float("nan")


def cosines(rows: np.ndarray) -> np.ndarray:
    """Return the (K, K) cosines between rows; nan where a row is zero."""
    norms = np.linalg.norm(rows, axis=1)
    unit = rows / np.where(norms > 0, norms, np.nan)[:, None]
    return unit @ unit.T


def equiangular(rows: np.ndarray) -> float:
    """Return the mean over i != j of |cos_ij + 1/(K-1)|."""
    count = len(rows)
    off = ~np.eye(count, dtype=bool)
    return float(np.abs(cosines(rows)[off] + 1.0 / (count - 1)).mean())


def alignment(first: np.ndarray, second: np.ndarray) -> float:
    """Return the mean over rows of 1 - cos(u_k, v_k), as |u - v|^2 / 2 of unit vectors: 1 - cos itself keeps no digit near 0."""
    unit = [rows / np.where((n := np.linalg.norm(rows, axis=1)) > 0, n, np.nan)[:, None] for rows in (first, second)]
    return float(((unit[0] - unit[1]) ** 2).sum(1).mean() / 2)


def pair_distances(means: np.ndarray) -> np.ndarray:
    """Return |mu_i - mu_j|^2, (K, K), from differences."""
    out = np.empty((len(means), len(means)))
    for i, mean in enumerate(means):
        gap = means - mean
        out[i] = np.einsum("kd,kd->k", gap, gap)
    return out


def variability_index(within: np.ndarray, between: np.ndarray) -> float:
    """Return VCI = 1 - Tr(Sigma_T^+ Sigma_B)/rank Sigma_B, Sigma_T = Sigma_W + Sigma_B, Sigma_B = V^T V for the rows V (m, d).

    With V reduced to full row rank r and A = V Sigma_W^{-1} V^T, push-through gives VCI = Tr (I + A)^{-1} / r: no difference of
    near numbers, so it is right at collapse 1e-12 where the d x d form loses everything. Directions of V in which Sigma_W is zero
    make A infinite there and contribute 0. Xu and Liu (2023).
    """
    left, size, _ = np.linalg.svd(between, full_matrices=False)
    keep = (size**2 > max(between.shape) * EPS * size[0] ** 2) & (size > 0)
    rank = int(keep.sum())
    if rank == 0:
        raise RequestError("all class means coincide; VCI needs distinct class means")
    rows = left[:, keep].T @ between  # combined, not put together from singular vectors: a zero coordinate stays exactly zero
    whitened, rigid = whiten(within, rows)
    if rigid.shape[1]:
        left, sizes, _ = np.linalg.svd(rigid)
        zero = np.ones(rank, dtype=bool)
        zero[: len(sizes)] = sizes <= 1e-10 * np.linalg.norm(rigid)
        whitened = left[:, zero].T @ whitened
    gain = np.linalg.svd(whitened, compute_uv=False) ** 2 if whitened.size else np.zeros(0)
    soft = whitened.shape[0] - len(gain)  # directions in which nothing is known of the between scatter
    return float(((1.0 / (1.0 + gain)).sum() + soft) / rank)


def whiten(within: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return rows Sigma_W^{-1/2} on the range of Sigma_W (up to rotation), and the rows' part on its null space.

    Coordinates are first scaled to unit within-class variance, so that features of very different units lose nothing.
    """
    scale = np.sqrt(np.maximum(np.diag(within), 0.0))
    live = scale > 0
    dead = rows[:, ~live]
    if not live.any():
        return np.zeros((len(rows), 0)), dead
    correlation = within[np.ix_(live, live)] / np.outer(scale[live], scale[live])
    root, failed = torch.linalg.cholesky_ex(torch.from_numpy(correlation))
    if not int(failed) and float(root.diagonal().min()) ** 2 > SAFE:
        spread = torch.linalg.solve_triangular(root, torch.from_numpy(rows[:, live] / scale[live]).T, upper=False)
        return spread.T.numpy(), dead
    values, vectors = np.linalg.eigh(correlation)
    full = values > len(values) * EPS * values[-1]
    scaled = (rows[:, live] / scale[live]) @ vectors
    null = scaled[:, ~full]
    if np.linalg.norm(null) <= RIGID * np.linalg.norm(scaled):
        null = null[:, :0]  # rounding: features that lie in a flat of fewer dimensions have no rigid part
    return scaled[:, full] / np.sqrt(values[full]), np.concatenate([dead, null], axis=1)
