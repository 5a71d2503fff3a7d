"""Nonlinearities of two straight pieces that meet at 0."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from morphlightning.interfaces import API_VERSION, LipschitzSpec


class PReLU(nn.Module):
    r"""x for x > 0, and a x below with a learnable slope a.

    Args:
        channels: One slope for each channel, or None for one slope.
        channel_dim: The axis of the channels.
        init: The slope to start from.
        limit: a stays in (-limit, limit), as limit tanh(weight / limit); None for any slope.

    Source: He et al. 2015; the limit is derived here.
    """

    api_version: ClassVar[str] = API_VERSION

    def __init__(
        self, channels: int | None = None, channel_dim: int = 1, init: float = 0.25, limit: float | None = None
    ) -> None:
        super().__init__()
        if limit is not None and not abs(init) < limit:
            raise ValueError(f"limit must be above |init|, got limit={limit} and init={init}")
        self.channels, self.channel_dim, self.limit = channels, channel_dim, limit
        start = init if limit is None else limit * math.atanh(init / limit)
        self.weight = nn.Parameter(torch.full((channels or 1,), start))

    @property
    def slope(self) -> Tensor:
        """The slopes a."""
        return self.weight if self.limit is None else self.limit * torch.tanh(self.weight / self.limit)

    def forward(self, x: Tensor) -> Tensor:
        """Shape and dtype of x."""
        slope = self.slope.to(x.dtype)
        if self.channels is not None:
            slope = slope.view(-1, *(1,) * (x.ndim - 1 - self.channel_dim % x.ndim))
        return torch.where(x > 0, x, slope * x)

    def lipschitz_spec(self) -> LipschitzSpec:
        """The larger of 1 and the steepest slope."""
        steepest = max(1.0, float(self.slope.detach().double().abs().max()))
        return LipschitzSpec(steepest, "any", "any", True, "largest slope")


class Absolute(nn.Module):
    """|x|.

    Source: the modulus, 1-Lipschitz with slopes of modulus 1 everywhere.
    """

    api_version: ClassVar[str] = API_VERSION

    def __init__(self, channels: int | None = None, channel_dim: int = 1) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        """Shape and dtype of x."""
        return x.abs()

    def lipschitz_spec(self) -> LipschitzSpec:
        """One."""
        return LipschitzSpec(1.0, "any", "any", True, "slopes are 1 and -1")
