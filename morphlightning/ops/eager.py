"""The eager backend: plain torch, any device and dtype, chunked so that no (batch, out, in) tensor is ever held."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import torch
from torch import Tensor

from morphlightning.ops.geometry import Dense, Geometry, Window

BUDGET = 1 << 22
"""Scores held at once; 16 MiB in float32."""


def compute_dtype(x: Tensor, w: Tensor) -> torch.dtype:
    """The dtype of scores: at least float32, so that half precision creates no ties of its own."""
    return torch.promote_types(torch.promote_types(x.dtype, w.dtype), torch.float32)


def value(x: Tensor, w: Tensor, geometry: Geometry) -> Tensor:
    """Maxima alone."""
    dtype = compute_dtype(x, w)
    if isinstance(geometry, Dense):
        w = w.to(dtype)
        parts = [(part.to(dtype)[:, None] + w).amax(-1) for part in x.split(rows_at_once(w))]
        return torch.cat(parts).to(x.dtype)
    best = x.new_full(geometry.output_shape(x.shape, w.shape), -math.inf, dtype=dtype)
    top = _by_group(best, geometry)
    for _, scores in _shifts(x, w, geometry, best):
        torch.maximum(top, scores, out=top)
    return best.to(x.dtype)


def indices(x: Tensor, w: Tensor, geometry: Geometry, gap: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Maxima, the winning tap of each (-1 where no candidate is finite) and, on request, the gap to the runner-up.

    Without ``gap`` the third result is empty. Among equal maxima the lowest input position wins.
    """
    search = _dense_indices if isinstance(geometry, Dense) else _window_indices
    best, arg, second = search(x, w, geometry, gap)  # type: ignore[arg-type]
    runner_up = (best - second).masked_fill(best == -math.inf, math.inf) if gap else best.new_empty(0)
    return best.to(x.dtype), arg.masked_fill_(best == -math.inf, -1), runner_up


def scatter(gy: Tensor, arg: Tensor, x: torch.Size, w: torch.Size, geometry: Geometry) -> tuple[Tensor, Tensor]:
    """Send each message to the winner: gradients of the shapes of x and w, in the dtype of ``gy``."""
    gy, tap = _drop_lost(gy.reshape(x[0], -1), arg.reshape(x[0], -1))
    unit = torch.arange(gy.shape[1], device=gy.device)
    cell = geometry.cell(unit, tap, x, w)
    sent = gy if isinstance(geometry, Dense) else gy.masked_fill(cell < 0, 0)
    gx = gy.new_zeros(x[0], math.prod(x[1:])).scatter_add_(1, cell.clamp_min(0), sent)
    index = unit // (gy.shape[1] // w[0]) * geometry.fan_in(w) + tap
    gw = gy.new_zeros(math.prod(w)).scatter_add_(0, index.reshape(-1), gy.reshape(-1))
    return gx.view(x), gw.view(w)


def gather(gx: Tensor, gw: Tensor, arg: Tensor, geometry: Geometry) -> Tensor:
    """The adjoint of :func:`scatter`: what each winner's cell and tap hold, added, in the shape of ``arg``."""
    x, w = gx.shape, gw.shape
    one, tap = _drop_lost(torch.ones_like(arg, dtype=gx.dtype).reshape(x[0], -1), arg.reshape(x[0], -1))
    unit = torch.arange(tap.shape[1], device=tap.device)
    cell = geometry.cell(unit, tap, x, w)
    index = unit // (tap.shape[1] // w[0]) * geometry.fan_in(w) + tap
    from_cells = gx.reshape(x[0], -1).gather(1, cell.clamp_min(0)).masked_fill(cell < 0, 0)
    return ((from_cells + gw.reshape(-1)[index]) * one).view(arg.shape)


def _drop_lost(gy: Tensor, arg: Tensor) -> tuple[Tensor, Tensor]:
    """Rows without a winner send nothing."""
    return gy.masked_fill(arg < 0, 0), arg.clamp_min(0)


def rows_at_once(w: Tensor) -> int:
    """Samples whose scores against all of w fit the budget."""
    return max(1, BUDGET // max(1, w.numel()))


def _dense_indices(x: Tensor, w: Tensor, geometry: Dense, gap: bool) -> tuple[Tensor, Tensor, Tensor]:
    dtype = compute_dtype(x, w)
    w = w.to(dtype)
    best, arg, second = [], [], []
    for part in x.split(rows_at_once(w)):
        scores = part.to(dtype)[:, None] + w
        top, at = scores.max(-1)  # the first of equal maxima, by torch's documentation
        best.append(top)
        arg.append(at)
        if gap:
            second.append(scores.scatter_(-1, at[..., None], -math.inf).amax(-1))
    return torch.cat(best), torch.cat(arg), torch.cat(second) if gap else w.new_empty(0)


def _window_indices(x: Tensor, w: Tensor, geometry: Window, gap: bool) -> tuple[Tensor, Tensor, Tensor]:
    shape = geometry.output_shape(x.shape, w.shape)
    best = x.new_full(shape, -math.inf, dtype=compute_dtype(x, w))
    arg = torch.full(shape, -1, dtype=torch.int64, device=x.device)
    second = best.clone() if gap else best.new_empty(0)
    # Positions outside the image lose ties; wrapped positions can come out of order.
    ordered = not (geometry.wraps or geometry.border == "constant")
    lowest = torch.full(shape, torch.iinfo(torch.int64).max, device=x.device) if not ordered else arg
    unit = torch.arange(math.prod(shape[1:]), device=x.device)
    top = _by_group(best, geometry)
    for tap, scores in _shifts(x, w, geometry, best):
        better = scores > top
        if not ordered:
            cell = geometry.cell(unit, torch.tensor(tap, device=x.device), x.shape, w.shape).view(shape[1:])
            cell = torch.where(cell < 0, torch.iinfo(torch.int64).max - 1, cell).expand(shape)
            better |= (scores == top) & _by_group(cell < lowest, geometry)
            lowest = torch.where(better.view(shape), cell, lowest)
        if gap:
            runner_up = _by_group(second, geometry)
            torch.maximum(runner_up, torch.minimum(top, scores), out=runner_up)
        arg.masked_fill_(better.view(shape), tap)
        torch.maximum(top, scores, out=top)
    return best, arg, second


def _by_group(y: Tensor, geometry: Window) -> Tensor:
    """(samples, out, ...) as (samples, groups, out of a group, ...), without a copy."""
    return y.view(y.shape[0], geometry.groups, y.shape[1] // geometry.groups, *y.shape[2:])


def _shifts(x: Tensor, w: Tensor, geometry: Window, like: Tensor) -> Iterator[tuple[int, Tensor]]:
    """For each tap: its number and the scores (samples, groups, out of a group, *extents) of all outputs."""
    groups, extents = geometry.groups, like.shape[2:]
    padded = geometry.pad(x.to(like.dtype))
    padded = padded.view(x.shape[0], groups, -1, *padded.shape[2:])
    weights = w.to(like.dtype).reshape(groups, w.shape[0] // groups, -1)
    ones = (1,) * len(extents)
    for tap, (channel, *offset) in enumerate(itertools.product(*(range(n) for n in w.shape[1:]))):
        window = [
            slice(q * d, q * d + (n - 1) * s + 1, s)
            for q, d, n, s in zip(offset, geometry.spacing, extents, geometry.stride, strict=True)
        ]
        shifted = padded[(slice(None), slice(None), slice(channel, channel + 1), *window)]
        yield tap, shifted + weights[:, :, tap].view(1, groups, -1, *ones)
