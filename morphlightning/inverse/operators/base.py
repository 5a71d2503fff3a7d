"""What a linear operator must offer, and operators made of functions or of other packages' objects."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from morphlightning.errors import ConfigError, NotSupportedError, ShapeError
from morphlightning.inverse.conjugate import conjugate_gradients

MARGIN = 1e-5
"""Relative room that norms computed in float32 get, so that they stay upper bounds."""


class LinearOperator(nn.Module, ABC):
    """A linear map A from real images (N, C, H, W) to data (N, ...), real or complex.

    A module: what it holds are buffers, and it moves and is differentiated as other modules. Data are measured in the
    norm of their real and imaginary parts, so the adjoint is that of <y, z> = Re sum y conj(z).
    """

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """A x."""

    @abstractmethod
    def adjoint(self, y: Tensor) -> Tensor:
        """A^T y."""

    @abstractmethod
    def norm_bound(self) -> float:
        """An upper bound of max ||A x|| / ||x||, certified."""

    def lower_bound(self) -> float:
        """A lower bound of min ||A x|| / ||x||, certified; 0 where some images may leave no trace."""
        return 0.0

    def normal(self, x: Tensor) -> Tensor:
        """A^T A x."""
        return self.adjoint(self(x))

    @torch.no_grad()
    def solve(self, z: Tensor, weight: float, tolerance: float = 1e-6, max_iterations: int = 100) -> Tensor:
        """(A^T A + weight I)^-1 z, in closed form where there is one, else by conjugate gradients.

        Conjugate gradients stop, sample by sample, where the residual is within tolerance ||z||. Operators with a
        closed form need no tolerance.

        Args:
            z: (N, C, H, W).
            weight: Positive.
            tolerance: Of conjugate gradients.
            max_iterations: Of conjugate gradients.

        Raises:
            ConfigError: The weight is not positive.
        """
        check_weight(self, weight)
        start = z / (self.norm_bound() ** 2 + weight)
        return conjugate_gradients(
            lambda v: self.normal(v).add_(v, alpha=weight), z, tolerance, max_iterations, start=start
        )


class Identity(LinearOperator):
    """Denoising: A = I."""

    def forward(self, x: Tensor) -> Tensor:
        """A copy of x."""
        return x.clone()

    def adjoint(self, y: Tensor) -> Tensor:
        """A copy of y."""
        return y.clone()

    def norm_bound(self) -> float:
        """1."""
        return 1.0

    def lower_bound(self) -> float:
        """1."""
        return 1.0

    def solve(self, z: Tensor, weight: float, tolerance: float = 0.0, max_iterations: int = 0) -> Tensor:
        """As the base: z / (1 + weight)."""
        check_weight(self, weight)
        return z / (1 + weight)


class FromFunctions(LinearOperator):
    """An operator that the user gives, such as a projector of a CT package.

    Args:
        forward: A, from (N, C, H, W) to data with N rows.
        adjoint: A^T, exactly: :meth:`check_adjoint` compares them.
        norm: An upper bound of ||A||; step lengths, and with them convergence, rest on it. :func:`estimate_norm` gives
            an estimate from below, which needs a margin.
        lower: A lower bound of min ||A x|| / ||x||.

    Raises:
        ConfigError: The norm is not positive, or lower not in [0, norm].
    """

    def __init__(
        self,
        forward: Callable[[Tensor], Tensor],
        adjoint: Callable[[Tensor], Tensor],
        norm: float,
        lower: float = 0.0,
    ) -> None:
        super().__init__()
        if not 0 < norm < float("inf") or not 0 <= lower <= norm:
            raise ConfigError(
                f"FromFunctions: expected 0 < norm and 0 <= lower <= norm, got norm {norm}, lower {lower}"
            )
        self._forward, self._adjoint, self._norm, self._lower = forward, adjoint, float(norm), float(lower)

    def forward(self, x: Tensor) -> Tensor:
        """A x."""
        return self._forward(x)

    def adjoint(self, y: Tensor) -> Tensor:
        """A^T y."""
        return self._adjoint(y)

    def norm_bound(self) -> float:
        """The bound given."""
        return self._norm

    def lower_bound(self) -> float:
        """The bound given."""
        return self._lower

    @torch.no_grad()
    def check_adjoint(self, x: Tensor, tolerance: float = 1e-4, seed: int = 0) -> None:
        """Compare <A u, v> with <u, A^T v> for random u, v of the shapes of x and A x.

        Raises:
            ConfigError: They differ by more than tolerance ||A u|| ||v||.
        """
        generator = torch.Generator().manual_seed(seed)
        u = torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x.device)
        image = self(u)
        v = torch.randn(image.shape, generator=generator, dtype=image.dtype).to(x.device)
        one, other = (image * v.conj()).sum().real, (u * self.adjoint(v)).sum()
        gap = float((one - other).abs() / (image.norm() * v.norm()))
        if not gap <= tolerance:
            raise ConfigError(
                f"FromFunctions: <A u, v> = {float(one):.6g} and <u, A^T v> = {float(other):.6g} differ by {gap:.1e} "
                "||A u|| ||v||: the adjoint is not the forward operator's; a filtered back-projection is none"
            )


def of(physics: Any, norm: float) -> FromFunctions:
    """An operator of deepinv, or another object with ``A`` and ``A_adjoint``.

    Args:
        physics: A linear physics object.
        norm: An upper bound of ||A||, as for :class:`FromFunctions`.

    Raises:
        NotSupportedError: The object has no ``A`` or no ``A_adjoint``, as operators that are not linear.
    """
    missing = [name for name in ("A", "A_adjoint") if not callable(getattr(physics, name, None))]
    if missing:
        raise NotSupportedError(
            f"operators.of: {type(physics).__name__} has no {' and no '.join(missing)}: not linear?"
        )
    operator = FromFunctions(physics.A, physics.A_adjoint, norm)
    if isinstance(physics, nn.Module):
        operator.physics = physics  # moves with the operator
    return operator


@torch.no_grad()
def estimate_norm(operator: Any, x: Tensor, iterations: int = 100, seed: int = 0) -> float:
    """Estimate ||A|| from below by ``iterations`` power steps on A^T A from random numbers of x's shape.

    Not a bound: multiply by a margin, such as 1.05, before resting a step length on it. ``operator`` is a
    :class:`LinearOperator` or a pair (forward, adjoint).
    """
    forward, adjoint = operator if isinstance(operator, tuple) else (operator, operator.adjoint)
    v = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed), dtype=x.dtype).to(x.device)
    for _ in range(iterations):
        v = adjoint(forward(v / v.norm()))
    return float(v.norm().sqrt())


def check_weight(operator: LinearOperator, weight: float) -> None:
    """Refuse weights with which A^T A + weight I may have no inverse."""
    if not weight > 0:
        raise ConfigError(f"{type(operator).__name__}.solve: the weight must be positive, got {weight}")


def check_size(operator: LinearOperator, x: Tensor, size: tuple[int, int]) -> None:
    """Refuse images of another size than the operator was made for."""
    if x.dim() != 4 or tuple(x.shape[-2:]) != size:
        raise ShapeError(
            f"{type(operator).__name__}: expected images (N, C, {size[0]}, {size[1]}), the size it was made for, got "
            f"{tuple(x.shape)}"
        )
