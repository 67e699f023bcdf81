"""What the alignment study does: networks whose classifiers are fixed at permuted vertices, their margins, a ratio of variances.

Labels are permuted over the vertices of a simplex or a polygon. A permutation of a simplex is a turn of space, and every frame is
drawn uniformly, so that the law of a network's accuracy is the same for every permutation, whatever data and architecture: the
variance between permutations is that of the starts. Of a polygon's permutations only its own turns and reflections are turns of
space; which classes are neighbours then matters.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from empirical.cost import Cost, cost_of
from empirical.crowd import Crowd, evaluated, summed
from empirical.data.split import Split
from empirical.devices import launched
from empirical.experiment import Experiment
from empirical.losses import Loss, objective
from empirical.models.layers import turned
from empirical.store import check_classes, full_float32
from empirical.studies.alignment import Alignment
from empirical.train import Report, Training, build_network, load_data, run_training
from empirical.training import Recipe, check_data
from ufm import geometry, measure
from ufm.errors import RequestError, RunError
from ufm.interrupt import Stop
from ufm.record import Run
from ufm.seeds import stream

PLACE = {"layer": "network", "centres": "self"}
ON_TRAIN = ("nc1_pinv", "ncc_error")
ON_TEST = ("nc1_pinv_strong", "nc1_pinv_weak", "nc1_pinv_between", "nc1_pinv_cross", "ncc_error", "ncc_error_between")
COPIES = 6  # of every network's features, held while they are measured


# --- the networks --------------------------------------------------------------------------------------------------


def permutations_of(experiment: Alignment, classes: int, seed: int) -> np.ndarray:
    """Return which vertex each class has, (P, K), from the streams "permutation-p" of the seed."""
    return np.stack([_drawn(experiment, classes, stream(seed, f"permutation-{p}")) for p in range(experiment.permutations)])


def _drawn(experiment: Alignment, classes: int, draw: np.random.Generator) -> np.ndarray:
    if experiment.vertices == "learned":
        return np.arange(classes)
    if experiment.permute == "any":
        return draw.permutation(classes)
    shift, sign = draw.integers(classes), draw.choice([-1, 1])
    return (shift + sign * np.arange(classes)) % classes


def crowd_of(network: nn.Module, experiment: Experiment, train: Split, seed: int) -> Crowd:
    """Return the untrained networks, the starts of a permutation one after the other; `network` says what one looks like.

    Start r of permutation p draws its weights and its frame from the seed that the stream "start-p-r" gives.
    """
    e = _alignment(experiment)
    plain = Experiment(**{f.name: getattr(e, f.name) for f in dataclasses.fields(Experiment)})
    vertices = _vertices(e, train.classes)
    networks = []
    for p, order in enumerate(permutations_of(e, train.classes, seed)):
        for r in range(e.starts):
            own = int(stream(seed, f"start-{p}-{r}").integers(2**32))
            made = build_network(plain, train, own)
            if vertices is not None:
                _fix(made, vertices[order], own)
            networks.append(made)
    return Crowd(networks)


def _vertices(experiment: Alignment, classes: int) -> np.ndarray | None:
    if experiment.vertices == "learned":
        return None
    return geometry.simplex_etf(classes) if experiment.vertices == "simplex" else geometry.polygon(classes)


def _fix(network: nn.Module, rows: np.ndarray, seed: int) -> None:
    """Put the classifier, which is not trained, at these rows (K, p) in a uniformly random frame."""
    weight = [m for m in network.modules() if isinstance(m, nn.Linear)][-1].weight
    with torch.no_grad():
        weight.copy_(torch.from_numpy(turned(rows, weight.shape[1], stream(seed, "frame"))))


def _loss(experiment: Experiment, train: Split) -> Loss:
    e = _alignment(experiment)
    return summed(objective(e.loss, e.smoothing, e.focal_gamma), e.permutations * e.starts)


def _alignment(experiment: Experiment) -> Alignment:
    assert isinstance(experiment, Alignment)
    return experiment


RECIPE = Recipe(network=crowd_of, targets=lambda train, experiment, seed: train.labels, loss=_loss)


def check(experiment: Alignment, seed: int) -> Cost:
    """Return what the training will cost; RequestError for anything that cannot be done, before anything is written."""
    train, test, _ = load_data(experiment, seed)
    launch = launched()
    if launch is not None and launch.size > 1:
        raise RequestError(
            f"torchrun's {launch.size} processes: alignment trains all its networks in one; start it without torchrun"
        )
    clock = check_data(experiment, train, test, 1)
    check_classes(train.classes)
    if experiment.vertices != "learned" and not experiment.depth:
        raise RequestError(
            f"--vertices {experiment.vertices} --depth 0: a fixed classifier on no layer leaves nothing to train; use --depth 1"
        )
    _check_width(experiment, train.classes)
    build_network(dataclasses.replace(experiment, permutations=1, starts=1), train, seed)
    number = experiment.permutations * experiment.starts
    one = cost_of(experiment, tuple(train.inputs.shape[1:]), train.classes, len(test), clock)
    kept = 4 * COPIES * (experiment.width or 0) * (len(train) + len(test))
    return dataclasses.replace(
        one,
        parameters=number * one.parameters,
        bytes=one.bytes + (number - 1) * 4 * 5 * one.parameters + number * kept,
        seconds=number * one.seconds,
    )


def _check_width(experiment: Alignment, classes: int) -> None:
    """RequestError where the vertices do not fit into the features: in the words of this study, which has no --head."""
    needed = {"simplex": classes - 1, "polygon": 2, "learned": 1}[experiment.vertices]
    if (experiment.width or needed) < needed:
        raise RequestError(
            f"--vertices {experiment.vertices} --width {experiment.width}: these vertices of {classes} classes need features of "
            f"dimension {needed} or more; use --width {needed}"
        )


# --- what is measured ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Seen:
    """All networks on one split: labels (N,), logits (M, N, K), features (M, N, d)."""

    labels: Tensor
    logits: Tensor
    features: Tensor

    @classmethod
    def of(cls, training: Training, split: Split) -> Seen:
        """Return one pass in eval mode and full float32; RunError when a network has diverged."""
        inputs, labels = split.batch(slice(None))
        with full_float32():
            logits, features = evaluated(training.network, inputs)  # type: ignore[arg-type]
        if not bool(torch.isfinite(logits).all()):
            raise RunError("the logits are not finite: a network has diverged")
        return cls(labels, logits, features)

    def error(self) -> np.ndarray:
        """Return each network's share of wrong samples, (M,)."""
        return (self.logits.argmax(2) != self.labels).double().mean(1).cpu().numpy()

    def loss(self, loss: Loss) -> float:
        """Return the mean loss over samples and networks."""
        return float(loss(self.logits.flatten(0, 1), self.labels.repeat(len(self.logits))))


def normalised_margins(logits: Tensor, labels: Tensor, weight: Tensor, features: Tensor) -> Tensor:
    """Return every sample's multi-class margin (M, N), in units of the most that weights and features of these norms allow.

    gamma_i = z_{y_i} - max_{j != y_i} z_j, divided by K/(K-1) rms_k |w_k - w_mean| rms_i |h_i - h_mean|. For balanced classes the
    mean over samples is at most 1: the largest other logit is no less than the mean of the others, the biases average out, and
    Cauchy and Schwarz bound the rest. It is 1 at collapse, h_i - h_mean one multiple of w_{y_i} - w_mean, a simplex, where
    w_k h_mean + b_k is the same for all classes k: what is left of it is a margin for some classes and against others.

    Args:
        logits: (M, N, K). labels: (N,). weight: (M, K, d). features: (M, N, d), what the weight sees.
    """
    logits, weight, features = logits.double(), weight.double(), features.double()
    K = logits.shape[2]
    own = labels[None, :, None].expand(len(logits), -1, 1)
    margins = logits.gather(2, own)[..., 0] - logits.scatter(2, own, -math.inf).amax(2)
    sizes = [(x - x.mean(1, keepdim=True)).square().sum(2).mean(1).sqrt() for x in (weight, features)]
    return margins / (K / (K - 1) * sizes[0] * sizes[1])[:, None]


@dataclass(frozen=True)
class OneWay:
    """One-way analysis of variance of values (P, R): P groups of R.

    f: R var(group means) / mean(var within groups), with (P-1, P(R-1)) degrees of freedom; p: of its F test, exact for normal
    values. share: (f-1)/(f-1+R), the estimated part of the variance of a single value that groups account for (the intraclass
    correlation); under 0 where group means differ less than by chance. between: the deviation of the group means; within: the
    deviation in a group, pooled. nan where a group has one value, where there is one group, and where nothing varies.
    """

    f: float
    p: float
    share: float
    between: float
    within: float

    @classmethod
    def of(cls, values: np.ndarray) -> OneWay:
        """Analyse values (P, R)."""
        from scipy.special import fdtrc

        groups, each = values.shape
        between = float(np.std(values.mean(1), ddof=1)) if groups > 1 else math.nan
        within = math.sqrt(float(np.mean(np.var(values, axis=1, ddof=1)))) if each > 1 else math.nan
        if not (within > 0 and between >= 0):
            return cls(math.nan, math.nan, math.nan, between, within)
        f = each * between**2 / within**2
        return cls(f, float(fdtrc(groups - 1, groups * (each - 1), f)), (f - 1) / (f - 1 + each), between, within)


class Look:
    """Measures all networks of a training together."""

    def rows(self, training: Training) -> list[dict[str, Any]]:
        """Return means over the networks, and what of the test accuracy's variance is the permutations'."""
        e = _alignment(training.experiment)
        train, test = Seen.of(training, training.train), Seen.of(training, training.test)
        rows = []
        for split, seen in (("train", train), ("test", test)):
            rows += [
                _row(split, "loss", seen.loss(training.objective)),
                _row(split, "error", float(seen.error().mean())),
            ]
        accuracy = 1 - test.error()
        rows += [_row("test", "accuracy", float(accuracy.mean()))]
        rows += margin_rows(training, train)
        rows += permutation_rows(accuracy.reshape(e.permutations, e.starts), training.seed)
        return rows + collapse_rows(train, test)

    def tensors(self, training: Training) -> dict[str, Any]:
        """Return each network's errors (P, R), which vertex each class has (P, K), and the classifiers' weights (M, K, d)."""
        e = _alignment(training.experiment)
        shape = (e.permutations, e.starts)
        kept = {
            f"alignment/{name}_error": Seen.of(training, split).error().reshape(shape)
            for name, split in (("train", training.train), ("test", training.test))
        }
        orders = permutations_of(e, training.train.classes, training.seed)
        return kept | {"alignment/permutations": orders, "alignment/weights": _crowd(training).weight().cpu().numpy()}


def _crowd(training: Training) -> Crowd:
    assert isinstance(training.network, Crowd)
    return training.network


def _row(split: str, metric: str, value: float, reason: str = "not finite") -> dict[str, Any]:
    """Return a row of the network; a value that is not finite becomes null with the reason."""
    row: dict[str, Any] = {"split": split, **PLACE, "metric": metric, "value": value if math.isfinite(value) else None}
    return row if math.isfinite(value) else row | {"reason": reason}


def margin_rows(training: Training, train: Seen) -> list[dict[str, Any]]:
    """Return the mean and the least of the normalised margins over the train samples, each as its mean over networks."""
    margins = normalised_margins(train.logits, train.labels, _crowd(training).weight(), train.features)
    reason = "the features of a network are all the same"
    return [
        _row("train", "margin_mean", float(margins.mean(1).mean()), reason),
        _row("train", "margin_min", float(margins.amin(1).mean()), reason),
    ]


def permutation_rows(accuracy: np.ndarray, seed: int) -> list[dict[str, Any]]:
    """Return the analysis of variance of the accuracies (P, R), and its F with groups drawn at random: a negative control."""
    found = OneWay.of(accuracy)
    order = stream(seed, "shuffled-groups").permutation(accuracy.size)
    shuffled = OneWay.of(accuracy.reshape(-1)[order].reshape(accuracy.shape))
    reason = "needs two permutations, two starts of each, and networks that differ"
    values = {
        "permutation_f": found.f,
        "permutation_p": found.p,
        "permutation_share": found.share,
        "permutation_f_shuffled": shuffled.f,
        "spread_permutations": found.between,
        "spread_starts": found.within,
    }
    return [_row("test", name, value, reason) for name, value in values.items()]


def collapse_rows(train: Seen, test: Seen) -> list[dict[str, Any]]:
    """Return NC1 of the classifiers' input on train and, in its parts, on test about the train means: means over networks."""
    on_train, on_test = [], []
    K = train.logits.shape[2]
    with full_float32():
        for h, g in zip(train.features, test.features, strict=True):
            reference = measure.ClassMoments.of(h, train.labels, classes=K)
            on_train.append(measure.collapse(h, train.labels, classes=K, names=ON_TRAIN))
            on_test.append(measure.collapse(g, test.labels, classes=K, names=ON_TEST, reference=reference))
    rows = []
    for split, centres, found, names in (("train", "self", on_train, ON_TRAIN), ("test", "train", on_test, ON_TEST)):
        place = {"layer": "penultimate", "centres": centres}
        means = {name: float(np.mean([one[name] for one in found])) for name in names}
        rows += [_row(split, name, mean, "it does not exist for one of the networks") | place for name, mean in means.items()]
    return rows


def train(
    experiment: Alignment, run: Run, *, device: torch.device, threads: int, stop: Stop | None, report: Report | None
) -> dict[str, Any]:
    """Train all networks to the end and return the run's result."""
    look = Look()
    return run_training(
        experiment, run, observe=look.rows, keep=look.tensors, device=device, threads=threads, stop=stop, report=report
    )
