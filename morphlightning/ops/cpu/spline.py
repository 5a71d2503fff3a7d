"""Linear splines on the processor.

Limit: a copy of x, forward; the sums for the values, backward. Numbers whose spline is the same lie side by side, or
are laid so by transposing tiles that stay in the cache; then tables that fit are looked up in registers, larger ones
and float64 number by number. Backward finds pieces again, which costs less than to read them back, and adds to several
copies of the sums in turn. A task owns some channels of a fixed chunk of samples: the same bits for any number of
threads.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from morphlightning import backends
from morphlightning.ops.cpu.lookup import (
    AVAILABLE,
    ENTRIES,
    INNER,
    KNOT,
    LEFT,
    REPLICAS,
    RISE,
    SLOPE,
    STEP,
    VALUE,
    WIDTH,
    add_pair,
    look_up_row,
    pull_row,
    variant_of,
)
from morphlightning.ops.cpu.simd import VECTOR_BYTES, transpose
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

SHARE = 32768
"""Numbers of a task."""
CHUNK = 1024
"""Numbers that are taken at a time, so that what is known of them stays in the first-level cache."""
SHORT = 16
"""Neighbours with the same spline, below which tiles are transposed."""
COLUMNS = 256
"""Columns of a tile, about; fewer where a task keeps more than SUMS sums for them."""
TILE = 8192
"""Numbers of a tile, about."""
SUMS = 2048


# ------------------------------------------------------------------------------------------------ inside workers
@kernel
def _tables(args, dtype):
    """Fill the tables of one spline a task."""
    s = slots_of(args)
    channels, count, own, entries, free = s[3], s[5], s[6], s[7], s[8] > 0
    inverse, size = dtype(floats_of(args)[11]), s[12] * entries
    table = numbers(s[13], channels * size, dtype)
    values = numbers(s[14], channels * count, dtype)
    knots = numbers(s[15], (own * (channels - 1) + count) if free else 0, dtype)
    c = next_task(s)
    while c >= 0:
        row, first, place = c * size, c * count, c * own
        table[row : row + size] = dtype(0)
        if free:
            table[row + INNER * entries : row + size] = dtype(np.nan)
        for k in range(count - 1):
            step = values[first + k + 1] - values[first + k]
            table[row + LEFT * entries + k], table[row + STEP * entries + k] = values[first + k], step
            if free:
                width = knots[place + k + 1] - knots[place + k]
                table[row + SLOPE * entries + k] = step / width
                table[row + KNOT * entries + k], table[row + WIDTH * entries + k] = knots[place + k], width
                if k > 0:
                    table[row + INNER * entries + k - 1] = knots[place + k]
            else:
                table[row + SLOPE * entries + k] = step * inverse
        c = next_task(s)


@kernel
def _locate(x, ix, n, table, it, form, piece, fraction):
    """The piece of each number and the position inside it; NaN lies in piece 0."""
    _, entries, bits, low, inverse, last = form
    if bits == 0:
        zero = last - last
        for j in range(n):
            u = (x[unsigned(ix + j)] - low) * inverse
            q = u if u > zero else zero
            whole = np.floor(q if q < last else last)  # as a number: with an integer the difference would be float64
            piece[j] = np.int32(whole)
            fraction[j] = u - whole
        return
    inner, knot, width = it + INNER * entries, it + KNOT * entries, it + WIDTH * entries
    for j in range(n):
        # the number of inner knots up to x, bit by bit; of a selection the compiler would make a branch
        k, bit, number = np.int64(0), bits - 1, x[unsigned(ix + j)]
        while bit >= 0:
            k += np.int64(table[unsigned(inner + k + (1 << bit) - 1)] <= number) << bit
            bit -= 1
        piece[j] = k
        fraction[j] = (number - table[unsigned(knot + k)]) / table[unsigned(width + k)]


@kernel
def _evaluate(x, ix, y, iy, n, table, it, form, what, piece, fraction):
    """Write to y the values, or the slopes, at n neighbours with one spline, at most CHUNK."""
    variant, entries, _, low, inverse, last = form
    if variant >= 0 and n >= SHORT:
        look_up_row(x, ix, y, iy, n, table, it, variant, low, inverse, last)
        return
    _locate(x, ix, n, table, it, form, piece, fraction)
    if what == RISE:
        for j in range(n):
            number, at = x[unsigned(ix + j)], unsigned(it + SLOPE * entries + piece[j])
            y[unsigned(iy + j)] = table[at] if number == number else number
        return
    for j in range(n):
        at, t = it + piece[j], fraction[j]
        step = table[unsigned(at + STEP * entries)]
        # an infinite number on a level piece: 0 * inf would be NaN
        rise = step if step == 0 and np.isinf(t) else step * t
        y[unsigned(iy + j)] = table[unsigned(at + LEFT * entries)] + rise


@kernel
def _pull(x, ix, g, ig, gx, igx, n, table, it, form, piece, fraction, pairs):
    """Write g times the slope to gx, and for n neighbours with one spline which pairs of sums get which addends."""
    variant, entries, _, low, inverse, last = form
    if variant >= 0 and n >= SHORT:
        pull_row(x, ix, g, ig, gx, igx, piece, pairs, n, table, it, variant, low, inverse, last)
        return
    _locate(x, ix, n, table, it, form, piece, fraction)
    for j in range(n):
        number, pull, t, at = x[unsigned(ix + j)], g[unsigned(ig + j)], fraction[j], it + piece[j]
        slope = table[unsigned(at + SLOPE * entries)]
        gx[unsigned(igx + j)] = pull * slope if number == number else pull * number
        level = table[unsigned(at + STEP * entries)] == 0 and np.isinf(t)
        pairs[unsigned(2 * j)], pairs[unsigned(2 * j + 1)] = pull, pull * (0 if level else t)
        piece[j] += (j % REPLICAS) * entries


@kernel
def _turn(x, ix, ldx, y, iy, ldy, rows, columns):
    """Write the transpose of a matrix; the last blocks may overlap those before them."""
    block = VECTOR_BYTES // x.itemsize
    if rows >= block and columns >= block:
        for p in range(0, rows, block):
            i = min(p, rows - block)
            for q in range(0, columns, block):
                j = min(q, columns - block)
                transpose(x, ix + i * ldx + j, ldx, y, iy + j * ldy + i, ldy)
        return
    for i in range(rows):
        for j in range(columns):
            y[unsigned(iy + j * ldy + i)] = x[unsigned(ix + i * ldx + j)]


@kernel
def _form(s, f, dtype):
    return s[9], s[7], s[8], dtype(f[10]), dtype(f[11]), dtype(s[5] - 2)


@kernel
def _forward(args, dtype):
    s = slots_of(args)
    before, channels, length, what = s[2], s[3], s[4], s[16]
    form, size, span = _form(s, floats_of(args), dtype), before * channels * length, s[12] * s[7]
    table, x, y = numbers(s[13], channels * span, dtype), numbers(s[14], size, dtype), numbers(s[15], size, dtype)
    piece, fraction = np.empty(CHUNK, np.int32), np.empty(CHUNK, dtype)
    task = next_task(s)
    if length >= SHORT:
        while task >= 0:
            at, end = task * SHARE, min(size, task * SHARE + SHARE)
            while at < end:
                n = min(CHUNK, length - at % length, end - at)
                _evaluate(x, at, y, at, n, table, at // length % channels * span, form, what, piece, fraction)
                at += n
            task = next_task(s)
        return
    blocks, pitch = s[17], s[18]
    tile = np.zeros((channels // blocks + 1) * length * pitch, dtype)
    while task >= 0:
        n, c = task // blocks * pitch, task % blocks * channels // blocks
        many, columns = min(pitch, before - n), ((task % blocks + 1) * channels // blocks - c) * length
        first = (n * channels + c) * length
        _turn(x, first, channels * length, tile, 0, pitch, many, columns)
        for m in range(columns):
            row = (c + m // length) * span
            _evaluate(tile, m * pitch, tile, m * pitch, pitch, table, row, form, what, piece, fraction)
        _turn(tile, 0, pitch, y, first, channels * length, columns, many)
        task = next_task(s)


@kernel
def _add(sums, base, pairs, piece, n):
    for j in range(n):
        add_pair(sums, base + piece[j], pairs, j)


@kernel
def _backward(args, dtype):
    s = slots_of(args)
    before, channels, length, count, entries = s[2], s[3], s[4], s[5], s[7]
    form, size, span = _form(s, floats_of(args), dtype), before * channels * length, s[12] * s[7]
    table, x, g = numbers(s[13], channels * span, dtype), numbers(s[14], size, dtype), numbers(s[15], size, dtype)
    gx, want, chunks, blocks, pitch = numbers(s[16], size, dtype), s[18], s[19], s[20], s[21]
    partial = numbers(s[17], want * chunks * 2 * channels * (count - 1), dtype)
    piece, fraction, pairs = np.empty(CHUNK, np.int32), np.empty(CHUNK, dtype), np.empty(2 * CHUNK, dtype)
    together, copies, ld = channels // blocks + 1, REPLICAS * entries, channels * length
    sums, part = np.empty(together * copies * 2, dtype), together * length * pitch
    tiles = np.zeros(3 * part, dtype)
    task = next_task(s)
    while task >= 0:
        chunk, c, end = task // blocks, task % blocks * channels // blocks, (task % blocks + 1) * channels // blocks
        sums[:] = dtype(0)
        if length >= SHORT:
            at, until = chunk * before * length // chunks, (chunk + 1) * before * length // chunks
            while at < until:
                n = min(CHUNK, length - at % length, until - at)
                k = (at // length * channels + c) * length + at % length
                _pull(x, k, g, k, gx, k, n, table, c * span, form, piece, fraction, pairs)
                if want:
                    _add(sums, 0, pairs, piece, n)
                at += n
        else:
            columns, until = (end - c) * length, (chunk + 1) * before // chunks
            for n in range(chunk * before // chunks, until, pitch):
                many, k = min(pitch, until - n), (n * channels + c) * length
                _turn(x, k, ld, tiles, 0, pitch, many, columns)
                _turn(g, k, ld, tiles, part, pitch, many, columns)
                for m in range(columns):
                    at, row = m * pitch, (c + m // length) * span
                    _pull(
                        tiles,
                        at,
                        tiles,
                        part + at,
                        tiles,
                        2 * part + at,
                        pitch,
                        table,
                        row,
                        form,
                        piece,
                        fraction,
                        pairs,
                    )
                    if want:
                        _add(sums, m // length * copies, pairs, piece, many)
                _turn(tiles, 2 * part, pitch, gx, k, ld, columns, many)
        if want:
            _fold(sums, entries, partial, chunk, c, end, channels, count - 1)
        task = next_task(s)


@kernel
def _fold(sums, entries, partial, chunk, begin, end, channels, pieces):
    """Write the sums of the replicas of some channels."""
    zero = sums[0] - sums[0]
    for c in range(begin, end):
        first = (c - begin) * REPLICAS * entries
        for k in range(pieces):
            whole = right = zero
            for r in range(first + k, first + REPLICAS * entries, entries):
                whole, right = whole + sums[2 * r], right + sums[2 * r + 1]
            to = (chunk * 2 * channels + c) * pieces + k
            partial[to], partial[to + channels * pieces] = whole, right


def _tables32(args):
    _tables(args, np.float32)


def _tables64(args):
    _tables(args, np.float64)


def _forward32(args):
    _forward(args, np.float32)


def _forward64(args):
    _forward(args, np.float64)


def _backward32(args):
    _backward(args, np.float32)


def _backward64(args):
    _backward(args, np.float64)


_TABLES = {torch.float32: Worker(_tables32), torch.float64: Worker(_tables64)}
_FORWARD = {torch.float32: Worker(_forward32), torch.float64: Worker(_forward64)}
_BACKWARD = {torch.float32: Worker(_backward32), torch.float64: Worker(_backward64)}


# -------------------------------------------------------------------------------------------------- from outside
def value(x: Tensor, values: Tensor, knots: tuple[float, float] | Tensor, out: Tensor | None = None) -> Tensor:
    """f_c(x) for contiguous x (before, channels, behind) and values (channels, knots) of one dtype."""
    return _run(VALUE, x, values, knots, out)


def slope(x: Tensor, values: Tensor, knots: tuple[float, float] | Tensor, out: Tensor | None = None) -> Tensor:
    """f_c'(x), for arguments as in :func:`value`."""
    return _run(RISE, x, values, knots, out)


def backward(
    gy: Tensor, x: Tensor, values: Tensor, knots: tuple[float, float] | Tensor, want_sums: bool
) -> tuple[Tensor, Tensor]:
    """The gradient for x, gy times the slope; and where wanted (2, channels, pieces): sums of gy, and of gy times t.

    t is the position in the piece, from 0 to 1.
    """
    gy, x = gy.contiguous(), x.contiguous()
    slots, table, entries = _prepared(VALUE, x, values, knots)
    before, channels, length = x.shape
    blocks, pitch = _tiling(x.shape, min(COLUMNS, SUMS * length // entries)) if length < SHORT else (channels, 0)
    chunks = -(-before * length // SHARE)
    gx, sums = torch.empty_like(x), x.new_empty((chunks, 2, channels, values.shape[1] - 1) if want_sums else 0)
    last = (int(want_sums), chunks, blocks, pitch)
    _BACKWARD[x.dtype](chunks * blocks, 16 * x.numel(), *slots, table, x, gy, gx, sums, *last)
    return gx, sums.sum(0) if want_sums else sums


def _run(
    what: int, x: Tensor, values: Tensor, knots: tuple[float, float] | Tensor, out: Tensor | None = None
) -> Tensor:
    x = x.contiguous()
    y = torch.empty_like(x) if out is None else out
    slots, table, _ = _prepared(what, x, values, knots)
    before, _, length = x.shape
    blocks, pitch = _tiling(x.shape, COLUMNS)
    tasks = -(-x.numel() // SHARE) if length >= SHORT else blocks * -(-before // pitch)
    _FORWARD[x.dtype](tasks, 16 * x.numel(), *slots, table, x, y, what, blocks, pitch)
    return y


def _tiling(shape: torch.Size, columns: int) -> tuple[int, int]:
    """Blocks of channels with about so many columns, at least 16 where there are as many; and the samples of a tile."""
    _, channels, length = shape
    blocks = max(1, min(channels, channels * length // max(columns, SHORT)))
    return blocks, max(SHORT, min(128, TILE // (-(-channels // blocks) * length) // SHORT * SHORT))


def _prepared(
    what: int, x: Tensor, values: Tensor, knots: tuple[float, float] | Tensor
) -> tuple[tuple[int | float, ...], Tensor, int]:
    """What all workers are told, the tables, and the entries of one of their rows."""
    channels, count = values.shape
    free = isinstance(knots, Tensor)
    entries = max(ENTRIES[0], 1 << (count - 2).bit_length())
    fits = AVAILABLE and x.dtype == torch.float32 and entries <= ENTRIES[-1]
    variant = variant_of(entries, free, what) if fits else -1
    if isinstance(knots, Tensor):
        places, own, low, inverse = knots.contiguous(), count * (knots.ndim - 1), 0.0, 0.0
        bits, rows = max(1, (count - 2).bit_length()), INNER + 1
    else:
        places, own, low, inverse = values, 0, float(knots[0]), 1.0 / knots[1]
        bits, rows = 0, SLOPE + 1
    table = x.new_empty(channels * rows * entries)
    slots = (*x.shape, count, own, entries, bits, variant, low, inverse, rows)
    _TABLES[x.dtype](channels, table.numel(), *slots, table, values.contiguous(), places)
    return slots, table, entries


def ready(dtype: torch.dtype) -> bool:
    """Whether the kernels compile on this machine; from the first one on that does not, eager takes over."""
    try:
        for workers in (_TABLES, _FORWARD, _BACKWARD):
            workers[dtype].compile()
    except KernelError as error:
        backends.fall_back("numba", str(error))
        return False
    return True
