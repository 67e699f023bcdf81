r"""Gradient starvation: which features a linear (or linearised) model keeps when one of them is strong (Pezeshki et al. 2020).

n samples, labels y_i = +-1, features Phi (n, d), logits Phi theta. With Y = diag(y) and the singular value decomposition
Y Phi = U S V^T the margins are u = Y Phi theta (n,), and the *response* of feature j is z_j = (U^T u)_j: how much of the margins
the model draws from it. U says which samples a feature serves, S how strong it is. Two penalties are compared,

    ridge:       f = (1/n) sum_i log(1 + exp(-u_i)) + lambda/2 |theta|^2,
    decoupling:  f = (1/n) sum_i [log(1 + exp(-u_i)) + lambda/2 u_i^2]      (spectral decoupling: on the logits).

Everything here is derived and verified numerically; the paper sums over samples where we take the mean, so that its ridge
lambda is n times ours and its lambda of the logits is ours.

Ridge. alpha_i = 1/(1 + exp(u_i)) maximises the concave dual
    D(alpha) = (1/n) sum_i h(alpha_i) - alpha^T K alpha / (2 n^2 lambda),    K = U S^2 U^T,   h the entropy in nats,
and z* = S^2 U^T alpha / (n lambda). With D_i = 1/(alpha_i (1 - alpha_i)), at fixed U and lambda,
    d alpha / d s_1^2 = -(u_1 . alpha)/(n lambda) (diag(D) + K/(n lambda))^{-1} u_1.
Without coupling (U = I) z_j = c(s_j^2/(n lambda)) with c(x) (1 + e^c) = x: no feature knows of another.

Two samples, U = [[sqrt(1-delta^2), -delta], [delta, sqrt(1-delta^2)]]: then
    d z_2 / d s_1^2 = s_2^2/(n lambda)^2 (u_1 . alpha) delta sqrt(1-delta^2) (D_2 - D_1) / det(U^T diag(D) U + S^2/(n lambda)).
Let s_1 > s_2 and 0 < delta < 1/sqrt(2). K is then positive and the first margin the larger one (were alpha_1 >= alpha_2, then
u_1 - u_2 >= (K_11 - K_22) alpha_2/(n lambda) > 0 would give alpha_1 < alpha_2), hence D_1 > D_2, z_1 > 0 and z_2 > 0: each of the
two features starves the other, d z_2/d s_1^2 < 0 and by the same formula d z_1/d s_2^2 < 0. At delta = 1/sqrt(2) the margins are
equal and z_2 = 0; beyond it the samples change places. So coupling alone does not starve: it does where the *stronger* feature
serves both samples, delta (s_1 - s_2) > 0. Where it serves one and harms the other, delta (s_1 - s_2) < 0, the sign is the
opposite one (found at every one of 1500 random settings, not proven): the features then feed each other. With more samples
we found that a stronger feature which serves all of them starves all others (`mixing`, shared), and that of features mixed at
random about half starve and half gain.

Decoupling. f is a sum over the margins alone, so every margin is c(1/lambda) and z* = c U^T 1, whatever S.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ufm.seeds import stream

RIDGE, DECOUPLING = "ridge", "decoupling"
PENALTIES = (RIDGE, DECOUPLING)
SHARED, RANDOM = "shared", "random"
MIXINGS = (SHARED, RANDOM)
STEPS = 200  # of Newton's method; some twenty are needed from alpha = 1/2


@dataclass(frozen=True, eq=False)
class Optimum:
    """The optimum of one penalty, from its dual or its closed form.

    margins (n,): u*, all equal under decoupling. responses (n,): z* = U^T u*. loss: f*. dual (n,): alpha* = 1/(1 + exp(u*)).
    sensitivity (n,): d z_j / d s_1^2 at fixed U and lambda.
    """

    margins: np.ndarray
    responses: np.ndarray
    loss: float
    dual: np.ndarray
    sensitivity: np.ndarray

    def elasticities(self, strength: float) -> np.ndarray:
        """Return d log|z_j| / d log s_1^2, (n,); nan where z_j is zero. Unlike z_j itself it knows no sign of U's columns."""
        with np.errstate(divide="ignore", invalid="ignore"):
            size = np.where(np.abs(self.responses) > 1e-12 * np.abs(self.responses).max(), self.responses, np.nan)
            return strength**2 * self.sensitivity / size


def response(x: np.ndarray | float) -> np.ndarray:
    """Return c >= 0 with c (1 + e^c) = x, for x >= 0: the margin at which the loss pulls as hard as the penalty.

    Without the 1 it would be Lambert's W(x), which is its upper bound and for large x nearly c.
    """
    x = np.asarray(x, dtype=np.float64)
    c = np.log1p(x)  # above the root: log(1+x) (1 + 1 + x) >= x
    for _ in range(STEPS):
        # of log c + log(1 + e^c) - log x, which is increasing and concave in log c: no overflow for any x
        with np.errstate(divide="ignore", invalid="ignore"):
            excess = np.log(c) + np.logaddexp(0, c) - np.log(x)
            step = excess / (1 + c / (1 + np.exp(-c)))
        step = np.where(x > 0, np.clip(step, -1, 1), 0.0)
        c = c * np.exp(-step)
        if np.all(np.abs(step) < 1e-15):
            break
    return np.where(x > 0, c, 0.0)


def mixing(samples: int, coupling: float, *, kind: str = SHARED, seed: int = 0) -> np.ndarray:
    """Return U (n, n), orthogonal: row i is a sample, column j a feature.

    shared: the rotation by arcsin(coupling) in the plane of sample 1 and of all others together, (0, 1, .., 1)/sqrt(n-1). With a
    positive coupling feature 1 serves sample 1 and a little of every other, each of which has a feature of its own; with two
    samples this is the matrix of the module's head. random: exp(arcsin(coupling) A) with A antisymmetric, Gaussian from the
    seed's stream "mixing" and of spectral norm 1: features serve some samples and harm others.
    """
    if kind == SHARED:
        along, own = np.sqrt((1 - coupling) * (1 + coupling)), np.zeros(samples)
        own[0], others = 1.0, np.full(samples, 1 / np.sqrt(samples - 1))
        others[0] = 0.0
        plane = np.outer(own, own) + np.outer(others, others)
        return np.eye(samples) + (along - 1) * plane + coupling * (np.outer(others, own) - np.outer(own, others))
    from scipy.linalg import expm

    drawn = stream(seed, "mixing").standard_normal((samples, samples))
    generator = drawn - drawn.T
    return expm(np.arcsin(coupling) * generator / np.linalg.norm(generator, 2))


def optimum(U: np.ndarray, strengths: np.ndarray, weight: float, penalty: str = RIDGE) -> Optimum:
    """Return the optimum for U (n, n), strengths s > 0 (n,) and the penalty's weight lambda > 0."""
    return ridge(U, strengths, weight) if penalty == RIDGE else decoupling(U, weight)


def decoupling(U: np.ndarray, weight: float) -> Optimum:
    """Return z* = c U^T 1 with c (1 + e^c) = 1/lambda: the strengths are nowhere in it."""
    c = float(response(1 / weight))
    margins = np.full(len(U), c)
    loss = float(np.logaddexp(0, -c) + weight / 2 * c**2)
    return Optimum(margins, U.T @ margins, loss, 1 / (1 + np.exp(margins)), np.zeros(len(U)))


def ridge(U: np.ndarray, strengths: np.ndarray, weight: float) -> Optimum:
    """Return the optimum of the ridge penalty from its dual, by Newton's method in alpha."""
    scaled = gram(U, strengths, weight)
    alpha = dual_point(scaled)
    first = U[:, 0] @ alpha
    curvature = np.diag(1 / (alpha * (1 - alpha))) + scaled
    change = -first / (len(U) * weight) * np.linalg.solve(curvature, U[:, 0])
    sensitivity = strengths**2 * (U.T @ change)
    sensitivity[0] += first
    sensitivity /= len(U) * weight
    margins = scaled @ alpha
    return Optimum(margins, U.T @ margins, dual_value(alpha, scaled), alpha, sensitivity)


def dual_point(scaled: np.ndarray) -> np.ndarray:
    """Return alpha in (0, 1)^n that maximises sum h(alpha_i) - alpha^T M alpha / 2, for M (n, n) positive semidefinite."""
    alpha = np.full(len(scaled), 0.5)
    value = dual_value(alpha, scaled)
    for _ in range(STEPS):
        slope = np.log1p(-alpha) - np.log(alpha) - scaled @ alpha
        step = np.linalg.solve(np.diag(1 / (alpha * (1 - alpha))) + scaled, slope)
        with np.errstate(divide="ignore"):
            room = np.where(step > 0, (1 - alpha) / step, np.where(step < 0, -alpha / step, np.inf)).min()
        length, promised = min(1.0, 0.9 * room), step @ slope / len(alpha)
        while length > 1e-12 and dual_value(alpha + length * step, scaled) < value + 0.1 * length * promised:
            length /= 2
            if promised < 1e-13 * abs(value):  # the value is flat to its last digits: Newton's step alone knows better
                length = min(1.0, 0.9 * room)
                break
        alpha = alpha + length * step
        value = dual_value(alpha, scaled)
        if np.max(np.abs(length * step) / alpha) < 1e-15:
            break
    return alpha


def gram(U: np.ndarray, strengths: np.ndarray, weight: float) -> np.ndarray:
    """Return M = U S^2 U^T / (n lambda), (n, n): K in the units of the penalty."""
    return (U * strengths**2) @ U.T / (len(U) * weight)


def dual_value(alpha: np.ndarray, scaled: np.ndarray) -> float:
    """Return D(alpha) = (sum_i h(alpha_i) - alpha^T M alpha / 2)/n for alpha in (0, 1)^n: a lower bound of the optimum."""
    entropy = -alpha * np.log(alpha) - (1 - alpha) * np.log1p(-alpha)
    return float((entropy.sum() - alpha @ scaled @ alpha / 2) / len(alpha))


def uncoupled(strengths: np.ndarray, weight: float) -> np.ndarray:
    """Return |z_j| (n,) under the ridge penalty when every feature serves one sample: c(s_j^2 / (n lambda))."""
    return response(np.asarray(strengths, dtype=np.float64) ** 2 / (len(strengths) * weight))


def weak_coupling(strengths: tuple[float, float], weight: float, coupling: float) -> float:
    """Return d z_2 / d s_1^2 for two samples to first order in the coupling (relative error O(coupling)).

    -delta s_2^2/(n lambda)^2 alpha_1 (D_1 - D_2) / ((D_1 + s_1^2/(n lambda)) (D_2 + s_2^2/(n lambda))), all at delta = 0.
    """
    x = np.square(strengths) / (2 * weight)
    alpha = 1 / (1 + np.exp(response(x)))
    D = 1 / (alpha * (1 - alpha))
    return float(-coupling * x[1] / (2 * weight) * alpha[0] * (D[0] - D[1]) / ((D[0] + x[0]) * (D[1] + x[1])))


def direction(strengths: tuple[float, float], coupling: float) -> int:
    """Return the sign of d|z_2| / d s_1^2 for two samples under the ridge penalty: that of -delta (s_1 - s_2).

    -1 is gradient starvation. 0: no coupling, or equal strengths, or the angle of 45 degrees, where z_2 or z_1 is zero.
    """
    if coupling in (0.0, 1.0, -1.0) or np.isclose(abs(coupling), np.sqrt(0.5), rtol=1e-12):
        return 0
    return int(-np.sign(coupling * (strengths[0] - strengths[1])))
