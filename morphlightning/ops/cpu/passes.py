"""Passes over lists of active candidates: sums, maxima and minima along the edges of their graph.

Limit: one read, or one read-modify-write, for each active candidate, at addresses that depend on data; there is no
branch that depends on how many a row has. Tasks own whole samples, or whole outputs, and visit candidates in order: no
atomics, the same bits for any number of threads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from morphlightning.ops.cpu.workers import Worker, kernel, next_task, numbers, slots_of, unsigned

if TYPE_CHECKING:
    from morphlightning.ops.cpu.active import Lists

SUM, LEAST, LARGEST, SELECT, BY_SIGN = range(5)


# ------------------------------------------------------------------------------------------------ inside workers
@kernel
def _by_sample(args, dtype):
    """One sample a task: rows into cells (SUM, LEAST, BY_SIGN), or cells into rows (LARGEST, SELECT)."""
    s = slots_of(args)
    what, samples, units, cells, spans, places, taps = s[2], s[3], s[4], s[5], s[6], s[7], s[8]
    offset, unit = numbers(s[9], samples * (spans + 1), np.int64), numbers(s[10], places, np.int32)
    tap, cell = numbers(s[11], places, np.int32), numbers(s[12], places, np.int32)
    of_rows, of_cells = numbers(s[13], samples * units, dtype), numbers(s[14], samples * cells, dtype)
    chosen = numbers(s[15], samples * units, np.int32)
    least, place = np.empty(units, dtype), np.empty(units, np.int32)
    b = next_task(s)
    while b >= 0:
        begin, end = offset[b * (spans + 1)], offset[b * (spans + 1) + spans]
        rows, base = b * units, b * cells
        if what == SUM:
            of_cells[base : base + cells] = dtype(0)
            for p in range(begin, end):
                j = cell[unsigned(p)]
                if j >= 0:
                    of_cells[unsigned(base + j)] += of_rows[unsigned(rows + unit[unsigned(p)])]
        elif what == LEAST:
            of_cells[base : base + cells] = dtype(np.inf)
            for p in range(begin, end):
                j = cell[unsigned(p)]
                if j >= 0:
                    to = unsigned(base + j)
                    of_cells[to] = min(of_cells[to], of_rows[unsigned(rows + unit[unsigned(p)])])
        elif what == LARGEST:
            of_rows[rows : rows + units] = dtype(-np.inf)
            for p in range(begin, end):
                j, row = cell[unsigned(p)], unsigned(rows + unit[unsigned(p)])
                of_rows[row] = max(of_rows[row], of_cells[unsigned(base + j)] if j >= 0 else dtype(0))
            for row in range(rows, rows + units):
                if of_rows[row] == dtype(-np.inf):
                    of_rows[row] = dtype(0)
        elif what == BY_SIGN:
            of_cells[base : base + cells] = dtype(0)
            for p in range(begin, end):
                j = cell[unsigned(p)]
                if j >= 0:
                    message = of_rows[unsigned(rows + unit[unsigned(p)])]
                    of_cells[unsigned(base + j)] += max(message, dtype(0))
            least[:] = dtype(np.inf)
            place[:] = -1
            for p in range(begin, end):  # without a branch, which could not be foreseen
                j, i = cell[unsigned(p)], unit[unsigned(p)]
                value = of_cells[unsigned(base + j)] if j >= 0 else dtype(np.inf)
                less = value < least[i]
                least[i] = min(least[i], value)
                place[i] += (j - place[i]) * np.int32(less)
            for i in range(units):
                if place[i] >= 0:
                    of_cells[base + place[i]] += min(of_rows[rows + i], dtype(0))
        else:
            of_rows[rows : rows + units] = dtype(np.inf)
            for p in range(begin, end):  # without a branch, which could not be foreseen
                j, row = cell[unsigned(p)], unsigned(rows + unit[unsigned(p)])
                value = of_cells[unsigned(base + j)] if j >= 0 else dtype(np.inf)
                less = value < of_rows[row]
                of_rows[row] = min(of_rows[row], value)
                chosen[row] += (tap[unsigned(p)] - chosen[row]) * np.int32(less)
            for row in range(rows, rows + units):
                chosen[row] = chosen[row] % taps if chosen[row] >= 0 else -1
        b = next_task(s)


@kernel
def _by_output(args, dtype):
    """Sum messages into the weights of one span of outputs a task."""
    s = slots_of(args)
    samples, units, spans, places, weights, share = s[2], s[3], s[4], s[5], s[6], s[7]
    offset, unit = numbers(s[8], samples * (spans + 1), np.int64), numbers(s[9], places, np.int32)
    tap, of_rows = numbers(s[10], places, np.int32), numbers(s[11], samples * units, dtype)
    gw, by_sign = numbers(s[12], weights, dtype), s[13]
    winner = numbers(s[14], by_sign * samples * units, np.int32)
    task = next_task(s)
    while task >= 0:
        gw[task * share : min(task * share + share, weights)] = dtype(0)
        for b in range(samples):
            at = b * (spans + 1) + task
            for p in range(offset[at], offset[at + 1]):
                row = unsigned(b * units + unit[unsigned(p)])
                message = of_rows[row]
                if by_sign:
                    wins = dtype(tap[unsigned(p)] == winner[row])
                    message = max(message, dtype(0)) + min(message, dtype(0)) * wins
                gw[unsigned(tap[unsigned(p)])] += message
        task = next_task(s)


def _by_sample32(args):
    _by_sample(args, np.float32)


def _by_sample64(args):
    _by_sample(args, np.float64)


def _by_output32(args):
    _by_output(args, np.float32)


def _by_output64(args):
    _by_output(args, np.float64)


_BY_SAMPLE = {torch.float32: Worker(_by_sample32), torch.float64: Worker(_by_sample64)}
_BY_OUTPUT = {torch.float32: Worker(_by_output32), torch.float64: Worker(_by_output64)}


# -------------------------------------------------------------------------------------------------- from outside
def workers(dtype: torch.dtype) -> tuple[Worker, ...]:
    """What has to be compiled."""
    return _BY_SAMPLE[dtype], _BY_OUTPUT[dtype]


def sum_into_cells(lists: Lists, rows: Tensor, cells: Tensor) -> None:
    """Write to ``cells`` (samples, cells) the sum of the messages ``rows`` (samples, units) that reach each."""
    _run_by_sample(SUM, lists, rows, cells)


def least_into_cells(lists: Lists, rows: Tensor, cells: Tensor) -> None:
    """Write to ``cells`` (samples, cells) the least of the messages ``rows`` (samples, units) that reach each."""
    _run_by_sample(LEAST, lists, rows, cells)


def largest_of_rows(lists: Lists, cells: Tensor, rows: Tensor) -> None:
    """Write to ``rows`` (samples, units) the largest value in ``cells`` (samples, cells) of each row's candidates."""
    _run_by_sample(LARGEST, lists, rows, cells)


def select_in_rows(lists: Lists, cells: Tensor, chosen: Tensor, taps: int) -> None:
    """Write to ``chosen`` (samples, units) the tap with the least value in ``cells``, where one has a cell."""
    _run_by_sample(SELECT, lists, cells.new_empty(chosen.shape), cells, chosen, taps)


def _run_by_sample(
    what: int, lists: Lists, rows: Tensor, cells: Tensor, chosen: Tensor | None = None, taps: int = 1
) -> None:
    chosen = lists.unit if chosen is None else chosen
    sizes = (what, *rows.shape, cells.shape[1], lists.offset.shape[1] - 1, len(lists.tap), taps)
    _BY_SAMPLE[rows.dtype](len(rows), 4 * rows.numel(), *sizes, *lists[:4], rows, cells, chosen)


def send_by_sign(lists: Lists, rows: Tensor, cells: Tensor) -> None:
    """Write to ``cells`` the messages ``rows`` above 0 of all their rows, and those below 0 that chose them."""
    _run_by_sample(BY_SIGN, lists, rows, cells)


def sums_of_taps(lists: Lists, rows: Tensor, w: torch.Size, winners: Tensor | None = None) -> Tensor:
    """Sums (taps,) of the messages ``rows`` (samples, units) that reach each weight.

    With ``winners`` (flat taps of each row, int32), messages below 0 reach these alone.
    """
    spans, gw = lists.offset.shape[1] - 1, rows.new_empty(w.numel())
    share = lists.span * w.numel() // rows.shape[1]  # weights of a span of rows
    sizes = (*rows.shape, spans, len(lists.tap), w.numel(), share)
    _BY_OUTPUT[rows.dtype](
        spans,
        4 * rows.numel(),
        *sizes,
        *lists[:3],
        rows,
        gw,
        int(winners is not None),
        lists.tap if winners is None else winners,
    )
    return gw
