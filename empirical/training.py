"""`Training`: a training in progress, its set-up from an experiment, and the checks of its data that need no training."""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from empirical import augment, data, models
from empirical.data.split import Split
from empirical.distributed import ALONE, Team, spread, team
from empirical.experiment import Experiment
from empirical.losses import Loss, objective
from empirical.optimise import optimizer_of
from empirical.schedule import Clock, due_steps, learning_rate
from ufm.errors import RequestError
from ufm.seeds import stream
from ufm.tables import Entry, load


@dataclass(frozen=True)
class Recipe:
    """What a study trains in a way of its own; a network is measured in eval mode and by the experiment's loss all the same.

    network: (network, experiment, train, seed) -> what is trained in the place of this untrained network.
    targets: (train, experiment, seed) -> what the loss is told of each train sample, (N, ...), instead of its label.
    loss: (experiment, train) -> the mean loss of (outputs in training mode (n, ...), targets (n, ...)).
    groups: (train, experiment, seed) -> the inputs that one sample of the loss is made of, (N', m) indices, N' the experiment's
        `samples_of`; the network then gets them in a row, (n m, ...). None: every input is a sample.
    begin: called before every step, also after a resume, with the training: what changes with the step beside the step size.
    """

    network: Callable[[nn.Module, Experiment, Split, int], nn.Module]
    targets: Callable[[Split, Experiment, int], Tensor]
    loss: Callable[[Experiment, Split], Loss]
    groups: Callable[[Split, Experiment, int], Tensor | None] = lambda *_: None
    begin: Callable[[Training], None] = lambda _: None


def _objective_of(experiment: Experiment, train: Split) -> Loss:
    return objective(experiment.loss, experiment.smoothing, experiment.focal_gamma)


PLAIN = Recipe(lambda network, *_: network, lambda train, *_: train.labels, _objective_of)


def recipe_of(experiment: Experiment) -> Recipe:
    """Return the recipe that the experiment names, or the plain one."""
    name = experiment.recipe
    return load({name: Entry(name, "")}, name, "recipe") if name else PLAIN


@dataclass
class Training:
    """A training in progress: what it is made of, then what changes from step to step."""

    experiment: Experiment
    seed: int
    device: torch.device
    train: Split
    test: Split
    info: dict[str, Any]
    network: nn.Module
    forward: Callable[[Tensor], Tensor]  # the network, compiled where that was asked for
    objective: Loss  # of logits and labels, as measured
    minimised: Loss  # of outputs in training mode and targets
    targets: Tensor  # of the train samples
    groups: Tensor | None  # the inputs of each train sample, where these are not one and the same
    begin: Callable[[Training], None]  # called before every step
    optimizer: Optimizer
    clock: Clock
    due: tuple[int, ...]  # steps after which the network is measured
    team: Team = ALONE  # the processes that train it together
    step: int = 0
    measured: int = -1  # the step of the last measurement
    loss_sum: float = 0.0  # over the steps since the last measurement, in training mode
    loss_steps: int = 0
    lines: dict[str, int] = field(default_factory=dict)  # of each file, at the last checkpoint
    seconds: dict[str, float] = field(default_factory=lambda: {"training": 0.0, "measuring": 0.0, "saving": 0.0})
    resumed_at: list[int] = field(default_factory=list)
    draws: tuple[int, augment.Draws] | None = None  # the augmentation's, of an epoch

    @property
    def epoch(self) -> int | float:
        """Epochs done."""
        return self.clock.epoch_of(self.step)

    @property
    def step_size(self) -> float:
        """The step size of the next step."""
        e = self.experiment
        stages = e.stages(self.clock.per_epoch)
        number = max(0, bisect.bisect_right(stages[:-1], self.step) - 1)
        clock = dataclasses.replace(self.clock, steps=stages[number + 1] - stages[number])
        return learning_rate(e.schedule, float(e.lr or 0), self.step - stages[number], clock, e.step_epochs, e.step_factor)


def load_data(experiment: Experiment, seed: int) -> tuple[Split, Split, dict[str, Any]]:
    """Return the experiment's (train, test, info) under `seed`."""
    e = experiment
    return data.load(
        e.dataset,
        seed=seed,
        per_class=e.train_per_class,
        imbalance=e.imbalance,
        minority=e.minority,
        imbalance_shape=e.imbalance_shape,
        label_noise=e.label_noise,
        coarse=e.coarse,
        request=e.data_request(),
    )


def clock_of(experiment: Experiment, samples: int) -> Clock:
    """Return the clock of a training on `samples` inputs."""
    samples = experiment.samples_of(samples)
    batch = min(experiment.batch_size or samples, samples)
    if experiment.norm == "batch" and batch < 2:
        raise RequestError(f"--batch-size {batch}: batch norm needs 2 samples or more; use --batch-size 2 or --norm none")
    clock = Clock(samples, batch, 1)
    return Clock(samples, batch, experiment.stages(clock.per_epoch)[-1])


def build_network(experiment: Experiment, train: Split, seed: int) -> nn.Module:
    """Return the untrained network for samples like those of `train`."""
    e = experiment
    architecture = models.Architecture(
        shape=tuple(train.inputs.shape[1:]),
        classes=train.classes,
        width=e.width or 0,
        depth=e.depth or 0,
        norm=e.norm,
        head=e.head,
        head_depth=e.head_depth,
        bias=e.bias,
        head_activation=e.head_activation,
    )
    network = models.build(e.model, architecture, seed)
    if e.init_scale is not None:
        models.scale_weights(network, e.init_scale)
    return recipe_of(e).network(network, e, train, seed)


def check_data(experiment: Experiment, train: Split, test: Split, processes: int) -> Clock:
    """Return the clock of a training on these samples; RequestError when they do not go with the experiment or its processes."""
    clock = clock_of(experiment, len(train))
    augment.check(experiment.augment, tuple(train.inputs.shape[1:]))
    check_shares(len(train), len(test), clock, processes)
    return clock


def set_up(experiment: Experiment, seed: int, device: torch.device) -> Training:
    """Return the training at step 0; RequestError for what a study's `check` would have refused before anything was written."""
    return set_up_on(experiment, seed, device, *load_data(experiment, seed))


def set_up_on(
    experiment: Experiment, seed: int, device: torch.device, train: Split, test: Split, info: dict[str, Any]
) -> Training:
    """Return the training at step 0 on these data, as `load_data` returns them."""
    here = team()
    clock = check_data(experiment, train, test, here.size)
    network = build_network(experiment, train, seed)
    due = due_steps(experiment.moments, clock)
    network = network.to(device)
    train, test = train.to(device), test.to(device).baked()
    recipe = recipe_of(experiment)
    if experiment.augment == "none":  # what is padded with black must still be raw
        train = train.baked()
    if train.inputs.ndim == 4 and experiment.optimizer != "lbfgs":  # torch's L-BFGS views a gradient as a vector: it cannot then
        network = network.to(memory_format=torch.channels_last)
    network.train()
    torch.manual_seed(int(stream(seed, "torch").integers(2**63)))  # of dropout, whatever was trained before in this process
    forward = network
    if here.size > 1:
        network, forward = spread(network, here)
    return Training(
        experiment=experiment,
        seed=seed,
        device=device,
        train=train,
        test=test,
        info=info,
        network=network,
        forward=_compiled(forward, experiment) if experiment.compile else forward,
        objective=_objective_of(experiment, train),
        minimised=recipe.loss(experiment, train),
        targets=recipe.targets(train, experiment, seed),
        groups=recipe.groups(train, experiment, seed),
        begin=recipe.begin,
        optimizer=optimizer_of(experiment, network),
        clock=clock,
        due=due,
        team=here,
    )


_COMPILED: list[Experiment] = []  # of this process, as torch's own memory of what it compiled is


def _compiled(forward: nn.Module, experiment: Experiment) -> Callable[[Tensor], Tensor]:
    """Return the compiled network. Seeds of one setting share what was compiled for the first of them.

    Another setting starts afresh: after eight versions of one function torch goes on uncompiled.
    """
    if not _COMPILED or _COMPILED[0] != experiment:
        torch.compiler.reset()
        _COMPILED[:] = [experiment]
    return torch.compile(forward, dynamic=False)


def check_shares(train: int, test: int, clock: Clock, processes: int) -> None:
    """Refuse data too small to be shared by the processes of a team."""
    if min(train, test, clock.batch) < processes:
        raise RequestError(
            f"{train} train samples, {test} test samples and batches of {clock.batch} cannot be shared by torchrun's {processes} "
            "processes; use a smaller --nproc-per-node"
        )
