"""What a structure of the deep model predicts of every layer of a trained network's head, as data. Imports no torch.

Ten statements, of which the shapes (ranks, cosines, spectra) hold at every weight decay that keeps the structure alive,
the norm balance at every stationary point, and the sizes (norms, logit scale, loss, threshold) at the given weight decays.
H_1 is the free feature matrix, the input of W_1; H_l the input of W_l, after the activation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ufm.errors import RequestError
from ufm.prediction import DERIVED, EVIDENCE, STATED, Prediction
from ufm.problem import Problem
from ufm.tables import suggest
from ufm.theory import deep, deep_linear, deep_scalar

ZERO_MODE = 1e-9  # a singular value below this share of the largest is rounding


@dataclass(frozen=True, eq=False)
class LayerPrediction:
    """One feature layer H_l of a structure; arrays float64, one row per class.

    gram (K, K): inner products of the class means; gram_centred: about the mean of the class means. Singular values (K,),
    descending, are those of the (K, d) class means, at the predicted scale, or with the largest raw one equal to 1 where
    the structure does not exist at these weight decays. Cosines (K, K) are nan where a mean vanishes (a dead class).
    """

    layer: int  # 1 .. L
    name: str  # "H_1" .. "H_L"
    gram: np.ndarray
    gram_centred: np.ndarray
    rank: int
    rank_centred: int
    singular_values: np.ndarray
    singular_values_centred: np.ndarray
    cosines: np.ndarray
    cosines_centred: np.ndarray
    nc1: float  # Tr(S_W S_B^+)/K: 0 in every layer of the head
    determined: bool  # False for H_1 under ReLU: pre-activations of layer 2 of equal loss differ where they are negative

    @property
    def effective_rank(self) -> float:
        """Return exp of the entropy of the squared raw singular values' shares."""
        share = self.singular_values**2 / (self.singular_values**2).sum()
        share = share[share > 0]
        return float(np.exp(-(share * np.log(share)).sum()))


@dataclass(frozen=True, eq=False)
class Statement:
    """One thing a trained head can be held against: its value (None where theory names a trend but no number)."""

    name: str
    value: Any
    text: str
    reference: str  # key of ufm.references.REFERENCES; "" for what follows by differentiating the objective
    status: str  # one of ufm.prediction's STATED, DERIVED, EVIDENCE


@dataclass(frozen=True, eq=False)
class HeadPrediction:
    """A structure laid out layer by layer; what depends on the weight decays is None where the structure does not exist there.

    energy: lambda_l |W_l|^2, the same in every layer and in the features (n lambda_h |H_1|^2), = -<Z, dfit/dZ>.
    logit_gap (K,): own logit minus the mean of the others, per class. output (K, K): logits without bias.
    threshold: factor on all weight decays at once from which on this structure lies above zero; > 1 where it lies below. That
    zero is the lower of the two does not make it optimal: other points may be lower still.
    """

    problem: Problem
    structure: str
    exists: bool
    reason: str  # why not, when `exists` is False
    status: str
    reference: str
    layers: tuple[LayerPrediction, ...]
    loss: float | None
    losses: dict[str, float]  # every known structure
    energy: float | None
    weight_norms: tuple[float, ...] | None  # |W_1| .. |W_L|
    feature_norm: float | None  # |H_1 diag(sqrt n)|
    output: np.ndarray | None
    logit_gap: np.ndarray | None
    effective_rank: float | None  # from the loss, balanced MSE without bias: C^(1/(L+1))
    threshold: float | None
    statements: dict[str, Statement]


def layer_predictions(problem: Problem, structure: str | None = None) -> HeadPrediction:
    """Return what `structure` (default: the predicted or lowest known one) predicts of every layer of an L-layer head.

    Args:
        problem: depth L >= 1, linear or ReLU, loss and weight decays as in `ufm.structures`.
        structure: a name of `ufm.structures(problem)` other than zero: dnc, srg, of, etf, gof, pairs, circle. It may also
            be one that exists at smaller weight decays only: its shapes are given, its sizes are None.

    Raises:
        RequestError: no structure is known for this problem, or not this one.

    Sukenik, Mondelli & Lampert 2023, 2024 (ReLU); Dang et al. 2023, Garrod & Keating 2024 (linear).

    >>> p = Problem(10, 30, 50, loss="mse", lambda_w=0.004, lambda_h=0.004, depth=4, activation="relu")
    >>> [layer.rank for layer in layer_predictions(p, "srg").layers]
    [5, 5, 5, 10]
    """
    known = deep.structures(problem)
    structure, found, exists = _choose(problem, known, structure)
    layers = _layers(problem, found, exists)
    sizes = _sizes(problem, found) if exists else (None,) * 5
    energy, weight_norms, feature_norm, output, gap = sizes
    threshold = _threshold(problem, structure)
    head = HeadPrediction(
        problem=problem,
        structure=structure,
        exists=exists,
        reason="" if exists else "above its threshold: at these weight decays the structure lies above zero; shapes only",
        status=found.status,
        reference=found.reference,
        layers=layers,
        loss=found.loss if exists else None,
        losses={name: float(q.loss) for name, q in known.items()},
        energy=energy,
        weight_norms=weight_norms,
        feature_norm=feature_norm,
        output=output,
        logit_gap=gap,
        effective_rank=_effective_rank(problem, found.loss) if exists else None,
        threshold=threshold,
        statements={},
    )
    head.statements.update(_statements(head))
    return head


def _choose(problem: Problem, known: dict[str, Prediction], structure: str | None) -> tuple[str, Prediction, bool]:
    """Return (name, prediction, whether it exists at these weight decays) of the wanted or the lowest structure."""
    alive = {name: q for name, q in known.items() if name != "zero"}
    exists = structure in alive or (structure is None and bool(alive))
    among = alive if exists else _at_small_decay(problem)
    if not among:
        raise RequestError(
            f"no structure is known for loss {problem.loss}, activation {problem.activation}, bias {problem.bias} and these "
            "counts; use mse without bias, or linear layers"
        )
    if structure is None:
        structure = min(among, key=lambda name: among[name].loss)
    if structure not in among:
        raise RequestError(f"structure {structure!r} is not known for this problem; {suggest(structure, tuple(among))}")
    return structure, among[structure], exists


def _effective_rank(problem: Problem, loss: float) -> float | None:
    if problem.loss != "mse" or not problem.balanced or problem.bias != "none" or not 0 < loss < 0.5:
        return None
    return deep_scalar.effective_rank(loss, problem.depth, float(problem.count_vector[0]), deep_linear.product(problem))


def _at_small_decay(problem: Problem) -> dict[str, Prediction]:
    """Return the structures that exist once all weight decays are small enough: their shapes do not depend on how small."""
    for power in range(1, 13):
        smaller = scaled(problem, 10.0**-power)
        found = {name: q for name, q in deep.structures(smaller).items() if name != "zero"}
        if found:
            return found
    return {}


def scaled(problem: Problem, factor: float) -> Problem:
    """Return the problem with every weight decay (of the layers and of the features) times `factor`."""
    lambdas = tuple(lam * factor for lam in problem.layer_lambdas)
    return problem.replace(lambda_w=lambdas if problem.depth > 1 else lambdas[0], lambda_h=problem.lambda_h * factor)


def class_means(problem: Problem, found: Prediction) -> list[np.ndarray]:
    """Return the class means (K, d) of H_1 .. H_L, from the weights that attain the loss."""
    states = [found.means]
    for weight in found.weights[:-1]:
        state = states[-1] @ weight.T
        states.append(np.maximum(state, 0) if problem.activation == "relu" else state)
    return states


def _layers(problem: Problem, found: Prediction, exists: bool) -> tuple[LayerPrediction, ...]:
    return tuple(_layer(n, means, exists, problem.activation) for n, means in enumerate(class_means(problem, found), 1))


def _layer(number: int, means: np.ndarray, exists: bool, activation: str) -> LayerPrediction:
    values = np.linalg.svd(means, compute_uv=False)
    if not exists:
        means, values = means / values[0], values / values[0]
    centred = means - means.mean(0)
    centred_values = np.linalg.svd(centred, compute_uv=False)
    pad = [(0, len(means) - len(values))]
    return LayerPrediction(
        layer=number,
        name=f"H_{number}",
        gram=means @ means.T,
        gram_centred=centred @ centred.T,
        rank=int((values > ZERO_MODE * values[0]).sum()),
        rank_centred=int((centred_values > ZERO_MODE * values[0]).sum()),
        singular_values=np.pad(values, pad),
        singular_values_centred=np.pad(centred_values, pad),
        cosines=_cosines(means, values[0]),
        cosines_centred=_cosines(centred, values[0]),
        nc1=0.0,
        determined=number > 1 or activation == "linear",
    )


def _cosines(rows: np.ndarray, scale: float) -> np.ndarray:
    norms = np.linalg.norm(rows, axis=1)
    norms[norms <= ZERO_MODE * scale] = np.nan
    return rows @ rows.T / np.outer(norms, norms)


def _sizes(problem: Problem, found: Prediction) -> tuple[float, tuple[float, ...], float, np.ndarray, np.ndarray]:
    """Return (energy, |W_l|, |H_1 diag(sqrt n)|, logits without bias, logit gap per class)."""
    norms = tuple(float(np.linalg.norm(w)) for w in found.weights)
    energy = problem.layer_lambdas[-1] * norms[-1] ** 2
    output = found.logits - found.bias
    own = np.diag(output)
    others = (output.sum(1) - own) / (problem.classes - 1)
    return energy, norms, math.sqrt(energy / problem.lambda_h), output, own - others


def _threshold(problem: Problem, structure: str) -> float | None:
    """Return the factor on all weight decays at which the structure's loss meets the zero solution's (balanced problems)."""
    if not problem.balanced:
        return None
    n, depth = float(problem.count_vector[0]), problem.depth
    price = (n * deep_linear.product(problem)) ** (1 / (depth + 1))
    if problem.loss == "mse" and structure in ("dnc", "of", "etf"):
        return deep_scalar.critical(depth) / (problem.classes * price)
    if problem.loss == "ce":
        return deep_linear.ce_critical(structure, problem.classes, depth) / price
    return _bisect(problem, structure)


def _bisect(problem: Problem, structure: str) -> float:
    """Return the factor at which a structure that has no closed threshold stops existing, to rounding."""
    low, high = 0.0, 1.0
    while structure in deep.structures(scaled(problem, high)):
        low, high = high, 2 * high
    while high - low > 1e-12 * high:
        middle = 0.5 * (low + high)
        low, high = (middle, high) if structure in deep.structures(scaled(problem, middle)) else (low, middle)
    return 0.5 * (low + high)


def _statements(head: HeadPrediction) -> dict[str, Statement]:
    """Return the ten things a trained head can be held against, the five other depth results among them, by name."""
    source, status, layers = head.reference, head.status, head.layers
    relative = [x.singular_values / x.singular_values[0] for x in layers]
    balance = "lambda_l |W_l|^2 equal over layers, = -<Z, dfit/dZ>; per ReLU neuron lambda_l |row|^2 = lambda_(l+1) |column|^2"
    rows: Sequence[Statement] = (
        Statement("nc1", [x.nc1 for x in layers], "NC1 is 0 in every layer of the head", source, DERIVED),
        Statement("nc1_slope", None, "log NC1 falls linearly in the layer, at a fitted rate", "hesu2023", EVIDENCE),
        Statement("rank", [x.rank for x in layers], "rank of the class means", source, status),
        Statement("rank_centred", [x.rank_centred for x in layers], "rank of the centred class means", source, status),
        Statement("cosines", [x.cosines for x in layers], "cosines between post-activation class means", source, status),
        Statement("cosines_centred", [x.cosines_centred for x in layers], "the same about their mean", source, status),
        Statement("singular_profile", relative, "singular values of the class means over the largest", source, status),
        Statement("norm_balance", head.energy, balance, "", DERIVED),
        Statement("logit_scale", head.logit_gap, "own logit minus the mean of the others, per class", source, status),
        Statement("loss", head.loss, "regularised loss, to be laid beside every structure's", source, status),
        Statement("effective_rank", head.effective_rank, "C^(1/(L+1)) of the loss", source, DERIVED),
        Statement("threshold", head.threshold, "factor on all weight decays above which it lies above zero", source, DERIVED),
        Statement("jump", _jump(head), "output scale just below that jump; 0 above it", source, DERIVED),
        Statement("collapse_probability", None, "P(DNC) rises with width and falls with weight decay", "sukenik2024", EVIDENCE),
        Statement("balancedness", None, "linear layers of a head become balanced, and then collapse", "jacot2024", STATED),
        Statement("bottleneck_rank", None, "at large depth the middle layers have the bottleneck rank", "jacot2023", STATED),
        Statement("rank_collapse", None, "weight decay drives the layers to low rank", "zangrando2024", STATED),
        Statement("gradient_products", None, "the average gradient outer product collapses", "beaglehole2024", STATED),
        Statement(
            "intermediate_collapse",
            None,
            "collapse in intermediate layers, from some depth",
            "rangamani2023",
            EVIDENCE,
        ),
    )
    return {row.name: row for row in rows}


def _jump(head: HeadPrediction) -> float | None:
    """Return the output scale (L-1)/L at the threshold of a structure with one scale and squared error."""
    if head.problem.loss != "mse" or not head.problem.balanced or head.structure not in ("dnc", "of", "etf"):
        return None
    return (head.problem.depth - 1) / head.problem.depth
