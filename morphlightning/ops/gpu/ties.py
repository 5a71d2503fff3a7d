"""Dense operators: the candidates within eps of the maximum, counted, or sent messages.

Limit: as in a forward pass every pair is met once; beside the addition it costs a subtraction, two comparisons and a
selection. Rows are recomputed rather than stored. In both kernels a program owns a tile of results and goes through
what is summed in ascending order, so that the order of additions is fixed.
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
from morphlightning.ops.geometry import Dense
from morphlightning.ops.gpu.common import DTYPES, OPTIONS, power_of_two


@triton.jit
def _count(x, w, top, total, samples, groups, outs, fan_in, eps: tl.float64,
           DTYPE: tl.constexpr, SAMPLES: tl.constexpr, OUTS: tl.constexpr):  # fmt: skip
    program = tl.program_id(0)
    sample_tiles, out_tiles = tl.cdiv(samples, SAMPLES), tl.cdiv(outs, OUTS)
    sample = program % sample_tiles * SAMPLES + tl.arange(0, SAMPLES)
    out = program // sample_tiles % out_tiles * OUTS + tl.arange(0, OUTS)
    group = program // sample_tiles // out_tiles
    unit = group * outs + out
    live = (sample < samples)[:, None] & (out < outs)[None, :]
    at = sample[:, None].to(tl.int64) * (groups * outs) + unit[None, :]
    best = tl.load(top + at, mask=live, other=float("nan"))
    near = tl.full((SAMPLES, OUTS), eps, DTYPE)
    xs = x + sample.to(tl.int64) * (groups * fan_in) + group * fan_in
    ws = w + unit.to(tl.int64) * fan_in
    found = tl.zeros((SAMPLES, OUTS), tl.int32)
    for _ in range(fan_in):
        a = tl.load(xs, mask=sample < samples, other=0.0)
        b = tl.load(ws, mask=out < outs, other=float("-inf"))
        score = a[:, None] + b[None, :]
        found += ((best - score <= near) & (score > float("-inf"))).to(tl.int32)
        xs += 1
        ws += 1
    tl.store(total + at, found, mask=live)


@triton.jit
def _send(own, other, top, messages, total, rows, others, width, own_row, own_group, other_row, other_group,
          top_row, top_other, top_group, eps: tl.float64,
          DTYPE: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr):  # fmt: skip
    program = tl.program_id(0)
    row_tiles, width_tiles = tl.cdiv(rows, ROWS), tl.cdiv(width, WIDTH)
    row = program % row_tiles * ROWS + tl.arange(0, ROWS)
    tap = program // row_tiles % width_tiles * WIDTH + tl.arange(0, WIDTH)
    group = (program // row_tiles // width_tiles).to(tl.int64)
    live = (row < rows)[:, None] & (tap < width)[None, :]
    at = group * own_group + row[:, None].to(tl.int64) * own_row + tap[None, :]
    mine = tl.load(own + at, mask=live, other=float("-inf"))
    near = tl.full((ROWS, WIDTH), eps, DTYPE)
    theirs = other + group * other_group + tap
    best_at = group * top_group + row.to(tl.int64) * top_row
    sums = tl.zeros((ROWS, WIDTH), DTYPE)
    for _ in range(others):
        best = tl.load(top + best_at, mask=row < rows, other=float("nan"))
        sent = tl.load(messages + best_at, mask=row < rows, other=0.0)
        score = mine + tl.load(theirs, mask=tap < width, other=0.0)[None, :]
        active = (best[:, None] - score <= near) & (score > float("-inf"))
        sums += tl.where(active, sent[:, None], 0.0)
        theirs += other_row
        best_at += top_other
    tl.store(total + at, sums, mask=live)


class DenseGraph(ActiveGraph):
    """The graph of a dense operator: counted, and sent messages, by kernels; the other passes are those of eager."""

    @cached_property
    def size(self) -> Tensor:
        """Number of candidates within eps of each maximum."""
        x, w, arg, _, where = self.call
        assert isinstance(where, Dense)
        with torch.cuda.device_of(x):
            return counts(x, w, arg, where, self.eps)

    def to_cells(self, gy: Tensor) -> Tensor:
        """Messages to the cells of all candidates within eps of the maximum."""
        (samples, units), outs, fan_in = self.call.arg.shape, *self._sizes
        a, b, top = self._scores
        strides = (self.cells, fan_in), (fan_in, outs * fan_in), (units, 1, outs)
        with torch.cuda.device_of(gy):
            return _sent(a, b, top, gy, (samples, outs), *strides, self.call.where.groups, self.eps)

    def to_taps(self, gy: Tensor) -> Tensor:
        """Messages to the weights of all candidates within eps of the maximum."""
        (samples, units), outs, fan_in = self.call.arg.shape, *self._sizes
        a, b, top = self._scores
        strides = (fan_in, outs * fan_in), (self.cells, fan_in), (1, units, outs)
        with torch.cuda.device_of(gy):
            return _sent(b, a, top, gy, (outs, samples), *strides, self.call.where.groups, self.eps).flatten()

    @property
    def _sizes(self) -> tuple[int, int]:
        w = self.call.w
        return len(w) // self.call.where.groups, w.shape[1]

    @cached_property
    def _scores(self) -> tuple[Tensor, Tensor, Tensor]:
        x, w, arg, _, where = self.call
        assert isinstance(where, Dense)
        return _scores(x, w, arg, where)


def counts(x: Tensor, w: Tensor, arg: Tensor, geometry: Dense, eps: float) -> Tensor:
    """Number of candidates within eps of each maximum."""
    a, b, top = _scores(x, w, arg, geometry)
    (samples, units), fan_in, outs = arg.shape, w.shape[1], len(w) // geometry.groups
    tile = power_of_two(samples, 16, 64), power_of_two(outs, 16, 32)
    programs = math.ceil(samples / tile[0]) * math.ceil(outs / tile[1]) * geometry.groups
    total = torch.empty(samples, units, dtype=torch.int32, device=x.device)
    _count[(programs,)](
        a, b, top, total, samples, geometry.groups, outs, fan_in, eps,
        DTYPE=DTYPES[a.dtype], SAMPLES=tile[0], OUTS=tile[1], **OPTIONS,
    )  # fmt: skip
    return total


def _sent(
    own: Tensor, other: Tensor, top: Tensor, messages: Tensor, sizes: tuple[int, int], own_strides: tuple[int, int],
    other_strides: tuple[int, int], top_strides: tuple[int, int, int], groups: int, eps: float,
) -> Tensor:  # fmt: skip
    width = own.numel() // groups // sizes[0]
    tile = power_of_two(sizes[0], 16, 32), power_of_two(width, 16, 64)
    total = torch.empty_like(own)
    _send[(math.ceil(sizes[0] / tile[0]) * math.ceil(width / tile[1]) * groups,)](
        own, other, top, messages.to(own.dtype).contiguous(), total, *sizes, width,
        *own_strides, *other_strides, *top_strides, eps,
        DTYPE=DTYPES[own.dtype], ROWS=tile[0], WIDTH=tile[1], **OPTIONS,
    )  # fmt: skip
    return total.to(messages.dtype)


def _scores(x: Tensor, w: Tensor, arg: Tensor, geometry: Dense) -> tuple[Tensor, Tensor, Tensor]:
    """What is added to a score, and the score of each winner; NaN, near nothing, where there is none."""
    dtype = eager.compute_dtype(x, w)
    a = eager.bounded(x.to(dtype)).contiguous()
    b = w.to(dtype).contiguous()
    tap = arg.clamp_min(0).long()
    unit = torch.arange(arg.shape[1], device=x.device)
    top = a.gather(1, geometry.cell(unit, tap, x.shape, w.shape)) + b[unit, tap]
    return a, b, top.masked_fill_(arg < 0, math.nan)
