"""When the step size changes and when the network is measured: pure functions of the step, so that resume needs no state."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from ufm.errors import RequestError

# Papyan, Han & Donoho 2020: dense at the start and log-spaced in the terminal phase of 350 epochs.
PAPYAN = (
    *(*range(1, 15), 16, 17, 19, 20, 22, 24, 27, 29, 32, 35, 38, 42, 45, 50, 54, 59, 65, 71, 77, 85, 92, 101),
    *(110, 121, 132, 144, 158, 172, 188, 206, 225, 245, 268, 293, 320, 350),
)
FEW = 8  # samples of a last batch below which batch norm is warned about
MOST = 100_000  # looks at one training: at 200 values a look their file has gigabytes
LOG_POINTS = 24  # of --measure-at log, before rounding to whole epochs


@dataclass(frozen=True)
class Clock:
    """Steps and epochs of one training: N samples in batches of `batch`, `steps` steps in all."""

    samples: int
    batch: int
    steps: int

    @property
    def per_epoch(self) -> int:
        """Batches of one epoch. A last batch of a single sample joins the one before: batch norm has no variance of one."""
        full, rest = divmod(self.samples, self.batch)
        return max(1, full + (rest > 1 or (rest == 1 and full == 0)))

    @property
    def epochs(self) -> int:
        """Epochs begun."""
        return -(-self.steps // self.per_epoch)

    def bounds(self, position: int) -> tuple[int, int]:
        """First and last sample (exclusive) of batch `position` of an epoch."""
        last = position == self.per_epoch - 1
        return position * self.batch, self.samples if last else (position + 1) * self.batch

    def epoch_of(self, step: int) -> int | float:
        """Epochs done after `step` steps: a whole number at the end of an epoch."""
        whole, rest = divmod(step, self.per_epoch)
        return whole if rest == 0 else round(step / self.per_epoch, 6)


def small_last_batch(clock: Clock) -> str | None:
    """Return a warning where the last batch of an epoch is so small that its statistics under batch norm are noise; else None."""
    left, all_ = clock.samples % clock.batch, clock.samples
    if left < 2 or left >= min(FEW, clock.batch) or clock.per_epoch == 1:  # a single one joins the batch before
        return None
    divisors = [b for b in range(min(FEW, all_), all_ + 1) if all_ % b == 0]
    best = min(divisors, key=lambda b: abs(b - clock.batch))
    return (
        f"the last batch of an epoch has {left} of {all_} samples; batch norm over so few can keep train from collapsing: "
        f"--batch-size {best} divides {all_}"
    )


def learning_rate(name: str, base: float, step: int, clock: Clock, every: int, factor: float) -> float:
    """Return the step size of `step` (counted from 0).

    thirds: divided by 10 after 1/3 and 2/3 of all steps; step: times `factor` after every `every` epochs;
    cosine: base (1 + cos(pi t / T)) / 2; none: constant.
    """
    if name == "thirds":
        return base * 0.1 ** (3 * step // clock.steps)
    if name == "step":
        return base * factor ** (step // (every * clock.per_epoch))
    if name == "cosine":
        return base * 0.5 * (1 + math.cos(math.pi * step / clock.steps))
    return base


def due_steps(moments: Mapping[str, str], clock: Clock) -> tuple[int, ...]:
    """Return the steps of all `moments` (flag -> text) together."""
    return tuple(sorted({step for flag, text in moments.items() for step in measuring_steps(text, clock, flag)}))


def measuring_steps(text: str, clock: Clock, flag: str = "--measure-at") -> tuple[int, ...]:
    """Return the steps after which the network is measured: always 0 (untrained: the control) and the last.

    text: "log" (log-spaced epochs), "papyan", "every" (epoch) or a list of epochs such as "1,10,100". flag: named in errors.
    RequestError for an unknown text, an epoch that is not trained, and more than 100,000 looks.
    """
    whole = clock.steps // clock.per_epoch
    if text == "papyan":
        epochs = {e for e in PAPYAN if e <= whole}
    elif text == "every":
        if whole > MOST:
            raise RequestError(f"{flag} every: {whole} epochs; the network is measured at most {MOST} times: use log or a list")
        epochs = set(range(1, whole + 1))
    elif text == "log":
        epochs = {round(max(whole, 1) ** (i / (LOG_POINTS - 1))) for i in range(LOG_POINTS)}
    else:
        epochs = _listed(text, clock, flag)
    return tuple(sorted({0, clock.steps} | {e * clock.per_epoch for e in epochs if e <= whole}))


def _listed(text: str, clock: Clock, flag: str) -> set[int]:
    try:
        epochs = {int(part) for part in text.split(",")}
    except ValueError:
        raise RequestError(f"{flag} {text!r} is not known; use log, papyan, every or epochs such as 1,10,100") from None
    last = clock.steps // clock.per_epoch
    if min(epochs) < 0 or max(epochs) > last:
        raise RequestError(f"{flag} {text}: epochs must lie in 0..{last}; the training has {last} whole epochs")
    return epochs
