"""What no method can go below: the matrix products of a step alone, at the rate this machine reaches at their shapes."""

from __future__ import annotations

import torch
from harness import cpu_seconds

from ufm.solvers.products import Block, by_numpy, kernels, multiply

CALLS = 200


def products_seconds(outputs: int, rows: int, columns: int, trials: int) -> tuple[float, str]:
    """Return seconds per problem of U X, R X^T and U^T R, U (outputs, rows), X (rows, columns), and what computed them."""
    torch.manual_seed(0)
    batch = max(1, (1 << 18) // (8 * rows * columns))  # inputs that stay in a core's cache
    u, x, r = (
        torch.randn(batch, *shape, dtype=torch.float64) for shape in ((outputs, rows), (rows, columns), (outputs, columns))
    )
    numpy = by_numpy(u, u[0].numel() * columns)
    a, b, c = (Block(t, numpy) for t in (u, x, r))
    to_u, to_x, to_r = (Block(torch.empty_like(t), numpy) for t in (u, x, r))

    def work() -> None:
        for _ in range(CALLS):
            multiply(a.plain, b.plain, to_r.plain)
            multiply(c.plain, b.flipped, to_u.plain)
            multiply(a.flipped, c.plain, to_x.plain)

    return cpu_seconds(work, trials) / CALLS / batch, f"OpenBLAS, {kernels()} kernels" if numpy else "PyTorch's BLAS"


def floor_note(outputs: int, rows: int, columns: int, theirs: float, trials: int) -> str:
    """Return the sentence of a benchmark row: the largest ratio that the products of a step allow."""
    seconds, library = products_seconds(outputs, rows, columns, trials)
    flops = 6 * outputs * rows * columns
    return (
        f"the products alone: {flops / 1e3:.3g} kflop at {flops / seconds / 1e9:.0f} GF/s ({library}), {seconds * 1e6:.2g} us: "
        f"a ratio of {theirs / seconds:.0f} at most"
    )
