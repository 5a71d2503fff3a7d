"""What denoisers must declare so that putting them into an iteration is known to converge."""

from __future__ import annotations

import math
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from morphlightning.errors import ConfigError, NotCertifiable, NotSupportedError
from morphlightning.interfaces import LipschitzSpec
from morphlightning.lipschitz import lipschitz_spec

ROUNDING = 1e-5
"""By how much a certified constant of 1 may exceed 1."""


@runtime_checkable
class NonexpansiveDenoiser(Protocol):
    """A denoiser D = (1 - a) I + a N with N 1-Lipschitz in the l2 norm, that knows a in (0, 1].

    a <= 1/2: firmly non-expansive, as proximal maps of convex functions are. a < 1: averaged. a = 1: 1-Lipschitz.
    """

    def averagedness(self) -> float:
        """An upper bound of a, with the parameters as they are now; more than 1 where there is none."""
        ...


def averagedness(denoiser: nn.Module) -> float | None:
    """What is known of a denoiser, None if nothing that helps.

    A module with a certified l2 Lipschitz constant L <= 1 (:func:`morphlightning.lipschitz.lipschitz_spec`) is
    (1 + L)/2-averaged.
    """
    if isinstance(denoiser, NonexpansiveDenoiser):
        known = denoiser.averagedness()
        return known if known <= 1 else None
    try:
        spec = lipschitz_spec(denoiser)
    except NotCertifiable:
        return None
    known = spec.norm_out in ("l2", "any") and spec.constant <= 1 + ROUNDING
    return min(1.0, (1 + spec.constant) / 2) if known else None


def check_averaged(denoiser: nn.Module, at_most: float, why: str, unchecked: bool) -> None:
    """Refuse denoisers that are not known to be averaged enough; ``at_most`` itself is allowed below 1.

    Raises:
        NotSupportedError: The denoiser is not known to be, and ``unchecked`` is False.
    """
    known = averagedness(denoiser)
    if unchecked or (known is not None and known <= at_most and known < 1):
        return
    what = "is not known to be" if known is None else f"is {known:.3g}-averaged"
    if known == 1:
        what = "is 1-Lipschitz, which is not enough"
    raise NotSupportedError(
        f"{why}, but {type(denoiser).__name__} {what}. Give it averagedness() or "
        "lipschitz_spec(); inverse.Averaged(network) makes a firmly non-expansive denoiser of a 1-Lipschitz one; "
        "unchecked=True goes on"
    )


class GradientStep(nn.Module):
    """D(x) = x - grad R(x), with R convex and L its gradient's Lipschitz constant: L/2-averaged.

    A ridge regularizer whose splines have slopes in [0, 1] makes a firmly non-expansive denoiser, or a learnable
    proximal map of one step of :class:`UnrolledProximalGradient`.

    Args:
        regularizer: R, with ``grad``, ``lipschitz`` and ``weak_convexity``; a module if it is to be trained.
    """

    def __init__(self, regularizer: Any) -> None:
        super().__init__()
        self.regularizer = regularizer

    def forward(self, x: Tensor) -> Tensor:
        """One gradient step."""
        step: Tensor = self.regularizer.grad(x)
        return x - step

    def averagedness(self) -> float:
        """L/2; infinite where R is not convex."""
        if self.regularizer.weak_convexity() > 0:
            return math.inf
        return float(self.regularizer.lipschitz()) / 2

    def lipschitz_spec(self) -> LipschitzSpec:
        """The largest of 1 + rho and L - 1, since Hessians of R are in [-rho, L]."""
        constant = max(1 + float(self.regularizer.weak_convexity()), float(self.regularizer.lipschitz()) - 1)
        return LipschitzSpec(constant, why="a gradient step")


class Averaged(nn.Module):
    """D(x) = (1 - a) x + a N(x): firmly non-expansive for a 1-Lipschitz N and a <= 1/2.

    Smaller a make a weaker denoiser with the same fixed points, and a way to tune its strength.

    Args:
        network: N, images to images of the same shape. What it declares is read when it is needed, so it may be
            trained afterwards.
        weight: a in (0, 1].

    Raises:
        ConfigError: The weight is not in (0, 1].
    """

    def __init__(self, network: nn.Module, weight: float = 0.5) -> None:
        super().__init__()
        if not 0 < weight <= 1:
            raise ConfigError(f"Averaged: the weight must lie in (0, 1], got {weight}")
        self.network, self.weight = network, weight

    def forward(self, x: Tensor) -> Tensor:
        """The denoised images."""
        return torch.lerp(x, self.network(x), self.weight)

    def averagedness(self) -> float:
        """The weight times that of the network.

        Raises:
            NotSupportedError: The network does not declare that it is 1-Lipschitz.
        """
        known = averagedness(self.network)
        if known is None:
            raise NotSupportedError(
                f"Averaged: {type(self.network).__name__} is not known to have an l2 Lipschitz constant of at most 1; "
                "give it lipschitz_spec() or averagedness()"
            )
        return self.weight * known

    def lipschitz_spec(self) -> LipschitzSpec:
        """1, if the network declares as much."""
        self.averagedness()
        return LipschitzSpec(1.0, why="averages the identity and a 1-Lipschitz network")
