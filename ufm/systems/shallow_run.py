"""What `ufm simulate shallow` and `ufm predict shallow` compute."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ufm.seeds import stream
from ufm.solution import Status
from ufm.systems import Task
from ufm.systems.shallow import FLOW_STEP, Shallow
from ufm.theory import shallow as theory

SHOWN_MODES = 4
SINGULAR = 1e-12  # lambda_min over lambda_max below which H is singular to rounding


@dataclass(frozen=True)
class Cell:
    """What a seed draws, in a basis of the span of its inputs, of dimension r = min(d, n).

    reduced: inputs (n, r); targets: (n,); weights: (m, r); outputs: (m,); kernel, swapped: (n, n), H and a wrong one.
    """

    reduced: np.ndarray
    targets: np.ndarray
    weights: np.ndarray
    outputs: np.ndarray
    kernel: np.ndarray
    swapped: np.ndarray


def rates_of(spec: Shallow) -> theory.Rates:
    """Return the learning rates of the two layers."""
    return theory.rates_of(spec.layers_trained, spec.output_rate)


def draw(spec: Shallow, seed: int) -> Cell:
    """Draw one cell. The inputs and targets of a seed are the same at every width."""
    n, d, rates = spec.samples, spec.dim, rates_of(spec)
    x = stream(seed, "sample").standard_normal((n, d))
    x /= math.sqrt(d) if spec.data == "gaussian" else np.linalg.norm(x, axis=1, keepdims=True)
    twice = spec.contradictions
    x[n - twice :] = x[:twice]
    kernel, swapped = theory.grams(x, rates)
    y = _targets(spec, seed, kernel)
    y[n - twice :] = -y[:twice]
    init = stream(seed, "init")
    number = spec.width // 2 if spec.antisymmetric else spec.width
    # What is off the span of the inputs never moves and never matters: N(0, I) is drawn on the span alone.
    reduced = np.ascontiguousarray(np.linalg.qr(x.T)[1].T) if d > n else x
    w = init.standard_normal((number, reduced.shape[1]))
    a = init.standard_normal(number) if spec.output_init == "gaussian" else init.choice([-1.0, 1.0], number)
    if spec.antisymmetric:
        w, a = np.concatenate([w, w]), np.concatenate([a, -a])
    return Cell(reduced, y, w, a, kernel, swapped)


def _targets(spec: Shallow, seed: int, kernel: np.ndarray) -> np.ndarray:
    labels = stream(seed, "labels")
    if spec.targets == "signs":
        return labels.choice([-1.0, 1.0], spec.samples)
    if spec.targets == "gaussian":
        return labels.standard_normal(spec.samples)
    return np.linalg.eigh(kernel)[1][:, 0] * math.sqrt(spec.samples)


def simulate(tasks: Sequence[Task], device: str) -> list[dict[str, Any]]:
    """Return one row per task: the end of the training, and its distances to the laws over all steps."""
    rows: list[dict[str, Any]] = [{} for _ in tasks]
    groups: dict[tuple, list[int]] = {}
    for i, task in enumerate(tasks):
        spec: Shallow = task.spec
        shape = (spec.samples, min(spec.dim, spec.samples), spec.width)
        groups.setdefault((*shape, rates_of(spec), spec.method, spec.points), []).append(i)
    for members in groups.values():
        for i, row in zip(members, _batch([tasks[i] for i in members], device), strict=True):
            rows[i] = row
    return rows


def _batch(tasks: Sequence[Task], device: str) -> list[dict[str, Any]]:
    import torch

    from ufm.systems.shallow_path import Law, Networks, descent_schedule, flow_schedule, follow

    cells = [draw(task.spec, task.seed) for task in tasks]
    specs = [task.spec for task in tasks]
    flow = specs[0].method == "flow"

    def stacked(name: str) -> torch.Tensor:
        return torch.from_numpy(np.stack([getattr(cell, name) for cell in cells])).to(device)

    networks = Networks(stacked("reduced"), stacked("targets"), stacked("weights"), stacked("outputs"), rates_of(specs[0]))
    start, residual, active = networks.kernel(), networks.residual(), networks.patterns()
    laws = {"gap": Law.of(stacked("kernel"), residual, flow)}
    laws["gap_exponential"] = Law.of(stacked("kernel"), residual, True)
    laws["gap_start"] = Law.of(start, residual, flow)
    laws["gap_swapped"] = Law.of(stacked("swapped"), residual, flow)
    largest = laws["gap_start"].values[:, -1].cpu().numpy()
    t_end = np.array([spec.t_end for spec in specs])
    make = flow_schedule if flow else descent_schedule
    steps = np.array([FLOW_STEP if flow else 2 * spec.step for spec in specs]) / np.maximum(largest, 1e-300)
    schedule = make(t_end, steps, specs[0].points)
    path = follow(networks, laws, schedule)
    ends = np.nan_to_num(networks.kernel().cpu().numpy())
    after = networks.patterns()
    flips = (after != active).double().mean((1, 2)).cpu().numpy()
    unseen = (~after.any(1)).double().mean(1).cpu().numpy()
    starts, norms = start.cpu().numpy(), residual.norm(dim=1).cpu().numpy()
    gaps = {name: law.gap.cpu().numpy() / norms for name, law in laws.items()}
    values = laws["gap"].values.cpu().numpy()
    rows = []
    for i, (spec, cell) in enumerate(zip(specs, cells, strict=True)):
        finite = path.broken[i] < 0
        measures = {name: float(gap[i]) for name, gap in gaps.items()}
        measures |= {"loss_ratio": float(path.loss[-1, i] / path.loss[0, i]), "peak": float(path.peak[i])}
        measures |= {"flips": float(flips[i]), "unseen": float(unseen[i])}
        measures |= _kernel_measures(values[i], cell.kernel, starts[i], ends[i] if finite else None)
        size = float(schedule.sizes[:, i].max())
        measures["step_share"] = float(size * largest[i] / 2)
        rows.append(_row(spec, measures, path, i) | {"step_size": size, "steps": int(schedule.counts[:, i].sum())})
        if spec.trajectory:
            rows[-1]["path"] = _kept(path, values[i], i)
    return rows


def _kernel_measures(values: np.ndarray, kernel: np.ndarray, start: np.ndarray, end: np.ndarray | None) -> dict[str, float]:
    """Return the spectrum's ends, and in units of lambda_min how far the network's kernel is from H and how far it went."""
    lowest, highest = float(values[0]), float(values[-1])
    unit = lowest if lowest > SINGULAR * highest else math.nan
    of_start = np.linalg.eigvalsh(start)
    moved = math.nan if end is None else np.linalg.norm(end - start, 2)
    return {
        "lambda_min": lowest,
        "lambda_max": highest,
        "start_lambda_min": float(of_start[0]),
        "start_lambda_max": float(of_start[-1]),
        "kernel_distance": float(np.linalg.norm(start - kernel, 2)) / unit,
        "kernel_movement": float(moved) / unit,
    }


def _row(spec: Shallow, measures: dict[str, Any], path: Any, i: int) -> dict[str, Any]:
    edges = theory.edges(spec.samples, spec.dim, rates_of(spec), spec.data)
    reasons = {}
    unequal = spec.contradictions == 0
    if measures["lambda_min"] <= SINGULAR * measures["lambda_max"]:
        why = "H is singular to rounding: lambda_min is zero" if unequal else "two inputs are equal: lambda_min is zero"
        reasons |= dict.fromkeys(("kernel_distance", "kernel_movement"), why)
    reason = edges.reason if unequal else "inputs that occur twice are not independent draws"
    measures["lambda_min_ratio"] = edges.lowest / measures["lambda_min"] if not reason else math.nan
    measures["linear_ratio"] = edges.linear / measures["lambda_min"] if not reason else math.nan
    if reason:
        reasons |= dict.fromkeys(("lambda_min_ratio", "linear_ratio"), reason)
    broken = path.broken[i] >= 0
    law = "flow" if spec.method == "flow" else "descent"
    if broken:
        said = f"the loss was no longer finite at step {int(path.broken[i])}"
        reasons |= dict.fromkeys([name for name, v in measures.items() if not math.isfinite(v) and name not in reasons], said)
    return {
        "status": (Status.DIVERGED if broken else Status.ARRIVED).value,
        "loss": float(path.loss[-1, i]),
        "predicted": float((path.predicted[-1, i] ** 2).sum() / (2 * spec.samples)),
        "prediction": {
            "name": f"kernel {law}",
            "applies": True,
            "status": theory.STATEMENTS[law].status,
            "assumptions": list(assumptions(spec)),
            "reference": theory.STATEMENTS["flow"].reference,
            "tolerance": None,
            "values": {} if reason else {"lambda_min": edges.lowest, "lambda_max": edges.highest},
        },
        "measures": measures,
        "reasons": reasons,
    }


def assumptions(spec: Shallow) -> tuple[str, ...]:
    """Return what the law of the residual assumes."""
    return ("width to infinity at fixed inputs", "weights N(0, I), outputs of mean 0 and variance 1") + (
        ("step below 2/lambda_max",) if spec.method == "gd" else ()
    )


def _kept(path: Any, values: np.ndarray, i: int) -> dict[str, Any]:
    """Return the path of one cell, each recorded time once; of the modes some from all of the spectrum that start large."""
    times, first = np.unique(path.times[:, i], return_index=True)
    modes, predicted = path.modes[first, i], path.predicted[first, i]
    parts = np.array_split(np.arange(len(values))[::-1], min(SHOWN_MODES, len(values)))
    chosen = np.array([part[np.argmax(np.abs(modes[0, part]))] for part in parts])
    scale = np.where(modes[0, chosen] == 0, 1.0, modes[0, chosen])
    n = len(values)
    return {
        "t": times,
        "loss": path.loss[first, i],
        "predicted_loss": (predicted**2).sum(1) / (2 * n),
        "gap": path.gaps[first, i] / np.linalg.norm(modes[0]),
        "eigenvalues": values[chosen],
        "modes": modes[:, chosen] / scale,
        "predicted": predicted[:, chosen] / scale,
    }


def predict(spec: Shallow) -> dict[str, Any]:
    """Return one row: the law of the residual, the ends of its kernel's spectrum, the largest stable step."""
    edges = theory.edges(spec.samples, spec.dim, rates_of(spec), spec.data)
    singular = spec.contradictions > 0
    name = "flow" if spec.method == "flow" else "descent"
    reason = "two inputs are equal: lambda_min is 0 and the loss stays positive" if singular else edges.reason
    known = not reason
    return {
        "prediction": f"kernel {name}",
        "law": "exp(-H t)" if name == "flow" else "(I - h H)^k",
        "lambda_min": edges.lowest if known else 0.0 if singular else None,
        "lambda_min_linear": edges.linear if known and spec.samples < spec.dim else None,
        "lambda_max": edges.highest if known else None,
        "largest_step": 2 / edges.highest if known else None,
        "time_to_fit": math.log(100) / edges.lowest if known else None,  # until every mode is below 1 %
        "status": theory.STATEMENTS[name].status,
        "reference": theory.STATEMENTS["flow"].reference,
        "assumptions": list(assumptions(spec)),
        "statements": {key: one._asdict() for key, one in theory.STATEMENTS.items()},
        "reason": reason,
    }
