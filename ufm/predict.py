"""`predict`: the closed form that applies to a problem; `structures`: what each named geometry would cost."""

from __future__ import annotations

from ufm.prediction import Prediction, not_applicable
from ufm.problem import Problem
from ufm.tables import load
from ufm.theory import PREDICTIONS, STRUCTURES
from ufm.theory.canonical import canonical

NOTHING_KNOWN = "no closed form is known for this combination; the certificate of the solution decides"


def predict(problem: Problem) -> Prediction:
    """Return the predicted optimum of `problem`.

    The predictions of `ufm.theory.PREDICTIONS` are asked in their order, on the problem in its simplest words; the first
    that applies answers. Where none does, `applies` is False and `reason` names what is missing.

    Args:
        problem: any valid Problem.

    Returns:
        Prediction: loss, logits (T, K) with the bias, Grams, thresholds, assumptions, status and reference.

    >>> round(predict(Problem(4, 6, 5, lambda_w=0.01, lambda_h=0.001)).loss, 12)
    0.126028943439
    """
    if problem.depth > 1:
        from ufm.theory import deep

        return deep.predict(problem)
    words = canonical(problem)
    refusal = not_applicable("")
    for name in PREDICTIONS:
        answer = load(PREDICTIONS, name, "prediction")(words.problem)
        if answer.applies:
            return words.restore(answer)
        if not refusal.reason:
            refusal = answer
    return refusal if refusal.reason else not_applicable(NOTHING_KNOWN)


def structures(problem: Problem) -> dict[str, Prediction]:
    """Return structure name -> Prediction with its loss at its own best scale, for every structure that fits the problem.

    Names: etf, of, gof, seli, code, zero; at depth > 1 those of `ufm.theory.deep` (zero, etf, of, gof, dnc, srg,
    srg_flipped, pairs, circle), with `weights` and `means` that attain the loss.
    None of them is claimed to be optimal; `predict` says what is.

    >>> sorted(structures(Problem(4, 6, 5, lambda_w=0.01, lambda_h=0.001)))
    ['etf', 'gof', 'of', 'seli', 'zero']
    """
    if problem.depth > 1:
        from ufm.theory import deep

        return deep.structures(problem)
    words = canonical(problem)
    found = {name: load(STRUCTURES, name, "structure")(words.problem) for name in STRUCTURES}
    return {name: words.restore(answer) for name, answer in found.items() if answer.applies}
