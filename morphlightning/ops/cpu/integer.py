"""Max-plus products of 16-bit integers: four taps at a time, along the outputs, which LLVM turns into vectors.

Integers have no NaN, so that plain loops vectorize; a vector holds twice as many numbers as one of float32.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from morphlightning.ops.cpu.workers import Worker, kernel, next_task, numbers, slots_of

ROWS = 8
"""Rows of x that one task does."""


@kernel
def _rows(x, w, y, first, last):
    """Rows first ... last - 1; two axes let the compiler see that indices are in order."""
    taps, outs = w.shape
    whole = taps // 4 * 4
    for s in range(first, last):
        for o in range(outs):
            y[s, o] = -32768
        for q in range(0, whole, 4):
            a, b, c, d = x[s, q], x[s, q + 1], x[s, q + 2], x[s, q + 3]
            for o in range(outs):
                one = max(np.int16(a + w[q, o]), np.int16(b + w[q + 1, o]))
                two = max(np.int16(c + w[q + 2, o]), np.int16(d + w[q + 3, o]))
                y[s, o] = max(y[s, o], max(one, two))
        for q in range(whole, taps):
            a = x[s, q]
            for o in range(outs):
                y[s, o] = max(y[s, o], np.int16(a + w[q, o]))


def _forward(args):
    s = slots_of(args)
    samples, taps, outs = s[5], s[6], s[7]
    x = numbers(s[2], samples * taps, np.int16).reshape((samples, taps))
    w = numbers(s[3], taps * outs, np.int16).reshape((taps, outs))
    y = numbers(s[4], samples * outs, np.int16).reshape((samples, outs))
    task = next_task(s)
    while task >= 0:
        _rows(x, w, y, task * ROWS, min(task * ROWS + ROWS, samples))
        task = next_task(s)


_FORWARD = Worker(_forward)


def forward(x: Tensor, w: Tensor) -> Tensor:
    """max_j x[:, j] + w[j]: x (samples, taps), w (taps, out), both int16 and contiguous; sums must not overflow."""
    y = x.new_empty(len(x), w.shape[1])
    _FORWARD(-(-len(x) // ROWS), y.numel() * len(w), x, w, y, len(x), *w.shape)
    return y
