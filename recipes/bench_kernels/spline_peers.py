"""How published spline activations compute, in the smallest form: what they keep and how they send gradients back.

Their packages are research repositories that are not on PyPI; these forms have what decides their speed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class GatherScatter(torch.autograd.Function):
    r"""Linear spline on equally spaced knots: :math:`y = (1 - f) c_k + f c_{k+1}` with piece k and fraction f.

    The forward pass looks both values up by index and keeps int64 indices and fractions; the backward pass adds to the
    values by two ``scatter_add_``. Shapes: x (batch, channels, ...), values (channels, knots).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, values: Tensor, low: float, spacing: float) -> Tensor:
        position, knots = (x - low) / spacing, values.shape[1]
        piece = position.floor().clamp(0, knots - 2)
        fraction = position - piece
        index = (piece + channel_offsets(x, values)).long()
        table = values.flatten()
        ctx.save_for_backward(index, fraction, values)
        ctx.spacing = spacing
        return (1 - fraction) * table[index] + fraction * table[index + 1]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gy: Tensor) -> tuple[Tensor | None, ...]:
        index, fraction, values = ctx.saved_tensors
        table = values.flatten()
        to_x = (table[index + 1] - table[index]) / ctx.spacing * gy
        to_values = torch.zeros_like(table)
        to_values.scatter_add_(0, index.flatten(), ((1 - fraction) * gy).flatten())
        to_values.scatter_add_(0, index.flatten() + 1, (fraction * gy).flatten())
        return to_x, to_values.view_as(values), None, None


def channel_offsets(x: Tensor, values: Tensor) -> Tensor:
    """Where the values of each channel begin in the flat table, to be broadcast against x."""
    return torch.arange(0, values.numel(), values.shape[1], device=x.device).view(-1, *(1,) * (x.ndim - 2))


def gather_scatter(x: Tensor, values: Tensor, limit: float) -> Tensor:
    """Linear spline with knots on [-limit, limit]."""
    y: Tensor = GatherScatter.apply(x, values, -limit, 2 * limit / (values.shape[1] - 1))  # type: ignore[no-untyped-call]
    return y


def pwlu(x: Tensor, values: Tensor, bounds: Tensor, slopes: Tensor) -> Tensor:
    """Piecewise linear unit: values at equally spaced points between learnable bounds, learnable slopes outside.

    Args:
        x: Shape (batch, channels, ...).
        values: Shape (channels, points).
        bounds: Left and right, shape (2, channels).
        slopes: Left and right of the bounds, shape (2, channels).

    Source: Zhou et al., "Learning specialized activation functions with the piecewise linear unit", ICCV 2021, the
    definition of PWLU; autograd gives the gradients of all.
    """
    beside, points = (-1, *(1,) * (x.ndim - 2)), values.shape[1]
    left, right, slope_before, slope_after = (row.view(beside) for row in (*bounds, *slopes))
    position = (x - left) * ((points - 1) / (right - left))
    piece = position.detach().floor().clamp(0, points - 2)
    index = piece.long() + channel_offsets(x, values)
    table = values.flatten()
    inside = torch.lerp(table[index], table[index + 1], position - piece)
    before = values[:, 0].view(beside) + slope_before * (x - left)
    after = values[:, -1].view(beside) + slope_after * (x - right)
    return torch.where(x < left, before, torch.where(x >= right, after, inside))
