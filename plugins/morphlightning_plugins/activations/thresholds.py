"""Nonlinearities with a kink at a threshold."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from morphlightning.bregman import SoftShrink
from morphlightning.interfaces import API_VERSION, LipschitzSpec


class ReLU(nn.ReLU):
    """max(x, 0).

    Source: torch.nn.ReLU.
    """

    api_version: ClassVar[str] = API_VERSION

    def __init__(self, channels: int | None = None, channel_dim: int = 1) -> None:
        super().__init__()


class SoftThreshold(nn.Module):
    r"""sign(x) max(|x| - t, 0) with a learnable threshold t >= 0.

    Args:
        channels: One threshold for each channel, or None for one threshold.
        channel_dim: The axis of the channels.
        threshold: Its start, >= 0.

    Source: the proximal map of t |x|.
    """

    api_version: ClassVar[str] = API_VERSION

    def __init__(self, channels: int | None = None, channel_dim: int = 1, threshold: float = 0.1) -> None:
        super().__init__()
        if not threshold >= 0:
            raise ValueError(f"threshold must be >= 0, got {threshold}")
        self.channels, self.channel_dim = channels, channel_dim
        self.threshold = nn.Parameter(torch.full((channels or 1,), threshold))

    def forward(self, x: Tensor) -> Tensor:
        """Shape and dtype of x."""
        t = self.threshold.to(x.dtype)
        if self.channels is not None:
            t = t.view(-1, *(1,) * (x.ndim - 1 - self.channel_dim % x.ndim))
        return F.relu(x - t) - F.relu(-x - t)

    def proximal(self) -> SoftShrink:
        """It as a proximal activation."""
        if self.channels is None:
            return SoftShrink(float(self.threshold.detach()))
        return SoftShrink(self.threshold, self.channel_dim)

    def lipschitz_spec(self) -> LipschitzSpec:
        """One; two while a threshold is negative, where both parts overlap."""
        steepest = 1.0 if self.threshold.detach().min() >= 0 else 2.0
        return LipschitzSpec(steepest, "any", "any", True, "largest slope")

    @torch.no_grad()
    def project_(self) -> None:
        """Keep the thresholds non-negative."""
        self.threshold.clamp_(min=0)
