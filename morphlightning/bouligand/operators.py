"""Rules of morphlightning's own operators."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from morphlightning.bouligand.kinks import Kink, Slabs, compete, piece_of, reach
from morphlightning.bouligand.mode import Directional, composition, rule
from morphlightning.ops import eager, geodesic, soft, splines
from morphlightning.ops.dispatch import maxplus, maxplus_with_provenance
from morphlightning.ops.geometry import DENSE, Dense, Geometry
from morphlightning.pipeline import policy_of


def candidates(x: Tensor, w: Tensor, h: Tensor, v: Tensor, where: Geometry) -> Iterable[Slabs]:
    """Scores x + w and slopes h + v of the candidates of a max-plus operator, for some samples at a time."""
    if isinstance(where, Dense):
        for scores, slopes in zip(eager.dense_scores(x, w, where), eager.dense_scores(h, v, where), strict=True):
            yield lambda scores=scores, slopes=slopes: [(scores, slopes)]  # type: ignore[misc]
        return
    outside = replace(where, border="constant", fill=0.0) if not where.wraps else where  # what is outside stays there
    like = x.new_empty(where.output_shape(x.shape, w.shape), dtype=eager.compute_dtype(x, w))

    def taps() -> Iterable[tuple[Tensor, Tensor]]:
        pairs = zip(eager.shifts(x, w, where, like), eager.shifts(h, v, outside, like), strict=True)
        return (
            (scores.flatten(1, 2)[..., None], slopes.flatten(1, 2)[..., None]) for (_, scores), (_, slopes) in pairs
        )

    yield taps


def compete_plus(x: Tensor, w: Tensor, h: Tensor, v: Tensor, where: Geometry, eps: float, radius: bool) -> Kink:
    """What the directions h of x and v of w meet at a max-plus operator that is no dual one."""
    kinks = [compete(slabs, eps, radius) for slabs in candidates(x, w, h, v, where)]
    return Kink(torch.cat([k.slope for k in kinks]), torch.cat([k.radius for k in kinks]) if radius else None)  # type: ignore[misc]


@rule(maxplus, maxplus_with_provenance)
def _maxplus(mode: Directional, y: Tensor, x: Tensor, w: Tensor, where: Geometry, *_: Any) -> Kink:
    (x, h), (w, v) = mode.pair(x), mode.pair(w)
    sign, primal = -1 if where.dual else 1, replace(where, dual=False)
    kink = compete_plus(sign * x, w, sign * h, v, primal, mode.eps, mode.radius)
    return kink._replace(slope=sign * kink.slope)


@composition(geodesic.reconstruct)
def _reconstruct(seed: Tensor, mask: Tensor, footprint: Tensor, reflect: bool) -> Tensor:
    """The iteration itself, until values and directions are stable."""
    window = geodesic._window(footprint, reflect)
    footprint = footprint.flip(tuple(range(footprint.ndim))) if reflect else footprint
    w = torch.zeros_like(footprint, dtype=seed.dtype).masked_fill_(~footprint, -math.inf)[None, None]
    y, policy = torch.minimum(seed, mask), policy_of("first")
    while True:
        grown = torch.maximum(y, torch.minimum(maxplus(y, w, window, policy), mask))
        if _same(grown, y):
            return y
        y = grown


def _same(a: Tensor, b: Tensor) -> bool:
    with torch._C.DisableTorchFunction():
        pairs = zip(torch.autograd.forward_ad.unpack_dual(a), torch.autograd.forward_ad.unpack_dual(b), strict=True)
        return all(torch.equal(one, other) for one, other in pairs)


@rule(soft.log_sum_exp_plus)
def _log_sum_exp_plus(
    mode: Directional, y: Tensor, x: Tensor, w: Tensor, beta: Tensor, where: Geometry = DENSE, *_: Any
) -> Kink:
    """The mean of the slopes, weighted by softmax."""
    if mode.radius:
        raise mode.refusal("log_sum_exp_plus is curved: it has no exact radius")
    (x, h), (w, v), (beta, drift) = mode.pair(x), mode.pair(w), mode.pair(beta)
    if drift.any():
        raise mode.refusal("log_sum_exp_plus has no derivative along beta")
    means = []
    for slabs in candidates(x, w, h, v, where):
        top = reduce(torch.maximum, (scores.amax(-1, keepdim=True) for scores, _ in slabs()))
        total = moved = torch.zeros_like(top[..., 0])
        for scores, slopes in slabs():
            share = torch.exp(beta * (scores - top))
            total, moved = total + share.sum(-1), moved + (share * slopes).sum(-1)
        means.append(moved / total)
    return Kink(torch.cat(means), None)


@rule(splines.spline)
def _spline(mode: Directional, y: Tensor, x: Tensor, values: Tensor, knots: splines.Uniform | Tensor) -> Kink:
    (x, h), (values, v), eps = mode.pair(x), mode.pair(values), mode.eps
    if isinstance(knots, Tensor):
        knots, shifts = mode.pair(knots)
    else:  # in units of the distance between knots, where the operator compares
        low, step = knots
        x, h, eps = (x - low) * (1.0 / step), h / step, eps / step
        knots = torch.arange(values.shape[1], dtype=x.dtype, device=x.device)
        shifts = torch.zeros_like(knots)
    if mode.radius and (shifts.any() or (h.any() and v.any())):
        raise mode.refusal("spline is curved where two of x, values and knots move: it has no exact radius")
    if knots.ndim == 1:
        return _lines(mode, eps, x, h, values, v, knots, shifts)
    columns = [one.split(1, dim=1) for one in (x, h)]
    rows = [one.split(1) for one in (values, v)]
    places = zip(knots, shifts, strict=True)
    kinks = [_lines(mode, eps, *each, *place) for *each, place in zip(*columns, *rows, places, strict=True)]
    radius = torch.cat([k.radius for k in kinks], 1) if mode.radius else None  # type: ignore[misc]
    return Kink(torch.cat([k.slope for k in kinks], 1), radius)


def _lines(
    mode: Directional, eps: float, x: Tensor, h: Tensor, values: Tensor, v: Tensor, knots: Tensor, shifts: Tensor
) -> Kink:
    """Splines on the same knots that move along h, v and ``shifts``."""
    inner, first = knots[1:-1], torch.searchsorted(knots[1:-1] - eps, x.contiguous(), right=True)
    piece = piece_of(x, h >= shifts[first], inner, eps)  # x passes a knot if it moves ahead of it
    width = knots.diff()
    fraction = (x - knots[piece]) / width[piece]
    _, rise = splines._look_up(values, piece)
    from_left, from_rise = splines._look_up(v, piece)
    drift = h - shifts[piece] - fraction * shifts.diff()[piece]
    slope = rise / width[piece] * drift + from_left + from_rise * fraction
    if not mode.radius:
        return Kink(slope, None)
    slopes = values.diff() / width
    rounding = 4 * torch.finfo(x.dtype).eps * (values.abs().amax() / width.amin())
    bends = (slopes.diff().abs() > rounding)[:, None]
    return Kink(slope, reach(x, h, piece, inner, bends))
