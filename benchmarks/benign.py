"""A heat map of benign overfitting, 1296 networks: one batch without vectors of length d against a training of each cell.

python benchmarks/benign.py [--json FILE]   (about 1 minute on one core)
"""

from __future__ import annotations

import sys
import tempfile

import harness

SIDE = 36
DIMS, SIGNALS = (100, 1080), (0.0, 9.8)
TIMED = (100, 604, 1080)  # dimensions of the cells that are trained one by one: the ends of the map and its middle
CHUNK = 256  # cells, as a sweep cuts them
OPTIONS = {"samples": 20, "flip": 0.1, "output": 0.5, "init": "fan_in", "init_scale": 0.57735, "lr": 0.1, "steps": 100}
TEST_POINTS = 1000
TARGET = 5.0  # seconds of the whole command


def ours() -> list[dict]:
    """Return the rows of the map, computed as `ufm simulate benign` does."""
    import numpy as np

    from ufm.systems import Task
    from ufm.systems.benign import Benign
    from ufm.systems.benign_run import simulate

    dims, signals = np.linspace(*DIMS, SIDE), np.linspace(*SIGNALS, SIDE)
    tasks = [Task(Benign(dim=int(d), signal=float(s), **OPTIONS), 0) for d in dims for s in signals]
    return [row for first in range(0, len(tasks), CHUNK) for row in simulate(tasks[first : first + CHUNK], "cpu")]


def plain(dim: int, signal: float, seed: int) -> float:
    """Return the test error of one network, trained by autograd on vectors and tested on drawn points, in float32."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    n, m, p = OPTIONS["samples"], 10, OPTIONS["flip"]

    def points(number: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        clean = torch.randint(0, 2, (number,), generator=generator) * 2.0 - 1
        patch = torch.zeros(number, dim)
        patch[:, 0] = clean * signal
        flips = 1 - 2.0 * (torch.rand(number, generator=generator) < p)
        return patch, torch.randn(number, dim, generator=generator), clean * flips

    weights = torch.randn(dim, 2 * m, generator=generator) * OPTIONS["init_scale"] / dim**0.5
    weights.requires_grad_(True)
    optimizer = torch.optim.SGD([weights], lr=OPTIONS["lr"])

    def output(patch: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        each = torch.relu(patch @ weights) + torch.relu(noise @ weights)
        return OPTIONS["output"] * (each[:, :m].sum(1) - each[:, m:].sum(1))

    patch, noise, labels = points(n)
    for _ in range(OPTIONS["steps"]):
        optimizer.zero_grad()
        torch.nn.functional.softplus(-labels * output(patch, noise)).mean().backward()
        optimizer.step()
    with torch.no_grad():
        patch, noise, labels = points(TEST_POINTS)
        return float((labels * output(patch, noise) < 0).float().mean())


def main() -> None:
    """Measure and print."""
    options = harness.arguments(__doc__)
    import numpy as np
    import torch

    torch.set_num_threads(1)
    cells, rows = SIDE**2, []
    seconds = harness.cpu_seconds(ours, options.trials) / cells
    for dim in TIMED:
        slow = harness.cpu_seconds(lambda d=dim: plain(d, 2.8, 0), options.trials)
        errors = np.mean(ours_at(dim)), np.mean([plain(dim, 2.8, seed) for seed in range(20)])
        note = f"test error at signal 2.8, mean of 20 networks: ours {errors[0]:.3f}, autograd {errors[1]:.3f}"
        rows.append(harness.Row(f"one network of {cells}, n=20 m=10 d={dim}, 100 steps and its test error", seconds,
                                "torch autograd, SGD, float32", slow, 10.0, note))  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "ufm", "simulate", "benign", "--out", folder, "--device", "cpu"]
        command += ["--dim", f"{DIMS[0]}:{DIMS[1]}:{SIDE}", "--signal", f"{SIGNALS[0]}:{SIGNALS[1]}:{SIDE}"]
        command += [word for name, value in OPTIONS.items() for word in (f"--{name.replace('_', '-')}", str(value))]
        clock, spent = harness.command_seconds(command)
    facts = {"whole command": {"networks": cells, "seconds": clock, "cpu_seconds": spent, "target": TARGET}}
    print(f"whole command, {cells} networks: {clock:.1f} s by the clock, {spent:.1f} s of CPU (target {TARGET:g} s)")
    harness.report(rows, options, facts)


def ours_at(dim: int) -> list[float]:
    """Return our test errors of twenty networks like those of `plain`."""
    from ufm.systems import Task
    from ufm.systems.benign import Benign
    from ufm.systems.benign_run import simulate

    rows = simulate([Task(Benign(dim=dim, signal=2.8, **OPTIONS), seed) for seed in range(20)], "cpu")
    return [row["measures"]["test_error"] for row in rows]


if __name__ == "__main__":
    main()
