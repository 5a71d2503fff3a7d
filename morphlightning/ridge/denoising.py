r"""Denoising by a ridge regularizer: the minimizer of :math:`\tfrac12\|x - y\|^2 + R(x)`, and ways to train it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from morphlightning.inverse import Solution, minimize
from morphlightning.inverse.conjugate import conjugate_gradients
from morphlightning.ridge.implicit import attach
from morphlightning.ridge.regularizer import Ridge


def gradient_steps(ridge: Ridge, y: Tensor, steps: int) -> Tensor:
    """A few gradient steps on the denoising objective from y, unrolled: differentiable in everything.

    x <- x - 2 / (2 + L) ((x - y) + grad R(x)), a step between 1 / (1 + L) and 2 / (1 + L): the objective falls.

    Source: Goujon et al., arXiv 2211.12461.
    """
    ridge = ridge.blocked(*y.shape[2:])
    step, x = 2 / (2 + ridge.lipschitz()), y
    for _ in range(steps):
        x = x - step * ((x - y) + ridge.grad(x))
    return x


@torch.no_grad()
def solve(ridge: Ridge, y: Tensor, *, tolerance: float = 1e-4, max_iterations: int = 500) -> Solution:
    """The denoised images, by accelerated gradient steps of length 1 / (1 + L) with restart; no gradients.

    Images stop one by one, see :func:`morphlightning.inverse.minimize`.
    """
    ridge = ridge.blocked(*y.shape[2:])
    settings: dict[str, Any] = {
        "lipschitz": 1 + ridge.lipschitz(),
        "tolerance": tolerance,
        "max_iterations": max_iterations,
    }
    if ridge.scale is None or len(ridge.scale) == 1:
        folded = ridge.folded()
        return minimize(lambda z, y: folded.grad(z).add_(z).sub_(y), y, data=(y,), **settings)
    prepared, scale = ridge.prepared(), ridge.scale
    return minimize(
        lambda z, y, scale: prepared.grad_in_place(z, scale).add_(z).sub_(y), y, data=(y, scale), **settings
    )


def equilibrium(
    ridge: Ridge,
    y: Tensor,
    *,
    tolerance: float = 1e-4,
    max_iterations: int = 200,
    adjoint_tolerance: float = 1e-3,
    adjoint_iterations: int = 50,
) -> Tensor:
    """The denoised images, differentiable in the weights of the regularizer by the implicit function theorem.

    The memory does not depend on the number of iterations. The message g becomes (I + H)^{-1} g, found by conjugate
    gradients, where H is the Hessian of R at the solution.

    Source: Goujon et al., arXiv 2308.10542 (deep equilibrium training); conjugate gradients for the symmetric system:
    here.
    """
    ridge = ridge.blocked(*y.shape[2:])
    frozen = ridge.prepared()
    x = solve(frozen, y, tolerance=tolerance, max_iterations=max_iterations).x

    def system(g: Tensor) -> Tensor:
        curvature = frozen.curvature(x)
        return conjugate_gradients(
            lambda v: frozen.hessian_product(curvature, v).add_(v), g, adjoint_tolerance, adjoint_iterations
        )

    return attach(x, (x - y) + ridge.grad(x), system)
