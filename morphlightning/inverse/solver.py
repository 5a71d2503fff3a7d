"""What solvers of inverse problems share: a start, a declared range of images, and a guarantee in words."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from morphlightning.errors import ConfigError, ShapeError
from morphlightning.inverse.iteration import Callback, Iteration, Solution, run
from morphlightning.inverse.operators import LinearOperator

Bounds = tuple[float, float]


class Solver(ABC):
    """Finds images x from data y = A x + noise.

    Args:
        operator: A.
        bounds: The declared range of images. Data and starts whose images lie far outside are refused: most often the
            images were not divided by 255. None: any.
        tolerance: Of the stopping rule ||x_{k+1} - x_k|| <= tolerance ||x_{k+1}||.
        max_iterations: At most so many steps.
        callback: ``callback(iteration, x, residual)`` after each step; :class:`PrintResiduals` is one.
    """

    def __init__(
        self,
        operator: LinearOperator,
        *,
        bounds: Bounds | None = (0.0, 1.0),
        tolerance: float = 1e-4,
        max_iterations: int = 500,
        callback: Callback | None = None,
    ) -> None:
        if bounds is not None and not bounds[0] < bounds[1]:
            raise ConfigError(f"{type(self).__name__}: bounds must increase, got {bounds}")
        self.operator, self.bounds = operator, bounds
        self.tolerance, self.max_iterations, self.callback = tolerance, max_iterations, callback

    @property
    @abstractmethod
    def guarantee(self) -> str:
        """What is known of convergence, and which condition it rests on."""

    @torch.no_grad()
    def start(self, y: Tensor, start: Tensor | None = None) -> Tensor:
        """The start that was given, else A^T y / ||A||^2; within the bounds.

        Raises:
            ShapeError: The start has another shape than A^T y.
            ConfigError: On average over the pixels of a sample, it is farther from the bounds than they are apart.
        """
        back = self.operator.adjoint(y)
        if start is not None and start.shape != back.shape:
            name = type(self).__name__
            raise ShapeError(f"{name}: expected a start {tuple(back.shape)}, as A^T y, got {tuple(start.shape)}")
        x = back / self.operator.norm_bound() ** 2 if start is None else start.to(back)
        if self.bounds is None:
            return x
        low, high = self.bounds
        inside = x.clamp(low, high)
        outside = (x - inside).abs().flatten(1).mean(1)
        if bool((outside > high - low).any()):
            raise ConfigError(
                f"{type(self).__name__}: images are declared to lie in [{low:g}, {high:g}], but those of samples "
                f"{(outside > high - low).nonzero().flatten().tolist()} lie {float(outside.max()):.3g} outside on "
                "average; scale the data, or declare other bounds"
            )
        return inside

    def run(self, iteration: Iteration) -> Solution:
        """Iterate with the settings of this solver."""
        return run(iteration, self.tolerance, self.max_iterations, self.callback)
