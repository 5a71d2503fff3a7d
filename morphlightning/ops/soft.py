"""Log-sum-exp in place of the maximum, chunked: forward and backward hold a bounded number of scores."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor

from morphlightning.ops import eager
from morphlightning.ops.vmap import vmap_by_loop


@torch.library.custom_op("morphlightning::log_sum_exp_plus", mutates_args=())
def _forward(x: Tensor, w: Tensor, beta: Tensor) -> Tensor:
    w = w.to(eager.compute_dtype(x, w))
    parts = [_scores(part, w, beta).logsumexp(-1) / beta for part in x.split(eager.rows_at_once(w))]
    return torch.cat(parts).to(x.dtype)


def _scores(x: Tensor, w: Tensor, beta: Tensor) -> Tensor:
    """Compute beta (x[b, j] + w[i, j]), shape (samples, out, in); -inf for missing weights, also where x is +inf."""
    return (beta.to(w.dtype) * (x.to(w.dtype)[:, None] + w)).masked_fill(w == -math.inf, -math.inf)


@_forward.register_fake
def _(x: Tensor, w: Tensor, beta: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], w.shape[0])


@torch.library.custom_op("morphlightning::log_sum_exp_plus_backward", mutates_args=())
def _backward(gy: Tensor, x: Tensor, w: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    """Every candidate receives its softmax share of the message; an infinite output sends nothing."""
    wide = w.to(eager.compute_dtype(x, w))
    gx, gw, at_once = [], torch.zeros_like(wide, memory_format=torch.contiguous_format), eager.rows_at_once(w)
    for part, message in zip(x.split(at_once), gy.split(at_once), strict=True):
        scores = _scores(part, wide, beta)
        infinite = scores.amax(-1, keepdim=True).isinf()
        sent = scores.masked_fill(infinite, 0).softmax(-1).masked_fill(infinite, 0) * message.to(wide.dtype)[..., None]
        gx.append(sent.sum(1))
        gw += sent.sum(0)
    return torch.cat(gx).to(x.dtype), gw.to(w.dtype)


@_backward.register_fake
def _(gy: Tensor, x: Tensor, w: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), w.new_empty(w.shape)


_forward.register_vmap(vmap_by_loop(_forward))
_backward.register_vmap(vmap_by_loop(_backward))


class _LogSumExpPlus(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, w: Tensor, beta: Tensor) -> Any:
        return _forward(x, w, beta)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, gy: Tensor) -> Any:
        return *_backward(gy, *ctx.saved_tensors), None


def log_sum_exp_plus(x: Tensor, w: Tensor, beta: Tensor) -> Tensor:
    """log(sum_j exp(beta (x[b, j] + w[i, j]))) / beta, shape (samples, out)."""
    return cast(Tensor, _LogSumExpPlus.apply(x, w, beta))  # type: ignore[no-untyped-call]
