"""Variational reconstruction with smooth regularizers, such as convex and weakly convex ridge regularizers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from morphlightning.errors import ConfigError, NotSupportedError
from morphlightning.inverse.accelerated import minimize
from morphlightning.inverse.iteration import Solution, inner
from morphlightning.inverse.operators import LinearOperator
from morphlightning.inverse.solver import Solver


class SmoothRegularizer(Protocol):
    """R with a Lipschitz gradient; ``sigma`` is a noise level, a number or one for each image.

    A method ``gradient_at(sigma)``, where there is one, returns a function that is ``grad`` at the present weights and
    one noise level, and quicker.
    """

    def grad(self, x: Tensor, sigma: Any = None) -> Tensor:
        """Grad R, of x's shape."""
        ...

    def energy(self, x: Tensor, sigma: Any = None) -> Tensor:
        """R(x) of each image, (N,)."""
        ...

    def lipschitz(self) -> float:
        """A certified Lipschitz constant of the gradient."""
        ...

    def weak_convexity(self) -> float:
        """A certified rho >= 0 that makes R + rho/2 ||.||^2 convex; 0 if R is convex."""
        ...


class Variational(Solver):
    r"""Minimize 1/2 ||A x - y||^2 + weight R(x) over images within the bounds.

    By :func:`minimize` with steps 1/L, L = ||A||^2 + weight lipschitz(R). With m the smallest eigenvalue of A^T A that
    the operator certifies and rho the weak convexity of R, the energy is (m - weight rho)-strongly convex if that is
    >= 0: accelerated with restarts. Otherwise it is weakly convex, and the safeguard makes every step descend.

    Args:
        operator: A.
        regularizer: R, with ``grad``, ``energy``, ``lipschitz`` and ``weak_convexity``.
        weight: Of R, positive.
        unchecked: Take R for convex if it has no ``weak_convexity``.
        settings: Those of :class:`Solver`; the bounds are a constraint here.

    Raises:
        ConfigError: The weight is not positive.
        NotSupportedError: The regularizer does not declare what steps and convergence rest on.

    Source: Goujon et al. 2022, arXiv 2211.12461 (convex) and 2023, arXiv 2308.10542 (weakly convex).
    """

    def __init__(
        self,
        operator: LinearOperator,
        regularizer: SmoothRegularizer,
        weight: float,
        *,
        unchecked: bool = False,
        **settings: Any,
    ) -> None:
        super().__init__(operator, **settings)
        if not 0 < weight < math.inf:
            raise ConfigError(f"Variational: the weight must be positive, got {weight}")
        needed = ["grad", "lipschitz"] if unchecked else ["grad", "lipschitz", "weak_convexity"]
        missing = [f"{name}()" for name in needed if not callable(getattr(regularizer, name, None))]
        if missing:
            raise NotSupportedError(
                f"Variational: {type(regularizer).__name__} has no {', '.join(missing)}: steps rest on grad() and "
                "lipschitz(), and convexity on weak_convexity() (unchecked=True goes on as if R were convex)"
            )
        self.regularizer, self.weight = regularizer, weight

    def lipschitz(self) -> float:
        """L."""
        return self.operator.norm_bound() ** 2 + self.weight * float(self.regularizer.lipschitz())

    def convexity(self) -> float:
        """M - weight rho: the modulus of convexity of the energy, negative where it is weakly convex."""
        weak = getattr(self.regularizer, "weak_convexity", lambda: 0.0)
        return self.operator.lower_bound() ** 2 - self.weight * float(weak())

    @property
    def guarantee(self) -> str:
        """As the base."""
        modulus, smallest = self.convexity(), self.operator.lower_bound() ** 2
        weak = f"weight * rho = {smallest - modulus:.4g}, smallest eigenvalue of A^T A = {smallest:.4g}"
        if modulus >= 0:
            return (
                f"converges to a minimizer: the energy is convex ({weak}) and steps are 1/L, L = {self.lipschitz():.4g}"
            )
        return (
            f"the energy is weakly convex ({weak}): it decreases with every step, steps are 1/L, L = "
            f"{self.lipschitz():.4g}, and every limit point is critical, which need not be a minimizer"
        )

    @torch.no_grad()
    def energy(self, x: Tensor, y: Tensor, sigma: float | Tensor | None = None) -> Tensor:
        """What is minimized, for each image, (N,)."""
        gap = self.operator(x) - y
        gap = torch.view_as_real(gap) if gap.is_complex() else gap
        return inner(gap, gap) / 2 + self.weight * self.regularizer.energy(x, *_given(sigma, x))

    @torch.no_grad()
    def __call__(self, y: Tensor, sigma: float | Tensor | None = None, start: Tensor | None = None) -> Solution:
        """Reconstruct images.

        Args:
            y: Data, (N, ...).
            sigma: What the regularizer is told of the noise, a number or (N,).
            start: (N, C, H, W); by default A^T y / ||A||^2.
        """
        x = self.start(y, start)
        modulus = self.convexity()
        grad, told = self._regularizer_gradient(x, sigma)

        def gradient(z: Tensor, back: Tensor, *told: Tensor) -> Tensor:
            return self.operator.normal(z).sub_(back).add_(grad(z, *told), alpha=self.weight)

        return minimize(
            gradient,
            x,
            lipschitz=self.lipschitz(),
            data=(self.operator.adjoint(y), *told),
            prox=None if self.bounds is None else self._clamp,
            strong_convexity=min(max(modulus, 0.0), 0.99 * self.lipschitz()),
            weak_convexity=-modulus if modulus < 0 else None,
            tolerance=self.tolerance,
            max_iterations=self.max_iterations,
            callback=self.callback,
        )

    def _regularizer_gradient(
        self, x: Tensor, sigma: float | Tensor | None
    ) -> tuple[Callable[..., Tensor], tuple[Tensor, ...]]:
        """A function for grad R, and what it needs to know of each image."""
        fixed = getattr(self.regularizer, "gradient_at", None)
        if fixed is not None and not (isinstance(sigma, Tensor) and sigma.numel() > 1):
            return fixed(None if sigma is None else float(sigma)), ()
        return self.regularizer.grad, _given(sigma, x)

    def _clamp(self, z: Tensor, step: Tensor, *_: Tensor) -> Tensor:
        assert self.bounds is not None
        return z.clamp_(*self.bounds)


def _given(sigma: float | Tensor | None, x: Tensor) -> tuple[Tensor, ...]:
    """The noise level of each image, if any is told."""
    return () if sigma is None else (torch.as_tensor(sigma, dtype=x.dtype, device=x.device).expand(len(x)),)
