"""Log-sum-exp in place of the maximum: custom operators, their fake and vmap rules, and the autograd function."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from morphlightning.errors import NotSupportedError
from morphlightning.ops import eager, geometry
from morphlightning.ops.geometry import DENSE, Geometry
from morphlightning.ops.plain import differentiated, plain
from morphlightning.ops.soft import ladder
from morphlightning.ops.soft.product import Precision, Product
from morphlightning.ops.vmap import vmap_by_loop


@torch.library.custom_op("morphlightning::log_sum_exp_plus", mutates_args=())
def _forward(
    x: Tensor, w: Tensor, beta: Tensor, geometry_key: str = DENSE.key, precision: str = "full"
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return ladder.value(x, w, beta, geometry.parse(geometry_key), cast(Precision, precision))


@_forward.register_fake
def _(
    x: Tensor, w: Tensor, beta: Tensor, geometry_key: str = DENSE.key, precision: str = "full"
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    shape, dtype = geometry.parse(geometry_key).output_shape(x.shape, w.shape), eager.compute_dtype(x, w)
    factors = torch.bfloat16 if precision == "bfloat16" else dtype
    ex, ew = x.new_empty(x.shape, dtype=factors), w.new_empty(w.shape, dtype=factors)
    return x.new_empty(shape), ex, ew, x.new_empty(shape, dtype=dtype), x.new_empty(x.shape[0], dtype=torch.uint8)


@torch.library.custom_op("morphlightning::log_sum_exp_plus_backward", mutates_args=())
def _backward(
    gy: Tensor,
    x: Tensor,
    w: Tensor,
    beta: Tensor,
    ex: Tensor,
    ew: Tensor,
    total: Tensor,
    rung: Tensor,
    geometry_key: str,
    want_x: bool,
    want_w: bool,
) -> tuple[Tensor, Tensor]:
    product = Product(ex, ew, total, geometry.parse(geometry_key))
    return ladder.gradient(gy, x, w, beta, product, rung, want_x, want_w)


@_backward.register_fake
def _(gy: Tensor, x: Tensor, w: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    want_x, want_w = rest[-2:]
    return x.new_empty(x.shape if want_x else (0,)), w.new_empty(w.shape if want_w else (0,))


@torch.library.custom_op("morphlightning::log_sum_exp_plus_second", mutates_args=())
def _second(
    ux: Tensor,
    uw: Tensor,
    gy: Tensor,
    x: Tensor,
    w: Tensor,
    beta: Tensor,
    ex: Tensor,
    ew: Tensor,
    total: Tensor,
    rung: Tensor,
    geometry_key: str,
) -> tuple[Tensor, Tensor, Tensor]:
    return ladder.second(ux, uw, gy, x, w, beta, Product(ex, ew, total, geometry.parse(geometry_key)), rung)


@_second.register_fake
def _(ux: Tensor, uw: Tensor, gy: Tensor, x: Tensor, w: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    return gy.new_empty(gy.shape), x.new_empty(x.shape), w.new_empty(w.shape)


for _op in (_forward, _backward, _second):
    _op.register_vmap(vmap_by_loop(_op))


class _LogSumExpPlus(torch.autograd.Function):
    """y, and what the product of the forward pass leaves to the backward pass."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, w: Tensor, beta: Tensor, key: str, precision: Precision) -> Any:
        return _forward(x, w, beta, key, precision)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, w, beta, ctx.key, _ = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, w, beta, *output[1:])

    @staticmethod
    def backward(ctx: Any, gy: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        if gy is None:
            return None, None, None, None, None
        want_x, want_w, *_ = ctx.needs_input_grad
        gx, gw = _gradient(gy, *ctx.saved_tensors, ctx.key, want_x, want_w)
        return gx if want_x else None, gw if want_w else None, None, None, None


class _PlainLogSumExpPlus(torch.autograd.Function):
    """The same where nothing but autograd looks on.

    For the other form torch inspects a signature at every call, which takes longer than a small layer.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, beta: Tensor, key: str, precision: Precision) -> Any:
        found = ladder.value(x, w, beta, geometry.parse(key), precision)
        _LogSumExpPlus.setup_context(ctx, (x, w, beta, key, precision), found)
        return found

    backward = staticmethod(_LogSumExpPlus.backward)


def _gradient(*args: Any) -> tuple[Tensor, Tensor]:
    gy, x, w, beta, ex, ew, total, rung, key, want_x, want_w = args
    if not torch.is_grad_enabled() and plain(gy, x, w):
        return ladder.gradient(gy, x, w, beta, Product(ex, ew, total, geometry.parse(key)), rung, want_x, want_w)
    gx, gw = _Gradient.apply(*args)  # type: ignore[no-untyped-call]
    return gx, gw


class _Gradient(torch.autograd.Function):
    """The gradient, which has a derivative of its own."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        gy: Tensor,
        x: Tensor,
        w: Tensor,
        beta: Tensor,
        ex: Tensor,
        ew: Tensor,
        total: Tensor,
        rung: Tensor,
        key: str,
        want_x: bool,
        want_w: bool,
    ) -> Any:
        return _backward(gy, x, w, beta, ex, ew, total, rung, key, want_x, want_w)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        *tensors, ctx.key, ctx.want_x, ctx.want_w = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, ux: Tensor, uw: Tensor) -> tuple[Tensor | None, ...]:
        _, x, w, *_ = ctx.saved_tensors
        ux, uw = ux if ctx.want_x else torch.zeros_like(x), uw if ctx.want_w else torch.zeros_like(w)
        of_gy, of_x, of_w = _Second.apply(ux, uw, *ctx.saved_tensors, ctx.key)  # type: ignore[no-untyped-call]
        return of_gy, of_x, of_w, *(None,) * 8


class _Second(torch.autograd.Function):
    """The derivative of the gradient; here it ends."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        ux: Tensor,
        uw: Tensor,
        gy: Tensor,
        x: Tensor,
        w: Tensor,
        beta: Tensor,
        ex: Tensor,
        ew: Tensor,
        total: Tensor,
        rung: Tensor,
        key: str,
    ) -> Any:
        return _second(ux, uw, gy, x, w, beta, ex, ew, total, rung, key)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise NotSupportedError("third derivative of a soft operator: two are provided; compose log-sum-exp in torch")


def log_sum_exp_plus(
    x: Tensor, w: Tensor, beta: Tensor, where: Geometry = DENSE, precision: Precision = "full"
) -> Tensor:
    """log(sum_j exp(beta s_j)) / beta over the candidates s of each output, in the dtype of x.

    Args:
        x: Input in the shape that ``where`` asks for.
        w: Weights; -inf marks missing ones.
        beta: Inverse temperature, without axes.
        where: Geometry: dense of one group, or a window inside the image; not a dual one.
        precision: ``"bfloat16"`` for factors rounded to it.
    """
    if has_torch_function((x, w)):
        return handle_torch_function(log_sum_exp_plus, (x, w), x, w, beta, where, precision)
    if not differentiated(x, w):
        if plain(x, w):
            return ladder.value(x, w, beta, where, precision)[0]
        return cast(Tensor, _forward(x, w, beta, where.key, precision)[0])
    function = _PlainLogSumExpPlus if plain(x, w) else _LogSumExpPlus
    return cast(Tensor, function.apply(x, w, beta, where.key, precision)[0])  # type: ignore[no-untyped-call]
