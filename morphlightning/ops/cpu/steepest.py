"""The steepest of eight messages at ties on the processor; see ops/messages.py, which specifies it.

Limit: the eight messages of a sample stay in the second-level cache, cell by cell, so that one candidate of the active
set meets them all in one place: two visits of all candidates for sums, one for slopes. A task is a sample.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numba import types
from torch import Tensor

from morphlightning.ops.cpu.simd import I64, Emitter, intrinsic
from morphlightning.ops.cpu.workers import Worker, kernel, next_task, numbers, slots_of, unsigned
from morphlightning.ops.messages import NEAR

if TYPE_CHECKING:
    from morphlightning.ops.cpu.active import Lists

WINNER, SHARED, ALL, BY_SIGN, CHEBYSHEV, SHIFT, SIGN_OF_ALL, SIGN_OF_BY_SIGN, COUNT = range(9)


@intrinsic
def _lower(typing: Any, row: Any, i: Any, m: Any, j: Any) -> Any:
    """row[i, c] = min(row[i, c], m[j, c]) for all eight messages c."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        emit = Emitter(context, builder, row.dtype)
        target, source = (emit.pointer(a, values[k], I64(0)) for a, k in ((row, 0), (m, 2)))
        to, at = (builder.mul(values[k], I64(COUNT)) for k in (1, 3))
        held, new = emit.load(target, to, COUNT), emit.load(source, at, COUNT)
        emit.store(builder.select(builder.fcmp_ordered("<", new, held), new, held), target, to)
        return context.get_dummy_value()

    return types.void(row, types.int64, m, types.int64), generate


@intrinsic
def _peaks(typing: Any, m: Any, n: Any, largest: Any) -> Any:
    """largest[c] = max over j < n of |m[j, c]| for all eight messages c; n >= 1."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        emit = Emitter(context, builder, m.dtype)
        source, target = emit.pointer(m, values[0], I64(0)), emit.pointer(largest, values[2], I64(0))
        zero = emit.splat(emit.number(0.0), COUNT)
        before, loop, done = emit.loop()
        j, held = builder.phi(I64), builder.phi(zero.type)
        new = emit.load(source, builder.mul(j, I64(COUNT)), COUNT)
        new = emit.intrinsic(f"llvm.fabs.v{COUNT}f{m.dtype.bitwidth}", new.type, [new.type], [new])
        larger = builder.select(builder.fcmp_ordered(">", new, held), new, held)
        following = builder.add(j, I64(1))
        emit.join(j, before, I64(0), loop, following)
        emit.join(held, before, zero, loop, larger)
        builder.cbranch(builder.icmp_signed("<", following, values[1]), loop, done)
        builder.position_at_end(done)
        emit.store(larger, target, I64(0))
        return context.get_dummy_value()

    return types.void(m, types.int64, largest), generate


@kernel
def _steepest(args, dtype):
    """Overwrite the default message of each sample with a tie, where a candidate descends."""
    s = slots_of(args)
    samples, units, cells, spans, places = s[2], s[3], s[4], s[5], s[6]
    offset = numbers(s[7], samples * (spans + 1), np.int64)
    unit, tap = numbers(s[8], places, np.int32), numbers(s[9], places, np.int32)
    cell, size = numbers(s[10], places, np.int32), numbers(s[11], samples * units, np.int32)
    u, winner = numbers(s[12], samples * units, dtype), numbers(s[13], samples * units, np.int32)
    share, gx = numbers(s[14], samples * units, dtype), numbers(s[15], samples * cells, dtype)
    m, mass = np.empty((cells + 1, COUNT), dtype), np.empty(cells + 1, dtype)  # the last one is a constant border
    row, least, chosen = np.empty((units, COUNT), dtype), np.empty(units, dtype), np.empty(units, np.int32)
    b = next_task(s)
    while b >= 0:
        begin, end = offset[b * (spans + 1)], offset[b * (spans + 1) + spans]
        rows, base = b * units, b * cells
        found = 0
        for at in range(rows, rows + units):
            found += size[unsigned(at)] > 0
        if end - begin > found:
            _sum(m, mass, u, share, rows, winner, unit, tap, cell, begin, end)
            lack = _by_sign_and_lack(m, mass, row, least, chosen, u, rows, size, unit, cell, begin, end)
            shared = _finish(m, lack, u, size, rows, units)
            best = _best(m, row, u, rows, units, unit, cell, begin, end)
            if best >= 0:
                square = 0.0
                for j in range(cells):
                    square += m[j, best] * m[j, best]
                scale = dtype(np.sqrt(shared / square))
                for j in range(cells):
                    gx[unsigned(base + j)] = scale * m[j, best]
        b = next_task(s)


@kernel
def _sum(m, mass, u, share, rows, winner, unit, tap, cell, begin, end):
    """Sums over the rows of each cell: winners, equal shares, all, positive ones, and the largest message."""
    zero, none = m.dtype.type(0), m.dtype.type(-np.inf)
    m[:] = zero
    m[:, CHEBYSHEV] = none
    mass[:] = zero
    for p in range(begin, end):
        at = unsigned(p)
        j, here = cell[at], unsigned(rows + unit[at])
        j = j if j >= 0 else len(m) - 1
        message = u[here]
        m[j, WINNER] += message * m.dtype.type(tap[at] == winner[here])
        m[j, SHARED] += share[here]
        m[j, ALL] += message
        m[j, CHEBYSHEV] = max(m[j, CHEBYSHEV], message)
        mass[j] += max(message, zero)
    border = len(m) - 1  # a constant one does not move
    m[border] = zero
    mass[border] = m.dtype.type(np.inf)


@kernel
def _by_sign_and_lack(m, mass, row, least, chosen, u, rows, size, unit, cell, begin, end):
    """Give negative messages to their least opposed cell; the largest residual of the adjoint's message."""
    zero, large = m.dtype.type(0), m.dtype.type(np.inf)
    for j in range(len(mass)):
        m[j, BY_SIGN] = mass[j]
    m[len(m) - 1, BY_SIGN] = zero
    least[:] = large
    chosen[:] = -1
    row[:, 0] = -large
    for p in range(begin, end):  # without a branch, which could not be foreseen
        j, i = cell[unsigned(p)], unit[unsigned(p)]
        j = j if j >= 0 else len(m) - 1
        row[i, 0] = max(row[i, 0], -m[j, CHEBYSHEV])
        less = mass[j] < least[i]
        least[i] = min(least[i], mass[j])
        chosen[i] += (j - chosen[i]) * np.int32(less)
    lack = zero
    for i in range(len(least)):
        message = u[rows + i]
        if size[rows + i] > 0:
            lack = max(lack, -message - row[i, 0])
            if chosen[i] >= 0:
                m[chosen[i], BY_SIGN] += min(message, zero)
    return lack


@kernel
def _finish(m, lack, u, size, rows, units):
    """The messages that follow from the sums; the squared norm of the shared one. Without branches on numbers."""
    zero, one, two, half = m.dtype.type(0), m.dtype.type(1), m.dtype.type(2), m.dtype.type(0.5)
    none, low = m.dtype.type(-np.inf), m.dtype.type(-1e30)
    total = zero
    for at in range(rows, rows + units):
        total += u[at] * m.dtype.type(size[at] > 0)
    side = m.dtype.type(total > zero) - m.dtype.type(total < zero)
    shared = zero
    for j in range(len(m) - 1):
        active = m.dtype.type(m[j, CHEBYSHEV] > none)
        m[j, CHEBYSHEV] = (max(m[j, CHEBYSHEV], low) - half * lack) * active
        m[j, SHIFT] = side
        m[j, SIGN_OF_ALL] = (one - two * m.dtype.type(m[j, ALL] < zero)) * active
        m[j, SIGN_OF_BY_SIGN] = (one - two * m.dtype.type(m[j, BY_SIGN] < zero)) * active
        shared += m[j, SHARED] * m[j, SHARED]
    return shared


@kernel
def _best(m, row, u, rows, units, unit, cell, begin, end):
    """The first message whose slope, scaled to sup norm 1, is nearly the least; -1 where none is below 0."""
    zero, one, large = m.dtype.type(0), m.dtype.type(1), m.dtype.type(np.inf)
    cells = len(m) - 1
    largest, slope = np.empty(COUNT, m.dtype), np.zeros(COUNT, m.dtype)
    _peaks(m, cells, largest)
    row[:] = large  # the largest of -m is minus the least of m
    for p in range(begin, end):
        j = cell[unsigned(p)]
        _lower(row, unit[unsigned(p)], m, j if j >= 0 else cells)
    for i in range(units):
        if row[i, 0] < large:
            for c in range(COUNT):
                slope[c] -= u[rows + i] * row[i, c]
    least = zero
    for c in range(COUNT):
        slope[c] /= largest[c] if largest[c] > zero else one
        least = min(least, slope[c])
    if not least < zero:
        return -1
    best = 0
    while slope[best] > least - m.dtype.type(NEAR) * least:
        best += 1
    return best


def _steepest32(args):
    _steepest(args, np.float32)


def _steepest64(args):
    _steepest(args, np.float64)


STEEPEST = {torch.float32: Worker(_steepest32), torch.float64: Worker(_steepest64)}


def steepest_into(lists: Lists, u: Tensor, size: Tensor, winners: Tensor, gx: Tensor) -> None:
    """Overwrite ``gx`` (samples, cells) by the steepest message of each sample with a tie, where one descends.

    Args:
        lists: Active candidates.
        u: Messages (samples, units).
        size: Number of candidates of each row, int32.
        winners: Flat tap of each row's winner, int32.
        gx: Default messages.
    """
    sizes = (*u.shape, gx.shape[1], lists.offset.shape[1] - 1, len(lists.tap))
    STEEPEST[u.dtype](len(u), 16 * u.numel(), *sizes, *lists[:4], size, u, winners, u / size.clamp_min(1), gx)
