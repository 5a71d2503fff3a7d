"""Plug-and-play: a denoiser in the place of a proximal map."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from morphlightning.errors import ConfigError, NotSupportedError, ShapeError
from morphlightning.inverse.denoisers import averagedness, check_averaged
from morphlightning.inverse.iteration import Iteration, Solution, relative
from morphlightning.inverse.operators import LinearOperator
from morphlightning.inverse.solver import Solver


class PlugAndPlay(Solver):
    """What both iterations share.

    Args:
        operator: A.
        denoiser: D, images to images.
        unchecked: Go on with a denoiser or a step that convergence is not known for.
        settings: Those of :class:`Solver`; the bounds are not a constraint here.
    """

    def __init__(self, operator: LinearOperator, denoiser: nn.Module, unchecked: bool, **settings: Any) -> None:
        super().__init__(operator, **settings)
        self.denoiser, self.unchecked = denoiser, unchecked

    def denoise(self, x: Tensor) -> Tensor:
        """D x.

        Raises:
            ShapeError: Its shape is another than that of x.
        """
        denoised: Tensor = self.denoiser(x)
        if denoised.shape != x.shape:
            name = type(self.denoiser).__name__
            raise ShapeError(f"{type(self).__name__}: {name} makes {tuple(denoised.shape)} of {tuple(x.shape)}")
        return denoised

    def _known(self) -> str:
        known = averagedness(self.denoiser)
        return f"the denoiser declares to be {known:.3g}-averaged" if known is not None else "nothing is known"


class PnPForwardBackward(PlugAndPlay):
    r"""x' = D(x - step A^T (A x - y)).

    A step in (0, 2/||A||^2) is an averaged map, and so is its composition with an averaged D; the iterates then
    converge to a fixed point if there is one (Krasnosel'skii and Mann).

    Args:
        operator: A.
        denoiser: D, averaged: see :class:`NonexpansiveDenoiser`.
        step: By default 1/||A||^2. The larger, the more data count against the denoiser.
        unchecked: Go on with a denoiser or a step that convergence is not known for.
        settings: Those of :class:`Solver`; the bounds are not a constraint here.

    Raises:
        NotSupportedError: The denoiser is not known to be averaged, or the step is not in (0, 2/||A||^2).

    Source: Venkatakrishnan et al. 2013; conditions as in Ryu et al. 2019 and Hertrich et al. 2021.
    """

    def __init__(
        self,
        operator: LinearOperator,
        denoiser: nn.Module,
        step: float | None = None,
        *,
        unchecked: bool = False,
        **settings: Any,
    ) -> None:
        super().__init__(operator, denoiser, unchecked, **settings)
        self.largest = 2 / operator.norm_bound() ** 2
        self.step = self.largest / 2 if step is None else step
        check_averaged(denoiser, 1.0, "PnPForwardBackward converges with averaged denoisers", unchecked)
        if not 0 < self.step < self.largest and not unchecked:
            raise NotSupportedError(
                f"PnPForwardBackward converges with steps in (0, 2/||A||^2) = (0, {self.largest:g}), got {self.step:g}"
            )

    @property
    def guarantee(self) -> str:
        """As the base."""
        facts = f"step {self.step:.4g}, 2/||A||^2 = {self.largest:.4g}, {self._known()}"
        if self.unchecked:
            return f"unchecked: {facts}"
        return f"converges to a fixed point, if there is one: a composition of averaged maps ({facts})"

    @torch.no_grad()
    def __call__(self, y: Tensor, start: Tensor | None = None) -> Solution:
        """Reconstruct images from data (N, ...), starting from A^T y / ||A||^2 unless told."""
        return self.run(_ForwardBackward(self.start(y, start), (self.operator.adjoint(y),), self))


class _ForwardBackward(Iteration):
    def __init__(self, x: Tensor, data: tuple[Tensor, ...], solver: PnPForwardBackward) -> None:
        super().__init__(x, data)
        self.solver = solver

    def advance(self) -> Tensor:
        """As the base."""
        slope = self.solver.operator.normal(self.x).sub_(self.data[0])
        new = self.solver.denoise(torch.sub(self.x, slope, alpha=self.solver.step))
        step, self.x = new - self.x, new
        return relative(step, new)


class PnPADMM(PlugAndPlay):
    r"""z = (A^T A + w I)^-1 (A^T y + w (x - u)), x' = D(z + u), u' = u + z - x'.

    With D firmly non-expansive this is a Douglas-Rachford iteration of two firmly non-expansive maps, which converges
    to a fixed point if there is one: x = D(x - A^T (A x - y) / w), those of :class:`PnPForwardBackward` with step 1/w.
    Where the operator solves its equations by conjugate gradients, z is exact up to their tolerance.

    Args:
        operator: A, whose ``solve`` is in closed form or by conjugate gradients.
        denoiser: D, firmly non-expansive: see :class:`NonexpansiveDenoiser`.
        weight: w > 0; by default ||A||^2. The smaller, the more data count against the denoiser.
        unchecked: Go on with a denoiser that convergence is not known for.
        settings: Those of :class:`Solver`; the bounds are not a constraint here.

    Raises:
        ConfigError: The weight is not positive.
        NotSupportedError: The denoiser is not known to be firmly non-expansive.

    Source: Venkatakrishnan et al. 2013; convergence: Eckstein and Bertsekas 1992.
    """

    def __init__(
        self,
        operator: LinearOperator,
        denoiser: nn.Module,
        weight: float | None = None,
        *,
        unchecked: bool = False,
        **settings: Any,
    ) -> None:
        super().__init__(operator, denoiser, unchecked, **settings)
        self.weight = operator.norm_bound() ** 2 if weight is None else weight
        if not self.weight > 0:
            raise ConfigError(f"PnPADMM: the weight must be positive, got {weight}")
        check_averaged(denoiser, 0.5, "PnPADMM converges with firmly non-expansive denoisers", unchecked)

    @property
    def guarantee(self) -> str:
        """As the base."""
        facts = f"weight {self.weight:.4g}, {self._known()}"
        if self.unchecked:
            return f"unchecked: {facts}"
        return f"converges to a fixed point, if there is one: two firmly non-expansive maps ({facts})"

    @torch.no_grad()
    def __call__(self, y: Tensor, start: Tensor | None = None) -> Solution:
        """Reconstruct images from data (N, ...), starting from A^T y / ||A||^2 unless told."""
        return self.run(_ADMM(self.start(y, start), (self.operator.adjoint(y),), self))


class _ADMM(Iteration):
    state = ("x", "u")

    def __init__(self, x: Tensor, data: tuple[Tensor, ...], solver: PnPADMM) -> None:
        super().__init__(x, data)
        self.solver = solver
        self.u = torch.zeros_like(self.x)

    def advance(self) -> Tensor:
        """As the base; what also counts is how far z and x are apart, which tends to 0 with the step."""
        weight = self.solver.weight
        z = self.solver.operator.solve(torch.add(self.data[0], self.x - self.u, alpha=weight), weight)
        ahead = z + self.u
        new = self.solver.denoise(ahead)
        self.u = ahead.sub_(new)
        step, self.x = new - self.x, new
        return torch.maximum(relative(step, new), relative(z - new, new))
