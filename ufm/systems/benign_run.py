"""What `ufm simulate benign` and `ufm predict benign` compute."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ufm.solution import Status
from ufm.systems import Task
from ufm.systems.benign import Benign, check, signal_of
from ufm.theory import benign as theory


def simulate(tasks: Sequence[Task], device: str) -> list[dict[str, Any]]:
    """Return one row per task: the end of gradient descent, train and test errors, and the variable of the transition."""
    rows: list[dict[str, Any]] = [{} for _ in tasks]
    groups: dict[tuple, list[int]] = {}
    for i, task in enumerate(tasks):
        spec: Benign = task.spec
        shape = (spec.samples, spec.filters, spec.q, spec.output, spec.orthogonal, spec.steps, spec.clip, spec.test_points)
        groups.setdefault(shape, []).append(i)
    for members in groups.values():
        members.sort(key=lambda i: tasks[i].seed)  # what cells of a seed share is made once
        for i, row in zip(members, _together([tasks[i] for i in members], device), strict=True):
            rows[i] = row
    return rows


def _together(tasks: Sequence[Task], device: str) -> list[dict[str, Any]]:
    """Train cells of one shape as one batch."""
    import torch

    from ufm.systems.benign_net import Nets, draw, error_law, train

    specs, first = [task.spec for task in tasks], tasks[0].spec
    with torch.no_grad():
        nets = Nets.of(specs, [draw(task.spec, task.seed) for task in tasks], device)
        lost, clipped = train(nets, first.steps, first.clip and first.q > 2)
        outputs = nets.outputs()
        margin = nets.labels * outputs
        law = error_law(nets, [task.seed for task in tasks], first.test_points)
        found = {
            "lost": lost,
            "clipped": clipped,
            "loss": torch.nn.functional.softplus(-margin).mean(1),
            "train_error": ((margin < 0).double() + 0.5 * (margin == 0).double()).mean(1),
            "margin": margin.amin(1),
            "flipped": (nets.labels != nets.clean).double().mean(1),
            **_learned(nets),
            **law,
        }
        columns = {name: values.cpu().numpy() for name, values in found.items()}
    return [_row(task.spec, {name: float(values[i]) for name, values in columns.items()}) for i, task in enumerate(tasks)]


def _learned(nets: Any) -> dict[str, Any]:
    """Return the largest inner products of a filter: with the signal of its class, and with a noise vector of its class."""
    import torch

    along = nets.projections[:, :, -1] * nets.signal[:, None] * torch.sign(nets.sign)
    own = torch.sign(nets.sign)[None, :, None] == nets.labels[:, None, :]
    memory = torch.where(own, nets.projections[:, :, :-1], torch.full_like(nets.gram[:, :1, :-1], -torch.inf))
    return {"signal_learned": along.amax(1), "noise_memorized": memory.amax((1, 2))}


def _row(spec: Benign, found: dict[str, float]) -> dict[str, Any]:
    p, clean = spec.flip, found["clean_error"]
    lost = found["lost"] >= 0 or not np.isfinite(found["loss"])
    measures = {
        "train_error": found["train_error"],
        "clean_error": clean,
        "test_error": p + (1 - 2 * p) * clean,
        "test_loss": (1 - p) * found["loss_plus"] + p * found["loss_minus"],
        "margin": found["margin"],
        "signal_learned": found["signal_learned"],
        "noise_memorized": found["noise_memorized"],
        "flipped": found["flipped"],
        "clipped_steps": found["clipped"],
    }
    known = regime_of(spec)
    row: dict[str, Any] = {
        "status": (Status.DIVERGED if lost else Status.ARRIVED).value,
        "loss": found["loss"],
        "variable": known.variable,
        "signal": signal_of(spec),
        "snr": theory.snr(signal_of(spec), spec.noise, spec.dim),
        "side": known.side,
        "prediction": prediction_of(spec, known),
        "measures": measures,
    }
    if lost:
        at = f" at step {found['lost']:.0f}" if found["lost"] >= 0 else " at the last step"
        row["reasons"] = dict.fromkeys(measures, f"the loss became non-finite{at}")
    return row


def regime_of(spec: Benign) -> theory.Regime:
    """Return what theory says of a cell."""
    weight = 1.0 if spec.output is None else spec.output * spec.filters
    width = spec.init_scale if spec.init == "fan_in" else spec.init_scale * np.sqrt(spec.dim)
    return theory.regime(
        samples=spec.samples,
        dim=spec.dim,
        signal=signal_of(spec),
        noise=spec.noise,
        q=spec.q,
        flip=spec.flip,
        filters=spec.filters,
        start=width * spec.noise * weight,
        orthogonal=spec.orthogonal,
        lr=spec.lr,
        steps=spec.steps,
        output=weight / spec.filters,
    )


def prediction_of(spec: Benign, known: theory.Regime) -> dict[str, Any]:
    """Return the record of a prediction, as rows of every system keep it."""
    record: dict[str, Any] = {
        "name": known.side or "none",
        "applies": known.applies,
        "reason": known.reason,
        "status": known.status,
        "assumptions": list(known.assumptions),
        "reference": known.reference,
        "tolerance": None,
        "variable_name": known.variable_name,
    }
    if known.border is not None and known.variable is not None:
        record["thresholds"] = {"power_snr": known.variable / known.border}
    if known.clean_error is not None:
        noisy = theory.noisy_error(known.clean_error, spec.flip)
        record["values"] = {"clean_error": known.clean_error, "test_error": noisy}
    return record


def predict(spec: Benign) -> dict[str, Any]:
    """Return one row: the variable of the transition, its side, and the test error where it is known."""
    check(spec)
    known = regime_of(spec)
    errors = prediction_of(spec, known).get("values", {})
    return {
        "prediction": known.side or None,
        "applies": known.applies,
        "variable_name": known.variable_name or None,
        "variable": known.variable,
        "border": known.border,
        "clean_error": errors.get("clean_error"),
        "test_error": errors.get("test_error"),
        "status": known.status if known.applies else None,
        "reference": known.reference or None,
        "assumptions": list(known.assumptions),
        "reason": known.reason,
    }
