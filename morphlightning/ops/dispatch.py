"""One door to every backend: custom operators, their fake and vmap rules, and the autograd function over them.

A backend (:mod:`morphlightning.backends`) computes the maxima, the winners and what is sent back to them. Everything
else is written once, here.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from morphlightning.backends import backend_for
from morphlightning.errors import NotSupportedError
from morphlightning.ops import eager, geometry, policy, vmap
from morphlightning.ops.geometry import Geometry
from morphlightning.ops.plain import differentiated, plain
from morphlightning.ops.policy import Policy
from morphlightning.ops.statistics import GAP_BINS, NO_GHOSTS, Ghosts, gap_histogram
from morphlightning.ops.view import OperatorView


# ------------------------------------------------------------------------------------------- custom operators
@torch.library.custom_op("morphlightning::maxplus_value", mutates_args=())
def _value(x: Tensor, w: Tensor, geometry_key: str) -> Tensor:
    return backend_for(x).value(x, w, geometry.parse(geometry_key))


@_value.register_fake
def _(x: Tensor, w: Tensor, geometry_key: str) -> Tensor:
    return x.new_empty(geometry.parse(geometry_key).output_shape(x.shape, w.shape))


@torch.library.custom_op("morphlightning::maxplus_indices", mutates_args=())
def _indices(x: Tensor, w: Tensor, geometry_key: str, gap: bool) -> tuple[Tensor, Tensor, Tensor]:
    return backend_for(x).indices(x, w, geometry.parse(geometry_key), gap)


@_indices.register_fake
def _(x: Tensor, w: Tensor, geometry_key: str, gap: bool) -> tuple[Tensor, Tensor, Tensor]:
    shape = geometry.parse(geometry_key).output_shape(x.shape, w.shape)
    dtype = eager.compute_dtype(x, w)
    return x.new_empty(shape), x.new_empty(shape, dtype=torch.int32), x.new_empty(shape if gap else (0,), dtype=dtype)


@torch.library.custom_op("morphlightning::maxplus_scatter", mutates_args=())
def _scatter(
    gy: Tensor, arg: Tensor, x_shape: list[int], w_shape: list[int], geometry_key: str, want_x: bool, want_w: bool
) -> tuple[Tensor, Tensor]:
    x, w = torch.Size(x_shape), torch.Size(w_shape)
    return backend_for(gy).scatter(gy, arg, x, w, geometry.parse(geometry_key), want_x, want_w)


@_scatter.register_fake
def _(
    gy: Tensor, arg: Tensor, x_shape: list[int], w_shape: list[int], geometry_key: str, want_x: bool, want_w: bool
) -> tuple[Tensor, Tensor]:
    return gy.new_empty(x_shape if want_x else (0,)), gy.new_empty(w_shape if want_w else (0,))


@torch.library.custom_op("morphlightning::maxplus_touches", mutates_args=())
def _touches(gy: Tensor, arg: Tensor, w_shape: list[int], geometry_key: str) -> Tensor:
    return backend_for(gy).touches(gy, arg, torch.Size(w_shape), geometry.parse(geometry_key))


@_touches.register_fake
def _(gy: Tensor, arg: Tensor, w_shape: list[int], geometry_key: str) -> Tensor:
    return gy.new_empty(w_shape)


@torch.library.custom_op("morphlightning::maxplus_gaps", mutates_args=())
def _gaps(gy: Tensor, arg: Tensor, gap: Tensor) -> Tensor:
    return gap_histogram(gy, arg, gap)


@_gaps.register_fake
def _(gy: Tensor, arg: Tensor, gap: Tensor) -> Tensor:
    return gy.new_empty(GAP_BINS, dtype=torch.float64)


@torch.library.custom_op("morphlightning::maxplus_gather", mutates_args=())
def _gather(gx: Tensor, gw: Tensor, arg: Tensor, geometry_key: str) -> Tensor:
    return eager.gather(gx, gw, arg, geometry.parse(geometry_key))


@_gather.register_fake
def _(gx: Tensor, gw: Tensor, arg: Tensor, geometry_key: str) -> Tensor:
    return gx.new_empty(arg.shape)


def _follow_policy(
    gy: Tensor,
    x: Tensor,
    w: Tensor,
    arg: Tensor,
    gap: Tensor,
    geometry_key: str,
    policy_key: str,
    want_x: bool,
    want_w: bool,
    count: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    where, gy = geometry.parse(geometry_key), gy.flatten(1)
    gy = -gy if where.dual else gy  # the policy sees the max-plus operator inside a dual one: y = -max(-x + w)
    gx, gw, touched = policy.parse(policy_key).backward(OperatorView(x, w, arg, gap, where), gy, want_x, want_w, count)
    none = gy.new_empty(0)
    return (
        none if gx is None else (-gx if where.dual else gx).view(x.shape),
        none if gw is None else gw.view(w.shape),
        gy.new_empty(0) if touched is None else touched.view(w.shape),
    )


_route = torch.library.custom_op("morphlightning::maxplus_route", _follow_policy, mutates_args=())


@_route.register_fake
def _(gy: Tensor, x: Tensor, w: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    want_x, want_w, count = rest[-3:]
    return (
        gy.new_empty(x.shape if want_x else (0,)),
        gy.new_empty(w.shape if want_w else (0,)),
        gy.new_empty(w.shape if count else (0,)),
    )


@torch.library.custom_op("morphlightning::maxplus_cells", mutates_args=())
def _cells(arg: Tensor, x_shape: list[int], w_shape: list[int], geometry_key: str) -> Tensor:
    unit = torch.arange(arg[:1].numel(), device=arg.device)
    x, w = torch.Size(x_shape), torch.Size(w_shape)
    return geometry.parse(geometry_key).cell(unit, arg.flatten(1).clamp_min(0), x, w).view(arg.shape)


@_cells.register_fake
def _(arg: Tensor, x_shape: list[int], w_shape: list[int], geometry_key: str) -> Tensor:
    return arg.new_empty(arg.shape, dtype=torch.int64)


# ----------------------------------------------------------------------------------------------------- vmap
def _fold(x: Tensor, w: Tensor, key: str, in_dims: tuple[Any, ...], size: int) -> tuple[Tensor, Tensor, str]:
    """Samples where the weights are shared, else groups."""
    if isinstance(in_dims[1], int):
        return vmap.as_groups(x, in_dims[0], size), vmap.as_rows(w, in_dims[1], size), vmap.more_groups(key, size)
    return vmap.as_rows(x, in_dims[0], size), w, key


@_value.register_vmap
def _(info: Any, in_dims: tuple[Any, ...], x: Tensor, w: Tensor, key: str) -> Any:
    back = vmap.from_groups if isinstance(in_dims[1], int) else vmap.from_rows
    return back(_value(*_fold(x, w, key, in_dims, info.batch_size)), info.batch_size), 0


@_indices.register_vmap
def _(info: Any, in_dims: tuple[Any, ...], x: Tensor, w: Tensor, key: str, gap: bool) -> Any:
    back = vmap.from_groups if isinstance(in_dims[1], int) else vmap.from_rows
    found = _indices(*_fold(x, w, key, in_dims, info.batch_size), gap)
    return tuple(back(part, info.batch_size) for part in found), (0, 0, 0)


@_scatter.register_vmap
def _(
    info: Any, in_dims: tuple[Any, ...], gy: Tensor, arg: Tensor, x: list[int], w: list[int], key: str, *want: bool
) -> Any:
    size = info.batch_size
    rows = vmap.as_groups(gy, in_dims[0], size), vmap.as_groups(arg, in_dims[1], size)
    shapes = vmap.grown(x, 1, size), vmap.grown(w, 0, size)
    gx, gw = _scatter(*rows, *shapes, vmap.more_groups(key, size), *want)
    return (vmap.from_groups(gx, size), vmap.from_rows(gw, size)), (0, 0)


@_touches.register_vmap
def _(info: Any, in_dims: tuple[Any, ...], gy: Tensor, arg: Tensor, w: list[int], key: str) -> Any:
    size = info.batch_size
    rows = vmap.as_groups(gy, in_dims[0], size), vmap.as_groups(arg, in_dims[1], size)
    return vmap.from_rows(_touches(*rows, vmap.grown(w, 0, size), vmap.more_groups(key, size)), size), 0


@_gather.register_vmap
def _(info: Any, in_dims: tuple[Any, ...], gx: Tensor, gw: Tensor, arg: Tensor, key: str) -> Any:
    size = info.batch_size
    grads = vmap.as_groups(gx, in_dims[0], size), vmap.as_rows(gw, in_dims[1], size)
    y = _gather(*grads, vmap.as_groups(arg, in_dims[2], size), vmap.more_groups(key, size))
    return vmap.from_groups(y, size), 0


@_cells.register_vmap
def _(info: Any, in_dims: tuple[Any, ...], arg: Tensor, x: list[int], w: list[int], key: str) -> Any:
    cells = _cells(vmap.as_rows(arg, in_dims[0], info.batch_size), vmap.grown(x, 0, info.batch_size), w, key)
    return vmap.from_rows(cells, info.batch_size), 0


_route.register_vmap(vmap.vmap_by_loop(_route))
_gaps.register_vmap(vmap.vmap_by_loop(_gaps))


# --------------------------------------------------------------------------------------------------- autograd
class _Scatter(torch.autograd.Function):
    """Messages to winners: linear in the message, so that ``first`` can be differentiated again."""

    generate_vmap_rule = True

    @staticmethod
    def forward(gy: Tensor, arg: Tensor, x: torch.Size, w: torch.Size, key: str, want_x: bool, want_w: bool) -> Any:
        return _scatter(gy, arg, list(x), list(w), key, want_x, want_w)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _, arg, ctx.x, ctx.w, ctx.key, ctx.want_x, ctx.want_w = inputs
        ctx.save_for_backward(arg)

    @staticmethod
    def backward(ctx: Any, gx: Tensor, gw: Tensor) -> tuple[Tensor | None, ...]:
        (arg,) = ctx.saved_tensors
        gx = gx if ctx.want_x else gx.new_zeros(ctx.x)
        gw = gw if ctx.want_w else gw.new_zeros(ctx.w)
        return _gather(gx, gw, arg, ctx.key), None, None, None, None, None, None


class _Route(torch.autograd.Function):
    """Pseudo-gradients of a policy; they are not the derivative of anything, so they end here."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        gy: Tensor,
        x: Tensor,
        w: Tensor,
        arg: Tensor,
        gap: Tensor,
        key: str,
        policy_key: str,
        want_x: bool,
        want_w: bool,
        count: bool,
    ) -> Any:
        return _route(gy, x, w, arg, gap, key, policy_key, want_x, want_w, count)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.policy_key = inputs[6]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise NotSupportedError(
            f"second derivative through {ctx.policy_key}: this rule sends pseudo-gradients, which have no derivative; "
            "use derivative='first' and heuristic='plain' where create_graph=True is needed"
        )


class _MaxPlus(torch.autograd.Function):
    """y and the winners; keeps winners alone where the policy needs no more, else x, w and gaps as well.

    ``count`` and ``gaps`` are the leaves of :class:`Ghosts`; gaps that somebody counts are kept too.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor, w: Tensor, count: Tensor | None, gaps: Tensor | None, key: str, policy_key: str, winner_only: bool
    ) -> Any:
        return _indices(x, w, key, not winner_only or gaps is not None)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        x, w, count, gaps, ctx.key, ctx.policy_key, ctx.winner_only = inputs
        _, arg, gap = output
        ctx.mark_non_differentiable(arg, gap)
        ctx.set_materialize_grads(False)  # else zeros would be made for the gradients of winners and gaps
        ctx.shapes, ctx.dtypes = (x.shape, w.shape), (x.dtype, w.dtype, eager.compute_dtype(x, w))
        ctx.count, ctx.count_dtype = count is not None, None if count is None else count.dtype
        ctx.gaps = gaps is not None
        ctx.save_for_backward(arg, gap, *(() if ctx.winner_only else (x, w)))

    @staticmethod
    def backward(ctx: Any, gy: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        if gy is None:
            return None, None, None, None, None, None, None
        arg, gap, *rest = ctx.saved_tensors
        x_dtype, w_dtype, dtype = ctx.dtypes
        want_x, want_w, *_ = ctx.needs_input_grad
        gy, touched = gy.to(dtype), None
        if ctx.winner_only:
            x_shape, w_shape = ctx.shapes
            gx, gw = _to_winners(gy, arg, x_shape, w_shape, ctx.key, want_x, want_w)
            if ctx.count:
                touched = _touches(gy, arg, list(ctx.shapes[1]), ctx.key)
        else:
            x, w = rest
            settings = (ctx.key, ctx.policy_key, want_x, want_w, ctx.count)
            gx, gw, touched = _pulled(gy, x, w, arg, gap, *settings)
        to_count = touched.to(ctx.count_dtype) if ctx.count and touched is not None else None
        to_gaps = _gaps(gy, arg, gap) if ctx.gaps else None
        to_x, to_w = gx.to(x_dtype) if want_x else None, gw.to(w_dtype) if want_w else None
        return to_x, to_w, to_count, to_gaps, None, None, None


class _PlainMaxPlus(torch.autograd.Function):
    """The same where nothing but autograd looks on.

    For the other form torch inspects a signature at every call, which takes longer than a small layer.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, *rest: Any) -> Any:
        _, gaps, key, _, winner_only = rest
        found = backend_for(x).indices(x, w, geometry.parse(key), not winner_only or gaps is not None)
        _MaxPlus.setup_context(ctx, (x, w, *rest), found)
        return found

    backward = staticmethod(_MaxPlus.backward)


def _to_winners(
    gy: Tensor, arg: Tensor, x: torch.Size, w: torch.Size, key: str, want_x: bool, want_w: bool
) -> tuple[Tensor, Tensor]:
    if not torch.is_grad_enabled() and plain(gy, arg):
        return backend_for(gy).scatter(gy, arg, x, w, geometry.parse(key), want_x, want_w)
    gx, gw = _Scatter.apply(gy, arg, x, w, key, want_x, want_w)  # type: ignore[no-untyped-call]
    return gx, gw


def _pulled(gy: Tensor, x: Tensor, w: Tensor, arg: Tensor, gap: Tensor, *settings: Any) -> tuple[Tensor, ...]:
    if not torch.is_grad_enabled() and plain(gy, x, w):
        return _follow_policy(gy, x, w, arg, gap, *settings)
    pulled: tuple[Tensor, ...] = _Route.apply(gy, x, w, arg, gap, *settings)  # type: ignore[no-untyped-call]
    return pulled


def maxplus(x: Tensor, w: Tensor, where: Geometry, how: Policy, ghosts: Ghosts = NO_GHOSTS) -> Tensor:
    """Max-plus operator of x (samples, ...) with weights w (out, ...), or its dual.

    Args:
        x: Input in the shape that ``where`` asks for.
        w: Weights; -inf marks missing ones.
        where: Geometry.
        how: What the backward pass does.
        ghosts: Leaves whose gradients become statistics of w.
    """
    if has_torch_function((x, w)):  # a mode that looks at operators, such as that of directional derivatives
        return handle_torch_function(maxplus, (x, w), x, w, where, how, ghosts)
    if differentiated(x, w) or (torch.is_grad_enabled() and ghosts.wanted):
        return _with_winners(x, w, where, how, ghosts)[0]
    return backend_for(x).value(x, w, where) if plain(x, w) else cast(Tensor, _value(x, w, where.key))


def maxplus_with_provenance(
    x: Tensor, w: Tensor, where: Geometry, how: Policy, ghosts: Ghosts = NO_GHOSTS
) -> tuple[Tensor, Tensor]:
    """As :func:`maxplus`, with the flat input index of each winner."""
    if has_torch_function((x, w)):
        return handle_torch_function(maxplus_with_provenance, (x, w), x, w, where, how, ghosts)
    y, arg, _ = _with_winners(x, w, where, how, ghosts)
    return y, _cells(arg, list(x.shape), list(w.shape), where.key)


def _with_winners(x: Tensor, w: Tensor, where: Geometry, how: Policy, ghosts: Ghosts) -> tuple[Tensor, Tensor, Tensor]:
    function = _PlainMaxPlus if plain(x, w) else _MaxPlus
    y, arg, gap = function.apply(x, w, *ghosts, where.key, how.key, how.winner_only)  # type: ignore[no-untyped-call]
    return y, arg, gap
