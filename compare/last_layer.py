"""A measured last layer (W, class means, b) held against the optimum of one `Problem`: arrays in, numbers out.

What the network pays is f = fit + lambda_w/2 |W|^2 + lambda_h/2 sum_i |h_i|^2 + lambda_b/2 |b|^2, within-class scatter included.
The optimum f* is a closed form where one applies and a certified numerical solution where none does.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np

from ufm.prediction import Prediction, not_applicable
from ufm.problem import Problem

MOST_CLASSES = 200  # beyond it a numerical optimum takes minutes
SAME = 1e-6  # relative distance up to which a predicted matrix treats all classes alike
CLOSED = 1e-6  # relative duality gap up to which a numerical optimum is shown as the prediction
SHIFT_FREE = ("ce", "smoothing", "focal")  # losses that do not see a constant added to all logits


@dataclass(frozen=True, eq=False)
class Head:
    """W (K, d), b (K,) or None, class means (K, d), counts (K,), Tr Sigma_k (K,) and the mean data loss of one network."""

    W: np.ndarray
    b: np.ndarray | None
    means: np.ndarray
    counts: np.ndarray
    traces: np.ndarray
    fit: float

    @property
    def bias(self) -> np.ndarray:
        """The bias, zeros where there is none."""
        return np.zeros(len(self.W)) if self.b is None else self.b

    @property
    def logits(self) -> np.ndarray:
        """Logits of the class means (K, K), row = class of the sample."""
        return self.means @ self.W.T + self.bias

    @property
    def size_w(self) -> float:
        """|W|^2."""
        return float((self.W**2).sum())

    @property
    def size_h(self) -> float:
        """sum_i |h_i|^2 over all train samples."""
        return float(self.counts @ ((self.means**2).sum(1) + self.traces))

    @property
    def within(self) -> float:
        """Share of sum_i |h_i|^2 that is within-class scatter."""
        return float(self.counts @ self.traces) / self.size_h

    @property
    def mean_share(self) -> float:
        """|mu_C|^2 over the mean |mu_k|^2: what all classes have in common."""
        return _mean_share(self.means @ self.means.T)

    def objective(self, problem: Problem) -> float:
        """Return f of the whole network's last layer, every sample counted."""
        return self.fit + self.penalty(problem, self.size_h)

    def penalty(self, problem: Problem, size_h: float) -> float:
        """Return the three penalties for a given sum of |h|^2."""
        ridge = problem.lambda_b / 2 * float(self.bias @ self.bias)
        return problem.layer_lambdas[0] / 2 * self.size_w + problem.lambda_h / 2 * size_h + ridge


@dataclass(frozen=True)
class Optimality:
    """How far a last layer is from the optimum of its problem."""

    gap: float  # duality: f - f* <= gap; nan where no bound is known
    relative: float  # gap / f
    reason: str  # what is certified, or why nothing is
    scatter: float  # the part of f that within-class scatter costs: f - f(every sample at its class mean)
    excess: float  # penalties of W and H / the least for the same logits with free features (c times their nuclear norm)
    least_excess: float  # the same at the optimum: 1, and more where features >= 0 cannot reach the nuclear norm
    pull: float  # -<W, dfit/dW> / (lambda_w |W|^2): 1 where the classifier is stationary
    pull_at: str  # "all samples", or "the class means" where the arrays do not give more


@functools.lru_cache(maxsize=256)
def optimum(problem: Problem) -> Prediction:
    """Return the closed form, else the optimum that a solver found and the duality gap certifies; else why there is none."""
    from ufm.predict import predict

    answer = predict(problem)
    if answer.applies:
        return answer
    if problem.classes > MOST_CLASSES:
        return not_applicable(f"{answer.reason}; a numerical optimum is sought up to {MOST_CLASSES} classes")
    from ufm.solve import solve

    # 2 K dimensions hold every optimum and, for features >= 0, have no bad local minima.
    found = solve(problem.replace(dim=min(problem.dim, 2 * problem.classes)), seed=0)
    sure = found.certificate
    if not found.status.ok or sure is None or not sure.valid or sure.relative > CLOSED:
        return not_applicable(f"{answer.reason}; the solver: {found.status.value}, not certified as the optimum")
    W, H, b = (x.numpy() for x in (found.W, found.H, found.b))
    return Prediction(
        name="solved",
        loss=found.loss,
        logits=H @ W.T + b,
        bias=b,
        gram_w=W @ W.T,
        gram_h=H @ H.T,
        status=f"found numerically, certified to {max(sure.relative, 0.0):.1g} of its value",
        zero=found.status.name == "ZERO",
    )


def optimality(head: Head, problem: Problem, q: Prediction) -> Optimality:
    """Return the certificate of a measured last layer, and what it loses where."""
    import torch

    from ufm.certify import certificates
    from ufm.reduce import reduce

    reduced = reduce([problem])
    z = torch.from_numpy(np.ascontiguousarray(head.logits.T))[None]  # column = class of the sample
    value = head.objective(problem)
    sure = certificates([problem], reduced, z, torch.tensor([value]).double(), (z, z))[0]
    n = head.counts
    fit = float((reduced.loss.value(z.clone(), reduced.targets) @ torch.from_numpy(n / n.sum()))[0])
    at_means = fit + head.penalty(problem, float(n @ (head.means**2).sum(1)))
    gradient = reduced.loss.gradient(z.clone(), reduced.targets)[0].numpy().T * (n / n.sum())[:, None]
    pull = -float((gradient * (head.means @ head.W.T)).sum())
    whole = problem.loss == "mse"
    if whole:  # the scatter of the logits adds half its size to the fit and its whole size to <z, z - y>
        pull -= 2 * (head.fit - fit)
    b = q.bias if q.bias is not None else np.zeros(problem.classes)
    return Optimality(
        sure.gap,
        sure.relative,
        sure.reason,
        value - at_means,
        _excess(problem, head.means @ head.W.T, head.size_w, head.size_h),
        _excess(problem, np.asarray(q.logits) - b, float(np.trace(q.gram_w)), float(n @ np.diag(q.gram_h))),
        pull / (problem.layer_lambdas[0] * head.size_w),
        "all samples" if whole else "the class means",
    )


def _excess(problem: Problem, z: np.ndarray, size_w: float, size_h: float) -> float:
    """Return the penalties of W and H over the least ones for logits z (K, K), bias excluded; nan at zero."""
    least = problem.penalty * float(np.linalg.norm(z * np.sqrt(problem.count_vector)[:, None], "nuc"))
    return (problem.layer_lambdas[0] * size_w + problem.lambda_h * size_h) / 2 / least if least > 0 else math.nan


def predicted_values(q: Prediction, problem: Problem) -> tuple[float, ...]:
    """Return the quantities of `measured_values` at the optimum."""
    size_w, n = float(np.trace(q.gram_w)), problem.count_vector
    size_h = float(n @ np.diag(q.gram_h))
    b = q.bias if q.bias is not None else np.zeros(problem.classes)
    penalty = problem.layer_lambdas[0] / 2 * size_w + problem.lambda_h / 2 * size_h + problem.lambda_b / 2 * float(b @ b)
    norms = (float(q.loss) - penalty, float(q.loss), math.sqrt(size_w), math.sqrt(size_h / n.sum()))
    return (*gaps(np.asarray(q.logits)), *norms, _mean_share(q.gram_h), 0.0)


def measured_values(head: Head, problem: Problem) -> tuple[float, ...]:
    """Return logit gap, margin, fit, objective, |W|, |H|/sqrt(N), share of the common mean, share within classes."""
    norms = (head.fit, head.objective(problem), math.sqrt(head.size_w), math.sqrt(head.size_h / head.counts.sum()))
    return (*gaps(head.logits), *norms, head.mean_share, head.within)


def gaps(logits: np.ndarray) -> tuple[float, float]:
    """Return (own logit less the mean of the others, mean over classes; own less the largest other, the smallest class's)."""
    K = len(logits)
    own, others = np.diag(logits), np.where(np.eye(K, dtype=bool), -np.inf, logits)
    return float(np.mean(own - (logits.sum(1) - own) / (K - 1))), float(np.min(own - others.max(1)))


def distances(head: Head, q: Prediction, loss: str) -> dict[str, float]:
    """Return relative Frobenius distances |A - A*| / |A*| of logits and Grams, of the Grams also with both at unit norm.

    Where the loss does not see a constant added to all logits, their mean over outputs is taken off first.
    """
    pairs = compared(head, q, loss)
    away = {name: _relative(*pair) for name, pair in pairs.items()}
    return away | {f"{name}, shape": _relative(*map(_unit, pairs[name])) for name in ("W W^T", "M M^T")}


def _relative(found: np.ndarray, wanted: np.ndarray) -> float:
    size = float(np.linalg.norm(wanted))
    return float(np.linalg.norm(found - wanted)) / size if size > 0 else math.nan


def _unit(matrix: np.ndarray) -> np.ndarray:
    size = np.linalg.norm(matrix)
    return matrix / size if size > 0 else matrix


def _mean_share(gram: np.ndarray) -> float:
    typical = float(np.trace(gram)) / len(gram)
    return float(gram.mean()) / typical if typical > 0 else math.nan


# --- where a distance lies ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Parts:
    """Shares of |A - A*|^2, which sum to 1: orthogonal parts of what a measured matrix differs by from the predicted one."""

    scale: float  # along A*: one factor on every entry
    alike: float  # another balance of diagonal and other entries, equal for all classes; nan where A* tells classes apart
    classes: float  # differences between classes (with A* that tells them apart: everything but the scale)


def parts(found: np.ndarray, wanted: np.ndarray) -> Parts:
    """Return where the distance of two (K, K) matrices lies; nan shares where there is no distance or A* is zero.

    Matrices that treat all classes alike are a I + b 11^T / K. If A* is one of them, A - A* splits into a part along A*, the rest
    in that plane, and what is orthogonal to it.
    """
    away, size = found - wanted, float(np.linalg.norm(wanted))
    whole = float((away**2).sum())
    if size == 0 or whole == 0:
        return Parts(math.nan, math.nan, math.nan)
    scale = float((away * wanted).sum() / size) ** 2 / whole
    if np.linalg.norm(wanted - _alike(wanted)) > SAME * size:
        return Parts(scale, math.nan, 1 - scale)
    plane = float((_alike(away) ** 2).sum()) / whole
    return Parts(scale, max(plane - scale, 0.0), max(1 - plane, 0.0))


def _alike(matrix: np.ndarray) -> np.ndarray:
    """Return the nearest matrix that treats all classes alike."""
    K = len(matrix)
    own = float(np.trace(matrix)) / K
    other = (float(matrix.sum()) - K * own) / (K * (K - 1))
    return np.where(np.eye(K, dtype=bool), own, other)


def compared(head: Head, q: Prediction, loss: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return name -> (measured, predicted) (K, K) matrices: logits of the class means, W W^T and M M^T.

    Where the loss does not see a constant added to all logits, their mean over outputs is taken off.
    """
    found, wanted = head.logits, np.asarray(q.logits)
    if loss in SHIFT_FREE:
        found, wanted = (z - z.mean(1, keepdims=True) for z in (found, wanted))
    return {
        "logits": (found, wanted),
        "W W^T": (head.W @ head.W.T, np.asarray(q.gram_w)),
        "M M^T": (head.means @ head.means.T, np.asarray(q.gram_h)),
    }


def geometry(q: Prediction) -> dict[str, float]:
    """Return what NC2 and NC3 are at the predicted optimum, which is not a simplex ETF in general; nan at zero.

    |W - M_c|^2 of the unit-norm classifier and centred class means follows from their Grams and from <W, M_c>, the trace of the
    logits (without bias) less the mean of each column.
    """
    K = len(q.gram_w)
    centre = np.eye(K) - 1 / K
    z = np.asarray(q.logits) - (q.bias if q.bias is not None else 0.0)
    weights, means = np.asarray(q.gram_w), centre @ np.asarray(q.gram_h) @ centre
    sizes = math.sqrt(max(float(np.trace(weights)), 0.0) * max(float(np.trace(means)), 0.0))
    if sizes == 0:
        return {}
    simplex = centre / math.sqrt(K - 1)
    return {
        "nc2_etf_means": float(np.linalg.norm(_unit(means) - simplex)),
        "nc2_etf_weights": float(np.linalg.norm(_unit(weights) - simplex)),
        "nc3_papyan": 2 - 2 * float(np.trace(z) - z.sum() / K) / sizes,
    }
