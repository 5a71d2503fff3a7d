"""An activation with a learnable slope outside an interval."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class LeakyClamp(nn.Module):
    """Identity inside [-bound, bound], a learnable slope outside.

    f(x) = c + slope * (x - c), where c is x clamped to [-bound, bound].

    Args:
        channels: One slope for each channel, or one for all where it is None.
        channel_dim: The axis that holds the channels.
        bound: Half the length of the interval, in the units of x.
        slope: Slope outside the interval at the start.
    """

    api_version = "1.0"

    def __init__(
        self, channels: int | None = None, channel_dim: int = 1, bound: float = 1.0, slope: float = 0.1
    ) -> None:
        super().__init__()
        if not bound > 0:
            raise ValueError(f"bound must be > 0, got {bound}")
        self.channel_dim, self.bound = channel_dim, bound
        self.slope = nn.Parameter(torch.full((channels or 1,), slope))

    def forward(self, x: Tensor) -> Tensor:
        """Any shape to the same shape; the dtype of x is kept."""
        slope = self.slope.to(x.dtype)
        if len(slope) > 1:
            shape = [1] * x.ndim
            shape[self.channel_dim] = len(slope)
            slope = slope.view(shape)
        inside = x.clamp(-self.bound, self.bound)
        return inside + slope * (x - inside)
