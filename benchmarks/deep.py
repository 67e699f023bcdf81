"""Deep ReLU model: one batch over seeds against the loop over seeds with autograd that everybody writes.

python benchmarks/deep.py [--json FILE]   (about 3 minutes on one core)
"""

from __future__ import annotations

import harness

CLASSES, DEPTH, DIM, PER_CLASS, LAMBDA, SEEDS, STEPS = 10, 4, 30, 50, 4e-3, 16, 2500
AUTOGRAD_STEPS = 250  # of the loop; its cost per step is constant, so a tenth is enough to know it


def ours() -> None:
    """Train all seeds at once."""
    from ufm import Problem
    from ufm.solvers import deep

    problem = Problem(
        classes=CLASSES, dim=DIM, counts=PER_CLASS, loss="mse", lambda_w=LAMBDA, lambda_h=LAMBDA, depth=DEPTH, activation="relu"
    )
    batch = deep.Batch([problem] * SEEDS)
    deep.adam(batch, deep.start(batch, range(SEEDS), 1.0), stages=((0.02, STEPS),))


def autograd_loop(every_sample: bool) -> None:
    """One seed after the other, torch.optim.Adam, autograd; class means (the same reduction) or all K n columns of H."""
    import torch

    columns = CLASSES * (PER_CLASS if every_sample else 1)
    repeat = PER_CLASS if every_sample else 1
    target = torch.eye(CLASSES, dtype=torch.float64).repeat_interleave(repeat, 1)
    share = 1 if every_sample else PER_CLASS  # samples that a column stands for
    for seed in range(SEEDS):
        torch.manual_seed(seed)
        sizes = [(DIM, DIM)] * (DEPTH - 1) + [(CLASSES, DIM), (DIM, columns)]
        parameters = [(torch.randn(s, dtype=torch.float64) / DIM**0.5).requires_grad_() for s in sizes]
        optimizer = torch.optim.Adam(parameters, lr=0.02)
        for _ in range(AUTOGRAD_STEPS):
            optimizer.zero_grad()
            *hidden, last, features = parameters
            state = features
            for weight in hidden:
                state = torch.relu(weight @ state)
            loss = 0.5 * ((last @ state - target) ** 2).sum() / columns
            loss = loss + 0.5 * LAMBDA * (sum((w**2).sum() for w in [*hidden, last]) + share * (features**2).sum())
            loss.backward()
            optimizer.step()


def main() -> None:
    """Measure and print."""
    options = harness.arguments(__doc__)
    import torch

    torch.set_num_threads(1)
    fast = harness.cpu_seconds(ours, options.trials)
    scale = STEPS / AUTOGRAD_STEPS
    rows = []
    for every_sample, name in (
        (False, "autograd, loop over seeds, class means"),
        (True, "autograd, loop over seeds, every sample"),
    ):
        slow = scale * harness.cpu_seconds(lambda every=every_sample: autograd_loop(every), max(1, options.trials // 2))
        task = f"{SEEDS} seeds x {STEPS} Adam steps, deep ReLU K={CLASSES} L={DEPTH} d={DIM}, seconds"
        rows.append(
            harness.Row(task, fast, name, slow, 10.0, f"the alternative's time is {scale:g} x a run of {AUTOGRAD_STEPS} steps")
        )
    harness.report(rows, options)


if __name__ == "__main__":
    main()
