"""Linear splines on the processor.

Limit: a copy of x, forward; the sums for the values, backward. An index that depends on data needs a gather, which no
loop here becomes by itself: forward runs at about an eighth of the copy's speed. The table holds (value, step) side by
side, so that a look-up is one line of the cache. Backward recomputes the index, which costs less than to read it back,
and adds to four copies of the sums in turn, since adding to one place twice in a row has to wait. A task owns some
channels of a fixed chunk of samples: the same bits for any number of threads.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from morphlightning import backends
from morphlightning.ops.cpu.sweeps import any_above
from morphlightning.ops.cpu.workers import (
    KernelError,
    Worker,
    floats_of,
    kernel,
    next_task,
    numbers,
    slots_of,
    unsigned,
)

CHUNKS = 8
"""Chunks of samples whose sums are kept apart."""
REPLICAS = 4
CHUNK = 1024
"""Numbers whose pieces are found at a time, by vectors, before the look-ups."""
LINE = 16
"""Channels that a task takes together where each has few numbers of a sample: they share lines of the cache."""


# ------------------------------------------------------------------------------------------------ inside workers
@kernel
def _locate(x, low, inverse, knots, inner, bits, last, piece, fraction):
    """The piece of each x and, in pieces, the position inside it; NaN lies in piece 0."""
    if len(knots) == 0:
        zero = last - last
        for j in range(len(x)):
            u = (x[j] - low) * inverse
            q = u if u > zero else zero
            whole = np.floor(q if q < last else last)  # as a number: with an integer the difference would be float64
            piece[j] = np.int32(whole)
            fraction[j] = u - whole
        return
    for j in range(len(x)):
        # the number of inner knots up to x, bit by bit; of a selection the compiler would make a branch
        k, bit = np.int64(0), bits - 1
        while bit >= 0:
            k += np.int64(inner[unsigned(k + (1 << bit) - 1)] <= x[j]) << bit
            bit -= 1
        left = knots[unsigned(k)]
        piece[j] = k
        fraction[j] = (x[j] - left) / (knots[unsigned(k + 1)] - left)


@kernel
def _infinite(x, start, n, large):
    one = large / large
    return any_above(x, start, n, one, large) or any_above(x, start, n, -one, large)


@kernel
def _level_ends(x, row, table, piece, fraction):
    """An infinite x on a level end piece has that end's value: 0 * inf would be NaN."""
    for j in range(len(x)):
        if table[row + 2 * piece[j] + 1] == 0 and np.isinf(fraction[j]):
            fraction[j] = 0


@kernel
def _forward(args, dtype):
    s = slots_of(args)
    samples, channels, length, count, knot_count = s[2], s[3], s[4], s[5], s[6]
    low, inverse, last = dtype(floats_of(args)[7]), dtype(floats_of(args)[8]), dtype(count - 2)
    x, y = numbers(s[9], samples * channels * length, dtype), numbers(s[10], samples * channels * length, dtype)
    table, knots = numbers(s[11], channels * 2 * count, dtype), numbers(s[12], knot_count, dtype)
    bits, inner, large = s[14], numbers(s[13], 1 << s[14], dtype), dtype(np.finfo(dtype).max)
    piece, fraction = np.empty(CHUNK, np.int32), np.empty(CHUNK, dtype)
    together = LINE if length < LINE else 1
    blocks = (channels + together - 1) // together
    task = next_task(s)
    while task >= 0:
        n, block = task // blocks, task % blocks
        for c in range(block * together, min(block * together + together, channels)):
            row, first = c * 2 * count, (n * channels + c) * length
            for start in range(first, first + length, CHUNK):
                size = min(CHUNK, first + length - start)
                part = x[start : start + size]
                _locate(part, low, inverse, knots, inner, bits, last, piece, fraction)
                if _infinite(x, start, size, large):
                    _level_ends(part, row, table, piece, fraction)
                for j in range(size):
                    at = unsigned(row + 2 * piece[j])
                    y[unsigned(start + j)] = table[at] + table[at + unsigned(1)] * fraction[j]
        task = next_task(s)


@kernel
def _backward(args, dtype):
    s = slots_of(args)
    samples, channels, length, count, knot_count = s[2], s[3], s[4], s[5], s[6]
    low, inverse, last = dtype(floats_of(args)[7]), dtype(floats_of(args)[8]), dtype(count - 2)
    size = samples * channels * length
    gy, x, gx = numbers(s[9], size, dtype), numbers(s[10], size, dtype), numbers(s[11], size, dtype)
    table, knots = numbers(s[12], channels * 2 * count, dtype), numbers(s[13], knot_count, dtype)
    bits, inner, large = s[15], numbers(s[14], 1 << s[15], dtype), dtype(np.finfo(dtype).max)
    chunks, want = s[17], s[18]
    gv = numbers(s[16], want * chunks * channels * count, dtype)
    piece, fraction = np.empty(CHUNK, np.int32), np.empty(CHUNK, dtype)
    together = LINE if length < LINE else 1
    blocks = (channels + together - 1) // together
    sums = np.empty(together * REPLICAS * 2 * count, dtype)
    task = next_task(s)
    while task >= 0:
        chunk, block = task // blocks, task % blocks
        begin, end = block * together, min(block * together + together, channels)
        sums[:] = dtype(0)
        for n in range(chunk * samples // chunks, (chunk + 1) * samples // chunks):
            for c in range(begin, end):
                row, first = c * 2 * count, (n * channels + c) * length
                base = (c - begin) * REPLICAS * 2 * count
                for start in range(first, first + length, CHUNK):
                    many = min(CHUNK, first + length - start)
                    part = x[start : start + many]
                    _locate(part, low, inverse, knots, inner, bits, last, piece, fraction)
                    if _infinite(x, start, many, large):
                        _level_ends(part, row, table, piece, fraction)
                    for j in range(many):
                        k, g = int(piece[j]), gy[unsigned(start + j)]
                        gx[unsigned(start + j)] = g * table[unsigned(row + 2 * k + 1)]
                        at = unsigned(base + (((j + n) & (REPLICAS - 1)) * count + k) * 2)
                        sums[at] += g
                        sums[at + unsigned(1)] += g * fraction[j]
                    _by_width(gx[start : start + many], part, inverse, knots, piece)
        if want:
            for c in range(begin, end):
                to, base = (chunk * channels + c) * count, (c - begin) * REPLICAS * 2 * count
                gv[to : to + count] = dtype(0)
                for r in range(REPLICAS):
                    for k in range(count - 1):
                        at = base + (r * count + k) * 2
                        gv[to + k] += sums[at] - sums[at + 1]
                        gv[to + k + 1] += sums[at + 1]
        task = next_task(s)


@kernel
def _by_width(gx, x, inverse, knots, piece):
    """Steps become slopes; NaN stays NaN."""
    if len(knots) == 0:
        for j in range(len(gx)):
            gx[j] = gx[j] * inverse if x[j] == x[j] else x[j]
        return
    for j in range(len(gx)):
        k = unsigned(piece[j])
        gx[j] = gx[j] / (knots[k + unsigned(1)] - knots[k]) if x[j] == x[j] else x[j]


def _forward32(args):
    _forward(args, np.float32)


def _forward64(args):
    _forward(args, np.float64)


def _backward32(args):
    _backward(args, np.float32)


def _backward64(args):
    _backward(args, np.float64)


_FORWARD = {torch.float32: Worker(_forward32), torch.float64: Worker(_forward64)}
_BACKWARD = {torch.float32: Worker(_backward32), torch.float64: Worker(_backward64)}


# -------------------------------------------------------------------------------------------------- from outside
def forward(x: Tensor, values: Tensor, knots: tuple[float, float] | Tensor) -> Tensor:
    """f_c(x) for x (samples, channels, length) and values (channels, knots) of one dtype."""
    x, y = x.contiguous(), torch.empty_like(x, memory_format=torch.contiguous_format)
    table, places, inner, bits, layout = _prepared(x, values, knots)
    samples, channels, length = x.shape
    blocks = -(-channels // (LINE if length < LINE else 1))
    _FORWARD[x.dtype](samples * blocks, 16 * x.numel(), *layout, x, y, table, places, inner, bits)
    return y


def backward(
    gy: Tensor, x: Tensor, values: Tensor, knots: tuple[float, float] | Tensor, want_values: bool
) -> tuple[Tensor, Tensor]:
    """Gradients for x and, where wanted, for the values."""
    gy, x = gy.contiguous(), x.contiguous()
    table, places, inner, bits, layout = _prepared(x, values, knots)
    samples, channels, length = x.shape
    chunks = min(CHUNKS, samples)
    gx, sums = torch.empty_like(x), x.new_empty((chunks, *values.shape) if want_values else 0)
    tasks = chunks * -(-channels // (LINE if length < LINE else 1))
    pointers = (gy, x, gx, table, places, inner, bits, sums, chunks, int(want_values))
    _BACKWARD[x.dtype](tasks, 16 * x.numel(), *layout, *pointers)
    return gx, sums.sum(0) if want_values else sums


def _prepared(
    x: Tensor, values: Tensor, knots: tuple[float, float] | Tensor
) -> tuple[Tensor, Tensor, Tensor, int, tuple[int | float, ...]]:
    """The table (channels, knots, 2) of values and steps; knots and inner knots where they are free; and the sizes.

    Inner knots are followed by NaN, which no x reaches, up to a power of two.
    """
    steps = torch.nn.functional.pad(values.diff(dim=1), (0, 1))
    table = torch.stack((values, steps), -1).to(x.dtype).contiguous()
    count = values.shape[1]
    if not isinstance(knots, Tensor):
        return table, x.new_empty(0), x.new_empty(1), 0, (*x.shape, count, 0, float(knots[0]), 1.0 / knots[1])
    free, bits = knots.detach().to(x.dtype).contiguous(), (count - 2).bit_length()
    inner = x.new_full((1 << bits,), torch.nan)
    inner[: count - 2] = free[1:-1]
    return table, free, inner, bits, (*x.shape, count, count, 0.0, 0.0)


def ready(dtype: torch.dtype) -> bool:
    """Whether the kernels compile on this machine; from the first one on that does not, eager takes over."""
    try:
        _FORWARD[dtype].compile()
        _BACKWARD[dtype].compile()
    except KernelError as error:
        backends.fall_back("numba", str(error))
        return False
    return True
