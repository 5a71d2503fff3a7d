"""Dense operators: maxima, winners and gaps to the runner-up.

Limit (H100, H200): a pair costs one addition and one maximum. Maxima issue at 64 lanes a clock and processor, half the
rate of additions, and two instructions a pair at 128 lanes a clock come to the same: 64 pairs a clock and processor.
A running winner would cost a comparison and a selection more for each pair, a running gap two more maxima, all at half
rate. So there are two levels. The search keeps the maximum of each block of 32 taps and, once a block, which block
leads and the best maximum of the other blocks; the inner loop is that of the value alone. A second kernel looks for
the winner, and for the runner-up, inside the one block that won: one line of x and one of w for each output.

Tiles: a column of x and one of w are read once a tap, by one thread each, and go through shared memory to where the
outer sum needs them. 64 x 64 pairs on two warps hold 64 maxima a thread; compiled for sm_90 the loop takes 2.55
instructions a pair (four warps make the compiler read operands from memory again for each thread, 5 a pair). Where
winners are kept, 64 x 32 pairs on two warps leave registers for them: 2.7 to 2.8 a pair, and 20 to 27 instructions of
a warp for each output in the second kernel, what 200 to 300 taps cost. Operands are transposed first, so that columns
lie together. Where there are few outputs the taps are split among programs, and the second kernel combines what they
found, the earlier one first among equals.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls, ignore-missing-imports

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from morphlightning.ops.eager import compute_dtype
from morphlightning.ops.geometry import Dense
from morphlightning.ops.gpu import sums
from morphlightning.ops.gpu.common import DTYPES, OPTIONS, better, bounded, finished, power_of_two, processors

BLOCK = 32
"""Taps of a block: 128 bytes of float32, one line of the cache."""
LEAST_SPAN = 2 * BLOCK
"""A program gets at least so many taps."""
RESIDENT = 8
"""Programs that a processor works on at a time."""


@triton.jit
def _maxima(best, xs, ws, x_step, w_step, taps, x_live, w_live,
            DUAL: tl.constexpr, LARGEST: tl.constexpr, DTYPE: tl.constexpr):  # fmt: skip
    for _ in range(taps):
        a = bounded(tl.load(xs, mask=x_live, other=0.0), DUAL, LARGEST, DTYPE)
        b = tl.load(ws, mask=w_live, other=float("-inf")).to(DTYPE)
        best = tl.maximum(best, a[:, None] + b[None, :], propagate_nan=tl.PropagateNan.ALL)
        xs += x_step
        ws += w_step
    return best, xs, ws


@triton.jit
def _search(x, w, y, block, second, samples, groups, outs, fan_in, span, x_sample, x_cell, w_unit, w_tap,
            ARG: tl.constexpr, GAP: tl.constexpr, FINISH: tl.constexpr, DUAL: tl.constexpr, LARGEST: tl.constexpr,
            DTYPE: tl.constexpr, SAMPLES: tl.constexpr, OUTS: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    program = tl.program_id(0)
    sample_tiles, out_tiles = tl.cdiv(samples, SAMPLES), tl.cdiv(outs, OUTS)
    sample = program % sample_tiles * SAMPLES + tl.arange(0, SAMPLES)
    program = program // sample_tiles
    out = program % out_tiles * OUTS + tl.arange(0, OUTS)
    program = program // out_tiles
    group, split = program % groups, program // groups
    x_live, w_live = sample < samples, out < outs
    unit = group * outs + out
    first = split * span
    last = tl.minimum(first + span, fan_in)
    xs = x + sample.to(tl.int64) * x_sample + (group * fan_in + first).to(tl.int64) * x_cell
    ws = w + unit.to(tl.int64) * w_unit + first.to(tl.int64) * w_tap
    best = tl.full((SAMPLES, OUTS), float("-inf"), DTYPE)
    at = (split.to(tl.int64) * samples + sample[:, None]) * (groups * outs) + unit[None, :]
    live = x_live[:, None] & w_live[None, :]
    if ARG:
        leader = tl.zeros((SAMPLES, OUTS), tl.int32)
        runner_up = best
        for start in range(first, last, BLOCK):
            top = tl.full((SAMPLES, OUTS), float("-inf"), DTYPE)
            taps = tl.minimum(last - start, BLOCK)
            top, xs, ws = _maxima(top, xs, ws, x_cell, w_tap, taps, x_live, w_live, DUAL, LARGEST, DTYPE)
            if GAP:
                runner_up = tl.maximum(runner_up, tl.minimum(best, top))
            leads = better(top, best)
            leader = tl.where(leads, start // BLOCK, leader)
            best = tl.where(leads, top, best)
        tl.store(block + at, leader, mask=live)
        if GAP:
            tl.store(second + at, runner_up, mask=live)
    else:
        best, xs, ws = _maxima(best, xs, ws, x_cell, w_tap, last - first, x_live, w_live, DUAL, LARGEST, DTYPE)
    if FINISH:
        best = finished(best, DUAL, LARGEST)
    tl.store(y + at, best, mask=live)


@triton.jit
def _resolve(x, w, partial, block, second, y, arg, gap, samples, splits, groups, outs, fan_in, x_sample, x_cell,
             w_unit, w_tap, ARG: tl.constexpr, GAP: tl.constexpr, DUAL: tl.constexpr, LARGEST: tl.constexpr,
             DTYPE: tl.constexpr, UNITS: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    units = groups * outs
    tiles = tl.cdiv(units, UNITS)
    sample = (tl.program_id(0) // tiles).to(tl.int64)
    unit = tl.program_id(0) % tiles * UNITS + tl.arange(0, UNITS)
    live = unit < units
    to = sample * units + unit
    best = tl.full((UNITS,), float("-inf"), DTYPE)
    runner_up = best
    leader = tl.zeros((UNITS,), tl.int32)
    at = to
    for _ in range(splits):
        top = tl.load(partial + at, mask=live, other=float("-inf"))
        leads = better(top, best)
        if ARG:
            leader = tl.where(leads, tl.load(block + at, mask=live, other=0), leader)
        if GAP:
            runner_up = tl.maximum(runner_up, tl.minimum(best, top))
            runner_up = tl.maximum(runner_up, tl.load(second + at, mask=live, other=float("-inf")))
        best = tl.where(leads, top, best)
        at += samples * units
    tl.store(y + to, finished(best, DUAL, LARGEST), mask=live)
    if ARG:
        xs = x + sample * x_sample + (unit // outs).to(tl.int64) * (fan_in * x_cell)
        ws = w + unit.to(tl.int64) * w_unit
        tap = leader[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
        there = live[:, None] & (tap < fan_in)
        a = tl.load(xs[:, None] + tap * x_cell, mask=there, other=0.0)
        b = tl.load(ws[:, None] + tap * w_tap, mask=there, other=float("-inf")).to(DTYPE)
        score = bounded(a, DUAL, LARGEST, DTYPE) + b
        leads = (score == best[:, None]) | ((score != score) & (best != best)[:, None])
        winner = tl.min(tl.where(leads & there, tap, fan_in), axis=1)
        lost = best == float("-inf")
        tl.store(arg + to, tl.where(lost, -1, winner), mask=live)
        if GAP:
            others = tl.max(tl.where(tap == winner[:, None], float("-inf"), score), axis=1)
            distance = best - tl.maximum(runner_up, others)
            tl.store(gap + to, tl.where(lost, float("inf"), distance), mask=live)


def value(x: Tensor, w: Tensor, geometry: Dense) -> Tensor:
    """Maxima alone."""
    return _find(x, w, geometry, arg=False, gap=False)[0]


def indices(x: Tensor, w: Tensor, geometry: Dense, gap: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Maxima, winners and, on request, gaps."""
    return _find(x, w, geometry, arg=True, gap=gap)


def scatter(
    gy: Tensor, arg: Tensor, x: torch.Size, w: torch.Size, geometry: Dense, want_x: bool, want_w: bool
) -> tuple[Tensor, Tensor]:
    """Messages to winners."""
    gx = gw = gy.new_empty(0)
    if want_x:
        rows = (1, x[0] * geometry.groups, w[0] // geometry.groups)
        gx = sums.by_winner(gy.reshape(rows), arg.reshape(rows), w[1]).view(x)
    if want_w:
        gw = sums.to_weights(-gy if geometry.dual else gy, arg, w)
    return gx, gw


def _find(x: Tensor, w: Tensor, geometry: Dense, arg: bool, gap: bool) -> tuple[Tensor, Tensor, Tensor]:
    dtype, samples, units, fan_in = compute_dtype(x, w), len(x), *w.shape
    outs = units // geometry.groups
    tile, warps = _tile(samples, outs, geometry.groups, dtype, arg, x.device)
    tiles = math.ceil(samples / tile[0]) * math.ceil(outs / tile[1]) * geometry.groups
    span = _span(fan_in, tiles, x.device)
    splits = math.ceil(fan_in / span)
    finish = splits == 1 and not arg
    y = x.new_empty(samples, units)
    partial = y if finish else x.new_empty(splits, samples, units, dtype=dtype)
    block = torch.empty_like(partial, dtype=torch.int32) if arg else None
    second = torch.empty_like(partial) if gap else None
    scores = {"DUAL": geometry.dual, "LARGEST": torch.finfo(dtype).max, "DTYPE": DTYPES[dtype]}
    wanted = {"ARG": arg, "GAP": gap, "BLOCK": BLOCK}

    xs, ws = (x, w) if min(samples, outs) < 16 else (_columns(x), _columns(w))
    sizes = (samples, geometry.groups, outs, fan_in, span, *xs.stride(), *ws.stride())
    _search[(tiles * splits,)](
        xs, ws, partial, block, second, *sizes,
        **wanted, **scores, FINISH=finish, SAMPLES=tile[0], OUTS=tile[1], num_warps=warps, **OPTIONS,
    )  # fmt: skip
    winner = torch.empty_like(y, dtype=torch.int32) if arg else y.new_empty(0, dtype=torch.int32)
    distance = torch.empty_like(y, dtype=dtype) if gap else y.new_empty(0, dtype=dtype)
    if not finish:
        sizes = (samples, splits, geometry.groups, outs, fan_in, *x.stride(), *w.stride())
        together = power_of_two(units, 16, 64)
        _resolve[(samples * math.ceil(units / together),)](
            x, w, partial, block, second, y, winner, distance, *sizes,
            **wanted, **scores, UNITS=together, num_warps=2, **OPTIONS,
        )  # fmt: skip
    return y, winner, distance


def _columns(a: Tensor) -> Tensor:
    """The same matrix, with columns that lie together in memory."""
    return a.t().contiguous().t()


def _tile(
    samples: int, outs: int, groups: int, dtype: torch.dtype, arg: bool, device: torch.device
) -> tuple[tuple[int, int], int]:
    """Samples and outputs of a program, and its warps: small tiles where large ones would leave processors idle."""
    tiles = groups * math.ceil(samples / 64) * math.ceil(outs / 64)
    side = 64 if tiles >= processors(device) and dtype == torch.float32 else 32
    tile = power_of_two(samples, 16, side), power_of_two(outs, 16, 32 if arg else side)
    return tile, 2 if tile[0] == 64 and tile[1] >= 32 else 1


def _span(fan_in: int, tiles: int, device: torch.device) -> int:
    """Taps of a program: all of them where the tiles fill the device, else whole blocks of them."""
    splits = max(1, min(fan_in // LEAST_SPAN, RESIDENT * processors(device) // tiles))
    return fan_in if splits == 1 else math.ceil(fan_in / splits / BLOCK) * BLOCK
