"""Linear splines: the formula in plain torch, and the kernels in its place where nothing but autograd looks on.

The plain form is the specification. Compilers, function transforms and second derivatives go through it: it is made of
differentiable torch operations, so that mixed second derivatives are right without a line about them.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from morphlightning import backends
from morphlightning.ops.plain import differentiated, plain

Uniform = tuple[float, float]
"""First knot and distance between knots."""


def spline(x: Tensor, values: Tensor, knots: Uniform | Tensor, out: Tensor | None = None) -> Tensor:
    """f_c(x) for x (before, channels, behind) and values (channels, knots), all of one floating dtype.

    ``knots`` says where equally spaced knots lie, or is a tensor of them, ascending: (knots,) or (channels, knots).
    Kernels write to ``out`` where it is given, contiguous and x itself or apart from it; others leave it as it is.
    """
    if has_torch_function((x, values, knots)):
        return handle_torch_function(spline, (x, values, knots), x, values, knots)
    kernels = _kernels(x, values, knots)
    if kernels is None:
        left, step, fraction = pieces(x, values, knots)
        return left + step * fraction
    if differentiated(x, values, knots):
        y: Tensor = _Spline.apply(x, values, knots)  # type: ignore[no-untyped-call]
        return y
    y = kernels.value(x, values, knots, out)
    return y


def slope(x: Tensor, values: Tensor, knots: Uniform | Tensor, out: Tensor | None = None) -> Tensor:
    """f_c'(x), right-continuous at knots, for arguments as in :func:`spline`; NaN gives NaN."""
    kernels = None if has_torch_function((x, values, knots)) else _kernels(x, values, knots)
    if kernels is None:
        index, _ = _locate(x, knots, values.shape[1])
        _, step = _look_up(values, index)
        return torch.where(x.isnan(), x, step / _width(knots, index))
    if differentiated(x, values, knots):
        y: Tensor = _Slope.apply(x, values, knots)  # type: ignore[no-untyped-call]
        return y
    y = kernels.slope(x, values, knots, out)
    return y


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
    """The spline by kernels; keeps its arguments, nothing of the size of x beside them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, values: Tensor, knots: Uniform | Tensor) -> Tensor:
        _keep(ctx, x, values, knots)
        y: Tensor = _kernels(x, values, knots).value(x, values, knots)
        return y

    @staticmethod
    def backward(ctx: Any, gy: Tensor) -> tuple[Tensor | None, ...]:
        x, values, knots = _kept(ctx)
        want_x, want_values, want_knots = ctx.needs_input_grad
        gx, sums = _pull(gy, x, values, knots, want_values or want_knots)
        if not want_values and not want_knots:
            return gx, None, None
        left, right = sums[0] - sums[1], sums[1]
        # a knot that moves takes its value along the line, and so acts as minus the slope times the value
        gt = _at_ends(left, right, -values.diff() / knots.diff(), knots) if isinstance(knots, Tensor) else None
        return gx if want_x else None, _at_ends(left, right), gt if want_knots else None


class _Slope(torch.autograd.Function):
    """The slope by kernels."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, values: Tensor, knots: Uniform | Tensor) -> Tensor:
        _keep(ctx, x, values, knots)
        y: Tensor = _kernels(x, values, knots).slope(x, values, knots)
        return y

    @staticmethod
    def backward(ctx: Any, gy: Tensor) -> tuple[Tensor | None, ...]:
        x, values, knots = _kept(ctx)
        want_x, want_values, want_knots = ctx.needs_input_grad
        gx = torch.where(x.isnan(), gy, torch.zeros_like(gy)) if want_x else None
        if not want_values and not want_knots:
            return gx, None, None
        width = knots.diff() if isinstance(knots, Tensor) else knots[1]
        rise = _pull(gy, x, values, knots, True)[1][0] / width
        gt = _at_ends(-rise, rise, -values.diff() / width, knots) if isinstance(knots, Tensor) else None
        return gx, _at_ends(-rise, rise), gt if want_knots else None


def _keep(ctx: Any, x: Tensor, values: Tensor, knots: Uniform | Tensor) -> None:
    free = isinstance(knots, Tensor)
    ctx.uniform = None if free else knots
    ctx.save_for_backward(x, values, *([knots] if free else []))


def _kept(ctx: Any) -> tuple[Tensor, Tensor, Uniform | Tensor]:
    x, values, *free = ctx.saved_tensors
    return x, values, free[0] if free else ctx.uniform


def _at_ends(left: Tensor, right: Tensor, factor: Tensor | None = None, like: Tensor | None = None) -> Tensor:
    """Give what pieces (channels, pieces) say to the knots at their ends, each with the factor of its piece.

    Where ``like`` are knots of all channels, these are added.
    """
    if factor is not None:
        left, right = factor * left, factor * right
    both = F.pad(left, (0, 1)) + F.pad(right, (1, 0))
    return both.sum(0) if like is not None and like.ndim == 1 else both


def _pull(gy: Tensor, x: Tensor, values: Tensor, knots: Uniform | Tensor, want_sums: bool) -> tuple[Tensor, Tensor]:
    """The gradient for x, and (2, channels, pieces): sums of gy over each piece, and of gy times the position in it.

    In differentiable operations where a second derivative is wanted.
    """
    kernels = None if torch.is_grad_enabled() else _kernels(x, values, knots, gy)
    if kernels is not None:
        gx, sums = kernels.backward(gy, x, values, knots, want_sums)
        return gx, sums
    index, _ = _locate(x, knots, values.shape[1])
    _, _, fraction = pieces(x, values, knots)
    count = values.shape[1] - 1
    at = (index + torch.arange(len(values), device=x.device).view(-1, 1) * count).flatten()
    empty = values.new_zeros(values.shape[0] * count)
    sums = torch.stack([empty.index_add(0, at, g.flatten()) for g in (gy, gy * fraction)])
    return gy * slope(x, values, knots), sums.view(2, -1, count)


def _kernels(x: Tensor, values: Tensor, knots: Uniform | Tensor, *others: Tensor) -> Any:
    """What has kernels for tensors like x; None where there are none, or more than autograd looks on."""
    if x.dtype not in (torch.float32, torch.float64) or not x.numel():
        return None
    if not plain(x, values, *others, *([knots] if isinstance(knots, Tensor) else [])):
        return None
    if torch.autograd.forward_ad._current_level >= 0:
        return None
    backend = backends.current(x.device)
    if backend == "numba":
        from morphlightning.ops.cpu import spline as on_processor

        return on_processor if on_processor.ready(x.dtype) else None
    if backend == "triton":
        from morphlightning.ops.gpu import spline as on_device

        return on_device
    return None
