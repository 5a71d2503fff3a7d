"""The backward pass of windowed operators on the processor.

Limit: one read-modify-write for each output and each of x and w, as for dense operators. A task owns one group of a
fixed chunk of samples: their part of the gradient of x, and a table of weight gradients of its own; the tables are
added in order. No atomics, the same bits for any number of threads.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from morphlightning.ops.cpu.layout import (
    BEFORE_X,
    BEFORE_Y,
    BEFORE_Z,
    CHANNELS,
    COUNT,
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
    REACH_X,
    REACH_Y,
    REACH_Z,
    STRIDE_X,
    STRIDE_Y,
    STRIDE_Z,
    TAPS,
    WIDTH,
    layout_of,
    outside,
)  # fmt: skip
from morphlightning.ops.cpu.workers import Worker, kernel, next_task, numbers, slots_of, unsigned
from morphlightning.ops.geometry import Window

CHUNKS = 8
"""Chunks of samples with tables of their own: fixed, so that sums do not depend on the number of threads."""
TABLES = 1 << 20
"""Numbers in all tables together; where one table is large there are fewer."""
REPLICAS = 4
"""Copies of a table that neighbouring outputs take in turn: adding to one place twice in a row has to wait."""


@kernel
def _scatter(args, dtype):
    """Messages to winners; counts messages instead where ``counting``."""
    s = slots_of(args)
    p = numbers(s[2], COUNT, np.int64)
    samples, chunks, want_x, want_w, counting, sign = s[3], s[4], s[5], s[6], s[7], dtype(s[8])
    groups, outs, taps = p[GROUPS], p[OUTS], p[TAPS]
    image, plane = p[CHANNELS] * p[DEPTH] * p[HEIGHT] * p[WIDTH], p[OUT_Z] * p[OUT_Y] * p[OUT_X]
    count = samples * groups * outs * plane
    gy, arg = numbers(s[9], count, dtype), numbers(s[10], count, np.int32)
    gx = numbers(s[11], want_x * samples * groups * image, dtype)
    gw = numbers(s[12], want_w * chunks * groups * outs * taps, dtype)
    relative, steps = numbers(s[13], taps, np.int64), numbers(s[14], 4 * taps, np.int64)
    sources = numbers(s[15], p[END_X], np.int64)
    table = np.empty(REPLICAS * taps, dtype)
    task = next_task(s)
    while task >= 0:
        chunk, g = task // groups, task % groups
        if want_w:
            gw[(chunk * groups + g) * outs * taps : (chunk * groups + g + 1) * outs * taps] = dtype(0)
        for b in range(chunk * samples // chunks, (chunk + 1) * samples // chunks):
            ix = (b * groups + g) * image
            if want_x:
                gx[ix : ix + image] = dtype(0)
            for o in range(outs):
                at = ((b * groups + g) * outs + o) * plane
                if want_x:
                    _to_cells(gx, ix, gy, arg, at, p, relative, steps, sources)
                if want_w:
                    _to_taps(table, gy, arg, at, plane, taps, counting)
                    to = ((chunk * groups + g) * outs + o) * taps
                    for q in range(taps):
                        pair = table[q] + table[taps + q]
                        gw[to + q] += sign * (pair + (table[2 * taps + q] + table[3 * taps + q]))
        task = next_task(s)


@kernel
def _to_cells(gx, ix, gy, arg, at, p, relative, steps, sources):
    """Send the messages of one output channel to the cells of their winners.

    Where a window lies inside the image that is a fixed distance from its start. Elsewhere another position may stand
    for the winner, or none.
    """
    stride, out_x = p[STRIDE_X], p[OUT_X]  # a store may change the table, for all that the compiler knows
    left = min(p[OUT_X], max(0, (p[BEFORE_X] + p[STRIDE_X] - 1) // p[STRIDE_X]))
    right = max(left, min(p[OUT_X], (p[BEFORE_X] + p[WIDTH] - 1 - p[REACH_X]) // p[STRIDE_X] + 1))
    for z in range(p[OUT_Z]):
        for y in range(p[OUT_Y]):
            pz, py = z * p[STRIDE_Z], y * p[STRIDE_Y]
            across = outside(pz, p[BEFORE_Z], p[REACH_Z], p[DEPTH]) or outside(py, p[BEFORE_Y], p[REACH_Y], p[HEIGHT])
            first, last = (p[OUT_X], p[OUT_X]) if across else (left, right)
            _to_sources(gx, ix, gy, arg, at, 0, first, pz, py, p, steps, sources)
            start = ix + ((pz - p[BEFORE_Z]) * p[HEIGHT] + py - p[BEFORE_Y]) * p[WIDTH] - p[BEFORE_X]
            for col in range(first, last):
                message = unsigned(at + col)
                winner = arg[message]
                if winner >= 0:
                    gx[unsigned(start + col * stride + relative[unsigned(winner)])] += gy[message]
            _to_sources(gx, ix, gy, arg, at, last, out_x, pz, py, p, steps, sources)
            at += out_x


@kernel
def _to_sources(gx, ix, gy, arg, at, first, last, pz, py, p, steps, sources):
    for col in range(first, last):
        winner = arg[at + col]
        if winner >= 0:
            iz, iy = sources[pz + steps[4 * winner + 1]], sources[p[END_Z] + py + steps[4 * winner + 2]]
            jx = sources[p[END_Y] + col * p[STRIDE_X] + steps[4 * winner + 3]]
            if iz >= 0 and iy >= 0 and jx >= 0:
                cell = ((steps[4 * winner] * p[DEPTH] + iz) * p[HEIGHT] + iy) * p[WIDTH] + jx
                gx[ix + cell] += gy[at + col]


@kernel
def _to_taps(table, gy, arg, at, plane, taps, counting):
    """Sum the messages of one output channel by tap, neighbours in different replicas."""
    zero, one = table.dtype.type(0), table.dtype.type(1)
    table[:] = zero
    for k in range(plane):
        winner, message = arg[unsigned(at + k)], gy[unsigned(at + k)]
        if winner >= 0:
            if counting:
                message = one if message != zero else zero
            table[unsigned(k % REPLICAS * taps + winner)] += message


def _scatter32(args):
    _scatter(args, np.float32)


def _scatter64(args):
    _scatter(args, np.float64)


_SCATTER = {torch.float32: Worker(_scatter32), torch.float64: Worker(_scatter64)}


def scatter(
    gy: Tensor, arg: Tensor, x: torch.Size, w: torch.Size, geometry: Window, sign: int, want_x: bool, want_w: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of x and, times ``sign``, of w for contiguous messages; what is not wanted is empty."""
    where = layout_of(x, w, geometry)
    chunks = _chunks(x[0], w) if want_w else max(1, x[0])
    gx = gy.new_empty(x if want_x else 0)
    tables = gy.new_empty((chunks, *w) if want_w else 0)
    settings = (x[0], chunks, int(want_x), int(want_w), 0, sign)
    pointers = (gy, arg, gx, tables, where.relative, where.steps, where.sources)
    _SCATTER[gy.dtype](chunks * geometry.groups, 4 * gy.numel(), where.sizes, *settings, *pointers)
    return gx, tables.sum(0) if want_w else tables


def touches(gy: Tensor, arg: Tensor, w: torch.Size) -> Tensor:
    """How many messages other than zero each weight won, for contiguous messages."""
    sizes = torch.zeros(COUNT, dtype=torch.int64)
    sizes[[GROUPS, OUT_Z, OUT_Y]] = 1
    sizes[OUTS], sizes[TAPS], sizes[OUT_X] = w[0], w[1:].numel(), gy[0, 0].numel() if len(gy) else 0
    chunks = _chunks(len(gy), w)
    tables = gy.new_empty((chunks, *w))
    none = tables  # there is no image: nothing is read from, or sent to, it
    settings = (len(gy), chunks, 0, 1, 1, 1)
    _SCATTER[gy.dtype](chunks, 4 * gy.numel(), sizes, *settings, gy, arg, none, tables, none, none, none)
    return tables.sum(0)


def _chunks(samples: int, w: torch.Size) -> int:
    return max(1, min(CHUNKS, samples, TABLES // w.numel()))
