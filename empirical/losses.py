"""The training losses on logits, mean over the batch; the names and conventions of `ufm`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from ufm.errors import RequestError
from ufm.tables import suggest

Loss = Callable[[Tensor, Tensor], Tensor]


def squared_error(logits: Tensor, labels: Tensor) -> Tensor:
    """mean_i 1/2 |z_i - onehot(y_i)|^2, the sum over classes (Problem's convention). logits (n, K), labels (n,)."""
    return squared_error_mean(logits, labels) * (logits.shape[1] / 2)


def squared_error_mean(logits: Tensor, labels: Tensor) -> Tensor:
    """mean over samples and classes of (z - onehot(y))^2: torch's MSELoss, 2/K times `squared_error`."""
    return F.mse_loss(logits, F.one_hot(labels, logits.shape[1]).to(logits.dtype))


def focal(logits: Tensor, labels: Tensor, gamma: float) -> Tensor:
    """mean_i -(1 - p_i)^gamma log p_i with p_i the probability of the label (Lin et al. 2017, eq. 4)."""
    log_p = F.log_softmax(logits, dim=1).gather(1, labels[:, None])[:, 0]
    return -((-torch.expm1(log_p)).clamp_min(0) ** gamma * log_p).mean()


def objective(name: str, smoothing: float = 0.1, focal_gamma: float = 2.0) -> Loss:
    """Return the loss `name`: ce, mse, mse-mean, smoothing (share `smoothing` spread evenly) or focal."""
    losses: dict[str, Loss] = {
        "ce": F.cross_entropy,
        "mse": squared_error,
        "mse-mean": squared_error_mean,
        "smoothing": partial(F.cross_entropy, label_smoothing=smoothing),
        "focal": partial(focal, gamma=focal_gamma),
    }
    if name not in losses:
        raise RequestError(f"unknown loss {name!r}; {suggest(name, losses)}")
    return losses[name]
