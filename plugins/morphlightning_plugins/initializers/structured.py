"""Initializers with a structure: identity, footprints, class-specific starts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from morphlightning.interfaces import Initializer, SiteSpec


@dataclass(frozen=True)
class Identity(Initializer):
    """0 where output meets its own input at the origin, -depth + U(0, noise) elsewhere.

    A dilation or erosion then passes the signal on, so that deep stacks start from the identity. Dense layers match
    output i with input i modulo the number of inputs; windows are centred on their origin.

    Source: derived in docs/conventions.md, "Initializers".
    """

    depth: float = 1.0
    noise: float = 0.0

    def __post_init__(self) -> None:
        """Check the parameters."""
        if not (self.depth >= 0 and self.noise >= 0):
            raise ValueError(f"depth and noise must be >= 0, got depth={self.depth} and noise={self.noise}")

    def fill(self, spec: SiteSpec, generator: torch.Generator | None) -> Tensor:
        """-depth + noise off the diagonal, 0 on it."""
        w = -self.depth + self.noise * torch.rand(spec.shape, generator=generator)
        unit = torch.arange(spec.shape[0])
        own: tuple[Tensor | int, ...] = (unit, unit % spec.shape[1], *(k // 2 for k in spec.window))
        w[own] = 0.0
        return w


@dataclass(frozen=True)
class Flat(Initializer):
    """0 on a footprint, missing (-inf) elsewhere; dense layers have the full footprint.

    ``shape``: ``"box"``, ``"cross"`` (the axes through the origin) or ``"ball"`` (Euclidean, radius half the window).

    Source: flat structuring elements.
    """

    shape: Literal["box", "cross", "ball"] = "box"

    def __post_init__(self) -> None:
        """Check the parameters."""
        if self.shape not in ("box", "cross", "ball"):
            raise ValueError(f"shape must be 'box', 'cross' or 'ball', got {self.shape!r}")

    def fill(self, spec: SiteSpec, generator: torch.Generator | None) -> Tensor:
        """0 inside, -inf outside."""
        inside = torch.ones(spec.window, dtype=torch.bool)
        if self.shape != "box" and spec.window:
            away = torch.meshgrid(*(torch.arange(k) - k // 2 for k in spec.window), indexing="ij")
            if self.shape == "cross":
                inside = sum((a != 0).int() for a in away) <= 1  # type: ignore[assignment]
            else:
                inside = sum((2 * a / k) ** 2 for a, k in zip(away, spec.window, strict=True)) <= 1  # type: ignore[assignment]
        return torch.zeros(spec.shape).masked_fill(~inside, -math.inf)


@dataclass(frozen=True)
class Sparse(Initializer):
    """Each unit starts with inputs of its own: N(0, noise) on them, -depth + N(0, noise) elsewhere.

    Unit i owns the inputs j with j mod units = i, which starts a max-plus head as a maxout over a partition: classes
    do not compete for the same filters. ``missing=True`` removes the other weights altogether.

    Source: derived in docs/conventions.md, "Initializers"; sparse starts are proposed in arXiv 2504.09289.
    """

    depth: float = 2.0
    noise: float = 0.01
    missing: bool = False

    def __post_init__(self) -> None:
        """Check the parameters."""
        if not (self.depth >= 0 and self.noise >= 0):
            raise ValueError(f"depth and noise must be >= 0, got depth={self.depth} and noise={self.noise}")

    def fill(self, spec: SiteSpec, generator: torch.Generator | None) -> Tensor:
        """A partition of the inputs among the units."""
        units, inputs = spec.shape[0], math.prod(spec.shape[1:])
        # with fewer inputs than units, units share: every unit owns at least one
        if inputs >= units:
            own = torch.arange(inputs) % units == torch.arange(units)[:, None]
        else:
            own = torch.arange(inputs) == torch.arange(units)[:, None] % inputs
        low = -math.inf if self.missing else -self.depth
        w = torch.where(own, 0.0, low) + self.noise * torch.randn(units, inputs, generator=generator)
        return w.view(spec.shape)
