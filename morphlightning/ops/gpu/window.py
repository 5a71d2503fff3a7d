"""Windowed operators in one, two and three dimensions, full, grouped or depthwise, through one kernel.

Limit: with many outputs for each input a pair costs an addition and a maximum, as in dense operators, and with a
running winner a comparison and two selections more; depthwise ones are bound by memory, 4 bytes in and, with winners,
8 out. So the border is never copied: cells outside the image are masked loads that hold what the border holds. Only
borders that repeat the image are padded first.

Tiles: some outputs of a group times consecutive positions, so that inputs are read together and each read serves all
outputs of the tile. With 32 outputs a group one warp holds the tile, and operands go through shared memory as in dense
operators: compiled for sm_90 2.7 instructions a pair for the value, 6 with winners, 8 with gaps. Backward for the
input, a program owns cells of some channels and asks the outputs that could have chosen them, in ascending order of
taps and outputs; nothing is written twice. Lower dimensions have axes of extent 1.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls, ignore-missing-imports

import math
from dataclasses import replace
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from morphlightning.ops.eager import compute_dtype
from morphlightning.ops.geometry import Window
from morphlightning.ops.gpu import sums
from morphlightning.ops.gpu.common import DTYPES, OPTIONS, better, bounded, finished, power_of_two

HELD, OUTSIDE_LAST = 1, 2
"""Ties that ascending taps do not settle: by the cell that a repeated image holds; cells outside after all others."""


@triton.jit
def _search(x, w, y, arg, gap, held, channels, groups, outs, x_strides, w_unit, w_tap, image, window, extents, stride,
            spacing, before, fill: tl.float64,
            ARG: tl.constexpr, GAP: tl.constexpr, TIES: tl.constexpr, DUAL: tl.constexpr, LARGEST: tl.constexpr,
            DTYPE: tl.constexpr, OUTS: tl.constexpr, POSITIONS: tl.constexpr):  # fmt: skip
    positions = extents[0] * extents[1] * extents[2]
    tiles, out_tiles = tl.cdiv(positions, POSITIONS), tl.cdiv(outs, OUTS)
    program = tl.program_id(0)
    position = program % tiles * POSITIONS + tl.arange(0, POSITIONS)
    program = program // tiles
    out = program % out_tiles * OUTS + tl.arange(0, OUTS)
    program = program // out_tiles
    group, sample = program % groups, (program // groups).to(tl.int64)
    unit = group * outs + out
    start_0 = position // (extents[1] * extents[2]) * stride[0] - before[0]
    start_1 = position // extents[2] % extents[1] * stride[1] - before[1]
    start_2 = position % extents[2] * stride[2] - before[2]
    channel = group.to(tl.int64) * channels
    plane = x + sample * x_strides[0] + channel * x_strides[1]
    cells = image[0] * image[1] * image[2]
    weights = w + unit.to(tl.int64) * w_unit
    border = tl.full((POSITIONS,), fill, DTYPE)

    best = tl.full((OUTS, POSITIONS), float("-inf"), DTYPE)
    second = best
    winner = tl.zeros((OUTS, POSITIONS), tl.int32)
    lowest = winner
    taps = channels * window[0] * window[1] * window[2]
    tap = 0
    for c in range(channels):
        for i in range(window[0]):
            at_0 = start_0 + i * spacing[0]
            in_0 = (position < positions) & (at_0 >= 0) & (at_0 < image[0])
            for j in range(window[1]):
                at_1 = start_1 + j * spacing[1]
                in_1 = in_0 & (at_1 >= 0) & (at_1 < image[1])
                for k in range(window[2]):
                    at_2 = start_2 + k * spacing[2]
                    inside = in_1 & (at_2 >= 0) & (at_2 < image[2])
                    from_x = plane + at_0 * x_strides[2] + at_1 * x_strides[3] + at_2 * x_strides[4]
                    a = bounded(tl.load(from_x, mask=inside, other=0.0), DUAL, LARGEST, DTYPE)
                    a = tl.minimum(tl.where(inside, a, border), LARGEST, propagate_nan=tl.PropagateNan.ALL)
                    b = tl.load(weights + tap * w_tap, mask=out < outs, other=float("-inf")).to(DTYPE)
                    score = a[None, :] + b[:, None]
                    if GAP:
                        second = tl.maximum(second, tl.minimum(best, score))
                    if ARG:
                        leads = better(score, best)
                        rank = tl.full((POSITIONS,), tap, tl.int32)
                        if TIES == 2:
                            rank = tl.where(inside, rank, rank + taps)
                            leads = leads | ((score == best) & (rank[None, :] < winner))
                        if TIES == 1:
                            flat = (channel + c) * cells + (at_0 * image[1] + at_1) * image[2] + at_2
                            cell = tl.load(held + flat, mask=inside, other=0)
                            leads = leads | ((score == best) & (cell[None, :] < lowest))
                            lowest = tl.where(leads, cell[None, :], lowest)
                        winner = tl.where(leads, rank[None, :], winner)
                        best = tl.where(leads, score, best)
                    else:
                        best = tl.maximum(best, score, propagate_nan=tl.PropagateNan.ALL)
                    tap += 1
        plane += x_strides[1]

    at = (sample * groups * outs + unit[:, None]) * positions + position[None, :]
    live = (out < outs)[:, None] & (position < positions)[None, :]
    tl.store(y + at, finished(best, DUAL, LARGEST), mask=live)
    if ARG:
        lost = best == float("-inf")
        tl.store(arg + at, tl.where(lost, -1, winner % taps), mask=live)
        if GAP:
            tl.store(gap + at, tl.where(lost, float("inf"), best - second), mask=live)


@triton.jit
def _collect(messages, winners, gx, channels, groups, outs, image, window, extents, stride, spacing, before,
             DTYPE: tl.constexpr, CHANNELS: tl.constexpr, CELLS: tl.constexpr):  # fmt: skip
    cells = image[0] * image[1] * image[2]
    positions = extents[0] * extents[1] * extents[2]
    tiles, channel_tiles = tl.cdiv(cells, CELLS), tl.cdiv(channels, CHANNELS)
    program = tl.program_id(0)
    cell = program % tiles * CELLS + tl.arange(0, CELLS)
    program = program // tiles
    channel = program % channel_tiles * CHANNELS + tl.arange(0, CHANNELS)
    program = program // channel_tiles  # sample * groups + group
    first = program.to(tl.int64) * outs * positions
    from_0 = cell // (image[1] * image[2]) + before[0]
    from_1 = cell // image[2] % image[1] + before[1]
    from_2 = cell % image[2] + before[2]
    sums = tl.zeros((CHANNELS, CELLS), DTYPE)
    tap = channel * (window[0] * window[1] * window[2])
    for i in range(window[0]):
        steps_0 = from_0 - i * spacing[0]
        at_0 = steps_0 // stride[0]
        in_0 = (cell < cells) & (steps_0 >= 0) & (steps_0 % stride[0] == 0) & (at_0 < extents[0])
        for j in range(window[1]):
            steps_1 = from_1 - j * spacing[1]
            at_1 = steps_1 // stride[1]
            in_1 = in_0 & (steps_1 >= 0) & (steps_1 % stride[1] == 0) & (at_1 < extents[1])
            for k in range(window[2]):
                steps_2 = from_2 - k * spacing[2]
                at_2 = steps_2 // stride[2]
                inside = in_1 & (steps_2 >= 0) & (steps_2 % stride[2] == 0) & (at_2 < extents[2])
                at = first + (at_0 * extents[1] + at_1) * extents[2] + at_2
                for _ in range(outs):
                    winner = tl.load(winners + at, mask=inside, other=-1)
                    sent = tl.load(messages + at, mask=inside, other=0.0).to(DTYPE)
                    sums += tl.where(winner[None, :] == tap[:, None], sent[None, :], 0.0)
                    at += positions
                tap += 1
    to = (program.to(tl.int64) * channels + channel[:, None]) * cells + cell[None, :]
    tl.store(gx + to, sums, mask=(channel < channels)[:, None] & (cell < cells)[None, :])


def value(x: Tensor, w: Tensor, geometry: Window) -> Tensor:
    """Maxima alone."""
    return _find(x, w, geometry, arg=False, gap=False)[0]


def indices(x: Tensor, w: Tensor, geometry: Window, gap: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Maxima, winners and, on request, gaps."""
    return _find(x, w, geometry, arg=True, gap=gap)


def scatter(
    gy: Tensor, arg: Tensor, x: torch.Size, w: torch.Size, geometry: Window, want_x: bool, want_w: bool
) -> tuple[Tensor, Tensor]:
    """Messages to winners."""
    gx = gw = gy.new_empty(0)
    if want_x:
        gx = _to_cells(gy.contiguous(), arg.contiguous(), x, w, geometry)
    if want_w:
        gw = sums.to_weights(-gy if geometry.dual else gy, arg, w)
    return gx, gw


def _find(x: Tensor, w: Tensor, geometry: Window, arg: bool, gap: bool) -> tuple[Tensor, Tensor, Tensor]:
    dtype, held, ties = compute_dtype(x, w), None, OUTSIDE_LAST if geometry.border == "constant" else 0
    if geometry.wraps:
        if arg:
            held, ties = geometry.tables(x.shape, w.shape, x.device)[2].int(), HELD
        x, geometry = geometry.pad(x), _without_border(geometry)
    outs = len(w) // geometry.groups
    y = x.new_empty(geometry.output_shape(x.shape, w.shape))
    winner = torch.empty_like(y, dtype=torch.int32) if arg else y.new_empty(0, dtype=torch.int32)
    distance = torch.empty_like(y, dtype=dtype) if gap else y.new_empty(0, dtype=dtype)
    positions = math.prod(y.shape[2:])
    # about 32 scores a thread where winners are kept, 64 elsewhere
    width = power_of_two(outs, 1, 32)
    most, warps = ((1024 if arg else 2048) // width, 1) if width >= 8 else (512, 4)
    tile = width, power_of_two(positions, 16, most)
    programs = math.ceil(positions / tile[1]) * math.ceil(outs / tile[0]) * geometry.groups * len(x)
    weights = w.flatten(1).t().contiguous().t() if outs > 1 else w.flatten(1)
    x_strides = (*x.stride()[:2], *(0,) * (5 - x.ndim), *x.stride()[2:])
    _search[(programs,)](
        x, weights, y, winner, distance, held, w.shape[1], geometry.groups, outs, x_strides, *weights.stride(),
        *_axes(x.shape, w.shape, geometry), geometry.fill if geometry.border == "constant" else -math.inf,
        ARG=arg, GAP=gap, TIES=ties, DUAL=geometry.dual, LARGEST=torch.finfo(dtype).max, DTYPE=DTYPES[dtype],
        OUTS=tile[0], POSITIONS=tile[1], num_warps=warps, **OPTIONS,
    )  # fmt: skip
    return y, winner, distance


def _to_cells(gy: Tensor, arg: Tensor, x: torch.Size, w: torch.Size, geometry: Window) -> Tensor:
    if geometry.wraps:
        padded = torch.Size(map(sum, zip(x, (0, 0, *geometry.before), (0, 0, *geometry.after), strict=True)))
        return _folded(_to_cells(gy, arg, padded, w, _without_border(geometry)), geometry)
    channels, cells, outs = w[1], math.prod(x[2:]), w[0] // geometry.groups
    tile = power_of_two(channels, 1, 32), power_of_two(cells, 16, 2048 // power_of_two(channels, 4, 32))
    programs = math.ceil(cells / tile[1]) * math.ceil(channels / tile[0]) * geometry.groups * x[0]
    gx = gy.new_empty(x)
    _collect[(programs,)](
        gy, arg, gx, channels, geometry.groups, outs, *_axes(x, w, geometry),
        DTYPE=DTYPES[torch.promote_types(gy.dtype, torch.float32)], CHANNELS=tile[0], CELLS=tile[1], **OPTIONS,
    )  # fmt: skip
    return gx


def _axes(x: torch.Size, w: torch.Size, geometry: Window) -> Any:
    """Image, window, extents, stride, spacing and start, each for three axes."""
    more = 3 - len(geometry.stride)
    sizes = (x[2:], w[2:], geometry.extents(x, w), geometry.stride, geometry.spacing)
    return *((*(1,) * more, *size) for size in sizes), (*(0,) * more, *geometry.before)


def _without_border(geometry: Window) -> Window:
    """The geometry over an image that was padded before."""
    none = (0,) * len(geometry.stride)
    return replace(geometry, border="neutral", before=none, after=none)


def _folded(g: Tensor, geometry: Window) -> Tensor:
    """The adjoint of a padding that repeats the image, in a fixed order."""
    for axis, (lo, hi) in enumerate(zip(geometry.before, geometry.after, strict=True), start=2):
        n = g.shape[axis] - lo - hi
        head, core, tail = g.split((lo, n, hi), axis)
        g = core.clone()
        if geometry.border == "circular":
            g.narrow(axis, n - lo, lo).add_(head)
            g.narrow(axis, 0, hi).add_(tail)
        elif geometry.border == "reflect":
            g.narrow(axis, 1, lo).add_(head.flip(axis))
            g.narrow(axis, n - 1 - hi, hi).add_(tail.flip(axis))
        else:
            g.narrow(axis, 0, 1).add_(head.sum(axis, keepdim=True))
            g.narrow(axis, n - 1, 1).add_(tail.sum(axis, keepdim=True))
    return g
