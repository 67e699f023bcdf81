"""The nesy study: digits read from images while only sums of several of them are labelled, with or without a pretrained network.

Daniele et al. (2024) train a plain network on the labels of the downstream task, put the part of it that perceives into a
neuro-symbolic model, and train that on the same labels. Here the task is a sum of m digits and the symbolic part is exact.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from empirical.experiment import Experiment
from empirical.studies import Study
from ufm.errors import RequestError
from ufm.spec import option

STARTS = ("scratch", "frozen", "finetune")
JOINED = ("sum", "concat")


@dataclass(frozen=True)
class Nesy(Experiment):
    """An experiment on sums of `operands` digits; epochs count from the start, a pretraining included."""

    operands: int = option(2, "digits that are added", low=2, high=100, grid=True)
    start: str = option(
        "scratch",
        "how the exact model begins: untrained, or with the features of a plain network trained on the same sums, "
        "kept as they are (frozen) or trained on (finetune)",
        choices=STARTS,
        grid=True,
    )
    pretrain_epochs: int | None = option(
        None, "epochs of the plain network, before --epochs (as many)", kind="int", low=1, grid=True
    )
    repeats: int = option(20, "sums that each image takes part in", low=1, high=10**6, grid=True)
    joined: str = option("sum", "what the plain network sees of the operands: the sum of their features, or all", choices=JOINED)
    plain_width: int = option(256, "hidden units of the plain network on the features", low=1, high=10**5, grid=True)
    model: str = option("mlp", "architecture of the perception (see 'empirical list')")
    norm: str = option("none", "normalisation", choices=("batch", "none"))
    optimizer: str = option("adam", "optimiser", choices=("sgd", "adam", "adamw"))
    weight_decay: float = option(0.0, "weight decay", low=0.0, grid=True)
    schedule: str = option(
        "none", "step size over time, of each stage (see collapse)", choices=("thirds", "step", "cosine", "none")
    )
    measure_at: str = option("every", "epochs measured: log, papyan, every, or a list such as 1,10,100")

    def resolved(self) -> Nesy:
        """Return the experiment with its defaults filled in; RequestError for what the study cannot do."""
        if self.start == "scratch" and self.pretrain_epochs is not None:
            raise RequestError(
                f"--pretrain-epochs {self.pretrain_epochs}: --start scratch has no pretraining; use --start finetune or frozen"
            )
        if self.layers not in ("last", "all") and "penultimate" not in self.layers.split(","):
            raise RequestError(f"--layers {self.layers}: nesy measures the last features by digit; add penultimate")
        for flag, given in self._refused().items():
            if given:
                raise RequestError(
                    f"{flag}: the digits of nesy are known by their sums alone, which this does not fit; leave it out"
                )
        if self.head in ("etf", "polygon") and self.start == "frozen":
            raise RequestError(
                f"--head {self.head}: a fixed classifier on frozen features leaves nothing to train; use --start finetune"
            )
        budget = {"epochs": 20} if self.epochs is None and self.steps is None else {}
        batch = {"batch_size": 64} if self.batch_size is None else {}
        made = dataclasses.replace(super().resolved(), **budget, **batch)
        if self.start == "scratch" or self.pretrain_epochs is not None:
            return made  # type: ignore[return-value]
        if made.epochs is None:
            raise RequestError(f"--steps {self.steps}: say with --pretrain-epochs how long the plain network is trained before")
        return dataclasses.replace(made, pretrain_epochs=made.epochs)  # type: ignore[return-value]

    def _refused(self) -> dict[str, bool]:
        """Return flag -> whether it asks for what this study does not do: what a run records must have had its effect."""
        return {
            f"--loss {self.loss}": self.loss != "ce",
            f"--augment {self.augment}": self.augment != "none",
            f"--label-noise {self.label_noise:g}": self.label_noise > 0,
            "--coarse": self.coarse is not None,
        }

    @property
    def recipe(self) -> str:
        """What is trained: the digits' network on sums."""
        return "empirical.nesy:RECIPE"

    @property
    def references(self) -> tuple[str, ...]:
        """The method of the pretraining."""
        return () if self.start == "scratch" else ("daniele2024",)

    @property
    def moments(self) -> dict[str, str]:
        """When the network is measured; between the two stages in any case."""
        return super().moments | ({"--pretrain-epochs": str(self.pretrain_epochs)} if self.pretrain_epochs else {})

    def samples_of(self, inputs: int) -> int:
        """Return the number of train sums of `inputs` images."""
        return self.repeats * (inputs // self.operands)

    @property
    def sizes(self) -> tuple[str, ...]:
        """The number of sums is one of them."""
        return *super().sizes, "--repeats"

    def stages(self, per_epoch: int) -> tuple[int, ...]:
        """Return (0, steps), or (0, steps of the pretraining, steps of both)."""
        own = super().stages(per_epoch)
        if self.pretrain_epochs is None:
            return own
        return 0, *(self.pretrain_epochs * per_epoch + step for step in own)


STUDY = Study(
    name="nesy",
    summary="digits learnt from the labels of their sums alone, from scratch or from a network pretrained on the same labels",
    spec=Nesy,
    check="empirical.nesy:check",
    train="empirical.nesy:train",
    columns={
        "digits": ("test/network/self/digit_accuracy", 1.0),
        "renamed": ("test/network/self/digit_accuracy_matched", 1.0),
        "wrong sums": ("test/network/self/sum_error", 1.0),
        "train NC1": ("train/penultimate/self/nc1_pinv", 1.0),
        "test NC1": ("test/penultimate/self/nc1_pinv", 1.0),
    },
    examples=(
        ("empirical run nesy --operands 4 --start scratch,finetune --epochs 10", "2 networks, 25 s on 2 cores"),
        ("empirical run nesy --operands 2,4,10 --start finetune --dataset mnist5k --repeats 2", "3 networks, 25 s on 2 cores"),
    ),
)
