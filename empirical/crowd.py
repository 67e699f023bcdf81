"""`Crowd`: many small networks of one architecture as one module, trained and measured in one program on the same batches.

Their tensors are stacked, so that a layer of all of them is one batched product. They share nothing but the data and its order:
the gradient of the sum of their losses is each one's own gradient, and the optimisers act on each number alone.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from empirical.losses import Loss


class Crowd(nn.Module):
    """M networks on the same inputs: forward maps (n, ...) to logits (M, n, K)."""

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        parameters, buffers = stack_module_state(list(networks))
        for name, value in parameters.items():
            self.register_parameter(_key(name), nn.Parameter(value.detach(), requires_grad=value.requires_grad))
        for name, value in buffers.items():
            self.register_buffer(_key(name), value)
        self.names = tuple(parameters), tuple(buffers)
        self.size = len(networks)
        base = copy.deepcopy(networks[0]).to("meta")
        # In a list, so that it is no submodule: it has a form but no values.
        self.base = [base]
        self.classifier, classifier = [(name, m) for name, m in base.named_modules() if isinstance(m, nn.Linear)][-1]
        self.seen: list[Tensor] = []
        classifier.register_forward_pre_hook(lambda _, inputs: self.seen.append(inputs[0]))

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the logits (M, n, K) of inputs (n, ...)."""
        return self.both(inputs)[0]

    def both(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits (M, n, K) and what the classifiers see of inputs (n, ...): features (M, n, d)."""
        base = self.base[0].train(self.training)

        def one(parameters: dict[str, Tensor], buffers: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
            logits = functional_call(base, (parameters, buffers), (inputs,))
            return logits, self.seen.pop()

        state = [{name: getattr(self, _key(name)) for name in names} for names in self.names]
        return vmap(one, randomness="different")(*state)

    def weight(self) -> Tensor:
        """Return the classifiers' weights, (M, K, d), detached."""
        return getattr(self, _key(f"{self.classifier}.weight")).detach()

    def bias(self) -> Tensor | None:
        """Return the classifiers' biases, (M, K), detached; None where they have none."""
        found = getattr(self, _key(f"{self.classifier}.bias"), None)
        return None if found is None else found.detach()


def _key(name: str) -> str:
    """Return a name as torch allows it for a parameter of its own: without dots."""
    return name.replace(".", "/")


def summed(loss: Loss, size: int) -> Loss:
    """Return a loss of logits (M, n, K) and labels (n,) whose value is the mean over networks and whose gradient is the sum's.

    The sum's gradient is each network's own, as if it were alone; the mean is what a log should show.
    """

    def of(logits: Tensor, labels: Tensor) -> Tensor:
        mean = loss(logits.flatten(0, 1), labels.repeat(size))
        return mean * size - mean.detach() * (size - 1)

    return of


def evaluated(crowd: Crowd, inputs: Tensor, rows: int = 1000) -> tuple[Tensor, Tensor]:
    """Return logits (M, N, K) and features (M, N, d) in eval mode, `rows` samples at a time, the mode put back."""
    training = crowd.training
    crowd.eval()
    try:
        with torch.no_grad():
            parts = [crowd.both(chunk) for chunk in inputs.split(rows)]
    finally:
        crowd.train(training)
    return torch.cat([z for z, _ in parts], dim=1), torch.cat([h for _, h in parts], dim=1)
