"""The last linear maps of a network, with nothing or a rectifier between them: their ranks, and the balance of their norms.

W_1..W_L lead from the last features H to the logits Z = W_L s(W_{L-1} ... s(W_1 H)). Where no map has a bias and s is positively
homogeneous, Z moves along with every W_l -> t W_l in the same way (Euler), so that at every stationary point of
fit + lambda/2 sum_l |W_l|^2, whatever the fit, lambda |W_l|^2 = -<Z, dfit/dZ> for every l, and likewise neuron by neuron
|row j of W_l| = |column j of W_{l+1}|. Training gets there at the rate e^{-2 lambda t}, t the sum of the step sizes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from empirical.features import Plan, bare, evaluating
from empirical.store import Loss, Stored, full_float32
from empirical.trace import Call, Flow, trace
from ufm.measure.layers import balance
from ufm.measure.rank import ranks

HOMOGENEOUS = frozenset(("relu", "leaky_relu", "dropout"))  # s(t x) = t s(x) for t > 0, in eval mode
IDENTITY = frozenset(("dropout",))


@dataclasses.dataclass(frozen=True)
class Head:
    """`paths`: the modules of W_1..W_L; `layers`: the names of the features each makes, the last two penultimate and logits.

    `linear`: whether nothing stands between the maps. `reason`: why their norms need not be balanced, "" where they must.
    """

    paths: tuple[str, ...]
    layers: tuple[str, ...]
    linear: bool
    reason: str

    def weights(self, network: nn.Module) -> list[Tensor]:
        """Return W_1..W_L, detached."""
        return [bare(network).get_submodule(path).weight.detach() for path in self.paths]


def find_head(network: nn.Module, example: Any, classifier: str | None, depth: int | None = None) -> Head | None:
    """Return the run of linear maps that ends in the classifier, or None where the classifier is no linear module.

    The run ends before anything but a bias-free linear map and a rectifier, and before whatever something else reads too.

    Args:
        network: any; its modes and hooks are left as they were.
        example: one batch of inputs. classifier: as `plan_layers` found it. depth: at most so many maps; None: all.
    """
    network = bare(network)
    if classifier is None or type(network.get_submodule(classifier)) is not nn.Linear:
        return None  # a subclass or a parametrised weight has other parameters than those that decay
    with evaluating(network):
        flow = trace(network, example)
    calls = {call.returned: call for call in flow.calls if type(network.get_submodule(call.path)) is nn.Linear}
    last = next(call for call in reversed(flow.calls) if call.path == classifier)
    chain, nodes, between = [last], [], set()
    while depth is None or len(chain) < depth:
        end, passed = _back(flow, chain[0].read)
        call = calls.get(end) if end is not None else None
        if call is None or network.get_submodule(call.path).bias is not None or call.path in [c.path for c in chain]:
            break
        nodes.insert(0, chain[0].read)
        chain.insert(0, call)
        between |= passed
    names = [_name(flow, call, node) for call, node in zip(chain, nodes, strict=False)]
    ends = ["logits"] if len(chain) == 1 else ["penultimate", "logits"]
    reason = "the classifier has a bias: its norm need not balance; use --no-bias" if _has_bias(network, last) else ""
    return Head(tuple(c.path for c in chain), (*names[: len(chain) - len(ends)], *ends), not between - IDENTITY, reason)


def own_head(network: nn.Module, example: Any, classifier: str | None) -> Head | None:
    """Return the head of anybody's network where it has one: two or more bias-free maps; None otherwise."""
    head = find_head(network, example, classifier)
    return head if head is not None and len(head.paths) > 1 and not head.reason else None


def _back(flow: Flow, node: int | None) -> tuple[int | None, set[str]]:
    """Return the node before the homogeneous operations that lead to `node`, and their names; None where the path forks."""
    passed: set[str] = set()
    while node is not None and len(flow.consumers[node]) == 1 and flow.names[node] in HOMOGENEOUS:
        passed.add(flow.names[node])
        node = flow.parents[node][0]
    return (node if node is not None and len(flow.consumers[node]) == 1 else None), passed


def _has_bias(network: nn.Module, call: Call) -> bool:
    return network.get_submodule(call.path).bias is not None


def _name(flow: Flow, call: Call, node: int | None) -> str:
    """Return the innermost container around the map that returns `node`, what the next map reads, else the map's own path."""
    around = [c.path for c in flow.calls if c.returned == node and c.path and call.path.startswith(f"{c.path}.")]
    return max(around, key=len, default=call.path)


# --- rows ----------------------------------------------------------------------------------------------------------


def head_rows(
    head: Head, network: nn.Module, plan: Plan, train: Stored, *, loss: Loss | None = None, decay: float | None = None
) -> list[dict[str, Any]]:
    """Return the rows of a head, on train.

    At each map's layer: `head_norm` |W_l|_F; `head_rank_effective`, `_stable`, `_numeric` of W_l; `norm_balance_neurons`, the
    sum over j of | |row j of W_l|^2 - |column j of W_{l+1}|^2 | over the mean of both sums; of linear maps `balancedness`,
    |W_l W_l^T - W_{l+1}^T W_{l+1}|_F over the mean of both norms (Jacot et al. 2024).
    At each planned layer but the input and the logits: `means_rank_effective`, `_stable`, `_numeric` of the class means about
    the origin, `means_cosine` and `means_cosine_most`, the mean and the largest cosine between two of them.
    Of the network: `norm_balance`, the largest relative deviation of |W_l|^2 from their mean, and `norm_balance_fit`, that of
    -<Z, dfit/dZ> from the mean of decay |W_l|^2. Both are 0 at a stationary point of a bias-free head.

    loss: of (logits, labels), mean; None: cross-entropy. decay: lambda, the weight decay of the maps; None: not known.
    """
    weights = [w.cpu().to(torch.float64).numpy() for w in head.weights(network)]
    rows = [_row(name, f"head_{key}", value) for name, w in zip(head.layers, weights, strict=True) for key, value in _map(w)]
    for name, below, above in zip(head.layers, weights, weights[1:], strict=False):
        rows.append(_row(name, "norm_balance_neurons", _neurons(below, above), head.reason))
        if head.linear:
            rows.append(_row(name, "balancedness", _balancedness(below, above), head.reason))
    for name in plan.names:
        if name not in ("input", "logits"):
            rows += [_row(name, key, value) for key, value in means_rows(train.features[name], train.labels, plan.outputs)]
    layers, fit, unknown = _balances(head, weights, network, train, loss or nn.functional.cross_entropy, decay)
    rows.append(_row("network", "norm_balance", layers, head.reason))
    return [*rows, _row("network", "norm_balance_fit", fit, head.reason or unknown)]


def _row(layer: str, metric: str, value: float, reason: str = "") -> dict[str, Any]:
    place = {"split": "train", "layer": layer, "centres": "self", "metric": metric}
    if reason or not math.isfinite(value):
        return {**place, "value": None, "reason": reason or "every norm is 0"}
    return {**place, "value": float(value)}


def _map(weight: np.ndarray) -> list[tuple[str, float]]:
    values = np.linalg.svd(weight, compute_uv=False)
    return [("norm", float(np.linalg.norm(weight))), *ranks(values).items()]


def _neurons(below: np.ndarray, above: np.ndarray) -> float:
    incoming, outgoing = (below**2).sum(1), (above**2).sum(0)
    total = (incoming.sum() + outgoing.sum()) / 2
    return float(np.abs(incoming - outgoing).sum() / total) if total > 0 else math.nan


def _balancedness(below: np.ndarray, above: np.ndarray) -> float:
    one, other = below @ below.T, above.T @ above
    size = (np.linalg.norm(one) + np.linalg.norm(other)) / 2
    return float(np.linalg.norm(one - other) / size) if size > 0 else math.nan


def means_rows(features: Tensor, labels: Tensor, classes: int) -> list[tuple[str, float]]:
    """Return (name, value) of the class means about the origin: their three ranks, mean and largest cosine of a pair."""
    from empirical.tensors import class_means

    with full_float32():
        means = class_means(features, labels, classes)
    means = means[np.isfinite(means).all(1)]
    found = {f"means_{key}": value for key, value in ranks(np.linalg.svd(means, compute_uv=False)).items()}
    norms = np.linalg.norm(means, axis=1)
    if len(means) < 2 or not norms.all():
        return list((found | {"means_cosine": math.nan, "means_cosine_most": math.nan}).items())
    pairs = ((means @ means.T) / np.outer(norms, norms))[np.triu_indices(len(means), 1)]
    return list((found | {"means_cosine": float(pairs.mean()), "means_cosine_most": float(pairs.max())}).items())


def _balances(
    head: Head, weights: Sequence[np.ndarray], network: nn.Module, train: Stored, loss: Loss, decay: float | None
) -> tuple[float, float, str]:
    """Return (spread over the layers, distance of the fit's pull, why there is none of that)."""
    spread = balance(weights, [1.0] * len(weights)).spread if any(w.any() for w in weights) else math.nan
    if not decay:
        return spread, math.nan, "the weight decay is 0" if decay == 0 else "the weight decay is not known"
    if not {"penultimate", "logits"} & set(train.features):
        return spread, math.nan, "neither penultimate nor logits is among the layers measured"
    with full_float32(), torch.enable_grad():
        logits = train.features.get("logits")
        logits = train.features["penultimate"] @ head.weights(network)[-1].T if logits is None else logits
        logits = logits.detach().clone().requires_grad_()
        (slope,) = torch.autograd.grad(loss(logits, train.labels), logits)
    pull = -float((logits.detach().double() * slope.double()).sum())
    level = decay * float(np.mean([(w**2).sum() for w in weights]))
    return spread, abs(pull - level) / level if level > 0 else math.nan, ""


def head_arrays(head: Head, network: nn.Module) -> dict[str, np.ndarray]:
    """Return LAYER/weight/spectrum (singular values of W_l), LAYER/weight/rows and columns (their norms), by each map's layer."""
    arrays: dict[str, np.ndarray] = {}
    for name, weight in zip(head.layers, head.weights(network), strict=True):
        w = weight.cpu().to(torch.float64).numpy()
        arrays[f"{name}/weight/spectrum"] = np.linalg.svd(w, compute_uv=False)
        arrays[f"{name}/weight/rows"], arrays[f"{name}/weight/columns"] = np.linalg.norm(w, axis=1), np.linalg.norm(w, axis=0)
    return arrays
