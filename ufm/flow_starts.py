"""Which problem a named start of a flow belongs to. Imports no torch: requests are checked by it before anything runs."""

from __future__ import annotations

from ufm.errors import RequestError
from ufm.problem import Problem


def check_start(problem: Problem, init: str) -> None:
    """Refuse a start that the problem does not have.

    subspace: the invariant subspace of Mixon, Parshall & Pi 2020 (MSE, free bias, equal counts, d >= K - 1). aligned: modes
    apart from each other (MSE without bias) or the simplex ray (CE with equal counts), both with d >= K.

    Raises:
        RequestError: what the start needs.
    """
    p = problem
    if init == "subspace" and not (p.loss == "mse" and p.bias == "free" and p.balanced and p.dim >= p.classes - 1):
        raise RequestError("init subspace needs loss mse, bias free, equal counts and dim >= classes - 1; use init random")
    aligned = (p.loss == "mse" and p.bias == "none") or (p.loss == "ce" and p.balanced)
    if init == "aligned" and not (aligned and p.dim >= p.classes):
        raise RequestError("init aligned needs dim >= classes and mse without bias, or balanced ce; use init random")
