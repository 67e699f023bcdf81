"""From an experiment to its optimiser: one constructor per name, the fastest implementation each device has."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.optim import LBFGS, SGD, Adam, AdamW, Optimizer

from empirical.experiment import Experiment


def optimizer_of(experiment: Experiment, network: nn.Module) -> Optimizer:
    """Return the optimiser on the network's trainable parameters."""
    return optimizer_on(experiment, parameter_groups(experiment, network))


def optimizer_on(experiment: Experiment, groups: list[dict[str, Any]]) -> Optimizer:
    """Return the optimiser on groups of parameters, as `parameter_groups` makes them.

    "fused" does the whole update in one kernel per step: on a CPU it saves a third of the step of a small network.
    """
    lr = float(experiment.lr)
    if experiment.optimizer == "sgd":
        return SGD(groups, lr=lr, momentum=experiment.momentum, fused=True)
    if experiment.optimizer == "adam":
        return Adam(groups, lr=lr, fused=True)
    if experiment.optimizer == "adamw":
        return AdamW(groups, lr=lr, fused=True)
    # One iteration per step, so that a step can be saved, measured and stopped like any other; the history stays.
    parameters = [p for group in groups for p in group["params"]]
    return LBFGS(parameters, lr=lr, max_iter=1, max_eval=25, history_size=20, line_search_fn="strong_wolfe")


def parameter_groups(experiment: Experiment, network: nn.Module) -> list[dict[str, Any]]:
    """Decay on every parameter, as the collapse papers do, or on weights only (not biases, not norms)."""
    trainable = [p for p in network.parameters() if p.requires_grad]
    if experiment.decay == "all" or experiment.weight_decay == 0:
        return [{"params": trainable, "weight_decay": experiment.weight_decay}]
    groups = [
        {"params": [p for p in trainable if p.ndim > 1], "weight_decay": experiment.weight_decay},
        {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def penalty(experiment: Experiment, network: nn.Module) -> torch.Tensor:
    """Return weight_decay / 2 sum |p|^2: what lbfgs adds to the loss, having no decay of its own."""
    total = torch.zeros((), device=next(network.parameters()).device)
    for group in parameter_groups(experiment, network):
        for parameter in group["params"]:
            total = total + group["weight_decay"] / 2 * parameter.square().sum()
    return total
