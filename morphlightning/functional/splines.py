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

from morphlightning.errors import ConfigError, DtypeError, NotSupportedError, ShapeError
from morphlightning.functional.checks import check_real
from morphlightning.ops import splines
from morphlightning.ops.plain import differentiated, plain

Knots = tuple[float, float] | Tensor


def linear_spline(
    x: Tensor, values: Tensor, knots: Knots, *, channel_dim: int = 1, out: Tensor | None = None
) -> Tensor:
    r"""Linear splines of x.

    Args:
        x: Any shape.
        values: Values at the knots: ``(K,)`` for one spline, ``(channels, K)`` for one for each channel of x; K >= 2.
        knots: The first and the last of K equally spaced knots; or a tensor of strictly ascending knots, ``(K,)`` for
            all channels or ``(channels, K)`` for each its own.
        channel_dim: The axis of the channels.
        out: Where to write, with the shape and dtype of x; may be x. Without gradients only: new memory of more than
            32 MB costs several times what the spline costs.

    Returns:
        Shape, dtype and layout of x (a channels_last x is read and written as it lies); computed at least in float32.
        Gradients flow to x, values and a tensor of knots.

    Raises:
        ShapeError: values or knots have other shapes.
        ConfigError: Knots do not ascend. Tensors are examined on the CPU alone, since a device would have to be waited
            for, and not under compilers and transforms; :func:`check_knots` examines them anywhere.
        DtypeError: x, values or knots are not floating-point, or out has another dtype than x.
        NotSupportedError: out is given where gradients are asked for.

    Source: the B-spline form of learnable linear splines (Bohra et al. 2020; Unser et al., arXiv 2408.13114); the
    gradients for knots, minus the slope times those for values from the same piece, are derived here.
    """
    return _apply(splines.spline, "linear_spline", x, values, knots, channel_dim, out)


def linear_spline_slope(
    x: Tensor, values: Tensor, knots: Knots, *, channel_dim: int = 1, out: Tensor | None = None
) -> Tensor:
    """Slope of the splines at x, from the right at knots; arguments as for :func:`linear_spline`.

    Gradients flow to values and a tensor of knots; the one for x is 0.
    """
    return _apply(splines.slope, "linear_spline_slope", x, values, knots, channel_dim, out)


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
    form: Callable[[Tensor, Tensor, splines.Uniform | Tensor, Tensor | None], Tensor],
    where: str,
    x: Tensor,
    values: Tensor,
    knots: Knots,
    channel_dim: int,
    out: Tensor | None,
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
    if out is not None:
        _check_out(where, out, x, values, knots)
    turned, target, order = x, out, None
    if not x.is_contiguous():
        order = _order_in_memory(x.stride())
        turned, target = x.permute(order), None if out is None else out.permute(order)
        dim = None if dim is None else order.index(dim)
    rows = turned.reshape(_as_rows(turned.shape, dim)).to(dtype)
    if target is not None:
        target = target.view(rows.shape) if target.is_contiguous() and target.dtype == dtype else None
    y = form(rows, table, at, target).to(x.dtype).view(turned.shape)
    if order is not None:
        y = y.permute([order.index(axis) for axis in range(x.ndim)])
    if out is None:
        return y
    return out if y.data_ptr() == out.data_ptr() else out.copy_(y)


def _order_in_memory(strides: tuple[int, ...]) -> list[int]:
    """Axes by falling stride; by insertion, which compilers follow where strides are symbols."""
    order: list[int] = []
    for axis, stride in enumerate(strides):
        at = len(order)
        while at > 0 and strides[order[at - 1]] < stride:
            at -= 1
        order.insert(at, axis)
    return order


def _as_rows(shape: torch.Size, dim: int | None) -> tuple[int, int, int]:
    """Sizes of what lies before the channels, of the channels and of what lies behind; without channels all is one."""
    if dim is None:
        return 1, 1, math.prod(shape)
    return math.prod(shape[:dim]), shape[dim], math.prod(shape[dim + 1 :])


def _check_out(where: str, out: Tensor, x: Tensor, values: Tensor, knots: Knots) -> None:
    if out.shape != x.shape:
        raise ShapeError(f"{where}: out has shape {tuple(out.shape)}, expected that of x, {tuple(x.shape)}")
    if out.dtype != x.dtype:
        raise DtypeError(f"{where}: out is {out.dtype}, expected the dtype of x, {x.dtype}")
    given = (x, values, knots, out)
    if differentiated(*given):
        raise NotSupportedError(f"{where}: out has no gradient; leave it out, or compute under torch.no_grad()")


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
    if knots.device.type == "cpu" and plain(knots):
        check_knots(knots.detach(), where)
    return knots.to(dtype)
