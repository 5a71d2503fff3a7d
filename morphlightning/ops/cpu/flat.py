"""Dilation by a flat box on the processor: one axis after another, one channel of one sample at a time in the cache.

Limit with winners: one comparison and two selections of a vector for each tap of each axis, instead of each tap of the
box. Along the rows a shift is a shift of the address; along the other axes whole rows contend. Strict comparisons in
the order of taps leave the lowest winner, the same as for the whole box. Borders are positions that never contend.
Without winners the window doubles with every maximum: log2(size) + 1 of them for each axis, and no pass backwards.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from morphlightning.ops.cpu import window
from morphlightning.ops.cpu.layout import (
    BEFORE_Z,
    COUNT,
    DEPTH,
    HEIGHT,
    OUT_X,
    OUT_Y,
    OUT_Z,
    REACH_Z,
    SIZE_Z,
    SPACING_Z,
    STRIDE_Z,
    WIDTH,
    layout_of,
)  # fmt: skip
from morphlightning.ops.cpu.simd import VECTOR_BYTES
from morphlightning.ops.cpu.sweeps import (
    any_above,
    contend,
    copy_places,
    copy_signed,
    larger,
    write_maxima,
    write_winners,
)
from morphlightning.ops.cpu.workers import Worker, kernel, next_task, numbers, slots_of
from morphlightning.ops.geometry import Window


@kernel
def _padded(p, axis):
    """Positions along an axis that hold the image, or that windows reach."""
    used = (p[OUT_Z + axis] - 1) * p[STRIDE_Z + axis] + p[REACH_Z + axis] + 1
    return max(p[BEFORE_Z + axis] + p[DEPTH + axis], used)


@kernel
def _pad(t, i, other, index, outer, inner, extent, padded, before, winners, one):
    """(outer, extent, inner) into the middle of (outer, padded, inner), -inf around it."""
    for o in range(outer):
        source, target, count = o * extent * inner, o * padded * inner, extent * inner
        for k in range(before * inner):
            other[target + k] = -math.inf
        copy_signed(t, source, other, target + before * inner, count, one)
        for k in range((before + extent) * inner, padded * inner):
            other[target + k] = -math.inf
        if winners:
            copy_places(i, source, index, target + before * inner, count)


@kernel
def _pick(t, i, other, index, outer, inner, padded, out, stride, winners, one):
    """Every ``stride``-th position of (outer, padded, inner): (outer, out, inner)."""
    block, blocks = (out * inner, 1) if stride == 1 else (inner, out)
    for o in range(outer):
        for p in range(blocks):
            source, target = (o * padded + p * stride) * inner, (o * out + p) * inner
            copy_signed(t, source, other, target, block, one)
            if winners:
                copy_places(i, source, index, target, block)


@kernel
def _doubled(t, other, n, size, step):
    """Maxima of ``size`` numbers ``step`` apart, by doubling; returns the result and the other buffer.

    Rows run into each other where nothing is read.
    """
    span = 1
    while span < size:
        shift = min(span, size - span) * step
        n -= shift
        larger(t, 0, shift, other, 0, n)
        t, other = other, t
        span += min(span, size - span)
    return t, other


@kernel
def _forward(args, dtype, whole):
    """A task is one channel of one sample."""
    s = slots_of(args)
    p = numbers(s[2], COUNT, np.int64)
    images, sign = s[3], dtype(s[4])
    half = dtype(np.finfo(dtype).max / 2)
    image, plane = p[DEPTH] * p[HEIGHT] * p[WIDTH], p[OUT_Z] * p[OUT_Y] * p[OUT_X]
    x, y = numbers(s[5], images * image, dtype), numbers(s[6], images * plane, dtype)
    arg, odd = numbers(s[7], images * plane, np.int32), numbers(s[8], images, np.uint8)
    winners, size, one = s[9], s[10], dtype(1)
    t, other = np.empty(size, dtype), np.empty(size, dtype)
    i, index = np.zeros(size if winners else 1, whole), np.zeros(size if winners else 1, whole)
    task = next_task(s)
    while task >= 0:
        odd[task] = any_above(x, task * image, image, sign, half)
        copy_signed(x, task * image, t, 0, image, sign)
        if winners:
            i[:image] = 0
        outer, inner, weight = p[DEPTH] * p[HEIGHT], 1, 1
        for axis in range(2, -1, -1):
            extent, out, taps, stride = p[DEPTH + axis], p[OUT_Z + axis], p[SIZE_Z + axis], p[STRIDE_Z + axis]
            step, before = p[SPACING_Z + axis] * inner, p[BEFORE_Z + axis]
            if taps > 1 or stride > 1 or before > 0 or out != extent:
                padded = _padded(p, axis)
                n = outer * padded * inner
                _pad(t, i, other, index, outer, inner, extent, padded, before, winners, one)
                if winners:
                    # whole vectors at least: the buffers are longer than what is read
                    count = max(n - (taps - 1) * step, VECTOR_BYTES)
                    contend(other, index, t, i, count, taps, step, weight)
                else:
                    other, t = _doubled(other, t, n, taps, step)
                    t, other = other, t
                _pick(t, i, other, index, outer, inner, padded, out, stride, winners, one)
                t, other, i, index = other, t, index, i
            inner, weight = inner * out, weight * taps
            if axis > 0:
                outer //= p[DEPTH + axis - 1]
        write_maxima(t, 0, y, task * plane, plane, sign, half)
        if winners:
            write_winners(t, 0, i, arg, task * plane, plane)
        task = next_task(s)


def _forward32(args):
    _forward(args, np.float32, np.int32)


def _forward64(args):
    _forward(args, np.float64, np.int64)


_FORWARD = {torch.float32: Worker(_forward32), torch.float64: Worker(_forward64)}


def forward(x: Tensor, w: Tensor, geometry: Window, mode: int) -> tuple[Tensor, Tensor | None]:
    """Maxima of contiguous x over boxes of w's size and, in mode 1, winners; for the neutral border, and zero w."""
    where = layout_of(x.shape, w.shape, geometry)
    y = x.new_empty(geometry.output_shape(x.shape, w.shape))
    arg = x.new_empty(y.shape, dtype=torch.int32) if mode else None
    images = x.shape[0] * x.shape[1]
    odd = torch.empty(images, dtype=torch.uint8)
    if y.numel():
        pointers = (x, y, y if arg is None else arg, odd)
        work, sign = y.numel() * sum(w.shape[2:]), -1 if geometry.dual else 1
        _FORWARD[x.dtype](images, work, where.sizes, images, sign, *pointers, mode, _buffer(where.sizes.tolist()))
    if odd.any():  # NaN, or numbers that count as infinite
        return window.forward(x, w.contiguous(), geometry, mode)[:2]
    return y, arg


def _buffer(p: list[int]) -> int:
    """Numbers that the largest stage holds, and a vector more: those before an axis, those after it, and its own."""
    padded = [_padded.py_func(p, axis) for axis in range(3)]
    stages = (
        p[DEPTH] * p[HEIGHT] * padded[2],
        p[DEPTH] * padded[1] * p[OUT_X],
        padded[0] * p[OUT_Y] * p[OUT_X],
        p[DEPTH] * p[HEIGHT] * p[WIDTH],
    )
    return int(max(stages)) + VECTOR_BYTES
