"""Gradient flow to T = 3000: Dormand-Prince on the reduced problem against gradient descent with step 0.1.

python benchmarks/flow.py [--json FILE]   (about 1 minute on one core)
"""

from __future__ import annotations

import harness

T_END, LR, RTOL = 3000.0, 0.1, 1e-6


def problems() -> dict[str, object]:
    """Return the flows that are compared, by name."""
    from ufm import Problem

    small = dict(classes=4, dim=16, counts=10)
    return {
        "ce, no penalty, K=4 n=10 d=16": Problem(**small, loss="ce", lambda_w=0.0, lambda_h=0.0),
        "ce, lambda 1e-3, K=4 n=10 d=16": Problem(**small, loss="ce", lambda_w=1e-3, lambda_h=1e-3),
        "mse, lambda 1e-4, K=10 n=100 d=16": Problem(classes=10, dim=16, counts=100, loss="mse", lambda_w=1e-4, lambda_h=1e-4),
    }


def descent(problem: object) -> tuple[object, int]:
    """Return (W at T, gradient evaluations) of plain gradient descent with autograd on every sample."""
    import torch

    from ufm.flows import start

    w, h, _ = (torch.tensor(part, requires_grad=True) for part in start(problem, "random", 0.1, 0))
    labels = torch.arange(problem.classes).repeat_interleave(int(problem.counts))
    one_hot = torch.nn.functional.one_hot(labels, problem.classes).double()
    steps = round(T_END / LR)
    for _ in range(steps):
        z = (w @ h).T
        if problem.loss == "ce":
            loss = torch.nn.functional.cross_entropy(z, labels)
        else:
            loss = 0.5 * ((z - one_hot) ** 2).sum() / len(labels)
        loss = loss + 0.5 * problem.lambda_w * (w**2).sum() + 0.5 * problem.lambda_h * (h**2).sum()
        dw, dh = torch.autograd.grad(loss, (w, h))
        with torch.no_grad():
            w -= LR * dw
            h -= LR * dh
    return w.detach().numpy(), steps


def main() -> None:
    """Measure and print."""
    options = harness.arguments(__doc__)
    import numpy as np
    import torch

    from ufm.flows import flow

    torch.set_num_threads(1)
    rows = []
    for name, problem in problems().items():
        exact = flow(problem, init="random", init_scale=0.1, t_end=T_END, rtol=1e-11).W[-1]
        path = flow(problem, init="random", init_scale=0.1, t_end=T_END, rtol=RTOL)
        seconds = harness.cpu_seconds(
            lambda p=problem: flow(p, init="random", init_scale=0.1, t_end=T_END, rtol=RTOL), options.trials
        )
        slow, (end, steps) = harness.once(lambda p=problem: descent(p))
        errors = np.abs(path.W[-1] - exact).max(), np.abs(end - exact).max()
        note = f"error of W at T: ours {errors[0]:.1e}, descent {errors[1]:.1e} (against the flow at relative error 1e-11)"
        rows.append(harness.Row(f"{name}: gradient evaluations", path.evaluations, "gradient descent", steps, 50.0, note))
        rows.append(harness.Row(f"{name}: seconds", seconds, "gradient descent, autograd", slow, 50.0))
    harness.report(rows, options)


if __name__ == "__main__":
    main()
