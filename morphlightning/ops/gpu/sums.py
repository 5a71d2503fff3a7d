"""Messages added up by winner, in a fixed order: the backward pass for weights, and for the input of dense operators.

Limit: each message and its winner are read once, 8 bytes; what a one-hot sum computes beyond that costs three
instructions (compare, select, add) for each message and bin. So there are two kernels. Few bins: a program keeps a
histogram in registers, one lane for each message of a block, folded once at the end. Many bins: a lane walks along its
own messages and adds each to its own row of bins in memory, which nobody else writes; the cost does not depend on the
number of bins. Both split the messages into chunks, a number that follows from shapes alone; the partial sums of the
chunks are added in order.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls, ignore-missing-imports

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from morphlightning.ops.gpu.common import DTYPES, OPTIONS, power_of_two

NARROW = 64
"""Up to so many bins a histogram is kept in registers."""
LANES = 1 << 16
"""Lanes that fill a device: about 16 warps on each of its processors."""
PARTIAL = 1 << 25
"""Elements that partial sums may take."""


@triton.jit
def _message(messages, winners, row, number, live, rows, inner, DTYPE: tl.constexpr):
    """Message number ``number`` of a row of (outer, rows, inner), and its winner."""
    at = (number // inner).to(tl.int64) * rows * inner + row.to(tl.int64) * inner + number % inner
    winner = tl.load(winners + at, mask=live, other=-1)
    return tl.load(messages + at, mask=live, other=0.0).to(DTYPE), winner


@triton.jit
def _tally(messages, winners, total, rows, inner, each, width, span,
           BLOCK: tl.constexpr, WIDTH: tl.constexpr, DTYPE: tl.constexpr):  # fmt: skip
    lane = tl.program_id(0)
    row, chunk = lane % rows, lane // rows
    bins = tl.arange(0, WIDTH)
    sums = tl.zeros((BLOCK, WIDTH), DTYPE)
    last = tl.minimum(chunk * span + span, each)
    for first in range(chunk * span, last, BLOCK):
        number = first + tl.arange(0, BLOCK)
        sent, winner = _message(messages, winners, row, number, number < last, rows, inner, DTYPE)
        sums += tl.where(winner[:, None] == bins[None, :], sent[:, None], 0.0)
    tl.store(total + lane.to(tl.int64) * width + bins, tl.sum(sums, axis=0), mask=bins < width)


@triton.jit
def _walk(messages, winners, total, rows, inner, each, width, span, lanes,
          BLOCK: tl.constexpr, DTYPE: tl.constexpr):  # fmt: skip
    lane = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row, chunk = lane % rows, lane // rows
    first = chunk * span
    last = tl.where(lane < lanes, tl.minimum(first + span, each), 0)
    own = total + lane.to(tl.int64) * width
    sent, winner = _message(messages, winners, row, first, first < last, rows, inner, DTYPE)
    for step in range(span):
        number = first + step + 1  # fetched one ahead, as the barrier below keeps loads from moving up
        next_sent, next_winner = _message(messages, winners, row, number, number < last, rows, inner, DTYPE)
        so_far = tl.load(own + winner, mask=winner >= 0, other=0.0)
        tl.store(own + winner, so_far + sent, mask=winner >= 0)
        tl.debug_barrier()  # the next step may read what this one wrote, through another thread
        sent, winner = next_sent, next_winner


def by_winner(messages: Tensor, winners: Tensor, width: int) -> Tensor:
    """total[r, t] = sum of the messages of row r whose winner is t, shape (rows, width).

    Args:
        messages: Shape (outer, rows, inner).
        winners: Same shape, int32; negative ones are left out.
        width: Number of bins.
    """
    messages, winners = messages.contiguous(), winners.contiguous()
    outer, rows, inner = messages.shape
    each = outer * inner
    dtype = torch.promote_types(messages.dtype, torch.float32)
    narrow = width <= NARROW
    wanted = LANES // 16 if narrow else min(LANES, PARTIAL // width)
    least = 1024 if narrow else 64
    span = max(least, math.ceil(each * rows / max(wanted, rows)))
    chunks = math.ceil(each / span)
    total = messages.new_zeros(chunks, rows, width, dtype=dtype)
    shape = (messages, winners, total, rows, inner, each, width, span)
    if narrow:
        bins = power_of_two(width, 2, NARROW)
        block = power_of_two(each, 16, 2048 // bins)
        _tally[(chunks * rows,)](*shape, BLOCK=block, WIDTH=bins, DTYPE=DTYPES[dtype], **OPTIONS)
    else:
        lanes = chunks * rows
        _walk[(math.ceil(lanes / 32),)](*shape, lanes, BLOCK=32, DTYPE=DTYPES[dtype], num_warps=1, **OPTIONS)
    return total.sum(0).to(messages.dtype)


def to_weights(gy: Tensor, arg: Tensor, w: torch.Size) -> Tensor:
    """Sum of the messages (samples, units) that each weight won, in the shape of the weights."""
    shape = (len(gy), w[0], gy[0].numel() // w[0])
    return by_winner(gy.reshape(shape), arg.reshape(shape), math.prod(w[1:])).view(w)
