"""Measures over the layers of a network: the separation law, and the balance of its weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ufm.errors import RequestError
from ufm.measure.arrays import as_matrix


class Separation(NamedTuple):
    """The separation law D_l = start rho^l: the factor per layer, Pearson's r of (l, log D_l), the value fitted at l = 0."""

    rho: float
    pearson_r: float
    start: float


def separation(values: Sequence[float]) -> Separation:
    """Fit D_l = D_0 rho^l by least squares on log D_l, l = 0, 1, ...; r near -1 is the law. He and Su (2023, eq. 2).

    values  at least two positive fuzziness values D_l (`nc1_weighted` or `nc1_pinv_sum`), first layer first
    """
    d = as_matrix(values, (None,), "values")
    if len(d) < 2 or (d <= 0).any():
        raise RequestError(f"separation was given {d.tolist()}; it needs two or more positive values: leave collapsed layers out")
    layer, log = np.arange(len(d)) - (len(d) - 1) / 2, np.log(d)
    slope = float(layer @ log / (layer @ layer))
    spread = float(((log - log.mean()) ** 2).sum())
    r = float(layer @ log / math.sqrt((layer @ layer) * spread)) if spread > 0 else math.nan
    return Separation(math.exp(slope), r, math.exp(float(log.mean()) - slope * (len(d) - 1) / 2))


class Balance(NamedTuple):
    """`penalties` lambda_l |W_l|^2 per layer, `pull` = -<Z, dfit/dZ>, `spread` = their largest relative deviation."""

    penalties: tuple[float, ...]
    pull: float
    spread: float


def balance(weights: Sequence[Any], lambdas: Sequence[float], logits: Any = None, gradient: Any = None) -> Balance:
    """Measure whether a bias-free homogeneous network is balanced: at any stationary point all of the numbers are equal.

    weights   W_1..W_L (and the free features, as one more matrix with its lambda)
    lambdas   their penalties lambda_l, the objective having lambda_l/2 |W_l|_F^2
    logits, gradient   (N, K) Z and dfit/dZ; both or neither (then `pull` is nan and only the layers are compared)

    Along W_l -> t W_l the fit moves by <Z, dfit/dZ> and the penalty by lambda_l |W_l|^2, for every l: Euler's identity.
    """
    if len(weights) != len(lambdas) or not weights:
        raise RequestError(f"{len(weights)} weights and {len(lambdas)} lambdas; there must be one lambda for each weight")
    if (logits is None) != (gradient is None):
        raise RequestError("balance needs logits and gradient together; pass both or neither")
    rates = as_matrix(lambdas, (len(weights),), "lambdas")
    norms = [float((as_matrix(w, (None, None), "weight") ** 2).sum()) for w in weights]
    penalties = tuple(float(rate) * norm for rate, norm in zip(rates, norms, strict=True))
    pull = math.nan
    if logits is not None:
        z = as_matrix(logits, (None, None), "logits")
        pull = -float((z * as_matrix(gradient, z.shape, "gradient")).sum())
    numbers = np.array([*penalties, *([pull] if logits is not None else [])])
    size = np.abs(numbers).mean()
    return Balance(penalties, pull, float(np.abs(numbers - numbers.mean()).max() / size) if size > 0 else 0.0)
