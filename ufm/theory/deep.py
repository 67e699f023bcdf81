"""What is known of the optimum of a deep unconstrained-features model: every structure with its loss, and a prediction.

Where no theorem names the optimum (deep linear CE, deep ReLU with many classes) the structures are listed side by side
and the lowest is called the lowest *known*, never optimal.
"""

from __future__ import annotations

import numpy as np

from ufm.errors import RequestError
from ufm.prediction import DERIVED, EVIDENCE, Prediction, not_applicable
from ufm.problem import Problem
from ufm.theory import deep_linear, deep_relu


def structures(problem: Problem) -> dict[str, Prediction]:
    """Return structure name -> Prediction with its loss and weights that attain it.

    Names: zero, and whichever of etf, of, gof, dnc, srg, srg_flipped, pairs, circle exist.
    """
    if problem.activation == "linear" and problem.loss == "mse":
        found = deep_linear.predict_mse(problem)
        return {found.name: found, "zero": _zero(problem)} if found.applies else {}
    if not problem.balanced or problem.bias != "none" or problem.lambda_h <= 0 or min(problem.layer_lambdas) <= 0:
        return {}
    if problem.activation == "linear" and problem.loss == "ce":
        return _linear_ce(problem)
    if problem.activation == "relu" and problem.loss == "mse":
        return _relu_mse(problem)
    return {}


def predict(problem: Problem) -> Prediction:
    """Return the predicted optimum where a theorem names it, else the lowest known structure marked as evidence."""
    known = structures(problem)
    if not known:
        return not_applicable("no closed form is known for this loss, bias, activation and these counts at depth > 1", "deep")
    if problem.activation == "linear" and problem.loss == "mse":
        return next(iter(known.values()))
    return min(known.values(), key=lambda q: q.loss)


def _zero(problem: Problem) -> Prediction:
    K, counts = problem.classes, problem.count_vector
    share = counts / counts.sum()
    bias = share if problem.bias == "free" and problem.loss == "mse" else np.zeros(K)
    if problem.loss == "mse":
        loss = 0.5 * (1 - float((share**2).sum())) if problem.bias == "free" else 0.5
    else:
        loss = float(np.log(K))
    return Prediction(
        name="zero",
        loss=loss,
        logits=np.tile(bias, (K, 1)),
        bias=bias,
        gram_w=np.zeros((K, K)),
        gram_h=np.zeros((K, K)),
        singular_values=np.zeros(K),
        status=DERIVED,
        zero=True,
        weights=tuple(np.zeros((K if last else problem.dim, problem.dim)) for last in (False,) * (problem.depth - 1) + (True,)),
        means=np.zeros((K, problem.dim)),
    )


def _linear_ce(problem: Problem) -> dict[str, Prediction]:
    K, per_class = problem.classes, float(problem.count_vector[0])
    found = deep_linear.ce_structures(K, problem.depth, per_class, deep_linear.product(problem))
    ranks = {"dnc": K - 1, "pairs": K // 2, "circle": 2}
    result = {"zero": _zero(problem)}
    for name, (scale, loss) in found.items():
        if name == "zero" or ranks[name] > problem.dim:
            continue
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
            zero=scale == 0,
            weights=weights,
            means=means,
        )
    return result


def _relu_mse(problem: Problem) -> dict[str, Prediction]:
    result = {"zero": _zero(problem)}
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
            assumptions=("balanced", "ReLU layers", "MSE", "no bias", f"width >= {problem.classes}"),
            reference="sukenik2023" if name == "dnc" else "sukenik2024",
            details=dict(found.details),
            unique=False,
            weights=found.weights,
            means=found.means.T,
        )
    return result
