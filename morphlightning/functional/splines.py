r"""Linear splines: continuous, piecewise linear functions, one for each channel.

With knots :math:`t_0 < \dots < t_{K-1}` and values :math:`c_k` there, :math:`f(x) = c_k + (c_{k+1} - c_k)
(x - t_k)/(t_{k+1} - t_k)` on piece k; the outer pieces go on as straight lines. NaN gives NaN; an infinite x on a level
end piece gives the end value.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from morphlightning.errors import ConfigError, ShapeError
from morphlightning.functional.checks import check_real
from morphlightning.ops import splines
from morphlightning.ops.plain import plain

Knots = tuple[float, float] | Tensor


def linear_spline(x: Tensor, values: Tensor, knots: Knots, *, channel_dim: int = 1) -> Tensor:
    r"""Linear splines of x.

    Args:
        x: Any shape.
        values: Values at the knots: ``(K,)`` for one spline, ``(channels, K)`` for one for each channel of x; K >= 2.
        knots: The first and the last of K equally spaced knots; or a tensor of strictly ascending knots, ``(K,)`` for
            all channels or ``(channels, K)`` for each its own.
        channel_dim: The axis of the channels.

    Returns:
        Shape, dtype and layout of x (a channels_last x is read and written as it lies); computed at least in float32.
        Gradients flow to x, values and a tensor of knots.

    Raises:
        ShapeError: values or knots have other shapes.
        ConfigError: Knots do not ascend. Tensors are examined on the CPU alone, since a device would have to be waited
            for, and not under compilers and transforms; :func:`check_knots` examines them anywhere.
        DtypeError: x, values or knots are not floating-point.

    Source: the B-spline form of learnable linear splines (Bohra et al. 2020; Unser et al., arXiv 2408.13114); the
    gradients for knots, minus the slope times those for values from the same piece, are derived here.
    """
    return _apply(splines.spline, "linear_spline", x, values, knots, channel_dim)


def linear_spline_slope(x: Tensor, values: Tensor, knots: Knots, *, channel_dim: int = 1) -> Tensor:
    """Slope of the splines at x, from the right at knots; arguments as for :func:`linear_spline`.

    Gradients flow to values and a tensor of knots; the one for x is 0.
    """
    return _apply(splines.slope, "linear_spline_slope", x, values, knots, channel_dim)


def check_knots(knots: Tensor, where: str = "knots") -> None:
    """Raise ConfigError, naming the first pair, unless knots (K,) or (channels, K) ascend strictly; NaN does not."""
    rising = knots[..., 1:] > knots[..., :-1]
    if rising.all():
        return
    *row, k = (~rising).nonzero()[0].tolist()
    left, right = knots[(*row, slice(k, k + 2))].tolist()
    channel = f" of channel {row[0]}" if row else ""
    raise ConfigError(
        f"{where}: knots must ascend strictly, but knots {k} and {k + 1}{channel} are {left:.9g} and {right:.9g}; "
        "sort them and remove equal ones"
    )


def _apply(
    form: Callable[[Tensor, Tensor, splines.Uniform | Tensor], Tensor],
    where: str,
    x: Tensor,
    values: Tensor,
    knots: Knots,
    channel_dim: int,
) -> Tensor:
    check_real(where, x=x, values=values)
    if values.ndim not in (1, 2) or values.shape[-1] < 2:
        raise ShapeError(f"{where}: values has shape {tuple(values.shape)}, expected (K,) or (channels, K) with K >= 2")
    dim = None
    if values.ndim == 2:
        if not -x.ndim <= channel_dim < x.ndim or x.shape[channel_dim] != len(values):
            raise ShapeError(f"{where}: axis {channel_dim} of x {tuple(x.shape)} must have {len(values)} channels")
        dim = channel_dim % x.ndim
    dtype = torch.promote_types(torch.promote_types(x.dtype, values.dtype), torch.float32)
    at, table = _places(where, knots, values, dtype), values.to(dtype).view(-1, values.shape[-1])
    order, rows = _rows(x, dim)
    y = form(rows.to(dtype), table, at).to(x.dtype)
    back = sorted(range(x.ndim), key=order.__getitem__)
    return y.view([x.shape[axis] for axis in order]).permute(back)


def _places(where: str, knots: Knots, values: Tensor, dtype: torch.dtype) -> splines.Uniform | Tensor:
    """The knots as the operators take them."""
    count = values.shape[-1]
    if not isinstance(knots, Tensor):
        low, high = knots
        if not low < high:
            raise ConfigError(f"{where}: the last knot must be above the first, got {knots}")
        return low, (high - low) / (count - 1)
    check_real(where, knots=knots)
    if knots.shape not in {values.shape, values.shape[-1:]}:
        own = "" if values.ndim == 1 else f" ({count},) or {tuple(values.shape)},"
        raise ShapeError(f"{where}: {count} values need as many knots,{own} got {tuple(knots.shape)}")
    if not knots.is_cuda and plain(knots):
        check_knots(knots.detach(), where)
    return knots.to(dtype)


def _rows(x: Tensor, dim: int | None) -> tuple[list[int], Tensor]:
    """The order of axes in memory, and x as (before, channels, behind) in this order: a view where x is dense.

    Without a channel axis (1, 1, numbers).
    """
    strides = x.stride()
    order = sorted(range(x.ndim), key=lambda axis: -strides[axis])
    turned = x.permute(order)
    if dim is None:
        return order, turned.reshape(1, 1, -1)
    at = order.index(dim)
    return order, turned.reshape(math.prod(turned.shape[:at]), x.shape[dim], math.prod(turned.shape[at + 1 :]))
