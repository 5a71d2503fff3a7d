"""A learnable linear spline with uniform knots."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from morphlightning.bregman import Spline
from morphlightning.functional import linear_spline
from morphlightning.interfaces import API_VERSION

Start = Literal["identity", "relu", "leaky_relu", "absolute", "soft_threshold", "zero"]
STARTS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda t: t.clone(),
    "relu": lambda t: t.clamp_min(0),
    "leaky_relu": lambda t: torch.where(t > 0, t, 0.01 * t),
    "absolute": lambda t: t.abs(),
    "soft_threshold": lambda t: t - t.clamp(-0.1, 0.1),
    "zero": lambda t: torch.zeros_like(t),
}


class LinearSpline(nn.Module):
    r"""Continuous, piecewise linear, with knots :math:`t_k` equally spaced on [-limit, limit] and values to learn.

    :math:`f(x) = c_k + (c_{k+1} - c_k)(x - t_k)/h` on piece k; the outer pieces go on as straight lines. NaN gives NaN.

    Args:
        channels: One spline for each channel, or None for one spline.
        channel_dim: The axis of the channels.
        knots: Number of knots, >= 2.
        limit: The knots lie on [-limit, limit].
        init: The function to start from.

    Source: the B-spline form of learnable linear splines (Bohra et al. 2020; Unser et al., arXiv 2408.13114).
    """

    api_version: ClassVar[str] = API_VERSION

    def __init__(
        self,
        channels: int | None = None,
        channel_dim: int = 1,
        knots: int = 51,
        limit: float = 3.0,
        init: Start = "relu",
    ) -> None:
        super().__init__()
        if knots < 2:
            raise ValueError(f"knots must be >= 2, got {knots}")
        if not limit > 0:
            raise ValueError(f"limit must be > 0, got {limit}")
        if init not in STARTS:
            raise ValueError(f"init must be one of {', '.join(STARTS)}, got {init!r}")
        self.channels, self.channel_dim, self.limit = channels, channel_dim, limit
        values = STARTS[init](torch.linspace(-limit, limit, knots))
        self.values = nn.Parameter(values.repeat(channels or 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Shape and dtype of x; computed at least in float32."""
        values = self.values[0] if self.channels is None else self.values
        return linear_spline(x, values, (-self.limit, self.limit), channel_dim=self.channel_dim)

    def proximal(self) -> Spline:
        """It as a proximal activation; NotSupportedError unless all slopes lie in [0, 1]."""
        return Spline(self.values[0] if self.channels is None else self.values, self.limit, self.channel_dim)
