"""Linear splines, with uniform or free knots.

Limit: memory. Forward reads 4 bytes an element and writes 4, backward reads 8 and writes 4; a table of values fits the
first level of the cache. Uniform knots are found by one multiplication, free ones by a binary search without branches.

Tiles: a program works on consecutive elements of a plane. The gradient of the values is a histogram with weights,
without atomics: a program keeps it in registers, one lane for each element of a block and 64 knots at most, goes
through its chunk of the plane and folds the lanes once; the partial sums of chunks and planes are added in order.
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
KNOTS = 64
"""Knots of a program going backward."""


@triton.jit
def _piece(x, knots, low: tl.float64, spacing: tl.float64, last,
           STEPS: tl.constexpr, DTYPE: tl.constexpr):  # fmt: skip
    """Number of the piece of each x, the position in it (0 and 1 at its knots) and its length; NaN lies in piece 0."""
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
            reached = (further <= last) & (tl.load(knots + tl.minimum(further, last)) <= x)
            piece = tl.where(reached, further, piece)
        start = tl.load(knots + piece)
        length = tl.load(knots + piece + 1) - start
        return piece, (x - start) / length, length


@triton.jit
def _finite_where_level(t, left, right):
    """An infinite x on a level end piece has that end's value: 0 * inf would be NaN."""
    infinite = (t == t) & (t - t != 0.0)
    return tl.where(infinite & (left == right), 0.0, t)


@triton.jit
def _forward(x, values, knots, y, elements, channels, count, low: tl.float64, spacing: tl.float64,
             STEPS: tl.constexpr, DTYPE: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    tiles = tl.cdiv(elements, BLOCK)
    plane = tl.program_id(0) // tiles
    element = tl.program_id(0) % tiles * BLOCK + tl.arange(0, BLOCK)
    at = plane.to(tl.int64) * elements + element
    a = tl.load(x + at, mask=element < elements, other=0.0).to(DTYPE)
    piece, t, _ = _piece(a, knots, low, spacing, count - 2, STEPS, DTYPE)
    table = values + plane % channels * count + piece
    left, right = tl.load(table).to(DTYPE), tl.load(table + 1).to(DTYPE)
    tl.store(y + at, left + (right - left) * _finite_where_level(t, left, right), mask=element < elements)


@triton.jit
def _backward(gy, x, values, knots, gx, partial, elements, channels, count, chunks, low: tl.float64,
              spacing: tl.float64, STEPS: tl.constexpr, DTYPE: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr,
              KNOTS: tl.constexpr):  # fmt: skip
    program = tl.program_id(0)
    first_knot = tl.program_id(1) * KNOTS
    plane, chunk = program // chunks, program % chunks
    table = values + plane % channels * count
    knot = first_knot + tl.arange(0, KNOTS)
    sums = tl.zeros((BLOCK, KNOTS), DTYPE)
    last = tl.minimum(chunk * CHUNK + CHUNK, elements)
    for first in range(chunk * CHUNK, last, BLOCK):
        element = first + tl.arange(0, BLOCK)
        live = element < last
        at = plane.to(tl.int64) * elements + element
        a = tl.load(x + at, mask=live, other=0.0).to(DTYPE)
        g = tl.load(gy + at, mask=live, other=0.0).to(DTYPE)
        piece, t, length = _piece(a, knots, low, spacing, count - 2, STEPS, DTYPE)
        left, right = tl.load(table + piece).to(DTYPE), tl.load(table + piece + 1).to(DTYPE)
        if first_knot == 0:
            tl.store(gx + at, tl.where(a == a, g * ((right - left) / length), a), mask=live)
        to_right = g * _finite_where_level(t, left, right)
        sums += tl.where(knot[None, :] == piece[:, None], (g - to_right)[:, None], 0.0)
        sums += tl.where(knot[None, :] == piece[:, None] + 1, to_right[:, None], 0.0)
    tl.store(partial + program.to(tl.int64) * count + knot, tl.sum(sums, axis=0), mask=knot < count)


def forward(x: Tensor, values: Tensor, low: float, spacing: float) -> Tensor:
    """f(x) = c_k + (c_{k+1} - c_k)(x - t_k)/h on piece k, with knots t_k = low + k h; outer pieces go on as lines.

    Args:
        x: Shape (planes, elements); plane p uses channel p % channels. NaN gives NaN.
        values: The c_k, shape (channels, knots), at least two knots.
        low: The first knot.
        spacing: The distance h between knots.

    Returns:
        Shape and dtype of x.
    """
    return _evaluate(x, values, None, low, spacing)


def forward_at(x: Tensor, values: Tensor, knots: Tensor) -> Tensor:
    """As :func:`forward`, with free ``knots`` (ascending, shape (knots,))."""
    return _evaluate(x, values, knots, 0.0, 1.0)


def backward(gy: Tensor, x: Tensor, values: Tensor, low: float, spacing: float) -> tuple[Tensor, Tensor]:
    """Gradients for x (its dtype) and for the values (theirs)."""
    return _differentiate(gy, x, values, None, low, spacing)


def backward_at(gy: Tensor, x: Tensor, values: Tensor, knots: Tensor) -> tuple[Tensor, Tensor]:
    """As :func:`backward`, with free ``knots``."""
    return _differentiate(gy, x, values, knots, 0.0, 1.0)


def _evaluate(x: Tensor, values: Tensor, knots: Tensor | None, low: float, spacing: float) -> Tensor:
    x, values = x.contiguous(), values.contiguous()
    y = torch.empty_like(x)
    if not x.numel():
        return y
    dtype, knots, steps = _search_for(x, values, knots)
    (planes, elements), (channels, count) = x.shape, values.shape
    block = power_of_two(elements, 16, BLOCK)
    with torch.cuda.device_of(x):
        _forward[(planes * math.ceil(elements / block),)](
            x, values, knots, y, elements, channels, count, low, spacing,
            STEPS=steps, DTYPE=DTYPES[dtype], BLOCK=block, **OPTIONS,
        )  # fmt: skip
    return y


def _differentiate(
    gy: Tensor, x: Tensor, values: Tensor, knots: Tensor | None, low: float, spacing: float
) -> tuple[Tensor, Tensor]:
    gy, x, values = gy.contiguous(), x.contiguous(), values.contiguous()
    gx = torch.empty_like(x)
    if not x.numel():
        return gx, torch.zeros_like(values)
    dtype, knots, steps = _search_for(x, values, knots)
    (planes, elements), (channels, count) = x.shape, values.shape
    chunks = math.ceil(elements / CHUNK)
    partial = x.new_empty(planes // channels, channels, chunks, count, dtype=dtype)
    wide = power_of_two(count, 2, KNOTS)
    with torch.cuda.device_of(x):
        _backward[(planes * chunks, math.ceil(count / wide))](
            gy, x, values, knots, gx, partial, elements, channels, count, chunks, low, spacing,
            STEPS=steps, DTYPE=DTYPES[dtype], BLOCK=2048 // wide, CHUNK=CHUNK, KNOTS=wide, **OPTIONS,
        )  # fmt: skip
    return gx, partial.sum((0, 2)).to(values.dtype)


def _search_for(x: Tensor, values: Tensor, knots: Tensor | None) -> tuple[torch.dtype, Tensor | None, int]:
    """The compute dtype, free knots in it, and the steps of a binary search for a piece (none for uniform knots)."""
    dtype = torch.promote_types(torch.promote_types(x.dtype, values.dtype), torch.float32)
    if knots is None:
        return dtype, None, 0
    return dtype, knots.to(dtype).contiguous(), max(1, (values.shape[1] - 2).bit_length())
