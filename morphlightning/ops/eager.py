"""The eager backend: plain torch, any device and dtype, chunked so that no (batch, out, in) tensor is ever held."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from morphlightning.ops.geometry import Dense, Geometry, Window

if TYPE_CHECKING:
    from morphlightning.ops.active import ActiveGraph

BUDGET = 1 << 22
"""Scores held at once; 16 MiB in float32."""
CPU_SHARE = 16
"""On a CPU a chunk of the forward pass is this many times smaller, to stay in the cache."""


def compute_dtype(x: Tensor, w: Tensor) -> torch.dtype:
    """The dtype of scores: at least float32, so that half precision creates no ties of its own."""
    return torch.promote_types(torch.promote_types(x.dtype, w.dtype), torch.float32)


def bounded(x: Tensor) -> Tensor:
    """Replace +inf by the largest finite number, so that a missing weight loses against it (+inf - inf is NaN)."""
    return x.clamp_max(torch.finfo(x.dtype).max)


def _unbounded(best: Tensor) -> Tensor:
    """The inverse of :func:`bounded`, in place, on maxima."""
    return best.masked_fill_(best > torch.finfo(best.dtype).max / 2, math.inf)


def value(x: Tensor, w: Tensor, geometry: Geometry) -> Tensor:
    """Maxima alone; of a dual geometry the minima -max(-x + w)."""
    x = -x if geometry.dual else x
    search = _dense_value if isinstance(geometry, Dense) else window_value
    y = _unbounded(search(x, w, geometry)).to(x.dtype)  # type: ignore[arg-type]
    return -y if geometry.dual else y


def indices(x: Tensor, w: Tensor, geometry: Geometry, gap: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Maxima, the winning tap of each (int32; -1 where no candidate is finite) and the gap to the runner-up.

    Without ``gap`` the third result is empty. Among equal maxima the lowest input position wins; the maximum of
    candidates with a NaN is NaN, and the first NaN wins.
    """
    x = -x if geometry.dual else x
    search = _dense_indices if isinstance(geometry, Dense) else _window_indices
    best, arg, second = search(x, w, geometry, gap)  # type: ignore[arg-type]
    lost = best == -math.inf
    runner_up = (best - second).masked_fill_(lost, math.inf) if gap else best.new_empty(0)
    y = _unbounded(best).to(x.dtype)
    return -y if geometry.dual else y, arg.masked_fill_(lost, -1), runner_up


def scatter(
    gy: Tensor, arg: Tensor, x: torch.Size, w: torch.Size, geometry: Geometry, want_x: bool = True, want_w: bool = True
) -> tuple[Tensor, Tensor]:
    """Send each message to the winner: gradients of the shapes of x and w, in the dtype of ``gy``.

    What is not wanted is empty. In a dual operator y = x - w at the winner, so weights receive the negative.
    """
    gx = gw = gy.new_empty(0)
    gy, tap = _drop_lost(gy.flatten(1), arg.flatten(1))
    if want_x:
        cell = geometry.cell(torch.arange(gy.shape[1], device=gy.device), tap, x, w)
        sent = gy.masked_fill(cell < 0, 0)  # a constant border won, or a NaN outside
        gx = gy.new_zeros(x[0], math.prod(x[1:])).scatter_add_(1, cell.clamp_min(0), sent).view(x)
    if want_w:
        gw = _to_taps(-gy if geometry.dual else gy, tap, w, geometry)
    return gx, gw


def touches(gy: Tensor, arg: Tensor, w: torch.Size, geometry: Geometry) -> Tensor:
    """For each weight the number of messages different from zero that it won, in the dtype of ``gy``."""
    gy, tap = _drop_lost(gy.flatten(1), arg.flatten(1))
    return _to_taps((gy != 0).to(gy.dtype), tap, w, geometry)


def active(x: Tensor, w: Tensor, arg: Tensor, gap: Tensor, geometry: Geometry, eps: float) -> ActiveGraph:
    """The graph of candidates within eps of their maximum, of an operator that is no dual one."""
    from morphlightning.ops.active import ActiveGraph, Call  # it is made of the functions here

    return ActiveGraph(Call(x, w, arg, gap, geometry), eps)


def project(
    u: Tensor, x: Tensor, w: Tensor, arg: Tensor, gap: Tensor, geometry: Geometry, tau: float, count: bool
) -> tuple[Tensor, Tensor]:
    """Pseudo-gradients (w - w') / tau, added over rows, and how many rows moved each weight (empty without ``count``).

    w' is the metric projection of a row's weights on {maximum = y - tau u}: where u > 0 every candidate above the
    target is lowered to it, where u < 0 the winner is raised to it; of an operator that is no dual one.
    """
    gw, touched = u.new_zeros(w.numel()), u.new_zeros(w.numel() if count else 0)
    rows = u.flatten(1)
    unit = torch.arange(rows.shape[1], device=x.device)
    first = unit // (rows.shape[1] // w.shape[0]) * geometry.fan_in(w.shape)
    winner, raising = arg.flatten(1), rows.clamp_max(0)
    for part, taps, scores, top in scored(x, w, geometry):
        target = top - tau * rows[part].clamp_min(0)[..., None]
        sent = ((scores - target) / tau).clamp_min_(0)  # a missing weight has a score of -inf
        sent.masked_fill_(((rows <= 0) | (winner < 0))[part][..., None], 0)
        sent += torch.where(taps == winner[part][..., None], raising[part][..., None], 0.0)
        index = (first[:, None] + taps).flatten()
        gw.index_add_(0, index, sent.sum(0).flatten())
        if count:
            touched.index_add_(0, index, (sent != 0).sum(0).to(u.dtype).flatten())
    return gw.view(w.shape), touched.view(w.shape if count else (0,))


def scored(x: Tensor, w: Tensor, geometry: Geometry) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
    """Some samples and taps at a time: their scores (samples, units, taps), and the maxima (samples, units, 1)."""
    if isinstance(geometry, Dense):
        taps, start = torch.arange(w.shape[1], device=x.device), 0
        for scores in dense_scores(x, w, geometry):
            yield slice(start, start + len(scores)), taps, scores, scores.amax(-1, keepdim=True)
            start += len(scores)
        return
    best = window_value(x, w, geometry)
    top = best.flatten(1)[..., None]
    for tap, scores in shifts(x, w, geometry, best):
        yield slice(None), torch.tensor([tap], device=x.device), scores.flatten(1)[..., None], top


def gather(gx: Tensor, gw: Tensor, arg: Tensor, geometry: Geometry) -> Tensor:
    """The adjoint of :func:`scatter`: what each winner's cell and tap hold, added, in the shape of ``arg``."""
    x, w = gx.shape, gw.shape
    one, tap = _drop_lost(torch.ones_like(arg, dtype=gx.dtype).flatten(1), arg.flatten(1))
    cell = geometry.cell(torch.arange(tap.shape[1], device=tap.device), tap, x, w)
    from_cells = gx.flatten(1).gather(1, cell.clamp_min(0)).masked_fill(cell < 0, 0)
    from_taps = gw.reshape(-1)[_weight_index(tap, w, geometry)]
    return ((from_cells - from_taps if geometry.dual else from_cells + from_taps) * one).view(arg.shape)


def _to_taps(gy: Tensor, tap: Tensor, w: torch.Size, geometry: Geometry) -> Tensor:
    index = _weight_index(tap, w, geometry)
    return gy.new_zeros(math.prod(w)).scatter_add_(0, index.reshape(-1), gy.reshape(-1)).view(w)


def _weight_index(tap: Tensor, w: torch.Size, geometry: Geometry) -> Tensor:
    """Flat index into the weight for taps (samples, units)."""
    unit = torch.arange(tap.shape[1], device=tap.device)
    return unit // (tap.shape[1] // w[0]) * geometry.fan_in(w) + tap


def _drop_lost(gy: Tensor, arg: Tensor) -> tuple[Tensor, Tensor]:
    """Rows without a winner send nothing."""
    return gy.masked_fill(arg < 0, 0), arg.clamp_min(0)


def rows_at_once(w: Tensor) -> int:
    """Samples whose scores against all of w fit the budget."""
    budget = BUDGET // CPU_SHARE if w.device.type == "cpu" else BUDGET
    return max(1, budget // max(1, w.numel()))


def dense_scores(x: Tensor, w: Tensor, geometry: Dense) -> Iterator[Tensor]:
    """Scores (samples, out, in), some samples at a time."""
    dtype, groups = compute_dtype(x, w), geometry.groups
    weights = w.to(dtype).unflatten(0, (groups, -1))
    for part in x.split(rows_at_once(w)):
        yield (bounded(part.to(dtype)).reshape(len(part), groups, 1, w.shape[1]) + weights).flatten(1, 2)


def _dense_value(x: Tensor, w: Tensor, geometry: Dense) -> Tensor:
    return torch.cat([scores.amax(-1) for scores in dense_scores(x, w, geometry)])


def _dense_indices(x: Tensor, w: Tensor, geometry: Dense, gap: bool) -> tuple[Tensor, Tensor, Tensor]:
    best, arg, second = [], [], []
    for scores in dense_scores(x, w, geometry):
        top, at = scores.max(-1)  # the first of equal maxima, by torch's documentation
        best.append(top)
        arg.append(at.int())
        if gap:
            second.append(scores.scatter_(-1, at[..., None], -math.inf).amax(-1))
    return torch.cat(best), torch.cat(arg), torch.cat(second) if gap else w.new_empty(0, dtype=best[0].dtype)


def window_value(x: Tensor, w: Tensor, geometry: Window) -> Tensor:
    """Maxima over windows."""
    if geometry.flat:
        return _flat_value(x, w, geometry)
    best = x.new_full(geometry.output_shape(x.shape, w.shape), -math.inf, dtype=compute_dtype(x, w))
    top = by_group(best, geometry)
    for _, scores in shifts(x, w, geometry, best):
        torch.maximum(top, scores, out=top)
    return best


def _flat_value(x: Tensor, w: Tensor, geometry: Window) -> Tensor:
    """Maxima over a box, one axis after another; along an axis the window doubles with every maximum."""
    y = geometry.pad(x.to(compute_dtype(x, w)))
    for axis, (size, space, stride) in enumerate(zip(w.shape[2:], geometry.spacing, geometry.stride, strict=True), 2):
        reach, span = y.shape[axis], 1
        while 2 * span <= size:
            reach -= span * space
            y = torch.maximum(y.narrow(axis, 0, reach), y.narrow(axis, span * space, reach))
            span *= 2
        if rest := size - span:
            reach -= rest * space
            y = torch.maximum(y.narrow(axis, 0, reach), y.narrow(axis, rest * space, reach))
        if stride > 1:
            y = y[(slice(None),) * axis + (slice(None, None, stride),)]
    return y.clone(memory_format=torch.contiguous_format) if y.data_ptr() == x.data_ptr() else y.contiguous()


def _window_indices(x: Tensor, w: Tensor, geometry: Window, gap: bool) -> tuple[Tensor, Tensor, Tensor]:
    shape = geometry.output_shape(x.shape, w.shape)
    best = x.new_full(shape, -math.inf, dtype=compute_dtype(x, w))
    arg = torch.zeros(shape, dtype=torch.int32, device=x.device)
    second = best.clone() if gap else best.new_empty(0)
    top, winner = by_group(best, geometry), by_group(arg, geometry)
    earlier = _Earlier(x, w, geometry, top) if geometry.wraps or geometry.border == "constant" else None
    for tap, scores in shifts(x, w, geometry, best):
        better = ~(scores <= top) & ~top.isnan()  # greater, or the first NaN
        if earlier is not None:
            better |= earlier.among_equals(tap, better, scores == top)
        if gap:
            runner_up = by_group(second, geometry)
            torch.maximum(runner_up, torch.minimum(top, scores), out=runner_up)
        # taps ascend, so the latest is the largest; a product is vectorized where a selection is not
        torch.maximum(winner, better * torch.tensor(tap, dtype=torch.int32, device=x.device), out=winner)
        torch.maximum(top, scores, out=top)
    return best, arg, second


class _Earlier:
    """Ties where a higher tap can meet a lower input position, because the border repeats the image.

    Positions outside the image, where a constant border wins, come after all others.
    """

    def __init__(self, x: Tensor, w: Tensor, geometry: Window, like: Tensor) -> None:
        start, self._away, held = geometry.tables(x.shape, w.shape, x.device)
        self._start, self._held = start.view(like.shape[1:]), held.masked_fill(held < 0, len(held))
        self._lowest = torch.full(like.shape, len(held), device=x.device)

    def among_equals(self, tap: int, better: Tensor, equal: Tensor) -> Tensor:
        """Which of the ``equal`` scores at ``tap`` belong to an earlier input position than the winner so far."""
        cell = self._held[self._start + self._away[tap]]
        earlier = equal & (cell < self._lowest)
        self._lowest = torch.where(better | earlier, cell, self._lowest)
        return earlier


def by_group(y: Tensor, geometry: Window) -> Tensor:
    """(samples, out, ...) as (samples, groups, out of a group, ...), without a copy."""
    return y.view(y.shape[0], geometry.groups, y.shape[1] // geometry.groups, *y.shape[2:])


def shifts(x: Tensor, w: Tensor, geometry: Window, like: Tensor) -> Iterator[tuple[int, Tensor]]:
    """For each tap: its number and the scores (samples, groups, out of a group, *extents) of all outputs."""
    groups, extents = geometry.groups, like.shape[2:]
    padded = bounded(geometry.pad(x.to(like.dtype)))
    padded = padded.view(x.shape[0], groups, w.shape[1], *padded.shape[2:])
    weights = w.to(like.dtype).reshape(groups, w.shape[0] // groups, -1)
    ones = (1,) * len(extents)
    for tap, (channel, *offset) in enumerate(itertools.product(*(range(n) for n in w.shape[1:]))):
        window = [
            slice(q * d, q * d + (n - 1) * s + 1, s)
            for q, d, n, s in zip(offset, geometry.spacing, extents, geometry.stride, strict=True)
        ]
        shifted = padded[(slice(None), slice(None), slice(channel, channel + 1), *window)]
        yield tap, shifted + weights[:, :, tap].view(1, groups, -1, *ones)
