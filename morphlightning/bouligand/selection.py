"""Rules of torch's functions that select among values: maxima, minima and pooling."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor

from morphlightning.bouligand.kinks import Kink, compete
from morphlightning.bouligand.mode import Directional, rule
from morphlightning.bouligand.operators import compete_plus
from morphlightning.bouligand.pointwise import _maximum, _minimum
from morphlightning.ops.geometry import Window


def _extreme(mode: Directional, y: Tensor, input: Tensor, dim: Any, sign: int) -> Kink:
    """The largest (sign 1) or smallest (sign -1) value along axes; no axis is all of them."""
    axes = (dim,) if isinstance(dim, int) else tuple(dim or range(input.ndim))
    last = tuple(range(-len(axes), 0))
    x, h = (
        sign * part.movedim(axes, last).flatten(-len(axes)) if axes else sign * part[None] for part in mode.pair(input)
    )
    kink = compete(lambda: [(x, h)], mode.eps, mode.radius)
    return Kink(sign * kink.slope.view(y.shape), None if kink.radius is None else kink.radius.view(y.shape))


@rule("amax")
def _amax(mode: Directional, y: Tensor, input: Tensor, dim: Any = (), keepdim: bool = False) -> Kink:
    return _extreme(mode, y, input, dim, 1)


@rule("amin")
def _amin(mode: Directional, y: Tensor, input: Tensor, dim: Any = (), keepdim: bool = False) -> Kink:
    return _extreme(mode, y, input, dim, -1)


@rule("max")
def _max(
    mode: Directional, y: Tensor, input: Tensor, dim: Any = (), keepdim: bool = False, other: Tensor | None = None
) -> Kink:
    other = dim if isinstance(dim, Tensor) else other
    return _extreme(mode, y, input, dim, 1) if other is None else _maximum(mode, y, input, other)


@rule("min")
def _min(
    mode: Directional, y: Tensor, input: Tensor, dim: Any = (), keepdim: bool = False, other: Tensor | None = None
) -> Kink:
    other = dim if isinstance(dim, Tensor) else other
    return _extreme(mode, y, input, dim, -1) if other is None else _minimum(mode, y, input, other)


def _per_axis(value: Any, rank: int) -> tuple[int, ...]:
    sizes = (value,) if isinstance(value, int) else tuple(value)
    return sizes * rank if len(sizes) == 1 else sizes


def _pool(
    rank: int,
    mode: Directional,
    y: Tensor,
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Kink:
    """Max-pooling as a flat max-plus operator, each channel a group."""
    size, spacing, before = (_per_axis(part, rank) for part in (kernel_size, dilation, padding))
    step = _per_axis(stride, rank) if stride else size
    x, h = (part if part.ndim == rank + 2 else part[None] for part in mode.pair(input))
    ends = zip(y.shape[-rank:], step, spacing, size, x.shape[2:], before, strict=True)
    after = tuple((out - 1) * s + d * (k - 1) + 1 - n - lo for out, s, d, k, n, lo in ends)  # ceil_mode needs more
    w = x.new_zeros(x.shape[1], 1, *size)
    kink = compete_plus(x, w, h, w, Window(step, spacing, before, after, x.shape[1]), mode.eps, mode.radius)
    return Kink(kink.slope.view(y.shape), None if kink.radius is None else kink.radius.view(y.shape))


def _adaptive_pool(rank: int, mode: Directional, y: Tensor, input: Tensor, *_: Any, **__: Any) -> Kink:
    """Bin i of n holds elements floor(i size / n) to ceil((i + 1) size / n); its last one repeats, for equal widths."""
    x, h = mode.pair(input)
    between: list[int] = []
    for axis in range(-rank, 0):
        size, bins = input.shape[axis], torch.arange(y.shape[axis], device=y.device)
        first, end = bins * size // len(bins), ((bins + 1) * size + len(bins) - 1) // len(bins)
        offsets = torch.arange(int((end - first).max()), device=y.device)
        at = torch.minimum(first[:, None] + offsets, end[:, None] - 1)
        x, h = x.index_select(axis, at.flatten()), h.index_select(axis, at.flatten())
        between += at.shape
    inside = tuple(range(x.ndim - rank + 1, x.ndim + rank, 2))

    def windows(part: Tensor) -> Tensor:
        lead = part.shape[:-rank]
        return part.view(*lead, *between).movedim(inside, tuple(range(-rank, 0))).flatten(-rank)

    return compete(lambda: [(windows(x), windows(h))], mode.eps, mode.radius)


for _rank in (1, 2, 3):
    rule(f"max_pool{_rank}d", f"max_pool{_rank}d_with_indices")(partial(_pool, _rank))
    rule(f"adaptive_max_pool{_rank}d")(partial(_adaptive_pool, _rank))


@rule("scatter_reduce")
def _scatter_reduce(
    mode: Directional,
    y: Tensor,
    input: Tensor,
    dim: int,
    index: Tensor,
    src: Tensor,
    reduce: str,
    include_self: bool = True,
) -> Kink:
    if reduce not in ("amax", "amin"):
        if mode.radius and reduce == "prod":
            raise mode.refusal("scatter_reduce of products is curved: it has no exact radius")
        return Kink(mode.pair(torch.scatter_reduce(input, dim, index, src, reduce, include_self=include_self))[1], None)
    sign = 1 if reduce == "amax" else -1
    (x, h), (z, g) = (tuple(sign * part for part in mode.pair(of)) for of in (input, src))
    z, g = (part[tuple(map(slice, index.shape))] for part in (z, g))
    own = torch.ones_like(y, dtype=torch.bool) if include_self else _untouched(y, dim, index)
    top = sign * y
    at_top = top.gather(dim, index)
    slope = torch.where(own & (x >= top - mode.eps), h, -math.inf)
    slope = slope.scatter_reduce(dim, index, torch.where(z >= at_top - mode.eps, g, -math.inf), "amax")
    if not mode.radius:
        return Kink(sign * slope, None)

    def crossing(score: Tensor, other: Tensor, top: Tensor, slope: Tensor) -> Tensor:
        rise = other - slope
        return torch.where((score < top - mode.eps) & (rise > 0), (top - score) / rise, math.inf)

    radius = torch.where(own, crossing(x, h, top, slope), math.inf)
    radius = radius.scatter_reduce(dim, index, crossing(z, g, at_top, slope.gather(dim, index)), "amin")
    return Kink(sign * slope, radius)


def _untouched(y: Tensor, dim: int, index: Tensor) -> Tensor:
    return torch.ones_like(y, dtype=torch.bool).scatter(dim, index, False)
