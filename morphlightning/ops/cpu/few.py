"""Dense max-plus products of a few samples on the processor, and what single outputs need.

Packing weights is not worth it for fewer samples than a tile has rows: vectors run along the taps instead, eight
outputs at a time share the loads of x, and a search of MASK lanes at a time finds the winner.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from morphlightning.ops.cpu.simd import MASK, equal_lanes, largest_but, lowest_bit, make_dot
from morphlightning.ops.cpu.sweeps import any_above
from morphlightning.ops.cpu.workers import Worker, kernel, next_task, numbers, slots_of

NONE = -math.inf
BLOCK = 8
"""Outputs that one task computes for all samples."""

_dot8, _dot1 = make_dot(BLOCK), make_dot(1)


# ------------------------------------------------------------------------------------------------ inside workers
@kernel
def exact(x, ix, w, iw, taps, sign, large):
    """Maximum, first winner and runner-up of one output, as the eager backend defines them for any input."""
    best, second, winner = NONE, NONE, 0
    for k in range(taps):
        a = sign * x[ix + k]
        score = (large if a > large else a) + w[iw + k]
        if score != score:
            return score, k, score
        if score > best:
            best, second, winner = score, best, k
        elif score > second:
            second = score
    return best, winner, second


@kernel
def finish(y, arg, gap, at, best, winner, second, sign, half, mode):
    """Write one output."""
    lost = best == NONE
    y[at] = sign * (math.inf if best > half else best)
    if mode > 0:
        arg[at] = -1 if lost else winner
    if mode > 1:
        gap[at] = math.inf if lost else best - second


@kernel
def _few(args, dtype):
    """The same for a few samples, without packing: a task is eight outputs of a group for all samples."""
    s = slots_of(args)
    samples, groups, outs, taps, mode = s[7], s[8], s[9], s[10], s[12]
    x, w = numbers(s[2], samples * groups * taps, dtype), numbers(s[3], groups * outs * taps, dtype)
    y, arg = numbers(s[4], samples * groups * outs, dtype), numbers(s[5], samples * groups * outs, np.int32)
    gap = numbers(s[6], samples * groups * outs, dtype)
    sign, large = dtype(s[11]), dtype(np.finfo(dtype).max)
    half = dtype(large / 2)
    blocks = (outs + BLOCK - 1) // BLOCK
    best = np.empty(BLOCK, dtype)
    odd = np.zeros(samples, np.uint8)
    long = taps >= MASK
    task = next_task(s)
    before = -1
    while task >= 0:
        g, first = task // blocks, task % blocks * BLOCK
        if g != before:
            before = g
            for b in range(samples):
                odd[b] = any_above(x, (b * groups + g) * taps, taps, sign, half)
        count = min(BLOCK, outs - first)
        iw = (g * outs + first) * taps
        bad_weights = any_above(w, iw, count * taps, dtype(1), half)
        for b in range(samples):
            ix, at = (b * groups + g) * taps, (b * groups + g) * outs + first
            quick = long and not odd[b] and not bad_weights
            if quick and count == BLOCK:
                _dot8(x, ix, w, iw, taps, taps, best, 0, sign)
            elif quick:
                for n in range(count):
                    _dot1(x, ix, w, iw + n * taps, taps, taps, best, n, sign)
            for n in range(count):
                if not quick:
                    top, winner, runner_up = exact(x, ix, w, iw + n * taps, taps, sign, large)
                else:
                    top, winner, runner_up = best[n], 0, dtype(NONE)
                    if mode > 0:
                        winner, runner_up = _find(x, ix, w, iw + n * taps, taps, sign, top, mode)
                finish(y, arg, gap, at + n, top, winner, runner_up, sign, half, mode)
        task = next_task(s)


@kernel
def _find(x, ix, w, iw, taps, sign, top, mode):
    """The first tap that reaches the maximum and, where ``mode`` asks for it, the largest score of all others."""
    winner, second = 0, NONE
    for block in range(0, taps, MASK):
        start = min(block, taps - MASK)
        lanes = equal_lanes(x, ix + start, w, iw + start, sign, top)
        if lanes:
            winner = start + lowest_bit(lanes)
            break
    if mode > 1:
        for block in range(0, taps, MASK):
            start = min(block, taps - MASK)
            lane = winner - start
            left_out = np.uint32(1) << np.uint32(lane) if 0 <= lane < MASK else np.uint32(0)
            second = max(second, largest_but(x, ix + start, w, iw + start, sign, left_out))
    return winner, second


def _few32(args):
    _few(args, np.float32)


def _few64(args):
    _few(args, np.float64)


_FEW = {torch.float32: Worker(_few32), torch.float64: Worker(_few64)}


# -------------------------------------------------------------------------------------------------- from outside
def few(x: Tensor, w: Tensor, y: Tensor, arg: Tensor, gap: Tensor, groups: int, sign: int, mode: int) -> None:
    """Fill y and, by mode, winners and gaps; arguments as in :func:`morphlightning.ops.cpu.dense.forward`."""
    samples, outs, taps = len(x), len(w) // groups, w.shape[1]
    tasks, work = groups * -(-outs // BLOCK), samples * len(w) * taps
    _FEW[x.dtype](tasks, work, x, w, y, arg, gap, samples, groups, outs, taps, sign, mode)
