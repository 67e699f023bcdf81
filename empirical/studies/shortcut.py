"""The shortcut study: an attribute that gives nearly every train label away, and primes that take it off the features.

Wang et al. (2024) prime a network with the attribute itself: f(x) is joined by a fixed vector m_b, one per value b of the
attribute, so that the classifier can read the shortcut there and the features need not hold it. At test m_b = 0.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

from empirical.experiment import Experiment
from empirical.studies import Study
from ufm.errors import RequestError
from ufm.spec import option

if TYPE_CHECKING:
    from empirical.data.source import Request

COLOURED = ("coloured-mnist5k", "coloured-digits")
PRIMES = ("none", "etf", "gaussian", "shuffled")


@dataclass(frozen=True)
class Shortcut(Experiment):
    """An experiment on samples with a spurious attribute, and how the network is primed with it."""

    dataset: str = option(COLOURED[0], f"data set with a spurious attribute: {' or '.join(COLOURED)}")
    conflict: float = option(0.02, "share of train samples whose attribute is not their class's", low=0.0, high=1.0, grid=True)
    conflict_test: float | None = option(
        None, "the same of test samples (1 - 1/C: attribute and label independent)", kind="float", low=0.0, high=1.0, grid=True
    )
    colours: int | None = option(None, "number C of values of the attribute (10)", kind="int", low=2, high=10, grid=True)
    primes: str = option(
        "none",
        "fixed vectors beside the features, one per value of the attribute: none, vertices of a simplex ETF, Gaussian "
        "directions, or the vertices of other samples",
        choices=PRIMES,
        grid=True,
    )
    prime_weight: float = option(0.8, "weight of the loss of the attribute on the primes alone", low=0.0, high=1000.0, grid=True)

    def resolved(self) -> Shortcut:
        """Return the experiment with its defaults filled in; RequestError for what a shortcut cannot be."""
        if self.primes != "none" and self.loss != "ce":
            raise RequestError(f"--loss {self.loss}: --primes {self.primes} are trained by cross-entropy; use --loss ce")
        if self.layers not in ("last", "all") and "penultimate" not in self.layers.split(","):
            raise RequestError(f"--layers {self.layers}: shortcut measures the last features by attribute; add penultimate")
        made = super().resolved()
        if made.dataset not in COLOURED:
            raise RequestError(f"--dataset {made.dataset} has no spurious attribute; use {' or '.join(COLOURED)}")
        return made  # type: ignore[return-value]

    @property
    def recipe(self) -> str:
        """The primed training, or the plain one."""
        return "" if self.primes == "none" else "empirical.primes:RECIPE"

    @property
    def references(self) -> tuple[str, ...]:
        """The method of the primes."""
        return () if self.primes == "none" else ("wang2024",)

    def data_request(self) -> Request:
        """Return what the data set is asked for, with how its attribute is drawn."""
        drawn = {"conflict": self.conflict, "conflict_test": self.conflict_test, "colours": self.colours}
        return dataclasses.replace(super().data_request(), **drawn)


STUDY = Study(
    name="shortcut",
    summary="training on a spurious attribute, with or without primes that take it off the features",
    spec=Shortcut,
    check="empirical.shortcut:check",
    train="empirical.shortcut:train",
    look="empirical.shortcut:Look",
    columns={
        "unbiased": ("test/network/self/accuracy_unbiased", 1.0),
        "conflicting": ("test/network/self/accuracy_conflicting", 1.0),
        "aligned": ("test/network/self/accuracy_aligned", 1.0),
        "train NC1": ("train/penultimate/self/nc1_pinv", 1.0),
        "test NC1": ("test/penultimate/self/nc1_pinv", 1.0),
        "by attribute": ("test/penultimate/self/attribute_nc1_pinv", 1.0),
    },
    examples=(
        ("empirical run shortcut --preset shortcut --primes none,etf --seeds 0:5", "10 networks, 30 s on 2 cores"),
        ("empirical run shortcut --dataset coloured-digits --conflict 0.02,0.9 --primes etf", "2 networks, 10 s on 2 cores"),
    ),
)
