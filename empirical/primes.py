"""Primes: a classifier that is given the spurious attribute beside the features, as a fixed vector, and learns to read it there.

With features f(x), classifier (W, b) and a second map V on the primes m_1..m_A, Wang et al. (2024) minimise (here as in their
published code, which has no bias)

    CE(W f(x) + b + V m_a, y) + alpha CE(V m_a, a)        a: the sample's attribute, y: its label

and at test take m = 0: logits W f(x) + b. The second term sees the primes alone; it is what makes V m_a point at the class that
the attribute stands for, so that samples whose label goes with it are fitted without f. The primes are the vertices of a simplex
ETF of unit norm in the dimension of the features, turned at random.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from empirical.data.coloured import DIGITS, colour_of
from empirical.data.prepare import coarse_labels
from empirical.data.split import Split
from empirical.experiment import Experiment
from empirical.features import plan_layers
from empirical.losses import Loss
from empirical.training import Recipe
from ufm.errors import RequestError
from ufm.seeds import stream


class PrimedLinear(nn.Linear):
    """A linear classifier W h + b with a second map V on fixed primes (A, p).

    In eval mode it returns logits (n, K). In training mode, where the loss needs to know what each attribute adds, it returns
    (n, K + A K): the logits without primes, then V m_1, .., V m_A, the same in every row.
    """

    def __init__(self, plain: nn.Linear, primes: np.ndarray, draw: np.random.Generator) -> None:
        """Take over the parameters of `plain`; V is drawn as torch would for one map on features and prime."""
        super().__init__(plain.in_features, plain.out_features, bias=plain.bias is not None)
        self.weight, self.bias = plain.weight, plain.bias
        bound = 1 / math.sqrt(plain.in_features + primes.shape[1])
        values = draw.uniform(-bound, bound, size=(plain.out_features, primes.shape[1]))
        self.prime_weight = nn.Parameter(torch.from_numpy(values).to(plain.weight.dtype))
        self.register_buffer("primes", torch.from_numpy(primes).to(plain.weight.dtype))

    def forward(self, features: Tensor) -> Tensor:
        """Return logits (n, K), in training mode with what each prime adds behind them."""
        logits = F.linear(features, self.weight, self.bias)
        if not self.training:
            return logits
        added = F.linear(self.primes, self.prime_weight).flatten()
        return torch.cat([logits, added.to(logits.dtype).expand(len(logits), -1)], 1)


def prime_vectors(kind: str, attributes: int, dim: int, draw: np.random.Generator) -> np.ndarray:
    """Return the primes (A, dim) of unit norm: the vertices of a simplex ETF turned at random, or Gaussian directions."""
    if kind == "gaussian":
        drawn = draw.standard_normal((attributes, dim))
        return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)
    if dim < attributes:
        raise RequestError(f"--primes {kind}: {attributes} values of an attribute need as many features; {dim} are too few")
    centred = math.sqrt(attributes / (attributes - 1)) * (np.eye(attributes) - 1 / attributes)
    return centred @ np.linalg.qr(draw.standard_normal((dim, attributes)))[0].T


def prime_loss(outputs: Tensor, targets: Tensor, classes: int, weight: float) -> Tensor:
    """Return the mean of CE(z + V m_a, y) + weight CE(V m_a, a), a the attribute, over a batch.

    outputs: (n, K + A K) of a `PrimedLinear` in training mode. targets: (n, 3), label, attribute, and whose prime is given.
    """
    logits, added = outputs[:, :classes], outputs[:, classes:].unflatten(1, (-1, classes))
    label, attribute, given = targets.unbind(1)
    own = added.gather(1, given[:, None, None].expand(-1, 1, classes))[:, 0]
    return F.cross_entropy(logits + own, label) + weight * F.cross_entropy(own, attribute)


# --- the recipe ----------------------------------------------------------------------------------------------------


def _primed(network: nn.Module, experiment: Experiment, train: Split, seed: int) -> nn.Module:
    """Return the network with its classifier primed; the rest starts as without primes, so that both start alike."""
    check_attribute(train)
    if train.attributes != train.classes:
        raise RequestError(
            f"--primes {_kind(experiment)}: the attribute has {train.attributes} values and there are {train.classes} classes; "
            "primes need one class for each value: leave --colours out, or give --coarse groups for it"
        )
    if not stands_for_classes(train, experiment.coarse):
        groups = np.bincount(colour_of(np.arange(DIGITS), int(train.attributes)))
        raise RequestError(
            f"--coarse {','.join(map(str, experiment.coarse or ()))}: value a of the attribute does not stand for class a, as "
            f"--primes {_kind(experiment)} take it to; use --coarse {','.join(map(str, groups))}"
        )
    path = plan_layers(network, train.batch(slice(0, 2))[0], "last", None).classifier
    plain = network.get_submodule(path) if path else None
    if type(plain) is not nn.Linear:
        raise RequestError(f"--primes {_kind(experiment)} need a linear classifier; this network has none: use --primes none")
    parent, _, name = str(path).rpartition(".")
    draw = stream(seed, "primes")
    vectors = prime_vectors(_kind(experiment), int(train.attributes), plain.in_features, draw)
    setattr(network.get_submodule(parent), name, PrimedLinear(plain, vectors, draw))
    return network


def _targets(train: Split, experiment: Experiment, seed: int) -> Tensor:
    """Return (N, 3): label, attribute, and the attribute whose prime the sample is given (shuffled: another sample's)."""
    attribute = given = check_attribute(train)
    if _kind(experiment) == "shuffled":
        order = torch.from_numpy(stream(seed, "shuffled-primes").permutation(len(train)))
        given = attribute[order.to(attribute.device)]
    return torch.stack([train.labels, attribute, given], 1)


def _loss(experiment: Experiment, train: Split) -> Loss:
    classes, weight = train.classes, float(experiment.prime_weight)  # type: ignore[attr-defined]
    return lambda outputs, targets: prime_loss(outputs, targets, classes, weight)


def _kind(experiment: Experiment) -> str:
    return experiment.primes  # type: ignore[attr-defined]


def check_attribute(data: Split) -> Tensor:
    """Return the attribute (N,) of the samples; RequestError where the data has none."""
    if data.attribute is None:
        raise RequestError("this data has no spurious attribute; use --dataset coloured-mnist5k or coloured-digits")
    return data.attribute


def stands_for_classes(data: Split, coarse: tuple[int, ...] | None) -> bool:
    """Return whether each value of the attribute stands for the class of the same number: as many, of the same digits.

    coarse: sizes of the groups of digits that are the classes of `data`; None: each digit is one.
    """
    fine = np.arange(DIGITS)
    classes = coarse_labels("the data", DIGITS, coarse)
    return data.attributes is not None and bool(
        (colour_of(fine, data.attributes) == (fine if classes is None else classes)).all()
    )


RECIPE = Recipe(_primed, _targets, _loss)
