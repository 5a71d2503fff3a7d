"""Linear splines, with uniform or free knots.

Limit: memory. Forward reads 4 bytes an element and writes 4, backward reads 8 and writes 4; a table of values fits the
first level of the cache. Uniform knots are found by one multiplication, free ones by a binary search without branches.

Tiles: a program works on consecutive elements of a plane. What reaches values and knots are two histograms with
weights, without atomics: a program keeps them in registers, one lane for each element of a block and 64 pieces at most,
goes through its chunk of the plane and folds the lanes once; the partial sums of chunks and planes are added in order.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls, ignore-missing-imports

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from morphlightning.ops.gpu.common import DTYPES, OPTIONS, power_of_two

BLOCK = 1024
"""Elements of a program going forward."""
CHUNK = 16384
"""Elements of a program going backward."""
PIECES = 64
"""Pieces of a program going backward."""


@triton.jit
def _piece(x, knots, first, low: tl.float64, spacing: tl.float64, last,
           STEPS: tl.constexpr, DTYPE: tl.constexpr):  # fmt: skip
    """Number of the piece of each x, the position in it (0 and 1 at its knots) and its length; NaN lies in piece 0.

    A channel's free knots begin at ``first``.
    """
    if STEPS == 0:
        length = tl.full((1,), spacing, DTYPE)
        position = (x - tl.full((1,), low, DTYPE)) / length
        number = tl.where(position > 0, tl.minimum(position, last.to(DTYPE)), 0.0)
        piece = number.to(tl.int32)
        return piece, position - piece.to(DTYPE), length
    else:
        piece = tl.zeros(x.shape, tl.int32)
        for step in tl.static_range(STEPS):
            further = piece + (1 << (STEPS - 1 - step))
            reached = (further <= last) & (tl.load(knots + first + tl.minimum(further, last)) <= x)
            piece = tl.where(reached, further, piece)
        start = tl.load(knots + first + piece)
        length = tl.load(knots + first + piece + 1) - start
        return piece, (x - start) / length, length


@triton.jit
def _finite_where_level(t, left, right):
    """An infinite x on a level end piece has that end's value: 0 * inf would be NaN."""
    infinite = (t == t) & (t - t != 0.0)
    return tl.where(infinite & (left == right), 0.0, t)


@triton.jit
def _forward(x, values, knots, y, elements, channels, count, own, low: tl.float64, spacing: tl.float64,
             SLOPE: tl.constexpr, STEPS: tl.constexpr, DTYPE: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    tiles = tl.cdiv(elements, BLOCK)
    plane = tl.program_id(0) // tiles
    channel = plane % channels
    element = tl.program_id(0) % tiles * BLOCK + tl.arange(0, BLOCK)
    at = plane.to(tl.int64) * elements + element
    a = tl.load(x + at, mask=element < elements, other=0.0).to(DTYPE)
    piece, t, length = _piece(a, knots, channel * own, low, spacing, count - 2, STEPS, DTYPE)
    table = values + channel * count + piece
    left, right = tl.load(table).to(DTYPE), tl.load(table + 1).to(DTYPE)
    if SLOPE:
        found = tl.where(a == a, (right - left) / length, a)
    else:
        found = left + (right - left) * _finite_where_level(t, left, right)
    tl.store(y + at, found, mask=element < elements)


@triton.jit
def _backward(gy, x, values, knots, gx, partial, elements, channels, count, own, chunks, low: tl.float64,
              spacing: tl.float64, STEPS: tl.constexpr, DTYPE: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr,
              PIECES: tl.constexpr):  # fmt: skip
    program = tl.program_id(0)
    first_piece = tl.program_id(1) * PIECES
    plane, chunk = program // chunks, program % chunks
    channel = plane % channels
    table = values + channel * count
    number = first_piece + tl.arange(0, PIECES)
    whole, to_right = tl.zeros((BLOCK, PIECES), DTYPE), tl.zeros((BLOCK, PIECES), DTYPE)
    last = tl.minimum(chunk * CHUNK + CHUNK, elements)
    for first in range(chunk * CHUNK, last, BLOCK):
        element = first + tl.arange(0, BLOCK)
        live = element < last
        at = plane.to(tl.int64) * elements + element
        a = tl.load(x + at, mask=live, other=0.0).to(DTYPE)
        g = tl.load(gy + at, mask=live, other=0.0).to(DTYPE)
        piece, t, length = _piece(a, knots, channel * own, low, spacing, count - 2, STEPS, DTYPE)
        left, right = tl.load(table + piece).to(DTYPE), tl.load(table + piece + 1).to(DTYPE)
        if first_piece == 0:
            tl.store(gx + at, tl.where(a == a, g * ((right - left) / length), a), mask=live)
        here = number[None, :] == piece[:, None]
        whole += tl.where(here, g[:, None], 0.0)
        to_right += tl.where(here, (g * _finite_where_level(t, left, right))[:, None], 0.0)
    row = partial + program.to(tl.int64) * (2 * count - 2) + number
    tl.store(row, tl.sum(whole, axis=0), mask=number < count - 1)
    tl.store(row + count - 1, tl.sum(to_right, axis=0), mask=number < count - 1)


Knots = tuple[float, float] | Tensor
"""The first knot and the spacing; or free knots, ascending: (knots,) or (channels, knots)."""


def value(x: Tensor, values: Tensor, knots: Knots, out: Tensor | None = None) -> Tensor:
    """f(x) = c_k + (c_{k+1} - c_k)(x - t_k)/(t_{k+1} - t_k) on piece k; outer pieces go on as lines.

    Args:
        x: Shape (before, channels, behind). NaN gives NaN.
        values: The c_k, shape (channels, knots), at least two knots.
        knots: The t_k.
        out: Contiguous; x itself, or apart from it.

    Returns:
        Shape and dtype of x.
    """
    return _evaluate(x, values, knots, out, False)


def slope(x: Tensor, values: Tensor, knots: Knots, out: Tensor | None = None) -> Tensor:
    """f'(x), from the right at knots, for arguments as in :func:`value`."""
    return _evaluate(x, values, knots, out, True)


def backward(gy: Tensor, x: Tensor, values: Tensor, knots: Knots, want_sums: bool) -> tuple[Tensor, Tensor]:
    """The gradient for x, gy times the slope; and (2, channels, pieces): sums of gy, and of gy times t.

    t is the position in the piece, from 0 to 1. The sums take no more than they cost, so they are made in any case.
    """
    gy, x, values = gy.contiguous(), x.contiguous(), values.contiguous()
    gx = torch.empty_like(x)
    (before, channels, elements), count = x.shape, values.shape[1]
    if not x.numel():
        return gx, values.new_zeros(2, channels, count - 1)
    dtype, places, steps = _search_for(x, values, knots)
    chunks = math.ceil(elements / CHUNK)
    partial = x.new_empty(before, channels, chunks, 2, count - 1, dtype=dtype)
    wide = power_of_two(count - 1, 2, PIECES)
    with torch.cuda.device_of(x):
        _backward[(before * channels * chunks, math.ceil((count - 1) / wide))](
            gy, x, values, places[0], gx, partial, elements, channels, count, places[1], chunks, *places[2:],
            STEPS=steps, DTYPE=DTYPES[dtype], BLOCK=2048 // wide, CHUNK=CHUNK, PIECES=wide, **OPTIONS,
        )  # fmt: skip
    return gx, partial.sum((0, 2)).movedim(1, 0).to(values.dtype)


def _evaluate(x: Tensor, values: Tensor, knots: Knots, out: Tensor | None, slope: bool) -> Tensor:
    x, values = x.contiguous(), values.contiguous()
    y = torch.empty_like(x) if out is None else out
    if not x.numel():
        return y
    dtype, places, steps = _search_for(x, values, knots)
    (before, channels, elements), count = x.shape, values.shape[1]
    block = power_of_two(elements, 16, BLOCK)
    with torch.cuda.device_of(x):
        _forward[(before * channels * math.ceil(elements / block),)](
            x, values, places[0], y, elements, channels, count, *places[1:],
            SLOPE=slope, STEPS=steps, DTYPE=DTYPES[dtype], BLOCK=block, **OPTIONS,
        )  # fmt: skip
    return y


def _search_for(
    x: Tensor, values: Tensor, knots: Knots
) -> tuple[torch.dtype, tuple[Tensor | None, int, float, float], int]:
    """The compute dtype; free knots in it, the distance between those of two channels, or the first and the spacing.

    And the steps of a binary search for a piece, none for uniform knots.
    """
    dtype = torch.promote_types(torch.promote_types(x.dtype, values.dtype), torch.float32)
    if not isinstance(knots, Tensor):
        return dtype, (None, 0, *knots), 0
    own = knots.shape[1] if knots.ndim == 2 else 0
    return dtype, (knots.to(dtype).contiguous(), own, 0.0, 1.0), max(1, (values.shape[1] - 2).bit_length())
