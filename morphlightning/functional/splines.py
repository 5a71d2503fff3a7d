r"""Linear splines: continuous, piecewise linear functions, one for each channel.

With knots :math:`t_0 < \dots < t_{K-1}` and values :math:`c_k` there, :math:`f(x) = c_k + (c_{k+1} - c_k)
(x - t_k)/(t_{k+1} - t_k)` on piece k; the outer pieces go on as straight lines. NaN gives NaN; an infinite x on a level
end piece gives the end value.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from morphlightning.errors import ConfigError, ShapeError
from morphlightning.functional.checks import check_real
from morphlightning.ops import splines

Knots = tuple[float, float] | Tensor


def linear_spline(x: Tensor, values: Tensor, knots: Knots, *, channel_dim: int = 1) -> Tensor:
    r"""Linear splines of x.

    Args:
        x: Any shape.
        values: Values at the knots: ``(K,)`` for one spline, ``(channels, K)`` for one for each channel of x; K >= 2.
        knots: The first and the last of K equally spaced knots, or a tensor ``(K,)`` of ascending knots.
        channel_dim: The axis of the channels.

    Returns:
        Shape and dtype of x; computed at least in float32. Gradients flow to x, values and a tensor of knots.

    Raises:
        ShapeError: values or knots have other shapes.
        ConfigError: The last knot is not above the first.
        DtypeError: x or values is not floating-point.

    Source: the B-spline form of learnable linear splines (Bohra et al. 2020; Unser et al., arXiv 2408.13114).
    """
    return _apply(splines.spline, "linear_spline", x, values, knots, channel_dim)


def linear_spline_slope(x: Tensor, values: Tensor, knots: Knots, *, channel_dim: int = 1) -> Tensor:
    """Slope of the splines at x, from the right at knots; arguments as for :func:`linear_spline`."""
    return _apply(splines.slope, "linear_spline_slope", x, values, knots, channel_dim)


def _apply(
    form: Callable[[Tensor, Tensor, splines.Uniform | Tensor], Tensor],
    where: str,
    x: Tensor,
    values: Tensor,
    knots: Knots,
    channel_dim: int,
) -> Tensor:
    check_real(where, x=x, values=values)
    dtype = torch.promote_types(torch.promote_types(x.dtype, values.dtype), torch.float32)
    values = values.to(dtype)
    if isinstance(knots, Tensor):
        if knots.shape != values.shape[-1:]:
            raise ShapeError(f"{where}: {values.shape[-1]} values need as many knots, got {tuple(knots.shape)}")
        at: splines.Uniform | Tensor = knots.to(dtype)
    else:
        low, high = knots
        if not low < high:
            raise ConfigError(f"{where}: the last knot must be above the first, got {knots}")
        at = low, (high - low) / (values.shape[-1] - 1) if values.shape[-1] > 1 else 0.0
    if values.ndim not in (1, 2) or values.shape[-1] < 2:
        raise ShapeError(f"{where}: values has shape {tuple(values.shape)}, expected (K,) or (channels, K) with K >= 2")
    if values.ndim == 1:
        rows = x.reshape(len(x) if x.ndim and len(x) else 1, 1, -1)
        return form(rows.to(dtype), values[None], at).to(x.dtype).view(x.shape)
    if not -x.ndim <= channel_dim < x.ndim or x.shape[channel_dim] != len(values):
        raise ShapeError(f"{where}: axis {channel_dim} of x {tuple(x.shape)} must have {len(values)} channels")
    dim = channel_dim % x.ndim
    lead, tail = x.shape[:dim], x.shape[dim + 1 :]
    rows = x.reshape(lead.numel(), len(values), tail.numel())
    return form(rows.to(dtype), values, at).to(x.dtype).view(x.shape)
