"""The two shapes that kinks have: candidates that compete for a maximum, and a line that is broken at knots.

All else is composed of them. Both give the one-sided derivative along a direction, and how far it is exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor


class Kink(NamedTuple):
    """What a direction meets at a kink.

    Attributes:
        slope: One-sided derivative of each output.
        radius: The step up to which each output is exactly affine; None where nobody asked.
    """

    slope: Tensor
    radius: Tensor | None


Slabs = Callable[[], Iterable[tuple[Tensor, Tensor]]]
"""Scores and slopes of candidates, along the last axis; a slab holds some of the candidates of every output."""


def compete(slabs: Slabs, eps: float, radius: bool) -> Kink:
    """The maximum of candidates: the largest slope among those within ``eps`` of the largest score.

    Source: derived in docs/bouligand.md, "The derivative" and "Exact radius".
    """
    top = reduce(torch.maximum, (score.amax(-1) for score, _ in slabs()))[..., None]
    least = top - eps
    slope = reduce(torch.maximum, (torch.where(s < least, -math.inf, d).amax(-1) for s, d in slabs()))
    if not radius:
        return Kink(slope, None)

    def crossing(score: Tensor, other: Tensor) -> Tensor:
        rise = other - slope[..., None]
        return torch.where((score < least) & (rise > 0), (top - score) / rise, math.inf).amin(-1)

    return Kink(slope, reduce(torch.minimum, (crossing(*slab) for slab in slabs())))


def piece_of(x: Tensor, forward: Tensor, knots: Tensor, eps: float) -> Tensor:
    """The piece, counted from 0, that x enters: at a knot, or within ``eps`` of one, the right one if ``forward``."""
    right = torch.searchsorted(knots - eps, x.contiguous(), right=True)
    return torch.where(forward, right, torch.searchsorted(knots + eps, x.contiguous()))


def reach(x: Tensor, h: Tensor, piece: Tensor, knots: Tensor, bends: Tensor) -> Tensor:
    """How far x goes along h, from ``piece``, to the next knot where the line ``bends`` (..., knots)."""
    nearest = torch.full_like(x, math.inf)
    for k, knot in enumerate(knots.unbind()):
        ahead = torch.where(h > 0, piece <= k, (h < 0) & (piece > k)) & bends[..., k]
        nearest = torch.minimum(nearest, torch.where(ahead, (knot - x) / h, math.inf))
    return nearest


def broken_line(x: Tensor, h: Tensor, knots: Tensor, slopes: Tensor, eps: float, radius: bool) -> Kink:
    """A continuous line of ``slopes`` (..., knots + 1), one axis more than x where they differ from value to value."""
    piece = piece_of(x, h >= 0, knots, eps)
    slope = slopes.expand(*x.shape, -1).gather(-1, piece[..., None])[..., 0] * h
    return Kink(slope, reach(x, h, piece, knots, slopes.diff() != 0) if radius else None)
