"""The solvers, one file each; a solver is a small dataclass with `init` and `step`, the loop is in `ufm.solve`."""

from ufm.tables import Entry

SOLVERS = {
    "lbfgs": Entry(
        "ufm.solvers.lbfgs:LBFGS",
        "batched limited-memory BFGS with an exact, slope-only line search",
        "every loss, bias and constraint; class-mean features",
    ),
}
