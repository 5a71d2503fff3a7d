"""Initializers that treat all weights alike."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from morphlightning.interfaces import Initializer, SiteSpec


@dataclass(frozen=True)
class Upper(Initializer):
    """w ~ offset + U(0, spread): above plausible targets, with a spread that breaks ties.

    Weights that start too high are lowered once and stop at the greatest solution; weights that start too low are
    mostly never active. Keep the spread small against the standard deviation of the data.

    Source: derived in docs/conventions.md, "Initializers"; the advice to start non-negative is Blusseau's,
    arXiv 2403.12975.
    """

    offset: float = 0.0
    spread: float = 0.1

    def __post_init__(self) -> None:
        """Check the parameters."""
        if not self.spread >= 0:
            raise ValueError(f"spread must be >= 0, got {self.spread}")

    def fill(self, spec: SiteSpec, generator: torch.Generator | None) -> Tensor:
        """Uniform numbers from offset to offset + spread."""
        return self.offset + self.spread * torch.rand(spec.shape, generator=generator)


@dataclass(frozen=True)
class Uniform(Initializer):
    """w ~ U(low, high).

    Source: the default of several morphological packages; no claim is made for it.
    """

    low: float = -0.1
    high: float = 0.1

    def __post_init__(self) -> None:
        """Check the parameters."""
        if not self.low <= self.high:
            raise ValueError(f"low must not exceed high, got low={self.low} and high={self.high}")

    def fill(self, spec: SiteSpec, generator: torch.Generator | None) -> Tensor:
        """Uniform numbers from low to high."""
        return self.low + (self.high - self.low) * torch.rand(spec.shape, generator=generator)


@dataclass(frozen=True)
class Normal(Initializer):
    """w ~ N(mean, std²).

    What matters for signed layers is the deviation: small against the range of the inputs many of them compete for each
    unit, large against it a few win for ever. docs/guarantees.md compares.

    Source: the default of linear layers, nearly; no claim is made for the normal law.
    """

    mean: float = 0.0
    std: float = 0.1

    def __post_init__(self) -> None:
        """Check the parameters."""
        if not self.std >= 0:
            raise ValueError(f"std must be >= 0, got {self.std}")

    def fill(self, spec: SiteSpec, generator: torch.Generator | None) -> Tensor:
        """Normal numbers."""
        return self.mean + self.std * torch.randn(spec.shape, generator=generator)


@dataclass(frozen=True)
class Zeros(Initializer):
    """w = 0: the flat structuring function. In dense layers all units stay equal; use it for windows.

    Source: flat morphology.
    """

    def fill(self, spec: SiteSpec, generator: torch.Generator | None) -> Tensor:
        """Zeros."""
        return torch.zeros(spec.shape)
