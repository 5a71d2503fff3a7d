"""Conjugate gradients, for every sample of a batch on its own."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from morphlightning.inverse.iteration import beside, inner


def conjugate_gradients(
    product: Callable[[Tensor], Tensor],
    b: Tensor,
    tolerance: float = 1e-3,
    max_iterations: int = 50,
    start: Tensor | None = None,
) -> Tensor:
    """Solve A u = b for every sample of a batch, A symmetric and positive semidefinite.

    A sample stops when ||A u - b|| <= tolerance ||b||, or where A has no curvature along its search direction.

    Args:
        product: u to A u, shape (N, ...), acting on each sample by itself.
        b: The right-hand sides, (N, ...).
        tolerance: Of the residual, relative to b.
        max_iterations: At most so many products.
        start: Where to begin, which is written to; None for zeros.

    Source: Hestenes and Stiefel 1952.
    """
    u, r = (torch.zeros_like(b), b.clone()) if start is None else (start, b - product(start))
    p, rho = r.clone(), beside(inner(r, r), b)
    goal = tolerance**2 * beside(inner(b, b), b)
    for _ in range(max_iterations):
        if bool((rho <= goal).all()):
            break
        q = product(p)
        bend = beside(inner(p, q), b)
        go = (rho > goal) & (bend > 0)
        step = torch.where(go, rho / bend, torch.zeros_like(rho))
        u.addcmul_(step, p)
        r.addcmul_(step, q, value=-1)
        new = torch.where(go, beside(inner(r, r), b), torch.zeros_like(rho))
        p.mul_(torch.where(go, new / rho, torch.zeros_like(rho))).add_(r)
        rho = new
    return u
