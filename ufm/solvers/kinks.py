"""Deep ReLU end points to full accuracy: smooth descent with the pre-activations that sit on a kink held at zero.

At low-rank solutions many pre-activations are exactly 0. No gradient vanishes there, so gradient steps only hover. Given
which are positive, negative and held, the objective is smooth: an augmented Lagrangian keeps z = 0 with a multiplier mu per
held entry, L-BFGS does the rest. The point is stationary (Clarke) when every mu lies between 0, the slope for z < 0, and the
signal that arrives from above, the slope for z > 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from ufm.solvers import balance, deep
from ufm.solvers.deep import Batch

HELD = (1e-6, 1e-5, 1e-4, 1e-3)  # |z| below such a share of its layer's largest is taken for 0; the best fit decides per cell
DEAD = 1e-7  # a neuron with a smaller share of its layer's largest energy is set to zero, where that lowers the loss
STIFFNESS = 0.3  # of the augmented Lagrangian, against weight decays of 1e-3 to 1e-2 and layer norms near 1
INNER, OUTER, MEMORY = 100, 6, 10  # L-BFGS steps per update of the multipliers, updates, pairs of differences
HOPELESS = 1e-2  # a cell as far as this from stationary after three updates has its pattern wrong
STATIONARY = 1e-9  # |subgradient| / |lambda x| at which a cell is done


@dataclass
class Pattern:
    """The objective of a batch on one activation pattern per cell: smooth, with multipliers on the held entries.

    active, held: 0/1 per hidden layer (B, d, K); a held or negative entry passes nothing on. multipliers: mu, like held.
    Has what `deep.lbfgs` asks of a batch: `value_and_gradient` and `penalty`.
    """

    batch: Batch
    active: list[torch.Tensor]
    held: list[torch.Tensor]
    multipliers: list[torch.Tensor]

    @property
    def penalty(self) -> torch.Tensor:
        """(B, P), the weight decay of every entry."""
        return self.batch.penalty

    def take(self, cells: torch.Tensor) -> Pattern:
        """Return the pattern of some cells, copied."""
        parts = [[t[cells] for t in group] for group in (self.active, self.held, self.multipliers)]
        return Pattern(self.batch.take(cells), *parts)

    def states(self, x: torch.Tensor) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Return (inputs of every layer, pre-activations of the hidden layers)."""
        weights, features, _ = self.batch.views(x)
        inputs, before = [features], []
        for weight, active in zip(weights[:-1], self.active, strict=True):
            before.append(torch.bmm(weight, inputs[-1]))
            inputs.append(before[-1] * active)
        return inputs, before

    def value_and_gradient(self, x: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        """Return the augmented Lagrangian (B,) and write its gradient (B, P)."""
        weights, _, bias = self.batch.views(x)
        steps, feature_step, bias_step = self.batch.views(gradient)
        inputs, before = self.states(x)
        output = torch.bmm(weights[-1], inputs[-1])
        value, signal = self.batch.data_term(output, bias), self.batch.data_signal(output, bias, bias_step)
        torch.bmm(signal, inputs[-1].transpose(1, 2), out=steps[-1])
        for layer in range(len(before) - 1, -1, -1):
            off = before[layer] * self.held[layer]
            value = value + (off * (self.multipliers[layer] + 0.5 * STIFFNESS * off)).sum((1, 2))
            push = torch.addcmul(self.multipliers[layer], self.held[layer], off, value=STIFFNESS)
            signal = torch.addcmul(push, torch.bmm(weights[layer + 1].transpose(1, 2), signal), self.active[layer])
            torch.bmm(signal, inputs[layer].transpose(1, 2), out=steps[layer])
        torch.bmm(weights[0].transpose(1, 2), signal, out=feature_step)
        weighted = self.penalty * x
        gradient += weighted
        return value + 0.5 * (weighted * x).sum(1)


@dataclass(frozen=True)
class Stationarity:
    """How far a point is from stationary on its pattern."""

    residual: torch.Tensor  # (B,) |subgradient| / |lambda x| at the best multipliers
    outside: torch.Tensor  # (B,) held entries whose multiplier lies outside [0, signal]: the point can still descend
    multipliers: list[torch.Tensor]
    signals: list[torch.Tensor]  # (B, d, K) gradient of the data term in the post-activations
    violation: torch.Tensor  # (B,) largest |z| of a held entry


def pattern(batch: Batch, x: torch.Tensor, share: float) -> Pattern:
    """Return the activation pattern at x with every |z| <= share x largest held, and no multipliers yet."""
    weights, features, _ = batch.views(x)
    found = Pattern(batch, [], [], [])
    state = features
    for weight in weights[:-1]:
        z = torch.bmm(weight, state)
        alive = ((weight**2).sum(2) > 0)[:, :, None]
        held = (z.abs() <= share * z.abs().amax((1, 2), keepdim=True)) & alive
        found.held.append(held.to(x.dtype))
        found.active.append(((z > 0) & ~held).to(x.dtype))
        found.multipliers.append(torch.zeros_like(z))
        state = z * found.active[-1]
    return found


def stationarity(found: Pattern, x: torch.Tensor) -> Stationarity:
    """Return the least-squares multipliers, layer by layer from the top, and what they leave over."""
    batch = found.batch
    weights, features, bias = batch.views(x)
    inputs, before = found.states(x)
    bias_step = torch.empty_like(bias)
    signal = batch.data_signal(torch.bmm(weights[-1], inputs[-1]), bias, bias_step)
    lambdas = batch.lambdas[:, :, None, None]
    rest = [torch.bmm(signal, inputs[-1].transpose(1, 2)) + lambdas[:, len(before)] * weights[-1]]
    outside, multipliers, signals = torch.zeros(len(x), device=x.device), [], []
    for layer in range(len(before) - 1, -1, -1):
        above, held, state = torch.bmm(weights[layer + 1].transpose(1, 2), signal), found.held[layer], inputs[layer]
        row = lambdas[:, layer] * weights[layer] + torch.bmm(above * found.active[layer], state.transpose(1, 2))
        gram = torch.bmm(state.transpose(1, 2), state)[:, None] * held[:, :, :, None] * held[:, :, None, :]
        goal = (torch.bmm(row, state) * held)[..., None]
        # Inputs of low rank make constraints redundant and multipliers ambiguous: the smallest ones are as good as any.
        mu = -(torch.linalg.pinv(gram, rcond=1e-7, hermitian=True) @ goal)[..., 0] * held
        slack = 1e-4 * above.abs().amax((1, 2), keepdim=True)
        outside += (((mu < -slack) | (mu > above + slack)) & (held > 0)).sum((1, 2))
        signal = above * found.active[layer] + mu
        rest.append(row + torch.bmm(mu, state.transpose(1, 2)))
        multipliers.insert(0, mu)
        signals.insert(0, above)
    rest.append(torch.bmm(weights[0].transpose(1, 2), signal) + lambdas[:, -1] * features)
    squares = torch.stack([(r**2).sum((1, 2)) for r in rest], 1).sum(1)
    squares = squares + ((bias_step + batch.penalty[:, -bias.shape[1] :] * bias) ** 2).sum(1)
    violation = torch.stack([(z * h).abs().amax((1, 2)) for z, h in zip(before, found.held, strict=True)], 1).amax(1)
    return Stationarity(squares.sqrt() / (batch.penalty * x).norm(dim=1), outside, multipliers, signals, violation)


def identify(batch: Batch, x: torch.Tensor) -> tuple[Pattern, Stationarity]:
    """Return the pattern of every cell, of those at the shares `HELD`, on which x is nearest to stationary."""
    best, at = None, None
    for share in HELD:
        found = pattern(batch, x, share)
        here = stationarity(found, x)
        if best is None:
            best, at = found, here
            continue
        better = here.residual < 0.7 * at.residual  # a wider net must fit clearly better: what it holds cannot move
        for mine, theirs in zip(
            (*best.held, *best.active, *at.multipliers, *at.signals, at.residual, at.outside, at.violation),
            (*found.held, *found.active, *here.multipliers, *here.signals, here.residual, here.outside, here.violation),
            strict=True,
        ):
            mine[better] = theirs[better]
    return replace(best, multipliers=[m.clone() for m in at.multipliers]), at


def _update(found: Pattern, x: torch.Tensor, here: Stationarity) -> None:
    """Move the multipliers, hold what has crossed zero, let go (near a stationary point) what wants to leave it."""
    settled = ((here.residual < 1e-5) & (here.outside > 0))[:, None, None]
    for layer, z in enumerate(found.states(x)[1]):
        held, active, mu = found.held[layer], found.active[layer], found.multipliers[layer]
        mu.addcmul_(held, z, value=STIFFNESS)
        slack = 1e-3 * here.signals[layer].abs().amax((1, 2), keepdim=True)
        down = settled & (held > 0) & (here.multipliers[layer] < -slack)
        up = settled & (held > 0) & (here.multipliers[layer] > here.signals[layer] + slack)
        fell, rose = (held == 0) & (active > 0) & (z < 0), (held == 0) & (active == 0) & (z > 0)
        for cells, on in ((down, 0.0), (up, 1.0)):
            held[cells], active[cells], mu[cells] = 0.0, on, 0.0
        mu[fell] = here.signals[layer][fell]
        mu[rose] = 0.0
        held[fell | rose], active[fell | rose] = 1.0, 0.0


def _descend(batch: Batch, x: torch.Tensor, stop: Callable[[], bool]) -> None:
    """Bring as many cells of x as possible to a stationary point of their pattern, in place; others end anywhere."""
    small, point = _compress(batch, x)
    ends = point.clone()
    _descend_small(small, ends, stop)
    _expand(batch, x, small, ends)


def _compress(batch: Batch, x: torch.Tensor) -> tuple[Batch, torch.Tensor]:
    """Sort the neurons of every layer by energy and cut the batch to the widest layer that is alive; x is balanced."""
    weights, features, bias = batch.views(x)
    parts = [*(w.clone() for w in weights), features.clone()]
    width = min(batch.shape.dim, batch.shape.classes)  # balanced features fill the first coordinates only
    for layer in range(len(weights) - 1):
        energy = (parts[layer] ** 2).sum(2)
        order = energy.argsort(dim=1, descending=True, stable=True)
        width = max(width, int((energy > 0).sum(1).max()))
        parts[layer] = parts[layer].gather(1, order[:, :, None].expand_as(parts[layer]))
        parts[layer + 1] = parts[layer + 1].gather(2, order[:, None, :].expand_as(parts[layer + 1]))
    small = batch.narrow(width)
    rows = [*(w[:, :width, :width] for w in parts[:-2]), parts[-2][:, :, :width], parts[-1][:, :width], bias]
    return small, torch.cat([part.flatten(1) for part in rows], 1)


def _expand(batch: Batch, x: torch.Tensor, small: Batch, ends: torch.Tensor) -> None:
    """Write the points of a compressed batch back into x (B, P)."""
    wide, narrow, width = batch.views(x), small.views(ends), small.shape.dim
    x.zero_()
    for mine, moved in zip(wide[0][:-1], narrow[0][:-1], strict=True):
        mine[:, :width, :width] = moved
    wide[0][-1][:, :, :width] = narrow[0][-1]
    wide[1][:, :width] = narrow[1]
    wide[2].copy_(narrow[2])


def _descend_small(batch: Batch, x: torch.Tensor, stop: Callable[[], bool]) -> None:
    found, at = identify(batch, x)
    cells, point = torch.arange(len(x), device=x.device), x.clone()
    start = batch.value(x)
    for turn in range(OUTER):
        deep.lbfgs(found, point, 0.1 * STATIONARY, INNER, stop, MEMORY)
        at = stationarity(found, point)
        x[cells] = point
        _update(found, point, at)
        done = (at.residual <= STATIONARY) & (at.outside == 0) & (at.violation <= 0.01 * STATIONARY)
        lost = ~(at.residual < 0.3)
        if turn >= 2:
            lost |= (at.residual > HOPELESS) | (found.batch.value(point) > start * (1 + 1e-3))
        keep = ~(done | lost)
        if not bool(keep.any()) or stop():
            break
        if not bool(keep.all()):
            found, point, cells, start = found.take(keep), point[keep], cells[keep], start[keep]


def _remove_dead(batch: Batch, x: torch.Tensor) -> None:
    """Set neurons of negligible energy to zero, in place."""
    weights, _, _ = batch.views(x)
    for layer in range(len(weights) - 1):
        energy = batch.lambdas[:, layer, None] * (weights[layer] ** 2).sum(2)
        energy = energy + batch.lambdas[:, layer + 1, None] * (weights[layer + 1] ** 2).sum(1)
        dead = energy <= DEAD * energy.amax(1, keepdim=True)
        weights[layer].masked_fill_(dead[:, :, None], 0)
        weights[layer + 1].masked_fill_(dead[:, None, :], 0)


def polish(batch: Batch, x: torch.Tensor, stop: Callable[[], bool] = lambda: False) -> torch.Tensor:
    """Descend from the end of Adam to a balanced and, where the kinks allow, stationary point; in place on x (B, P).

    Every cell is rescaled exactly (`balance.rescale`), rid of dead neurons, sent down its pattern, and rescaled again. A cell
    only ever moves to a point whose true objective is not higher: where the pattern was misjudged it keeps what it had.

    Returns:
        (B,) the relative subgradient |g| / |lambda x| at the end; below 1e-7 where the descent came through.
    """
    best = batch.value(x)
    for step in (balance.rescale, _remove_dead, lambda batch, trial: _descend(batch, trial, stop), balance.rescale):
        trial = x.clone()
        step(batch, trial)
        value = batch.value(trial)
        # Equal to rounding counts: at a minimum values no longer tell points apart, balance and subgradients still do.
        lower = value <= best * (1 + 1e-14)
        x[lower], best[lower] = trial[lower], value[lower]
    return identify(batch, x)[1].residual
