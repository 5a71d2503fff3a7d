"""A smooth, 1-Lipschitz, learnable activation: the antiderivative of a linear spline."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from morphlightning.errors import ConfigError
from morphlightning.interfaces import LipschitzSpec
from morphlightning.splines import SplineTable


class QuadraticSpline(nn.Module):
    r""":math:`f(x) = \int_0^x p`, p a linear spline with values in [-1, 1], constant outside its knots.

    f is 1-Lipschitz for every value of its parameters, and its slope is continuous. That is what likelihood needs: the
    log-determinant of a network with linear splines is piecewise constant in what enters, so that its gradient by
    anything before misses what points add that cross a knot. Starts as a ReLU that is smooth: slope 0 below -1, 1 above
    1, and straight between.

    Args:
        channels: One spline for each channel.
        channel_dim: The axis of the channels.
        knots: Number of knots, >= 2.
        limit: They lie on [-limit, limit].

    Raises:
        ConfigError: A setting is out of its range.

    Source: derived here.
    """

    places: Tensor

    def __init__(self, channels: int, channel_dim: int = -1, knots: int = 13, limit: float = 3.0) -> None:
        super().__init__()
        if channels < 1 or knots < 2 or not 0 < limit < float("inf"):
            raise ConfigError(
                f"QuadraticSpline: channels={channels}, knots={knots}, limit={limit}, expected at least 1 channel and "
                "2 knots, and a finite limit above 0"
            )
        self.channel_dim = channel_dim
        width = 2 * limit / (knots - 1)
        self.register_buffer("places", torch.linspace(-limit - width, limit + width, knots + 2))
        self.slopes = nn.Parameter((0.5 + 0.5 * self.places[1:-1]).clamp(0, 1).repeat(channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Shape and dtype of x."""
        return self.slope_table().potential(x, self.channel_dim)

    def slope_table(self) -> SplineTable:
        """The slopes f' as linear splines."""
        inside = self.slopes.clamp(-1, 1)
        return SplineTable(self.places, F.pad(inside[None], (1, 1), mode="replicate")[0])

    def lipschitz_spec(self) -> LipschitzSpec:
        """1, in every norm of channels."""
        return LipschitzSpec(1.0, "any", "any", False, "slopes in [-1, 1]")
