"""The backward pass of dense products on the processor.

Limit: one read-modify-write for each output and each of x and w, at addresses that depend on data; nothing there is
vectorized, but it is a fourth of the forward pass. A task owns some rows of the gradient of x, or some rows of that of
w, and goes through its messages in a fixed order: no atomics, the same bits for any number of threads. Where rules send
to all candidates within eps of a maximum, rows without a near tie cost the same; the others scan their taps.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from morphlightning.ops.cpu.sweeps import count_active, send_to_active
from morphlightning.ops.cpu.workers import Worker, floats_of, kernel, next_task, numbers, slots_of, unsigned

ROWS = 8
"""Rows of the gradient of x that a task owns."""
OUTPUTS = 16
"""Rows of the gradient of w that a task owns: neighbours, whose messages share cache lines."""


# ------------------------------------------------------------------------------------------------ inside workers
@kernel
def _scatter(args, dtype):
    """Messages to winners; counts messages instead where ``counting``."""
    s = slots_of(args)
    samples, groups, outs, taps = s[6], s[7], s[8], s[9]
    want_x, want_w, counting = s[10], s[11], s[13]
    sign = dtype(s[12])
    units = groups * outs
    gy, arg = numbers(s[2], samples * units, dtype), numbers(s[3], samples * units, np.int32)
    gx = numbers(s[4], want_x * samples * groups * taps, dtype)
    gw = numbers(s[5], want_w * units * taps, dtype)
    row_tasks = (samples + ROWS - 1) // ROWS * want_x
    blocks = (outs + OUTPUTS - 1) // OUTPUTS
    task = next_task(s)
    while task >= 0:
        if task < row_tasks:
            first, last = task * ROWS, min(task * ROWS + ROWS, samples)
            gx[first * groups * taps : last * groups * taps] = dtype(0)
            for row in range(first * groups, last * groups):
                for at in range(row * outs, row * outs + outs):
                    winner = arg[unsigned(at)]
                    if winner >= 0:
                        gx[unsigned(row * taps + winner)] += gy[unsigned(at)]
        else:
            g, block = (task - row_tasks) // blocks, (task - row_tasks) % blocks
            first = g * outs + block * OUTPUTS
            last = min(first + OUTPUTS, g * outs + outs)
            gw[first * taps : last * taps] = dtype(0)
            for b in range(samples):
                for unit in range(first, last):
                    at = unsigned(b * units + unit)
                    winner, message = arg[at], gy[at]
                    if winner >= 0:
                        if counting:
                            message = dtype(1) if message != dtype(0) else dtype(0)
                        gw[unsigned(unit * taps + winner)] += sign * message
        task = next_task(s)


@kernel
def _spread(args, dtype):
    """Messages to all candidates within eps of the maxima."""
    s = slots_of(args)
    samples, groups, outs, taps = s[10], s[11], s[12], s[13]
    eps = dtype(floats_of(args)[14])
    units = groups * outs
    ux, uw = numbers(s[2], samples * units, dtype), numbers(s[3], samples * units, dtype)
    x, w = numbers(s[4], samples * groups * taps, dtype), numbers(s[5], units * taps, dtype)
    arg, gap = numbers(s[6], samples * units, np.int32), numbers(s[7], samples * units, dtype)
    gx, gw = numbers(s[8], samples * groups * taps, dtype), numbers(s[9], units * taps, dtype)
    row_tasks = (samples + ROWS - 1) // ROWS
    blocks = (outs + OUTPUTS - 1) // OUTPUTS
    task = next_task(s)
    while task >= 0:
        if task < row_tasks:
            first, last = task * ROWS, min(task * ROWS + ROWS, samples)
            gx[first * groups * taps : last * groups * taps] = dtype(0)
            for row in range(first * groups, last * groups):
                for o in range(outs):
                    at, iw = row * outs + o, (row % groups * outs + o) * taps
                    if gap[at] > eps:
                        if arg[at] >= 0:
                            gx[row * taps + arg[at]] += ux[at]
                    elif arg[at] >= 0 and ux[at] != dtype(0):
                        ix = row * taps
                        top = x[ix + arg[at]] + w[iw + arg[at]]
                        send_to_active(x, ix, w, iw, gx, ix, taps, top, eps, ux[at])
        else:
            g, block = (task - row_tasks) // blocks, (task - row_tasks) % blocks
            first = g * outs + block * OUTPUTS
            last = min(first + OUTPUTS, g * outs + outs)
            gw[first * taps : last * taps] = dtype(0)
            for b in range(samples):
                for unit in range(first, last):
                    at, ix, iw = b * units + unit, (b * groups + g) * taps, unit * taps
                    if gap[at] > eps:
                        if arg[at] >= 0:
                            gw[iw + arg[at]] += uw[at]
                    elif arg[at] >= 0 and uw[at] != dtype(0):
                        top = x[ix + arg[at]] + w[iw + arg[at]]
                        send_to_active(x, ix, w, iw, gw, iw, taps, top, eps, uw[at])
        task = next_task(s)


@kernel
def _count(args, dtype):
    """How many candidates lie within eps of each maximum; a task is some samples."""
    s = slots_of(args)
    samples, groups, outs, taps = s[7], s[8], s[9], s[10]
    eps = dtype(floats_of(args)[11])
    units = groups * outs
    x, w = numbers(s[2], samples * groups * taps, dtype), numbers(s[3], units * taps, dtype)
    arg, gap = numbers(s[4], samples * units, np.int32), numbers(s[5], samples * units, dtype)
    total = numbers(s[6], samples * units, np.int32)
    task = next_task(s)
    while task >= 0:
        for row in range(task * ROWS * groups, min(task * ROWS + ROWS, samples) * groups):
            for o in range(outs):
                at, ix, iw = row * outs + o, row * taps, (row % groups * outs + o) * taps
                winner = arg[at]
                if winner < 0 or gap[at] > eps:
                    total[at] = 1 if winner >= 0 else 0
                else:
                    top = x[ix + winner] + w[iw + winner]
                    total[at] = count_active(x, ix, w, iw, taps, top, eps)
        task = next_task(s)


# ------------------------------------------------------------------------------------------------------ workers
def _scatter32(args):
    _scatter(args, np.float32)


def _scatter64(args):
    _scatter(args, np.float64)


def _spread32(args):
    _spread(args, np.float32)


def _spread64(args):
    _spread(args, np.float64)


def _count32(args):
    _count(args, np.float32)


def _count64(args):
    _count(args, np.float64)


_SCATTER = {torch.float32: Worker(_scatter32), torch.float64: Worker(_scatter64)}
_SPREAD = {torch.float32: Worker(_spread32), torch.float64: Worker(_spread64)}
_COUNT = {torch.float32: Worker(_count32), torch.float64: Worker(_count64)}


# -------------------------------------------------------------------------------------------------- from outside
def scatter(
    gy: Tensor, arg: Tensor, taps: int, groups: int, sign: int, want_x: bool, want_w: bool, counting: bool = False
) -> tuple[Tensor, Tensor]:
    """Gradients of x (samples, groups * taps) and, times ``sign``, of w (groups * out, taps); contiguous messages.

    With ``counting`` the second one is the number of messages other than zero.
    """
    samples, units = gy.shape
    gx = gy.new_empty((samples, groups * taps) if want_x else 0)
    gw = gy.new_empty((units, taps) if want_w else 0)
    outs = units // groups
    tasks = -(-samples // ROWS) * want_x + groups * -(-outs // OUTPUTS) * want_w
    work = 4 * gy.numel() + gx.numel() + gw.numel()
    sizes = (samples, groups, outs, taps, int(want_x), int(want_w), sign, int(counting))
    _SCATTER[gy.dtype](tasks, work, gy, arg, gx, gw, *sizes)
    return gx, gw


def spread(
    ux: Tensor, uw: Tensor, x: Tensor, w: Tensor, arg: Tensor, gap: Tensor, groups: int, eps: float
) -> tuple[Tensor, Tensor]:
    """Gradients where each row sends ``ux`` to the cells and ``uw`` to the taps within eps of its maximum; finite x."""
    gx, gw = torch.empty_like(x), torch.empty_like(w)
    samples, outs, taps = len(x), len(w) // groups, w.shape[1]
    tasks = -(-samples // ROWS) + groups * -(-outs // OUTPUTS)
    _SPREAD[x.dtype](
        tasks, x.numel() * outs, ux, uw, x, w, arg, gap, gx, gw, samples, groups, outs, taps, _finite(eps, x.dtype)
    )
    return gx, gw


def counts(x: Tensor, w: Tensor, arg: Tensor, gap: Tensor, groups: int, eps: float) -> Tensor:
    """How many candidates lie within eps of each maximum (int32, 0 where lost)."""
    total = torch.empty_like(arg)
    samples, outs, taps = len(x), len(w) // groups, w.shape[1]
    tasks = -(-samples // ROWS)
    _COUNT[x.dtype](tasks, x.numel() * outs, x, w, arg, gap, total, samples, groups, outs, taps, _finite(eps, x.dtype))
    return total


def _finite(eps: float, dtype: torch.dtype) -> float:
    """As a finite number, so that a score of -inf is never near."""
    return float(min(eps, torch.finfo(dtype).max))
