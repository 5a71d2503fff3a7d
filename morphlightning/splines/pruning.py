"""Which knots of linear splines are needed, by a shortest path through chords."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def needed_knots(knots: Tensor, values: Tensor, tolerance: float) -> Tensor:
    """The smallest subsets of knots at which to interpolate, moving no value on the line by more than ``tolerance``.

    A subset starts and ends with what the outer pieces need to stay as they are: the end knots, and the first and the
    last knot with another slope on its other side. Between these a chord from knot i to knot j is admitted if its slope
    lies in the cone of slopes that pass, seen from knot i, within tolerance of all knots between.

    Args:
        knots: (splines, K), float64.
        values: (splines, K), float64.
        tolerance: >= 0.

    Returns:
        Boolean (splines, K).

    Derived here.
    """
    count = knots.shape[1]
    keep = torch.zeros_like(knots, dtype=torch.bool)
    keep[:, [0, -1]] = True
    slopes = values.diff(dim=1) / knots.diff(dim=1)
    bends = F.pad(slopes.diff(dim=1) != 0, (1, 1))
    bent = bends.any(1)
    first = bends.int().argmax(1)
    last = count - 1 - bends.flip(1).int().argmax(1)
    steps = _steps(knots, values, tolerance, last)
    rows = torch.arange(len(knots), device=knots.device)
    at = first
    while bool(bent.any()):
        keep[rows[bent], at[bent]] = True
        bent = bent & (at < last)
        at = torch.where(bent, steps[rows, at], at)
    return keep


def _steps(knots: Tensor, values: Tensor, tolerance: float, last: Tensor) -> Tensor:
    """For each knot the next one on a path with the fewest chords to the knot ``last`` of its row."""
    splines, count = knots.shape
    chords = knots.new_full((splines, count), math.inf)
    chords.scatter_(1, last[:, None], 0.0)
    steps = torch.zeros(splines, count, dtype=torch.long, device=knots.device)
    for i in reversed(range(count - 1)):
        run, rise = knots[:, i + 1 :] - knots[:, i : i + 1], values[:, i + 1 :] - values[:, i : i + 1]
        steepest = F.pad(((rise + tolerance) / run).cummin(1).values[:, :-1], (1, 0), value=math.inf)
        flattest = F.pad(((rise - tolerance) / run).cummax(1).values[:, :-1], (1, 0), value=-math.inf)
        admitted = (rise / run <= steepest) & (rise / run >= flattest)
        cost, step = torch.where(admitted, 1 + chords[:, i + 1 :], math.inf).min(1)
        steps[:, i] = i + 1 + step
        chords[:, i] = torch.where(i < last, cost, chords[:, i])
    return steps
