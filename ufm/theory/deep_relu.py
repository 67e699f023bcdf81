"""Deep ReLU unconstrained-features models with MSE: deep neural collapse and the strongly regular graph solution.

Sukenik, Mondelli & Lampert 2023 (binary: deep neural collapse is optimal) and 2024 (many classes: it is not; the SRG
solution has lower rank and lower loss). Losses are closed forms; explicit weights attain them.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace

import numpy as np

from ufm.errors import RequestError
from ufm.theory import deep_scalar


@dataclass(frozen=True)
class Structure:
    """One solution of the deep ReLU model, with weights that attain its loss.

    weights: W_1 .. W_L, (d, d) each and (K, d) for the last; means: H_1 (d, K), one column per class; loss: the
    regularised loss; output: (K, K), column = class.
    """

    name: str
    loss: float
    weights: tuple[np.ndarray, ...]
    means: np.ndarray
    output: np.ndarray
    details: dict[str, float | list[float]]


def forward(weights: tuple[np.ndarray, ...], means: np.ndarray) -> list[np.ndarray]:
    """Return the pre-activations [M_2, .., M_L, output]; a ReLU stands before every weight but the first."""
    states, hidden = [], means
    for weight in weights:
        states.append(weight @ hidden)
        hidden = np.maximum(states[-1], 0)
    return states


def regularised_loss(
    weights: tuple[np.ndarray, ...], means: np.ndarray, lambdas: tuple[float, ...], lambda_h: float, per_class: float
) -> float:
    """Return the objective at explicit weights: fit/(2K) + sum_l lambda_l/2 |W_l|^2 + n lambda_h/2 |H_1|^2."""
    output = forward(weights, means)[-1]
    classes = output.shape[1]
    fit = 0.5 / classes * ((output - np.eye(classes)) ** 2).sum()
    penalty = sum(lam * (w**2).sum() for lam, w in zip(lambdas, weights, strict=True))
    return float(fit + 0.5 * penalty + 0.5 * per_class * lambda_h * (means**2).sum())


def dnc(classes: int, depth: int, dim: int, per_class: float, lambdas: tuple[float, ...], lambda_h: float) -> Structure:
    """Return deep neural collapse: C = K^(L+1), orthogonal equal post-ReLU class means in every hidden layer."""
    if dim < classes:
        raise RequestError(f"dim {dim} is smaller than {classes} classes; deep neural collapse needs dim >= classes")
    price = per_class * lambda_h * math.prod(lambdas)
    scale = deep_scalar.minimise(classes * price ** (1 / (depth + 1)), depth)
    energy = (scale.x * math.sqrt(price)) ** (2 / (depth + 1))  # lambda_l |W_l|^2 / K, the same in every layer
    basis = np.eye(dim, classes)
    weights = [math.sqrt(energy / lam) * basis @ basis.T for lam in lambdas[:-1]]
    weights.append(math.sqrt(energy / lambdas[-1]) * basis.T)
    means = math.sqrt(energy / (lambda_h * per_class)) * basis
    details = {"output_scale": scale.x, "cost": float(classes) ** (depth + 1)}
    return Structure("dnc" if scale.x else "zero", scale.value, tuple(weights), means, scale.x * np.eye(classes), details)


def order_of(classes: int) -> int | None:
    """Return m with K = m(m-1)/2 and m >= 4, the vertices of the complete graph whose edges are the classes; else None."""
    m = round((1 + math.sqrt(1 + 8 * classes)) / 2)
    return m if m >= 4 and m * (m - 1) // 2 == classes else None


def incidence(m: int) -> np.ndarray:
    """Return A (m, K): vertex-edge incidence of the complete graph on m vertices, edges in lexicographic order."""
    edges = list(itertools.combinations(range(m), 2))
    matrix = np.zeros((m, len(edges)))
    for column, edge in enumerate(edges):
        matrix[list(edge), column] = 1.0
    return matrix


@dataclass(frozen=True)
class SRGConstants:
    """Constants of the strongly regular graph solution on K = m(m-1)/2 classes."""

    kappa: np.ndarray  # eigenvalues of the last hidden layer: of the complement of the triangular graph, or 1 (flipped)
    multiplicity: np.ndarray
    nuclear: float  # nu, the nuclear norm of A
    step: float  # B, |J/2 - A'|^2, the cost of the map A -> J - A'A

    def cost(self, m: int, depth: int) -> float:
        """Return C = nu^2 m^(L-3) B Q with an identity output; compare with K^(L+1) of deep neural collapse."""
        return self.nuclear**2 * m ** (depth - 3) * self.step * float((self.multiplicity / self.kappa**2).sum())


def srg_constants(m: int) -> SRGConstants:
    """Return the constants for m >= 4 (Sukenik et al. 2024; derived and verified)."""
    if m < 4:
        raise RequestError(f"m {m} is smaller than 4; the strongly regular graph solution needs K = m(m-1)/2 with m >= 4")
    return SRGConstants(
        kappa=np.array([(m - 2) * (m - 3) / 2, -(m - 3), 1.0]),
        multiplicity=np.array([1.0, m - 1, m * (m - 3) / 2]),
        nuclear=(m - 1) * math.sqrt(m - 2) + math.sqrt(2 * (m - 1)),
        step=m * m * (m - 1) / 8,
    )


def srg(classes: int, depth: int, dim: int, per_class: float, lambdas: tuple[float, ...], lambda_h: float) -> Structure:
    """Return the SRG solution: hidden means ~ A (rank m), last hidden ~ relu(J - A'A), a ridge-optimal last layer.

    The classes are the edges of the complete graph on m vertices. Needs L >= 3, K = m(m-1)/2, m >= 4 and dim >= K.
    """
    return _graph_solution("srg", classes, depth, dim, per_class, lambdas, lambda_h)


def srg_flipped(classes: int, depth: int, dim: int, per_class: float, lambdas: tuple[float, ...], lambda_h: float) -> Structure:
    """Return the SRG solution with the last hidden pre-activation negated: hidden means ~ A, then relu(A'A - J) = I.

    Two edges share two, one or no vertices, so that A'A - J is 1 on the diagonal, 0 for neighbours and -1 for the rest:
    the other sign keeps the diagonal where the SRG solution keeps the complement graph. Both maps A -> +-(A'A - J) cost
    B = |J/2 - A'|^2; here every eigenvalue of the last hidden layer is 1, there they are kappa with |kappa| >= 1. Hence
    C = nu^2 m^(L-3) B K >= C_srg, and never a lower loss; equal at m = 4 alone, where the complement graph is a perfect
    matching (derived and verified). Last hidden means are orthogonal, all others of rank m.
    """
    return _graph_solution("srg_flipped", classes, depth, dim, per_class, lambdas, lambda_h)


def _graph_solution(
    name: str, classes: int, depth: int, dim: int, per_class: float, lambdas: tuple[float, ...], lambda_h: float
) -> Structure:
    m = order_of(classes)
    if m is None or depth < 3 or dim < classes:
        raise RequestError(
            f"classes {classes}, depth {depth}, dim {dim}: the SRG solution needs K in 6, 10, 15, 21, .., depth >= 3, dim >= K"
        )
    constants = srg_constants(m)
    if name == "srg_flipped":
        constants = replace(constants, kappa=np.ones(3))
    price = per_class * lambda_h * math.prod(lambdas[:-1]) * constants.nuclear**2 * m ** (depth - 3) * constants.step
    scale, loss = _srg_scale(constants, classes, depth, price, lambdas[-1])
    energy = (price * scale**2) ** (1 / depth)  # lambda_l |W_l|^2, the same in every layer below the last
    sign = -1.0 if name == "srg_flipped" else 1.0
    weights, means, output = _srg_weights(m, dim, per_class, lambdas, lambda_h, scale, energy, constants, sign)
    squares = scale**2 * constants.kappa**2
    details = {
        "feature_scale": scale,
        "output_eigenvalues": (squares / (squares + classes * lambdas[-1])).tolist(),
        "cost": constants.cost(m, depth),
    }
    return Structure(name, loss, weights, means, output, details)


def _srg_scale(constants: SRGConstants, classes: int, depth: int, price: float, lambda_last: float) -> tuple[float, float]:
    """Minimise the SRG loss over the scale c of the last hidden layer, globally (it has a second minimum at c = 0)."""

    def loss(log_scale: complex) -> complex:
        squared = np.exp(2 * log_scale)
        ridge = np.multiply.outer(squared, constants.kappa**2) + classes * lambda_last
        fit = 0.5 * (constants.multiplicity * lambda_last / ridge).sum(-1)
        return fit + 0.5 * depth * (price * squared) ** (1 / depth)

    log_scale, value = deep_scalar.global_minimum(loss, np.linspace(-12, 8, 801).tolist())
    return (math.exp(log_scale), value) if value < 0.5 else (0.0, 0.5)


def _srg_weights(
    m: int,
    dim: int,
    per_class: float,
    lambdas: tuple[float, ...],
    lambda_h: float,
    scale: float,
    energy: float,
    constants: SRGConstants,
    sign: float,
) -> tuple[tuple[np.ndarray, ...], np.ndarray, np.ndarray]:
    """Place the solution in the first coordinates: m neurons carry A, K neurons the last hidden layer."""
    matrix = incidence(m)
    classes = matrix.shape[1]
    left, singular, right = np.linalg.svd(matrix, full_matrices=False)
    share = energy / constants.nuclear  # W_1 and H_1 split A's singular values evenly, in the metric of their penalties
    first = np.zeros((dim, dim))
    first[:m, :m] = left * np.sqrt(share * singular / lambdas[0])
    means = np.zeros((dim, classes))
    means[:m] = np.sqrt(share * singular / (per_class * lambda_h))[:, None] * right
    weights = [first]
    for lam in lambdas[1:-2]:
        weights.append(math.sqrt(energy / (lam * m)) * np.eye(dim, m) @ np.eye(m, dim))
    step = np.zeros((dim, dim))
    step[:classes, :m] = math.sqrt(energy / (lambdas[-2] * constants.step)) * sign * (0.5 - matrix.T)
    weights.append(step)
    graph = np.maximum(sign * (1 - matrix.T @ matrix), 0) * scale
    ridge = np.linalg.solve(graph @ graph + classes * lambdas[-1] * np.eye(classes), graph)
    weights.append(np.hstack([ridge, np.zeros((classes, dim - classes))]))
    return tuple(weights), means, ridge @ graph
