"""Dense max-plus products on the processor.

Limit: two (addition, maximum) pairs of a vector a cycle and core, the rate of a matrix product (see ``simd``).
Forward: w is packed into panels a few vectors wide, so that a tile of rows x vectors accumulators reads one number of x
and one vector of w for each of its rows and columns; a task is one panel against some tiles of rows, which keeps the
panel in the second-level cache. Winners come in two levels: the tile keeps maxima of MASK taps at a time, the best
block's number is merged into the state, and one comparison of MASK lanes finds the tap at the end; a running index
would take twice as long as the value alone, this takes half as much again. For few taps it is the other way
round.
NaN and numbers near the largest one are noticed while packing; their rows are done again, one output at a time.
"""

from __future__ import annotations

import time
from functools import cache

import numpy as np
import torch
from torch import Tensor

from morphlightning.ops.cpu import simd
from morphlightning.ops.cpu.few import NONE, exact, few, finish
from morphlightning.ops.cpu.simd import (
    MASK,
    REGISTERS,
    VECTOR_BYTES,
    equal_lanes,
    largest_but,
    lowest_bit,
    make_tile,
    transpose,
)
from morphlightning.ops.cpu.sweeps import any_above, write_gaps, write_maxima, write_winners
from morphlightning.ops.cpu.workers import Worker, kernel, next_task, numbers, slots_of, workspace

# rows x vectors of accumulators, as many as the registers hold beside their operands; the narrow one wastes less where
# there are few outputs
WIDE_ROWS, WIDE = (6, 4) if REGISTERS == 32 else (5, 2)
NARROW_ROWS = 16 if REGISTERS == 32 else 10
INDEX_ROWS, INDEX_WIDE = (4, 2) if REGISTERS == 32 else (2, 2)
INDEX_NARROW = 8 if REGISTERS == 32 else 4
RUNNING = 256
"""Fewer taps than this take a running index."""
FEW = NARROW_ROWS
"""Fewer samples than this are done without packing."""
BLOCK = 8
"""Rows of x that one task of the preparation looks at."""

_wide, _narrow = make_tile(WIDE_ROWS, WIDE, "value"), make_tile(NARROW_ROWS, 1, "value")
_wide_block, _narrow_block = make_tile(WIDE_ROWS, WIDE, "block"), make_tile(NARROW_ROWS, 1, "block")
_wide_block_gap, _narrow_block_gap = make_tile(WIDE_ROWS, WIDE, "block_gap"), make_tile(NARROW_ROWS, 1, "block_gap")
_wide_index, _narrow_index = make_tile(INDEX_ROWS, INDEX_WIDE, "index"), make_tile(INDEX_NARROW, 1, "index")
_wide_gap, _narrow_gap = make_tile(INDEX_ROWS, INDEX_WIDE, "gap"), make_tile(INDEX_NARROW, 1, "gap")


# ------------------------------------------------------------------------------------------------ inside workers
@kernel
def _prepare(args, dtype):
    """Pack w (groups, out, taps) into panels (groups, panels, taps, width); note rows with odd numbers."""
    s = slots_of(args)
    samples, groups, outs, taps, width = s[6], s[7], s[8], s[9], s[10]
    x, w = numbers(s[2], samples * groups * taps, dtype), numbers(s[3], groups * outs * taps, dtype)
    lanes = VECTOR_BYTES // x.itemsize
    strips = (outs + width - 1) // width * (width // lanes)
    panels = numbers(s[4], groups * strips * lanes * taps, dtype)
    odd = numbers(s[5], samples * groups + groups * outs + 1, np.uint8)
    sign, large = dtype(s[11]), dtype(np.finfo(dtype).max / 2)
    whole = taps // lanes * lanes
    task = next_task(s)
    while task >= 0:
        if task < groups * strips:
            g, strip = task // strips, task % strips
            first = strip * lanes
            to = g * strips * lanes * taps + first // width * width * taps + first % width
            inside = min(lanes, outs - first)
            for i in range(inside):
                found = any_above(w, (g * outs + first + i) * taps, taps, dtype(1), large)
                odd[samples * groups + g * outs + first + i] = found
                if found:
                    odd[-1] = 1
            done = 0
            if inside == lanes:
                for k in range(0, whole, lanes):
                    transpose(w, (g * outs + first) * taps + k, taps, panels, to + k * width, width)
                done = whole
            for i in range(lanes):
                for k in range(done, taps):
                    panels[to + k * width + i] = w[(g * outs + first + i) * taps + k] if i < inside else dtype(NONE)
        else:
            row = (task - groups * strips) * BLOCK
            for r in range(row, min(row + BLOCK, samples * groups)):
                found = any_above(x, r * taps, taps, sign, large)
                odd[r] = found
                if found:
                    odd[-1] = 1
        task = next_task(s)


@kernel
def _values(tile_rows, width, x, ix, ldx, panels, ip, taps, c, index, y, at, ldy, outs, sign, half, fused):
    """Maxima of one tile."""
    if tile_rows == WIDE_ROWS:
        _wide(x, ix, ldx, panels, ip, width, 0, taps, c, index, c, 0, width, sign, fused)
    else:
        _narrow(x, ix, ldx, panels, ip, width, 0, taps, c, index, c, 0, width, sign, fused)
    for m in range(tile_rows):
        write_maxima(c, m * width, y, at + m * ldy, outs, sign, half)


@kernel
def _two_levels(tile_rows, width, x, ix, ldx, panels, ip, taps, best, block, second, y, at, ldy, outs, sign, half,
                fused, w, iw, arg, gap, gaps):  # fmt: skip
    """Maxima and winners of one tile: the best block of MASK taps, then the tap inside it."""
    none = best.dtype.type(NONE)
    best[:] = none
    second[:] = none
    for start in range(0, taps, MASK):
        end = min(start + MASK, taps)
        if gaps is None:
            if tile_rows == WIDE_ROWS:
                _wide_block(x, ix, ldx, panels, ip, width, start, end, best, block, second, 0, width, sign, fused)
            else:
                _narrow_block(x, ix, ldx, panels, ip, width, start, end, best, block, second, 0, width, sign, fused)
        elif tile_rows == WIDE_ROWS:
            _wide_block_gap(x, ix, ldx, panels, ip, width, start, end, best, block, second, 0, width, sign, fused)
        else:
            _narrow_block_gap(x, ix, ldx, panels, ip, width, start, end, best, block, second, 0, width, sign, fused)
    for m in range(tile_rows):
        write_maxima(best, m * width, y, at + m * ldy, outs, sign, half)
        for n in range(outs):
            z = m * width + n
            # the last block overlaps the one before, where no candidate is as large: it would have won
            start = min(np.int64(block[z]), taps - MASK)
            lanes = equal_lanes(x, ix + m * ldx + start, w, iw + n * taps + start, sign, best[z])
            winner = start + min(lowest_bit(lanes), MASK - 1)
            arg[at + m * ldy + n] = winner if best[z] > none else -1
            if gaps is not None:
                lane = lanes & (~lanes + np.uint32(1))
                other = largest_but(x, ix + m * ldx + start, w, iw + n * taps + start, sign, lane)
                gap[at + m * ldy + n] = best[z] - max(second[z], other) if best[z] > none else -none


@kernel
def _running(tile_rows, width, x, ix, ldx, panels, ip, taps, c, index, second, y, at, ldy, outs, sign, half, fused,
             arg, gap, gaps):  # fmt: skip
    """Maxima and winners of one tile, the index kept beside the maximum."""
    narrow = tile_rows == INDEX_NARROW
    part = width if narrow else width // WIDE * INDEX_WIDE
    for first in range(0, outs, part):
        if gaps is None:
            if narrow:
                _narrow_index(x, ix, ldx, panels, ip, width, 0, taps, c, index, second, 0, part, sign, fused)
            else:
                _wide_index(x, ix, ldx, panels, ip + first, width, 0, taps, c, index, second, 0, part, sign, fused)
        elif narrow:
            _narrow_gap(x, ix, ldx, panels, ip, width, 0, taps, c, index, second, 0, part, sign, fused)
        else:
            _wide_gap(x, ix, ldx, panels, ip + first, width, 0, taps, c, index, second, 0, part, sign, fused)
        count = min(part, outs - first)
        for m in range(tile_rows):
            to = at + m * ldy + first
            write_maxima(c, m * part, y, to, count, sign, half)
            write_winners(c, m * part, index, arg, to, count)
            if gaps is not None:
                write_gaps(c, m * part, second, gap, to, count)


@kernel
def _forward(args, dtype, whole, winners, gaps, running):
    """y, winners and gaps of packed weights; a task is one panel against some tiles of rows.

    Where ``winners``, ``gaps`` or ``running`` is None their code is not compiled.
    """
    s = slots_of(args)
    samples, groups, outs, taps, width, mode, fused = s[9], s[10], s[11], s[12], s[13], s[15], s[18]
    tile_rows, together = s[16], s[17]
    x, w = numbers(s[2], samples * groups * taps, dtype), numbers(s[3], groups * outs * taps, dtype)
    panel_count = (outs + width - 1) // width
    panels = numbers(s[4], groups * panel_count * width * taps, dtype)
    odd = numbers(s[5], samples * groups + groups * outs + 1, np.uint8)
    y, arg = numbers(s[6], samples * groups * outs, dtype), numbers(s[7], samples * groups * outs, np.int32)
    gap = numbers(s[8], samples * groups * outs, dtype)
    sign, large = dtype(s[14]), dtype(np.finfo(dtype).max)
    half = dtype(large / 2)
    size = tile_rows * width
    if running is not None and tile_rows == INDEX_ROWS:
        size = tile_rows * (width // WIDE * INDEX_WIDE)
    c, second, index = np.empty(size, dtype), np.empty(size, dtype), np.zeros(size, whole)
    tiles = (samples + tile_rows - 1) // tile_rows
    chunks = (tiles + together - 1) // together
    ldx, ldy = groups * taps, groups * outs
    task = next_task(s)
    while task >= 0:
        chunk, panel, g = task % chunks, task // chunks % panel_count, task // chunks // panel_count
        ip, first = (g * panel_count + panel) * width * taps, panel * width
        count = min(width, outs - first)
        iw = (g * outs + first) * taps
        for tile in range(chunk * together, min((chunk + 1) * together, tiles)):
            row = min(tile * tile_rows, samples - tile_rows)  # the last tile overlaps the one before
            ix, at = (row * groups + g) * taps, (row * groups + g) * outs + first
            if winners is None:
                _values(tile_rows, width, x, ix, ldx, panels, ip, taps, c, index, y, at, ldy, count, sign, half, fused)
            elif running is not None:
                _running(tile_rows, width, x, ix, ldx, panels, ip, taps, c, index, second, y, at, ldy, count, sign,
                         half, fused, arg, gap, gaps)  # fmt: skip
            else:
                _two_levels(tile_rows, width, x, ix, ldx, panels, ip, taps, c, index, second, y, at, ldy, count, sign,
                            half, fused, w, iw, arg, gap, gaps)  # fmt: skip
            if odd[-1]:
                for m in range(tile_rows):
                    for n in range(count):
                        if odd[(row + m) * groups + g] or odd[samples * groups + g * outs + first + n]:
                            top, winner, runner_up = exact(x, ix + m * ldx, w, iw + n * taps, taps, sign, large)
                            finish(y, arg, gap, at + m * ldy + n, top, winner, runner_up, sign, half, mode)
        task = next_task(s)


@kernel
def _race(args):
    """A task is one tile of 256 taps in the cache, in the form that slot 2 asks for; slot 3 holds the sign."""
    s = slots_of(args)
    width = VECTOR_BYTES // 4 * WIDE
    x, w = np.zeros(WIDE_ROWS * 256, np.float32), np.zeros(256 * width, np.float32)
    c, index = np.zeros(WIDE_ROWS * width, np.float32), np.zeros(1, np.int32)
    while next_task(s) >= 0:
        _wide(x, 0, 256, w, 0, width, 0, 256, c, index, c, 0, width, np.float32(s[3]), s[2])


# ------------------------------------------------------------------------------------------------------ workers
def _race32(args):
    _race(args)


def _prepare32(args):
    _prepare(args, np.float32)


def _prepare64(args):
    _prepare(args, np.float64)


def _maxima32(args):
    _forward(args, np.float32, np.int32, None, None, None)


def _maxima64(args):
    _forward(args, np.float64, np.int64, None, None, None)


def _winners32(args):
    _forward(args, np.float32, np.int32, True, None, None)


def _winners64(args):
    _forward(args, np.float64, np.int64, True, None, None)


def _gaps32(args):
    _forward(args, np.float32, np.int32, True, True, None)


def _gaps64(args):
    _forward(args, np.float64, np.int64, True, True, None)


def _running_winners32(args):
    _forward(args, np.float32, np.int32, True, None, True)


def _running_winners64(args):
    _forward(args, np.float64, np.int64, True, None, True)


def _running_gaps32(args):
    _forward(args, np.float32, np.int32, True, True, True)


def _running_gaps64(args):
    _forward(args, np.float64, np.int64, True, True, True)


_RACE = Worker(_race32)
_PREPARE = {torch.float32: Worker(_prepare32), torch.float64: Worker(_prepare64)}
# by mode, and for few taps: who asks for less compiles less
_PACKED = {
    torch.float32: (Worker(_maxima32), Worker(_winners32), Worker(_gaps32)),
    torch.float64: (Worker(_maxima64), Worker(_winners64), Worker(_gaps64)),
}
_RUNNING = {
    torch.float32: (_PACKED[torch.float32][0], Worker(_running_winners32), Worker(_running_gaps32)),
    torch.float64: (_PACKED[torch.float64][0], Worker(_running_winners64), Worker(_running_gaps64)),
}


# -------------------------------------------------------------------------------------------------- from outside
def forward(x: Tensor, w: Tensor, groups: int, sign: int, mode: int) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Maxima of sign * x + w, times sign; x (samples, groups * taps), w (groups * out, taps): contiguous, of one dtype.

    Mode 0 gives maxima, 1 winners (int32, -1 where lost) as well, 2 gaps to the runner-up as well.
    """
    samples, outs, taps = len(x), len(w) // groups, w.shape[1]
    y = x.new_empty(samples, len(w))
    arg = x.new_empty(samples, len(w), dtype=torch.int32) if mode > 0 else None
    gap = torch.empty_like(y) if mode > 1 else None
    if samples == 0:
        return y, arg, gap
    results = (y, y if arg is None else arg, y if gap is None else gap)
    work = samples * outs * taps * groups
    if samples < FEW:
        few(x, w, *results, groups, sign, mode)
        return y, arg, gap
    lanes = VECTOR_BYTES // x.itemsize
    tile_rows, vectors = _tile(outs, taps, lanes, mode)
    width = vectors * lanes
    panels = groups * -(-outs // width)
    buffer = workspace(panels * width * taps, x.dtype)
    odd = torch.zeros(samples * groups + len(w) + 1, dtype=torch.uint8)
    strips = panels * vectors
    layout = (samples, groups, outs, taps, width, sign)
    _PREPARE[x.dtype](strips + -(-samples * groups // BLOCK), work, x, w, buffer, odd, *layout)
    tiles = -(-samples // tile_rows)
    together = max(1, min(8, tiles * panels // (4 * torch.get_num_threads())))
    tasks = panels * -(-tiles // together)
    sizes = (*layout, mode, tile_rows, together, int(fused()))
    workers = _RUNNING if taps < RUNNING else _PACKED
    workers[x.dtype][mode](tasks, work, x, w, buffer, odd, *results, *sizes)
    return y, arg, gap


def _tile(outs: int, taps: int, lanes: int, mode: int) -> tuple[int, int]:
    """Rows and vectors of the tile that computes the fewest superfluous outputs."""
    narrow = -(-outs // lanes) * lanes * 1.1 < -(-outs // (WIDE * lanes)) * WIDE * lanes
    if mode > 0 and taps < RUNNING:
        return (INDEX_NARROW, 1) if narrow else (INDEX_ROWS, WIDE)
    return (NARROW_ROWS, 1) if narrow else (WIDE_ROWS, WIDE)


@cache
def fused() -> bool:
    """Whether a fused multiply-add beats an addition beside a maximum on this processor: measured once, for 1 ms."""
    if not simd.FUSED:
        return False
    spent = []
    for form in (0, 1) * 5:
        began = time.perf_counter()
        _RACE(50, 0, form, 1)
        spent.append(time.perf_counter() - began)
    return min(spent[1::2]) <= min(spent[::2])
