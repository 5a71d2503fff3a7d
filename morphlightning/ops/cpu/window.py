"""Windowed max-plus operators on the processor, for signals, images and volumes.

Limit: as for dense products, two pairs of a vector a cycle for maxima alone; a running index halves that, and unaligned
loads, one a pair where a tile has one row, do the same. A task is one strip of output rows of one group of one sample.
It copies what the strip sees into a scratch image that stays in the cache, where border, stride, dilation, sign and
dtype are settled (see ``layout``), so that a tile of outputs x positions can run down a table of tap offsets.
NaN, numbers near the largest one, and ties across a border that repeats the image go through :func:`_exact`.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from morphlightning.ops.cpu.dense import fused
from morphlightning.ops.cpu.layout import (
    BEFORE_X,
    BEFORE_Y,
    BEFORE_Z,
    CHANNELS,
    COUNT,
    CROSSES,
    DEPTH,
    END_X,
    END_Y,
    END_Z,
    GROUPS,
    HEIGHT,
    OUT_X,
    OUT_Y,
    OUT_Z,
    OUTS,
    PHASES,
    PITCH,
    REACH_X,
    REACH_Y,
    REACH_Z,
    ROWS,
    SCRATCH,
    SHIFT,
    SIZE_Z,
    SPACING_Z,
    STRIDE_X,
    STRIDE_Y,
    STRIDE_Z,
    TAPS,
    TILE,
    WIDTH,
    fill_of,
    layout_of,
    outside,
)  # fmt: skip
from morphlightning.ops.cpu.simd import REGISTERS, VECTOR_BYTES, make_tile
from morphlightning.ops.cpu.sweeps import any_above, copy_signed, write_gaps, write_maxima, write_winners
from morphlightning.ops.cpu.workers import Worker, floats_of, kernel, next_task, numbers, slots_of
from morphlightning.ops.geometry import Window

VALUE, INDEX, GAP = (4, 2, 2) if REGISTERS == 32 else (2, 2, 1)
ONE_VALUE, ONE_INDEX, ONE_GAP = (8, 8, 4) if REGISTERS == 32 else (4, 4, 2)

_value, _one_value = make_tile(TILE, VALUE, "value", True), make_tile(1, ONE_VALUE, "value", True)
_index, _one_index = make_tile(TILE, INDEX, "index", True), make_tile(1, ONE_INDEX, "index", True)
_gap, _one_gap = make_tile(TILE, GAP, "gap", True), make_tile(1, ONE_GAP, "gap", True)


# ------------------------------------------------------------------------------------------------ inside workers
@kernel
def _exact(x, ix, w, iw, p, steps, sources, z, y, col, sign, large, fill):
    """Maximum, winner and runner-up of one output: the lowest input position wins, one outside comes after all."""
    best, second, winner = -math.inf, -math.inf, 0
    last = p[CHANNELS] * p[DEPTH] * p[HEIGHT] * p[WIDTH]
    lowest = last
    for q in range(p[TAPS]):
        iz, iy = sources[z + steps[4 * q + 1]], sources[p[END_Z] + y + steps[4 * q + 2]]
        jx = sources[p[END_Y] + col + steps[4 * q + 3]]
        cell, a = last, fill
        if iz >= 0 and iy >= 0 and jx >= 0:
            cell = ((steps[4 * q] * p[DEPTH] + iz) * p[HEIGHT] + iy) * p[WIDTH] + jx
            a = sign * x[ix + cell]
        score = (large if a > large else a) + w[iw + q]
        if score != score:
            return score, q, score
        if score > best:
            best, second, winner, lowest = score, best, q, cell
        else:
            if score == best and cell < lowest:
                winner, lowest = q, cell
            second = max(second, score)
    return best, winner, second


@kernel
def _tiles(w, iw, scratch, offsets, length, c, index, second, ldc, one, fused, mode, outs):
    """Maxima, winners and losers of ``outs`` outputs (some or one) for a whole strip."""
    taps = len(offsets)
    lanes = VECTOR_BYTES // c.itemsize
    if outs == 1:
        step = lanes * (ONE_VALUE if mode == 0 else ONE_INDEX if mode == 1 else ONE_GAP)
        for at in range(0, length, step):
            if mode == 0:
                _one_value(w, iw, taps, scratch, at, offsets, 0, taps, c, index, second, at, ldc, one, fused)
            elif mode == 1:
                _one_index(w, iw, taps, scratch, at, offsets, 0, taps, c, index, second, at, ldc, one, fused)
            else:
                _one_gap(w, iw, taps, scratch, at, offsets, 0, taps, c, index, second, at, ldc, one, fused)
    else:
        step = lanes * (VALUE if mode == 0 else INDEX if mode == 1 else GAP)
        for at in range(0, length, step):
            if mode == 0:
                _value(w, iw, taps, scratch, at, offsets, 0, taps, c, index, second, at, ldc, one, fused)
            elif mode == 1:
                _index(w, iw, taps, scratch, at, offsets, 0, taps, c, index, second, at, ldc, one, fused)
            else:
                _gap(w, iw, taps, scratch, at, offsets, 0, taps, c, index, second, at, ldc, one, fused)


@kernel
def _fill_scratch(x, ix, p, scratch, phases, sources, z, row, rows, sign, fill, half):
    """Copy what a strip sees; returns whether a number in it needs care."""
    odd, to, most = False, 0, p[PHASES]
    for plane in range(p[CHANNELS] * p[SIZE_Z]):
        iz = sources[z + plane % p[SIZE_Z] * p[SPACING_Z]]
        above = plane // p[SIZE_Z] * p[DEPTH] + iz
        for phase in range(most * most):
            py, px = phases[phase // most], phases[most + phase % most]
            if py < 0 or px < 0:
                continue
            for r in range(row, row + rows + p[SHIFT]):
                padded = p[END_Z] + r * p[STRIDE_Y] + py
                iy = sources[padded] if padded < p[END_Y] else -1
                if iz < 0 or iy < 0:
                    scratch[to : to + p[PITCH]] = fill
                else:
                    at = ix + (above * p[HEIGHT] + iy) * p[WIDTH]
                    odd |= any_above(x, at, p[WIDTH], sign, half)
                    _copy_row(x, at, p, scratch, to, px, sources, sign, fill)
                to += p[PITCH]
            to += (p[ROWS] - rows) * p[PITCH]
    return odd


@kernel
def _copy_row(x, at, p, scratch, to, phase, sources, sign, fill):
    """One row of one phase; outside the image what the border says."""
    stride, begin, pitch = p[STRIDE_X], p[BEFORE_X] - phase, p[PITCH]
    first = min(pitch, max(0, (begin + stride - 1) // stride))
    last = max(first, min(pitch, (p[WIDTH] - 1 + begin) // stride + 1))
    if last > first and stride == 1:
        copy_signed(x, at + first - begin, scratch, to + first, last - first, sign)
    else:
        for a in range(first, last):
            scratch[to + a] = sign * x[at + a * stride - begin]
    for k in range(first + pitch - last):
        a = k if k < first else k - first + last
        padded = p[END_Y] + a * stride + phase
        source = sources[padded] if padded < p[END_X] else -1
        scratch[to + a] = sign * x[at + source] if source >= 0 else fill


@kernel
def _crosses(p, z, y, col):
    """Whether the window of an output reaches outside the image."""
    return (
        outside(z, p[BEFORE_Z], p[REACH_Z], p[DEPTH])
        or outside(y, p[BEFORE_Y], p[REACH_Y], p[HEIGHT])
        or outside(col, p[BEFORE_X], p[REACH_X], p[WIDTH])
    )


@kernel
def _repair(x, ix, w, iw, p, steps, sources, z, row, rows, y, arg, gap, to, sign, large, fill, mode, all_of_them):
    """Do the outputs of a strip again that need care: all of them, or those whose window crosses the border."""
    half = large / 2
    for r in range(rows):
        for col in range(p[OUT_X]):
            pz, py, px = z * p[STRIDE_Z], (row + r) * p[STRIDE_Y], col * p[STRIDE_X]
            if all_of_them or _crosses(p, pz, py, px):
                top, winner, other = _exact(x, ix, w, iw, p, steps, sources, pz, py, px, sign, large, fill)
                at, lost = to + r * p[OUT_X] + col, top == -math.inf
                y[at] = sign * (math.inf if top > half else top)
                if mode > 0:
                    arg[at] = -1 if lost else winner
                if mode > 1:
                    gap[at] = math.inf if lost else top - other


@kernel
def _forward(args, dtype, whole):
    s = slots_of(args)
    p = numbers(s[2], COUNT, np.int64)
    samples, mode, fused = s[3], s[4], s[5]
    sign, fill, large = dtype(s[6]), dtype(floats_of(args)[7]), dtype(np.finfo(dtype).max)
    half = dtype(large / 2)
    groups, outs, taps, out_x = p[GROUPS], p[OUTS], p[TAPS], p[OUT_X]
    image, plane = p[CHANNELS] * p[DEPTH] * p[HEIGHT] * p[WIDTH], p[OUT_Z] * p[OUT_Y] * out_x
    x, w = numbers(s[8], samples * groups * image, dtype), numbers(s[9], groups * outs * taps, dtype)
    count = samples * groups * outs * plane
    y, arg, gap = numbers(s[10], count, dtype), numbers(s[11], count, np.int32), numbers(s[12], count, dtype)
    offsets, phases = numbers(s[13], taps, np.int32), numbers(s[14], 2 * p[PHASES], np.int64)
    sources, steps = numbers(s[15], p[END_X], np.int64), numbers(s[16], 4 * taps, np.int64)
    one = dtype(s[17])  # at run time: the compiler would make an addition of a multiplication by one
    strips = (p[OUT_Y] + p[ROWS] - 1) // p[ROWS]
    together = TILE if outs >= TILE else 1
    slack = 8 * VECTOR_BYTES // x.itemsize  # a tile may compute beyond the end of a strip
    ldc = p[ROWS] * p[PITCH] + slack
    scratch = np.full(p[SCRATCH] + slack, dtype(-math.inf))
    c, second = np.empty(together * ldc, dtype), np.empty(together * ldc if mode > 1 else 1, dtype)
    index = np.zeros(together * ldc if mode > 0 else 1, whole)
    task = next_task(s)
    while task >= 0:
        row, z, image_number = task % strips * p[ROWS], task // strips % p[OUT_Z], task // strips // p[OUT_Z]
        g, ix = image_number % groups, image_number * image
        rows = min(p[ROWS], p[OUT_Y] - row)
        length = (rows - 1) * p[PITCH] + out_x
        odd = _fill_scratch(x, ix, p, scratch, phases, sources, z * p[STRIDE_Z], row, rows, sign, fill, half)
        odd |= any_above(w, g * outs * taps, outs * taps, dtype(1), half)
        for first in range(0, outs, together):
            o = min(first, outs - together)  # the last tile overlaps the one before
            iw = (g * outs + o) * taps
            _tiles(w, iw, scratch, offsets, length, c, index, second, ldc, one, fused, mode, together)
            for m in range(together):
                to = (image_number * outs + o + m) * plane + (z * p[OUT_Y] + row) * out_x
                for r in range(rows):
                    at, held = to + r * out_x, m * ldc + r * p[PITCH]
                    write_maxima(c, held, y, at, out_x, sign, half)
                    if mode > 0:
                        write_winners(c, held, index, arg, at, out_x)
                    if mode > 1:
                        write_gaps(c, held, second, gap, at, out_x)
                if odd or (p[CROSSES] and mode > 0):
                    _repair(x, ix, w, iw + m * taps, p, steps, sources, z, row, rows, y, arg, gap, to, sign, large,
                            fill, mode, odd)  # fmt: skip
        task = next_task(s)


def _forward32(args):
    _forward(args, np.float32, np.int32)


def _forward64(args):
    _forward(args, np.float64, np.int64)


_FORWARD = {torch.float32: Worker(_forward32), torch.float64: Worker(_forward64)}


# -------------------------------------------------------------------------------------------------- from outside
def forward(x: Tensor, w: Tensor, geometry: Window, mode: int) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Maxima of contiguous x and w of one dtype; mode 0 alone, 1 with winners, 2 with gaps to the runner-up too."""
    where = layout_of(x.shape, w.shape, geometry)
    y = x.new_empty(geometry.output_shape(x.shape, w.shape))
    arg = x.new_empty(y.shape, dtype=torch.int32) if mode > 0 else None
    gap = torch.empty_like(y) if mode > 1 else None
    if y.numel() == 0:
        return y, arg, gap
    sizes = where.sizes.tolist()
    tasks = len(x) * sizes[GROUPS] * sizes[OUT_Z] * -(-sizes[OUT_Y] // sizes[ROWS])
    settings = (len(x), mode, int(fused()), -1 if geometry.dual else 1, fill_of(geometry))
    results = (y, y if arg is None else arg, y if gap is None else gap)
    tables = (where.offsets, where.phases, where.sources, where.steps, 1)
    _FORWARD[x.dtype](tasks, y.numel() * sizes[TAPS], where.sizes, *settings, x, w, *results, *tables)
    return y, arg, gap
