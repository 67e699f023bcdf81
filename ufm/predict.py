"""`predict`: the closed form that applies to a problem, or the sentence that says why none does."""

from __future__ import annotations

from ufm.prediction import Prediction, not_applicable
from ufm.problem import Problem
from ufm.tables import load
from ufm.theory import PREDICTIONS

NOTHING_KNOWN = "no closed form is known for this combination; the certificate of the solution decides"


def predict(problem: Problem) -> Prediction:
    """Return the predicted optimum of `problem`.

    The predictions of `ufm.theory.PREDICTIONS` are asked in their order; the first that applies answers. Where none does,
    `applies` is False and `reason` names what is missing.

    Args:
        problem: any valid Problem.

    Returns:
        Prediction: loss, logits (T, K) with the bias, Grams, thresholds, assumptions, status and reference.

    >>> round(predict(Problem(4, 6, 5, lambda_w=0.01, lambda_h=0.001)).loss, 12)
    0.126028943439
    """
    reason = ""
    for name in PREDICTIONS:
        answer = load(PREDICTIONS, name, "prediction")(problem)
        if answer.applies:
            return answer
        reason = reason or answer.reason
    return not_applicable(reason or NOTHING_KNOWN)
