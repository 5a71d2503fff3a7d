"""Dense operators: passes over the candidates within eps of the maximum, and projections of weights.

Limit: as in a forward pass every pair is met once; beside the addition it costs a subtraction, two comparisons and a
selection. Rows are recomputed rather than stored. A program owns a tile of results and goes in ascending order through
what they are made of, so that the order of additions is fixed: ``_pull`` owns rows and meets their candidates, while
``_send`` and ``_lower`` own cells or weights and meet the rows that they are candidates of. Operands lie such that what
a step reads is consecutive. Compiled for sm_90, loops over float32 take 8 to 11 instructions a pair, by four warps.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls, ignore-missing-imports

import math
from functools import cached_property

import torch
import triton
import triton.language as tl
from torch import Tensor

from morphlightning.ops import eager
from morphlightning.ops.active import ActiveGraph
from morphlightning.ops.geometry import Dense, Geometry
from morphlightning.ops.gpu import sums
from morphlightning.ops.gpu.common import OPTIONS, power_of_two


@triton.jit
def _tile(rows, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Group, rows and columns of a program, and which of its results there are."""
    program = tl.program_id(0)
    row_tiles, column_tiles = tl.cdiv(rows, ROWS), tl.cdiv(columns, COLUMNS)
    row = program % row_tiles * ROWS + tl.arange(0, ROWS)
    column = program // row_tiles % column_tiles * COLUMNS + tl.arange(0, COLUMNS)
    group = (program // row_tiles // column_tiles).to(tl.int64)
    return group, row, column, (row < rows)[:, None] & (column < columns)[None, :]


@triton.jit
def _pull(x, w, top, values, result, samples, outs, groups, fan_in, eps: tl.float64,
          REDUCE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):  # fmt: skip
    """Count the candidates of each row, or find their largest or their least value: x, w and values transposed."""
    group, sample, out, live = _tile(samples, outs, ROWS, COLUMNS)
    unit = group * outs + out
    at = sample[:, None].to(tl.int64) * (groups * outs) + unit[None, :]
    best = tl.load(top + at, mask=live, other=float("nan"))
    found = tl.load(result + at, mask=live, other=0)
    near = tl.full((ROWS, COLUMNS), eps, best.dtype)
    if REDUCE == "least":
        least = tl.full((ROWS, COLUMNS), float("inf"), values.dtype.element_ty)
    here = group * fan_in * samples + sample
    ws = w + unit
    for tap in range(fan_in):
        a = tl.load(x + here, mask=sample < samples, other=0.0)
        b = tl.load(ws, mask=out < outs, other=float("-inf"))
        score = a[:, None] + b[None, :]
        active = (best - score <= near) & (score > float("-inf"))
        if REDUCE == "count":
            found += active.to(tl.int32)
        else:
            value = tl.load(values + here, mask=sample < samples, other=0.0)[:, None]
            if REDUCE == "largest":
                value = tl.where(active, value, float("-inf"))
                found = tl.maximum(found, value, propagate_nan=tl.PropagateNan.ALL)
            else:
                less = active & (value < least)
                least = tl.where(less, value, least)
                found = tl.where(less, tap, found)
        here += samples
        ws += groups * outs
    tl.store(result + at, found, mask=live)


@triton.jit
def _send(own, other, top, messages, result, rows, columns, others, own_row, own_group, other_row, other_group,
          top_other, top_group, eps: tl.float64,
          REDUCE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):  # fmt: skip
    """Add up the messages that reach each of ``own``, or find the least of them."""
    group, row, column, live = _tile(rows, columns, ROWS, COLUMNS)
    at = group * own_group + row[:, None].to(tl.int64) * own_row + column[None, :]
    mine = tl.load(own + at, mask=live, other=float("-inf"))
    found = tl.load(result + at, mask=live, other=0.0)
    near = tl.full((ROWS, COLUMNS), eps, mine.dtype)
    theirs = other + group * other_group + column
    best_at = group * top_group + row
    for _ in range(others):
        best = tl.load(top + best_at, mask=row < rows, other=float("nan"))
        sent = tl.load(messages + best_at, mask=row < rows, other=0.0)
        score = mine + tl.load(theirs, mask=column < columns, other=0.0)[None, :]
        active = (best[:, None] - score <= near) & (score > float("-inf"))
        if REDUCE == "sum":
            found += tl.where(active, sent[:, None], 0.0)
        else:
            sent = tl.where(active, sent[:, None], float("inf"))
            found = tl.minimum(found, sent, propagate_nan=tl.PropagateNan.ALL)
        theirs += other_row
        best_at += top_other
    tl.store(result + at, found, mask=live)


@triton.jit
def _lower(w, x, target, excess, above, outs, fan_in, samples, groups, scale: tl.float64,
           COUNT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):  # fmt: skip
    """Add up by how much the scores of each weight exceed their targets, and count those that do."""
    group, out, tap, live = _tile(outs, fan_in, ROWS, COLUMNS)
    unit = group * outs + out
    at = unit[:, None] * fan_in + tap[None, :]
    mine = tl.load(w + at, mask=live, other=float("-inf"))
    total = tl.zeros_like(mine)
    count = tl.zeros((ROWS, COLUMNS), tl.int32)
    xs, targets = x + group * fan_in + tap, target + unit
    factor = tl.full((ROWS, COLUMNS), scale, mine.dtype)
    for _ in range(samples):
        goal = tl.load(targets, mask=out < outs, other=float("inf"))[:, None]
        score = mine + tl.load(xs, mask=tap < fan_in, other=0.0)[None, :]
        exceeds = ~(score <= goal) & (goal != float("inf"))  # NaN does, as in eager
        total += tl.where(exceeds, (score - goal) * factor, 0.0)
        if COUNT:
            count += exceeds.to(tl.int32)
        xs += groups * fan_in
        targets += groups * outs
    tl.store(excess + at, total, mask=live)
    if COUNT:
        tl.store(above + at, count, mask=live)


class DenseGraph(ActiveGraph):
    """The graph of a dense operator: candidates are found anew in each pass, by kernels."""

    @cached_property
    def size(self) -> Tensor:
        """Number of candidates within eps of each maximum."""
        return self._pull(None, torch.zeros_like(self._scores[-1], dtype=torch.int32), "count")

    def to_cells(self, gy: Tensor) -> Tensor:
        """Messages to the cells of all candidates within eps of the maximum."""
        return self._to_cells(gy, 0.0, "sum")

    def to_taps(self, gy: Tensor) -> Tensor:
        """Messages to the weights of all candidates within eps of the maximum."""
        a, b, top = self._scores
        (samples, units), (outs, fan_in) = top.shape, self._sizes
        strides = fan_in, outs * fan_in, self.cells, fan_in, units, outs
        return self._send(b, a, top, gy, (outs, fan_in, samples), strides, 0.0, "sum").flatten()

    def dilate(self, h: Tensor) -> Tensor:
        """Largest h among the candidates within eps of each maximum; 0 where there is none."""
        top = self._scores[-1]
        lowest = torch.full_like(top, -math.inf, dtype=self._dtype(h))
        return self._pull(h, lowest, "largest").masked_fill_(~top.isfinite(), 0).to(h.dtype)

    def erode(self, u: Tensor) -> Tensor:
        """Least u among the rows in which a cell is active; inf where in none."""
        return self._to_cells(u, math.inf, "least")

    def select(self, values: Tensor) -> Tensor:
        """The candidate within eps of each maximum with the least value, the first of equal ones; -1 where none."""
        return self._pull(values, self.call.arg.clone(memory_format=torch.contiguous_format), "least")

    @property
    def _sizes(self) -> tuple[int, int]:
        w = self.call.w
        return len(w) // self.call.where.groups, w.shape[1]

    @cached_property
    def _scores(self) -> tuple[Tensor, Tensor, Tensor]:
        return _scores(self.call.x, self.call.w, self.call.arg, self.call.where)

    @cached_property
    def _columns(self) -> tuple[Tensor, Tensor]:
        a, b, _ = self._scores
        return a.t().contiguous(), b.t().contiguous()

    def _dtype(self, messages: Tensor) -> torch.dtype:
        return eager.compute_dtype(messages, self._scores[0])

    def _pull(self, values: Tensor | None, result: Tensor, reduce: str) -> Tensor:
        if values is not None:
            values = values.t().to(self._dtype(values)).contiguous()
        (samples, _), (outs, fan_in), groups = result.shape, self._sizes, self.call.where.groups
        operands = *self._columns, self._scores[-1], values, result
        with torch.cuda.device_of(result):
            grid, tile = _grid(samples, outs, groups, 64, 32)
            _pull[grid](*operands, samples, outs, groups, fan_in, self.eps, REDUCE=reduce, **tile, **OPTIONS)
        return result

    def _to_cells(self, gy: Tensor, start: float, reduce: str) -> Tensor:
        a, b, top = self._scores
        samples, (outs, fan_in) = len(a), self._sizes
        strides = self.cells, fan_in, fan_in, outs * fan_in, samples, outs * samples
        return self._send(a, b, top.t().contiguous(), gy.t(), (samples, fan_in, outs), strides, start, reduce)

    def _send(
        self, own: Tensor, other: Tensor, top: Tensor, messages: Tensor, sizes: tuple[int, int, int],
        strides: tuple[int, ...], start: float, reduce: str,
    ) -> Tensor:  # fmt: skip
        sent = messages.to(self._dtype(messages)).contiguous()
        result = torch.full_like(own, start, dtype=sent.dtype)
        with torch.cuda.device_of(own):
            grid, tile = _grid(*sizes[:2], self.call.where.groups, 32, 64)
            _send[grid](own, other, top, sent, result, *sizes, *strides, self.eps, REDUCE=reduce, **tile, **OPTIONS)
        return result.to(messages.dtype)


def project(
    u: Tensor, x: Tensor, w: Tensor, arg: Tensor, geometry: Dense, tau: float, count: bool
) -> tuple[Tensor, Tensor]:
    """As :func:`morphlightning.ops.eager.project`."""
    a, b, top = _scores(x, w, arg, geometry)
    u = u.to(a.dtype)
    target = (top - tau * u).masked_fill_((u <= 0) | (arg < 0), math.inf).contiguous()
    excess = torch.empty_like(b)
    above = torch.empty_like(b, dtype=torch.int32) if count else None
    (outs, fan_in), groups = (len(w) // geometry.groups, w.shape[1]), geometry.groups
    with torch.cuda.device_of(x):
        grid, tile = _grid(outs, fan_in, groups, 32, 64)
        _lower[grid](b, a, target, excess, above, outs, fan_in, len(x), groups, 1 / tau, COUNT=count, **tile, **OPTIONS)
        moved = excess + sums.to_weights(u.clamp_max(0), arg, w.shape)
        touched = u.new_empty(0) if above is None else above + sums.to_weights((u < 0).to(u.dtype), arg, w.shape)
    return moved, touched


def _grid(rows: int, columns: int, groups: int, most_rows: int, most_columns: int) -> tuple[tuple[int], dict[str, int]]:
    """Programs, and rows and columns of their tiles."""
    tile = power_of_two(rows, 16, most_rows), power_of_two(columns, 16, most_columns)
    programs = math.ceil(rows / tile[0]) * math.ceil(columns / tile[1]) * groups
    return (programs,), {"ROWS": tile[0], "COLUMNS": tile[1]}


def _scores(x: Tensor, w: Tensor, arg: Tensor, geometry: Geometry) -> tuple[Tensor, Tensor, Tensor]:
    """What is added to a score, and the score of each winner; NaN, near nothing, where there is none."""
    dtype = eager.compute_dtype(x, w)
    a = eager.bounded(x.to(dtype)).contiguous()
    b = w.to(dtype).contiguous()
    tap = arg.clamp_min(0).long()
    unit = torch.arange(arg.shape[1], device=x.device)
    top = a.gather(1, geometry.cell(unit, tap, x.shape, w.shape)) + b[unit, tap]
    return a, b, top.masked_fill_(arg < 0, math.nan).contiguous()
