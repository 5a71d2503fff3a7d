"""Dilation by a flat box on the processor: one axis after another, one channel of one sample at a time in the cache.

Limit with winners: one comparison and two selections of a vector for each tap of each axis, instead of each tap of the
box. Along the rows a shift is a shift of the address; along the other axes whole rows contend. Strict comparisons in
the order of taps leave the lowest winner, the same as for the whole box. Borders are positions that never contend.
Without winners the window doubles with every maximum: log2(size) + 1 of them for each axis. (Van Herk's three maxima
are not fewer for windows up to 11, and need passes in both directions.)
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from morphlightning.ops.cpu import window
from morphlightning.ops.cpu.layout import (
    BEFORE_Z, COUNT, DEPTH, HEIGHT, OUT_X, OUT_Y, OUT_Z, REACH_Z, SIZE_Z, SPACING_Z, STRIDE_Z, WIDTH, layout_of,
)  # fmt: skip
from morphlightning.ops.cpu.simd import any_above, contend, copy_signed, larger, write_maxima, write_winners
from morphlightning.ops.cpu.workers import Worker, kernel, next_task, numbers, slots_of
from morphlightning.ops.geometry import Window


@kernel
def _along(t, i, best, index, outer, inner, extent, out, size, stride, spacing, before, weight):
    """Maxima along one axis of (outer, extent, inner); ``weight`` is the distance between its taps."""
    best[: outer * out * inner] = -math.inf
    for o in range(outer):
        for q in range(size):
            shift = q * spacing - before
            first = max(0, (stride - 1 - shift) // stride)
            last = min(out, (extent - 1 - shift) // stride + 1)
            source, target = o * extent * inner, o * out * inner
            if stride == 1 and last > first:
                at = source + (first + shift) * inner
                contend(t, at, i, best, target + first * inner, index, (last - first) * inner, q * weight)
            elif stride > 1:
                for p in range(first, last):
                    at = source + (p * stride + shift) * inner
                    contend(t, at, i, best, target + p * inner, index, inner, q * weight)


@kernel
def _doubled(t, other, outer, inner, extent, out, size, stride, spacing, before):
    """Maxima alone along one axis of (outer, extent, inner), by doubling; returns the result and the other buffer."""
    one = t.dtype.type(1)
    padded = max(before + extent, (out - 1) * stride + (size - 1) * spacing + 1)
    n = outer * padded * inner
    other[:n] = -math.inf
    for o in range(outer):
        copy_signed(t, o * extent * inner, other, (o * padded + before) * inner, extent * inner, one)
    t, other = other, t
    span = 1
    while span < size:
        shift = min(span, size - span) * spacing * inner
        n -= shift
        larger(t, 0, shift, other, 0, n)  # across rows as well, where nothing is read
        t, other = other, t
        span += min(span, size - span)
    for o in range(outer):
        if stride == 1:
            copy_signed(t, o * padded * inner, other, o * out * inner, out * inner, one)
        else:
            for p in range(out):
                for k in range(inner):
                    other[(o * out + p) * inner + k] = t[(o * padded + p * stride) * inner + k]
    return other, t


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
    winners, size = s[9], 1
    for axis in range(3):
        size *= p[BEFORE_Z + axis] + p[DEPTH + axis] + p[OUT_Z + axis] * p[STRIDE_Z + axis] + p[REACH_Z + axis]
    t, best = np.empty(size, dtype), np.empty(size, dtype)
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
            spacing, before = p[SPACING_Z + axis], p[BEFORE_Z + axis]
            if winners:
                _along(t, i, best, index, outer, inner, extent, out, taps, stride, spacing, before, weight)
                t, best, i, index = best, t, index, i
            elif taps > 1 or stride > 1 or before > 0 or out != extent:
                t, best = _doubled(t, best, outer, inner, extent, out, taps, stride, spacing, before)
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
        _FORWARD[x.dtype](images, work, where.sizes, images, sign, *pointers, mode)
    if odd.any():  # NaN, or numbers that count as infinite
        return window.forward(x, w.contiguous(), geometry, mode)[:2]
    return y, arg
