"""Total variation, exactly: the baseline without anything learned."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from morphlightning.errors import ConfigError
from morphlightning.inverse.iteration import Iteration, Solution, inner, relative
from morphlightning.inverse.operators import LinearOperator
from morphlightning.inverse.solver import Bounds, Solver

SQUARED_NORM = 8.0
"""An upper bound of ||D||^2 for forward differences in two directions."""


class TotalVariation(Solver):
    r"""Minimize 1/2 ||A x - y||^2 + weight TV(x) over images within the bounds, TV(x) = sum_pixels |(D x)_pixel|.

    D takes forward differences in both directions, 0 across the border, in each channel; |.| is Euclidean. The
    primal-dual iteration needs no inner loop:
    x' = P(x - t (A^T (A x - y) + D^T u)), u' = P_{|u| <= weight}(u + s D (2 x' - x)), with 1/t = ||A||^2 / 2 + 8 s.

    Args:
        operator: A.
        weight: Of TV, positive.
        settings: Those of :class:`Solver`; the bounds are a constraint here.

    Raises:
        ConfigError: The weight is not positive.

    Source: Rudin, Osher and Fatemi 1992; Condat 2013 and Vu 2013 (iteration and its condition).
    """

    def __init__(self, operator: LinearOperator, weight: float, **settings: Any) -> None:
        super().__init__(operator, **settings)
        if not 0 < weight < math.inf:
            raise ConfigError(f"TotalVariation: the weight must be positive, got {weight}")
        self.weight = weight

    @property
    def guarantee(self) -> str:
        """As the base."""
        return (
            f"converges to a minimizer: the energy is convex and the steps t = {self._steps()[0]:.4g}, "
            f"s = {self._steps()[1]:.4g} have 1/t - 8 s >= ||A||^2 / 2"
        )

    @torch.no_grad()
    def energy(self, x: Tensor, y: Tensor) -> Tensor:
        """What is minimized, for each image, (N,)."""
        gap = self.operator(x) - y
        gap = torch.view_as_real(gap) if gap.is_complex() else gap
        return inner(gap, gap) / 2 + self.weight * total_variation(x)

    @torch.no_grad()
    def __call__(self, y: Tensor, start: Tensor | None = None) -> Solution:
        """Reconstruct images from data (N, ...), starting from A^T y / ||A||^2 unless told."""
        x = self.start(y, start)
        back = self.operator.adjoint(y)
        return self.run(_PrimalDual(x, back, self.operator, self.weight, *self._steps(), self.bounds))

    def _steps(self) -> tuple[float, float]:
        squared = self.operator.norm_bound() ** 2
        dual = squared / SQUARED_NORM
        return 1 / (squared / 2 + SQUARED_NORM * dual), dual


class _PrimalDual(Iteration):
    state = ("x", "u", "pull")

    def __init__(
        self,
        x: Tensor,
        back: Tensor,
        operator: LinearOperator,
        weight: float,
        primal: float,
        dual: float,
        bounds: Bounds | None,
    ) -> None:
        super().__init__(x, (back,))
        self.operator, self.weight, self.primal, self.dual, self.bounds = operator, weight, primal, dual, bounds
        self.u, self.pull = torch.zeros_like(differences(self.x)), torch.zeros_like(self.x)  # pull: D^T u

    def advance(self) -> Tensor:
        """As the base; what also counts is how far the next step moves because u has moved."""
        slope = self.operator.normal(self.x).sub_(self.data[0]).add_(self.pull)
        new = torch.sub(self.x, slope, alpha=self.primal)
        if self.bounds is not None:
            new.clamp_(*self.bounds)
        step = new - self.x
        self.u.add_(differences(new + step), alpha=self.dual)
        self.u.div_((length(self.u) / self.weight).clamp_min_(1).unsqueeze(2))
        before, self.pull = self.pull, differences_adjoint(self.u)
        self.x = new
        return torch.maximum(relative(step, new), relative((self.pull - before).mul_(self.primal), new))


def total_variation(x: Tensor) -> Tensor:
    """TV of each image, (N,), as :class:`TotalVariation` has it."""
    return length(differences(x)).flatten(1).sum(1)


def length(u: Tensor) -> Tensor:
    """Euclidean lengths of (N, C, 2, H, W), (N, C, H, W)."""
    lengths: Tensor = torch.linalg.vector_norm(u, dim=2)
    return lengths


def differences(x: Tensor) -> Tensor:
    """D x, (N, C, 2, H, W): forward, down and to the right, 0 across the border."""
    return torch.stack([functional.pad(x.diff(dim=-2), (0, 0, 0, 1)), functional.pad(x.diff(dim=-1), (0, 1))], 2)


def differences_adjoint(u: Tensor) -> Tensor:
    """D^T u."""
    down, right = u[:, :, 0, :-1], u[:, :, 1, :, :-1]
    return (
        functional.pad(down, (0, 0, 1, 0)) - functional.pad(down, (0, 0, 0, 1))
        + functional.pad(right, (1, 0)) - functional.pad(right, (0, 1))
    )  # fmt: skip
