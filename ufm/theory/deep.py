"""What is known of the optimum of a deep unconstrained-features model: every structure with its loss, and a prediction.

Where no theorem names the optimum (deep linear CE, deep ReLU with many classes) the structures are listed side by side
and the lowest is called the lowest *known*, never optimal. That includes zero: where every known structure lies above it,
points below both may exist (three ReLU classes at L = 4, just above the threshold of deep neural collapse: rank 2, .477).
"""

from __future__ import annotations

import numpy as np

from ufm.errors import RequestError
from ufm.prediction import DERIVED, EVIDENCE, Prediction, not_applicable
from ufm.problem import Problem
from ufm.theory import deep_linear, deep_relu
from ufm.theory import zero as origin

LOWEST_KNOWN = "the lowest known structure, not a proven optimum"


def structures(problem: Problem) -> dict[str, Prediction]:
    """Return structure name -> Prediction with its loss and weights that attain it.

    Names: zero with its best bias (always: it is stationary from depth 2 on), and whichever of etf, of, gof, dnc, srg,
    srg_flipped, pairs, circle exist. None is claimed to be optimal; `predict` says what is.
    """
    if problem.activation == "linear" and problem.loss == "mse":
        found = deep_linear.predict_mse(problem)
        if found.applies and found.zero:
            return {"zero": found}
        alive = {found.name: found} if found.applies else {}
        return {**alive, "zero": _zero(problem, optimal=False)}
    if not _listed(problem):
        return {"zero": _zero(problem, optimal=False)}
    return _linear_ce(problem) if problem.activation == "linear" else _relu_mse(problem)


def predict(problem: Problem) -> Prediction:
    """Return the predicted optimum where a theorem names it, else the lowest known structure marked as evidence."""
    return lowest(problem, structures(problem))


def lowest(problem: Problem, known: dict[str, Prediction]) -> Prediction:
    """Return `predict(problem)`, given `structures(problem)`."""
    found = min(known.values(), key=lambda q: q.loss)
    if found.name != "zero" or found.zero:
        return found
    if not _listed(problem):
        return not_applicable("no closed form is known for this loss, bias, activation and these counts at depth > 1", "deep")
    if problem.activation == "relu" and problem.dim < problem.classes:
        return not_applicable(
            f"no structure but zero is known for ReLU layers of width {problem.dim} < {problem.classes} classes; zero is "
            f"stationary at {found.loss:g}, and lower points exist at small weight decay",
            "deep",
        )
    return found


def _listed(problem: Problem) -> bool:
    """Return whether structures other than zero and those of linear layers with MSE are known for this kind of problem."""
    kinds = (("linear", "ce"), ("relu", "mse"))
    penalised = problem.lambda_h > 0 and min(problem.layer_lambdas) > 0
    return problem.balanced and problem.bias == "none" and penalised and (problem.activation, problem.loss) in kinds


def _zero(problem: Problem, *, optimal: bool, reference: str = "") -> Prediction:
    """Return the zero solution with its best bias; `optimal`: a theorem says that nothing is lower here."""
    K = problem.classes
    flat = problem.replace(depth=1, activation="linear", lambda_w=1.0, lambda_h=1.0)  # at zero only the bias is left
    found = origin.candidate(flat)
    bias = np.asarray(found.bias, dtype=np.float64)
    return Prediction(
        name="zero",
        loss=0.5 if problem.loss == "mse" and problem.bias == "none" else found.loss,
        logits=np.tile(bias, (K, 1)),
        bias=bias,
        gram_w=np.zeros((K, K)),
        gram_h=np.zeros((K, K)),
        singular_values=np.zeros(K),
        status=DERIVED if optimal else EVIDENCE,
        assumptions=() if optimal else (LOWEST_KNOWN,),
        reference=reference if optimal else "",
        zero=optimal,
        weights=tuple(np.zeros((K if last else problem.dim, problem.dim)) for last in (False,) * (problem.depth - 1) + (True,)),
        means=np.zeros((K, problem.dim)),
    )


def _linear_ce(problem: Problem) -> dict[str, Prediction]:
    K, per_class = problem.classes, float(problem.count_vector[0])
    found = deep_linear.ce_structures(K, problem.depth, per_class, deep_linear.product(problem))
    ranks = {"dnc": K - 1, "pairs": K // 2, "circle": 2}
    # One layer is a convex problem, whose optimum above the threshold is zero at any width.
    result = {"zero": _zero(problem, optimal=problem.depth == 1 and found["dnc"][0] == 0)}
    for name, (scale, loss) in found.items():
        if name == "zero" or ranks[name] > problem.dim or scale == 0:
            continue  # at scale 0 it lies above zero
        logits = deep_linear.ce_logits(name, K, scale)
        weights, means = deep_linear.explicit_weights(problem, logits.T * np.sqrt(per_class))
        result[name] = Prediction(
            name=name,
            loss=loss,
            logits=logits,
            bias=np.zeros(K),
            singular_values=np.linalg.svd(logits * np.sqrt(per_class), compute_uv=False),
            status=EVIDENCE,
            assumptions=("balanced", "linear layers", "cross-entropy", "no bias", "a stationary structure, not a proven optimum"),
            reference="garrod2024",
            details={"scale": scale, "rank": ranks[name]},
            weights=weights,
            means=means,
        )
    return result


def _relu_mse(problem: Problem) -> dict[str, Prediction]:
    result = {}
    for name, make in (("dnc", deep_relu.dnc), ("srg", deep_relu.srg), ("srg_flipped", deep_relu.srg_flipped)):
        try:
            found = make(
                problem.classes,
                problem.depth,
                problem.dim,
                float(problem.count_vector[0]),
                problem.layer_lambdas,
                problem.lambda_h,
            )
        except RequestError:
            continue  # the structure does not exist for this K, depth or width
        if found.name == "zero" or found.loss >= 0.5:
            continue
        last = found.weights[-1]
        result[name] = Prediction(
            name=name,
            loss=found.loss,
            logits=found.output.T,
            bias=np.zeros(problem.classes),
            gram_w=last @ last.T,
            gram_h=found.means.T @ found.means,
            singular_values=np.linalg.svd(found.output, compute_uv=False) * np.sqrt(problem.count_vector[0]),
            # For two classes deep neural collapse is proven optimal (Sukenik et al. 2023); otherwise it is one structure.
            status=DERIVED if name == "dnc" and problem.classes == 2 else EVIDENCE,
            assumptions=(
                *("balanced", "ReLU layers", "MSE", "no bias", f"width >= {problem.classes}"),
                *(() if name == "dnc" and problem.classes == 2 else (LOWEST_KNOWN,)),
            ),
            reference="sukenik2023" if name == "dnc" else "sukenik2024",
            details=dict(found.details),
            unique=False,
            weights=found.weights,
            means=found.means.T,
        )
    # Two classes: deep neural collapse or else zero is optimal (Sukenik et al. 2023). One layer has no ReLU in it and is
    # convex. Anywhere else "no known structure is lower" is all there is.
    proven = problem.dim >= problem.classes and (problem.classes == 2 or problem.depth == 1)
    return {"zero": _zero(problem, optimal=proven and not result, reference="sukenik2023"), **result}
