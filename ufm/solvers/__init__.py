"""The solvers, one file each; a solver is a small dataclass with `init` and `step`, the loop is in `ufm.solve`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from ufm.tables import Entry

if TYPE_CHECKING:
    from torch import Tensor

    from ufm.solvers.objective import Objective


class Solver(Protocol):
    """A way to walk downhill. States have x (B, P), residual (B,), stalled (B,) and select(index)."""

    def init(self, objective: Objective, x: Tensor) -> Any:
        """Return the state at the start points x (B, P)."""

    def step(self, objective: Objective, state: Any) -> Any:
        """Return the state one iteration later."""


SOLVERS = {
    "lbfgs": Entry(
        "ufm.solvers.lbfgs:LBFGS",
        "batched limited-memory BFGS with an exact, slope-only line search",
        "every loss, bias and constraint; class-mean features",
        "liu1989",
    ),
    "newton": Entry(
        "ufm.solvers.newton:Newton",
        "batched truncated Newton: Hessian products inside conjugate gradients, the same line search",
        "ridge problems with free features; class-mean features",
        "dembo1983",
    ),
    "classwise": Entry(
        "ufm.solvers.classwise:Classwise",
        "L-BFGS in the frame of the classes, the curvature of every logit divided out: hundreds of classes and more",
        "convex ridge problems with free features, class labels and d >= K; starts at the best diagonal logits, noise 1 %",
    ),
    "projected": Entry(
        "ufm.solvers.projected:Projected",
        "L-BFGS on the free variables of features >= 0, several starts",
        "features='nonnegative'",
        "bertsekas1982",
    ),
}

PATHS = {
    name: Entry("ufm.solvers.descent:solve_paths", summary, "ridge problems; every sample moves", reference)
    for name, summary, reference in (
        ("gd", "gradient descent in raw coordinates", ""),
        ("momentum", "heavy-ball momentum 0.9 in raw coordinates, as in torch.optim.SGD", "polyak1964"),
        ("adam", "Adam in raw coordinates, as in torch.optim.Adam with weight decay in the gradient", "kingma2015"),
        ("flow", "gradient flow in raw coordinates, Dormand-Prince with its own step for every problem", "dormand1980"),
    )
}
METHODS = {
    **SOLVERS,
    **PATHS,
    "scipy": Entry(
        "ufm.solvers.scipy:solve_scipy", "SciPy's L-BFGS-B on the reduced problem: a cross-check", "ridge problems", "byrd1995"
    ),
    "signs": Entry(
        "ufm.solvers.signs:solve_signs",
        "the best of all signs, where unit vectors have one dimension",
        "constraint='sphere', d = 1",
    ),
    "exact": Entry("ufm.solvers.exact:solve_exact", "the closed form, where one applies", "see ufm.predict"),
}

OBJECTIVES = {
    "ridge": Entry("ufm.solvers.objective:Objective", "penalties on W, H and b"),
    "sphere": Entry("ufm.solvers.normalised:Sphere", "unit rows, temperature"),
    "ball": Entry("ufm.solvers.normalised:Ball", "layer-peeled: total norms"),
    "tied": Entry("ufm.solvers.normalised:Tied", "similarities of unit features with each other"),
}
