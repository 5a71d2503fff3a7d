r"""Nearest chains: minimise :math:`\frac12 \sum_k (n_k - c_k)^2` with :math:`a_k \le n_{k+1} - n_k \le b_k`, exactly.

Dynamic programming from the left. The message :math:`m_k(x)`, the least cost of the first knots where :math:`n_k = x`,
is convex with a piecewise linear derivative. Passing it on to the next knot, a min-convolution with the indicator of
[a, b], moves the negative part of the derivative by a, the positive part by b, and puts 0 between them; the next term
adds x - c. So the breakpoints live on two stacks, left and right of the zero, and only those are looked at that the
zero passes. All slopes of the derivative are whole numbers (of knots that move together): nothing is lost in them.
Derived here; with a = 0 and b infinite it is isotonic regression.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from morphlightning import backends
from morphlightning.ops.cpu.workers import KernelError, Worker, kernel, next_task, numbers, slots_of


@kernel
def _solve(c, low, high, left, left_by, right, right_by, n, side):
    """Write the nearest chain to ``n`` and the bound that each step lies on to ``side``: -1 lower, 1 upper, 0 none.

    Stacks hold places of breakpoints and by how much the derivative's slope grows away from the zero.
    """
    lefts, rights = 0, 0
    for k in range(len(c)):
        zero, slope = c[k], 1.0  # between the stacks the derivative is x - c
        while rights > 0 and zero > right[rights - 1]:
            rights -= 1
            at, by = right[rights], right_by[rights]
            zero = at + slope * (zero - at) / (slope + by)
            slope += by
            left[lefts], left_by[lefts] = at, -by
            lefts += 1
        while lefts > 0 and zero < left[lefts - 1]:
            lefts -= 1
            at, by = left[lefts], left_by[lefts]
            zero = at + slope * (zero - at) / (slope + by)
            slope += by
            right[rights], right_by[rights] = at, -by
            rights += 1
        n[k] = zero
        if k < len(c) - 1:
            left[lefts], left_by[lefts] = zero, slope
            right[rights], right_by[rights] = zero, slope
            lefts, rights = lefts + 1, rights + 1
            for j in range(lefts):
                left[j] += low[k]
            for j in range(rights):
                right[j] += high[k]
    for k in range(len(c) - 2, -1, -1):
        lowest, highest = n[k + 1] - high[k], n[k + 1] - low[k]
        side[k] = 0
        if n[k] < lowest or low[k] == high[k]:
            n[k], side[k] = lowest, 1
        elif n[k] > highest:
            n[k], side[k] = highest, -1


def _rows(args):
    s = slots_of(args)
    rows, knots = s[2], s[3]
    pieces = knots - 1
    c, n = numbers(s[4], rows * knots, np.float64), numbers(s[7], rows * knots, np.float64)
    low, high = numbers(s[5], rows * pieces, np.float64), numbers(s[6], rows * pieces, np.float64)
    side = numbers(s[8], rows * pieces, np.int8)
    stacks = np.empty((4, 2 * knots))
    task = next_task(s)
    while task >= 0:
        of, at = slice(task * knots, task * knots + knots), slice(task * pieces, task * pieces + pieces)
        _solve(c[of], low[at], high[at], stacks[0], stacks[1], stacks[2], stacks[3], n[of], side[at])
        task = next_task(s)


_WORKER = Worker(_rows)


def solve(c: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest chains to c (rows, K) and the bounds that their steps lie on, for low, high (rows, K - 1), float64.

    Compiled where the backend ``numba`` is in use, else the same lines interpreted.
    """
    c, low, high = c.contiguous(), low.contiguous(), high.contiguous()
    n, side = torch.empty_like(c), torch.empty_like(low, dtype=torch.int8)
    if backends.current("cpu") == "numba":
        try:
            _WORKER(len(c), c.numel() * 64, len(c), c.shape[1], c, low, high, n, side)
        except KernelError as error:
            backends.fall_back("numba", str(error))
        else:
            return n, side
    stacks = np.empty((4, 2 * c.shape[1]))
    with np.errstate(all="ignore"):
        for row in zip(c.numpy(), low.numpy(), high.numpy(), n.numpy(), side.numpy(), strict=True):
            _solve.py_func(*row[:3], *stacks, *row[3:])
    return n, side
