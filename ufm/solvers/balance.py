"""Norm balance of a deep head: what it is off by, and the rescaling that restores it without touching the function.

A head with positively homogeneous activations has, at every stationary point and for any loss,

    lambda_l |W_l|^2 = lambda_h |G|^2 = -<Z, dfit/dZ>                  for every layer l,
    lambda_l |row_j W_l|^2 = lambda_(l+1) |column_j W_(l+1)|^2         for every hidden neuron j,
    lambda_1 W_1'W_1 = lambda_h G G'                                   (nothing stands between W_1 and G = H_1 diag(sqrt n)).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ufm.solvers.deep import Batch

SWEEPS = 200  # the rescaling converges linearly, by about 2/3 a sweep at four layers
ALIVE = 1e-6  # a neuron with a smaller share of its layer's energy is dying; its balance is not asked


@dataclass(frozen=True)
class Balance:
    """By how much each equality fails, relative, per cell (B,); 0 at a stationary point."""

    layers: torch.Tensor  # max/min - 1 of lambda |.|^2 over W_1 .. W_L and G
    neurons: torch.Tensor  # largest |a - b| / max(a, b) over hidden neurons, a and b the two sides above
    features: torch.Tensor  # |lambda_1 W_1'W_1 - lambda_h G G'| / |lambda_h G G'|
    ray: torch.Tensor  # |lambda_L |W_L|^2 + <Z, dfit/dZ>| / lambda_L |W_L|^2


def measure(batch: Batch, x: torch.Tensor) -> Balance:
    """Return the norm balance of every cell of x (B, P); nan at the zero solution."""
    weights, features, bias = batch.views(x)
    energy = torch.stack([(w**2).sum((1, 2)) for w in weights] + [(features**2).sum((1, 2))], 1) * batch.lambdas
    neurons = torch.zeros_like(energy[:, 0])
    for layer in range(len(weights) - 1):
        below, above = _sides(batch, weights, layer)
        most = torch.maximum(below, above)
        alive = most > ALIVE * most.amax(1, keepdim=True)
        neurons = torch.maximum(neurons, torch.where(alive, (below - above).abs() / most, torch.zeros_like(most)).amax(1))
    first = batch.lambdas[:, 0, None, None] * torch.bmm(weights[0].transpose(1, 2), weights[0])
    free = batch.lambdas[:, -1, None, None] * torch.bmm(features, features.transpose(1, 2))
    output = _output(batch, weights, features)
    signal = batch.data_signal(output, bias, torch.empty_like(bias))
    return Balance(
        layers=energy.amax(1) / energy.amin(1) - 1,
        neurons=neurons + 0 * energy.amax(1) / energy.amin(1),
        features=(first - free).norm(dim=(1, 2)) / free.norm(dim=(1, 2)),
        ray=(energy[:, -2] + (signal * output).sum((1, 2))).abs() / energy[:, -2],
    )


def rescale(batch: Batch, x: torch.Tensor) -> None:
    """Balance every cell of x (B, P), in place: the same output along its ray at the smallest penalty, then the best ray.

    Hidden neuron j of layer l takes row_j W_l times c, column_j W_(l+1) over c: by positive homogeneity the function stays,
    and the two terms of the penalty become equal. W_1 and G become the balanced factors of W_1 G (its nuclear norm). Both
    only lower the penalty; they are repeated until nothing moves. Then all weights are scaled by one factor to the nearest
    minimum along the ray.
    """
    weights, features, _ = batch.views(x)
    for _ in range(SWEEPS):
        moved = 0.0
        for layer in range(len(weights) - 1):
            below, above = _sides(batch, weights, layer)
            ratio = torch.where((below > 0) & (above > 0), (above / below.clamp_min(1e-300)) ** 0.25, torch.ones_like(below))
            weights[layer].mul_(ratio[:, :, None])
            weights[layer + 1].div_(ratio[:, None, :])
            moved = max(moved, float((ratio - 1).abs().amax()))
        _balance_features(batch, weights, features)
        if moved < 1e-14:
            break
    _scale_ray(batch, x)


def _sides(batch: Batch, weights: list[torch.Tensor], layer: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return lambda_l |row_j W_l|^2 and lambda_(l+1) |column_j W_(l+1)|^2 of the neurons behind W_l, (B, d) each."""
    below = batch.lambdas[:, layer, None] * (weights[layer] ** 2).sum(2)
    return below, batch.lambdas[:, layer + 1, None] * (weights[layer + 1] ** 2).sum(1)


def _balance_features(batch: Batch, weights: list[torch.Tensor], features: torch.Tensor) -> None:
    """Factor W_1 G anew so that lambda_1 W_1'W_1 = lambda_h G G' = the singular values of sqrt(lambda_1 lambda_h) W_1 G."""
    product = torch.bmm(weights[0], features)
    left, size, right = torch.linalg.svd(product, full_matrices=False)  # the rank is at most K and d
    ratio = (batch.lambdas[:, -1] / batch.lambdas[:, 0]).sqrt()[:, None]
    rank = size.shape[1]
    weights[0].zero_()
    weights[0][:, :, :rank] = left * (size * ratio).sqrt()[:, None, :]
    features.zero_()
    features[:, :rank] = (size / ratio).sqrt()[:, :, None] * right


def _output(batch: Batch, weights: list[torch.Tensor], features: torch.Tensor) -> torch.Tensor:
    state = features
    for weight in weights[:-1]:
        state = torch.bmm(weight, state)
        state = state.relu() if batch.shape.activation == "relu" else state
    return torch.bmm(weights[-1], state)


def _scale_ray(batch: Batch, x: torch.Tensor) -> None:
    """Scale W_1 .. W_L and G by the t nearest to 1 at which the slope of the objective along the ray changes from - to +."""
    weights, features, bias = batch.views(x)
    output, scratch = _output(batch, weights, features), torch.empty_like(bias)
    order = len(weights) + 1
    energy = (batch.lambdas * torch.stack([(w**2).sum((1, 2)) for w in [*weights, features]], 1)).sum(1)

    def slope(t: torch.Tensor) -> torch.Tensor:
        scaled = output * (t**order)[:, None, None]
        signal = batch.data_signal(scaled, bias, scratch)
        return order * (signal * scaled).sum((1, 2)) / t + t * energy

    low, high = torch.full_like(energy, 0.9), torch.full_like(energy, 1.1)
    inside = (slope(low) < 0) & (slope(high) > 0)
    for _ in range(60):
        middle = 0.5 * (low + high)
        rising = slope(middle) > 0
        low, high = torch.where(rising, low, middle), torch.where(rising, middle, high)
    factor = torch.where(inside, 0.5 * (low + high), torch.ones_like(low))
    for part in (*weights, features):
        part.mul_(factor[:, None, None])
