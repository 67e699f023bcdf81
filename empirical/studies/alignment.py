"""The alignment study: whether it matters which class has which vertex of a fixed classifier, and margins after the fit."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from empirical.experiment import Experiment
from empirical.studies import Study
from ufm.errors import RequestError
from ufm.spec import option

HEADS = {"simplex": "etf", "polygon": "polygon", "learned": "linear"}  # --vertices -> --head
MOST = 4096  # networks in one program


@dataclass(frozen=True)
class Alignment(Experiment):
    """An experiment on `permutations` x `starts` networks in one program, whose classifiers are fixed at permuted vertices."""

    vertices: str = option(
        "simplex", "where the classifiers are fixed: a simplex ETF, a regular polygon, or trained", choices=tuple(HEADS)
    )
    permutations: int = option(10, "draws of which class has which vertex (--vertices learned: 1)", low=1, high=MOST, grid=True)
    permute: str = option(
        "any", "any permutation, or a polygon's symmetries: turned and reflected only", choices=("any", "symmetries")
    )
    starts: int = option(8, "networks of each permutation, each with a start and a frame of its own", low=1, high=MOST, grid=True)

    def resolved(self) -> Alignment:
        """Return the experiment with its defaults filled in; RequestError for what the study cannot do."""
        made, head = super().resolved(), HEADS[self.vertices]
        if self.head not in ("linear", head):
            raise RequestError(f"--head {self.head}: in alignment --vertices says what the classifier is; leave --head out")
        if self.vertices == "learned" and (self.permutations > 1 or self.permute != "any"):
            given = f"--permutations {self.permutations}" if self.permutations > 1 else f"--permute {self.permute}"
            raise RequestError(
                f"{given}: a classifier that is trained has no vertices to permute; use --permutations 1 or --vertices polygon"
            )
        if self.permute == "symmetries" and self.vertices == "simplex":
            raise RequestError("--permute symmetries: every permutation is a symmetry of a simplex; use --permute any")
        if self.permutations * self.starts > MOST:
            raise RequestError(
                f"--permutations {self.permutations} with --starts {self.starts} are more than {MOST} networks; use fewer"
            )
        for flag, given in self._refused().items():
            if given:
                raise RequestError(f"{flag}: alignment trains many networks as one module, which cannot do this; leave it out")
        return dataclasses.replace(made, head=head)  # type: ignore[return-value]

    def _refused(self) -> dict[str, bool]:
        """Return flag -> whether it asks for what this study does not do: what a run records must have had its effect."""
        return {
            f"--model {self.model}": self.model != "mlp",
            f"--head-depth {self.head_depth}": self.head_depth > 1,
            f"--layers {self.layers}": self.layers != "last",
            f"--ranks {self.ranks}": self.ranks != "ends",
            "--match-counts": self.match_counts,
            f"--ood {self.ood}": self.ood is not None,
            f"--optimizer {self.optimizer}": self.optimizer == "lbfgs",
            f"--decay {self.decay}": self.decay != "all",
            f"--precision {self.precision}": self.precision != "float32",
            "--compile": self.compile,
        }

    @property
    def recipe(self) -> str:
        """What is trained: all networks as one module, on the sum of their losses."""
        return "empirical.alignment:RECIPE"

    @property
    def references(self) -> tuple[str, ...]:
        """The question, and the margins."""
        return ("gao2023",)


STUDY = Study(
    name="alignment",
    summary="classifiers fixed at a simplex or polygon, classes permuted over its vertices; margins through the terminal phase",
    spec=Alignment,
    check="empirical.alignment:check",
    train="empirical.alignment:train",
    columns={
        "F": ("test/network/self/permutation_f", 1.0),
        "p": ("test/network/self/permutation_p", 1.0),
        "share": ("test/network/self/permutation_share", 1.0),
        "margin": ("train/network/self/margin_mean", 1.0),
        "least margin": ("train/network/self/margin_min", 1.0),
        "train error": ("train/network/self/error", 1.0),
        "test error": ("test/network/self/error", 1.0),
    },
    examples=(
        ("empirical run alignment --vertices polygon --steps 400 --width 64 --depth 2", "80 networks, 15 s"),
        ("empirical run alignment --vertices learned --permutations 1 --starts 1 --epochs 100", "1 network, 5 s"),
    ),
)
