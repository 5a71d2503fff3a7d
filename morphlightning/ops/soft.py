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
    dtype = eager.compute_dtype(x, w)
    w = w.to(dtype)
    parts = [_log_sum_exp(part.to(dtype), w, beta.to(dtype)) for part in x.split(eager.rows_at_once(w))]
    return torch.cat(parts).to(x.dtype)


def _log_sum_exp(x: Tensor, w: Tensor, beta: Tensor) -> Tensor:
    return torch.logsumexp(beta * (x[:, None] + w), -1) / beta


@_forward.register_fake
def _(x: Tensor, w: Tensor, beta: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], w.shape[0])


@torch.library.custom_op("morphlightning::log_sum_exp_plus_backward", mutates_args=())
def _backward(gy: Tensor, x: Tensor, w: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    """Every candidate receives its softmax share of the message."""
    dtype = eager.compute_dtype(x, w)
    gx, gw = [], torch.zeros(w.shape, dtype=dtype, device=w.device)
    wide, beta = w.to(dtype), beta.to(dtype)
    for part, message in zip(x.split(eager.rows_at_once(w)), gy.split(eager.rows_at_once(w)), strict=True):
        scores = beta * (part.to(dtype)[:, None] + wide)
        top = scores.amax(-1, keepdim=True)
        share = (scores - top.masked_fill(top == -math.inf, 0)).softmax(-1).masked_fill(top == -math.inf, 0)
        sent = share * message.to(dtype)[..., None]
        gx.append(sent.sum(1))
        gw += sent.sum(0)
    return torch.cat(gx).to(x.dtype), gw.to(w.dtype)


@_backward.register_fake
def _(gy: Tensor, x: Tensor, w: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(w)


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
    return cast(Tensor, _LogSumExpPlus.apply(x, w, beta))
