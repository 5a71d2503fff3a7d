"""One door to every backend: custom operators, their fake and vmap rules, and the autograd function over them.

A backend computes the maxima (``value``), the maxima with winners and gaps (``indices``), the pull back to the winners
(``scatter``) and how often each weight won (``touches``). Everything else is written once, here.
"""

from __future__ import annotations

from typing import Any, Protocol, cast

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from morphlightning.errors import NotSupportedError
from morphlightning.ops import eager, geometry, policy
from morphlightning.ops.geometry import Geometry
from morphlightning.ops.policy import Policy
from morphlightning.ops.view import OperatorView
from morphlightning.ops.vmap import vmap_by_loop


class Backend(Protocol):
    """What a backend must offer; ``eager`` is the reference, equal to it bit for bit in values and indices."""

    def value(self, x: Tensor, w: Tensor, geometry: Geometry) -> Tensor:
        """Maxima alone."""
        ...

    def indices(self, x: Tensor, w: Tensor, geometry: Geometry, gap: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Maxima, winners and, on request, gaps to the runner-up."""
        ...

    def scatter(
        self, gy: Tensor, arg: Tensor, x: torch.Size, w: torch.Size, geometry: Geometry
    ) -> tuple[Tensor, Tensor]:
        """Messages to winners."""
        ...

    def touches(self, gy: Tensor, arg: Tensor, w: torch.Size, geometry: Geometry) -> Tensor:
        """Number of messages that each weight won."""
        ...


def available() -> dict[str, str]:
    """Backends by name: ``"available"``, or the reason why one is not."""
    return {"eager": "available"}


def backend_for(x: Tensor) -> Backend:
    """The backend that computes for tensors like x."""
    return eager


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
    gy: Tensor, arg: Tensor, x_shape: list[int], w_shape: list[int], geometry_key: str
) -> tuple[Tensor, Tensor]:
    x, w = torch.Size(x_shape), torch.Size(w_shape)
    return backend_for(gy).scatter(gy, arg, x, w, geometry.parse(geometry_key))


@_scatter.register_fake
def _(gy: Tensor, arg: Tensor, x_shape: list[int], w_shape: list[int], geometry_key: str) -> tuple[Tensor, Tensor]:
    return gy.new_empty(x_shape), gy.new_empty(w_shape)


@torch.library.custom_op("morphlightning::maxplus_touches", mutates_args=())
def _touches(gy: Tensor, arg: Tensor, w_shape: list[int], geometry_key: str) -> Tensor:
    return backend_for(gy).touches(gy, arg, torch.Size(w_shape), geometry.parse(geometry_key))


@_touches.register_fake
def _(gy: Tensor, arg: Tensor, w_shape: list[int], geometry_key: str) -> Tensor:
    return gy.new_empty(w_shape)


@torch.library.custom_op("morphlightning::maxplus_gather", mutates_args=())
def _gather(gx: Tensor, gw: Tensor, arg: Tensor, geometry_key: str) -> Tensor:
    return eager.gather(gx, gw, arg, geometry.parse(geometry_key))


@_gather.register_fake
def _(gx: Tensor, gw: Tensor, arg: Tensor, geometry_key: str) -> Tensor:
    return gx.new_empty(arg.shape)


@torch.library.custom_op("morphlightning::maxplus_route", mutates_args=())
def _route(
    gy: Tensor, x: Tensor, w: Tensor, arg: Tensor, gap: Tensor, geometry_key: str, policy_key: str, count: bool
) -> tuple[Tensor, Tensor, Tensor]:
    view = OperatorView(x, w, arg, gap, geometry.parse(geometry_key))
    gx, gw, touched = policy.parse(policy_key).backward(view, gy.flatten(1), count)
    return gx.view(x.shape), gw.view(w.shape), gw.new_zeros(w.shape) if touched is None else touched.view(w.shape)


@_route.register_fake
def _(
    gy: Tensor, x: Tensor, w: Tensor, arg: Tensor, gap: Tensor, geometry_key: str, policy_key: str, count: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return gy.new_empty(x.shape), gy.new_empty(w.shape), gy.new_empty(w.shape)


@torch.library.custom_op("morphlightning::maxplus_cells", mutates_args=())
def _cells(arg: Tensor, x_shape: list[int], w_shape: list[int], geometry_key: str) -> Tensor:
    unit = torch.arange(arg[:1].numel(), device=arg.device)
    x, w = torch.Size(x_shape), torch.Size(w_shape)
    return geometry.parse(geometry_key).cell(unit, arg.flatten(1).clamp_min(0), x, w).view(arg.shape)


@_cells.register_fake
def _(arg: Tensor, x_shape: list[int], w_shape: list[int], geometry_key: str) -> Tensor:
    return arg.new_empty(arg.shape, dtype=torch.int64)


for _op in (_value, _indices, _scatter, _touches, _gather, _route, _cells):
    _op.register_vmap(vmap_by_loop(_op))


# --------------------------------------------------------------------------------------------------- autograd
class _Scatter(torch.autograd.Function):
    """Messages to winners: linear in the message, so that ``first`` can be differentiated again."""

    generate_vmap_rule = True

    @staticmethod
    def forward(gy: Tensor, arg: Tensor, x: torch.Size, w: torch.Size, key: str) -> Any:
        return _scatter(gy, arg, list(x), list(w), key)

    @staticmethod
    def setup_context(ctx: FunctionCtx, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(inputs[1])
        ctx.key = inputs[4]  # type: ignore[attr-defined]

    @staticmethod
    def backward(ctx: Any, gx: Tensor, gw: Tensor) -> tuple[Tensor | None, ...]:
        (arg,) = ctx.saved_tensors
        return _gather(gx, gw, arg, ctx.key), None, None, None, None


class _Route(torch.autograd.Function):
    """Pseudo-gradients of a policy; they are not the derivative of anything, so they end here."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        gy: Tensor, x: Tensor, w: Tensor, arg: Tensor, gap: Tensor, key: str, policy_key: str, count: bool
    ) -> Any:
        return _route(gy, x, w, arg, gap, key, policy_key, count)

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
    """y and the winners; keeps winners alone where the policy needs no more, else x, w and gaps as well."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, w: Tensor, ghost: Tensor | None, key: str, policy_key: str, winner_only: bool) -> Any:
        return _indices(x, w, key, not winner_only)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        x, w, ghost, ctx.key, ctx.policy_key, ctx.winner_only = inputs
        _, arg, gap = output
        ctx.mark_non_differentiable(arg, gap)
        ctx.shapes, ctx.dtypes = (x.shape, w.shape), (x.dtype, w.dtype, eager.compute_dtype(x, w))
        ctx.count, ctx.ghost_dtype = ghost is not None, None if ghost is None else ghost.dtype
        ctx.save_for_backward(arg, *(() if ctx.winner_only else (x, w, gap)))

    @staticmethod
    def backward(ctx: Any, gy: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        arg, *rest = ctx.saved_tensors
        x_dtype, w_dtype, dtype = ctx.dtypes
        gy = gy.to(dtype)
        if ctx.winner_only:
            gx, gw = _Scatter.apply(gy, arg, *ctx.shapes, ctx.key)  # type: ignore[no-untyped-call]
            touched = _touches(gy, arg, list(ctx.shapes[1]), ctx.key) if ctx.count else gw
        else:
            x, w, gap = rest
            gx, gw, touched = _Route.apply(gy, x, w, arg, gap, ctx.key, ctx.policy_key, ctx.count)  # type: ignore[no-untyped-call]
        return gx.to(x_dtype), gw.to(w_dtype), touched.to(ctx.ghost_dtype) if ctx.count else None, None, None, None


def maxplus(x: Tensor, w: Tensor, where: Geometry, how: Policy, ghost: Tensor | None = None) -> Tensor:
    """Max-plus operator of x (samples, ...) with weights w (out, ...).

    Args:
        x: Input in the shape that ``where`` asks for.
        w: Weights; -inf marks missing ones.
        where: Geometry.
        how: What the backward pass does.
        ghost: A leaf of w's shape whose gradient becomes the number of rows that touched each weight.
    """
    if not torch.is_grad_enabled():
        return cast(Tensor, _value(x, w, where.key()))
    return cast(Tensor, _MaxPlus.apply(x, w, ghost, where.key(), how.key, how.winner_only)[0])  # type: ignore[no-untyped-call]


def maxplus_with_provenance(
    x: Tensor, w: Tensor, where: Geometry, how: Policy, ghost: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """As :func:`maxplus`, with the flat input index of each winner."""
    y, arg, _ = _MaxPlus.apply(x, w, ghost, where.key(), how.key, how.winner_only)  # type: ignore[no-untyped-call]
    return y, _cells(arg, list(x.shape), list(w.shape), where.key())
