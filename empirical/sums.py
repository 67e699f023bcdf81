"""The sum of m unseen digits: its exact distribution, and a classifier that is told nothing but such sums.

Operands are independent given their images, so that the distribution of their sum is the convolution of theirs,

    P(S = s) = sum_{d_1 + .. + d_m = s} prod_i p_i(d_i),        s = 0 .. m (K - 1),

K^m terms that one operand after the other adds up in O(m^2 K^2). All in logarithms: p may be as small as exp(-100) in float32,
and only sums of positive terms occur, so nothing cancels.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ufm.seeds import stream

PLAIN, EXACT = "plain", "exact"  # what a SumClassifier makes of its features in training mode


def sum_log_probabilities(log_p: Tensor) -> Tensor:
    """Return log P(S = s) of the sum of m independent digits.

    log_p: (n, m, K), log probabilities of the digits 0..K-1 of each operand; -inf is a probability of 0.
    Returns (n, m (K-1) + 1). The gradient with respect to log_p[i, j, d] is P(d_j = d | S = s).
    """
    total = log_p[:, 0]
    for operand in range(1, log_p.shape[1]):
        total = _added(total, log_p[:, operand])
    return total


def _added(total: Tensor, digit: Tensor) -> Tensor:
    """Return the log distribution (n, L+K-1) of a sum (n, L) and one more digit (n, K).

    Row d of the joint distribution (n, K, L) is moved d places to the right by padding and cutting the rows anew: no indices,
    whose gradients a GPU would add up in any order.
    """
    (n, length), K = total.shape, digit.shape[1]
    joint = total[:, None, :] + digit[:, :, None]
    moved = F.pad(joint, (0, K), value=-torch.inf).reshape(n, K * (length + K))[:, : K * (length + K - 1)]
    moved = moved.reshape(n, K, length + K - 1)
    # log sum exp by hand: torch's own has the gradient nan where every term is -inf
    top = moved.detach().amax(1).clamp_min(torch.finfo(moved.dtype).min)
    mass = (moved - top[:, None, :]).exp().sum(1)
    possible = mass > 0
    return torch.where(possible, mass.where(possible, 1.0).log() + top, -torch.inf)


def draw_operands(inputs: int, operands: int, repeats: int, seed: int, name: str) -> np.ndarray:
    """Return which inputs are added, (repeats * (inputs // operands), operands), from the stream `name` of the seed.

    `repeats` times all inputs are shuffled and cut into groups; what is left of a shuffle is in no group of it.
    """
    draw, groups = stream(seed, name), inputs // operands
    rounds = [draw.permutation(inputs)[: groups * operands].reshape(groups, operands) for _ in range(repeats)]
    return np.concatenate(rounds)


class SumClassifier(nn.Linear):
    """A linear classifier of digits that is trained on sums alone.

    In eval mode it returns the digits' logits (n, K). In training mode the features of m operands follow one another, (n m, d),
    and it returns logits of the sum (n, m (K-1) + 1): in the stage "plain" those of a small network on the operands' features
    that knows nothing of addition, in the stage "exact" the log probabilities of the sum of the operands' digits.
    """

    def __init__(self, classifier: nn.Linear, operands: int, plain: nn.Module | None, joined: str) -> None:
        """Take over the parameters of `classifier`; plain: from joined features to logits of the sum; joined: concat or sum."""
        super().__init__(classifier.in_features, classifier.out_features, bias=classifier.bias is not None)
        self.weight, self.bias = classifier.weight, classifier.bias
        self.operands, self.plain, self.joined = operands, plain, joined
        self.stage = EXACT if plain is None else PLAIN

    def forward(self, features: Tensor) -> Tensor:
        """Return logits of digits, or in training mode of sums."""
        if not self.training:
            return super().forward(features)
        return self.plain_sums(features) if self.stage == PLAIN else self.exact_sums(features)

    def plain_sums(self, features: Tensor) -> Tensor:
        """Return the plain network's logits of the sums (n, m (K-1) + 1) of operands in a row (n m, d)."""
        assert self.plain is not None
        apart = features.unflatten(0, (-1, self.operands))
        return self.plain(apart.flatten(1) if self.joined == "concat" else apart.sum(1))

    def exact_sums(self, features: Tensor) -> Tensor:
        """Return the log probabilities of the sums (n, m (K-1) + 1) of operands in a row (n m, d)."""
        with torch.autocast(features.device.type, enabled=False):
            logits = F.linear(features.to(self.weight.dtype), self.weight, self.bias)
            return sum_log_probabilities(F.log_softmax(logits, 1).unflatten(0, (-1, self.operands)))
