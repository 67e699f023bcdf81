"""Generated data sets. Every draw comes from a named PCG64 stream in float64 and is then cast."""

from __future__ import annotations

import numpy as np

from empirical.data.source import Request, Source, check_memory
from ufm.errors import RequestError
from ufm.seeds import stream

DRAWN = 32  # bytes of a number while it is drawn: three times in float64, twice in float32
OWN = "none needed: generated"


def gaussian(request: Request) -> Source:
    """x = s u_y + sigma N(0, I_d) with unit directions u_k drawn uniformly.

    Defaults: K = 4, d = 32, s = 4, sigma = 1, 100 train and 200 test samples of each class: two directions lie about
    s sqrt(2) = 5.7 apart, so that the Bayes error is small and not zero.
    """
    K, d, s, sigma = _sizes("gaussian", request, 4, 32, 4.0, 1.0, (100, 200))
    directions = stream(request.seed, "means").standard_normal((K, d))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    return _around(s * directions, sigma, request, 100, 200)


def interpolation(request: Request) -> Source:
    """x = s e_y + sigma N(0, I_d), d >> N = K n: a linear model fits any train labels exactly.

    Defaults: K = 4, d = 2000, s = 4, sigma = 0.4, n = 50, 200 test samples of each class. With min-norm interpolation
    the train NC1 is 0 and the test NC1, with the test set's own means,
    (K-1)(sigma^2/s^2)(1 + d sigma^2/(n s^2)) d/(d-N).
    """
    K, d, s, sigma = _sizes("interpolation", request, 4, 2000, 4.0, 0.4, (50, 200))
    if d < K:
        raise RequestError(f"interpolation: input dimension {d} is below the {K} classes; use --input-dim {K} or more")
    return _around(s * np.eye(K, d), sigma, request, 50, 200)


def _sizes(
    name: str, request: Request, K: int, d: int, s: float, sigma: float, counts: tuple[int, int]
) -> tuple[int, int, float, float]:
    """Return the sizes asked for, or the defaults; RequestError before anything is drawn where they are too large."""
    K = K if request.classes is None else request.classes
    d = d if request.input_dim is None else request.input_dim
    if K < 2:
        raise RequestError(f"{K} class; classification needs at least 2: use --classes 2 or more")
    train, test = request.per_class or counts[0], request.test_per_class or counts[1]
    means = 2 * 8 * K * d
    check_memory(f"{name}: {K} x {train} + {K} x {test} samples of {d} numbers", means + DRAWN * K * max(train, test) * d)
    return K, d, s if request.signal is None else request.signal, sigma if request.noise is None else request.noise


def _around(means: np.ndarray, sigma: float, request: Request, train: int, test: int) -> Source:
    K, d = means.shape
    parts = []
    for name, count in (("sample", request.per_class or train), ("sample-test", request.test_per_class or test)):
        labels = np.tile(np.arange(K), count)
        inputs = means[labels] + sigma * stream(request.seed, name).standard_normal((K * count, d))
        with np.errstate(over="ignore"):  # what overflows is refused with its own sentence
            parts += [inputs.astype(np.float32), labels]
    return Source(*parts, classes=K, licence=OWN, normalise=False)


def mnist1d(request: Request) -> Source:
    """A one-dimensional stand-in for digits, in the manner of MNIST-1D: ten shapes, moved, scaled, sheared, noisy.

    The shapes are our own (12 points each, drawn once from a fixed stream), so that numbers are comparable with
    published MNIST-1D results in kind only. Each sample: the shape scaled by 1 + .25 N(0,1), placed at random among 60
    points, moved round by up to 48, tilted by up to .375 at the ends, plus smooth noise of deviation .25 and white
    noise of deviation .02, read at 40 evenly spaced points. 400 train and 100 test samples of each class by default.
    """
    sigma = 0.25 if request.noise is None else request.noise
    train, test = request.per_class or 400, request.test_per_class or 100
    check_memory(f"mnist1d: 10 x {train} + 10 x {test} signals", DRAWN * 2 * 10 * max(train, test) * 60)
    shapes, parts = _shapes(), []
    for name, count in (("sample", train), ("sample-test", test)):
        draw = stream(request.seed, name)
        labels = np.tile(np.arange(10), count)
        with np.errstate(over="ignore"):
            parts += [_signals(shapes[labels], sigma, draw).astype(np.float32), labels]
    return Source(*parts, classes=10, licence=OWN, normalise=False)


def _shapes() -> np.ndarray:
    """Ten smooth shapes (10, 12), unit deviation, the same for every seed."""
    draw = stream(0, "mnist1d-shapes")
    t = np.linspace(0, 1, 12)
    waves = np.concatenate([np.sin(np.pi * k * t)[None] / k**0.5 for k in range(1, 6)])
    shapes = draw.standard_normal((10, 5)) @ waves
    shapes -= shapes.mean(axis=1, keepdims=True)
    return shapes / shapes.std(axis=1, keepdims=True)


def _signals(shapes: np.ndarray, sigma: float, draw: np.random.Generator) -> np.ndarray:
    """Return (N, 40) signals from (N, 12) shapes."""
    number, width, length, points = len(shapes), shapes.shape[1], 60, 40
    canvas = np.zeros((number, length))
    start = draw.integers(0, length - width + 1, size=number)
    scale = 1 + 0.25 * draw.standard_normal(number)
    rows = np.arange(number)[:, None]
    canvas[rows, start[:, None] + np.arange(width)] = shapes * scale[:, None]
    moved = (np.arange(length) - draw.integers(0, 48, size=number)[:, None]) % length
    canvas = canvas[rows, moved]
    canvas += np.linspace(-0.5, 0.5, length) * draw.uniform(-0.75, 0.75, size=(number, 1))
    canvas += sigma * _smooth(draw.standard_normal((number, length)))
    canvas += 0.02 * draw.standard_normal((number, length))
    at = np.linspace(0, length - 1, points)
    low = np.minimum(at.astype(int), length - 2)
    return canvas[:, low] + (at - low) * (canvas[:, low + 1] - canvas[:, low])


def _smooth(noise: np.ndarray, width: float = 2.0) -> np.ndarray:
    """Gaussian blur along the last axis, periodic, rescaled to unit deviation."""
    length = noise.shape[1]
    distance = np.minimum(np.arange(length), length - np.arange(length))
    kernel = np.exp(-0.5 * (distance / width) ** 2)
    kernel /= np.sqrt((kernel**2).sum())
    return np.fft.irfft(np.fft.rfft(noise, axis=1) * np.fft.rfft(kernel), n=length, axis=1)


def moons(request: Request) -> Source:
    """Two moons that one coordinate separates, as in Pezeshki et al. 2020, figures 1 and 2: a gap that makes the curve needless.

    t uniform in [0, pi]; class 0 is (cos t, sin t), class 1 (1 - cos t, 1/2 - sin t), both with noise N(0, sigma^2 I). The
    second of these coordinates, moved so that the moons interlock (by .3 towards either side and about its mean over both
    classes), becomes x_1 = -y (|v| + Delta) with y = -1, +1: its sign tells the class, with a gap of at least 2 Delta (an
    overlap where Delta < 0). The first, less 1/2, becomes x_2: together with x_1 it tells the class by the curve of the moons.

    Defaults: sigma = .1, Delta (`margin`) = .1, 150 train and 500 test samples of each class.
    """
    sigma = 0.1 if request.noise is None else request.noise
    margin = 0.1 if request.margin is None else request.margin
    counts = request.per_class or 150, request.test_per_class or 500
    check_memory(f"moons: 2 x {max(counts)} samples", DRAWN * 2 * max(counts) * 2)
    parts = []
    for name, count in zip(("sample", "sample-test"), counts, strict=True):
        draw, labels = stream(request.seed, name), np.tile(np.arange(2), count)
        sign, angle = 2.0 * labels - 1, draw.uniform(0, np.pi, size=2 * count)
        along = np.where(labels == 0, np.cos(angle), 1 - np.cos(angle)) - 0.5
        across = np.where(labels == 0, np.sin(angle), 0.5 - np.sin(angle)) - 0.3 * sign
        across, along = np.stack([across, along]) + sigma * draw.standard_normal((2, 2 * count))
        first = -sign * (np.abs(across - across.mean()) + margin)
        with np.errstate(over="ignore"):
            parts += [np.stack([first, along], axis=1).astype(np.float32), labels]
    return Source(*parts, classes=2, licence=OWN, normalise=False)
