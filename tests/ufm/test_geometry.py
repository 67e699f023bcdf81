"""Frames, codes and graphs against their closed forms and against scipy."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog, nnls

from ufm import geometry
from ufm.errors import RequestError

TAMMES = {7: 77.869542, 8: 74.858492, 9: 70.528779, 11: 63.434949, 12: 63.434949}


def turned(rows, dim, seed=0):
    rotation = np.linalg.qr(np.random.default_rng(seed).standard_normal((dim, dim)))[0]
    return np.pad(rows, ((0, 0), (0, dim - rows.shape[1]))) @ rotation


@pytest.mark.parametrize(("classes", "dim"), [(2, None), (3, 5), (10, None), (10, 64), (100, 99)])
def test_simplex(classes, dim):
    rows = geometry.simplex_etf(classes, dim)
    assert rows.shape == (classes, dim or classes - 1)
    wanted = np.where(np.eye(classes, dtype=bool), 1.0, -1 / (classes - 1))
    assert np.abs(rows @ rows.T - wanted).max() < 1e-14
    assert np.abs(rows.sum(0)).max() < 1e-13
    # a tight frame: rows^T rows is K/(K-1) times the identity on its span
    assert np.allclose(np.linalg.svd(rows, compute_uv=False)[: classes - 1], np.sqrt(classes / (classes - 1)))


def test_frames():
    assert np.array_equal(geometry.orthogonal_frame(3, 5) @ geometry.orthogonal_frame(3, 5).T, np.eye(3))
    lengths = [3.0, 0.0, 1.5]
    frame = geometry.general_orthogonal_frame(lengths, 4)
    assert np.array_equal(frame @ frame.T, np.diag(np.square(lengths)))


CODES = [  # name, code, smallest angle in degrees, smallest and largest one-vs-rest margin (None: not fixed)
    ("simplex", geometry.simplex_etf(6), np.degrees(np.arccos(-0.2)), 6 / 5, 6 / 5),
    ("polygon 5", geometry.polygon(5), 72.0, 1 - np.cos(2 * np.pi / 5), None),
    ("polygon 12", geometry.polygon(12), 30.0, 1 - np.cos(np.pi / 6), 1 - np.cos(np.pi / 6)),
    ("cross-polytope", geometry.cross_polytope(4), 90.0, 1.0, 1.0),
    ("icosahedron", geometry.icosahedron(), 63.434949, 1 - 1 / np.sqrt(5), 1 - 1 / np.sqrt(5)),
    ("24-cell", geometry.cell24(), 60.0, 0.5, 0.5),
    ("bipyramid", geometry.triangular_bipyramid(), 90.0, 1.0, 1.0),
    ("7 points", geometry.capped_octahedron(), TAMMES[7], 1 - np.cos(np.radians(TAMMES[7])), None),
    ("8 points", geometry.square_antiprism(), TAMMES[8], 1 - np.cos(np.radians(TAMMES[8])), None),
    ("9 points", geometry.tricapped_prism(), TAMMES[9], 2 / 3, 2 / 3),
    ("two simplices", geometry.two_simplices(7, 4), 90.0, 1.0, 1.0),
]


@pytest.mark.parametrize(("name", "code", "angle", "low", "high"), CODES, ids=[row[0] for row in CODES])
def test_codes(name, code, angle, low, high):
    assert np.abs(np.linalg.norm(code, axis=1) - 1).max() < 1e-15
    assert geometry.smallest_angle(code) == pytest.approx(angle, abs=1e-6)
    margins = geometry.one_vs_rest_margins(turned(code, code.shape[1] + 2))
    assert margins.min() == pytest.approx(low, abs=1e-8 if len(code) in (7, 8) else 1e-14)
    if high is not None:
        assert margins.max() == pytest.approx(high, abs=1e-14)


def test_margin_is_the_largest_separation():
    """max over |h| <= 1 of min_j (w_k - w_j).h, with |h| replaced by 7200 directions in the plane."""
    rng = np.random.default_rng(3)
    code = rng.standard_normal((6, 2))
    angle = np.linspace(0, 2 * np.pi, 7201)
    directions = np.stack([np.cos(angle), np.sin(angle)])
    for k, margin in enumerate(geometry.one_vs_rest_margins(code)):
        gaps = code[k] - np.delete(code, k, axis=0)
        best = max((gaps @ directions).min(0).max(), 0.0)
        assert margin - 1e-3 * np.abs(gaps).max() < best < margin + 1e-12


def test_margin_of_a_point_inside_the_rest_is_zero():
    code = np.concatenate([geometry.simplex_etf(4), [[0.1, 0.0, 0.05]]])
    weights = linprog(np.zeros(4), A_eq=np.vstack([code[:4].T, np.ones(4)]), b_eq=[0.1, 0.0, 0.05, 1.0])
    assert weights.status == 0  # scipy agrees that it lies inside
    assert geometry.one_vs_rest_margins(code)[4] == pytest.approx(0.0, abs=1e-12)


@settings(max_examples=60, deadline=None, derandomize=True)
@pytest.mark.filterwarnings("ignore:Ill-conditioned matrix")  # of SciPy 1.12's own solver, where columns depend on each other
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 10**6))
def test_nonnegative_least_squares_is_scipys(rows, columns, seed):
    rng = np.random.default_rng(seed)
    matrix, target = rng.standard_normal((rows, columns)), rng.standard_normal(rows)
    x = geometry.nonnegative_least_squares(matrix, target)
    assert (x >= 0).all()
    try:
        expected = nnls(matrix, target)[1]
    except RuntimeError:  # SciPy 1.12 gives up on some
        assume(False)
    assert np.linalg.norm(matrix @ x - target) == pytest.approx(expected, abs=1e-9)


def test_best_code():
    assert np.array_equal(geometry.best_code(5, 6), geometry.simplex_etf(5, 6))
    for (classes, dim), angle in {(9, 2): 40.0, (5, 3): 90.0, (6, 3): 90.0, (24, 4): 60.0}.items():
        code = geometry.best_code(classes, dim)
        assert code.shape == (classes, dim)
        assert geometry.smallest_angle(code) == pytest.approx(angle, abs=1e-6)
    for classes, angle in TAMMES.items():
        assert geometry.smallest_angle(geometry.best_code(classes, 3)) == pytest.approx(angle, abs=1e-6)
    assert geometry.best_code(13, 3) is None


@pytest.mark.parametrize(("classes", "dim"), [(5, 3), (6, 3), (6, 4), (7, 4), (8, 4), (9, 6), (2 * 9, 9)])
def test_two_simplices(classes, dim):
    code = geometry.two_simplices(classes, dim)
    off = (code @ code.T)[~np.eye(classes, dtype=bool)]
    assert off.max() < 1e-15
    assert np.linalg.matrix_rank(code) == dim
    assert np.allclose(geometry.one_vs_rest_margins(code), 1.0)


@pytest.mark.parametrize("vertices", [4, 5, 6, 8])
def test_triangular_graph_is_strongly_regular(vertices):
    adjacency = geometry.triangular_graph(vertices)
    degree, common, apart = 2 * (vertices - 2), vertices - 2, 4
    size = len(adjacency)
    assert size == vertices * (vertices - 1) // 2
    wanted = degree * np.eye(size) + common * adjacency + apart * (1 - np.eye(size) - adjacency)
    assert np.array_equal(adjacency @ adjacency, wanted)
    found = {round(value) for value in np.linalg.eigvalsh(adjacency)}
    assert found == {degree, vertices - 4, -2}


def test_petersen():
    adjacency = geometry.petersen_graph()
    wanted = 3 * np.eye(10) + 0 * adjacency + 1 * (1 - np.eye(10) - adjacency)
    assert np.array_equal(adjacency @ adjacency, wanted)
    assert np.allclose(np.linalg.eigvalsh(adjacency), [-2] * 4 + [1] * 5 + [3])


def test_grams():
    rows = np.random.default_rng(0).standard_normal((5, 3))
    assert np.linalg.norm(geometry.normalized_gram(rows)) == pytest.approx(1.0)
    assert np.allclose(np.diag(geometry.cosine_gram(rows)), 1.0)
    assert np.allclose(geometry.cosine_gram(rows)[0, 1], rows[0] @ rows[1] / np.linalg.norm(rows[0]) / np.linalg.norm(rows[1]))
    back = geometry.rows_of_gram(rows @ rows.T)
    assert back.shape == (5, 3)
    assert np.allclose(back @ back.T, rows @ rows.T)
    assert geometry.rows_of_gram(np.eye(2), 4).shape == (2, 4)


@pytest.mark.parametrize("classes", [2, 3, 4, 10])
def test_etf_plane(classes):
    means = turned(3 * geometry.simplex_etf(classes), classes + 3) + 7.0
    drawn = geometry.etf_plane(means)
    radius = np.linalg.norm(drawn, axis=1)
    assert np.allclose(radius, radius[0])
    assert radius[0] == pytest.approx(3 * np.sqrt(min(2, classes - 1) / (classes - 1)))
    steps = np.diff(np.unwrap(np.arctan2(drawn[:, 1], drawn[:, 0])))
    assert np.allclose(steps, 2 * np.pi / classes)


WRONG = [
    (geometry.simplex_etf, (1,), "classes is 1"),
    (geometry.simplex_etf, (10, 8), "needs d >= K - 1"),
    (geometry.simplex_etf, (2.5,), "classes is 2.5"),
    (geometry.orthogonal_frame, (5, 4), "need d >= K"),
    (geometry.general_orthogonal_frame, ([-1.0, 2.0],), "finite numbers >= 0"),
    (geometry.two_simplices, (9, 4), "6 <= K <= 8"),
    (geometry.one_vs_rest_margins, (np.ones((1, 3)),), "at least two rows"),
    (geometry.one_vs_rest_margins, (np.ones(3),), "must be (K, d)"),
    (geometry.cosine_gram, (np.zeros((2, 2)),), "row 0 is zero"),
    (geometry.normalized_gram, (np.zeros((2, 2)),), "all zero"),
    (geometry.rows_of_gram, (-np.eye(2),), "eigenvalue"),
    (geometry.rows_of_gram, (np.ones((2, 3)),), "square and symmetric"),
    (geometry.rows_of_gram, (np.eye(3), 2), "rank 3"),
    (geometry.etf_plane, (np.ones((1, 2)),), "at least two classes"),
    (geometry.smallest_angle, (np.ones((1, 2)),), "at least two rows"),
]


@pytest.mark.parametrize(("function", "arguments", "words"), WRONG)
def test_one_line_errors(function, arguments, words):
    with pytest.raises(RequestError) as caught:
        function(*arguments)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("rows", [geometry.polygon(9), geometry.icosahedron(), geometry.cell24(), geometry.cross_polytope(5)])
def test_a_relabelled_code_is_recognised(rows):
    rng = np.random.default_rng(0)
    target = rows @ rows.T
    for _ in range(5):
        order = rng.permutation(len(rows))
        gram = target[np.ix_(order, order)] + rng.normal(scale=1e-6, size=target.shape)
        places = geometry.relabelling(gram, target)
        assert sorted(places) == list(range(len(rows)))
        np.testing.assert_allclose(target[np.ix_(places, places)], gram, atol=1e-4)


def test_another_code_has_no_relabelling():
    antiprism = geometry.square_antiprism() @ geometry.square_antiprism().T
    cube = np.array([[a, b, c] for a in (1, -1) for b in (1, -1) for c in (1, -1)]) / np.sqrt(3)
    assert geometry.relabelling(cube @ cube.T, antiprism) is None
    assert geometry.relabelling(2 * antiprism, antiprism) is None
    assert geometry.relabelling(np.eye(40) + 0.5, np.eye(40) + 0.2) is None
