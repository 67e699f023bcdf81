"""The measuring pass: one forward over train and test, then every measure of every asked layer on both splits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from empirical.features import Plan, classifier_weight, plan_layers
from empirical.head import Head, head_rows, own_head
from empirical.rows import Rows
from empirical.store import Batches, Loss, Stored, collect, first_inputs, full_float32, network_of
from ufm.errors import RequestError
from ufm.measure import ClassMoments, collapse, separation
from ufm.measure import match_counts as match_counts_of


def measure(
    model: nn.Module,
    train_loader: Batches,
    test_loader: Batches,
    layers: str | Sequence[str] = "all",
    *,
    device: str = "auto",
    classes: int | None = None,
    classifier: str | None = None,
    match_counts: bool = False,
    seed: int = 0,
) -> Rows:
    """Measure anybody's network: every measure, every layer, on train and on test.

    Args:
        model: any torch network that maps a batch of inputs to logits (n, K); nothing of it is changed.
        train_loader, test_loader: iterables of (inputs, labels) batches that can be gone through again, such as a
            DataLoader or a list. Labels are integers 0..K-1; leave augmentation out of them.
        layers: "all" (input, every block, penultimate, logits), "last" (penultimate) or names; see `empirical.features`.
        device: where the model is; "auto" asks the model.
        classes: K, checked against the network's outputs; None takes the outputs.
        classifier: the path of the module that maps features to logits; None finds the last linear layer.
        match_counts: measure train on a subsample with test's class counts; seed: of that subsample.

    Returns: rows, a list of dicts {"split", "layer", "centres", "metric", "value"}; `print(rows)` shows a table,
        `rows.value("nc1_pinv", split="train")` one number. Two or more bias-free linear maps at the end, with nothing or a
        rectifier between them, bring the rows of `empirical.head`: ranks, cosines, norm balance.

    Raises: RequestError (a ValueError) for what cannot be measured; RunError when the network's values are not finite.
    """
    network, where = network_of(model, device)
    example = first_inputs(network, train_loader, where)
    plan = plan_layers(network, example, layers, classifier)
    if classes is not None and classes != plan.outputs:
        raise RequestError(f"classes is {classes}, but the network has {plan.outputs} outputs; leave classes out")
    same = {"match_counts": match_counts, "seed": seed, "head": own_head(network, example, plan.classifier)}
    return Rows(measure_network(network, train_loader, test_loader, layers=plan, **same))


def measure_network(
    model: nn.Module,
    train: Batches,
    test: Batches,
    *,
    layers: str | Sequence[str] | Plan = "last",
    classifier: str | None = None,
    device: torch.device | str | None = None,
    batch_size: int = 1000,
    match_counts: bool = False,
    seed: int = 0,
    loss: Loss | None = None,
    names: Sequence[str] | None = None,
    head: Head | None = None,
) -> list[dict[str, Any]]:
    """Measure a network on train and test data; training may go on afterwards as if nothing had happened.

    Args:
        model: any network that returns logits (n, K); its modes, buffers, hooks and all random states are put back.
        train, test: a `Split`, or an iterable of (inputs, labels) batches (a DataLoader, a list), without augmentation.
        layers: "last", "all", names (see `empirical.features`), or a Plan made before (saves one small forward pass).
        classifier: the path of the classifier's module; None finds the last linear layer.
        device: where the network is; None or "auto" asks the network.
        batch_size: of a Split.
        match_counts: measure train's own-centred rows on a subsample with test's class counts (see measures and sample size).
        seed: of that subsample.
        loss: mean loss of (logits, labels) for the network-wide rows; None: cross-entropy.
        names: only these measures; None: all. Without `vci` and the ranks no d x d product is made.
        head: the network's last maps (see `empirical.head`), for the rows of their norms and ranks.

    Returns: rows {"split", "layer", "centres", "metric", "value"} with "reason" beside a null value and "flag" where there
        is one. Train has own centres ("self"); test has own and train's. `layer: "network"` holds loss and error.

    Raises:
        RequestError: a layer, batch or label that cannot be measured, or too little memory (with the estimate).
        RunError: the network has diverged.
    """
    model, where = network_of(model, device)
    plan = layers if isinstance(layers, Plan) else plan_layers(model, first_inputs(model, train, where), layers, classifier)
    stored = {
        split: collect(model, plan, data, device=where, batch_size=batch_size, loss=loss)
        for split, data in (("train", train), ("test", test))
    }
    weight, bias = classifier_weight(model, plan)
    rows = rows_of(stored["train"], stored["test"], plan, weight, bias, match_counts=match_counts, seed=seed, names=names)
    return rows if head is None else rows + head_rows(head, model, plan, stored["train"], loss=loss)


def rows_of(
    train: Stored,
    test: Stored,
    plan: Plan,
    weight: Tensor | None,
    bias: Tensor | None,
    *,
    match_counts: bool = False,
    seed: int = 0,
    names: Sequence[str] | None = None,
    ood: Stored | None = None,
) -> list[dict[str, Any]]:
    """Return the rows of `measure_network` from stored features; `ood`, of samples from elsewhere, adds `nc5`."""
    rows = []
    for name in plan.names:
        head = (weight, bias) if name == "penultimate" else (None, None)
        rows += layer_rows(
            name,
            (train.features[name], train.labels),
            (test.features[name], test.labels),
            *head,
            classes=plan.outputs,
            match_counts=match_counts,
            seed=seed,
            ood=None if ood is None else ood.features[name],
            names=names,
        )
    rows += separation_rows(rows, plan)
    for split, stored in (("train", train), ("test", test)):
        for metric in ("loss", "error"):
            value = getattr(stored, metric)
            rows.append({"split": split, "layer": "network", "centres": "self", "metric": metric, "value": value})
    return rows


def separation_rows(rows: Sequence[dict[str, Any]], plan: Plan) -> list[dict[str, Any]]:
    """Return rho and Pearson's r of the separation law over the hidden layers of train, D = `nc1_pinv_sum`; [] for under three.

    The input and the logits are left out: the law is of what the layers do. He and Su (2023).
    """
    hidden = [name for name in plan.names if name not in ("input", "penultimate", "logits")] + ["penultimate"]
    found = {r["layer"]: r["value"] for r in rows if r["metric"] == "nc1_pinv_sum" and r["split"] == "train"}
    values = [found[name] for name in hidden if name in found]
    if len(values) < 3 or len(values) < len(hidden):
        return []
    place = {"split": "train", "layer": "network", "centres": "self"}
    if any(v is None or not v > 0 for v in values):
        reason = "a layer has no positive nc1_pinv_sum"
        return [{**place, "metric": f"separation_{name}", "value": None, "reason": reason} for name in ("rho", "pearson")]
    law = separation(values)
    pairs = (("rho", law.rho), ("pearson", law.pearson_r if law.pearson_r == law.pearson_r else None))
    return [
        {**place, "metric": f"separation_{name}", "value": value}
        | ({} if value is not None else {"reason": "all layers are equal"})
        for name, value in pairs
    ]


def layer_rows(
    layer: str,
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    weight: Tensor | None,
    bias: Tensor | None,
    *,
    classes: int,
    match_counts: bool = False,
    seed: int = 0,
    ood: Tensor | None = None,
    names: Sequence[str] | None = None,
) -> list[dict[str, Any]]:
    """Return one layer's rows: `train` and `test` are (features (N, d), labels (N,))."""
    with full_float32():
        reference = ClassMoments.of(*train, classes=classes)
        own = _matched(*train, test[1], classes, seed) if match_counts else train
        on_train = collapse(*own, weight=weight, bias=bias, classes=classes, ood=ood, names=names)
        on_test = collapse(*test, weight=weight, bias=bias, classes=classes, ood=ood, names=names, reference=reference)
    return [
        {"split": split, "layer": layer, **row}
        for split, measured in (("train", on_train), ("test", on_test))
        for row in measured.to_rows()
    ]


def _matched(features: Tensor, labels: Tensor, other: Tensor, classes: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return a subsample with at most the class counts of `other`."""
    chosen = match_counts_of(labels.cpu(), torch.bincount(other, minlength=classes).cpu().numpy(), seed=seed)
    if not len(chosen):
        raise RequestError("match_counts: train and test have no class in common; leave it out")
    rows = torch.from_numpy(chosen).to(features.device)
    return features[rows], labels[rows]
