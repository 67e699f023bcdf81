"""The starvation study: whether a penalty on the logits keeps a network from living on one strong feature alone.

Two kinds of data: moons that one coordinate separates (the other is starved), and digits whose colour goes with the label on
train and against it on test. Pezeshki et al. (2020) penalise the logits instead of the weights (spectral decoupling).
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

DATA = ("moons", "coloured-digits", "coloured-mnist5k")


@dataclass(frozen=True)
class Starvation(Experiment):
    """An experiment on data with a strong feature, and the penalty on the logits."""

    dataset: str = option("moons", "data set with a feature that suffices: moons, coloured-digits or coloured-mnist5k")
    norm: str = option("none", "normalisation", choices=("batch", "none"))
    weight_decay: float = option(0.0, "weight decay", low=0.0, grid=True)
    schedule: str = option(
        "none", "step size over time (thirds: /10 at 1/3 and 2/3)", choices=("thirds", "step", "cosine", "none")
    )
    decoupling: float = option(
        0.0, "lambda of spectral decoupling, lambda/2 |logits|^2 on the mean over samples", low=0.0, high=1e6, grid=True
    )
    margin: float | None = option(
        None, "Delta of the moons: the gap that makes one coordinate enough (0.1)", kind="float", low=-10.0, high=10.0, grid=True
    )
    colours: int | None = option(None, "number C of colours (10; 2 with --coarse 5,5)", kind="int", low=2, high=10, grid=True)
    conflict: float | None = option(
        None, "share of train samples whose colour is not their class's (0.02)", kind="float", low=0.0, high=1.0, grid=True
    )
    conflict_test: float | None = option(
        None, "the same of test samples (1 - 1/C: colour and label independent)", kind="float", low=0.0, high=1.0, grid=True
    )
    saturation: float | None = option(
        None, "share of colour in white, drawn for each image from 0 to this (all are full)", kind="float", low=0.0, high=1.0,
        strict=True, grid=True,
    )  # fmt: skip
    mislabelled: float | None = option(
        None, "share of all samples with the label, and the colour, of a class of another colour (0)",
        kind="float", low=0.0, high=1.0, grid=True,
    )  # fmt: skip

    def resolved(self) -> Starvation:
        """Return the experiment with its defaults filled in; RequestError for what the study cannot do."""
        made = super().resolved()
        if self.dataset not in DATA:
            raise RequestError(f"--dataset {self.dataset}: starvation needs a feature known to be strong; use {', '.join(DATA)}")
        return made  # type: ignore[return-value]

    @property
    def recipe(self) -> str:
        """The loss with the penalty on the logits, or the plain one."""
        return "empirical.starvation:RECIPE" if self.decoupling else ""

    @property
    def references(self) -> tuple[str, ...]:
        """The penalty on the logits."""
        return ("pezeshki2020",) if self.decoupling else ()

    def data_request(self) -> Request:
        """Return what the data set is asked for, with the strength of its feature."""
        names = ("margin", "colours", "conflict", "conflict_test", "saturation", "mislabelled")
        return dataclasses.replace(super().data_request(), **{name: getattr(self, name) for name in names})


STUDY = Study(
    name="starvation",
    summary="a strong feature against the others: plain loss, weight decay, or a penalty on the logits (spectral decoupling)",
    spec=Starvation,
    check="empirical.starvation:check",
    train="empirical.starvation:train",
    look="empirical.starvation:Look",
    columns={
        "second coordinate": ("test/network/self/gradient_share", 1.0),
        "conflicting": ("test/network/self/accuracy_conflicting", 1.0),
        "aligned": ("test/network/self/accuracy_aligned", 1.0),
        "train NC1": ("train/penultimate/self/nc1_pinv", 1.0),
        "train error": ("train/network/self/error", 1.0),
        "test error": ("test/network/self/error", 1.0),
    },
    examples=(
        ("empirical run starvation --preset starvation-moons --decoupling 0,0.012 --seeds 0:5", "10 networks, 15 s on 2 cores"),
        ("empirical run starvation --preset starvation-coloured --decoupling 0,0.2", "2 networks, 5 s on 2 cores"),
    ),
)
