"""Linear splines: the formula in plain torch, and the kernels in its place where nothing but autograd looks on.

The plain form is the specification. Compilers, function transforms and second derivatives go through it: it is made of
differentiable torch operations, so that mixed second derivatives are right without a line about them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from morphlightning import backends
from morphlightning.ops.plain import plain

Uniform = tuple[float, float]
"""First knot and distance between knots."""


def spline(x: Tensor, values: Tensor, knots: Uniform | Tensor) -> Tensor:
    """f_c(x) for x (samples, channels, length) and values (channels, knots), all of one floating dtype.

    ``knots`` says where equally spaced knots lie, or is a tensor of them, ascending: (knots,) or (channels, knots).
    """
    if has_torch_function((x, values)):
        return handle_torch_function(spline, (x, values), x, values, knots)
    if plain(x, values) and not (
        isinstance(knots, Tensor) and (knots.requires_grad or not plain(knots) or knots.ndim > 1)
    ):
        kernels = _kernels(x, knots)
        if kernels is not None:
            if torch.is_grad_enabled() and (x.requires_grad or values.requires_grad):
                y: Tensor = _Spline.apply(x, values, knots)  # type: ignore[no-untyped-call]
                return y
            return _value(x, values, knots)
    left, step, fraction = pieces(x, values, knots)
    return left + step * fraction


def slope(x: Tensor, values: Tensor, knots: Uniform | Tensor) -> Tensor:
    """f_c'(x), right-continuous at knots, for arguments as in :func:`spline`; NaN gives NaN."""
    index, _ = _locate(x, knots, values.shape[1])
    _, step = _look_up(values, index)
    return torch.where(x.isnan(), x, step / _width(knots, index))


def pieces(x: Tensor, values: Tensor, knots: Uniform | Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """For each x the value at the left end of its piece, the step to the right end, and how far x lies between."""
    index, fraction = _locate(x, knots, values.shape[1])
    left, step = _look_up(values, index)
    # an infinite x on a level end piece: 0 * inf would be NaN
    return left, step, torch.where(fraction.isinf() & (step == 0), torch.zeros_like(fraction), fraction)


def _locate(x: Tensor, knots: Uniform | Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The piece of each x, as an index, and the position inside it; NaN lies in piece 0 at NaN."""
    if isinstance(knots, Tensor):
        index = (_reached(x.detach(), knots.detach()) - 1).clamp(0, count - 2)
        index = torch.where(x.isnan(), torch.zeros_like(index), index)
        left, width = _look_up(knots.view(-1, count), index)
        return index, (x - left) / width
    position = (x - knots[0]) * (1.0 / knots[1])  # as the kernels do, so that all take the same piece at a knot
    piece = position.detach().nan_to_num(0.0).clamp(0, count - 2).floor()
    return piece.long(), position - piece


def _reached(x: Tensor, knots: Tensor) -> Tensor:
    """The number of knots up to each x."""
    if knots.ndim == 1:
        return torch.searchsorted(knots, x.contiguous(), right=True)
    rows = x.transpose(0, 1).flatten(1).contiguous()
    return torch.searchsorted(knots, rows, right=True).view(len(knots), len(x), x.shape[2]).transpose(0, 1)


def _width(knots: Uniform | Tensor, index: Tensor) -> Tensor | float:
    return _look_up(knots.view(-1, knots.shape[-1]), index)[1] if isinstance(knots, Tensor) else knots[1]


def _look_up(table: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """The entries (1 | channels, knots) at pieces (samples, channels, length), and their rise along the piece."""
    rows, count = table.shape
    at = index + torch.arange(rows, device=index.device).view(-1, 1) * count
    flat = table.flatten()
    left = flat[at]
    return left, flat[at + 1] - left


# ------------------------------------------------------------------------------------------------------ kernels
class _Spline(torch.autograd.Function):
    """The spline by kernels; keeps x and the values, nothing of the size of x beside it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, values: Tensor, knots: Uniform | Tensor) -> Tensor:
        ctx.knots = knots
        ctx.save_for_backward(x, values)
        return _value(x, values, knots)

    @staticmethod
    def backward(ctx: Any, gy: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, values = ctx.saved_tensors
        want_x, want_values, _ = ctx.needs_input_grad
        kernels = None if torch.is_grad_enabled() or not plain(gy) else _kernels(x, ctx.knots)
        if kernels is not None:
            gx, gv = kernels.backward(gy.contiguous(), x, values, ctx.knots, want_values)
        else:
            gx, gv = _pull(gy, x, values, ctx.knots)
        return gx if want_x else None, gv if want_values else None, None


def _pull(gy: Tensor, x: Tensor, values: Tensor, knots: Uniform | Tensor) -> tuple[Tensor, Tensor]:
    """Gradients for x and values, in differentiable operations."""
    index, _ = _locate(x, knots, values.shape[1])
    _, _, fraction = pieces(x, values, knots)
    at = (index + torch.arange(len(values), device=x.device).view(-1, 1) * values.shape[1]).flatten()
    right = gy * fraction
    gv = (
        torch.zeros_like(values)
        .flatten()
        .index_add(0, at, (gy - right).flatten())
        .index_add(0, at + 1, right.flatten())
    )
    return gy * slope(x, values, knots), gv.view_as(values)


def _value(x: Tensor, values: Tensor, knots: Uniform | Tensor) -> Tensor:
    kernels = _kernels(x, knots)
    y: Tensor = kernels.forward(x, values, knots)
    return y


def _kernels(x: Tensor, knots: Uniform | Tensor) -> Any:
    """What has kernels for tensors like x; None where there are none."""
    if x.dtype not in (torch.float32, torch.float64) or not x.numel():
        return None
    backend = backends.current(x.device)
    if backend == "numba":
        from morphlightning.ops.cpu import spline as on_processor

        return on_processor if on_processor.ready(x.dtype) else None
    if backend == "triton":
        return _OnDevice
    return None


class _OnDevice:
    """The triton kernels, which see one plane a sample and channel."""

    @staticmethod
    def forward(x: Tensor, values: Tensor, knots: Uniform | Tensor) -> Tensor:
        from morphlightning.ops.gpu import spline as kernels

        planes = x.contiguous().flatten(0, 1)
        if isinstance(knots, Tensor):
            return kernels.forward_at(planes, values, knots).view_as(x)
        return kernels.forward(planes, values, *knots).view_as(x)

    @staticmethod
    def backward(
        gy: Tensor, x: Tensor, values: Tensor, knots: Uniform | Tensor, want_values: bool
    ) -> tuple[Tensor, Tensor]:
        from morphlightning.ops.gpu import spline as kernels

        rows, planes = gy.flatten(0, 1), x.contiguous().flatten(0, 1)
        if isinstance(knots, Tensor):
            gx, gv = kernels.backward_at(rows, planes, values, knots)
        else:
            gx, gv = kernels.backward(rows, planes, values, *knots)
        return gx.view_as(x), gv
