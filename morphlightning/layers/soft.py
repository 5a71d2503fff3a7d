"""Dense layers with log-sum-exp in place of the maximum; their hard kin are the limit of large beta."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from morphlightning.errors import ConfigError
from morphlightning.functional.soft import soft_dilation, soft_erosion
from morphlightning.layers.base import MorphLayer


class _SoftLayer(MorphLayer):
    """Weights (out_features, in_features) and an inverse temperature, a buffer that is saved with the weights."""

    beta: Tensor

    def __init__(self, in_features: int, out_features: int, *, beta: float = 1.0, **options: Any) -> None:
        refused = [name for name in ("derivative", "heuristic") if name in options]
        if refused:
            raise ConfigError(
                f"{type(self).__name__} does not take {' or '.join(refused)}: log-sum-exp is smooth, its gradient is "
                "its derivative; use Dilation or Erosion for rules at ties"
            )
        super().__init__((out_features, in_features), **options)
        self.register_buffer("beta", torch.tensor(beta))
        self.set_beta(beta)

    def set_beta(self, beta: float) -> None:
        """Change the inverse temperature."""
        if not 0 < beta < float("inf"):
            raise ConfigError(f"{type(self).__name__}: beta must be a finite number > 0, got {beta}")
        self.beta.fill_(beta)


class SoftDilation(_SoftLayer):
    r"""Soft dilation :math:`\frac1\beta \log \sum_j e^{\beta (x_j + w_{ij})}`.

    (..., in_features) to (..., out_features).

    Args:
        in_features: Size of the last axis of x.
        out_features: Number of units.
        beta: Inverse temperature, > 0.
        **options: initializer, mask, generator; see :class:`MorphLayer`.
    """

    op: ClassVar[str] = "dilation"

    def forward(self, x: Tensor) -> Tensor:
        """Dilate the last axis, softly."""
        return soft_dilation(x, self.effective_weight, self.beta)


class SoftErosion(_SoftLayer):
    """Soft erosion, the dual of :class:`SoftDilation`."""

    op: ClassVar[str] = "erosion"

    def forward(self, x: Tensor) -> Tensor:
        """Erode the last axis, softly."""
        return soft_erosion(x, self.effective_weight, self.beta)
