"""Exact frames, codes and graphs: the geometries that theorems predict, in closed form. A leaf: numpy only.

Codes are returned as rows (K, d) of unit norm; turn one with an orthogonal matrix for a random copy.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np

from ufm.errors import RequestError

MOST_TRIALS = 10_000


def simplex_etf(classes: int, dim: int | None = None) -> np.ndarray:
    """Return the simplex equiangular tight frame, (K, d): unit rows with cosines -1/(K-1), their sum zero.

    `dim` >= K - 1 (default K - 1).
    """
    k = _integer(classes, "classes", 2)
    d = k - 1 if dim is None else _integer(dim, "dim", k - 1, f"a simplex of {k} classes needs d >= K - 1")
    rows = np.zeros((k, d))
    for i in range(k - 1):  # row i keeps what the earlier coordinates left of its unit norm
        rows[i, i] = np.sqrt((k * (k - 1 - i)) / ((k - 1) * (k - i)))
        rows[i + 1 :, i] = -rows[i, i] / (k - 1 - i)
    return rows


def orthogonal_frame(classes: int, dim: int | None = None) -> np.ndarray:
    """Return K orthonormal rows, (K, d); `dim` >= K (default K)."""
    k = _integer(classes, "classes", 1)
    d = k if dim is None else _integer(dim, "dim", k, f"{k} orthogonal rows need d >= K")
    return np.eye(k, d)


def general_orthogonal_frame(lengths: Any, dim: int | None = None) -> np.ndarray:
    """Return orthogonal rows of the given `lengths` (K,) >= 0, (K, d): the GOF of imbalanced MSE (Dang et al. 2023)."""
    sizes = np.asarray(lengths, dtype=np.float64)
    if sizes.ndim != 1 or len(sizes) == 0 or not np.isfinite(sizes).all() or (sizes < 0).any():
        raise RequestError(f"lengths is {sizes.tolist()}; it must be K finite numbers >= 0: one length for each class")
    return sizes[:, None] * orthogonal_frame(len(sizes), dim)


def polygon(classes: int) -> np.ndarray:
    """Return the vertices of the regular K-gon, (K, 2): margin 1 - cos(2 pi/K)."""
    angle = 2 * np.pi * np.arange(_integer(classes, "classes", 2)) / classes
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


def cross_polytope(dim: int) -> np.ndarray:
    """Return e_1, -e_1, e_2, ..., -e_d, (2d, d): margin 1, largest cosine 0."""
    d = _integer(dim, "dim", 1)
    return np.repeat(np.eye(d), 2, axis=0) * np.tile([1.0, -1.0], d)[:, None]


def icosahedron() -> np.ndarray:
    """Return its twelve vertices, (12, 3): largest cosine 1/sqrt 5, margin 1 - 1/sqrt 5."""
    golden = (1 + np.sqrt(5)) / 2
    rows = [np.roll([0.0, a, b * golden], shift) for shift in range(3) for a in (1, -1) for b in (1, -1)]
    return np.array(rows) / np.sqrt(1 + golden**2)


def cell24() -> np.ndarray:
    """Return the vertices of the 24-cell, (24, 4): the unit Hurwitz quaternions; largest cosine 1/2, margin 1/2."""
    halves = np.array(list(product((0.5, -0.5), repeat=4)))
    return np.concatenate([cross_polytope(4), halves])


def triangular_bipyramid() -> np.ndarray:
    """Return two poles and an equatorial triangle, (5, 3): a largest-angle code of five points, 90 degrees (not the only one)."""
    return np.concatenate([np.pad(polygon(3), ((0, 0), (0, 1))), [[0, 0, 1.0], [0, 0, -1.0]]])


def square_antiprism() -> np.ndarray:
    """Return the Tammes code of eight points, (8, 3): two squares at +-z turned by 45 degrees, edges equal; 74.858492 degrees.

    With ring radius r: edges inside a square 2 r^2, between squares r^2 (2 - sqrt 2) + 4 z^2, and r^2 + z^2 = 1.
    """
    height = 1 / np.sqrt(1 + 2 * np.sqrt(2))  # 4 z^2 = sqrt 2 r^2
    ring = np.sqrt(1 - height**2)
    angle = np.pi / 2 * np.arange(4)
    upper = [[ring * np.cos(t), ring * np.sin(t), height] for t in angle]
    lower = [[ring * np.cos(t + np.pi / 4), ring * np.sin(t + np.pi / 4), -height] for t in angle]
    return np.array(upper + lower)


def tricapped_prism() -> np.ndarray:
    """Return the Tammes code of nine points, (9, 3): an equatorial triangle between two turned ones; largest cosine 1/3."""
    ring, height = 2 / 3, np.sqrt(5) / 3  # ring/2 = height^2 - ring^2/2 = 1/3
    angle = 2 * np.pi / 3 * np.arange(3)
    rows = [[np.cos(t), np.sin(t), 0.0] for t in angle]
    turned = angle + np.pi / 3
    rows += [[ring * np.cos(t), ring * np.sin(t), sign * height] for sign in (1, -1) for t in turned]
    return np.array(rows)


def capped_octahedron() -> np.ndarray:
    """Return the Tammes code of seven points, (7, 3): a pole and two rings of three; 77.869542 degrees.

    The cosine c of every contact solves 3 c^3 - 9 c^2 - 3 c + 1 = 0 on (0, 1/3): the first ring touches the pole, its points are
    farther from each other than that, and every point of the second ring touches two of the first and both its neighbours.
    """
    c = min(root.real for root in np.roots([3.0, -9.0, -3.0, 1.0]) if abs(root.imag) < 1e-9 and 0 < root.real < 1 / 3)
    first_ring, low = np.sqrt(1 - c * c), -np.sqrt((1 + 2 * c) / 3)  # the second ring: low^2 - (1 - low^2)/2 = c
    second_ring = np.sqrt(1 - low * low)
    angle = 2 * np.pi / 3 * np.arange(3)
    rows = [[0.0, 0.0, 1.0]] + [[first_ring * np.cos(t), first_ring * np.sin(t), c] for t in angle]
    rows += [[second_ring * np.cos(t), second_ring * np.sin(t), low] for t in angle + np.pi / 3]
    return np.array(rows)


def best_code(classes: int, dim: int) -> np.ndarray | None:
    """Return K points in dimension d whose smallest angle is the largest possible, (K, d), or None: no closed form is kept.

    Simplex for K <= d + 1, polygon for d = 2, orthogonal simplices for K <= 2d (Rankin: 90 degrees), Tammes' codes of 7, 8, 9, 11
    and 12 points for d = 3 (11: the icosahedron less one vertex), and the 24-cell for d = 4, the best known.
    """
    k, d = _integer(classes, "classes", 2), _integer(dim, "dim", 1)
    if k <= d + 1:
        return simplex_etf(k, d)
    if d == 2:
        return polygon(k)
    if d > 1 and k <= 2 * d:
        return two_simplices(k, d)
    small = {(7, 3): capped_octahedron, (8, 3): square_antiprism, (9, 3): tricapped_prism, (12, 3): icosahedron, (24, 4): cell24}
    if (k, d) == (11, 3):
        return icosahedron()[:11]
    return small[k, d]() if (k, d) in small else None


def two_simplices(classes: int, dim: int) -> np.ndarray:
    """Return K points in dimension d, d + 2 <= K <= 2d, no two closer than 90 degrees, (K, d).

    Simplices of two or more points in mutually orthogonal subspaces, K - d of them, as even as can be: margin 1 for every point.
    """
    k, d = _integer(classes, "classes", 2), _integer(dim, "dim", 2)
    if not d + 2 <= k <= 2 * d:
        raise RequestError(
            f"classes is {k}; a code of orthogonal simplices in d = {d} has {d + 2} <= K <= {2 * d} points: change K"
        )
    rows, column, row = np.zeros((k, d)), 0, 0
    parts = k - d
    for part in range(parts):
        size = k // parts + (part < k % parts)
        rows[row : row + size, column : column + size - 1] = simplex_etf(size)
        row, column = row + size, column + size - 1
    return rows


def line_graph_incidence(vertices: int) -> np.ndarray:
    """Return the incidence matrix of the complete graph's edges, (v(v-1)/2, v): row {a, b} has ones at a and b.

    B B^T = 2 I + A with A the adjacency of the triangular graph T(v), the line graph of K_v: strongly regular, eigenvalues
    2(v-2), v-4 and -2. It is the smallest SRG structure of deep ReLU models.
    """
    v = _integer(vertices, "vertices", 3)
    first, second = np.triu_indices(v, 1)
    rows = np.zeros((len(first), v))
    rows[np.arange(len(first)), first] = 1.0
    rows[np.arange(len(first)), second] = 1.0
    return rows


def triangular_graph(vertices: int) -> np.ndarray:
    """Return the adjacency of T(v), edges of K_v joined when they share a vertex: srg(v(v-1)/2, 2(v-2), v-2, 4) for v >= 4."""
    rows = line_graph_incidence(vertices)
    return rows @ rows.T - 2 * np.eye(len(rows))


def petersen_graph() -> np.ndarray:
    """Return the adjacency of the Petersen graph, the complement of T(5), (10, 10): srg(10, 3, 0, 1)."""
    return 1.0 - np.eye(10) - triangular_graph(5)


def normalized_gram(rows: Any) -> np.ndarray:
    """Return rows rows^T scaled to unit Frobenius norm, (K, K). RequestError for zero rows only."""
    code = _code(rows)
    gram = code @ code.T
    size = np.linalg.norm(gram)
    if size == 0:
        raise RequestError("the rows are all zero; a zero Gram has no direction: pass at least one nonzero row")
    return gram / size


def cosine_gram(rows: Any) -> np.ndarray:
    """Return the cosines between rows, (K, K). RequestError for a zero row."""
    code = _code(rows)
    norms = np.linalg.norm(code, axis=1)
    if (norms == 0).any():
        raise RequestError(f"row {int(np.argmin(norms))} is zero; a zero row has no direction: leave it out")
    unit = code / norms[:, None]
    return unit @ unit.T


def rows_of_gram(gram: Any, dim: int | None = None) -> np.ndarray:
    """Return rows (K, d) whose Gram is the positive semidefinite `gram` (K, K); d is its rank, or `dim` >= rank."""
    g = _code(gram)
    if g.shape[0] != g.shape[1] or np.abs(g - g.T).max() > 1e-9 * np.abs(g).max():
        raise RequestError(f"gram has shape {g.shape}; it must be square and symmetric: pass rows @ rows.T")
    values, vectors = np.linalg.eigh((g + g.T) / 2)
    noise = 1e-9 * max(values[-1], 0.0)
    if values[0] < -noise:
        raise RequestError(f"gram has the eigenvalue {values[0]:.3g}; a Gram has none below zero: check its entries")
    keep = values > noise
    rank = int(keep.sum())
    width = rank if dim is None else _integer(dim, "dim", rank, f"this Gram has rank {rank}")
    rows = np.zeros((len(g), width))
    rows[:, :rank] = (vectors[:, keep] * np.sqrt(values[keep]))[:, ::-1]
    return rows


def relabelling(gram: np.ndarray, target: np.ndarray, tolerance: float = 1e-3) -> np.ndarray | None:
    """Return p (K,) with gram[i, j] = target[p[i], p[j]] up to `tolerance` times the largest entry, or None: there is none.

    In a code every class may sit at every vertex: two Grams are compared after this. A search class by class that goes back
    where nothing fits; None also where it would take long, which codes with few different cosines do not.
    """
    slack = tolerance * max(float(np.abs(target).max()), 1e-300)
    places: list[int] = []
    untried: list[list[int]] = []
    for _ in range(MOST_TRIALS):
        i = len(places)
        if i == len(gram):
            return np.array(places)
        if len(untried) == i:  # a class not looked at yet
            fits = np.abs(np.diagonal(target) - gram[i, i]) <= slack
            fits &= (np.abs(target[:, places] - gram[i, :i]) <= slack).all(1)
            fits[places] = False
            untried.append(np.flatnonzero(fits).tolist())
        if untried[i]:
            places.append(untried[i].pop(0))
        else:
            untried.pop()
            if not places:
                return None
            places.pop()
    return None


def smallest_angle(code: Any) -> float:
    """Return the smallest angle between two rows, in degrees."""
    gram = cosine_gram(code)
    if len(gram) < 2:
        raise RequestError("a code of one row has no angle; pass at least two rows")
    return float(np.degrees(np.arccos(np.clip(gram[~np.eye(len(gram), dtype=bool)].max(), -1.0, 1.0))))


def etf_plane(means: Any) -> np.ndarray:
    """Project class means (K, d) on the plane in which an ETF of K classes is drawn, (K, 2).

    The centred means are first turned onto the simplex ETF (orthogonal Procrustes), then read off in the plane in which the ETF
    is a regular polygon: an exact ETF of any size and orientation gives the vertices of a regular K-gon, and what departs from
    it in the picture departs from the ETF.
    """
    rows = _code(means)
    if len(rows) < 2:
        raise RequestError("one class has no ETF; pass the means of at least two classes")
    centred = rows - rows.mean(0)
    target = simplex_etf(len(rows))
    left, _, right = np.linalg.svd(centred.T @ target, full_matrices=False)
    turned = centred @ (left @ right)
    angle = 2 * np.pi * np.arange(len(rows)) / len(rows)
    wave = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    plane, _ = np.linalg.qr(target.T @ wave[:, : min(2, len(rows) - 1)])  # two classes span a line
    drawn = turned @ plane
    signs = np.sign(np.einsum("kp,kp->p", target @ plane, wave[:, : plane.shape[1]]))
    drawn = drawn * np.where(signs == 0, 1.0, signs)
    return drawn if drawn.shape[1] == 2 else np.pad(drawn, ((0, 0), (0, 1)))


def one_vs_rest_margins(code: Any) -> np.ndarray:
    """Return rho_k = dist(w_k, conv{w_j : j != k}), (K,), for the rows of `code` (K, d).

    The same number is max over |h| <= 1 of min_j (w_k - w_j).h, the one-vs-rest margin.

    With V = [w_k - w_j] (d, K-1) the nearest point of the hull is V y, y = x/sum x, where x >= 0 minimises
    |[V; 1^T] x - [0; 1]|: one non-negative least-squares problem, solved exactly. Jiang et al. (2023), eq. of the softmax code.
    """
    rows = _code(code)
    if len(rows) < 2:
        raise RequestError("a code of one row has no margin; pass at least two rows")
    margins = np.empty(len(rows))
    for k in range(len(rows)):
        gaps = rows[k] - np.delete(rows, k, axis=0)
        scale = np.abs(gaps).max()
        if scale == 0:
            margins[k] = 0.0
            continue
        stacked = np.concatenate([gaps.T / scale, np.ones((1, len(gaps)))])
        x = nonnegative_least_squares(stacked, np.append(np.zeros(rows.shape[1]), 1.0))
        margins[k] = np.linalg.norm(x @ gaps) / x.sum()
    return margins


def nonnegative_least_squares(matrix: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Return argmin over x >= 0 of |matrix x - target| by the active-set method of Lawson and Hanson (1974, chapter 23)."""
    count = matrix.shape[1]
    x, free = np.zeros(count), np.zeros(count, dtype=bool)
    slack = 10 * max(matrix.shape) * np.finfo(float).eps * np.abs(matrix).max() * max(np.linalg.norm(target), 1.0)
    for _ in range(10 * count + 10):
        gain = matrix.T @ (target - matrix @ x)
        gain[free] = -np.inf
        if free.all() or gain.max() <= slack:
            return x
        free[int(gain.argmax())] = True
        while True:
            trial = np.zeros(count)
            trial[free] = np.linalg.lstsq(matrix[:, free], target, rcond=None)[0]
            if (trial[free] > 0).all():
                break
            block = free & (trial <= 0)
            step = (x[block] / (x[block] - trial[block])).min()
            x = np.maximum(x + step * (trial - x), 0.0)
            free &= x > 0
            free[block & (x <= np.finfo(float).eps * np.abs(x).max(initial=0.0))] = False
            x[~free] = 0.0
            if not free.any():
                return x
        x = trial
    return x


def _integer(value: Any, name: str, low: int, rule: str = "") -> int:
    if isinstance(value, bool) or not np.isscalar(value) or int(value) != value or value < low:
        raise RequestError(f"{name} is {value!r}; {rule or f'it must be an integer >= {low}'}: pass at least {low}")
    return int(value)


def _code(code: Any) -> np.ndarray:
    rows = np.asarray(code, dtype=np.float64)
    if rows.ndim != 2 or rows.size == 0 or not np.isfinite(rows).all():
        raise RequestError(f"code has shape {rows.shape}; it must be (K, d) and finite: one row for each class")
    return rows
