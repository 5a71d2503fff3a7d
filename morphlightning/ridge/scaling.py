"""How the activations' scale follows the noise level."""

from __future__ import annotations

import warnings
from typing import ClassVar

import torch
from torch import Tensor, nn

from morphlightning.errors import ConfigError, TrainingWarning
from morphlightning.functional import linear_spline

FLOOR = 1e-5
"""Added to noise levels (in the units of 8-bit images) before dividing by them."""


class NoiseScaling(nn.Module):
    r"""One positive scale for each feature, a function of the noise level: :math:`\alpha_c(\sigma)`.

    :math:`\alpha_c(\sigma) = \exp(s_c(\sigma)) / (\sigma + 10^{-5})` with a linear spline :math:`s_c`, where
    :math:`\sigma` is in the units of 8-bit images. With one noise level s_c is a number.

    Args:
        features: Number of features.
        noise: The noise levels of training: a number, or the lowest and the highest. White is 1.
        knots: Knots of each spline on that range.
        init: Start of s_c.

    Raises:
        ConfigError: Noise levels that are negative or not increasing.

    Source: Goujon et al., arXiv 2308.10542.
    """

    roles: ClassVar[dict[str, str]] = {"values": "scale"}

    def __init__(
        self, features: int, noise: float | tuple[float, float] = (0.0, 30 / 255), knots: int = 11, init: float = 5.0
    ) -> None:
        super().__init__()
        low, high = (noise, noise) if isinstance(noise, int | float) else noise
        if not 0 <= low <= high or (low == high and not high > 0):
            raise ConfigError(f"NoiseScaling: noise={noise}, expected a positive level or 0 <= lowest < highest")
        self.low, self.high = 255 * low, 255 * high
        self.values = nn.Parameter(torch.full((features, knots if high > low else 1), init))

    def forward(self, sigma: Tensor) -> Tensor:
        """Scales (N, features) for noise levels (N,); white is 1."""
        level = 255 * sigma.to(self.values.dtype)
        self._warn_outside(level)
        if self.high > self.low:
            rows = level[:, None].expand(-1, len(self.values))
            values = linear_spline(rows, self.values, (self.low, self.high))
        else:
            values = self.values.T
        return values.exp() / (level[:, None] + FLOOR)

    def _warn_outside(self, level: Tensor) -> None:
        if self.training or not level.numel() or level.is_cuda:
            return
        low, high, slack = float(level.min()) / 255, float(level.max()) / 255, 1e-6
        if low < self.low / 255 - slack or high > self.high / 255 + slack:
            warnings.warn(
                f"noise level {low if low < self.low / 255 else high:.4g} lies outside the trained range "
                f"[{self.low / 255:.4g}, {self.high / 255:.4g}] (white is 1): the scales are extrapolated",
                TrainingWarning,
                stacklevel=3,
            )
