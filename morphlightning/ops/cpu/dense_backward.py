"""The backward pass of dense products on the processor.

Limit: one read-modify-write for each output and each of x and w, at addresses that depend on data; nothing there is
vectorized, but it is a fourth of the forward pass. A task owns some rows of the gradient of x, or some rows of that of
w, and goes through its messages in a fixed order: no atomics, the same bits for any number of threads. A projection
scans the taps of rows that have several candidates above their target, and no others.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from morphlightning.ops.cpu.sweeps import lower_active
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
def _project(args, dtype):
    """Lower candidates above their target, raise winners below it; a task owns the weights of some outputs."""
    s = slots_of(args)
    samples, groups, outs, taps = s[9], s[10], s[11], s[12]
    tau = dtype(floats_of(args)[13])
    units, scale = groups * outs, dtype(1) / tau
    u, x = numbers(s[2], samples * units, dtype), numbers(s[3], samples * groups * taps, dtype)
    w = numbers(s[4], units * taps, dtype)
    arg, gap = numbers(s[5], samples * units, np.int32), numbers(s[6], samples * units, dtype)
    gw, touched = numbers(s[7], units * taps, dtype), numbers(s[8], units * taps, dtype)
    blocks = (outs + OUTPUTS - 1) // OUTPUTS
    task = next_task(s)
    while task >= 0:
        g, first = task // blocks, task // blocks * outs + task % blocks * OUTPUTS
        last = min(first + OUTPUTS, g * outs + outs)
        gw[first * taps : last * taps] = dtype(0)
        touched[first * taps : last * taps] = dtype(0)
        for b in range(samples):
            for unit in range(first, last):
                at, ix, iw = b * units + unit, (b * groups + g) * taps, unit * taps
                message, winner = u[at], arg[at]
                if winner >= 0 and message != dtype(0):
                    if message < dtype(0) or gap[at] >= tau * message:
                        gw[iw + winner] += message
                        touched[iw + winner] += dtype(1)
                    else:
                        target = x[ix + winner] + w[iw + winner] - tau * message
                        lower_active(x, ix, w, iw, gw, touched, iw, taps, target, scale)
        task = next_task(s)


# ------------------------------------------------------------------------------------------------------ workers
def _scatter32(args):
    _scatter(args, np.float32)


def _scatter64(args):
    _scatter(args, np.float64)


def _project32(args):
    _project(args, np.float32)


def _project64(args):
    _project(args, np.float64)


_SCATTER = {torch.float32: Worker(_scatter32), torch.float64: Worker(_scatter64)}
_PROJECT = {torch.float32: Worker(_project32), torch.float64: Worker(_project64)}


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


def project(
    u: Tensor, x: Tensor, w: Tensor, arg: Tensor, gap: Tensor, groups: int, tau: float
) -> tuple[Tensor, Tensor]:
    """Pseudo-gradients of w that take each maximum to y - tau u, and how many rows moved each weight; finite x."""
    gw, touched = torch.empty_like(w), torch.empty_like(w)
    samples, outs, taps = len(x), len(w) // groups, w.shape[1]
    tasks = groups * -(-outs // OUTPUTS)
    _PROJECT[x.dtype](tasks, x.numel() * outs, u, x, w, arg, gap, gw, touched, samples, groups, outs, taps, tau)
    return gw, touched
