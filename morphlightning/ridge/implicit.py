"""Gradients through the solution of a convex problem, without unrolling what found it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


@torch.no_grad()
def conjugate_gradients(
    product: Callable[[Tensor], Tensor], b: Tensor, tolerance: float = 1e-3, max_iterations: int = 50
) -> Tensor:
    """Solve A u = b for every sample of a batch, A symmetric and positive semidefinite.

    A sample stops when ||A u - b|| <= tolerance ||b||, or where A has no curvature along its search direction.

    Args:
        product: u to A u, shape (N, ...), acting on each sample by itself.
        b: The right-hand sides, (N, ...).
        tolerance: Of the residual, relative to b.
        max_iterations: At most so many products.

    Source: Hestenes and Stiefel 1952.
    """
    u, r = torch.zeros_like(b), b.clone()
    p, rho = r.clone(), _dot(b, b)
    goal = tolerance**2 * rho
    for _ in range(max_iterations):
        if bool((rho <= goal).all()):
            break
        q = product(p)
        bend = _dot(p, q)
        go = (rho > goal) & (bend > 0)
        step = torch.where(go, rho / bend, torch.zeros_like(rho))
        u.addcmul_(step, p)
        r.addcmul_(step, q, value=-1)
        new = torch.where(go, _dot(r, r), torch.zeros_like(rho))
        p.mul_(torch.where(go, new / rho, torch.zeros_like(rho))).add_(r)
        rho = new
    return u


def _dot(a: Tensor, b: Tensor) -> Tensor:
    product: Tensor = torch.linalg.vecdot(a.flatten(1), b.flatten(1))
    return product.view(-1, *[1] * (a.ndim - 1))


def attach(x: Tensor, residual: Tensor, solve: Callable[[Tensor], Tensor]) -> Tensor:
    r"""A solution x of F(x, theta) = 0 as a differentiable function of theta.

    With the Jacobian J = dF/dx at the solution, symmetric, the implicit function theorem gives
    :math:`dx/d\theta = -J^{-1}\,\partial F/\partial\theta`; a message g to x becomes the message
    :math:`-J^{-1} g` to F.

    Args:
        x: The solution, detached.
        residual: F(x, theta), differentiable in theta alone.
        solve: g to J^{-1} g.

    Returns:
        The values of x.

    Source: Bai, Kolter, Koltun, arXiv 1909.01377; the symmetric case derived here.
    """
    y: Tensor = _Attach.apply(x, residual, solve)  # type: ignore[no-untyped-call]
    return y


class _Attach(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, residual, solve):  # type: ignore[no-untyped-def]
        ctx.solve = solve
        return x.clone()

    @staticmethod
    def backward(ctx, g):  # type: ignore[no-untyped-def]
        return None, -ctx.solve(g.contiguous()), None
