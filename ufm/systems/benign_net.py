"""Many two-patch networks trained at once by gradient descent, and their exact test error, at a cost that knows no d.

The model is f(x) = F_1 - F_-1 with F_j = a sum_r [s(<w_jr, y mu>) + s(<w_jr, xi>)], s(z) = max(0, z)^q, logistic loss over n
samples. A gradient is a combination of mu and of the n noise vectors, so that everything follows from inner products: the
projections of the filters on these n + 1 vectors, their Gram matrix, and the Gram matrix of the start. All of these are drawn
from their exact law without a vector of length d (Bartlett's decomposition of a Wishart matrix).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ufm import seeds
from ufm.systems.benign import signal_of

if TYPE_CHECKING:
    import torch

TOGETHER = 640_000  # draws x filters whose test error is taken at a time: 32 networks of 20 filters, what a core's cache holds


@dataclass(frozen=True, eq=False)
class Draw:
    """One data set and one start, in coordinates whose first axis is the direction of mu.

    noise: (n, D) noise vectors. filters: (2m, D) initial filters, those of F_1 first. D = min(d, n + 2m + 1): a rotation of R^d
    brings the rest of every vector to zero. clean: (n,) the labels +-1 that sign the signal. labels: (n,) those seen.
    """

    noise: np.ndarray
    filters: np.ndarray
    clean: np.ndarray
    labels: np.ndarray


@functools.lru_cache(maxsize=2)
def _normals(seed: int, samples: int, filters: int) -> tuple[np.ndarray, ...]:
    """Return what every dimension shares: normals for vectors of each kind, uniforms for labels and flips."""
    width = samples + filters + 1
    noise = seeds.stream(seed, "noise").standard_normal((samples, width))
    start = seeds.stream(seed, "init").standard_normal((filters, width))
    return noise, start, seeds.stream(seed, "labels").random(samples), seeds.stream(seed, "flips").random(samples)


def draw(spec: Any, seed: int) -> Draw:
    """Return the data set and the start of one cell (`ufm.systems.benign.Benign`) under a root seed.

    Rows of independent normals in R^d, rotated about the axis of mu into triangular form: normals below the diagonal, on it the
    roots of chi-squared numbers with d - 1, d - 2, ... degrees of freedom, zero above. Cells of one seed share the normals,
    whatever their d: they differ by less than their seeds do.
    """
    samples, filters = spec.samples, 2 * spec.filters
    noise, start, labels, flips = _normals(seed, samples, filters)
    rows = np.concatenate([noise, start])
    size = min(spec.dim - 1, len(rows))
    rows = rows[:, : size + 1].copy()
    rows[:, 1:] *= np.tri(len(rows), size, -1)
    freedom = spec.dim - 1 - np.arange(size)
    rows[np.arange(size), 1 + np.arange(size)] = np.sqrt(seeds.stream(seed, "radii").chisquare(freedom))
    if spec.orthogonal:
        rows[:samples, 0] = 0.0
    clean = np.where(labels < 0.5, 1.0, -1.0)
    scale = spec.init_scale / np.sqrt(spec.dim) if spec.init == "fan_in" else spec.init_scale
    return Draw(
        noise=spec.noise * rows[:samples],
        filters=scale * rows[samples:],
        clean=clean,
        labels=np.where(flips < spec.flip, -clean, clean),
    )


@dataclass(eq=False)
class Nets:
    """B networks of one shape: what gradient descent sees of them. All tensors float64; the last of n + 1 columns is mu/|mu|.

    projections: (B, 2m, n + 1) of the filters. coefficients: the same shape, w = w(0) + coefficients @ vectors. gram: (B, n + 1,
    n + 1) of the vectors. start: (B, 2m, n + 1) projections and start_gram (B, 2m, 2m) of w(0). signal, rate, noise: (B,).
    """

    projections: torch.Tensor
    coefficients: torch.Tensor
    gram: torch.Tensor
    start: torch.Tensor
    start_gram: torch.Tensor
    clean: torch.Tensor
    labels: torch.Tensor
    signal: torch.Tensor
    noise: torch.Tensor
    rate: torch.Tensor
    sign: torch.Tensor  # (2m,) the weight of each filter in f: a for F_1, -a for F_-1
    power: float
    orthogonal: bool

    @classmethod
    def of(cls, specs: Sequence[Any], draws: Sequence[Draw], device: str) -> Nets:
        """Return the networks of cells that agree in samples, filters, q, output weight and orthogonality."""
        import torch

        def put(parts: Any) -> torch.Tensor:
            return torch.as_tensor(np.asarray(parts, dtype=np.float64), device=device)

        first = specs[0]
        width = max(one.noise.shape[1] for one in draws)
        axis = np.eye(1, width)  # the direction of mu
        vectors = put([np.concatenate([_padded(one.noise, width), axis]) for one in draws])
        filters = put([_padded(one.filters, width) for one in draws])
        start = filters @ vectors.mT
        half = 1.0 / first.filters if first.output is None else first.output
        return cls(
            projections=start.clone(),
            coefficients=torch.zeros_like(start),
            gram=vectors @ vectors.mT,
            start=start,
            start_gram=filters @ filters.mT,
            clean=put([one.clean for one in draws]),
            labels=put([one.labels for one in draws]),
            signal=put([signal_of(spec) for spec in specs]),
            noise=put([spec.noise for spec in specs]),
            rate=put([spec.lr for spec in specs]),
            sign=put([half] * first.filters + [-half] * first.filters),
            power=first.q,
            orthogonal=first.orthogonal,
        )

    def weight_gram(self) -> torch.Tensor:
        """Return W W^T (B, 2m, 2m) of the trained filters."""
        cross = self.coefficients @ self.start.mT
        return self.start_gram + cross + cross.mT + self.coefficients @ self.gram @ self.coefficients.mT

    def outputs(self) -> torch.Tensor:
        """Return f of the n training points (B, n)."""
        noise, plus, minus = (_raised(z, self.power) for z in self._arguments())
        return self._joined(noise, plus, minus)

    def _arguments(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        along = self.projections[:, :, -1] * self.signal[:, None]
        return self.projections[:, :, :-1], along, -along

    def _joined(self, noise: torch.Tensor, plus: torch.Tensor, minus: torch.Tensor) -> torch.Tensor:
        import torch

        return torch.where(self.clean > 0, (plus @ self.sign)[:, None], (minus @ self.sign)[:, None]) + self.sign @ noise


def _padded(rows: np.ndarray, width: int) -> np.ndarray:
    return np.pad(rows, ((0, 0), (0, width - rows.shape[1])))


def _raised(z: torch.Tensor, power: float) -> torch.Tensor:
    """Return max(0, z)^q."""
    rest = z.clamp(min=0)
    return rest if power == 1 else rest.square() if power == 2 else rest**power


def _slope(z: torch.Tensor, power: float) -> torch.Tensor:
    """Return q max(0, z)^(q - 1), zero at z = 0 as autograd has it."""
    return (z > 0).to(z.dtype) if power == 1 else power * z.clamp(min=0) ** (power - 1)


def train(nets: Nets, steps: int, clip: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Run full-batch gradient descent in place; return (step at which the loss became non-finite or -1, clipped steps), (B,).

    One step is one batched (2m x (n + 1)) ((n + 1) x (n + 1)) product. With `clip` (q > 2) the rate of a step is at most
    1 / (a q max(z)^(q-2) L), L = max(max_i |xi_i|^2 / n, |mu|^2): until the loss is small a pre-activation then grows by at most
    a factor of about two in a step. Plain descent overshoots there: its curvature grows with the pre-activations.
    """
    import torch

    size = nets.labels.shape[1]
    lost = torch.full_like(nets.rate, -1)
    clipped = torch.zeros_like(nets.rate)
    longest = torch.diagonal(nets.gram, dim1=1, dim2=2)[:, :-1].amax(1) / size
    curvature = torch.maximum(longest, nets.signal**2) * nets.sign.abs().max() * nets.power
    delta = torch.empty_like(nets.projections)
    up = (nets.clean > 0).to(nets.clean.dtype)
    for step in range(steps):
        noise, plus, minus = nets._arguments()
        margin = nets.labels * nets._joined(*(_raised(z, nets.power) for z in (noise, plus, minus)))
        lost = torch.where((lost < 0) & ~torch.isfinite(margin).all(1), float(step), lost)
        rate = nets.rate
        if clip:
            high = torch.maximum(noise.amax((1, 2)), plus.abs().amax(1)).clamp(min=0)
            allowed = 1 / (curvature * high ** (nets.power - 2)).clamp(min=1e-300)
            clipped += rate > allowed
            rate = torch.minimum(rate, allowed)
        pull = nets.labels * torch.sigmoid(-margin) * (rate / size)[:, None]  # -lr dL/df_i
        torch.mul(_slope(noise, nets.power) * pull[:, None, :], nets.sign[:, None], out=delta[:, :, :-1])
        first, second = (pull * up).sum(1, keepdim=True), (pull * (1 - up)).sum(1, keepdim=True)
        along = _slope(plus, nets.power) * first - _slope(minus, nets.power) * second
        delta[:, :, -1] = nets.sign * nets.signal[:, None] * along
        nets.coefficients += delta
        nets.projections.baddbmm_(delta, nets.gram)
    return lost, clipped


# --- the law of a test point ---------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=2)
def _directions(seed: int, size: int, points: int) -> tuple[np.ndarray, np.ndarray]:
    """Return uniform directions (points, size) and the radii that make them normal."""
    raw = seeds.stream(seed, "test").standard_normal((points, size))
    radius = np.linalg.norm(raw, axis=1)
    return raw / radius[:, None], radius


def error_law(nets: Nets, roots: Sequence[int], points: int) -> dict[str, torch.Tensor]:
    """Return the clean test error and the clean test losses of every network, name -> (B,).

    The pre-activations of a test point's noise patch are exactly normal with covariance sigma^2 W W^T (without the part along
    mu where the noise is orthogonal to it): its eigenvalues, never below zero, and `points` directions. A network is
    homogeneous of degree q in them, so that the integral over their length is exact, a chi-squared probability.

    Args:
        nets: trained networks.
        roots: (B,) root seeds, equal ones beside each other. Networks of one seed share their directions.
        points: directions per network.
    """
    import torch

    gram = nets.weight_gram()
    if nets.orthogonal:
        along = nets.projections[:, :, -1]
        gram = gram - along[:, :, None] * along[:, None, :]
    found: dict[str, list[torch.Tensor]] = {"clean_error": [], "loss_plus": [], "loss_minus": []}
    size = max(1, TOGETHER // (points * len(nets.sign)))
    for first in range(0, len(roots), size):
        part = slice(first, first + size)
        for name, values in _slice_law(nets, part, gram[part], roots[part], points).items():
            found[name].append(values)
    return {name: torch.cat(parts) for name, parts in found.items()}


def _slice_law(nets: Nets, part: slice, gram: torch.Tensor, roots: Sequence[int], points: int) -> dict[str, torch.Tensor]:
    import torch

    signs = nets.sign
    known = torch.isfinite(gram).all(2).all(1)
    values, vectors = torch.linalg.eigh(torch.where(known[:, None, None], gram, torch.zeros_like(gram)))
    # The symmetric root: eigenvectors have a sign, or a rotation, of their own, which hangs on the last bit and so on the batch.
    root = vectors * (values.clamp(min=0).sqrt() * nets.noise[part, None])[:, None, :] @ vectors.mT  # (B, 2m, 2m)
    pairs = [_directions(seed, len(signs), points) for seed in roots]
    unit = torch.as_tensor(np.stack([u for u, _ in pairs]), device=gram.device)
    radius = torch.as_tensor(np.stack([r for _, r in pairs]), device=gram.device)
    noise = _raised(unit @ root, nets.power) @ signs  # (B, points): f = signal + r^q noise
    _, plus, minus = nets._arguments()
    high, low = (_raised(z[part], nets.power) @ signs for z in (plus, minus))
    nothing = torch.full_like(noise[:, 0], torch.nan)
    random = radius**nets.power * noise
    return {
        "clean_error": torch.where(known, (_below(high, noise, nets) + _below(-low, -noise, nets)) / 2, nothing),
        "loss_plus": torch.where(known, _logistic(high[:, None] + random, -low[:, None] - random), nothing),
        "loss_minus": torch.where(known, _logistic(-high[:, None] - random, low[:, None] + random), nothing),
    }


def _below(signal: torch.Tensor, noise: torch.Tensor, nets: Nets) -> torch.Tensor:
    """Return P(signal + r^q noise < 0) + P(... = 0)/2 over the directions, r^2 chi-squared with 2m degrees of freedom: (B,)."""
    import torch

    shape = torch.tensor(len(nets.sign) / 2, dtype=noise.dtype, device=noise.device)
    other = -torch.sign(signal)[:, None] * noise  # positive where the noise can turn the sign
    edge = torch.where(other > 0, signal.abs()[:, None] / other.clamp(min=1e-300), torch.inf)
    turned = torch.special.gammaincc(shape, edge ** (2 / nets.power) / 2)
    share = torch.where(signal[:, None] > 0, turned, 1 - turned)
    flat = (noise < 0).to(noise.dtype) + 0.5 * (noise == 0)
    return torch.where(signal[:, None] == 0, flat, share).mean(1)


def _logistic(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Return the mean over directions and both classes of log(1 + exp(-margin))."""
    from torch.nn.functional import softplus

    return (softplus(-first).mean(1) + softplus(-second).mean(1)) / 2
