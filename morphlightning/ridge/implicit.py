"""Gradients through the solution of a convex problem, without unrolling what found it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


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
