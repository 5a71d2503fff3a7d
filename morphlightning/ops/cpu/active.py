"""Active candidates on the processor: listed in one scan of the rows with a near tie, then visited in every pass.

Limit: a scan meets each pair once, as a forward pass does, but without its reuse of registers: two loads, an addition
and a comparison for each vector. Where candidates are cannot be foreseen, and a wrong guess costs more than a vector:
the scan leaves bits, and words without any are dropped by arithmetic. The passes cost one or two accesses for each
active candidate, some in a hundred of all pairs. Where there is no room for all lists, they are made for some samples
at a time, anew for each pass. Where few samples have a tie, only these are listed; the others go to their winners.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from morphlightning import backends
from morphlightning.ops import eager
from morphlightning.ops.active import ActiveGraph, Call
from morphlightning.ops.cpu import passes
from morphlightning.ops.cpu.steepest import STEEPEST, steepest_into
from morphlightning.ops.cpu.sweeps import WORD, lowest_bit, mark_active
from morphlightning.ops.cpu.workers import (
    KernelError,
    Worker,
    floats_of,
    kernel,
    next_task,
    numbers,
    slots_of,
    unsigned,
)
from morphlightning.ops.geometry import Dense, Window

LIMIT, FEW, SHARE = 1 << 25, 1 << 22, 16
"""Candidates that there is room for at once: one in SHARE pairs, but a few in any case, and no more than the limit. A
candidate takes 12 bytes, and what is not used is never touched."""
ROOM = 16
"""Candidates a row that a first attempt has room for."""
ROWS = 8
"""Samples of a task."""
SPAN = 16
"""Outputs of a dense operator whose candidates are found by one offset: neighbours, which share cache lines."""


class Lists(NamedTuple):
    """The active candidates of some samples, row after row; rows without a tie list their winner.

    Attributes:
        offset: Where the candidates of each sample and span of rows begin, and those of its last end (samples,
            spans + 1), int64.
        unit: Row of each candidate inside its sample, int32.
        tap: Its flat index into the weight, int32.
        cell: Its input cell inside the sample, int32, -1 for a constant border.
        span: Rows of a span.
    """

    offset: Tensor
    unit: Tensor
    tap: Tensor
    cell: Tensor
    span: int


# ------------------------------------------------------------------------------------------------ inside workers
@kernel
def _collect(args, dtype):
    """List the candidates of some samples a task, each in a segment of its own; what does not fit is counted only."""
    s = slots_of(args)
    samples, units, outs, taps, groups, dense = s[2], s[3], s[4], s[5], s[6], s[7]
    width, room, span, eps = s[8], s[9], s[10], dtype(floats_of(args)[11])
    x, w = numbers(s[12], samples * width, dtype), numbers(s[13], outs * taps, dtype)
    arg, gap = numbers(s[14], samples * units, np.int32), numbers(s[15], samples * units, dtype)
    size, spans = numbers(s[16], samples * units, np.int32), (units + span - 1) // span
    offset, places = numbers(s[17], samples * (spans + 1), np.int64), samples * room
    unit_of, tap_of, cell_of = (
        numbers(s[18], places, np.int32),
        numbers(s[19], places, np.int32),
        numbers(s[20], places, np.int32),
    )
    first, away, held = numbers(s[21], units, np.int64), numbers(s[22], taps, np.int64), numbers(s[23], width, np.int64)
    plane, at_once = units // outs, outs // groups
    marked, index = np.empty(taps // WORD + 1, np.int64), np.empty(taps // WORD + 2, np.int64)
    words = np.empty(taps // WORD + 2, np.int64)
    place = np.empty(ROWS, np.int64)
    task = next_task(s)
    while task >= 0:
        begin, some = task * ROWS, min(ROWS, samples - task * ROWS)
        for i in range(some):
            place[i] = (begin + i) * room
        for block in range(spans):
            for i in range(some):
                offset[(begin + i) * (spans + 1) + block] = place[i]
            for unit in range(block * span, min(block * span + span, units)):
                out = unit // plane if plane > 1 else unit
                iw = out * taps
                group = out // at_once * taps if groups > 1 else 0
                for i in range(some):  # the weights of a unit stay in the cache
                    b, to = begin + i, place[i]
                    row, end = b * units + unit, (b + 1) * room
                    winner, n = arg[row], 0
                    if winner >= 0 and gap[row] > eps:
                        n = 1
                        if to < end:
                            unit_of[to], tap_of[to] = unit, iw + winner
                            cell_of[to] = group + winner if dense else held[first[unit] + away[winner]]
                    elif winner >= 0 and dense:
                        ix = b * width + group
                        mark_active(x, ix, w, iw, taps, x[ix + winner] + w[iw + winner], eps, marked)
                        some_words = 0
                        for q in range((taps + WORD - 1) // WORD):  # without a branch, which could not be foreseen
                            words[some_words], index[some_words] = marked[q], q * WORD
                            some_words += marked[q] != 0
                        for q in range(some_words):
                            word = words[q]
                            while word != 0:
                                j = index[q] + lowest_bit(word)
                                if to + n < end:
                                    at = unsigned(to + n)
                                    unit_of[at], tap_of[at], cell_of[at] = unit, iw + j, group + j
                                n += 1
                                word &= word - 1
                    elif winner >= 0:
                        base = b * width + first[unit]
                        top = x[base + away[winner]] + w[iw + winner]
                        for k in range(taps):
                            if top - (x[base + away[k]] + w[iw + k]) <= eps:
                                if to + n < end:
                                    unit_of[to + n], tap_of[to + n] = unit, iw + k
                                    cell_of[to + n] = held[first[unit] + away[k]]
                                n += 1
                    size[row] = n
                    place[i] += n
        for i in range(some):
            offset[(begin + i) * (spans + 1) + spans] = place[i]
        task = next_task(s)


def _collect32(args):
    _collect(args, np.float32)


def _collect64(args):
    _collect(args, np.float64)


_COLLECT = {torch.float32: Worker(_collect32), torch.float64: Worker(_collect64)}


# -------------------------------------------------------------------------------------------------- from outside
class ListedGraph(ActiveGraph):
    """The graph by lists of its edges.

    Raises:
        KernelError: One of its kernels cannot be compiled; said at once, while another backend can still take over.
    """

    def __init__(self, call: Call, eps: float) -> None:
        super().__init__(call, eps)
        dtype = eager.compute_dtype(call.x, call.w)
        for worker in (_COLLECT[dtype], *passes.workers(dtype)):
            worker.compile()

    @cached_property
    def size(self) -> Tensor:
        """Number of active candidates of each row (samples, units), int32; 0 where there is none."""
        return self._sizes if self._whole is not None else torch.cat([self._collect(r)[0] for r in self._ranges()])

    def to_cells(self, gy: Tensor) -> Tensor:
        """Send each row's message (samples, units) to the cells of all its candidates: sums (samples, cells)."""
        gx = gy.new_empty(len(gy), self.cells)
        for rows, lists in self._parts():
            passes.sum_into_cells(lists, gy[rows].contiguous(), gx[rows])
        return gx

    def to_taps(self, gy: Tensor) -> Tensor:
        """Send each row's message (samples, units) to the weights of all its candidates: sums (taps,)."""
        sums = (passes.sums_of_taps(lists, gy[rows].contiguous(), self.call.w.shape) for rows, lists in self._parts())
        return functools.reduce(torch.add, sums)

    def to_cells_by_sign(self, gy: Tensor) -> Tensor:
        """Messages above 0 to the cells of all candidates, below 0 to the one with the least sum of the former."""
        gx = gy.new_empty(len(gy), self.cells)
        for rows, lists in self._parts():
            passes.send_by_sign(lists, gy[rows].contiguous(), gx[rows])
        return gx

    def to_taps_by_sign(self, gy: Tensor) -> Tensor:
        """Messages above 0 to the weights of all candidates, below 0 to the winner's: sums (taps,)."""
        sums = (
            passes.sums_of_taps(lists, gy[rows].contiguous(), self.call.w.shape, self._winners[rows].contiguous())
            for rows, lists in self._parts()
        )
        return functools.reduce(torch.add, sums)

    def dilate(self, h: Tensor) -> Tensor:
        """Largest h (samples, cells) among each row's candidates (samples, units); 0 where there is none."""
        y = h.new_empty(len(h), self.units)
        for rows, lists in self._parts():
            passes.largest_of_rows(lists, h[rows].contiguous(), y[rows])
        return y

    def erode(self, u: Tensor) -> Tensor:
        """Least u (samples, units) among the rows in which a cell is active (samples, cells); inf where in none."""
        least = u.new_empty(len(u), self.cells)
        for rows, lists in self._parts():
            passes.least_into_cells(lists, u[rows].contiguous(), least[rows])
        return least

    def select(self, values: Tensor) -> Tensor:
        """The candidate of each row with the least value (samples, cells), the first of equal ones; -1 where none."""
        chosen = self.call.arg.flatten(1).clone()
        for rows, lists in self._parts():
            passes.select_in_rows(lists, values[rows].contiguous(), chosen[rows], self._weights.shape[1])
        return chosen

    def steepest(self, gy: Tensor, default: Tensor) -> Tensor:
        """Of eight messages the steepest one, sample by sample; see :func:`morphlightning.ops.messages.steepest`."""
        if not self.tied:
            return default
        try:
            STEEPEST[default.dtype].compile()
        except KernelError:
            return super().steepest(gy, default)
        message = default.clone()
        if message.numel():
            for rows, lists in self._parts():
                places = gy[rows].contiguous(), self.size[rows].contiguous(), self._winners[rows].contiguous()
                steepest_into(lists, *places, message[rows])
        return message

    @cached_property
    def _winners(self) -> Tensor:
        """Flat index into the weight of each row's winner (samples, units), int32."""
        outs, taps = self._weights.shape
        return self.call.arg.flatten(1) + torch.arange(self.units, dtype=torch.int32) // (self.units // outs) * taps

    @cached_property
    def _room(self) -> int:
        """Candidates that a sample has room for; every one, once some did not fit."""
        return self.units * min(ROOM, self._weights.shape[1]) | 5  # odd: segments begin in different sets of the cache

    @property
    def _limit(self) -> int:
        return min(LIMIT, max(FEW, self.call.arg.numel() * self._weights.shape[1] // SHARE))

    @cached_property
    def _whole(self) -> Lists | None:
        """The lists of all samples, where there is room for them."""
        samples = len(self.call.x)
        if samples * self._room > self._limit:
            return None
        self._sizes, lists = self._collect(slice(None))
        needed = int(self._sizes.sum(1).max()) if samples else 0
        if needed <= self._room:
            return lists
        self._room = needed
        if samples * needed > self._limit:
            return None
        return self._collect(slice(None))[1]

    def _ranges(self) -> Iterator[slice]:
        """As many samples at a time as there is room for."""
        together = max(1, self._limit // self._room)
        return (slice(first, first + together) for first in range(0, len(self.call.x), together))

    def _parts(self) -> Iterator[tuple[slice, Lists]]:
        """All samples at once, or some at a time."""
        if self._whole is not None:
            yield slice(None), self._whole
            return
        for rows in self._ranges():
            yield rows, self._collect(rows)[1]

    def _collect(self, rows: slice) -> tuple[Tensor, Lists]:
        """Sizes of the active sets of these samples, and their lists."""
        where, (outs, taps) = self.call.where, self._weights.shape
        x, arg, gap = self._inputs[rows], self.call.arg[rows].contiguous(), self.call.gap[rows].contiguous()
        samples, dense = len(x), isinstance(where, Dense)
        span = SPAN if dense else self.units // outs
        size = torch.empty(samples, self.units, dtype=torch.int32)
        offset = torch.empty(samples, -(-self.units // span) + 1, dtype=torch.int64)
        unit, tap, cell = (torch.empty(samples * self._room, dtype=torch.int32) for _ in range(3))
        sizes = (samples, self.units, outs, taps, where.groups, int(dense), x.shape[1], self._room, span)
        eps = float(min(self.eps, torch.finfo(x.dtype).max))  # finite, so that a score of -inf is never near
        pointers = (x, self._weights, arg, gap, size, offset, unit, tap, cell, *self._tables)
        _COLLECT[x.dtype](-(-samples // ROWS), arg.numel() * taps, *sizes, eps, *pointers)
        return size, Lists(offset, unit, tap, cell, span)

    @cached_property
    def _weights(self) -> Tensor:
        dtype = eager.compute_dtype(self.call.x, self.call.w)
        return self.call.w.to(dtype).flatten(1).contiguous()

    @cached_property
    def _inputs(self) -> Tensor:
        """Inputs (samples, width), those of windows with their border."""
        x, where = self.call.x.to(self._weights.dtype), self.call.where
        x = where.pad(x) if isinstance(where, Window) else x
        return eager.bounded(x).flatten(1).contiguous()

    @cached_property
    def _tables(self) -> tuple[Tensor, ...]:
        """Where windows find their cells; of dense operators nothing that is looked at."""
        if isinstance(self.call.where, Dense):
            return (torch.empty(0, dtype=torch.int64),) * 3
        tables = self.call.where.tables(self.call.x.shape, self.call.w.shape, self.call.x.device)
        return tuple(table.contiguous() for table in tables)


class PartlyTiedGraph(ActiveGraph):
    """The graph of a call in which some samples have a tie: lists for these, winners for the others."""

    def __init__(self, call: Call, eps: float, tied: Tensor) -> None:
        super().__init__(call, eps)
        self._tied = tied
        self._some = ListedGraph(call._replace(x=call.x[tied], arg=call.arg[tied], gap=call.gap[tied]), eps)

    @cached_property
    def size(self) -> Tensor:
        """Number of active candidates of each row (samples, units), int32; 0 where there is none."""
        return (self.call.arg.flatten(1) >= 0).int().index_copy_(0, self._tied, self._some.size)

    def to_cells(self, gy: Tensor) -> Tensor:
        """Send each row's message (samples, units) to the cells of all its candidates: sums (samples, cells)."""
        return self.deliver(gy, None).index_copy_(0, self._tied, self._some.to_cells(gy[self._tied]))

    def to_taps(self, gy: Tensor) -> Tensor:
        """Send each row's message (samples, units) to the weights of all its candidates: sums (taps,)."""
        return self._untied_to_taps(gy) + self._some.to_taps(gy[self._tied])

    def to_cells_by_sign(self, gy: Tensor) -> Tensor:
        """Messages above 0 to the cells of all candidates, below 0 to the one with the least sum of the former."""
        return self.deliver(gy, None).index_copy_(0, self._tied, self._some.to_cells_by_sign(gy[self._tied]))

    def to_taps_by_sign(self, gy: Tensor) -> Tensor:
        """Messages above 0 to the weights of all candidates, below 0 to the winner's: sums (taps,)."""
        return self._untied_to_taps(gy) + self._some.to_taps_by_sign(gy[self._tied])

    def select(self, values: Tensor) -> Tensor:
        """The candidate of each row with the least value (samples, cells), the first of equal ones; -1 where none."""
        chosen = self.call.arg.flatten(1).clone()
        return chosen.index_copy_(0, self._tied, self._some.select(values[self._tied]))

    def steepest(self, gy: Tensor, default: Tensor) -> Tensor:
        """Of eight messages the steepest one, sample by sample; see :func:`morphlightning.ops.messages.steepest`."""
        best = self._some.steepest(gy[self._tied], default[self._tied])
        return default.index_copy(0, self._tied, best)

    def dilate(self, h: Tensor) -> Tensor:
        """Largest h (samples, cells) among each row's candidates (samples, units); 0 where there is none."""
        return self._all.dilate(h)

    def erode(self, u: Tensor) -> Tensor:
        """Least u (samples, units) among the rows in which a cell is active (samples, cells); inf where in none."""
        return self._all.erode(u)

    @cached_property
    def _all(self) -> ListedGraph:
        return ListedGraph(self.call, self.eps)

    def _untied_to_taps(self, gy: Tensor) -> Tensor:
        call, messages = self.call, gy.index_fill(0, self._tied, 0).view(self.call.arg.shape)
        backend = backends.backend_for(gy)
        return backend.scatter(messages, call.arg, call.x.shape, call.w.shape, call.where, False, True)[1].flatten()


def graph_of(call: Call, eps: float) -> ActiveGraph:
    """The graph of candidates within eps of their maximum; by lists of some samples where few have a tie."""
    nearest = call.gap.flatten(1).nan_to_num(nan=math.inf)
    tied = (nearest.amin(1) <= eps).nonzero()[:, 0] if nearest.numel() else call.arg.new_empty(0)  # min is vectorized
    few = 0 < 2 * len(tied) < len(call.x)
    graph = PartlyTiedGraph(call, eps, tied) if few else ListedGraph(call, eps)
    graph.tied = len(tied) > 0
    return graph
